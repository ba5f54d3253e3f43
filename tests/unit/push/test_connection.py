"""One connection: what is sent, what is believed of an answer, and what it may cost at most."""

from __future__ import annotations

import itertools
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from push.bucket import Listed
from push.connection import Answer, BodyError, Connection, FileSlice, Request, Route, TransientError
from push.failure import PushError
from tests.unit.push.client import Client, settings_for
from tests.unit.push.conftest import Clients
from tests.unit.push.s3_stand_in import NOW, Raw, Reply, Seen, StandIn, error, http_date, serving

GET = Request("list", "GET", "a.narinfo", largest=1000)
HEAD = Request("list", "HEAD", "nar/a.nar", expected=frozenset({404}))


def put(content: bytes) -> Request:
    return Request("publish", "PUT", "a.narinfo", headers={"content-type": "x"}, body=content)


def raw(*chunks: bytes) -> Callable[[Seen], Raw]:
    return lambda _: Raw(chunks)


def endless(first: bytes, block: bytes) -> Callable[[Seen], Raw]:
    return lambda _: Raw(itertools.chain([first], itertools.repeat(block)))


# What is asked, and on how many connections.


def test_one_connection_serves_request_after_request(server: StandIn, client: Client) -> None:
    server.put("a.narinfo", b"content")
    connection = Connection(client.route)
    requests = [GET, put(b"other"), HEAD, GET, HEAD, client.bucket.page(Listed("", folders=True))]
    answers = [connection.exchange(request) for request in requests]
    assert [answer.body for answer in answers[:4]] == [b"content", b"", b"", b"other"]
    assert [answer.status for answer in answers] == [200, 200, 404, 200, 404, 200]
    assert {seen.connection for seen in server.seen} == {1}
    assert answers[0].date == NOW


def test_a_request_is_signed_and_says_nothing_that_is_not_signed(
    server: StandIn, client: Client
) -> None:
    client.exchange(put(b"x"))
    (seen,) = server.seen
    signed = re.search(r"SignedHeaders=([^,]+),", seen.headers["authorization"])
    assert signed
    assert seen.headers.keys() - {"authorization", "content-length"} == set(signed[1].split(";"))
    assert seen.headers["host"] == f"127.0.0.1:{server.port}"
    assert "a secret" not in str(seen)


def test_an_object_that_is_gone_is_an_answer_only_where_it_was_expected(client: Client) -> None:
    assert client.exchange(HEAD).status == 404
    assert client.exchange(GET).status == 404
    assert client.ask(HEAD)[0].status == 404
    with pytest.raises(PushError, match="HTTP 404 NoSuchKey"):
        client.ask(GET)


