"""Requests to the server as a push makes them: where they go, and what answers are taken for."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import urllib3
from urllib3.exceptions import MaxRetryError

from formats.s3 import ListedVersion
from program.checks import s3_client
from program.checks.bucket_settings import Lifecycle
from program.checks.s3_client import Answer, Server
from program.checks.server_error import ServerError
from program.settings.stack import parse
from tests.unit.configuration import configuration, refusal


def asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str]]:
    """Return where one request goes, and with which headers."""
    seen: list[tuple[str, dict[str, str]]] = []

    def request(_pool: Any, _method: str, url: str, *, headers: Any, **_: Any) -> Any:
        seen.append((url, headers))
        return urllib3.HTTPResponse(b"", {"Date": "now"}, 204)

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    assert server.ask("PUT", "nix-cache", "log/a b.drv", [("x", "1/2")]).status == 204
    return seen[0]


@pytest.mark.parametrize(
    ("address", "virtual", "url", "host"),
    [
        ("s3.test:9000", False, "https://s3.test:9000/nix-cache/log/a%20b.drv?x=1%2F2", None),
        ("s3.test", False, "https://s3.test/nix-cache/log/a%20b.drv?x=1%2F2", None),
        ("s3.test:443", False, "https://s3.test/nix-cache/log/a%20b.drv?x=1%2F2", "s3.test"),
        (
            "s3.test:9000",
            True,
            "https://nix-cache.s3.test:9000/log/a%20b.drv?x=1%2F2",
            "nix-cache.s3.test:9000",
        ),
    ],
)
def test_a_request_goes_where_the_server_looks_for_the_bucket_and_is_signed_for_its_region(
    monkeypatch: pytest.MonkeyPatch, address: str, virtual: bool, url: str, host: str | None
) -> None:
    server = Server(address, True, "garage", "pulumi", "password", None, virtual)
    where, headers = asked(server, monkeypatch)
    assert where == url
    assert headers["host"] == (host or address)
    assert "/garage/s3/aws4_request" in headers["authorization"]


def test_a_server_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(*_: Any, **__: Any) -> None:
        raise MaxRetryError(None, "/", Exception("refused"))  # type: ignore[arg-type]

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    with pytest.raises(ServerError, match=r"no S3 server answers there"):
        Server("s3.test", True, "us-east-1", "pulumi", "password", None).ask("GET", "nix-cache")


def test_a_preview_imports_no_sdk_of_an_s3_server() -> None:
    script = (
        "import sys; import program.checks.belongings, program.checks.deployment;"
        "assert 'minio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("status", "body", "words", "reachable"),
    [
        (502, b"Bad Gateway", "a proxy answers there .HTTP status 502., and no S3 server", False),
        (504, b"", "a proxy answers there", False),
        (503, b"<Error><Code>SlowDown</Code></Error>", "answers SlowDown; see its log", True),
        (404, b"not found", "answers HTTP status 404; see its log", True),
        (400, b"Client sent an HTTP request to an HTTPS server.", "write https://", False),
        (200, b"none", "what answers there is not understood", True),
        (403, b"<Error><Code>AccessDenied</Code></Error>", "denies this user", True),
    ],
)
def test_what_is_no_answer_to_a_question_is_told(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, words: str, reachable: bool
) -> None:
    def request(*_: Any, **__: Any) -> urllib3.HTTPResponse:
        return urllib3.HTTPResponse(io.BytesIO(body), status=status)

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    server = Server("s3.test", True, "us-east-1", "pulumi", "password", None)
    for ask in (server.lifecycle, server.keeps_versions, lambda name: list(server.listing(name))):
        with pytest.raises(ServerError) as error:
            ask("nix-cache")
        assert error.value.reachable is reachable
    with pytest.raises(ServerError, match=words):
        server.lifecycle("nix-cache")


def test_what_is_not_set_is_none_and_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {
        "lifecycle": "NoSuchLifecycleConfiguration",
        "policy": "NoSuchBucketPolicy",
        "object-lock": "ObjectLockConfigurationNotFoundError",
        "replication": "ReplicationConfigurationNotFoundError",
    }
    code = ""

    def request(
        _pool: Any, method: str, url: str, *, preload_content: bool, **_: Any
    ) -> urllib3.HTTPResponse:
        said = code or absent.get(url.partition("?")[2].partition("=")[0], "NoSuchKey")
        return urllib3.HTTPResponse(
            io.BytesIO(f"<Error><Code>{said}</Code></Error>".encode()),
            status=404,
            preload_content=preload_content,
            request_method=method,
        )

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    server = Server("s3.test", True, "us-east-1", "pulumi", "password", None)
    assert server.lifecycle("nix-cache") == Lifecycle()
    assert server.access("nix-cache") is None
    assert not server.locks_objects("nix-cache")
    assert not server.replicates("nix-cache")
    assert server.etag("nix-cache", "use.html") is None
    assert server.read("nix-cache", "use.html", 100) is None
    code = "NoSuchBucket"
    assert server.lifecycle("nix-cache") is None
    assert not server.keeps_versions("nix-cache")
    with pytest.raises(ServerError, match="none of that name"):
        server.read("nix-cache", "use.html", 100)


def test_a_refusal_is_told_by_its_status_and_code_and_no_message() -> None:
    body = b"<Error><Code>AccessDenied</Code><Message>words</Message></Error>"
    assert str(Answer(403, {}, body)) == "HTTP 403 AccessDenied"
    assert str(Answer(502, {}, b"<html>")) == "HTTP 502"
    assert str(Answer(200, {}, b"content")) == "HTTP 200"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"addressing": "dns"}, 'addressing is "dns": write path or virtual'),
        ({"endpoint": "https://10.0.0.1"}, "an address has no names below it"),
        ({"endpoint": "https://[::1]:9000"}, "an address has no names below it"),
        ({"bucket": "nix.cache"}, "no certificate for one name below the host covers nix.cache.s3"),
    ],
)
def test_a_bucket_that_cannot_stand_in_the_host_name_is_refused(
    changes: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(**{"addressing": "virtual", **changes})


def test_clients_and_pushes_are_told_where_the_bucket_stands() -> None:
    settings = parse(configuration(addressing="virtual", endpoint="https://s3.test:9000"))
    assert settings.public_url == settings.bucket_url == "https://nix-cache.s3.test:9000"


def page(*keys: str, more: bool = False) -> bytes:
    entries = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-11-27T09:30:00Z</LastModified>"
        f'<ETag>"e"</ETag><Size>7</Size></Contents>'
        for key in keys
    )
    return (
        f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{entries}"
        "</ListBucketResult>"
    ).encode()


def version_page(*versions: tuple[str, str], after: tuple[str, str] | None = None) -> bytes:
    entries = "".join(
        f"<Version><Key>{key}</Key><VersionId>{id_}</VersionId><IsLatest>true</IsLatest>"
        "<Size>7</Size></Version>"
        for key, id_ in versions
    )
    key, version = after or ("", "")
    return (
        f"<ListVersionsResult><IsTruncated>{str(after is not None).lower()}</IsTruncated>{entries}"
        f"<NextKeyMarker>{key}</NextKeyMarker><NextVersionIdMarker>{version}</NextVersionIdMarker>"
        "<DeleteMarker><Key>gone%2Bkey</Key><VersionId>d</VersionId></DeleteMarker>"
        "<EncodingType>url</EncodingType></ListVersionsResult>"
    ).encode()


def test_versions_are_listed_a_page_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = (
        version_page(("a", "2"), ("a", "1"), after=("a", "1")),
        version_page(("a", "0"), ("b", "null")),
    )
    versions, queries = versions_listed(monkeypatch, *pages)
    assert [(one.key, one.id, one.current) for one in versions] == [
        ("a", "2", True),
        ("a", "1", True),
        ("gone+key", "d", False),
        ("a", "0", True),
        ("b", "null", True),
        ("gone+key", "d", False),
    ]
    assert "key-marker=a" in queries[1]
    assert "version-id-marker=1" in queries[1]


def test_objects_stand_for_versions_where_a_server_knows_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = b"<Error><Code>NotImplemented</Code></Error>"
    versions, _ = versions_listed(monkeypatch, (refusal, 501), page("a", "b"))
    assert [(one.key, one.id, one.current) for one in versions] == [
        ("a", None, True),
        ("b", None, True),
    ]
    with pytest.raises(ServerError, match="the server denies this user"):
        versions_listed(monkeypatch, (b"<Error><Code>AccessDenied</Code></Error>", 403))


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ([version_page(("a", "1"), after=("a", "1"))] * 3, "its listing does not go on"),
        (
            [version_page(("b", "1"), after=("b", "1")), version_page(("a", "1"), after=("a", ""))],
            "its listing does not go on",
        ),
        ([version_page(after=("", ""))], "its listing does not go on"),
        (
            [version_page(("a", id_), after=("a", id_)) for id_ in ("1", "0", "1", "0")],
            "its listing does not go on",
        ),
        (
            [version_page((key, ""), after=(key, "")) for key in ("a", "b", "b")],
            "its listing does not go on",
        ),
        ([b"<ListVersionsResult><IsTruncated>true</IsTruncated></ListVersionsResult>"], "go on"),
        ([b"<html>"], "see what answers there"),
        ([b"<!DOCTYPE a []><ListVersionsResult/>"], "a document type"),
        ([b"<ListVersionsResult><Version><Size>x</Size></Version></ListVersionsResult>"], "size"),
    ],
)
def test_a_listing_of_versions_that_is_none_is_told(
    monkeypatch: pytest.MonkeyPatch, pages: list[bytes], why: str
) -> None:
    with pytest.raises(ServerError, match=why):
        versions_listed(monkeypatch, *pages)


def versions_listed(
    monkeypatch: pytest.MonkeyPatch, *pages: bytes | tuple[bytes, int]
) -> tuple[list[ListedVersion], list[str]]:
    answers, queries = iter(pages), []

    def request(_pool: Any, _method: str, url: str, **_: Any) -> Any:
        queries.append(url.partition("?")[2])
        answer = next(answers)
        body, status = (answer, 200) if isinstance(answer, bytes) else answer
        return urllib3.HTTPResponse(body, {}, status)

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    server = Server("s3.test", True, "us-east-1", "pulumi", "password", None)
    return list(server.versions("nix-cache")), queries


def listed(
    monkeypatch: pytest.MonkeyPatch, *pages: bytes, status: int = 200
) -> tuple[list[str], list[str]]:
    """Return the keys of a listing, and what each request asked for."""
    answers, queries = iter(pages), []

    def request(_pool: Any, _method: str, url: str, **_: Any) -> Any:
        queries.append(url.partition("?")[2])
        return urllib3.HTTPResponse(next(answers), {}, status)

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    server = Server("s3.test", True, "us-east-1", "pulumi", "password", None)
    return [one.key for one in server.listing("nix-cache")], queries


def test_a_listing_begins_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[str] = []

    def request(_pool: Any, _method: str, url: str, **_: Any) -> Any:
        queries.append(url.partition("?")[2])
        return urllib3.HTTPResponse(page("h1", "h2", more=len(queries) == 1), {}, 200)

    monkeypatch.setattr(urllib3.PoolManager, "request", request)
    server = Server("s3.test", True, "us-east-1", "pulumi", "password", None)
    assert next(server.objects("nix-cache", "h"))[0] == "h1"
    assert [query.partition("start-after=")[2] for query in queries] == ["h"]


def test_a_listing_goes_on_where_a_page_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, queries = listed(monkeypatch, page("a", "b", more=True), page("c"))
    assert keys == ["a", "b", "c"]
    assert ["start-after" in query for query in queries] == [False, True]


@pytest.mark.parametrize(
    ("pages", "status", "why"),
    [
        ((page("b", more=True), page("a", more=True)), 200, "its listing does not go on"),
        ((page(more=True),), 200, "its listing does not go on"),
        ((b"<html>",), 200, "see what answers there"),
        ((b"<Error><Code>AccessDenied</Code></Error>",), 403, "the server denies this user"),
        ((b"<Error><Code>NoSuchBucket</Code></Error>",), 404, "the server has none of that name"),
        ((b"<html>",), 502, r"a proxy answers there \(HTTP status 502\), and no"),
        ((b"none",), 500, "the server answers HTTP status 500"),
    ],
)
def test_a_listing_that_is_none_is_told(
    monkeypatch: pytest.MonkeyPatch, pages: tuple[bytes, ...], status: int, why: str
) -> None:
    with pytest.raises(ServerError, match=why):
        listed(monkeypatch, *pages, status=status)


def test_listings_that_go_on_for_ever_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "_MOST_PAGES", 3)
    why = "its listing has more than 3 pages, as of no cache; see what answers there"
    numbers = range(4)
    with pytest.raises(ServerError, match=why):
        listed(monkeypatch, *(page(f"x{number}", more=True) for number in numbers))
    keys = [(f"x{number}", "1") for number in numbers]
    with pytest.raises(ServerError, match=why):
        versions_listed(monkeypatch, *(version_page(key, after=key) for key in keys))
    ids = [("x", f"{number}") for number in numbers]
    with pytest.raises(ServerError, match=why):
        versions_listed(monkeypatch, *(version_page(one, after=one) for one in ids))
    assert listed(monkeypatch, page("a", more=True), page("b", more=True), page("c"))[0] == [
        "a", "b", "c",
    ]  # fmt: skip


def test_versions_of_keys_with_the_same_ids_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a bucket whose versions are suspended, where each object has the one `null`."""
    pages = [version_page((key, "null"), after=(key, "null")) for key in ("a", "b", "c")]
    versions, _ = versions_listed(monkeypatch, *pages, version_page(("d", "null")))
    assert [one.key for one in versions if one.id == "null"] == ["a", "b", "c", "d"]
