"""Long steps that never leave the terminal silent: what runs, and for how many seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import final

from toolbox.errors import ToolboxError

TERMINAL_INTERVAL = 5.0
"""Seconds between updates where standard error is a terminal."""

PLAIN_INTERVAL = 15.0
"""Seconds between lines where it is not."""

SOMETHING = 4096
"""Bytes that show a download has begun: more than a log, less than any program."""


NO_SPACE = "there is no space left; make some, and run the command again"

# In the words of C's library, Go, apt and pip.
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_NO_RIGHT = re.compile(r"permission denied|read-only file system", re.IGNORECASE)
_NO_NETWORK = re.compile(
    r"connection refused|connection broken|network is unreachable|no such host|i/o timeout"
    r"|name resolution|could not resolve|cannot resolve|failed to establish|unable to connect"
    # What pip says of an index that it has asked once.
    r"|from versions: none",
    re.IGNORECASE,
)


def say(text: str) -> None:
    """Write one line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


@final
class Progress:
    """The progress of one step: a line that is rewritten on a terminal, lines elsewhere."""

    def __init__(self, label: str, *, silent_at_first: bool = False) -> None:
        """`label` says what runs, for example `building the engine 3.274.1`.

        `silent_at_first` shows nothing of a step that ends within the first interval.
        """
        self.label = label
        self._terminal = sys.stderr.isatty()
        self._interval = TERMINAL_INTERVAL if self._terminal else PLAIN_INTERVAL
        self._begun = self._shown = time.monotonic()
        self._silent = silent_at_first

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self._begun

    def __enter__(self) -> Progress:
        if not self._silent:
            self._write("…")
        return self

    def tick(self, detail: str = "") -> None:
        """Show the elapsed time, with `detail`, when the interval has passed."""
        if time.monotonic() - self._shown >= self._interval:
            self._shown = time.monotonic()
            self._silent = False
            self._write(f"… {self.seconds:.0f} s{f' ({detail})' if detail else ''}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._silent:
            return
        outcome = "done" if error is None else "stopped"
        self._write(f"{outcome} in {self.seconds:.0f} s")
        if self._terminal:
            sys.stderr.write("\n")

    def _write(self, state: str) -> None:
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\033[K{f'{self.label} {state}'[: width - 1]}")
        else:
            sys.stderr.write(f"{self.label} {state}\n")
        sys.stderr.flush()


def run(
    label: str,
    command: Sequence[str],
    *,
    log: Path,
    remedy: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    patience: tuple[float, Sequence[Path]] | None = None,
) -> None:
    """Run `command` with its output in `log`, and show its progress all the while.

    `patience` is for downloads, which are silent while they are short: seconds, and
    directories in one of which a file of SOMETHING bytes must lie by then; otherwise the
    command is given up. It never outlives this call.

    Raises:
        ToolboxError: the command fails; the message has the log's last lines and `remedy`.
    """
    silent = patience is not None
    with Progress(label, silent_at_first=silent) as progress, log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env
        )
        try:
            code = _wait(process, progress, log, patience)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        text = log.read_text(errors="replace")
        plain = obstacle(text, remedy)
        if plain:
            raise ToolboxError(f"{label}: {plain}")
        tail = "\n  ".join(text.splitlines()[-8:])
        why = "received nothing" if code is None else f"failed with exit code {code}"
        raise ToolboxError(f"{label}: {command[0]} {why}; {remedy}\n  {tail}")


def obstacle(log: str, remedy: str) -> str | None:
    """Return in one sentence what a command met that is no fault of its own, or None.

    Args:
        log: what it has written.
        remedy: what to do where the network does not answer.
    """
    if _NO_SPACE.search(log):
        return NO_SPACE
    if _NO_RIGHT.search(log):
        return "this user may not write there; take a checkout of your own"
    if remedy and _NO_NETWORK.search(log):
        return f"the network does not answer; {remedy}"
    return None


def _wait(
    process: subprocess.Popen[bytes],
    progress: Progress,
    log: Path,
    patience: tuple[float, Sequence[Path]] | None,
) -> int | None:
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            progress.tick(_lines(log))
        if patience and progress.seconds > patience[0]:
            if not any(_has_something(directory) for directory in patience[1]):
                return None
            patience = None


def _has_something(directory: Path) -> bool:
    return any(path.is_file() and path.stat().st_size >= SOMETHING for path in directory.rglob("*"))


def _lines(log: Path) -> str:
    count = log.read_bytes().count(b"\n")
    return f"{count} steps" if count else ""
