"""What a push is asked for: paths, a look, lines as they come, a queue; and how its end is told."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from push.failure import Failure
from push.progress import Summary, put, remark, say
from push.queue import Queue
from push.session import Outcome, Session

_SHOWN = 10
_SECONDS_BETWEEN_TELLING = 60.0

Tell = Callable[[Outcome | None], None]
"""Leaves in the bucket what pushes came to."""


def push_once(session: Session, paths: Sequence[str], tell: Tell) -> int:
    """Push `paths`, and return the exit code."""
    began = time.monotonic()
    outcome = session.push(paths)
    tell(outcome)
    return _ended(outcome, "pushed", began)


def look(session: Session, paths: Sequence[str]) -> int:
    """Say what a push of `paths` would do, and do nothing; return the exit code."""
    began = time.monotonic()
    outcome, inventory = session.look(paths)
    for one in inventory.missing:
        remark(f"would push {one.path.path}, {one.path.nar_size} bytes, {one.reason}")
    return _ended(outcome, "would push", began)


def push_lines(session: Session, tell: Tell) -> int:
    """Push what lines of standard input name, as many at once as have come by then.

    Returns:
        the exit code.
    """
    code, told = 0, -_SECONDS_BETWEEN_TELLING
    so_far: Outcome | None = None
    for lines in _lines():
        outcome = session.push(lines)
        so_far = outcome if so_far is None else so_far + outcome
        # Who waits for the lines waits for this, too: not after each of them.
        if time.monotonic() - told >= _SECONDS_BETWEEN_TELLING:
            tell(so_far)
            told, so_far = time.monotonic(), None
        if _tell_failures(outcome, None):
            code = 1
        # Each that came: whoever sent one twice waits for two.
        done = frozenset(outcome.done)
        for line in lines:
            if line in done:
                put(line)
    if so_far is not None:
        tell(so_far)
    return code


def _lines() -> Iterator[list[str]]:
    """Yield the lines of standard input as they are, together those that have come meanwhile.

    What is blank is none.
    """
    descriptor, rest, ended = sys.stdin.fileno(), b"", False
    while not ended:
        lines: list[str] = []
        # Whoever gave it may have made it one that does not wait by itself.
        while not ended and select.select([descriptor], [], [], 0 if lines else None)[0]:
            try:
                block = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                # Another reader was there before.
                continue
            ended = not block
            *whole, rest = (rest + block).split(b"\n")
            whole += [rest] if ended and rest else []
            # As names of files are decoded, whose bytes they are.
            lines += [os.fsdecode(line) for line in whole if line.strip()]
        if lines:
            yield lines


def push_queue(session: Session, queue: Queue, tell: Tell) -> int:
    """Push what waits, and take out of the queue what is in the bucket, and nothing else.

    Returns:
        the exit code.
    """
    if not queue.targets and not queue.strange:
        return 0
    began = time.monotonic()
    try:
        outcome = session.push(queue.targets) if queue.targets else Outcome(Summary())
    finally:
        # Also where the push comes to no end: what is there is not looked for again.
        queue.remove(session.done)
    outcome.unpushed |= queue.strange
    tell(outcome)
    return _ended(outcome, "pushed", began)


def _ended(outcome: Outcome, verb: str, began: float) -> int:
    """Say what a push that began then came to, and return the exit code."""
    line = outcome.summary.line(verb, time.monotonic() - began)
    if _tell_failures(outcome, line):
        return 1
    put(line)
    return 0


def _tell_failures(outcome: Outcome, so_far: str | None) -> bool:
    """Say what is not in the bucket and why, the reasons last; return whether there is anything."""
    if not outcome.unpushed:
        return False
    shown = {
        path: "renewed" if failure.step == "renew" else "pushed"
        for path, failure in outcome.unpushed.items()
        if failure.step != "list"
    }
    if so_far is not None and outcome.done:
        say(f"so far: {so_far}")
    for path, what in list(shown.items())[:_SHOWN]:
        say(f"not {what}: {path}")
    if len(shown) > _SHOWN:
        say(f"not pushed: {len(shown) - _SHOWN} more paths")
    if outcome.blocked:
        say(f"not published: {len(outcome.blocked)} paths that refer to them")
    reasons: dict[tuple[str, str], Failure] = {}
    for failure in outcome.unpushed.values():
        reasons.setdefault(failure.cause, failure)
    for failure in list(reasons.values())[:_SHOWN]:
        say(str(failure))
    if len(reasons) > _SHOWN:
        say(f"{len(reasons) - _SHOWN} more reasons; the first ones are above")
    return True
