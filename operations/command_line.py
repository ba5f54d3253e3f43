"""How every operation is called, refuses a wrong call, and says how far it is."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from operations.pulumi_cli import OperationError

DONE, FOUND, CANNOT_RUN = range(3)
"""Exit codes: all is well; something was found, or was not done; the operation could not run."""

INTERRUPTED = 130
"""Exit code after an interruption by a person, as shells have it."""

_SECONDS_BETWEEN_PROGRESS = 2.0


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
    try:
        return operation()
    except OperationError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; run the command again to go on", file=sys.stderr)
        return INTERRUPTED
    return CANNOT_RUN


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
