"""Several builders, and several versions of Nix, that push to one cache."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import unquote

import pytest

from components.retention import is_cache_file
from formats.narinfo import NarInfo
from formats.signing import SecretKey, verified_by
from tests.system.bucket_verifier import verify, watched
from tests.system.cache_bucket import CacheBucket, Pushed, leftovers, trust
from tests.system.fault_proxy import PASS, Request, fault_proxy
from toolbox import throwaway_builder
from toolbox.base_tree import suites
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 30
BYTES = 2_000_000
TRACES = ("realisations/", "build-trace-v2/")
"""Where `nix copy` tells which output a content-addressed derivation had, up to 2.34 and since."""

# Of the name of whoever builds it first.
CONTENT_ADDRESSED = """
derivation {{
  name = "content-addressed";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "echo {name} >$out" ];
  __contentAddressed = true;
  outputHashMode = "recursive";
  outputHashAlgo = "sha256";
}}
"""


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
            for suite in suites()
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
    print(f"pushed by {len(builders)} versions of Nix, pulled by each: {list(suites())}")


@pytest.mark.parametrize("suite", suites())
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


def test_what_is_not_there_may_be_forbidden_to_every_nix(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    bucket = CacheBucket(minio, "forbidden")
    closure = builders["forky"].make_closure(3, 30_000, seed=13, name="forbidden")
    bucket.push(builders["forky"], closure).succeeded()
    there = bucket.objects()

    # As S3 answers who may not list a bucket.
    def forbidden(request: Request) -> int:
        return PASS if unquote(request.key) in there else 403

    with fault_proxy(minio, forbidden) as proxy:
        for suite, builder in builders.items():
            begun = proxy.faults
            url = f"{proxy.url}/{bucket.name}"
            said = build_with(builder, url, bucket, CONTENT_ADDRESSED.format(name=f"for {suite}"))
            assert "building '/nix/store/" in said
            # Nix' own, which has closed a descriptor twice.
            ignored = r"error \(ignored\): error: closing file descriptor \d+: Bad file descriptor"
            assert "error" not in re.sub(ignored, "", said)
            assert proxy.faults > begun, suite
            store = f"/tmp/{bucket.name}"
            builder.run(
                f"{settings(url, bucket)} nix copy --from {url} --to {store} {closure} && "
                f"chmod -R u+w {store} && rm -r {store}"
            )


def test_a_content_addressed_output_is_a_path_to_the_cache_whichever_nix_built_it(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    bucket = CacheBucket(minio, "content-addressed")
    url = f"{minio.endpoint}/{bucket.name}"
    machines = list(builders.items())
    for (suite, builder), (_, other) in zip(machines, machines[1:] + machines[:1], strict=True):
        expression = CONTENT_ADDRESSED.format(name=suite)
        build_with(builder, "", bucket, expression)
        output = builder.run("readlink result").stdout.strip()
        assert bucket.push(builder, output).counts()["pushed"] == 1
        assert bucket.pull(other, output) == 1
        # By its derivation the other does not find it, and builds the very same.
        said = build_with(other, url, bucket, expression)
        assert "building '/nix/store/" in said
        assert other.run("readlink result").stdout.strip() == output
        # What nix copy writes besides is known for a cache's: it expires, and builders may write.
        written = builder.run(
            f"{settings('', bucket)} cd /tmp && rm -rf by-hand && echo {shlex.quote(expression)} "
            "| tee by-hand.nix >&2; nix copy --to file:///tmp/by-hand --file by-hand.nix && "
            "cd by-hand && find . -type f -printf '%P\\n'"
        ).stdout.splitlines()
        traces = [key for key in written if key.startswith(TRACES)]
        print(f"{suite}: nix copy writes {traces}")
        assert len(traces) == 1
        assert [key for key in written if not is_cache_file(key)] == []
    assert not any(key.startswith(TRACES) for key in bucket.objects())


def settings(url: str, bucket: CacheBucket) -> str:
    """Return the beginning of a script whose Nix has one substituter, or none."""
    return f"""export NIX_SSL_CERT_FILE=/etc/private-ca.pem NIX_CONFIG='\
experimental-features = nix-command ca-derivations
substituters = {url}
trusted-public-keys = {bucket.public_key}'
"""


def build_with(builder: ThrowawayBuilder, url: str, bucket: CacheBucket, expression: str) -> str:
    """Build an expression where Nix remembers no cache; return what was said."""
    trust(builder, bucket.server)
    script = f"{settings(url, bucket)} rm -rf ~/.cache/nix; nix-build -"
    return builder.run(script, input=expression).stderr


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


def test_builders_with_keys_of_their_own_that_push_the_same_at_once_all_sign_it(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    bucket = CacheBucket(minio, "same-moment")
    machines = list(builders.values())
    for builder in machines:
        top = builder.make_closure(2 * PATHS, BYTES, seed=14, name="same-moment")
    for first in (1, 1 + len(machines)):
        keys = [SecretKey.generate(f"cache.test-{first + n}") for n in range(len(machines))]
        known = {key.name: key.public_key for key in keys}
        with watched(bucket) as watch, ThreadPoolExecutor(len(machines)) as crowd:
            pushes = [
                crowd.submit(
                    bucket.push,
                    machine,
                    top,
                    renew="yes",
                    signing_key=key.to_nix(),
                    trusted_key=[str(one) for one in known.values()],
                )
                for machine, key in zip(machines, keys, strict=True)
            ]
            for push in pushes:
                push.result().succeeded()
        # Whoever comes first has signed it alone.
        assert [one for one in watch.problems if "has no signature" not in one] == []
        found = [
            NarInfo.parse(bucket.get(key).decode())
            for key in bucket.objects()
            if key.endswith(".narinfo")
        ]
        assert len(found) == 2 * PATHS
        # First of what is new, and then of what is there.
        assert {tuple(sorted(verified_by(one, known))) for one in found} == {tuple(known)}
    assert bucket.pull(machines[0], top, keys=[keys[-1].public_key]) == 2 * PATHS


NOT_REPRODUCIBLE = """
derivation {
  name = "not-reproducible";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "read x < /proc/sys/kernel/random/uuid; echo $x >$out" ];
}
"""


def test_what_one_builder_has_signed_the_others_do_not_push_again(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    """Each has made something else of the path, and has a key of its own."""
    bucket = CacheBucket(minio, "not-reproducible")
    first, second = builders["forky"], builders["trixie"]
    keys = {first: bucket.key, second: SecretKey.generate("cache.test-2")}
    trusted = [str(key.public_key) for key in keys.values()]
    for builder in keys:
        build_with(builder, "", bucket, NOT_REPRODUCIBLE)
    made = [one.run("readlink result; nix-store -q --hash result").stdout for one in keys]
    (path, one_hash), (same, other_hash) = (text.split() for text in made)
    assert path == same
    assert one_hash != other_hash

    def push(builder: ThrowawayBuilder) -> Mapping[str, int]:
        key = keys[builder].to_nix()
        pushed = bucket.push(builder, path, signing_key=key, trusted_key=trusted, renew="yes")
        return pushed.counts()

    assert push(first)["pushed"] == 1
    for _ in range(2):
        bucket.age(1, *bucket.objects())
        counts = push(second)
        assert (counts["reused"], counts["renewed"], counts["pushed"]) == (1, 1, 0)
        assert push(first)["reused"] == 1
    assert verify(bucket, leases=True).problems == []
    assert bucket.pull(builders["bookworm"], path) == 1
    # Once the first builder's key is retired, nobody has what clients take but the second.
    trusted.pop(0)
    counts = push(second)
    assert (counts["pushed"], counts["repaired"]) == (1, 1)
    assert bucket.pull(builders["bookworm"], path, keys=[keys[second].public_key]) == 1


def test_five_builders_push_overlapping_closures_at_once(
    builders: Mapping[str, ThrowawayBuilder], minio: MinioServer
) -> None:
    bucket = CacheBucket(minio, "crowd")
    machines = [*builders.values(), builders["forky"], builders["trixie"]][-5:]
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
