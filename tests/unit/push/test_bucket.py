"""The bucket: one object at a time, whatever the server answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from formats.s3 import LARGEST_COPY, MOST_PARTS, SMALLEST_PART
from push.bucket import EMPTY, LOG_TYPE, Bucket, Listed, Place
from push.connection import Answer, FileSlice, Request
from push.failure import PushError
from push.inventory import day_of
from push.parts import PartsUpload
from tests.unit.push.client import Client, Outcome
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
    iso,
    serving,
    xml,
)

NAR = "nar/1b9p07z77phvv2hf6gm9f28syp39f1ag.nar.zst"
NARINFO = "1b9p07z77phvv2hf6gm9f28syp39f1ag.narinfo"


def sparse(path: Path, size: int) -> Path:
    """Make a file of so many bytes that takes no space."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def etag_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# What lies beside them.


@pytest.mark.parametrize("name", ["plain", "gtk+3", "patch?id=3", "x=y?z"])
def test_a_log_is_renewed_whatever_letters_its_name_has(
    server: StandIn, client: Client, name: str
) -> None:
    key = f"log/1b9p07z77phvv2hf6gm9f28syp39f1ag-{name}.drv"
    server.put(key, b"what was built", days_old=3)
    (seen,) = client.ask(client.bucket.look_beside(key))
    (renewed,) = client.ask(client.bucket.renew_beside(key, LOG_TYPE, seen))
    assert renewed.status == 200
    assert server.objects[key].modified == NOW
    assert server.objects[key].content == b"what was built"


# Narinfos.


def test_a_narinfo_is_written_with_its_type(server: StandIn, client: Client) -> None:
    outcome = client.outcome(
        lambda o: client.bucket.put_narinfo(NARINFO, b"text", o.done, o.failed)
    )
    assert (outcome.said, outcome.etag) == ("done", etag_of(b"text"))
    assert server.objects[NARINFO].content == b"text"
    assert server.seen[0].headers["content-type"] == "text/x-nix-narinfo"


def put_in(client: Client, place: Place) -> Outcome:
    return client.outcome(
        lambda o: client.bucket.put_narinfo(NARINFO, b"new", o.done, o.failed, place, o.changed)
    )


@pytest.mark.parametrize("there", [None, b"text", b"other"])
@pytest.mark.parametrize("place", [EMPTY, Place(etag_of(b"text"))])
def test_a_narinfo_takes_the_place_of_what_was_seen_and_of_nothing_else(
    server: StandIn, client: Client, there: bytes | None, place: Place
) -> None:
    if there is not None:
        server.put(NARINFO, there)
    fits = place.etag == (there and etag_of(there))
    assert put_in(client, place).said == ("done" if fits else "changed")
    assert len(server.seen) == 1
    content = server.objects[NARINFO].content if NARINFO in server.objects else None
    assert content == (b"new" if fits else there)


def test_of_two_writes_at_once_the_one_that_is_refused_looks_again(
    server: StandIn, client: Client
) -> None:
    server.script = lambda _: error(409, "ConditionalRequestConflict")
    assert put_in(client, EMPTY).said == "changed"


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_a_server_that_takes_no_condition_is_asked_without_from_then_on(
    server: StandIn, client: Client, status: int
) -> None:
    server.script = lambda seen: (
        error(status, "Refused") if "if-none-match" in seen.headers else None
    )
    assert put_in(client, EMPTY).said == "done"
    assert len(server.seen) == 2
    assert put_in(client, EMPTY).said == "done"
    assert len(server.seen) == 3


def test_what_a_server_refuses_either_way_is_a_failure(server: StandIn, client: Client) -> None:
    server.script = lambda _: error(403, "AccessDenied")
    outcome = put_in(client, EMPTY)
    assert outcome.failure is not None
    assert outcome.failure.what.endswith("; give user builder the write policy of the bucket")
    server.script = lambda _: None
    assert put_in(client, EMPTY).said == "done"
    assert "if-none-match" in server.seen[-1].headers


def renew(client: Client, etag: str = etag_of(b"text")) -> Outcome:
    return client.outcome(
        lambda o: client.bucket.renew_narinfo(NARINFO, etag, o.done, o.changed, o.failed)
    )


