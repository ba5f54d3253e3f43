"""What a builder is sent becomes the push as the deployment uploaded it, or says why not."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator, Mapping
from threading import Event
from typing import Any

import pytest

from components.push_program import PROGRAM_KEY, archive, bootstrap, bootstrap_text, push_command
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, Pushed
from tests.system.fault_proxy import PASS, RESET_BEFORE, Request, fault_proxy
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 3
TRANSIENT = (503, RESET_BEFORE, 429)
KEPT = "root/.cache/nix-binary-cache"


@pytest.fixture
def bucket(shared_bucket: CacheBucket, builder: ThrowawayBuilder) -> Iterator[CacheBucket]:
    """A private bucket that holds the push, which the builder has not fetched yet."""
    shared_bucket.client.delete_bucket_policy(shared_bucket.name)
    shared_bucket.put(PROGRAM_KEY, archive())
    builder.run(f"rm -rf /{KEPT}")
    yield shared_bucket
    shared_bucket.empty()


@pytest.fixture(scope="module")
def closure(builder: ThrowawayBuilder) -> str:
    return builder.make_closure(PATHS, 3000, seed=70, name="fetched")


def push(
    builder: ThrowawayBuilder,
    bucket: CacheBucket,
    closure: str,
    environment: str = "",
    changed: str = "",
    **changes: str,
) -> Pushed:
    """Run on a builder what Pulumi runs, with the settings that it gives.

    `changed` is Python that stands in the bootstrap, to change a constant of it.
    """
    certificate = base64.b64encode(bucket.server.ca_file.read_bytes()).decode()
    given: Mapping[str, Any] = {
        "region": "us-east-1",
        "ca_certificate_file": None,
        "ca_certificate": certificate,
        **changes,
    }
    program = archive()
    if changed:
        text = bootstrap_text().replace("\nif __name__", f"\n{changed}\nif __name__", 1)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("bootstrap", text)
        program = buffer.getvalue()
    ran = builder.run(
        f"{environment} {push_command([closure], archive())}",
        input=bootstrap(program) + bucket.settings(**given),
        check=False,
    )
    return Pushed(ran.returncode, f"{ran.stdout}", ran.stderr)


def test_a_builder_fetches_the_push_as_its_own_user_and_pushes(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with fault_proxy(bucket.server) as proxy:
        assert push(builder, bucket, closure, endpoint=proxy.url).counts()["pushed"] == PATHS
        assert push(builder, bucket, closure, endpoint=proxy.url).counts()["reused"] == PATHS
    assert verify(bucket).problems == []
    fetches = [request for request in proxy.requests if request.key == PROGRAM_KEY]
    assert len(fetches) == 1, "what was fetched is kept"


def test_what_is_kept_and_was_changed_is_fetched_again(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    assert push(builder, bucket, closure).counts()["pushed"] == PATHS
    kept = {file: file.read_bytes() for file in (builder.root / KEPT).glob("push-*")}
    assert sorted(file.suffix for file in kept) == [".code", ".pyz"]
    for file in kept:
        file.write_bytes(b"raise SystemExit('run by mistake')")
    assert push(builder, bucket, closure).counts()["reused"] == PATHS
    assert {file: file.read_bytes() for file in kept} == kept


def test_what_somebody_else_wrote_there_is_not_run(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.put(PROGRAM_KEY, b"open('/tmp/run-by-mistake', 'w')\n")
    assert push(builder, bucket, closure).refused() == (
        "push: fetch: pushed/_nixcache/push.pyz is not what this deployment uploaded; "
        "run pulumi up --refresh --run-program to put it back"
    )
    assert builder.run("test ! -e /tmp/run-by-mistake").returncode == 0


def test_where_it_is_gone_one_sentence_says_how_it_comes_back(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.remove(PROGRAM_KEY)
    assert push(builder, bucket, closure).refused() == (
        "push: fetch: GET pushed/_nixcache/push.pyz: HTTP 404 NoSuchKey; "
        "run make repair STACK=NAME with the stack's name, which mends users, policies and objects"
    )


def test_a_wrong_secret_is_refused_at_once_and_not_shown(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with fault_proxy(bucket.server) as proxy:
        pushed = push(builder, bucket, closure, endpoint=proxy.url, secret_access_key="wr0ng-one")
    assert "HTTP 403 SignatureDoesNotMatch; run make repair STACK=NAME" in pushed.refused()
    assert len(proxy.requests) == 1, "a 403 was retried"
    assert "wr0ng-one" not in pushed.log


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_server_that_recovers_is_waited_for(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, fault: int
) -> None:
    failed = Event()

    def fail_once(request: Request) -> int:
        if request.key == PROGRAM_KEY and not failed.is_set():
            failed.set()
            return fault
        return PASS

    with fault_proxy(bucket.server, fail_once) as proxy:
        assert push(builder, bucket, closure, endpoint=proxy.url).counts()["pushed"] == PATHS
    assert failed.is_set()


def test_a_server_that_stays_away_is_named(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    nobody = "http://127.0.0.1:9"
    # The pauses between attempts are not what is tested.
    refused = push(builder, bucket, closure, changed="PAUSES = (0, 0)", endpoint=nobody).refused()
    assert refused.startswith("push: fetch: Failed to connect to the server: [Errno 111]")
    assert refused.endswith(f"; see that this machine reaches it at {nobody}")


def test_a_server_whose_certificate_is_not_trusted_gets_no_credential(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    assert (
        push(builder, bucket, closure, ca_certificate="")
        .refused()
        .endswith("; set caCertificateFile to what signed the certificate of the server")
    )
