"""The push script on real builders, into a real bucket: what it pushes, skips, renews, repairs."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timezone

import pytest
from minio.time import utcnow

from formats.narinfo import NarInfo
from formats.nix32 import nix32_encode
from formats.push_status import STATUS_FOLDER
from formats.s3 import parse_error
from formats.signing import SecretKey, verified_by
from push.bucket import EMPTY, Place
from push.connection import Request as Asked
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, leftovers, place, small_disk, trust
from tests.system.fault_proxy import PASS, Fault, Request, fault_proxy
from tests.unit.push.client import Client
from tests.unit.push.s3_stand_in import StandIn, serving
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 40
BYTES = 4_000_000


@pytest.fixture(scope="module")
def closure(builder: ThrowawayBuilder) -> str:
    """The top of a closure of PATHS paths."""
    return builder.make_closure(PATHS, BYTES, seed=4, name="pushed")


def closure_of(builder: ThrowawayBuilder, path: str) -> list[str]:
    return builder.run(f"nix-store --query --requisites {path}").stdout.split()


def narinfo_key(path: str) -> str:
    return f"{path.removeprefix('/nix/store/')[:32]}.narinfo"


def narinfo(bucket: CacheBucket, path: str) -> NarInfo:
    return NarInfo.parse(bucket.get(narinfo_key(path)).decode())


def test_a_closure_is_pushed_whole_and_a_second_push_does_nothing(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    first = bucket.push(builder, closure)
    assert first.counts() == {
        "pushed": PATHS,
        "reused": 0,
        "skipped": 0,
        "renewed": 0,
        "repaired": 0,
    }
    assert first.succeeded()["pushed_size"].startswith("4.")
    verdict = verify(bucket)
    assert (verdict.narinfos, verdict.problems) == (PATHS, [])
    before = bucket.objects()
    again = bucket.push(builder, closure).counts()
    assert (again["pushed"], again["reused"]) == (0, PATHS)
    assert {k: o.last_modified for k, o in bucket.objects().items()} == {
        k: o.last_modified for k, o in before.items()
    }
    assert leftovers(builder) == []
    assert bucket.pull(builder, closure) == PATHS


def test_links_are_followed_and_several_paths_are_pushed_at_once(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    other = builder.make_closure(3, 3000, seed=5, name="other")
    builder.run(f"ln -sfn {closure} /tmp/link && ln -sfn /tmp/link /tmp/link-to-link")
    pushed = bucket.push(builder, "/tmp/link-to-link", path=[f"{other}/share"])
    assert pushed.counts()["pushed"] == PATHS + 3
    assert verify(bucket).problems == []


def test_it_can_be_called_by_hand_with_a_file_of_settings(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    trust(builder, bucket.server)
    command = " ".join(place(builder))
    settings = bucket.settings(
        secret_access_key=None,
        secret_access_key_file="/tmp/secret",
        signing_key=None,
        signing_key_file="/tmp/key",
        region="us-east-1",
    )
    builder.run("cat >/tmp/secret", input=bucket.secret + "\n")
    builder.run("cat >/tmp/key", input=bucket.key.to_nix() + "\n")
    builder.run("cat >/tmp/settings", input=f"# by hand\n\n{settings}")
    result = builder.run(f"{command} --config /tmp/settings {closure}")
    assert result.stdout.startswith(f"pushed {PATHS} paths (4.")
    lines = result.stderr.splitlines()
    assert all(re.fullmatch(r"push: upload: \d+ of 40 paths, .+ of 4\.\d MB", li) for li in lines)
    assert lines[-1].startswith("push: upload: 40 of 40 paths")
    assert "Usage: nix-binary-cache-push" in builder.run(f"{command} --help").stdout


def test_a_dry_run_says_what_would_be_pushed_and_writes_nothing(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    dry = bucket.push(builder, closure, options="--dry-run")
    assert dry.output.startswith(f"would push {PATHS} paths (4.")
    assert len(re.findall(r"would push /nix/store/\S+, \d+ bytes, absent", dry.log)) == PATHS
    assert bucket.objects().keys() == {"nix-cache-info"}


def test_paths_signed_upstream_are_skipped_and_the_rest_is_pushed(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    upstream = SecretKey.generate("cache.nixos.org-1")
    top = builder.make_closure(20, 200_000, seed=6, name="upstream")
    signed = [path for path in closure_of(builder, top) if path != top][:15]
    builder.run("cat >/tmp/upstream-key", input=upstream.to_nix())
    builder.run(
        "nix --extra-experimental-features nix-command store sign "
        f"--key-file /tmp/upstream-key {' '.join(signed)}"
    )
    pushed = bucket.push(
        builder,
        top,
        upstream_key=[str(SecretKey.generate("other-1").public_key), str(upstream.public_key)],
    )
    assert pushed.counts() == {
        "pushed": 5,
        "reused": 0,
        "skipped": 15,
        "renewed": 0,
        "repaired": 0,
    }
    names = frozenset(path.removeprefix("/nix/store/") for path in signed)
    assert verify(bucket, names).problems == []
    everything = bucket.push(builder, top)
    assert everything.counts()["pushed"] == 15
    assert verify(bucket).problems == []


@pytest.mark.parametrize(
    ("setting", "url", "compression"),
    [
        (None, ".nar.zst", "zstd"),
        ("xz", ".nar.xz", "xz"),
        ("none", ".nar", "none"),
    ],
)
def test_the_compression_is_the_one_asked_for(
    builder: ThrowawayBuilder,
    bucket: CacheBucket,
    setting: str | None,
    url: str,
    compression: str,
) -> None:
    path = builder.make_closure(2, 400_000, seed=7, name="compressed")
    bucket.push(builder, path, compression=setting).succeeded()
    assert verify(bucket).problems == []
    entry = narinfo(bucket, path)
    assert entry.url.endswith(url)
    assert entry.compression == compression
    assert bucket.pull(builder, path) == 2


def test_a_higher_level_compresses_better(builder: ThrowawayBuilder, bucket: CacheBucket) -> None:
    path = builder.make_closure(2, 400_000, seed=7, name="compressed")
    sizes = {}
    for level in (1, 19):
        bucket.push(builder, path, compression_level=level).succeeded()
        sizes[level] = narinfo(bucket, path).file_size
        bucket.empty()
    assert sizes[19] is not None
    assert sizes[1] is not None
    assert sizes[19] < sizes[1]


# Repairs.


def test_a_nar_that_is_gone_cut_short_or_too_long_is_made_good(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    gone, short, long = (narinfo(bucket, path).url for path in closure_of(builder, closure)[:3])
    bucket.remove(gone)
    bucket.put(short, bucket.get(short)[:-1])
    bucket.put(long, bucket.get(long) + b"x")
    assert len(verify(bucket).problems) == 3
    assert bucket.push(builder, closure, options="--dry-run").counts()["repaired"] == 3
    assert bucket.push(builder, closure).counts() == {
        "pushed": 3,
        "reused": PATHS - 3,
        "skipped": 0,
        "renewed": 0,
        "repaired": 3,
    }
    assert verify(bucket).problems == []
    assert bucket.pull(builder, closure) == PATHS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff" * 100,
        b"StorePath: /nix/store/\nURL: $(touch /tmp/evaluated)\nNarHash: `id`\n",
        b"URL: ../../etc/passwd\nNarHash: sha256:0\nFileSize: 1\n",
    ],
)
def test_what_is_no_narinfo_is_replaced(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, content: bytes
) -> None:
    bucket.push(builder, closure).succeeded()
    bucket.put(narinfo_key(closure), content)
    assert bucket.push(builder, closure).counts()["repaired"] == 1
    assert verify(bucket).problems == []
    assert not (builder.root / "tmp" / "evaluated").exists()


def test_a_narinfo_that_refers_out_of_the_closure_is_replaced(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    text = bucket.get(narinfo_key(closure)).decode()
    foreign = f"{'0' * 32}-gone"
    changed = re.sub(r"(?m)^References:", f"References: {foreign}", text)
    bucket.put(narinfo_key(closure), changed.encode())
    assert bucket.push(builder, closure).counts()["repaired"] == 1
    assert foreign not in bucket.get(narinfo_key(closure)).decode()


def test_a_narinfo_larger_than_any_is_not_read_whole(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    bucket.put(narinfo_key(closure), bytes(17 * 1024 * 1024))
    assert bucket.push(builder, closure).counts()["pushed"] == 1
    assert verify(bucket).problems == []


# Leases.


def test_what_was_not_written_today_is_renewed_and_what_was_is_not(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure, renew="yes").succeeded()
    old = [narinfo_key(path) for path in closure_of(builder, closure)[:4]]
    old_nars = [NarInfo.parse(bucket.get(key).decode()).url for key in old[:2]]
    before = bucket.objects()
    bucket.age(2, *old, *old_nars)
    assert bucket.push(builder, closure).counts()["renewed"] == 0
    renewed = bucket.push(builder, closure, renew="yes").counts()
    assert (renewed["renewed"], renewed["reused"], renewed["pushed"]) == (4, PATHS, 0)
    after = bucket.objects()
    today = utcnow().astimezone(timezone.utc).date()
    assert all(o.last_modified and o.last_modified.date() == today for o in after.values())
    untouched = before.keys() - {*old, *old_nars}
    assert {k: before[k].last_modified for k in untouched} == {
        k: after[k].last_modified for k in untouched
    }
    assert verify(bucket).problems == []
    assert bucket.pull(builder, closure) == PATHS


def test_a_nar_that_cannot_be_renewed_because_it_has_gone_is_pushed_again(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure, renew="yes").succeeded()
    victim = narinfo(bucket, closure).url
    bucket.age(2, victim)

    def lose_it(request: Request) -> int:
        if request.copies and request.key == victim:
            bucket.remove(victim)
        return PASS

    with fault_proxy(bucket.server, lose_it) as proxy:
        counts = bucket.push(builder, closure, renew="yes", endpoint=proxy.url).counts()
    assert (counts["pushed"], counts["repaired"]) == (1, 1)
    assert verify(bucket).problems == []


def test_nothing_is_written_before_what_it_depends_on(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    paths = closure_of(builder, closure)
    for step in ("fresh", "renewal"):
        with fault_proxy(bucket.server) as proxy:
            bucket.push(builder, closure, renew="yes", endpoint=proxy.url).succeeded()
        puts = [r for r in proxy.requests if r.method == "PUT" and STATUS_FOLDER not in r.key]
        began = {r.key: r.number for r in puts}
        ended = {r.key: proxy.ended[r.number] for r in puts}
        assert len(began) == 2 * PATHS, step
        for path in paths:
            entry = narinfo(bucket, path)
            needed = [entry.url, *(narinfo_key(r) for r in entry.references)]
            needed = [key for key in needed if key != narinfo_key(path)]
            assert all(ended[key] < began[narinfo_key(path)] for key in needed), step
        bucket.age(3, *began)


# Signatures.


def test_a_new_key_signs_what_the_old_one_signed(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    new = SecretKey.generate("cache.test-2")
    keys = [bucket.key.to_nix(), new.to_nix()]
    nars = {k: o.last_modified for k, o in bucket.objects().items() if k.startswith("nar/")}
    signed = bucket.push(builder, closure, signing_key=keys)
    assert signed.counts()["reused"] == PATHS
    assert f"sign: added cache.test-2 to {PATHS} paths" in signed.log
    trusted = {key.name: key for key in (bucket.public_key, new.public_key)}
    for path in closure_of(builder, closure):
        assert set(verified_by(narinfo(bucket, path), trusted)) == set(trusted)
    assert {k: bucket.objects()[k].last_modified for k in nars} == nars
    assert bucket.pull(builder, closure, keys=[new.public_key]) == PATHS
    assert "sign:" not in bucket.push(builder, closure, signing_key=keys).log


def test_content_that_this_builder_does_not_have_never_gets_its_signature(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    text = bucket.get(narinfo_key(closure)).decode()
    unsigned = re.sub(r"(?m)^Sig: .*\n", "", text)
    forged = re.sub(r"(?m)^NarHash: .*$", f"NarHash: sha256:{'1' * 52}", unsigned)
    bucket.put(narinfo_key(closure), forged.encode())
    counts = bucket.push(builder, closure).counts()
    assert (counts["pushed"], counts["repaired"]) == (1, 1)
    assert narinfo(bucket, closure).nar_hash == NarInfo.parse(text).nar_hash
    assert verify(bucket).problems == []


@pytest.mark.parametrize("there", [None, b"text"])
@pytest.mark.parametrize("seen", [None, b"text", b"other"])
def test_minio_and_its_stand_in_write_under_the_same_conditions(
    bucket: CacheBucket, there: bytes | None, seen: bytes | None
) -> None:
    key = f"{'0' * 32}.narinfo"
    condition = (EMPTY if seen is None else Place(hashlib.md5(seen).hexdigest())).condition
    request = Asked("publish", "PUT", key, headers=condition, body=b"new")
    told = []
    with serving(StandIn()) as stand_in:
        if there is not None:
            bucket.put(key, there)
            stand_in.put(key, there)
        minio = Client(
            bucket.server.endpoint,
            bucket=bucket.name,
            access_key_id=bucket.user,
            secret_access_key=bucket.secret,
            ca_certificate_file=str(bucket.server.ca_file),
        )
        for client in (minio, Client(stand_in.url)):
            answer = client.exchange(request)
            told.append((answer.status, answer.etag, parse_error(answer.body).code))
            client.close()
        kept = stand_in.objects[key].content if key in stand_in.objects else None
    assert told[0] == told[1]
    assert told[0][0] == (200 if there == seen else 412 if there else 404)
    assert (bucket.get(key) if key in bucket.objects() else None) == kept


# Large NARs, small disks.


def test_a_large_nar_goes_up_in_parts_and_is_renewed_in_parts(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    path = builder.make_closure(1, 50_000_000, seed=8, name="large")
    part = 5 * 1024 * 1024
    with fault_proxy(bucket.server) as proxy:
        bucket.push(builder, path, part_size=part, endpoint=proxy.url).succeeded()
    size = narinfo(bucket, path).file_size
    assert size is not None
    parts = [r for r in proxy.requests if r.method == "PUT" and "partNumber" in r.key]
    assert len(parts) == -(-size // part) > 3
    assert verify(bucket).problems == []
    assert bucket.pull(builder, path) == 1

    url = narinfo(bucket, path).url
    bucket.age(2, url)

    def too_large(request: Request) -> int:
        return 400 if request.copies and "partNumber" not in request.key else PASS

    with fault_proxy(bucket.server, too_large) as proxy:
        again = bucket.push(builder, path, part_size=part, renew="yes", endpoint=proxy.url)
    assert again.counts()["renewed"] == 1
    modified = bucket.objects()[url].last_modified
    assert modified is not None
    assert modified.date() == utcnow().date()
    assert bucket.pull(builder, path) == 1


def test_an_upload_in_parts_that_fails_is_taken_back(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    path = builder.make_closure(1, 50_000_000, seed=8, name="large")

    def refuse_third(request: Request) -> int:
        return 403 if "partNumber=3&" in request.key else PASS

    with fault_proxy(bucket.server, refuse_third) as proxy:
        part = 5 * 1024 * 1024
        refused = bucket.push(builder, path, part_size=part, endpoint=proxy.url).refused()
    assert refused.startswith("push: upload: PUT pushed/nar/")
    assert any(r.method == "DELETE" and "uploadId" in r.key for r in proxy.requests)
    assert bucket.objects().keys() == {"nix-cache-info"}


def test_what_is_staged_stays_within_the_limit(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    path = builder.make_closure(60, 40_000_000, seed=9, name="wide")
    largest = max(
        map(int, builder.run(f"nix-store -q --size $(nix-store -qR {path})").stdout.split())
    )
    limit = 12_000_000
    assert 2 * largest < limit
    with small_disk(builder, limit + 1_000_000) as disk:
        pushed = bucket.push(
            builder, path, environment=f"TMPDIR={disk}", staging_limit=limit, compression="none"
        )
        assert pushed.counts()["pushed"] == 60
        assert builder.run(f"ls {disk}").stdout == ""
    assert verify(bucket).problems == []


def test_a_path_that_exceeds_the_limit_is_staged_alone(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    path = builder.make_closure(6, 30_000_000, seed=10, name="heavy")
    assert bucket.push(builder, path, staging_limit=1000).counts()["pushed"] == 6
    assert verify(bucket).problems == []


# Many objects.


def test_a_full_bucket_is_listed_by_pages_and_a_fuller_one_is_not_listed(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    gone = narinfo(bucket, closure).url
    fill(bucket, 1400)
    bucket.remove(gone)
    with fault_proxy(bucket.server) as proxy:
        counts = bucket.push(builder, closure, endpoint=proxy.url).counts()
    assert (counts["repaired"], counts["reused"]) == (1, PATHS - 1)
    listings = [r for r in proxy.requests if "list-type" in r.key]
    # One page of narinfos, and two of NARs.
    assert len(listings) == 3
    bucket.remove(gone)
    fill(bucket, 3500)
    with fault_proxy(bucket.server) as proxy:
        counts = bucket.push(builder, closure, endpoint=proxy.url).counts()
    assert (counts["repaired"], counts["reused"]) == (1, PATHS - 1)
    assert len([r for r in proxy.requests if "list-type" in r.key]) == 2
    assert PATHS / 2 < len([r for r in proxy.requests if r.method == "HEAD"]) <= PATHS


def fill(bucket: CacheBucket, count: int) -> None:
    """Put that many NARs that nothing refers to into the bucket."""

    def put(number: int) -> None:
        name = nix32_encode(hashlib.sha256(b"%d" % number).digest())
        bucket.put(f"nar/{name}.nar.zst", b"x")

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(put, range(count)))


# Secrets.


def test_secrets_are_in_no_command_line_environment_or_readable_file(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    secrets = [bucket.secret, bucket.key.to_nix().partition(":")[2]]
    looks = 0
    seen: list[str] = []
    places: set[str] = set()
    modes: set[int] = set()
    root = builder.root

    def look(_: Request) -> int:
        nonlocal looks
        looks += 1
        for process in (root / "proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    text = (process / name).read_bytes().decode(errors="replace")
                except OSError:
                    continue
                seen.extend(f"{name}: {text}" for secret in secrets if secret in text)
        for base in ("run", "dev/shm", "var/tmp", "tmp"):
            for directory in (root / base).glob("nixcache-push*"):
                modes.add(directory.stat().st_mode & 0o777)
                if (directory / "signing-key").exists():
                    places.add(base)
        return PASS

    watch: Fault = look
    with fault_proxy(bucket.server, watch) as proxy:
        pushed = bucket.push(builder, closure, endpoint=proxy.url)
    pushed.succeeded()
    assert looks > 2 * PATHS
    assert seen == []
    assert modes == {0o700}
    assert places == {"run"}
    assert not [secret for secret in secrets if secret in pushed.log + pushed.output]
    assert leftovers(builder) == []


@pytest.mark.parametrize(
    "harm", ["printf x | dd of=$file bs=1 seek=3 conv=notrunc", ": >$file", "rm $file", "touch new"]
)
def test_a_path_that_was_damaged_on_the_builder_is_not_pushed(
    builder: ThrowawayBuilder, bucket: CacheBucket, harm: str
) -> None:
    top = builder.make_closure(3, 30_000, seed=len(harm), name="damaged")
    builder.run(
        f"cp -a {top} /tmp/sound && cd {top} && chmod -R u+w . && "
        f"file=$(find . -type f | head -n 1) && {harm}"
    )
    refused = bucket.push(builder, top).refused()
    assert f"path '{top}' was modified!" in refused
    assert refused.endswith("; see that the store is sound, and push again")
    assert verify(bucket).problems == []
    builder.run(f"rm -rf {top} && mv /tmp/sound {top} && nix-store --verify-path {top}")
    assert bucket.push(builder, top).counts()["pushed"] == 1
    assert bucket.pull(builder, top) == 3
