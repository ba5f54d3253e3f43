"""The Pulumi CLI, as every operation runs it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any


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
    command = os.environ.get("PULUMI_COMMAND") or "pulumi"
    try:
        return subprocess.run(
            [command, "--non-interactive", "--color=never", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
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
    return OperationError(f"pulumi {arguments[0]} failed: {reason}")
