"""A person at a terminal: a command in bash on a pseudo-terminal, and answers to its questions."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 120.0
"""How long a command may be silent before the test gives it up."""

ATTENTION_SECONDS = 1.0
"""How long a question may take from its words to reading the answer."""

_CONTROL = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-9;?]*[A-Za-z]|\x1b[78=>]|\r")

_REPLIES = {b"\x1b]11;?\x1b\\": b"\x1b]11;rgb:0000/0000/0000\x1b\\", b"\x1b[6n": b"\x1b[1;1R"}
"""What a terminal answers that is asked for its cursor and its colour (xterm, "Control Sequences").
The engine asks before it asks a person for a secret."""

YES = ("Do you want to perform this", "yes\r")
"""The engine's question, and the answer that lets it go on."""


@dataclass(frozen=True)
class Session:
    """What one command came to."""

    code: int
    output: str
    """All that the terminal showed, without what steered it."""

    def succeeded(self) -> Session:
        """Return itself, or fail the test with what the terminal showed."""
        assert self.code == 0, self.output
        return self


def _await_attention(terminal: int) -> None:
    """Wait a moment for a question to take over the keyboard: what comes before is lost.

    Here the terminal's other side tells (Linux, pty(7)); a command that reads lines never does.
    """
    patience = time.monotonic() + ATTENTION_SECONDS
    while not _reads_keys(terminal) and time.monotonic() < patience:
        select.select([], [], [], 0.02)


def _reads_keys(terminal: int) -> bool:
    """Tell whether the terminal's other side reads each key, and no lines."""
    return not termios.tcgetattr(terminal)[3] & termios.ICANON


def _has_something(terminal: int, seconds: float) -> bool:
    """Tell whether the terminal shows something within that time."""
    return bool(select.select([terminal], [], [], seconds)[0])


def at_terminal(
    command: str,
    directory: Path,
    environment: Mapping[str, str],
    answers: Sequence[tuple[str, str]] = (),
) -> Session:
    """Run `command` in bash on a terminal.

    Args:
        command: the line that the person types.
        directory: where.
        environment: all of it.
        answers: what to type once the terminal has shown a text, one after the other; "\\x03" is
            Ctrl-C.
    """
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover
        os.chdir(directory)
        os.execvpe("bash", ["bash", "-c", command], {**environment})
    shown, answered, waiting, typed = "", 0, list(answers), ""
    try:
        while True:
            if not _has_something(terminal, ATTENTION_SECONDS * 3) and typed.endswith("\r"):
                # A person types again what a question has not taken.
                os.write(terminal, typed.encode() if _reads_keys(terminal) else b"")
            ready = _has_something(terminal, PATIENCE_SECONDS)
            assert ready, f"{command} has gone silent:\n{shown}"
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:
                # A terminal without a process on its other side (Linux, pty(7)).
                break
            if not data:
                break
            for query, reply in _REPLIES.items():
                if query in data:
                    os.write(terminal, reply)
            shown += _CONTROL.sub("", data.decode(errors="replace"))
            if waiting and re.search(waiting[0][0], shown[answered:]):
                answered = len(shown)
                _await_attention(terminal)
                typed = waiting.pop(0)[1]
                os.write(terminal, typed.encode())
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)
    assert not waiting, f"{command} never showed {waiting[0][0]!r}:\n{shown}"
    return Session(os.waitstatus_to_exitcode(status), shown)
