"""Several builders, and several versions of Nix, that push to one cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from formats.signing import SecretKey
from tests.system.bucket_verifier import verify, watched
from tests.system.cache_bucket import CacheBucket, Pushed, leftovers
from toolbox import throwaway_builder
from toolbox.base_tree import SUITES
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 30
BYTES = 2_000_000


@pytest.fixture(scope="module")
def builders(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mapping[str, ThrowawayBuilder]]:
    """A running builder with each version of Nix, by the name of its suite."""
    reason = throwaway_builder.available()
    if reason is not None:
        pytest.skip(f"no builders with a real Nix: {reason}")
    with ExitStack() as stack:
        yield {
            suite: stack.enter_context(
                ThrowawayBuilder(tmp_path_factory.mktemp(suite), suite=suite)
            )
            for suite in SUITES
        }


def test_every_nix_pushes_and_every_nix_pulls_what_the_others_pushed(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    bucket = CacheBucket(minio, "versions")
    closures = {
        suite: builder.make_closure(PATHS, BYTES, seed=number, name=f"from-{suite}")
        for number, (suite, builder) in enumerate(builders.items())
    }
    for suite, builder in builders.items():
        pushed = bucket.push(builder, closures[suite], renew="yes")
        assert pushed.counts()["pushed"] == PATHS, suite
        again = bucket.push(builder, closures[suite], renew="yes")
        assert again.counts()["reused"] == PATHS, suite
    assert verify(bucket).problems == []
    for builder in builders.values():
        for closure in closures.values():
            assert bucket.pull(builder, closure) == PATHS
    print(f"pushed by {len(builders)} versions of Nix, pulled by each: {list(SUITES.values())}")


@pytest.mark.parametrize("suite", SUITES)
def test_every_nix_repairs_renews_and_signs_what_another_pushed(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer, suite: str
) -> None:
    bucket = CacheBucket(minio, f"mended-by-{suite}")
    others = [builder for name, builder in builders.items() if name != suite]
    closure = ""
    for builder in (*others, builders[suite]):
        closure = builder.make_closure(PATHS, BYTES, seed=9, name="common")
    bucket.push(others[0], closure).succeeded()
    nar = next(key for key in bucket.objects() if key.startswith("nar/"))
    bucket.remove(nar)
    bucket.age(1, *bucket.objects())
    new = SecretKey.generate("cache.test-2")
    keys = [bucket.key.to_nix(), new.to_nix()]
    mended = bucket.push(builders[suite], closure, renew="yes", signing_key=keys)
    counts = mended.counts()
    assert (counts["pushed"], counts["repaired"]) == (1, 1)
    assert counts["renewed"] == counts["reused"] == PATHS - 1
    assert f"sign: added cache.test-2 to {PATHS - 1} paths" in mended.log
    assert bucket.pull(others[1], closure, keys=[new.public_key]) == PATHS


def test_builders_with_keys_of_their_own_sign_side_by_side_and_one_is_revoked_alone(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    bucket = CacheBucket(minio, "own-keys")
    first, second = builders["forky"], builders["trixie"]
    keys = {first: bucket.key, second: SecretKey.generate("cache.test-2")}
    trusted = [str(key.public_key) for key in keys.values()]
    for builder in keys:
        shared = builder.make_closure(3, 30_000, seed=10, name="shared")
        builder.run(f"ln -sfn {shared} /root/shared")
    alone = first.make_closure(2, 20_000, seed=11, name="alone")

    def push(builder: ThrowawayBuilder, *paths: str) -> Pushed:
        key = keys[builder].to_nix()
        return bucket.push(builder, *paths, signing_key=key, trusted_key=trusted, renew="yes")

    assert push(first, shared, alone).counts()["pushed"] == 5
    assert "sign: added cache.test-2 to 3 paths" in push(second, shared).log
    # Neither takes away, nor does again, what the other has done.
    before = {key: one.etag for key, one in bucket.objects().items()}
    for builder in (first, second):
        again = push(builder, shared)
        assert again.counts()["reused"] == 3
        assert "sign:" not in again.log
    assert {key: one.etag for key, one in bucket.objects().items()} == before
    # Who stops trusting the first builder's key has what the second one built too, and no more.
    left = keys[second].public_key
    assert bucket.pull(builders["bookworm"], shared, keys=[left]) == 3
    with pytest.raises(ToolboxError):
        bucket.pull(builders["bookworm"], alone, keys=[left])


def test_five_builders_push_overlapping_closures_at_once(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    bucket = CacheBucket(minio, "crowd")
    machines = [*builders.values(), builders["forky"], builders["trixie"]]
    for builder in builders.values():
        top = builder.make_closure(2 * PATHS, 2 * BYTES, seed=12, name="crowd")
    paths = machines[0].run(f"nix-store --query --requisites {top}").stdout.split()
    # Each builder pushes the whole closure, or what hangs from a few of its paths.
    shares = [[top], paths[: PATHS + 10], paths[PATHS:], paths[::2], [top]]
    with watched(bucket) as watch, ThreadPoolExecutor(len(machines)) as crowd:
        pushes = [
            crowd.submit(bucket.push, machine, *share, renew="yes")
            for machine, share in zip(machines, shares, strict=True)
        ]
        counts = [push.result().counts() for push in pushes]
    print(f"five builders at once pushed {[c['pushed'] for c in counts]} of {2 * PATHS} paths")
    assert watch.problems == []
    verdict = verify(bucket, leases=True)
    assert (verdict.narinfos, verdict.problems) == (2 * PATHS, [])
    assert not any(leftovers(builder) for builder in builders.values())
    assert bucket.pull(builders["bookworm"], top) == 2 * PATHS