def test_a_slice_of_a_file_is_what_is_sent(server: StandIn, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "nar"
    file.write_bytes(bytes(range(256)) * 4096)
    request = Request("upload", "PUT", "nar/a.nar", body=FileSlice(file, 255, 600_000))
    client.exchange(request)
    assert server.objects["nar/a.nar"].content == file.read_bytes()[255:600_255]
    assert (request.size, put(b"abc").size) == (600_000, 3)


def test_a_put_of_nothing_says_that_it_is_nothing(server: StandIn, client: Client) -> None:
    client.exchange(put(b""))
    assert server.seen[0].headers["content-length"] == "0"
    client.exchange(HEAD)
    assert "content-length" not in server.seen[1].headers


@pytest.mark.parametrize("size", [999, 600_000])
def test_a_file_that_has_shrunk_is_no_body(client: Client, tmp_path: Path, size: int) -> None:
    file = tmp_path / "shrunk.nar"
    file.write_bytes(bytes(size - 1))
    request = Request("upload", "PUT", "nar/a.nar", body=FileSlice(file, 0, size))
    with pytest.raises(BodyError, match=r"shrunk.nar is shorter than it was; see that the disk"):
        client.exchange(request)


def test_a_file_that_is_gone_is_the_failure_of_that_request(client: Client, tmp_path: Path) -> None:
    request = Request("upload", "PUT", "nar/a.nar", body=FileSlice(tmp_path / "gone", 0, 10))
    (outcome,) = client.outcomes([request])
    assert str(outcome.failure) == (
        "upload: gone cannot be read (No such file or directory); see that the disk is sound"
    )


def test_a_server_on_an_ipv6_address_is_asked_by_its_address(client_of: Clients) -> None:
    try:
        with serving(StandIn(), socket.AF_INET6) as server:
            assert client_of(server.url).exchange(HEAD).status == 404
            assert server.seen[0].headers["host"] == f"[::1]:{server.port}"
    except OSError:
        pytest.skip("this machine has no IPv6")


def test_a_host_may_have_underscores(
    server: StandIn, client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.create_connection
    asked: list[str] = []

    def resolve(address: tuple[str, int], *arguments: object) -> socket.socket:
        asked.append(address[0])
        return real(("127.0.0.1", address[1]), *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", resolve)
    client = client_of(f"http://minio_1._tcp.home_lab:{server.port}")
    assert client.exchange(HEAD).status == 404
    assert asked == ["minio_1._tcp.home_lab"]
    assert server.seen[0].headers["host"] == f"minio_1._tcp.home_lab:{server.port}"


# What is believed.


def test_a_redirect_is_not_followed(server: StandIn, client: Client) -> None:
    server.script = lambda _: Reply(302, {"Location": f"{server.url}/elsewhere"})
    assert client.exchange(GET).status == 302
    with pytest.raises(PushError, match="HTTP 302; see that an S3 server answers at endpoint"):
        client.ask(GET)
    assert {seen.key for seen in server.seen} == {"a.narinfo"}


@pytest.mark.parametrize(
    ("header", "etag"),
    [
        ('"d41d8cd98f00b204e9800998ecf8427e-3"', "d41d8cd98f00b204e9800998ecf8427e-3"),
        ("plain", "plain"),
        ('W/"weak"', None),
        ("", None),
        ("x" * 129, None),
        ('"a\u00e9"', None),
        ('"a b"', None),
    ],
)
def test_an_etag_is_believed_only_if_it_is_one(
    server: StandIn, client: Client, header: str, etag: str | None
) -> None:
    server.script = lambda _: Reply(200, {"ETag": header})
    assert client.exchange(GET).etag == etag


@pytest.mark.parametrize(
    "date", ["Thu, 26 Nov 2026 25:00:00 GMT", "2026-11-26", "0", "Thu, 00 Nov 0000 00:00:00 GMT"]
)
def test_a_date_that_is_none_is_as_good_as_absent(
    server: StandIn, client: Client, date: str
) -> None:
    server.script = lambda _: Reply(200, {"Date": date})
    assert client.exchange(GET).date is None


def test_the_latest_day_is_that_of_the_latest_date_even_in_the_first_centuries(
    server: StandIn, client: Client
) -> None:
    dates = iter(["Thu, 26 Nov 0999 00:00:00 GMT", http_date(NOW), http_date(NOW - 3 * DAY)])
    server.script = lambda _: Reply(200, {"Date": next(dates)})
    days = []
    for _ in range(3):
        client.ask(GET)
        days.append(client.transfers.day)
    assert days == ["0999-11-26", "2026-11-26", "2026-11-26"]


DAY = timedelta(days=1)


# What it may cost.


def test_a_body_that_is_larger_than_asked_for_counts_as_none(
    server: StandIn, client: Client
) -> None:
    server.put("a.narinfo", bytes(1000))
    assert len(client.exchange(GET).body) == 1000
    server.put("a.narinfo", bytes(1001))
    connection = Connection(client.route)
    assert [connection.exchange(GET).body for _ in range(2)] == [b"", b""]
    assert len({seen.connection for seen in server.seen}) == 3


@pytest.mark.parametrize(
    "answer",
    [
        endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16)),
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n", bytes(1 << 16)),
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", bytes(1 << 16)),
        endless(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"10000\r\n" + bytes(1 << 16) + b"\r\n",
        ),
        endless(b"HTTP/1.1 404 Gone\r\n\r\n", bytes(1 << 16)),
    ],
    ids=["to the end", "a length", "no length", "chunks", "a refusal"],
)
def test_a_body_without_end_is_read_no_further_than_asked_for(
    server: StandIn, client: Client, answer: Callable[[Seen], Raw]
) -> None:
    server.script = answer
    assert client.exchange(GET).body == b""


@pytest.mark.parametrize(
    "answer",
    [
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", bytes(1 << 16)),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        endless(b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 60_000 + b"\r\n"),
        endless(b"", b"x" * 60_000),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000),
    ],
    ids=["a chunk of -1 bytes", "continue", "headers", "no line", "a chunk's extension"],
)
def test_an_answer_that_does_not_end_is_no_answer(
    server: StandIn, client: Client, answer: Callable[[Seen], Raw]
) -> None:
    server.script = answer
    with pytest.raises(TransientError):
        client.exchange(GET)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 0 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_an_answer_that_is_cut_off_or_none_at_all_is_no_answer(
    server: StandIn, client: Client, answer: bytes
) -> None:
    server.script = raw(answer)
    with pytest.raises(TransientError):
        client.exchange(GET)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 900\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
    ],
    ids=["kept open", "closed", "chunks", "to the end", "its head"],
)
def test_an_answer_that_drips_is_given_up(
    server: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    def drip() -> Iterator[bytes]:
        yield head
        while not over.wait(0.02):
            yield b"x"

    over = threading.Event()
    server.script = lambda _: Raw(drip())
    monkeypatch.setattr("push.connection._ANSWER_SECONDS", 0.2)
    connection = Connection(client.route)
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            connection.exchange(GET)
        except TransientError as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until = time.monotonic() + 10
    try:
        while thread.is_alive() and time.monotonic() < until:
            connection.give_up_late(time.monotonic())
            thread.join(0.01)
        assert not thread.is_alive()
    finally:
        over.set()
        thread.join()
    # Which of the two depends on whether what had come meanwhile was read.
    broke = ("the connection broke before the answer was whole", "Connection reset by peer")
    (error,) = ended
    assert str(error) in broke


def test_whoever_gives_up_late_sees_a_connection_go_and_survives(client: Client) -> None:
    """What is looked at is another thread's, which may close it at any moment."""
    connection = Connection(client.route)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        class Going:
            found = iter([ours])

            @property
            def sock(self) -> socket.socket | None:
                return next(self.found, None)

        connection._http = Going()  # type: ignore[assignment]  # noqa: SLF001
        connection._deadline = 0.0  # noqa: SLF001
        connection.give_up_late(1.0)
        assert theirs.recv(1) == b""
        connection.give_up_late(1.0)


def test_a_connection_that_broke_is_opened_again(server: StandIn, client: Client) -> None:
    connection = Connection(client.route)
    server.script = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")
    with pytest.raises(TransientError):
        connection.exchange(GET)
    server.script = lambda _: None
    assert connection.exchange(HEAD).status == 404
    assert len({seen.connection for seen in server.seen}) == 2


def test_a_refusal_that_comes_before_all_was_sent_is_heard(tmp_path: Path) -> None:
    file = tmp_path / "large.nar"
    file.touch()
    size = 1 << 30
    with file.open("r+b") as sparse:
        sparse.truncate(size)
    body = b"too large"
    head = f"HTTP/1.1 413 Payload Too Large\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with answering_early(head + body) as endpoint:
        connection = Connection(Route(settings_for(endpoint)))
        answer = connection.exchange(
            Request("upload", "PUT", "nar/a.nar", body=FileSlice(file, 0, size))
        )
    assert (answer.status, answer.body) == (413, body)


def test_a_success_that_comes_before_all_was_sent_is_none(tmp_path: Path) -> None:
    file = tmp_path / "large.nar"
    file.touch()
    size = 1 << 30
    with file.open("r+b") as sparse:
        sparse.truncate(size)
    with answering_early(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as endpoint:
        connection = Connection(Route(settings_for(endpoint)))
        with pytest.raises(TransientError):
            connection.exchange(
                Request("upload", "PUT", "nar/a.nar", body=FileSlice(file, 0, size))
            )


@contextmanager
def answering_early(answer: bytes) -> Iterator[str]:
    """Listen, read a request's first bytes, answer and hang up; the value is the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(1000)
                accepted.sendall(answer)
                accepted.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


# Proxies.


def test_a_proxy_of_the_environment_is_asked_for_what_is_http(
    server: StandIn, client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{server.port}")
    client = client_of("http://s3.example:9000")
    server.script = lambda _: Reply(404)
    assert client.exchange(HEAD).status == 404
    (seen,) = server.seen
    assert seen.target == "http://s3.example:9000/cache/nar/a.nar"
    assert seen.headers["host"] == "s3.example:9000"
    assert seen.headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
    assert "p@ss" not in repr(client.route.proxy)


def test_a_bucket_may_stand_in_the_host_name(
    server: StandIn, client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    client = client_of("http://s3.example:9000", addressing="virtual")
    server.script = lambda _: Reply(404)
    assert client.exchange(HEAD).status == 404
    (seen,) = server.seen
    assert seen.target == "http://cache.s3.example:9000/nar/a.nar"
    assert seen.headers["host"] == "cache.s3.example:9000"


def test_a_host_that_no_proxy_names_is_asked_itself(
    server: StandIn, client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org,127.0.0.1")
    assert client_of(server.url).exchange(HEAD).status == 404


def test_a_proxy_that_connects_nobody_is_named_at_once(
    server: StandIn, client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{server.port}")
    server.script = lambda _: Reply(407)
    client = client_of("https://s3.example")
    with pytest.raises(
        PushError,
        match=r"^list: the environment's proxy does not connect to s3.example \(HTTP 407\); "
        "correct https_proxy, or name the host in no_proxy$",
    ):
        client.ask(GET)
    assert [(seen.method, seen.target) for seen in server.seen] == [("CONNECT", "s3.example:443")]


@pytest.mark.parametrize("status", [429, 408, 502, 503])
def test_a_proxy_that_cannot_connect_now_may_be_able_to_later(
    server: StandIn, client_of: Clients, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{server.port}")
    server.script = lambda _: Reply(status)
    with pytest.raises(TransientError, match=f"Tunnel connection failed: {status}"):
        client_of("https://s3.example").exchange(GET)


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://127.0.0.1:1080",
        "https://proxy.example:3128",
        "http://",
        "http://proxy:99999",
        "http://proxy:x",
        "http://[::1",
    ],
)
def test_a_proxy_that_is_not_spoken_to_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(PushError, match="the environment's proxy is not http://host:port"):
        Route(settings_for("http://s3.example"))


def test_nobody_who_listens_is_named(client_of: Clients) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        TransientError, match=f"^Failed to connect to 127.0.0.1 port {port}: Connection refused$"
    ):
        client_of(f"http://127.0.0.1:{port}").exchange(GET)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def tls_server(authority: trustme.CA, host: str) -> Iterator[int]:
    """Answer one request after another with 404, over TLS; the value is the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            try:
                with context.wrap_socket(accepted, server_side=True) as secured:
                    secured.recv(10_000)
                    secured.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                accepted.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def bundle(tmp_path: Path, *texts: str) -> str:
    file = tmp_path / "bundle.pem"
    file.write_text("".join(texts), encoding="utf-8")
    return str(file)


def test_a_bundle_may_have_names_in_any_language(
    client_of: Clients, tmp_path: Path, authority: trustme.CA
) -> None:
    pem = authority.cert_pem.bytes().decode()
    other = trustme.CA().cert_pem.bytes().decode()
    file = bundle(tmp_path, "# F\u0151tan\u00fas\u00edtv\u00e1ny\n", other, "\n\u8bc1\u4e66\n", pem)
    with tls_server(authority, "127.0.0.1") as port:
        client = client_of(f"https://127.0.0.1:{port}", ca_certificate_file=file)
        assert client.exchange(HEAD).status == 404


def test_a_server_whose_certificate_somebody_else_signed_is_not_talked_to(
    client_of: Clients, tmp_path: Path, authority: trustme.CA
) -> None:
    file = bundle(tmp_path, trustme.CA().cert_pem.bytes().decode())
    with tls_server(authority, "127.0.0.1") as port:
        client = client_of(f"https://127.0.0.1:{port}", ca_certificate_file=file)
        with pytest.raises(PushError, match=r"certificate is not trusted .*; set ca-certificate"):
            client.exchange(HEAD)


def test_a_server_that_has_another_name_is_not_talked_to(
    client_of: Clients, tmp_path: Path, authority: trustme.CA
) -> None:
    file = bundle(tmp_path, authority.cert_pem.bytes().decode())
    with tls_server(authority, "s3.example") as port:
        client = client_of(f"https://127.0.0.1:{port}", ca_certificate_file=file)
        with pytest.raises(PushError, match="certificate is not trusted"):
            client.exchange(HEAD)


def test_a_server_without_tls_is_told_from_one_that_is_away(
    server: StandIn, client_of: Clients, tmp_path: Path, authority: trustme.CA
) -> None:
    file = bundle(tmp_path, authority.cert_pem.bytes().decode())
    client = client_of(server.url.replace("http:", "https:"), ca_certificate_file=file)
    with pytest.raises(PushError, match="does not speak TLS there; check scheme and port"):
        client.exchange(HEAD)


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
    ],
)
def test_a_file_without_certificates_never_means_those_of_the_system(
    tmp_path: Path, text: str
) -> None:
    settings = settings_for("https://s3.example", ca_certificate_file=bundle(tmp_path, text))
    with pytest.raises(PushError, match="ca-certificate holds no certificate"):
        Route(settings)


def test_an_error_of_s3_says_nothing_that_cannot_be_printed(
    server: StandIn, client: Client
) -> None:
    server.script = lambda _: error(400, "Bad", "a\u202eb\u0085c" + "x" * 500)
    with pytest.raises(PushError) as caught:
        client.ask(GET)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_answers_are_told_apart_by_status(server: StandIn, client: Client) -> None:
    server.script = lambda _: Reply(204)
    answer: Answer = client.exchange(GET)
    assert (answer.status, answer.body) == (204, b"")
