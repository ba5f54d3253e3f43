"""Where an operation writes what it found, if not to the terminal."""

from __future__ import annotations

from pathlib import Path

from operations.pulumi_cli import OperationError
from push.whole_file import replace_whole

STANDARD_OUTPUT = "-"
"""The name of a file that stands for what the operation prints."""


def write_whole(file: Path, text: str) -> None:
    """Write a file at once: whoever reads it meanwhile gets the one before.

    A link goes on pointing to the file, and what is no file, such as a terminal, is written to.

    Raises:
        OperationError: it cannot be written.
    """
    try:
        # Before links are followed: those of /dev/stdout lead nowhere that has a name.
        if file.exists() and not file.is_file():
            file.write_text(text, encoding="utf-8")
            return
        file = file.resolve()
        if file.is_symlink():
            raise RuntimeError
        replace_whole(file, text)
    # As Python before 3.13 says that links go in a circle.
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its links go in a circle"
        raise OperationError(f"{file} cannot be written: {reason}") from None
