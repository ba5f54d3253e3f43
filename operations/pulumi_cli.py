"""The Pulumi CLI, as every operation runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

_INTERRUPTED = b"confirmation cancelled"
"""What the engine says of a question that is answered with Ctrl-C (pulumi, `pkg/backend`)."""

_NO_SUCH_STACK = re.compile("no stack named '(.+)' found")
"""What the engine says of a stack that its backend has not (pulumi, `pkg/cmd/pulumi/stack`)."""

_REMEMBERED = 1000


class OperationError(Exception):
    """What keeps an operation from running: one sentence with the remedy."""


def read_output(*arguments: str) -> Any:
    """Return what a command of the CLI prints as JSON.

    The CLI is the one on PATH, or the one that `PULUMI_COMMAND` names; it finds the backend and
    the passphrase as ever. What it prints comes back on a pipe, secrets too.

    Raises:
        OperationError: there is no CLI, or the command fails.
    """
    done = _run(*arguments, "--json")
    if done.returncode != 0:
        raise _failure(arguments, done)
    return _parsed(arguments, done)


def read_text(*arguments: str) -> str:
    """Return what a command of the CLI prints, as `read_output` does where it is JSON anyway.

    Raises:
        OperationError: there is no CLI, or the command fails.
    """
    done = _run(*arguments)
    if done.returncode != 0:
        raise _failure(arguments, done)
    return done.stdout


class _Errors(threading.Thread):
    """Passes on what the CLI writes to standard error, or, without a terminal, all it writes.

    While it asks a question it reads the terminal itself, and Ctrl-C is a key as any other: no
    process hears an interruption, and the exit code is that of the answer no. It says it in words.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        """Begin with it."""
        super().__init__(daemon=True)
        self._pipe = pipe
        self._last = b""
        self.start()

    def run(self) -> None:
        """Pass on until there is no more."""
        while data := os.read(self._pipe.fileno(), 1 << 16):
            # The CLI goes on where nobody reads any more: ended by that, it would leave its lock.
            with suppress(OSError):
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
            self._last = (self._last + data)[-_REMEMBERED:]

    def interrupted(self) -> bool:
        """Tell whether the CLI, which has ended, did so because a question was interrupted."""
        self.join(1)
        return _INTERRUPTED in self._last


def on_terminal(*arguments: str) -> int:
    """Run a command of the CLI on this terminal, with its questions; return its exit code.

    What it prints goes to standard error, so that standard output is the operation's own.

    Raises:
        OperationError: there is no CLI.
        KeyboardInterrupt: it was interrupted, and ended in order.
    """
    process = _started(*arguments)
    pipe = process.stderr or process.stdout
    assert pipe is not None
    errors = _Errors(pipe)
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # The terminal has sent it to the CLI too, which ends in order; so do we.
            interrupted = True
    # Even where it succeeds: all of it is passed on by then.
    interrupted |= errors.interrupted()
    if interrupted and code != 0:
        raise KeyboardInterrupt
    return code


def read_report(*arguments: str) -> tuple[dict[str, Any], bool]:
    """Return the steps that a preview prints as JSON, and whether it succeeded.

    One that fails may have come to steps before it did.

    Raises:
        OperationError: there is no CLI, or it came to no steps.
    """
    done = _run(*arguments, "--json")
    report = _parsed(arguments, done)
    if not isinstance(report, dict) or not isinstance(report.get("steps"), list):
        raise _failure(arguments, done)
    return report, done.returncode == 0


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    with _named() as command:
        return subprocess.run(
            [command, "--non-interactive", "--color=never", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )


def _started(*arguments: str) -> subprocess.Popen[bytes]:
    # On a terminal, the CLI draws on that itself.
    to_terminal = sys.stderr.isatty()
    stdout, stderr = (
        (sys.stderr, subprocess.PIPE) if to_terminal else (subprocess.PIPE, subprocess.STDOUT)
    )
    with _named() as command:
        return subprocess.Popen([command, *arguments], stdout=stdout, stderr=stderr)


@contextmanager
def _named() -> Iterator[str]:
    """Name the CLI, and say how to get one where it cannot be run."""
    command = os.environ.get("PULUMI_COMMAND") or "pulumi"
    try:
        yield command
    except FileNotFoundError:
        raise OperationError(
            f"there is no {command} on PATH; install the Pulumi CLI, or name it in PULUMI_COMMAND"
        ) from None
    except OSError as error:
        raise OperationError(
            f"{command} cannot be run ({error.strerror}); name the Pulumi CLI in PULUMI_COMMAND"
        ) from None


def _parsed(arguments: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> Any:
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise _failure(arguments, done) from None


def _failure(arguments: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> OperationError:
    reasons = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    reason = reasons[0].removeprefix("error: ") if reasons else f"exit code {done.returncode}"
    if missing := _NO_SUCH_STACK.search(reason):
        return OperationError(
            f"there is no stack {missing[1]}; write the name of one that is there, or make it "
            f"first: make stack NAME={missing[1]}"
        )
    return OperationError(f"pulumi {arguments[0]} failed: {reason}")
