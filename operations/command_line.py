"""How every operation is called, refuses a wrong call, and says how far it is."""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from formats.printable import printable
from operations.pulumi_cli import OperationError
from push.signals import leave_no_core

DONE, FOUND, CANNOT_RUN = range(3)
"""Exit codes: all is well; something was found, or was not done; the operation could not run."""

INTERRUPTED, UNHEARD = 130, 141
"""Exit codes, as shells have them: a person interrupted it; whoever read what it says has gone."""

_ENDS = (signal.SIGTERM, signal.SIGHUP)
_SECONDS_BETWEEN_PROGRESS = 2.0
_A_MOMENT = 0.05


class Parser(argparse.ArgumentParser):
    """Reads a command line; a wrong one is refused in one sentence."""

    def __init__(
        self,
        operation: str,
        arguments: str,
        description: str | None,
        *,
        stack_required: bool = True,
        module: str | None = None,
    ) -> None:
        """Read `--stack NAME`, which every operation takes.

        Args:
            operation: the operation's name: its target in the Makefile, and its module's with
                underscores.
            arguments: its further arguments, in the words of a usage line.
            description: what it does.
            stack_required: whether there is nothing to do without a stack.
            module: the module's name, where it is not the operation's.
        """
        given = f' [ARGS="{arguments}"]' if arguments else ""
        super().__init__(
            usage=f"make {operation} [STACK=NAME]{given}\n       python -m "
            f"operations.{module or operation.replace('-', '_')} --stack NAME {arguments}".rstrip(),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._operation = operation
        self.add_argument("--stack", required=stack_required, metavar="NAME", help="the stack")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        print(
            f"error: {message}; make {self._operation} ARGS=--help shows what there is",
            file=sys.stderr,
        )
        raise SystemExit(CANNOT_RUN)


def run(operation: Callable[[], int]) -> int:
    """Run an operation; return its exit code, or say in one sentence why it could not run."""
    # Nearly all of them are told secrets, by the engine, which inherits this, or from a terminal.
    leave_no_core()
    sys.unraisablehook = _unraisable
    _open_what_is_closed()
    try:
        code = operation()
        # What it printed is told only now: to nobody, where whoever read it has gone.
        sys.stdout.flush()
        return code
    except OperationError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
    except BrokenPipeError:
        _say_no_more()
        return UNHEARD
    except ssl.SSLError as error:
        told = printable(error.reason or str(error))
        print(f"error: caCertificateFile: {told}; name the CA's PEM file", file=sys.stderr)
    except OSError as error:
        # Files that cannot be read or written are told where they are known.
        if error.filename is not None:
            raise
        _say_no_more()
        print(f"error: what it says cannot be written: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; run the command again to go on", file=sys.stderr)
        return INTERRUPTED
    return CANNOT_RUN


def _open_what_is_closed() -> None:
    """Have something in the place of a standard stream that is closed.

    The next file that is opened would be there, and get what this and other programs print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Until this process ends.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Interrupt again a moment later where Python has thrown the interruption away.

    So it does with what is raised while an object goes.
    """
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(_A_MOMENT, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def _say_no_more() -> None:
    """Let nothing complain at the end of what is left to be printed.

    Source: Python, `signal`, "Note on SIGPIPE".
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


@contextmanager
def interruptible() -> Iterator[None]:
    """Take an end from outside as an interruption by a person, so that what was made is removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Whoever has it outlive a terminal (nohup) wants that to be ignored.
    heard = [one for one in _ENDS if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """Says on standard error how far an operation is, every now and then."""

    def __init__(self, operation: str) -> None:
        """Say nothing of the first seconds."""
        self._operation = operation
        self._next = time.monotonic() + _SECONDS_BETWEEN_PROGRESS

    def __call__(self, text: str) -> None:
        """Say `text`, unless something was said a moment ago."""
        now = time.monotonic()
        if now >= self._next:
            print(f"{self._operation}: {text}", file=sys.stderr, flush=True)
            self._next = now + _SECONDS_BETWEEN_PROGRESS
