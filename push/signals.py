"""What ends a push, or a CI job's, from outside."""

from __future__ import annotations

import contextlib
import resource
import signal

ENDS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Signals that ask a process to end."""


def heard() -> list[signal.Signals]:
    """Return those of `ENDS` that whoever started this process does not want to be ignored.

    A hang-up is, where it is to outlive its terminal (`nohup`).
    """
    return [number for number in ENDS if signal.getsignal(number) != signal.SIG_IGN]


def ignore() -> None:
    """Ignore all of `ENDS` from now on: what cleans up is not to be cut short."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)


def leave_no_core() -> None:
    """Let nothing that ends this process, or what it starts, write its memory to a disk.

    One byte is less than any file of it has, and for Linux more than none: whatever the limit is,
    but for that one, a program that collects core dumps is given them.

    Source: Linux, `fs/coredump.c`; core(5), "Piping core dumps to a program".
    """
    # What has less already may not have more; and nobody goes without a push for want of this.
    with contextlib.suppress(OSError, ValueError):
        most = int(resource.getrlimit(resource.RLIMIT_CORE)[1] != 0)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
