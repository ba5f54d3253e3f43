"""Somebody between, with another certificate: whoever speaks to a server tells him nothing."""

from __future__ import annotations

import base64
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import trustme

from components.push_program import bootstrap_text
from operations.bucket import Bucket, Credential
from operations.cache_client import CacheClient
from program.checks.readable import _get
from program.checks.s3_client import Server
from program.settings.stack import parse
from push.connection import Request
from tests.promises import attack
from tests.unit.configuration import configuration
from tests.unit.push.client import Client

CA = trustme.CA()
NOW = datetime.now(timezone.utc)
CERTIFICATES: dict[str, trustme.LeafCert] = {
    "of an unknown authority": trustme.CA().issue_cert("127.0.0.1"),
    "that has expired": CA.issue_cert(
        "127.0.0.1", not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1)
    ),
    "that is not valid yet": CA.issue_cert(
        "127.0.0.1", not_before=NOW + timedelta(days=1), not_after=NOW + timedelta(days=9)
    ),
    "of another host": CA.issue_cert("127.0.0.2", "another.local"),
}
GOOD = CA.issue_cert("127.0.0.1")


@contextmanager
def https(certificate: trustme.LeafCert) -> Iterator[tuple[str, list[str]]]:
    """Run a server with a certificate; the values are its URL, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(f"{self.requestline}\n{self.headers}")
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Tls(ThreadingHTTPServer):
        def get_request(self) -> tuple[ssl.SSLSocket, object]:
            connection, address = super().get_request()
            return context.wrap_socket(connection, server_side=True), address

        def handle_error(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    server = Tls(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def a_push(url: str, ca: Path) -> None:
    client = Client(url, ca_certificate_file=str(ca))
    try:
        client.exchange(Request("list", "GET", ""))
    finally:
        client.close()


def a_bootstrap(url: str, ca: Path) -> None:
    module = ModuleType("bootstrap")
    with patch.dict(sys.modules, bootstrap=module):
        exec(compile(bootstrap_text(), "bootstrap", "exec"), module.__dict__)
    module.__dict__["PAUSES"] = (0.0,)
    encoded = base64.b64encode(ca.read_bytes()).decode()
    module.__dict__["_fetched"](
        f"endpoint={url}\nbucket=cache\naccess-key-id=builder\nsecret-access-key=a secret\n"
        f"ca-certificate={encoded}\n"
    )


def a_check(url: str, ca: Path) -> None:
    Server(url.removeprefix("https://"), True, "r", "u", "p", str(ca)).ask("GET", "bucket")


def an_audit(url: str, ca: Path) -> None:
    CacheClient(lambda _, name: f"{url}/{name}", str(ca), 1).read("nix-cache-info")


def a_reading_of_the_bucket(url: str, ca: Path) -> None:
    settings = parse(configuration(endpoint=url, caCertificateFile=str(ca)))
    list(Bucket(settings, Credential("u", "p")).objects())


def a_proof(url: str, ca: Path) -> None:
    status, reason = _get(f"{url}/nix-cache-info", str(ca))
    if status is None:
        raise ConnectionError(reason)


CLIENTS: dict[str, Callable[[str, Path], None]] = {
    "a push": a_push,
    "what fetches the push": a_bootstrap,
    "a deployment's check": a_check,
    "an audit": an_audit,
    "what lists the bucket": a_reading_of_the_bucket,
    "the proof that a cache is readable": a_proof,
}


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """The authority that everybody is told to trust."""
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.mark.parametrize("kind", CERTIFICATES)
@pytest.mark.parametrize("client", CLIENTS)
def test_who_has_another_certificate_is_told_nothing(client: str, kind: str, ca: Path) -> None:
    with https(CERTIFICATES[kind]) as (url, asked):
        with pytest.raises(Exception) as refused:  # noqa: PT011 (each client has its own)
            CLIENTS[client](url, ca)
        assert asked == []
    attack(
        f"{client} meets a certificate {kind}",
        f"not a word is sent: {type(refused.value).__name__}",
    )


@pytest.mark.parametrize("client", CLIENTS)
def test_who_has_the_right_one_is_asked(client: str, ca: Path) -> None:
    with https(GOOD) as (url, asked):
        # There is nothing to be had from it.
        with suppress(Exception):
            CLIENTS[client](url, ca)
        assert len(asked) == 1