def test_a_narinfo_is_renewed_by_a_copy_onto_itself(server: StandIn, client: Client) -> None:
    server.put(NARINFO, b"text", days_old=3)
    outcome = renew(client)
    assert (outcome.said, outcome.etag) == ("done", etag_of(b"text"))
    assert server.objects[NARINFO].modified == NOW
    headers = server.seen[0].headers
    assert headers["x-amz-copy-source"] == f"/cache/{NARINFO}"
    assert headers["x-amz-metadata-directive"] == "REPLACE"
    assert headers["content-type"] == "text/x-nix-narinfo"


def test_a_narinfo_that_is_another_one_by_now_is_not_renewed(
    server: StandIn, client: Client
) -> None:
    server.put(NARINFO, b"other", days_old=3)
    assert renew(client).said == "changed"
    del server.objects[NARINFO]
    assert renew(client).said == "changed"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200),
        xml("Error", "<Code>InternalError</Code>"),
        xml("CopyObjectResult", ""),
        xml("CopyObjectResult", "<ETag>a b</ETag>"),
        Reply(200, {}, b"<html></html>"),
    ],
)
def test_a_copy_that_says_200_and_then_fails_is_a_failure(
    server: StandIn, client: Client, reply: Reply
) -> None:
    server.script = lambda _: reply
    outcome = renew(client)
    assert str(outcome.failure) == (
        f"renew: the server did not copy {NARINFO}; see the server's log"
    )


@pytest.mark.parametrize(
    ("told", "there", "said"),
    [
        (0, 1, "done"),
        (-1, 1, "done"),
        (1, 1, "failed"),
        (400, 1, "failed"),
        (None, 1, "failed"),
        # What the answer says of the copy may be wrong.
        (1, 0, "done"),
        (None, 0, "done"),
    ],
)
@pytest.mark.parametrize("key", [NARINFO, NAR])
def test_a_copy_that_keeps_the_time_of_before_is_a_failure(
    server: StandIn, client: Client, key: str, told: int | None, there: int, said: str
) -> None:
    """A lease that is thought to begin anew, and does not, ends under what refers to it."""
    server.put(key, b"text", days_old=there)
    time = "" if told is None else iso(NOW - timedelta(days=told))
    reply = xml("CopyObjectResult", f"<LastModified>{time}</LastModified><ETag>a</ETag>")
    server.script = lambda seen: reply if "x-amz-copy-source" in seen.headers else None
    # The server tells its day before anything is renewed.
    client.ask(client.bucket.look_at(key))
    outcome = renew(client) if key == NARINFO else renew_nar(client, 4)
    assert outcome.said == said
    looks = 0 if told is not None and told <= 0 else 1
    assert [seen.method for seen in server.seen] == ["HEAD", "PUT"] + ["HEAD"] * looks
    if said == "failed":
        assert str(outcome.failure) == (
            f"renew: the server copied {key} and kept the time of before, so its lease did not "
            "begin anew; see the server's log"
        )


def test_a_copy_is_judged_by_the_day_of_its_own_answer(server: StandIn, client: Client) -> None:
    """One answer with a wrong date makes no copy of that day's a failure."""
    server.put(NARINFO, b"text", days_old=3)
    server.now += timedelta(days=9)
    client.ask(client.bucket.look_at(NARINFO))
    server.now = NOW
    time = f"<LastModified>{iso(NOW)}</LastModified>"
    server.script = lambda _: xml("CopyObjectResult", f"{time}<ETag>a</ETag>")
    assert renew(client).said == "done"


def test_a_narinfo_is_read_again_with_its_etag_and_its_day(server: StandIn, client: Client) -> None:
    server.put(NARINFO, b"text", days_old=2)
    read: list[Answer] = []
    client.bucket.read_again(NARINFO, 4, read.append, lambda _: None)
    server.put("other", b"")
    client.loop.run(client.transfers.idle, lambda: None, 60.0)
    (answer,) = read
    assert (answer.body, answer.etag, day_of(answer)) == (b"text", etag_of(b"text"), "2026-11-24")
    assert client.ask(client.bucket.read(NARINFO, 3))[0].body == b""
    assert client.ask(client.bucket.read("none.narinfo", 3))[0].status == 404


# Listings.


@pytest.mark.parametrize(
    ("listed", "after", "query"),
    [
        (
            Listed("", folders=True),
            "",
            {"list-type": "2", "encoding-type": "url", "max-keys": "1000", "delimiter": "/"},
        ),
        (
            Listed("nar/", folders=False),
            "nar/a+b c&d",
            {
                "list-type": "2",
                "encoding-type": "url",
                "max-keys": "1000",
                "prefix": "nar/",
                "start-after": "nar/a+b c&d",
            },
        ),
    ],
)
def test_a_page_of_a_listing_is_asked_for_as_s3_has_it(
    server: StandIn, client: Client, listed: Listed, after: str, query: dict[str, str]
) -> None:
    client.ask(client.bucket.page(listed, after))
    assert server.seen[0].query == query
    assert server.seen[0].key == ""


