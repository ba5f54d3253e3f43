"""Many requests at a time: what is tried again, when, how often, and what ends the push."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from unittest.mock import ANY

import pytest

from push.connection import Answer, FileSlice, Request
from push.failure import Failure, PushError
from push.transfers import (
    ATTEMPTS,
    FEWEST,
    MOST,
    MOST_SKEW,
    PATIENCE_SECONDS,
    PROBE,
    Loop,
    Transfers,
    Window,
)
from tests.unit.push.client import Client
from tests.unit.push.conftest import Clients
from tests.unit.push.s3_stand_in import (
    NOT_FOUND,
    NOW,
    Raw,
    Reply,
    Script,
    Seen,
    StandIn,
    error,
    http_date,
)
from toolbox.processes import wait_until


def get(key: str) -> Request:
    return Request("list", "GET", key)


def put(key: str, size: int = 1) -> Request:
    return Request("publish", "PUT", key, body=bytes(size))


def failing_once(key: str, reply: Reply | Raw) -> Script:
    """Answer the first request for a key so, and all others well."""
    failed = threading.Event()

    def script(seen: Seen) -> Reply | Raw:
        if seen.key == key and not failed.is_set():
            failed.set()
            return reply
        return Reply(200, {}, seen.key.encode())

    return script


@pytest.fixture
def pauses(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client makes, none of which takes any time."""
    made: list[float] = []
    watching = threading.current_thread(), *threading.enumerate()

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread() in watching:
                return super().wait(timeout)
            made.append(timeout or 0.0)
            return False

    monkeypatch.setattr(client.transfers, "_closed", Closed())
    return made


def quiet() -> None:
    """Do nothing where nothing has happened for a while."""


# Which day it is.


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [503, 500])
def test_an_error_does_not_tell_which_day_it_is(
    server: StandIn, client: Client, status: int
) -> None:
    """It may be a proxy's own, and no later answer could correct it."""
    server.script = failing_once(
        "a", Reply(status, {"Date": "Sun, 07 Feb 2106 06:28:15 GMT", "Retry-After": "0"})
    )
    client.ask(get("a"))
    assert client.transfers.day == NOW.date().isoformat()


SECOND = timedelta(seconds=1)
LISTING = Request("list", "GET", "", query=(("list-type", "2"), ("max-keys", "1000")))


