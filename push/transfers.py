"""Many requests at a time, over connections that are kept for the whole push.

How many follows from the distance: near, a few fill the machine; far, each waits for its answer
most of the time. A server that asks for less (429, 503) gets less. Whatever may succeed when it is
made again is made again; what nothing helps is a failure of that one request.

Requests are made by threads; whatever follows from an answer is done by the thread that runs
`Loop.run`, one thing after another.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from http import HTTPStatus

from formats.error import FormatError
from formats.http_date import parse_retry_after
from formats.s3 import SMALLEST_PART, ErrorAnswer, parse_error
from push.connection import (
    Answer,
    BodyError,
    Connection,
    Request,
    Route,
    TransientError,
    clock_skew,
)
from push.failure import Failure, PushError
from push.progress import say

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

ATTEMPTS = 15
"""How often in a row a request may fail while nothing else gets through either.

The pauses add up to 80 seconds, longer than a server takes to start again.
"""

PATIENCE_SECONDS = 83.0
"""How long all pauses of a request may be together, whatever the server asks for: as long as those
of `ATTEMPTS`. An object that is damaged is answered as a server that is busy answers, for ever."""

ATTEMPTS_ALONE = 40
"""How often a request may fail while others get through: it is at fault, not the server."""

PROBE = "nix-cache-info"
"""The key that is asked for to see whether the server answers anything at all."""

FEWEST, MOST = 8, 64
"""Connections at a time: near, more of them gain nothing; farther than 60 ms, the server's memory
and this machine's handshakes cost more than they gain."""

MOST_SKEW = timedelta(minutes=15)
"""How far clocks may be apart: a server refuses what was signed by one that is further off
(S3, `RequestTimeTooSkewed`), so a Date that is further off is not of the clock that has accepted.
"""

_SECONDS_BETWEEN_LOOKS = 5.0
_DENIALS = 3
_MOST_LOST = 20
_PROBES = 3
_LIST, _COPY, _WRITE = "list", "copy", "write"
_LONGEST_PAUSE = 10.0
_LONGEST_ASKED_PAUSE = 60.0
_SECONDS_PER_CONNECTION = 0.001


class Loop:
    """What the push's main thread does: one thing after another, as others finish theirs."""

    def __init__(self) -> None:
        """Have nothing to do yet."""
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def call(self, what: Callable[[], None]) -> None:
        """Have `what` called by the thread that runs the loop; any thread may ask."""
        self._calls.put(what)

    def run(self, until: Callable[[], bool], idle: Callable[[], None], seconds: float) -> None:
        """Do what there is to do until `until` holds; `idle` after so many seconds of nothing."""
        while not until():
            try:
                what = self._calls.get(timeout=seconds)
            except queue.Empty:
                idle()
                continue
            what()

    def watch_threads(self) -> None:
        """Have the loop end by whatever ends a thread, which nobody would hear of otherwise."""

        def ended(how: threading.ExceptHookArgs) -> None:
            self.call(partial(_raise, how.exc_value or SystemExit(1)))

        threading.excepthook = ended


class Window:
    """How many requests may be under way: fewer after each complaint, slowly more again."""

    def __init__(self, limit: float) -> None:
        """Allow `limit` at first."""
        self._condition = threading.Condition()
        self._limit = limit
        self._most = limit
        self._active = 0
        self._shrunk = 0.0

    def widen(self, most: float) -> None:
        """Allow up to `most`, now that the distance is known."""
        with self._condition:
            if most > self._most:
                self._limit, self._most = max(self._limit, most), most
                self._condition.notify_all()

    def enter(self) -> None:
        """Wait for a place."""
        with self._condition:
            while self._active >= max(1, int(self._limit)):
                self._condition.wait()
            self._active += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._condition:
            self._active -= 1
            self._condition.notify()

    def succeeded(self) -> None:
        """Allow a little more."""
        with self._condition:
            self._limit = min(self._most, self._limit + 1 / max(1.0, self._limit))
            self._condition.notify()

    def complained(self) -> None:
        """Allow half as much, though only once for the complaints of one burst."""
        with self._condition:
            now = time.monotonic()
            if now - self._shrunk > 0.5:
                self._shrunk = now
                self._limit = max(1.0, self._limit / 2)


@dataclass(order=True)
class _Task:
    priority: int
    number: int
    request: Request = field(compare=False)
    done: Callable[[Answer], None] = field(compare=False)
    failed: Callable[[Failure], None] = field(compare=False)
    wanted: Callable[[], bool] = field(compare=False)