def test_a_refused_listing_ends_the_push(server: StandIn, client: Client) -> None:
    server.script = lambda _: error(403, "AccessDenied")
    with pytest.raises(PushError, match="give user builder the write policy of the bucket"):
        client.ask(client.bucket.page(Listed("", folders=True)))


# NARs, whole.


def put_nar(client: Client, file: Path, size: int) -> Outcome:
    return client.outcome(lambda o: client.bucket.put_nar(NAR, file, size, o.done, o.failed))


def renew_nar(client: Client, size: int) -> Outcome:
    return client.outcome(lambda o: client.bucket.renew_nar(NAR, size, o.done, o.gone, o.failed))


def test_a_small_nar_is_one_request(server: StandIn, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "nar"
    file.write_bytes(b"nar")
    outcome = put_nar(client, file, 3)
    assert (outcome.said, outcome.etag) == ("done", etag_of(b"nar"))
    assert [seen.method for seen in server.seen] == ["PUT"]
    assert server.seen[0].headers["content-type"] == "application/x-nix-nar"


def test_a_small_nar_is_renewed_by_one_copy(server: StandIn, client: Client) -> None:
    server.put(NAR, b"nar", days_old=3)
    assert renew_nar(client, 3).etag == etag_of(b"nar")
    assert [seen.method for seen in server.seen] == ["PUT"]
    assert server.objects[NAR].modified == NOW


def test_a_nar_that_is_gone_is_not_renewed(client: Client) -> None:
    assert renew_nar(client, 3).said == "gone"


def test_a_copy_of_a_nar_that_fails_is_a_failure(server: StandIn, client: Client) -> None:
    server.script = lambda _: error(501, "NotImplemented")
    assert renew_nar(client, 3).said == "failed"


@pytest.mark.parametrize(
    ("part_size", "size", "parts"),
    [
        (64 << 20, 64 << 20, 0),
        (64 << 20, (64 << 20) + 1, 2),
        (LARGEST_COPY, 1 << 30, 0),
        (LARGEST_COPY, (1 << 30) + 1, 1),
        (LARGEST_COPY, LARGEST_COPY + 1, 2),
    ],
)
def test_only_what_is_copied_soon_is_renewed_by_one_copy(
    client_of: Clients, part_size: int, size: int, parts: int
) -> None:
    with serving(StandIn()) as server:
        server.put(NAR, b"", size=size)
        client = client_of(server.url, part_size=part_size)
        assert renew_nar(client, size).said == "done"
        copies = [seen for seen in server.seen if "x-amz-copy-source" in seen.headers]
        assert len([seen for seen in copies if "partNumber" in seen.query]) == parts
        assert len(copies) == max(parts, 1)


# What a server says it has written.

PAGE = b"<html>Blocked by policy</html>"
YES = [
    Reply(200),
    Reply(200, {"Content-Type": "text/html"}, PAGE),
    Reply(200, {"ETag": "a b"}),
    Reply(202),
    Reply(202, {"ETag": '"a"'}),
    Reply(204, {"ETag": '"a"'}),
]


def write(client: Client, tmp_path: Path, key: str) -> Outcome:
    """Write `nar` as a narinfo or a NAR, once the server has told its day."""
    client.ask(client.bucket.look_at("something"))
    if key == NARINFO:
        return client.outcome(lambda o: client.bucket.put_narinfo(key, b"nar", o.done, o.failed))
    (tmp_path / "nar").write_bytes(b"nar")
    return put_nar(client, tmp_path / "nar", 3)


@pytest.mark.parametrize(
    ("there", "days_old"),
    [(None, 0), (b"na", 0), (b"nar", 1), (PAGE, 0)],
    ids=["nothing", "another size", "the old one", "a page"],
)
@pytest.mark.parametrize("reply", YES)
@pytest.mark.parametrize("key", [NARINFO, NAR])
def test_what_a_server_says_it_has_written_and_does_not_have_is_a_failure(
    server: StandIn,
    client: Client,
    tmp_path: Path,
    key: str,
    reply: Reply,
    there: bytes | None,
    days_old: int,
) -> None:
    if there is not None:
        server.put(key, there, days_old=days_old)
    server.script = lambda seen: reply if seen.method == "PUT" else None
    outcome = write(client, tmp_path, key)
    assert outcome.failure is not None
    assert outcome.failure.what == (
        f"the server, or a proxy before it, said that {key} was written (HTTP {reply.status}), "
        "and it is not there as it was sent; see their logs"
    )


@pytest.mark.parametrize("key", [NARINFO, NAR])
def test_a_page_that_answers_everything_is_no_success(
    server: StandIn, client: Client, tmp_path: Path, key: str
) -> None:
    server.script = lambda _: Reply(200, {}, PAGE)
    assert write(client, tmp_path, key).said == "failed"


def test_another_narinfo_of_the_same_size_and_day_is_not_what_was_written(
    server: StandIn, client: Client, tmp_path: Path
) -> None:
    server.put(NARINFO, b"old")
    server.script = lambda seen: Reply(200) if seen.method == "PUT" else None
    assert write(client, tmp_path, NARINFO).said == "failed"


@pytest.mark.parametrize("reply", YES)
@pytest.mark.parametrize("key", [NARINFO, NAR])
def test_what_was_written_is_a_success_whatever_the_server_says_of_it(
    server: StandIn, client: Client, tmp_path: Path, key: str, reply: Reply
) -> None:
    def script(seen: Seen) -> Reply | None:
        if seen.method != "PUT":
            return None
        server.put(seen.key, seen.body)
        return reply

    server.script = script
    outcome = write(client, tmp_path, key)
    assert (outcome.said, outcome.etag) == ("done", etag_of(b"nar"))


@pytest.mark.parametrize("key", [NARINFO, NAR])
def test_an_etag_need_not_be_a_sum_for_a_write_to_be_one_request(
    server: StandIn, client: Client, tmp_path: Path, key: str
) -> None:
    """Those of what a server encrypts are none."""
    reply = Reply(200, {"ETag": f'"{"0" * 32}"'})
    server.script = lambda seen: reply if seen.method == "PUT" else None
    assert write(client, tmp_path, key).etag == "0" * 32
    assert [seen.method for seen in server.seen] == ["HEAD", "PUT"]


# NARs, in parts.

PART = SMALLEST_PART


@pytest.fixture
def parted(server: StandIn, client_of: Clients) -> Client:
    """A client with the smallest parts."""
    return client_of(server.url, part_size=PART)


def test_a_large_nar_goes_up_in_parts(server: StandIn, parted: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * (2 * PART // 256) + b"rest"
    file = tmp_path / "nar"
    file.write_bytes(content)
    outcome = put_nar(parted, file, len(content))
    assert server.objects[NAR].content == content
    assert outcome.etag == server.objects[NAR].etag
    assert outcome.etag is not None
    assert outcome.etag.endswith("-3")
    assert server.uploads == {}
    parts = [seen for seen in server.seen if "partNumber" in seen.query]
    assert sorted(seen.size for seen in parts) == [4, PART, PART]


def test_a_large_nar_is_renewed_in_parts(server: StandIn, parted: Client) -> None:
    content = bytes(range(256)) * (2 * PART // 256) + b"rest"
    server.put(NAR, content, days_old=9)
    assert renew_nar(parted, len(content)).said == "done"
    assert server.objects[NAR].content == content
    assert server.objects[NAR].modified == NOW
    ranges = sorted(
        seen.headers["x-amz-copy-source-range"]
        for seen in server.seen
        if "partNumber" in seen.query
    )
    assert ranges == sorted(
        [
            f"bytes=0-{PART - 1}",
            f"bytes={PART}-{2 * PART - 1}",
            f"bytes={2 * PART}-{2 * PART + 3}",
        ]
    )


def test_a_large_nar_that_is_gone_is_not_renewed_and_leaves_nothing(
    server: StandIn, parted: Client
) -> None:
    assert renew_nar(parted, 3 * PART).said == "gone"
    assert server.uploads == {}


@pytest.mark.parametrize("file", [None, Path("nar")])
@pytest.mark.parametrize(
    ("size", "part_size", "parts"),
    [
        (2_300_000_000, 64 << 20, 35),
        (LARGEST_COPY, LARGEST_COPY, 1),
        (LARGEST_COPY + 1, LARGEST_COPY, 2),
        (LARGEST_COPY + 1, 1 << 30, 6),
        (MOST_PARTS * PART, PART, MOST_PARTS),
        (MOST_PARTS * PART + 1, PART, MOST_PARTS),
        (100_000_000_000, PART, MOST_PARTS),
    ],
)
def test_parts_are_as_large_as_asked_for_and_never_more_than_a_server_takes(
    size: int, part_size: int, parts: int, file: Path | None
) -> None:
    slices = planned_parts(size, part_size, file)
    assert len(slices) == parts
    assert [start for start, _ in slices] == [0, *(end for _, end in slices[:-1])]
    assert slices[-1][1] == size
    assert max(end - start for start, end in slices) <= LARGEST_COPY
    assert all(end - start >= min(size, part_size) for start, end in slices[:-1])


def planned_parts(size: int, part_size: int, file: Path | None) -> list[tuple[int, int]]:
    """Return where each part begins and ends."""
    slices: list[tuple[int, int]] = []

    class Recording:
        def submit(self, request: Request, done: Callable[[Answer], None], *_: object) -> None:
            if "partNumber" not in dict(request.query):
                name = "InitiateMultipartUploadResult"
                done(Answer(200, {}, xml(name, "<UploadId>u</UploadId>").body, None))
            elif isinstance(request.body, FileSlice):
                slices.append((request.body.start, request.body.start + request.body.size))
            else:
                first, last = request.headers["x-amz-copy-source-range"][6:].split("-")
                slices.append((int(first), int(last) + 1))

    PartsUpload(
        Recording(),  # type: ignore[arg-type]
        bucket="cache",
        key=NAR,
        size=size,
        part_size=part_size,
        content_type="x",
        file=file,
        done=lambda _: None,
        failed=lambda _: None,
        gone=lambda: None,
    ).begin()
    return slices


def failing_part(number: str, reply: Reply | Raw) -> Script:
    def script(seen: Seen) -> Reply | Raw | None:
        return reply if seen.query.get("partNumber") == number else None

    return script


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (error(403, "AccessDenied"), "HTTP 403 AccessDenied"),
        (Reply(413), "HTTP 413; the server, or a proxy before it, takes no request of 5242880"),
        (Reply(200), f"the server took no part 2 of {NAR}; push again"),
        (Reply(200, {"ETag": "a b"}), f"the server took no part 2 of {NAR}; push again"),
        (error(404, "NoSuchUpload"), "HTTP 404 NoSuchUpload"),
    ],
)
def test_an_upload_of_which_a_part_fails_is_taken_back(
    server: StandIn, parted: Client, tmp_path: Path, reply: Reply, why: str
) -> None:
    server.script = failing_part("2", reply)
    parted.outcomes([Request("publish", "PUT", "first")])
    outcome = put_nar(parted, sparse(tmp_path / "nar", 9 * PART), 9 * PART)
    assert outcome.failure
    assert why in outcome.failure.what
    assert "; " in outcome.failure.what
    assert server.uploads == {}
    assert NAR not in server.objects


def test_what_is_left_of_an_upload_that_failed_is_not_sent(
    server: StandIn, parted: Client, tmp_path: Path
) -> None:
    server.script = failing_part("1", Reply(200))
    count = 300
    file = sparse(tmp_path / "nar", count * PART)
    assert put_nar(parted, file, count * PART).said == "failed"
    assert len([seen for seen in server.seen if "partNumber" in seen.query]) < count / 2


@pytest.mark.parametrize("reply", [Reply(200), xml("InitiateMultipartUploadResult", "")])
def test_an_upload_that_was_not_begun_is_a_failure(
    server: StandIn, parted: Client, tmp_path: Path, reply: Reply
) -> None:
    server.script = lambda seen: reply if seen.method == "POST" else None
    outcome = put_nar(parted, sparse(tmp_path / "nar", 2 * PART), 2 * PART)
    assert str(outcome.failure) == (
        f"upload: the server began no upload of {NAR} in parts; push again"
    )


def on_completion(reply: Callable[[Seen], Reply | Raw | None]) -> Script:
    def script(seen: Seen) -> Reply | Raw | None:
        completes = seen.method == "POST" and "uploadId" in seen.query
        return reply(seen) if completes else None

    return script


@pytest.mark.usefixtures("hasty")
def test_a_join_whose_answer_was_lost_is_found_done(
    server: StandIn, parted: Client, tmp_path: Path
) -> None:
    lost: list[Seen] = []

    def lose(seen: Seen) -> Raw | None:
        if lost:
            return None
        lost.append(seen)
        server.script = lambda _: None
        server.answer(seen)
        return Raw([])

    server.script = on_completion(lose)
    outcome = put_nar(parted, sparse(tmp_path / "nar", 2 * PART), 2 * PART)
    assert (outcome.said, outcome.etag) == ("done", server.objects[NAR].etag)


@pytest.mark.parametrize(
    "there",
    [
        None,
        {"days_old": 0, "size": 2 * PART - 1},
        {"days_old": 1, "size": 2 * PART},
        {"days_old": 0, "size": 2 * PART, "undated": True},
    ],
    ids=["nothing", "another size", "the old one", "who knows when"],
)
@pytest.mark.parametrize("renewal", [False, True])
def test_a_join_that_failed_is_no_success_whatever_lies_there(
    server: StandIn,
    parted: Client,
    tmp_path: Path,
    there: dict[str, int] | None,
    renewal: bool,
) -> None:
    """What lies there may be the old object, which the join was to replace or to renew."""

    def fail(_: Seen) -> Reply:
        server.objects.pop(NAR, None)
        if there is not None:
            server.put(NAR, b"", days_old=there["days_old"], size=there["size"])
        if there is not None and "undated" in there:
            server.script = lambda seen: (
                Reply(200, {"Content-Length": str(2 * PART), "Last-Modified": "today"})
                if seen.method == "HEAD"
                else None
            )
        return xml("Error", "<Code>InternalError</Code>")

    server.put(NAR, b"", days_old=1, size=2 * PART)
    server.script = on_completion(fail)
    if renewal:
        outcome = renew_nar(parted, 2 * PART)
    else:
        outcome = put_nar(parted, sparse(tmp_path / "nar", 2 * PART), 2 * PART)
    assert outcome.failure
    assert outcome.failure.what == f"the server did not join the parts of {NAR}; push again"


def test_a_join_without_a_clock_to_tell_by_is_none(
    server: StandIn, parted: Client, tmp_path: Path
) -> None:
    def script(seen: Seen) -> Reply | Raw | None:
        if seen.method == "POST" and "uploads" in seen.query:
            return Reply(
                200,
                {"Date": "never"},
                xml("InitiateMultipartUploadResult", "<UploadId>u</UploadId>").body,
            )
        if "partNumber" in seen.query:
            return Reply(200, {"ETag": "x"})
        return Reply(200) if seen.method == "POST" else None

    server.put(NAR, b"", size=2 * PART)
    server.script = script
    outcome = put_nar(parted, sparse(tmp_path / "nar", 2 * PART), 2 * PART)
    assert outcome.said == "failed"


def test_only_old_uploads_of_the_same_nar_are_dropped(
    server: StandIn, parted: Client, tmp_path: Path
) -> None:
    """A younger one may be another builder's, who is at it right now."""
    server.uploads = {
        "old": (NAR, NOW - timedelta(hours=25), {}),
        "young": (NAR, NOW - timedelta(hours=23), {}),
        "early": (NAR, NOW + timedelta(days=400), {}),
        "other": (f"{NAR}.xz", NOW - timedelta(days=9), {}),
    }
    put_nar(parted, sparse(tmp_path / "nar", 2 * PART), 2 * PART)
    assert server.uploads.keys() == {"young", "early", "other"}


@pytest.mark.parametrize(
    "reply", [Reply(200), Reply(200, {}, b"<html>"), xml("ListMultipartUploadsResult", "<Upload/>")]
)
def test_a_list_of_uploads_that_is_none_keeps_nothing_from_going_up(
    server: StandIn, parted: Client, tmp_path: Path, reply: Reply
) -> None:
    server.script = lambda seen: reply if seen.method == "GET" else None
    assert put_nar(parted, sparse(tmp_path / "nar", 2 * PART), 2 * PART).said == "done"


def test_old_uploads_that_cannot_be_dropped_stay(
    server: StandIn, parted: Client, tmp_path: Path
) -> None:
    server.uploads = {"old": (NAR, NOW - timedelta(days=3), {})}
    server.script = lambda seen: NOT_FOUND if seen.method == "DELETE" else None
    assert put_nar(parted, sparse(tmp_path / "nar", 2 * PART), 2 * PART).said == "done"


def test_a_bucket_asks_nothing_by_itself(server: StandIn, client: Client) -> None:
    Bucket(client.settings, client.transfers, client.loop)
    assert client.ask() == []
    assert server.seen == []
    assert http_date(NOW) == "Thu, 26 Nov 2026 12:00:00 GMT"
