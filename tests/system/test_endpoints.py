"""What answers at the endpoint is told apart: servers, proxies, pages; and what a server does."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException

from tests.plugins.ssh_server import SshServer
from tests.system.conftest import StackFactory, server_settings
from tests.system.reverse_proxy import reverse_proxy, serving
from tests.system.stack import Stack
from toolbox.minio_server import MinioServer

STORE_PATH = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting"


class Page(BaseHTTPRequestHandler):
    """What a console answers, whatever it is asked."""

    def do_GET(self) -> None:
        body = b"<!doctype html>\n<html><head><title>Console</title></head></html>\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def through(minio: MinioServer, url: str, **more: object) -> dict[str, object]:
    """Return the settings of a stack whose endpoint is something in front of the server."""
    return {**server_settings(minio), "endpoint": url, "caCertificateFile": None, **more}


def assert_refused(stack: Stack, expected: str) -> None:
    """Fail unless a preview and an update are refused in one sentence, and nothing is made."""
    for outcome in (stack.preview(), stack.up()):
        assert expected in outcome.refused()
        assert "Traceback" not in outcome.output
    assert not [found for found in stack.resources() if found["type"].startswith("minio:")]


def test_a_page_is_no_server(new_stack: StackFactory, minio: MinioServer) -> None:
    with serving(Page) as url:
        stack = new_stack(**through(minio, url))
        assert_refused(stack, f'endpoint is "{url}": a web page answers there (HTTP status 200)')


def test_a_proxy_that_changes_the_host_is_told_from_a_wrong_password(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    with reverse_proxy(minio, host="minio.internal") as url:
        stack = new_stack(**through(minio, url))
        assert_refused(stack, f'endpoint is "{url}": a proxy there changes the Host header')
        stack.set(minioPassword="another-password")
        assert_refused(stack, "minioPassword: the server refuses it")
    with reverse_proxy(minio) as url:
        stack.set(endpoint=url)
        assert_refused(stack, "minioPassword: the server refuses it")
        stack.set(minioPassword=minio.root_password, bucket="behind-a-proxy")
        stack.up().succeeded()


def test_a_server_that_only_seems_to_have_minios_admin_api_is_refused_before_it_stores_a_call(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stored: list[str] = []

    def takes_calls_for_objects(
        method: str, target: str, _headers: Mapping[str, str]
    ) -> tuple[int, bytes] | None:
        if not target.startswith("/minio/"):
            return None
        if method == "GET":
            return 404, b"<Error><Code>NoSuchKey</Code></Error>"
        stored.append(target)
        return 200, b""

    with reverse_proxy(minio, lie=takes_calls_for_objects) as url:
        stack = new_stack(**through(minio, url, bucket="no-admin-api"))
        assert_refused(
            stack,
            'users is "minio": the server has no MinIO admin API, which would make them '
            "(a refusal of another kind came); set users to given, and make them by the server's",
        )
        assert not stored
        stack.set(users="given")
        stack.up().succeeded()
        stack.destroy().succeeded()


def test_policies_that_a_server_wraps_are_written_only_when_they_change(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    admin = MinioAdmin(
        endpoint=minio.endpoint.removeprefix("https://"),
        credentials=StaticProvider(minio.root_user, minio.root_password),
        http_client=urllib3.PoolManager(ca_certs=str(minio.ca_file)),
    )

    def wrapped(method: str, target: str, _: Mapping[str, str]) -> tuple[int, bytes] | None:
        where = urlsplit(target)
        if method != "GET" or not where.path.endswith("/info-canned-policy"):
            return None
        (name,) = parse_qs(where.query)["name"]
        try:
            policy = json.loads(admin.policy_info(name))
        except MinioAdminException as absent:
            return 404, str(absent).partition("Body: ")[2].encode()
        return 200, json.dumps({"PolicyName": name, "Policy": policy}).encode()

    with reverse_proxy(minio, lie=wrapped) as url:
        first, second = ({"name": name, "local": True} for name in ("first", "second"))
        stack = new_stack(**through(minio, url, bucket="wrapped"), builders=[first])
        stack.up().succeeded()
        assert not stack.changes()
        stack.set(builders=[first, second])
        stack.up("--refresh", "--run-program").succeeded()
        assert "wrapped-second" in admin.policy_info("wrapped-write")
        assert not stack.changes("--refresh", "--run-program")
        stack.destroy().succeeded()


def test_an_ipv6_endpoint_has_keys_whose_names_it_takes_itself(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    with reverse_proxy(minio, address="::1") as url:
        unset = {"signingKeys": None, "signingKeyDomains": None}
        stack = new_stack(**through(minio, url, bucket="over-ipv6", **unset))
        stack.up().succeeded()
        assert [key.partition(":")[0] for key in stack.outputs()["publicKeys"]] == ["0--1-1"]
        stack.set(signingKeys=["0--1-1", "0--1-2"])
        stack.up().succeeded()
        assert len(stack.outputs()["publicKeys"]) == 2


def test_a_server_that_encrypts_shows_no_drift_for_ever(
    new_stack: StackFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    monkeypatch.setenv("MINIO_KMS_SECRET_KEY", f"a-key:{key}")
    monkeypatch.setenv("MINIO_KMS_AUTO_ENCRYPTION", "on")
    with MinioServer(tmp_path / "minio") as server:
        stack = new_stack(**server_settings(server), bucket="encrypted")
        stack.up().succeeded()
        assert stack.outputs()["comparableEtags"] is False
        assert not stack.changes()
        assert not stack.changes("--refresh")
        stack.set(priority=30)
        stack.up().succeeded()
        assert not stack.changes()
        assert stack.operate("drift", "--stack", stack.name).code == 0


@contextmanager
def slow(port: int, seconds: float) -> Iterator[int]:
    """Listen on another port in front of one on loopback, and pass on nothing for a while."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                # What is simulated is slowness itself: nothing happens that could be waited for.
                time.sleep(seconds)
                server = socket.create_connection(("127.0.0.1", port))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_deployment_waits_for_a_slow_builder_and_a_preview_does_not(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    link = tmp_path / "system"
    link.symlink_to(STORE_PATH)
    stack = new_stack(**server_settings(minio), bucket="slow-builder")
    with SshServer() as ssh, slow(ssh.port, 5.5) as port:
        builder = {"name": "slow", "host": "127.0.0.1", "port": port, "hostKey": ssh.host_key}
        stack.set(sshPrivateKey=ssh.private_key, builders=[{**builder, "closures": [str(link)]}])
        assert "did not answer within 4 seconds" in stack.preview().output
        # This machine has no such path to push; what the builder was asked for is in the state.
        up = stack.up()
    assert "waiting up to 60 seconds for answers of slow" in up.output
    assert "did not answer" not in up.output
    closures = [found for found in stack.resources() if found["type"].endswith("nixcache:Closure")]
    assert [found["outputs"]["store_paths"] for found in closures] == [[STORE_PATH]]
