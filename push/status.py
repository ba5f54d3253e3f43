"""What a push leaves in the bucket at its end, for people: what it came to.

It is one small object per builder. Nothing here may fail a push or hold it up for long: a policy of
before may refuse it, and the server may have gone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from formats.error import FormatError
from formats.http_date import parse_http_date
from formats.push_status import (
    LARGEST_STATUS,
    Lease,
    PushStatus,
    format_status,
    parse_status,
    status_key,
)
from push.connection import Answer, Request
from push.failure import Failure, PushError
from push.progress import say
from push.transfers import Loop, Transfers

_PATIENCE_SECONDS = 5.0
_FIRST = 0


def started_by(environment: Mapping[str, str], *, deployed: bool, queue: bool, stdin: bool) -> str:
    """Return what started this push, as `formats.push_status.STARTED_BY` has it.

    Args:
        environment: of this process.
        deployed: whether a deployment sent it.
        queue: whether it takes what is to be pushed from a queue.
        stdin: whether it takes it from standard input.

    Source: systemd.exec(5), "Environment Variables Set or Propagated by the Service Manager".
    """
    # What was inherited by a terminal says nothing of what is typed there.
    service = "INVOCATION_ID" in environment and not sys.stderr.isatty()
    signs = {
        "deployment": deployed,
        "queue": queue,
        "stdin": stdin,
        "timer": "TRIGGER_TIMER_REALTIME_USEC" in environment,
        "path": "TRIGGER_PATH" in environment,
        "ci": environment.get("CI") in ("true", "1"),
        "service": service,
    }
    return next((name for name, there in signs.items() if there), "command")


def host() -> str:
    """Return what this machine calls itself."""
    return os.uname().nodename


class StatusObject:
    """The object of this builder's status."""

    def __init__(self, transfers: Transfers, loop: Loop, user: str) -> None:
        """Ask nothing yet."""
        self._transfers = transfers
        self._loop = loop
        self._user = user
        self._key = status_key(user)

    def leave(self, status: PushStatus, *, quietly: bool = False) -> None:
        """Write what a push came to; where that fails, a line says so, and nothing else happens.

        Args:
            status: what it came to, without what was before.
            quietly: whether not even a line says so: worse has been told.
        """
        if self._key is None:
            return
        until = time.monotonic() + _PATIENCE_SECONDS
        try:
            if not status.kept_all:
                status = self._with_what_was_before(status, until)
            request = Request(
                "status",
                "PUT",
                self._key,
                headers={"content-type": "application/json"},
                body=format_status(status),
            )
            self._ask(request, until)
        except PushError as error:
            if not quietly:
                say(f"status: what this push came to is not told: {error.failure.what}")

    def _with_what_was_before(self, status: PushStatus, until: float) -> PushStatus:
        """Return a status with what the last push kept that kept all."""
        assert self._key is not None
        request = Request(
            "status", "GET", self._key, expected=frozenset({404}), largest=LARGEST_STATUS
        )
        answer = self._ask(request, until)
        try:
            written = parse_http_date(answer.headers.get("last-modified", ""))
            before = parse_status(answer.body)
        except FormatError:
            # There was none, or somebody made something else of it.
            return status
        lease: Lease | None = before.lease(written)
        return replace(status, before=lease)

    def _ask(self, request: Request, until: float) -> Answer:
        """Make a request, in as many attempts as there is time for.

        Raises:
            PushError: it was refused, or there was no answer in time.
        """
        outcomes: list[Answer | Failure] = []
        take: Callable[[Answer | Failure], None] = outcomes.append
        self._transfers.submit(request, take, take, _FIRST, lambda: time.monotonic() < until)
        while not outcomes and time.monotonic() < until:
            try:
                self._loop.run(
                    lambda: bool(outcomes) or time.monotonic() >= until,
                    lambda: None,
                    _PATIENCE_SECONDS,
                )
            except PushError as error:
                # What ended the push may have met others of its requests, too.
                if error.failure.step == request.step:
                    raise
        if not outcomes:
            raise PushError(request.step, "the server did not answer in time")
        if isinstance(outcomes[0], Failure):
            raise PushError(request.step, self._refusal(outcomes[0]))
        return outcomes[0]

    def _refusal(self, failure: Failure) -> str:
        if failure.kind.endswith("AccessDenied"):
            return (
                f"the server does not let {self._user} write {self._key}; run pulumi up "
                "--refresh --run-program to give builders that right"
            )
        return failure.what
