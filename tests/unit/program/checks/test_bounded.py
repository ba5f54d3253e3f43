"""A server that drips, or does not end, holds nothing up and fills no memory."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from urllib3.exceptions import HTTPError

from operations import cache_client
from operations.cache_client import CacheClient
from operations.nar_measure import NarError, measure_nar
from program.checks import bounded, s3_client
from program.checks.bounded import BoundedConnections, in_time, read
from program.checks.readable import _get
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from tests.promises import attack
from tests.unit.push.s3_stand_in import Raw, Reply, StandIn, serving

SECONDS = 0.5


def dripping(head: bytes) -> Iterator[bytes]:
    """Begin an answer, and go on with it a byte at a time, each sooner than a read times out."""
    yield head
    while True:
        time.sleep(0.05)
        yield b"a"


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, Callable[[], Iterator[bytes]]] = {
    "drips its headers": lambda: dripping(OK + b"X: "),
    "drips its body": lambda: dripping(OK + b"Content-Length: 1000000\r\n\r\n"),
    "drips a body without a length": lambda: dripping(OK + b"\r\n"),
    "drips chunks": lambda: dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "drips why it refuses": lambda: dripping(b"HTTP/1.1 503 No\r\nContent-Length: 9999\r\n\r\n"),
    "does not end": lambda: itertools.chain([OK + b"\r\n"], itertools.repeat(bytes(1 << 16))),
}


@pytest.mark.parametrize("answers", ANSWERS)
def test_an_answer_ends_or_is_given_up(answers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "_WHOLE_ANSWER_SECONDS", SECONDS)
    monkeypatch.setattr(cache_client, "_WHOLE_ANSWER_SECONDS", SECONDS)
    with serving(StandIn()) as stand_in:
        stand_in.script = lambda _: Raw(ANSWERS[answers]())
        url = stand_in.url
        server = Server(url.removeprefix("http://"), False, "r", "u", "p", None)
        client = CacheClient(lambda _, name: f"{url}/{name}", None, 1)
        began = time.monotonic()
        with pytest.raises(HTTPError):
            BoundedConnections(SECONDS, 1 << 20).request("GET", f"{url}/b", timeout=5.0)
        with pytest.raises(ServerError) as told:
            server.ask("GET", "bucket")
        with pytest.raises(HTTPError):
            client.read("nix-cache-info")
        with pytest.raises((ServerError, HTTPError)):
            list(server.contents("bucket"))
        assert time.monotonic() - began < 20 * SECONDS
    attack(f"the server {answers} while it is checked, audited or read", str(told.value))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 There\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 There\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 There\r\nLocation: /\x00\xff\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nabc",
    ],
)
def test_an_answer_that_is_malformed_is_none(answer: bytes) -> None:
    with serving(StandIn()) as stand_in:
        stand_in.script = lambda _: Raw([answer])
        client = CacheClient(lambda _, name: f"{stand_in.url}/{name}", None, 1)
        with pytest.raises(HTTPError):
            client.read("nix-cache-info")
        with pytest.raises(HTTPError), client.open("nar") as response:
            read(response, 10)
        with pytest.raises((HTTPError, NarError)), client.open("nar") as response:
            measure_nar(response, "none", 10)
        status, _ = _get(f"{stand_in.url}/nix-cache-info", None)
        assert status is None
        server = Server(stand_in.url.removeprefix("http://"), False, "r", "u", "p", None)
        with pytest.raises(ServerError):
            server.read("bucket", "nix-cache-info", 100)


@pytest.mark.parametrize("after", ["99999", "Fri, 31 Dec 9999 23:59:59 -2300"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_days_of_patience_is_given_a_moment(
    monkeypatch: pytest.MonkeyPatch, status: int, after: str
) -> None:
    monkeypatch.setattr(bounded, "_LONGEST_PAUSE_SECONDS", 0.01)
    with serving(StandIn()) as stand_in:
        stand_in.script = lambda _: Reply(status, {"Retry-After": after})
        client = CacheClient(lambda _, name: f"{stand_in.url}/{name}", None, 1)
        began = time.monotonic()
        assert client.read("nix-cache-info").status == status
        assert _get(f"{stand_in.url}/nix-cache-info", None)[0] == status
        assert time.monotonic() - began < 10
        assert len(stand_in.seen) == 4 + 3


@pytest.mark.parametrize("size", [b"9" * 17, b"9" * 18, b"9" * 5000])
def test_a_size_that_is_none_neither_ends_a_reader_nor_its_watch(size: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: " + size + b"\r\n\r\n"
    ended: list[object] = []
    with serving(StandIn()) as stand_in, pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", ended.append)
        stand_in.script = lambda _: Raw([head, b"abc"])
        client = CacheClient(lambda _, name: f"{stand_in.url}/{name}", None, 1)
        with client.open("nar") as response:
            assert response.read(3) == b"abc"
    assert not ended


def test_what_is_read_in_pieces_has_its_time_too() -> None:
    with serving(StandIn()) as stand_in:
        stand_in.script = lambda _: Raw(ANSWERS["drips its body"]())
        pool = BoundedConnections(5.0)
        answer = pool.request("GET", f"{stand_in.url}/nar", preload_content=False)
        began = time.monotonic()
        with pytest.raises(HTTPError), in_time(answer, SECONDS):
            answer.read(1 << 20)
        assert time.monotonic() - began < 10 * SECONDS


def test_an_answer_is_what_it_was() -> None:
    with serving(StandIn()) as stand_in:
        stand_in.script = lambda _: Raw([OK + b"Content-Length: 2\r\nX: y\r\n\r\nab"])
        for _ in range(3):
            answer = BoundedConnections(5.0).request("GET", f"{stand_in.url}/x")
            assert (answer.status, answer.headers["x"], answer.data) == (200, "y", b"ab")
        stand_in.script = lambda _: Raw([OK + b"Content-Length: 0\r\n\r\n"])
        assert BoundedConnections(5.0).request("GET", f"{stand_in.url}/x").data == b""


def test_the_environments_proxy_is_asked_as_pushes_and_the_provider_ask_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(StandIn()) as stand_in:
        stand_in.script = lambda _: Reply(200, {}, b"by the proxy")
        monkeypatch.setenv("http_proxy", stand_in.url.replace("//", "//me:a%20word@"))
        connections = BoundedConnections(SECONDS)
        assert connections.request("GET", "http://cache.test/x").data == b"by the proxy"
        (asked,) = stand_in.seen
        assert asked.headers["proxy-authorization"] == "Basic bWU6YSB3b3Jk"
        server = Server("cache.test", False, "r", "u", "p", None)
        assert server.ask("GET", "bucket").body == b"by the proxy"
        monkeypatch.setenv("no_proxy", "cache.test")
        with pytest.raises(HTTPError):
            BoundedConnections(SECONDS, timeout=0.1).request("GET", "http://cache.test/x")


@pytest.mark.parametrize("url", ["nonsense://proxy", "http://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_asked_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("https_proxy", url)
    with pytest.raises(ServerError) as told:
        Server("cache.test", True, "r", "u", "p", None).ask("GET", "bucket")
    assert "proxy" in str(told.value)
