"""What a builder is sent becomes push.sh as the deployment uploaded it, or says why not."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from threading import Event
from typing import Any

import pytest

from components.closure_push import (
    FETCH_SCRIPT,
    PUSH_SCRIPT,
    PROGRAM_KEY,
    bare_script,
    push_command,
)
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, Pushed
from tests.system.fault_proxy import PASS, RESET_BEFORE, Request, fault_proxy
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 3
TRANSIENT = (503, RESET_BEFORE, 429)


@pytest.fixture(scope="module")
def shared_bucket(minio: MinioServer) -> CacheBucket:
    return CacheBucket(minio, "fetched")


@pytest.fixture
def bucket(shared_bucket: CacheBucket) -> Iterator[CacheBucket]:
    """A private bucket that holds push.sh."""
    shared_bucket.client.delete_bucket_policy(shared_bucket.name)
    shared_bucket.put(PROGRAM_KEY, bare_script(PUSH_SCRIPT).encode())
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
    **changes: str,
) -> Pushed:
    """Run on a builder what Pulumi runs, with the settings that it gives."""
    certificate = base64.b64encode(bucket.server.ca_file.read_bytes()).decode()
    given: Mapping[str, Any] = {
        "region": "us-east-1",
        "ca_certificate_file": None,
        "ca_certificate": certificate,
        **changes,
    }
    ran = builder.run(
        f"{environment} {push_command([closure])}",
        input=f"{bare_script(FETCH_SCRIPT)}\0{bucket.settings(**given)}",
        check=False,
    )
    return Pushed(ran.returncode, ran.stdout, ran.stderr)


def test_a_builder_fetches_push_sh_as_its_own_user_and_pushes(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    assert push(builder, bucket, closure).counts()["pushed"] == PATHS
    assert verify(bucket).problems == []


def test_what_somebody_else_wrote_there_is_not_run(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.put(PROGRAM_KEY, bare_script(PUSH_SCRIPT).encode() + b"touch /tmp/run-by-mistake\n")
    assert push(builder, bucket, closure).refused() == (
        "push: fetch: fetched/tools/push.sh is not what this deployment uploaded; "
        "run pulumi up --refresh to put it back"
    )
    assert builder.run("test ! -e /tmp/run-by-mistake").returncode == 0


def test_where_it_is_gone_one_sentence_says_how_it_comes_back(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.remove(PROGRAM_KEY)
    assert push(builder, bucket, closure).refused() == (
        "push: fetch: GET fetched/tools/push.sh: HTTP 404 NoSuchKey; "
        "run pulumi up --refresh, which mends users, policies and objects"
    )


def test_a_wrong_secret_is_refused_at_once_and_not_shown(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with fault_proxy(bucket.server) as proxy:
        pushed = push(builder, bucket, closure, endpoint=proxy.url, secret_access_key="wr0ng-one")
    assert "HTTP 403 SignatureDoesNotMatch; run pulumi up --refresh" in pushed.refused()
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
    # A sleep that does not: the pauses between attempts are not what is tested.
    builder.run("mkdir -p /tmp/hasty && printf '#!/bin/sh\\n' >/tmp/hasty/sleep")
    builder.run("chmod +x /tmp/hasty/sleep")
    nobody = "http://127.0.0.1:9"
    hasty = "PATH=/tmp/hasty:$PATH"
    refused = push(builder, bucket, closure, environment=hasty, endpoint=nobody).refused()
    assert refused.startswith("push: fetch: Failed to connect to 127.0.0.1")
    assert refused.endswith(f"; see that this machine reaches the server at {nobody}")


def test_a_server_whose_certificate_is_not_trusted_gets_no_credential(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    assert (
        push(builder, bucket, closure, ca_certificate="")
        .refused()
        .endswith("; set caCertificateFile to what signed the certificate of the server")
    )


def test_a_missing_tool_is_named(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    builder.run("mkdir -p /tmp/curlless && ln -sf /usr/bin/bash /tmp/curlless")
    refused = push(builder, bucket, closure, environment="PATH=/tmp/curlless").refused()
    assert refused == (
        "push: fetch: curl is missing on this machine; install it, or add it to PATH"
    )