class Transfers:
    """Makes requests side by side."""

    def __init__(self, route: Route, loop: Loop) -> None:
        """Connect to nothing yet."""
        self._route = route
        self._loop = loop
        self._tasks: list[_Task] = []
        # True for each of them. A signal that came while another of Python's queues takes something
        # would leave it locked for ever, and the push waiting for it at its end.
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._window = Window(FEWEST)
        self._lock = threading.Lock()
        self._threads = 0
        # Threads without a task, and tasks without a thread.
        self._idle = self._waiting = 0
        self._successes = 0
        self._said = 0.0
        self._denied = 0
        # Requests by their kind: those that were answered well, and those that were given up while
        # none was.
        self._done: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._closed = threading.Event()
        self._under_way = 0
        self._connections: list[Connection] = []
        threading.Thread(target=self._watch, daemon=True).start()
        self.day: str | None = None
        """The latest day by the server's clock, such as 2026-11-23; None before it has told."""

    def submit(
        self,
        request: Request,
        done: Callable[[Answer], None],
        failed: Callable[[Failure], None] | None = None,
        priority: int = 5,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Make a request some time.

        Args:
            request: what is asked.
            done: called by the loop with the answer.
            failed: called by the loop when nothing helped; without it, the push ends then.
            priority: the lower, the earlier.
            wanted: tells whether it still is when its turn comes; if not, nothing follows.
        """
        task = _Task(priority, next(self._numbers), request, done, failed or _end, wanted)
        with self._lock:
            heapq.heappush(self._tasks, task)
            self._turns.put(True)
            self._under_way += 1
            self._waiting += 1
            if self._idle < self._waiting and self._threads < self._most():
                self._threads += 1
                threading.Thread(target=self._work, daemon=True).start()

    def idle(self) -> bool:
        """Tell whether every request has been answered, and what follows from it done."""
        return not self._under_way

    def _dealt_with(self, outcome: Callable[[], None]) -> None:
        with self._lock:
            self._under_way -= 1
        outcome()

    def close(self) -> None:
        """Start nothing more, and hang up whatever is under way no longer."""
        self._closed.set()
        for _ in range(self._threads):
            # Threads that wait for a task see by it that there will be none.
            self._turns.put(False)

    def _watch(self) -> None:
        """Break requests whose answers take too long."""
        while not self._closed.wait(_SECONDS_BETWEEN_LOOKS):
            for connection in list(self._connections):
                connection.give_up_late(time.monotonic())

    def _most(self) -> int:
        return max(
            FEWEST, min(MOST, FEWEST + int(self._route.round_trip / _SECONDS_PER_CONNECTION))
        )

    def _work(self) -> None:
        connection = Connection(self._route)
        with self._lock:
            self._connections.append(connection)
        while True:
            with self._lock:
                self._idle += 1
            if not self._turns.get() or self._closed.is_set():
                break
            with self._lock:
                self._idle -= 1
                self._waiting -= 1
                task = heapq.heappop(self._tasks)
            self._loop.call(partial(self._dealt_with, self._attempts(connection, task)))
        connection.close()

    def _attempts(self, connection: Connection, task: _Task) -> Callable[[], None]:
        """Make a request until it is answered or nothing helps; return what is to be done then."""
        request, failures, in_a_row = task.request, 0, 0
        kind = _kind(request)
        seen = self._successes
        alike = self._done[kind]
        paused, status = 0.0, 0
        while task.wanted():
            self._window.enter()
            try:
                answer = connection.exchange(request)
            except TransientError as error:
                why, asked, status = str(error), None, 0
            except BodyError as error:
                return partial(task.failed, Failure(request.step, str(error)))
            else:
                self._window.widen(self._most())
                if 200 <= answer.status < 300 or answer.status in request.expected:
                    self._take_day(request, answer)
                    self._succeeded(request)
                    return lambda: task.done(answer)
                if answer.status not in TRANSIENT:
                    return self._refused(request, answer, task.failed)
                why, asked, status = _status(answer), _asked_pause(answer), answer.status
                if status in (429, 503):
                    self._window.complained()
            finally:
                self._window.leave()
            failures += 1
            through, seen = self._successes > seen, self._successes
            in_a_row = 1 if through else in_a_row + 1
            if through and status == HTTPStatus.TOO_MANY_REQUESTS:
                # That is never one object's fault: it only had no luck so far.
                paused = 0.0
            elif through or in_a_row > 1:
                # MinIO asks for a minute whatever it is, also for one object that is damaged.
                asked = None
            left = PATIENCE_SECONDS - paused
            enough = in_a_row >= ATTEMPTS or failures >= ATTEMPTS_ALONE or left <= 0
            if enough or self._lost[kind] >= _DENIALS:
                return self._given_up(
                    connection,
                    task,
                    why,
                    answers=through,
                    others=self._done[kind] > alike,
                )
            seconds = min(_pause(failures, asked), left)
            paused += seconds
            self._wait(request, why, seconds)
        return lambda: None

    def _given_up(
        self, connection: Connection, task: _Task, why: str, *, answers: bool, others: bool
    ) -> Callable[[], None]:
        """Return what follows where nothing helps: the end of the push, or of this request.

        Args:
            connection: where the request was made.
            task: what has it.
            why: what it came to.
            answers: whether another request was answered well since the attempt before this one.
            others: whether one of its kind was since the first attempt.
        """
        request, settings = task.request, self._route.settings
        silence = f"{why}; see that the server runs and that endpoint {settings.endpoint} is right"
        if request.optional:
            failure = Failure(request.step, silence)
        elif task.failed is _end or not (answers or self._is_there(connection, request.step)):
            raise PushError(request.step, silence)
        elif not others and self._is_one_of_many(request):
            raise PushError(
                request.step,
                f"{why}, to each of many {request.method} requests, and the server at "
                f"{settings.endpoint} answers others; see its log",
            )
        else:
            where = f"{request.method} {settings.bucket}/{request.key}"
            what = f"{where}: {why}; the server answers other requests, so see its log"
            failure = Failure(request.step, what, why)
        return lambda: task.failed(failure)

    def _is_one_of_many(self, request: Request) -> bool:
        """Tell whether so many of a kind were given up that no other will do better.

        Such as what is written to a cluster that has lost half of its drives: after a few, each is
        tried once. Copies are sent again instead: what is copied may be damaged.
        """
        kind = _kind(request)
        with self._lock:
            self._lost[kind] += 1
            # One of them ends the push; those under way beside it come to nothing.
            return kind != _COPY and self._lost[kind] == _MOST_LOST

    def _is_there(self, connection: Connection, step: str) -> bool:
        """Tell whether the server answers a request, whatever it says; a busy one not every one."""
        for number in range(_PROBES):
            if number:
                self._closed.wait(_pause(_PROBES + number, None))
            self._window.enter()
            try:
                answer = connection.exchange(Request(step, "HEAD", PROBE))
            except TransientError:
                continue
            finally:
                self._window.leave()
            self._window.widen(self._most())
            if answer.status not in TRANSIENT:
                return True
        return False

    def _take_day(self, request: Request, answer: Answer) -> None:
        """Take in the server's day from an answer to what it has accepted, and no error's.

        Raises:
            PushError: the answer is a listing, which nothing on the way keeps, and contradicts this
                machine's clock.
        """
        skew = clock_skew(answer)
        if answer.date is None or skew is None:
            return
        if abs(skew) <= MOST_SKEW:
            day = answer.date.date().isoformat()
            with self._lock:
                self.day = max(self.day or day, day)
        elif _kind(request) == _LIST:
            raise PushError(
                request.step,
                f"this machine's clock differs by {abs(skew).total_seconds():.0f} seconds from the "
                "Date that the server, or a proxy before it, answers with; set the clock that is "
                "wrong",
            )

    def _succeeded(self, request: Request) -> None:
        self._window.succeeded()
        with self._lock:
            self._successes += 1
            kind = _kind(request)
            self._done[kind] += 1
            self._lost[kind] = 0

    def _wait(self, request: Request, why: str, seconds: float) -> None:
        """Wait before the next attempt, and say so where it is long."""
        with self._lock:
            now = time.monotonic()
            tell = seconds >= 1 and now - self._said >= 1
            if tell:
                self._said = now
        if tell:
            say(f"{request.step}: {why}, trying again in {seconds:.0f} s")
        self._closed.wait(seconds)

    def _refused(
        self, request: Request, answer: Answer, failed: Callable[[Failure], None]
    ) -> Callable[[], None]:
        """Return what follows from a refusal: the end of the push, or of this request."""
        error = parse_error(answer.body)
        what = _refusal(request, answer, error, self._route)
        failure = Failure(request.step, what, f"{answer.status} {error.code}", refused=True)
        for_all = error.code in _FOR_ALL or answer.status in (301, 307, 308)
        # No push fails for want of what is optional, and what is not will be refused as well.
        for_all &= not request.optional
        with self._lock:
            self._denied += error.code == "AccessDenied" and not request.optional
            # Who may write none of the first objects may write none at all.
            written = self._done[_WRITE] or self._done[_COPY]
            for_all |= not written and self._denied >= _DENIALS and not request.optional
        if for_all:
            raise PushError(failure.step, failure.what)
        return lambda: failed(failure)


_FOR_ALL = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "RequestTimeTooSkewed",
        "NoSuchBucket",
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidTokenId",
    }
)
"""Refusals that every other request would meet as well."""


_OVER = (
    "the short-lived credential is over: ask for one that lasts longer (DurationSeconds) than what "
    "it is for"
)
_TOGETHER = (
    "set access-key-id, secret-access-key and session-token to those of one short-lived credential"
)
_OF_A_SESSION = {
    "InvalidAccessKeyId": _OVER,
    "ExpiredToken": _OVER,
    "InvalidTokenId": _TOGETHER,
    "SignatureDoesNotMatch": _TOGETHER,
    "AccessDenied": (
        "give the role, or user, of the short-lived credential the write policy of the bucket"
    ),
}
"""Remedies where the credential has a session token: its user is none that anybody could create.

MinIO forgets what is over, and does not know its access key any more then.
"""


def _refusal(request: Request, answer: Answer, error: ErrorAnswer, route: Route) -> str:
    """Return what the server refused, and the remedy."""
    settings = route.settings
    where = f"{settings.bucket}/{request.key}"
    said = f"{error.code and ' '}{error.code}{error.message and f' ({error.message})'}"
    what = f"{request.method} {where}: HTTP {answer.status}{said}"
    user = settings.access_key_id
    remedies = {
        "InvalidAccessKeyId": f"the server has no enabled user {user}: create or enable it",
        "SignatureDoesNotMatch": f"set secret-access-key to the secret of user {user}",
        "AccessDenied": f"give user {user} the write policy of the bucket",
        "PermanentRedirect": "set region to the server's",
        "AuthorizationHeaderMalformed": "set region to the server's",
        "NoSuchBucket": "create the bucket, or set bucket to the right one",
        "RequestTimeTooSkewed": _skew(answer),
        "XMinioAdminBucketQuotaExceeded": (
            "raise the bucket's quota, or wait until entries expire"
        ),
        "QuotaExceeded": "raise the bucket's quota, or wait until entries expire",
        "XMinioStorageFull": "the server needs more disk space",
        "InvalidTokenId": f"set session-token to the token that came with {user}",
    }
    if settings.session_token is not None:
        remedies |= _OF_A_SESSION
    if error.code == "NoSuchBucket" and request.step == "list":
        return f"{settings.endpoint} has no bucket {settings.bucket}; create it, or set bucket"
    remedy = remedies.get(error.code, "see the server's log")
    if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or error.code == "EntityTooLarge":
        remedy = (
            f"the server, or a proxy before it, takes no request of {request.size} bytes: "
            + _smaller(request, settings.part_size)
        )
    elif not error.code and answer.status in (301, 302, 307, 308, 403, 404):
        remedy = f"see that an S3 server answers at endpoint {settings.endpoint}"
    return f"{what}; {remedy}"


def _smaller(request: Request, part_size: int) -> str:
    if request.size > SMALLEST_PART:
        size = min(request.size, part_size)
        return f"set part-size (partSize in the stack's settings) below {size}"
    return f"have it take requests of {SMALLEST_PART} bytes at least"


def _skew(answer: Answer) -> str:
    skew = clock_skew(answer)
    by = "" if skew is None else f" by {skew.total_seconds():.0f} seconds"
    return f"this machine's clock differs from the server's{by}: set it"


def _status(answer: Answer) -> str:
    code = parse_error(answer.body).code
    return f"the server answers HTTP {answer.status}{code and ' '}{code}"


def _kind(request: Request) -> str:
    """Return what fails alike: listings, copies, what is written, and what is read or looked at."""
    if not request.key:
        return _LIST
    if "x-amz-copy-source" in request.headers:
        return _COPY
    return _WRITE if request.method in ("PUT", "POST") else request.method


def _pause(failures: int, asked: float | None) -> float:
    """Return how long to wait: longer each time, or as long as the server asks."""
    if asked is not None:
        return min(_LONGEST_ASKED_PAUSE, max(asked, 0.1))
    return min(_LONGEST_PAUSE, 0.1 * 2.0 ** (failures - 1))


def _asked_pause(answer: Answer) -> float | None:
    try:
        return parse_retry_after(
            answer.headers["retry-after"], answer.date or datetime.now(timezone.utc)
        )
    except (KeyError, FormatError):
        return None


def _end(failure: Failure) -> None:
    raise PushError(failure.step, failure.what)


def _raise(error: BaseException) -> None:
    raise error
