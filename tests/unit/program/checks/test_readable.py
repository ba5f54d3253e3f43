"""Who may read where that is settled elsewhere: the verdict, and the remedy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pulumi
import pytest

from components.binary_cache import BinaryCache, BinaryCacheArgs
from program.checks import readable, recorded
from program.checks.recorded import BUCKET_POLICY, STACK, Recorded
from program.settings.stack import parse
from tests.unit.configuration import configuration, refusal
from tests.unit.recording_mocks import settled, use_recording_mocks

INFO = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"
OFF: dict[str, Any] = {"bucketPolicy": False, "users": "given"}


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Answer every request the same way; the value is the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def finding(status: int, body: bytes, **changes: Any) -> str | None:
    with answering(status, body) as url:
        public = {} if changes.get("access") == "private" else {"publicUrl": f"{url}/nix"}
        settings = parse(configuration(**{**OFF, "endpoint": url, **public, **changes}))
        found = readable.finding(settings)
        return found and found.replace(url, "URL")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, INFO, None),
        (403, b"", "publicUrl is URL/nix: clients cannot read there (HTTP 403 for nix-cache-info)"),
        (404, b"", "garage bucket website --allow nix-cache"),
        (200, b"<!doctype html>", "what is there is not this cache's nix-cache-info"),
        (200, b"StoreDir: /gnu/store\n", "what is there is not this cache's"),
        (200, b"", "what is there is not this cache's"),
    ],
)
def test_a_public_cache_is_read_from_outside(
    status: int, body: bytes, expected: str | None
) -> None:
    found = finding(status, body)
    assert found == expected if expected is None else expected in str(found)


@pytest.mark.parametrize(("status", "body", "opened"), [(403, b"", False), (200, INFO, True)])
def test_a_private_cache_is_not(status: int, body: bytes, opened: bool) -> None:
    private = {"access": "private", "readerAccessKeyId": "GK1"}
    found = finding(status, body, **private)
    assert ("everyone can read URL/nix-cache" in str(found)) is opened


def test_what_cannot_be_reached_from_here_is_not_said_to_be_shut() -> None:
    with answering(200, INFO) as url:
        pass
    settings = parse(configuration(**OFF, publicUrl=url))
    assert "it cannot be reached from here" in str(readable.finding(settings))


def proved(monkeypatch: pytest.MonkeyPatch, state: Recorded, found: str | None) -> str:
    """Return what an update whose proof comes to `found` puts out."""
    use_recording_mocks()
    monkeypatch.setattr(recorded, "read", lambda: state)
    monkeypatch.setattr(readable, "finding", lambda _: found)
    said: list[str] = []

    def deploy() -> pulumi.Output[None]:
        settings = parse(configuration(**OFF, publicUrl="https://cache.example.org"))
        done: pulumi.Output[object] = pulumi.Output.from_input("done")
        return readable.proved(settings, [done]).apply(said.append)

    settled(deploy)
    return said[0]


def test_the_verdict_is_put_out_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = Recorded({})
    assert proved(monkeypatch, nothing, None) == "everyone reads at https://cache.example.org"
    assert caplog.text == ""
    assert proved(monkeypatch, nothing, "it is shut; open it") == "not proved: it is shut; open it"
    assert "it is shut; open it" in caplog.text


def test_a_policy_that_is_about_to_go_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Recorded({"policy": {"type": BUCKET_POLICY, "outputs": {"policy": "{}"}}})
    assert "goes at the end of this deployment" in proved(monkeypatch, state, None)


def previewed(monkeypatch: pytest.MonkeyPatch, verdict: str) -> str:
    """Return what a preview puts out after a deployment with that verdict."""
    state = Recorded({"stack": {"type": STACK, "outputs": {"readable": verdict}}})
    use_recording_mocks(preview=True)
    monkeypatch.setattr(recorded, "read", lambda: state)
    said: list[str] = []
    settings = parse(configuration(**OFF, publicUrl="https://cache.example.org"))
    settled(lambda: readable.proved(settings, []).apply(said.append))
    return said[0]


def test_a_preview_has_the_last_verdict_and_warns_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert previewed(monkeypatch, "everyone reads at x") == "everyone reads at x"
    assert caplog.text == ""
    assert previewed(monkeypatch, "not proved: it is shut") == "not proved: it is shut"
    assert "as the last deployment left it: not proved: it is shut; the next one" in caplog.text


def test_without_a_bucket_policy_none_is_declared_and_the_rest_is() -> None:
    engine = use_recording_mocks()
    settled(lambda: BinaryCache("c", BinaryCacheArgs(bucket="b", bucket_policy=False)).bucket)
    types = engine.types()
    assert "minio:index/s3BucketPolicy:S3BucketPolicy" not in types
    assert {"minio:index/s3Bucket:S3Bucket", "minio:index/ilmPolicy:IlmPolicy"} <= set(types)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "publicUrl: is missing, since bucketPolicy is off; write the URL at which"),
        (
            {"publicUrl": "https://cache.example.org", "anonymousListing": True},
            "anonymousListing is true: bucketPolicy is off",
        ),
        ({"bucketPolicy": "perhaps"}, 'bucketPolicy is "perhaps": write true or false'),
    ],
)
def test_what_cannot_be_without_a_bucket_policy_is_refused(
    changes: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(**{**OFF, **changes})


@pytest.mark.parametrize(
    ("changes", "days"),
    [
        ({}, 7),
        ({"expiresAtMidnight": False}, 8),
        ({"expiresAtMidnight": False, "expire": False}, None),
    ],
)
def test_rules_count_a_day_more_where_expiry_is_not_rounded_up(
    changes: dict[str, Any], days: int | None
) -> None:
    assert parse(configuration(**changes)).rule_days == days
