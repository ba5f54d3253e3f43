"""What results mean for the product, and what an expiry is read from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone

import pytest

from program.checks import server_needs
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from program.checks.server_needs import (
    DIFFERS,
    REFUSED,
    WORKS,
    Probe,
    Result,
    conclusion,
    expiry,
)
from program.settings.stack import parse
from tests.unit.configuration import configuration
from tests.unit.push.s3_stand_in import Reply, Seen, StandIn, serving

FINE = Result("put", WORKS, "HTTP 200")
NO_USERS = Result("users", REFUSED, "none", "you make them", {"users": "given"}, kept=False)
NO_POLICY = Result("policy", REFUSED, "HTTP 501", "you open it", {"bucketPolicy": False}, False)
NO_PARTS = Result("parts", REFUSED, "HTTP 501", "nothing large", kept=False)


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([FINE], "every promise can be kept"),
        ([FINE, Result("versions", DIFFERS, "kept")], "every promise can be kept"),
        (
            [NO_USERS, FINE, NO_POLICY],
            'it can be used with the settings users: "given", bucketPolicy: false',
        ),
        ([NO_USERS, NO_PARTS], "it cannot be used: parts"),
    ],
)
def test_the_conclusion_is_one_sentence(results: list[Result], words: str) -> None:
    assert conclusion(results) == words


def test_a_result_is_one_line() -> None:
    assert str(FINE) == "put: works (HTTP 200)"
    assert str(NO_PARTS) == "parts: refused (HTTP 501); nothing large"


@pytest.mark.parametrize(
    ("header", "when"),
    [
        (
            'expiry-date="Sat, 05 Dec 2026 00:00:00 GMT", rule-id="log"',
            datetime(2026, 12, 5, tzinfo=timezone.utc),
        ),
        (
            'expiry-date="Sat, 05 Dec 2026 14:03:07 UTC", rule-id="log"',
            datetime(2026, 12, 5, 14, 3, 7, tzinfo=timezone.utc),
        ),
        (
            'expiry-date="Sat, 05 Dec 2026 00:00:00 -0000"',
            datetime(2026, 12, 5, tzinfo=timezone.utc),
        ),
        ('expiry-date="Fri, 31 Dec 9999 23:59:59 -2300"', None),
        ('expiry-date="Sat, 05 Dec 2026 00:00:00 +99999999999"', None),
        ('expiry-date="tomorrow"', None),
        ("", None),
    ],
)
def test_when_an_object_expires_is_read_from_its_header(header: str, when: datetime | None) -> None:
    assert expiry(header) == when


UPLOAD = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
DONE = b"<CompleteMultipartUploadResult><ETag>&quot;0&quot;</ETag></CompleteMultipartUploadResult>"
COPIED = b"<CopyPartResult><ETag>&quot;%s&quot;</ETag></CopyPartResult>" % (b"0" * 32)
ETAG = {"ETag": f'"{"0" * 32}"'}
EXPIRES = {"x-amz-expiration": 'expiry-date="Sat, 05 Dec 2026 00:00:00 GMT"'}
LATER = {"x-amz-expiration": 'expiry-date="Sat, 05 Dec 2026 00:00:00 -0000"'}
LIES: Mapping[str, tuple[Mapping[str, str], bytes]] = {
    "nothing": ({}, b""),
    "markup": ({}, b"<html>\x1b[2J</html>"),
    "no XML": ({}, b"\xff\xfe<"),
    "numbers that are none": ({"Content-Length": "0x10", **ETAG}, DONE),
    "numbers of any length": ({"Content-Length": "9" * 5000, **ETAG}, DONE),
    "dates that are none": ({"Last-Modified": "never", "Date": "31 Dec 9999"}, b""),
    "an expiry without a zone": (LATER, b""),
}


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("lie", LIES)
def test_whatever_a_server_answers_it_is_a_result_or_one_sentence(
    monkeypatch: pytest.MonkeyPatch, lie: str, status: int
) -> None:
    monkeypatch.setattr(server_needs, "_PATIENCE_SECONDS", 0.0)
    headers, body = LIES[lie]

    def answer(seen: Seen) -> Reply:
        if status == 200 and seen.method == "POST" and "uploads" in seen.query:
            return Reply(200, {}, UPLOAD)
        if status == 200 and seen.method == "PUT" and "partNumber" in seen.query:
            return Reply(200, ETAG, COPIED)
        # The expiry of what is asked for a second time has a zone.
        told = EXPIRES if "x-amz-expiration" in headers and len(server.seen) % 2 else headers
        # Of what has no body, no length is waited for.
        return Reply(
            status, {} if "Content-Length" in told and seen.method != "HEAD" else told, body
        )

    with serving(StandIn()) as server:
        server.script = answer
        settings = parse(configuration(endpoint=server.url))
        deployer = Server(server.url.removeprefix("http://"), False, "r", "u", "p", None)
        probe = Probe(settings, deployer, "bucket")
        results: list[Result] = []
        with suppress(ServerError):
            results.extend(probe.results())
        for need in ("_parts", "_part_copy", "_renewal"):
            with suppress(ServerError):
                results.append(getattr(probe, need)())
    assert all("\x1b" not in str(result) for result in results)
