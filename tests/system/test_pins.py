"""Pins of the cache on real parts: kept by pushes that have none of it, until they are let go."""

from __future__ import annotations

import json

import pytest

from components.retention import OWN_FOLDER
from formats.keys import PublicKey
from formats.pin import format_pin, parse_pin, pin_key
from formats.signing import SecretKey
from operations.preview_markdown import render
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, Pushed
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.minio_client import MinioClient
from tests.system.stack import Stack
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 5
LINK = "/root/pinned-system"


@pytest.fixture(scope="module")
def closures(builder: ThrowawayBuilder) -> list[str]:
    """Closures on the builder."""
    return [builder.make_closure(PATHS, 50_000, seed, f"kept-{seed}") for seed in (31, 32, 33)]


@pytest.fixture
def bucket(minio: MinioServer, request: pytest.FixtureRequest) -> CacheBucket:
    """A bucket of the test's own."""
    return CacheBucket(minio, f"pins-{abs(hash(request.node.name)) % 10**8}")


def age(bucket: CacheBucket, days: int) -> None:
    """Make all of the cache's files look older."""
    keys = [key for key in bucket.objects() if not key.startswith(OWN_FOLDER)]
    bucket.age(days, *(key for key in keys if key != "nix-cache-info"))


def written_today(bucket: CacheBucket) -> int:
    """Return how many narinfos and NARs were written on the newest day."""
    days = [
        one.last_modified.date()
        for key, one in bucket.objects().items()
        if key.endswith(".narinfo") or key.startswith("nar/")
        if one.last_modified is not None
    ]
    return days.count(max(days))


def test_a_pin_outlives_the_machine_that_pushed_it(
    builder: ThrowawayBuilder,
    second_builder: ThrowawayBuilder,
    bucket: CacheBucket,
    closures: list[str],
) -> None:
    """Days of pushes by a builder that never had it; then the key rotates, and a path is lost."""
    kept = closures[0]
    bucket.push(builder, kept).succeeded()
    bucket.put(pin_key("release"), format_pin([kept]).encode())
    other = second_builder.make_closure(2, 20_000, 34, "other")
    for _ in range(3):
        age(bucket, 6)
        pushed = bucket.push(second_builder, other, renew="yes").succeeded()
        assert pushed["skipped"] == "0"
        assert verify(bucket, leases=True).problems == []
        assert written_today(bucket) == 2 * (PATHS + 2)
    assert bucket.pull(second_builder, kept) == PATHS

    old, new = bucket.key, SecretKey.generate("rotated-2")
    age(bucket, 6)
    trusted = [str(key.public_key) for key in (old, new)]

    def push(builder: ThrowawayBuilder, path: str) -> Pushed:
        key = new.to_nix()
        return bucket.push(builder, path, signing_key=key, trusted_key=trusted, renew="yes")

    push(second_builder, other).succeeded()
    assert written_today(bucket) == 2 * (PATHS + 2)
    keys: list[PublicKey] = [old.public_key]
    assert bucket.pull(second_builder, kept, keys=keys) == PATHS

    lost = f"{kept.removeprefix('/nix/store/')[:32]}.narinfo"
    bucket.remove(lost)
    told = push(second_builder, other)
    assert f"push: pins: release is incomplete: {kept}: the cache does not have it" in told.log
    # Whoever has it mends it, and was not told to.
    some = builder.make_closure(1, 1_000, 35, "some")
    assert push(builder, some).counts()["pushed"] == 2
    assert lost in bucket.objects()


@pytest.fixture
def stack(new_stack: StackFactory, minio: MinioServer, builder: ThrowawayBuilder) -> Stack:
    """A stack with one builder that pushes what a link points to."""
    stack = new_stack(**server_settings(minio), upstreamKeys=[], bucket="pinned")
    stack.set(sshPrivateKey=builder.private_key, builders=[builder_settings(builder)])
    return stack


def test_a_pin_follows_a_builders_link_and_keeps_the_last_targets(
    stack: Stack,
    minio: MinioServer,
    builder: ThrowawayBuilder,
    closures: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    mc = MinioClient(minio, tmp_path_factory.mktemp("mc"))

    def kept() -> list[str]:
        return list(parse_pin(mc.run(f"cat s3/pinned/{pin_key('live')}").encode()))

    live = {"name": "live", "builder": "nixbuilder", "link": LINK, "keepLast": 2}
    stack.set(pins=[live])
    first, second, third = closures
    builder.run(f"ln -sfn {first} {LINK}")
    assert f"pin live keeps {first}" in stack.preview().succeeded().output
    stack.up().succeeded()
    assert kept() == [first]
    stack.up("--expect-no-changes").succeeded()
    former = stack.export()

    builder.run(f"ln -sfn {second} {LINK}")
    assert f"pin live keeps {second}; before: {first}" in stack.preview().succeeded().output
    stack.up().succeeded()
    assert kept() == [second, first] == stack.outputs()["pins"]["live"]
    stack.up("--expect-no-changes").succeeded()
    builder.run(f"ln -sfn {third} {LINK}")
    stack.up().succeeded()
    assert kept() == [third, second]

    # A state of before does not know what the pin keeps beside its last target.
    later = stack.export()
    stack.run("stack", "import", "-s", stack.name, text=former).succeeded()
    told = stack.preview().succeeded().output
    assert f"pin live has kept more than the state knows, and still may: {third}, {second}" in told
    stack.up().succeeded()
    assert kept() == [third, second]
    stack.run("stack", "import", "-s", stack.name, text=later).succeeded()
    stack.up("--expect-no-changes").succeeded()

    # A path that the cache does not have is found by the audit, by the pin's name.
    release = {"name": "release", "path": f"/nix/store/{'0' * 32}-release"}
    stack.set(pins=[live, release])
    stack.up().succeeded()
    found = stack.operate("audit", "--stack", stack.name)
    assert found.code == 1
    assert f"pin release keeps {release['path']}, and the cache does not have it" in found.output

    stack.set(pins=[live])
    report = render(json.loads(stack.preview("--json").succeeded().output))
    assert "pin release goes; what it kept ages from its last push" in report
    stack.up().succeeded()
    assert pin_key("release") not in mc.run("ls --recursive s3/pinned")
    stack.up("--expect-no-changes").succeeded()