@pytest.mark.parametrize(
    "ahead", [MOST_SKEW + 5 * SECOND, -MOST_SKEW - 5 * SECOND, timedelta(days=-3)]
)
def test_a_listing_of_another_day_ends_the_push(
    server: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    """Whose clock is wrong nobody knows; leases that are counted by it would end too early."""
    monkeypatch.setattr("push.transfers.MOST_SKEW", MOST_SKEW)
    server.now = datetime.now(timezone.utc) + ahead
    with pytest.raises(
        PushError,
        match=r"^list: this machine's clock differs by \d+ seconds from the Date that the server, "
        r"or a proxy before it, answers with; set the clock that is wrong$",
    ):
        client.ask(LISTING)
    assert client.transfers.day is None


@pytest.mark.parametrize("ahead", [MOST_SKEW - 5 * SECOND, 5 * SECOND - MOST_SKEW])
def test_clocks_may_differ_by_what_a_signature_allows(
    server: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    monkeypatch.setattr("push.transfers.MOST_SKEW", MOST_SKEW)
    server.now = datetime.now(timezone.utc) + ahead
    client.ask(LISTING)
    assert client.transfers.day == server.now.date().isoformat()


def test_one_object_of_another_day_tells_none(
    server: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something on the way may have kept the answer, with its date."""
    monkeypatch.setattr("push.transfers.MOST_SKEW", MOST_SKEW)
    server.now = datetime.now(timezone.utc) + timedelta(days=1)
    server.put("a", b"x")
    assert client.ask(get("a"))[0].body == b"x"
    assert client.transfers.day is None


# What is tried again.


def test_answers_come_in_the_order_of_the_requests(server: StandIn, client: Client) -> None:
    server.script = lambda seen: Reply(200, {}, seen.key.encode())
    keys = [f"{number}.narinfo" for number in range(300)]
    assert [answer.body.decode() for answer in client.ask(*map(get, keys))] == keys
    assert len({seen.connection for seen in server.seen}) <= MOST


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: StandIn, client: Client, status: int) -> None:
    server.script = failing_once("a", Reply(status))
    assert client.ask(get("a"))[0].body == b"a"
    assert len(server.seen) == 2


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"nonsense\r\n"]
)
def test_a_broken_answer_is_asked_for_again(server: StandIn, client: Client, answer: bytes) -> None:
    server.script = failing_once("a", Raw([answer]))
    assert client.ask(get("a"))[0].body == b"a"


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 411, 412, 416, 501, 505])
def test_a_refusal_is_not_tried_again(server: StandIn, client: Client, status: int) -> None:
    server.script = lambda _: Reply(status)
    with pytest.raises(PushError, match=f"list: GET cache/a: HTTP {status}; "):
        client.ask(get("a"))
    assert len(server.seen) == 1


@pytest.mark.usefixtures("pauses")
def test_a_server_that_never_answers_well_ends_the_push(server: StandIn, client: Client) -> None:
    server.script = lambda _: Reply(503)
    with pytest.raises(
        PushError,
        match=f"^list: the server answers HTTP 503; see that the server runs and that endpoint "
        f"{server.url} is right$",
    ):
        client.ask(get("a"))
    assert len(server.seen) == ATTEMPTS


@pytest.mark.usefixtures("pauses")
def test_one_request_that_never_succeeds_is_its_own_failure(
    server: StandIn, client: Client
) -> None:
    """While others get through, it is at fault."""

    def script(seen: Seen) -> Reply:
        return Reply(500) if seen.key == "bad" else Reply()

    server.script = script
    bad, *good = client.outcomes([put("bad"), *(put(f"good{number}") for number in range(2000))])
    assert str(bad.failure) == (
        "publish: PUT cache/bad: the server answers HTTP 500; the server answers other requests, "
        "so see its log"
    )
    assert {one.said for one in good} == {"done"}


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("reply", [Reply(503), Raw([b""]), Raw([b"nonsense\r\n"])])
def test_one_request_that_fails_last_is_its_own_failure(
    server: StandIn, client: Client, reply: Reply | Raw
) -> None:
    """Nothing else is left that could get through; so the server is asked for something else."""
    server.script = lambda seen: reply if seen.key == "bad" else None
    (bad,) = client.outcomes([put("bad")])
    assert bad.said == "failed"
    assert len(server.asked("PUT")) == ATTEMPTS
    assert [seen.key for seen in server.asked("HEAD")] == [PROBE]


def let_end(server: StandIn, client: Client) -> None:
    """Let what is under way be answered, since it would be told to the next test."""
    seen = len({seen.key for seen in server.seen})
    server.script = lambda _: Reply()
    transfers = client.transfers
    # One thread has ended the push.
    assert wait_until(lambda: transfers._idle == transfers._threads - 1, 60)  # noqa: SLF001
    assert seen < 100


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("request_for", [put, get])
def test_a_server_that_answers_none_of_a_kind_is_not_asked_for_each_of_many(
    server: StandIn, client: Client, request_for: Callable[[str], Request]
) -> None:
    method = request_for("a").method
    server.script = lambda seen: Reply(503) if seen.method == method else None
    with pytest.raises(PushError, match=f"to each of many {method} requests, and the server at"):
        client.outcomes([request_for(f"a{number}") for number in range(300)])
    let_end(server, client)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("share", [0.1, 0.25])
@pytest.mark.parametrize("headers", [{"Retry-After": "60"}, {}])
def test_a_server_that_is_busy_now_and_then_answers_in_the_end(
    server: StandIn,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    headers: dict[str, str],
) -> None:
    monkeypatch.setattr("push.transfers._LONGEST_ASKED_PAUSE", 0.001)
    drawn = random.Random(22)
    server.script = lambda _: Reply(503, headers) if drawn.random() < share else Reply()
    requests = [request for n in range(200) for request in (put(f"a{n}"), get(f"a{n}"))]
    assert {one.said for one in client.outcomes(requests)} == {"done"}


def test_whoever_is_refused_while_others_get_through_is_not_kept_waiting(
    server: StandIn, client: Client, pauses: list[float]
) -> None:
    """MinIO asks for a minute with each 503; a node of several may be starting."""
    replies = iter([Reply(503, {"Retry-After": "60"})] * 5)

    def script(_: Seen) -> Reply:
        client.transfers._succeeded(get("good"))  # noqa: SLF001
        return next(replies, Reply())

    server.script = script
    assert client.outcomes([put("a")])[0].said == "done"
    assert pauses == [pytest.approx(0.1 * 2**n) for n in range(5)]


@pytest.mark.usefixtures("pauses")
def test_one_busy_answer_does_not_decide_whether_the_server_is_there(
    server: StandIn, client: Client
) -> None:
    answers: Iterator[Reply | Raw] = iter([Reply(503), Raw([b""])])

    def script(seen: Seen) -> Reply | Raw | None:
        if seen.key == "bad":
            return Reply(503)
        return next(answers, None) if seen.key == PROBE else None

    server.script = script
    (bad,) = client.outcomes([put("bad")])
    assert bad.said == "failed"


@pytest.mark.usefixtures("pauses")
def test_copies_that_fail_are_no_sign_of_a_server_that_takes_nothing(
    server: StandIn, client: Client
) -> None:
    server.script = lambda seen: Reply(503) if seen.method == "PUT" else None
    copies = [
        replace(put(f"a{number}"), headers={"x-amz-copy-source": "/cache/a"}) for number in range(9)
    ]
    assert {one.said for one in client.outcomes(copies)} == {"failed"}


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("reply", [Reply(503), Raw([b""])])
def test_a_server_that_answers_nothing_well_ends_the_push_whoever_hears_it(
    server: StandIn, client: Client, reply: Reply | Raw
) -> None:
    server.script = lambda _: reply
    with pytest.raises(
        PushError, match=f"; see that the server runs and that endpoint {server.url}"
    ):
        client.outcomes([put("a")])


def test_pauses_that_the_server_asks_for_are_bounded_together(
    server: StandIn, client: Client, pauses: list[float]
) -> None:
    server.script = lambda _: Reply(503, {"Retry-After": "60"})
    with pytest.raises(PushError):
        client.ask(get("a"))
    # For as long only once: MinIO asks for a minute whatever it is.
    assert pauses == [60.0, *(pytest.approx(0.1 * 2**n) for n in range(1, 7)), 10.0, ANY]
    assert sum(pauses) == pytest.approx(PATIENCE_SECONDS)


def test_one_object_that_is_damaged_is_waited_for_no_longer_while_others_get_through(
    server: StandIn, client: Client, pauses: list[float]
) -> None:
    def script(seen: Seen) -> Reply:
        if seen.key != "bad":
            return Reply()
        # Others get through between any two attempts.
        client.transfers._succeeded(get("good"))  # noqa: SLF001
        return Reply(503, {"Retry-After": "60"})

    server.script = script
    (bad,) = client.outcomes([put("bad")])
    assert bad.said == "failed"
    assert sum(pauses) == PATIENCE_SECONDS


def test_who_asks_too_often_is_patient_while_others_get_through(
    server: StandIn, client: Client, pauses: list[float]
) -> None:
    replies = iter([Reply(429, {"Retry-After": "60"})] * 5)

    def script(_: Seen) -> Reply | None:
        client.transfers._succeeded(get("good"))  # noqa: SLF001
        return next(replies, None)

    server.script = script
    (outcome,) = client.outcomes([put("a")])
    assert outcome.said == "done"
    assert pauses == [60.0] * 5


def test_pauses_grow_and_end(server: StandIn, client: Client, pauses: list[float]) -> None:
    server.script = lambda _: Reply(500)
    with pytest.raises(PushError):
        client.ask(get("a"))
    assert pauses == [0.1 * 2**n for n in range(7)] + [10.0] * (ATTEMPTS - 8)


@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("2", 2.0),
        ("1.5", 1.5),
        ("0", 0.1),
        ("0.0001", 0.1),
        ("99999", 60.0),
        (http_date(NOW + timedelta(seconds=7)), 7.0),
        (http_date(NOW - timedelta(days=7)), 0.1),
        (http_date(NOW + timedelta(days=400)), 60.0),
        ("-3", 0.1),
        ("soon", 0.1),
        ("", 0.1),
        ("1e9", 0.1),
        ("\u0663", 0.1),
        ("9" * 400, 0.1),
        ("Thu, 99 Nov 2026 00:00:00 GMT", 0.1),
        ("infinity", 0.1),
        ("nan", 0.1),
    ],
)
def test_what_the_server_asks_for_is_how_long_it_is_left_alone(
    server: StandIn, client: Client, pauses: list[float], header: str, pause: float
) -> None:
    value = header.encode().decode("latin-1")
    server.script = failing_once("a", Reply(503, {"Retry-After": value}))
    client.ask(get("a"))
    assert pauses == [pytest.approx(pause)]


@pytest.mark.usefixtures("pauses")
def test_pauses_that_last_are_told_once_a_second(
    server: StandIn, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = failing_once("a", Reply(429, {"Retry-After": "3"}))
    client.ask(get("a"))
    assert capsys.readouterr().err == (
        "push: list: the server answers HTTP 429, trying again in 3 s\n"
    )


# What ends the push, and what one request.


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (403, "InvalidAccessKeyId", "the server has no enabled user builder: create or enable it"),
        (403, "SignatureDoesNotMatch", "set secret-access-key to the secret of user builder"),
        (403, "RequestTimeTooSkewed", "this machine's clock differs from the server's by "),
        (404, "NoSuchBucket", "create the bucket, or set bucket to the right one"),
        (301, "PermanentRedirect", "set region to the server's"),
        (400, "AuthorizationHeaderMalformed", "set region to the server's"),
        (403, "InvalidTokenId", "set session-token to the token that came with builder"),
        (307, "", "see that an S3 server answers at endpoint"),
    ],
)
def test_a_refusal_that_all_others_would_meet_ends_the_push(
    server: StandIn, client: Client, status: int, code: str, remedy: str
) -> None:
    server.script = lambda _: error(status, code) if code else Reply(status)
    with pytest.raises(PushError) as caught:
        client.outcomes([put("a")])
    assert f"HTTP {status}{code and ' '}{code}; {remedy}" in str(caught.value)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("InvalidAccessKeyId", "the short-lived credential is over: ask for one that lasts longer"),
        ("ExpiredToken", "the short-lived credential is over: ask for one that lasts longer"),
        ("InvalidTokenId", "set access-key-id, secret-access-key and session-token to those of"),
        ("SignatureDoesNotMatch", "set access-key-id, secret-access-key and session-token to"),
        ("AccessDenied", "give the role, or user, of the short-lived credential the write policy"),
    ],
)
def test_a_short_lived_credential_that_is_refused_has_remedies_of_its_own(
    server: StandIn, code: str, remedy: str
) -> None:
    server.script = lambda _: error(403, code)
    client = Client(server.url, session_token="a-token")
    try:
        with pytest.raises(PushError) as caught:
            client.ask(get(""))
    finally:
        client.close()
    assert f"HTTP 403 {code}; {remedy}" in str(caught.value)
    assert "user builder" not in str(caught.value)


def test_who_may_write_none_of_the_first_objects_may_write_none(
    server: StandIn, client: Client
) -> None:
    server.script = lambda _: error(403, "AccessDenied")
    two = client.outcomes([put("a"), put("b")])
    assert [one.said for one in two] == ["failed", "failed"]
    with pytest.raises(PushError, match="give user builder the write policy of the bucket"):
        client.outcomes([put("c")])


def test_who_may_write_may_be_denied_any_number_of_objects(server: StandIn, client: Client) -> None:
    client.outcomes([put("first")])
    server.script = lambda _: error(403, "AccessDenied")
    outcomes = client.outcomes([put(str(number)) for number in range(10)])
    assert {one.said for one in outcomes} == {"failed"}


def test_a_bucket_that_is_not_there_is_named_with_the_endpoint(
    server: StandIn, client: Client
) -> None:
    server.script = lambda _: error(404, "NoSuchBucket")
    with pytest.raises(PushError, match=f"^list: {server.url} has no bucket cache; create it"):
        client.ask(get(""))


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (NOT_FOUND, "HTTP 404 NoSuchKey; see the server's log"),
        (error(400, "XMinioAdminBucketQuotaExceeded"), "raise the bucket's quota, or wait"),
        (error(507, "XMinioStorageFull"), "the server needs more disk space"),
        (error(403, "AccessDenied", "by rule 7"), "AccessDenied (by rule 7); give user builder"),
        (Reply(403, {}, b"<html>blocked</html>"), "see that an S3 server answers at endpoint"),
        (error(400, "<b>", "x"), "HTTP 400; see the server's log"),
    ],
)
def test_a_refusal_of_one_object_is_that_ones(
    server: StandIn, client: Client, reply: Reply, what: str
) -> None:
    client.outcomes([put("first")])
    server.script = lambda seen: reply if seen.key == "bad" else None
    bad, good = client.outcomes([put("bad"), put("good")])
    assert good.said == "done"
    assert what in str(bad.failure)


@pytest.mark.parametrize(
    ("reply", "size", "remedy"),
    [
        (
            Reply(413, {}, b"<html>"),
            70_000_000,
            "takes no request of 70000000 bytes: set part-size (partSize in the stack's settings) "
            "below 67108864",
        ),
        (
            Reply(413),
            6_000_000,
            "takes no request of 6000000 bytes: set part-size (partSize in the stack's settings) "
            "below 6000000",
        ),
        (
            error(400, "EntityTooLarge"),
            6_000_000,
            "set part-size (partSize in the stack's settings) below 6000000",
        ),
        (Reply(413), 1_100_000, "have it take requests of 5242880 bytes at least"),
    ],
)
def test_a_request_that_is_too_large_says_what_would_do(
    server: StandIn, client: Client, tmp_path: Path, reply: Reply, size: int, remedy: str
) -> None:
    file = tmp_path / "nar"
    with file.open("wb") as sparse:
        sparse.truncate(size)
    server.script = lambda _: reply
    request = Request("upload", "PUT", "nar/a.nar", body=FileSlice(file, 0, size))
    (outcome,) = client.outcomes([request])
    assert outcome.failure
    assert outcome.failure.what.endswith(remedy)
    assert outcome.failure.what.startswith("PUT cache/nar/a.nar: HTTP 4")


def test_failures_of_one_cause_are_one_reason(server: StandIn, client: Client) -> None:
    server.script = lambda _: error(400, "XMinioStorageFull")
    one, other = client.outcomes([put("a"), put("b")])
    assert one.failure
    assert other.failure
    assert one.failure.what != other.failure.what
    assert one.failure.cause == other.failure.cause


def test_what_breaks_in_a_thread_ends_the_push_instead_of_hanging_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Answer:
        raise UnicodeError("label empty or too long")

    monkeypatch.setattr("push.connection.Connection.exchange", broken)
    with pytest.raises(UnicodeError):
        client.ask(get("a"))


def test_what_nobody_wants_any_more_is_not_asked(server: StandIn, client: Client) -> None:
    wanted = iter([False])
    called: list[object] = []
    client.transfers.submit(get("a"), called.append, called.append, wanted=partial(next, wanted))
    client.loop.run(client.transfers.idle, quiet, 60.0)
    assert (called, server.seen) == ([], [])


def test_what_is_urgent_goes_first(
    server: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine seems far away, and would be asked by more connections.
    monkeypatch.setattr("push.transfers.MOST", FEWEST)
    go, full = threading.Event(), threading.Event()
    later: list[str] = []

    def script(seen: Seen) -> Reply:
        if seen.key.startswith("first"):
            go.wait(60)
            return Reply()
        later.append(seen.key)
        # What went together comes in any order: nothing more goes before all of it is there.
        if len(later) >= FEWEST:
            full.set()
        full.wait(60)
        return Reply()

    server.script = script
    for number in range(FEWEST):
        client.transfers.submit(get(f"first{number}"), lambda _: None)
    while len(server.seen) < FEWEST:
        time.sleep(0.001)
    for number in range(20):
        client.transfers.submit(get(f"late{number}"), lambda _: None, priority=5)
    client.transfers.submit(get("urgent"), lambda _: None, priority=1)
    go.set()
    client.loop.run(client.transfers.idle, quiet, 60.0)
    assert len(later) == 21
    assert "urgent" in later[:FEWEST]


# How many at a time.


@pytest.mark.parametrize(
    ("round_trip", "connections"), [(0.0, FEWEST), (0.02, 28), (0.055, 63), (1.0, MOST)]
)
def test_the_farther_the_server_the_more_requests_are_under_way(
    server: StandIn,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    round_trip: float,
    connections: int,
) -> None:
    barrier = threading.Barrier(connections)

    def script(seen: Seen) -> Reply:
        if seen.key != "first":
            # Each waits until all of them have come.
            barrier.wait(60)
        return Reply()

    server.script = script
    monkeypatch.setattr(client.route, "note_round_trip", lambda _: None)
    client.route.round_trip = round_trip
    client.ask(get("first"))
    client.ask(*(get(str(number)) for number in range(connections)))
    assert len({seen.connection for seen in server.seen}) == connections


def full(window: Window) -> int:
    """Return how many places a window has, by taking all of them; they are given back."""
    taken = 0
    stop = threading.Event()

    def take() -> None:
        nonlocal taken
        window.enter()
        taken += 1
        stop.wait()
        window.leave()

    threads = [threading.Thread(target=take, daemon=True) for _ in range(80)]
    for thread in threads:
        thread.start()
    before = -1
    while taken != before:
        before = taken
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    return before


def test_a_complaint_halves_the_window_and_successes_open_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("push.transfers.time.monotonic", lambda: now)
    window = Window(8)
    assert full(window) == 8
    window.complained()
    window.complained()
    assert full(window) == 4
    for _ in range(3):
        now += 1
        window.complained()
    assert full(window) == 1
    window.succeeded()
    assert full(window) == 2
    for _ in range(100):
        window.succeeded()
    assert full(window) == 8
    window.widen(40)
    assert full(window) == 40
    window.widen(3)
    assert full(window) == 40


def test_a_waiting_request_begins_as_soon_as_there_is_room() -> None:
    window = Window(8)
    window.complained()
    for _ in range(4):
        window.enter()
    entered = threading.Event()

    def enter() -> None:
        window.enter()
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.05)
    for _ in range(8):
        window.succeeded()
    assert entered.wait(10)
    thread.join()


@pytest.mark.usefixtures("hasty")
def test_a_server_that_complains_is_asked_less_at_a_time(
    server: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine seems far away.
    monkeypatch.setattr("push.transfers.MOST", FEWEST)
    under_way = 0
    most = 0
    lock = threading.Lock()
    complaints = 3

    def script(_: Seen) -> Reply:
        nonlocal under_way, most, complaints
        with lock:
            if complaints:
                complaints -= 1
                return Reply(429)
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return Reply()

    server.put("first", b"")
    client.ask(get("first"))
    server.script = script
    client.ask(*(get(str(number)) for number in range(20)))
    assert most < FEWEST


def test_transfers_that_are_closed_start_nothing_more(client: Client) -> None:
    client.close()
    transfers = Transfers(client.route, Loop())
    transfers.close()
    assert transfers.idle()


class Struck(BaseException):
    """A signal came."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_at_any_moment_of_a_submission_keeps_nobody_from_closing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(*_: object) -> None:
        raise Struck

    def submit() -> None:
        transfers.submit(get("a"), lambda _: None, wanted=lambda: False)

    monkeypatch.setattr(Transfers, "_most", lambda _: 1)
    before = signal.signal(signal.SIGALRM, strike)
    draw = random.Random(22)
    try:
        for _ in range(500):
            transfers = Transfers(client.route, Loop())
            # It starts its one thread, and those that follow find it there.
            submit()
            with contextlib.suppress(Struck):
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(2e-5, 8e-4))
                # Python swallows what is raised while it throws objects away: it may never come.
                for _ in range(2_000):
                    submit()
                signal.setitimer(signal.ITIMER_REAL, 0)
            closing = threading.Thread(target=transfers.close, daemon=True)
            closing.start()
            closing.join(30)
            assert not closing.is_alive()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_loop_says_when_nothing_has_happened_for_a_while() -> None:
    loop = Loop()
    idle: list[int] = []
    loop.run(lambda: len(idle) == 3, lambda: idle.append(1), 0.001)
    done: list[int] = []
    loop.call(lambda: done.append(1))
    loop.run(lambda: bool(done), quiet, 10.0)
    assert done == [1]


def test_an_outcome_without_anybody_to_hear_it_ends_the_push(
    server: StandIn, client: Client
) -> None:
    server.script = lambda _: NOT_FOUND
    client.transfers.submit(get("a"), lambda _: None)
    with pytest.raises(PushError) as caught:
        client.loop.run(client.transfers.idle, quiet, 60.0)
    assert caught.value.failure == Failure(
        "list", "GET cache/a: HTTP 404 NoSuchKey; see the server's log"
    )


def test_distance_is_that_of_the_fastest_opening(client_of: Clients, server: StandIn) -> None:
    client = client_of(server.url)
    for seconds in (0.5, 0.2, 0.9):
        client.route.note_round_trip(seconds)
    assert client.route.round_trip == 0.2
