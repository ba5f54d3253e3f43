"""What ends a push, or a CI job's, from outside."""

from __future__ import annotations

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
