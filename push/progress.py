"""What a push says: progress on standard error, one line for the whole on standard output."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from formats.printable import printable
from push.failure import OutputError

_LONGEST_LINE = 4000


def open_streams() -> None:
    """Have standard input, output and error lead to nowhere where whoever starts this closed them.

    A connection would be given their numbers otherwise, and Python has nothing in their place.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # It is given the lowest number that is free, and those below are not.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w" if number else "r", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)


def say(line: str) -> None:
    """Write a line to standard error, as what the push says.

    Raises:
        BrokenPipeError: nobody listens any more.
    """
    remark(f"push: {line}")


def remark(line: str) -> None:
    """Write a line to standard error, as a terminal can have it, and not without end.

    A full disk keeps nobody from pushing: then it is lost.

    Raises:
        BrokenPipeError: nobody listens any more.
    """
    try:
        sys.stderr.write(f"{printable(line, _LONGEST_LINE)}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        return


def put(line: str) -> None:
    """Write a line to standard output, with the bytes that it was given in if it was.

    Raises:
        BrokenPipeError: nobody listens any more.
        OutputError: it cannot be written.
    """
    try:
        sys.stdout.buffer.write(os.fsencode(line) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"output: standard output cannot be written to ({error.strerror}); send it where it can"
        ) from None


def human(size: int) -> str:
    """Return a number of bytes as something like 12.3 MB."""
    if size < 1000:
        return f"{size} B"
    value, units = size, ["kB", "MB", "GB", "TB"]
    while value >= 1_000_000 and len(units) > 1:
        value //= 1000
        units.pop(0)
    return f"{value // 1000}.{value % 1000 // 100} {units[0]}"


@dataclass
class Summary:
    """What a push came to, in paths of the closure and bytes of NARs before compression."""

    pushed: int = 0
    pushed_bytes: int = 0
    reused: int = 0
    skipped: int = 0
    skipped_bytes: int = 0
    renewed: int = 0
    repaired: int = 0

    def __add__(self, later: Summary) -> Summary:
        """Return what this push and a later one came to."""
        return Summary(
            **{one.name: getattr(self, one.name) + getattr(later, one.name) for one in fields(self)}
        )

    def line(self, verb: str, seconds: float) -> str:
        """Return the one line, such as `pushed 12 paths (48.1 MB), reused 288, …`."""
        return (
            f"{verb} {self.pushed} paths ({human(self.pushed_bytes)}), reused {self.reused}, "
            f"skipped {self.skipped} upstream ({human(self.skipped_bytes)}), "
            f"renewed {self.renewed}, repaired {self.repaired}, in {int(seconds * 10) / 10:.1f} s"
        )
