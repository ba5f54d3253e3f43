"""Pushes among adversaries, on the oldest Nix: of the bucket, of the server, of the builder itself.

Each of these went wrong with the push that was a shell script.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import pytest

from formats.narinfo import NarInfo
from formats.nix32 import nix32_encode
from formats.signing import SecretKey, verified_by
from tests.promises import attack
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, Pushed, leftovers, place, small_disk, trust
from tests.system.fault_proxy import PASS, RESET_AFTER, Request, fault_proxy, until_asked_again
from tests.unit.push.s3_stand_in import Raw, Reply, Script, Seen, StandIn, error, serving
from toolbox import throwaway_builder
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 10
BYTES = 300_000
NIX = "nix --extra-experimental-features nix-command"
HASTY = "import push.transfers; push.transfers._LONGEST_PAUSE = 0.0"
"""The pauses between attempts are not what is tested."""


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayBuilder]:
    """A running builder with Nix 2.8, the oldest that the push has to do with."""
    reason = throwaway_builder.available()
    if reason is not None:
        pytest.skip(f"no builder with a real Nix: {reason}")
    with ThrowawayBuilder(tmp_path_factory.mktemp("bookworm"), suite="bookworm") as machine:
        yield machine


@pytest.fixture(scope="module")
def closure(builder: ThrowawayBuilder) -> str:
    """The top of a closure of PATHS paths."""
    return builder.make_closure(PATHS, BYTES, seed=90, name="hostile")


def key_of(path: str) -> str:
    return f"{path.removeprefix('/nix/store/')[:32]}.narinfo"


def narinfo(bucket: CacheBucket, path: str) -> NarInfo:
    return NarInfo.parse(bucket.get(key_of(path)).decode())


def requisites(builder: ThrowawayBuilder, path: str) -> list[str]:
    """Return a closure, references first."""
    return builder.run(f"nix-store --query --requisites {path}").stdout.split()


def forget(builder: ThrowawayBuilder) -> None:
    """Remove what the builder remembers of buckets."""
    builder.run("rm -rf /root/.cache/nix-binary-cache")


def build(builder: ThrowawayBuilder, name: str, script: str, **inputs: str) -> str:
    """Build a path with a shell script, whose inputs are store paths, and return it."""
    given = "".join(f'{key} = builtins.storePath "{path}"; ' for key, path in inputs.items())
    expression = (
        f'derivation {{ name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; '
        f"args = [ \"-c\" ''export PATH=/usr/bin:/bin; {script}'' ]; {given}}}"
    )
    command = f"nix-build --out-link '/nix/var/nix/gcroots/{name}' -"
    return builder.run(command, input=expression).stdout.strip()


# Whoever can write to the bucket.


@dataclass(frozen=True)
class Evil:
    """Content that somebody wants clients to install in place of another."""

    nar: bytes
    nar_hash: str

    @classmethod
    def make(cls, builder: ThrowawayBuilder) -> Evil:
        path = build(builder, "evil", "echo evil >$out")
        builder.run(f"nix-store --dump {path} >/tmp/evil.nar")
        nar = (builder.root / "tmp" / "evil.nar").read_bytes()
        return cls(nar, f"sha256:{nix32_encode(hashlib.sha256(nar).digest())}")


@pytest.mark.parametrize("blank", [" ", "_"])
def test_nothing_that_a_writer_of_the_bucket_says_is_ever_signed(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, blank: str
) -> None:
    """Nix takes the last of several fields, and skips whatever stands after the colon."""
    bucket.push(builder, closure).succeeded()
    evil = Evil.make(builder)
    honest = bucket.get(key_of(closure)).decode()
    more = {
        "NarHash": evil.nar_hash,
        "NarSize": len(evil.nar),
        "FileHash": evil.nar_hash,
        "FileSize": len(evil.nar),
        "URL": "nar/evil.nar",
        "Compression": "none",
    }
    crafted = re.sub(r"(?m)^Sig: .*\n", "", honest)
    crafted += "".join(f"{name}:{blank}{value}\n" for name, value in more.items())
    bucket.put("nar/evil.nar", evil.nar)
    bucket.put(key_of(closure), crafted.encode())
    # This Nix reads the evil content, so a signature over it would be believed.
    builder.run("mkdir -p /tmp/crafted && cd /tmp/crafted && rm -rf * && cat >nix-cache-info",
                input="StoreDir: /nix/store\n")  # fmt: skip
    builder.run(f"cat >/tmp/crafted/{key_of(closure)}", input=crafted)
    read = builder.run(f"{NIX} path-info --json --store file:///tmp/crafted {closure}").stdout
    assert f'"narSize":{len(evil.nar)}' in read
    counts = bucket.push(builder, closure).counts()
    assert (counts["pushed"], counts["repaired"]) == (1, 1)
    assert bucket.get(key_of(closure)).decode() == honest
    assert bucket.pull(builder, closure) == PATHS
    attack(f"a writer adds fields to a narinfo, with {blank!r} behind the colon", "put right")


def test_swapped_and_replayed_narinfos_are_put_right(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    paths = requisites(builder, closure)
    honest = {path: bucket.get(key_of(path)) for path in paths}
    spoiled = {
        # Another path's, whole and signed.
        paths[0]: honest[paths[1]],
        # Its own, but with the NAR of another.
        paths[1]: re.sub(
            rb"(?m)^(URL|File\w+): .*$",
            lambda line: next(
                one for one in honest[paths[2]].splitlines() if one.startswith(line[1] + b":")
            ),
            honest[paths[1]],
        ),
        # Out of the bucket, and out of the folder.
        paths[2]: re.sub(rb"(?m)^URL: nar/", b"URL: https://evil.example/nar/", honest[paths[2]]),
        paths[3]: re.sub(rb"(?m)^URL: nar/", b"URL: nar/../nar/", honest[paths[3]]),
        # What keeps clients from reading it, beside the signature that they want.
        paths[4]: honest[paths[4]] + b"Sig: cache.test-1:!!!\n",
        paths[5]: honest[paths[5]] + b"Deriver: \n",
        # Somebody else's key under our name, before ours.
        paths[6]: honest[paths[6]].replace(
            b"Sig: ",
            b"Sig: "
            + SecretKey.generate("cache.test-1")
            .sign(NarInfo.parse(honest[paths[6]].decode()).fingerprint)
            .encode()
            + b"\nSig: ",
        ),
    }
    for path, content in spoiled.items():
        bucket.put(key_of(path), content)
    bucket.push(builder, closure).succeeded()
    for path in set(paths) - {paths[1]}:
        assert bucket.get(key_of(path)) == honest[path], path
    for number in range(len(spoiled)):
        attack(f"a writer spoils narinfos, way {number + 1}", "put right, or found by the audit")
    # A NAR of the right size in the wrong place takes an audit to find, and clients refuse it.
    bucket.put(key_of(paths[1]), honest[paths[1]])
    assert verify(bucket).problems == []
    assert bucket.pull(builder, closure) == PATHS


def test_two_narinfos_that_refer_to_each_other_are_replaced(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    """Even ours: a builder may once have been made to sign such."""
    bucket.push(builder, closure).succeeded()
    one, other = requisites(builder, closure)[:2]
    for path, reference in ((one, other), (other, one)):
        text = bucket.get(key_of(path)).decode()
        text = re.sub(r"(?m)^References:.*$", f"References: {reference[11:]}", text)
        text = re.sub(r"(?m)^Sig: .*\n", "", text)
        signature = bucket.key.sign(NarInfo.parse(text).fingerprint)
        bucket.put(key_of(path), f"{text}Sig: {signature}\n".encode())
    assert 1 <= bucket.push(builder, closure).counts()["repaired"] <= 2
    assert verify(bucket).problems == []
    assert bucket.pull(builder, closure) == PATHS
    attack("narinfos refer to each other, well signed", "put right")


def test_a_nar_that_was_damaged_today_is_replaced(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure).succeeded()
    nar = narinfo(bucket, closure).url
    content = bucket.get(nar)
    bucket.put(nar, bytes(len(content)))
    bucket.remove(key_of(closure))
    assert bucket.push(builder, closure).counts()["pushed"] == 1
    assert bucket.get(nar) == content
    assert bucket.pull(builder, closure) == PATHS
    attack("a writer damages a NAR, and takes its narinfo away", "put right")


def test_another_key_of_the_same_name_makes_every_signature_anew(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    """As after a lost state, or a migration that did not adopt the key."""
    bucket.push(builder, closure).succeeded()
    new = SecretKey.generate(bucket.key.name)
    pushed = bucket.push(builder, closure, signing_key=new.to_nix())
    assert pushed.counts()["reused"] == PATHS
    assert f"sign: added {new.name} to {PATHS} paths" in pushed.log
    for path in requisites(builder, closure):
        assert verified_by(narinfo(bucket, path), {new.name: new.public_key}) == (new.name,)
    assert bucket.pull(builder, closure, keys=[new.public_key]) == PATHS


def test_a_key_whose_halves_do_not_belong_together_signs_nothing(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    halves = SecretKey.generate("x-1").seed + bucket.public_key.data
    key = f"{bucket.key.name}:{b64encode(halves).decode()}"
    for _ in range(2):
        refused = bucket.push(builder, closure, signing_key=key).refused()
        assert refused == (
            "push: sign: the two halves of the signing key do not belong together; set it to what "
            "nix key generate-secret wrote"
        )
        assert verify(bucket).problems == []
        # What is signed well already stays so.
        bucket.push(builder, closure).succeeded()
        forget(builder)


# Other users of the builder.


def test_a_path_that_a_users_own_key_signed_under_an_upstreams_name_is_stored(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    """Also one whose content address Nix believes without looking at its signatures."""
    forged = SecretKey.generate("cache.nixos.org-1")
    real = SecretKey.generate("cache.nixos.org-1")
    path = build(builder, "forged", "echo forged >$out")
    addressed = builder.run("echo addressed >/tmp/addressed && nix-store --add /tmp/addressed")
    genuine = build(builder, "genuine", "echo genuine >$out")
    paths = [path, addressed.stdout.strip()]
    builder.run("cat >/tmp/forged", input=forged.to_nix())
    builder.run("cat >/tmp/real", input=real.to_nix())
    builder.run(f"{NIX} store sign --key-file /tmp/forged {' '.join(paths)}")
    builder.run(f"{NIX} store sign --key-file /tmp/real {genuine}")
    counts = bucket.push(builder, *paths, genuine, upstream_key=str(real.public_key)).counts()
    assert (counts["pushed"], counts["skipped"]) == (2, 1)
    assert all(key_of(one) in bucket.objects() for one in paths)
    assert verify(bucket).problems == []
    attack("a user signs in the name of an upstream cache", "stored and signed as everything is")


def test_what_a_user_added_in_place_of_a_signature_is_published_by_nobody(
    builder: ThrowawayBuilder, second_builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    """Nix 2.8 takes any text, and newer ones cannot read a narinfo that has it."""
    path = build(builder, "unsigned", "echo unsigned >$out")
    builder.run(
        f"rm -rf /tmp/signed && {NIX} copy --to file:///tmp/signed {path} && "
        f"echo 'Sig: cache.test-1:!!!' >>/tmp/signed/{key_of(path)} && "
        f"{NIX} store copy-sigs --substituter file:///tmp/signed {path}"
    )
    assert "!!!" in builder.run(f"{NIX} path-info --json {path}").stdout
    bucket.push(builder, path).succeeded()
    assert b"!!!" not in bucket.get(key_of(path))
    assert bucket.pull(second_builder, path) == 1
    attack("a user adds what is no signature", "not published")


def test_of_what_users_have_signed_no_more_is_published_than_is_read_again(
    builder: ThrowawayBuilder, second_builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    path = build(builder, "signed-by-many", "echo signed by many >$out")
    builder.run(
        f"for n in $(seq 90); do {NIX} key generate-secret --key-name other.example.org-$n >/tmp/k "
        f"&& {NIX} store sign --key-file /tmp/k {path}; done"
    )
    assert bucket.push(builder, path).counts()["pushed"] == 1
    forget(builder)
    assert bucket.push(builder, path).counts()["reused"] == 1
    assert bucket.pull(second_builder, path) == 1
    attack("a user signs with ninety keys", "some are published, and the cache's")


# Odd paths.


def test_a_path_that_is_itself_a_link_is_pushed_itself(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    links = {
        "to-a-path": build(builder, "to-a-path", "ln -s $target $out", target=closure),
        "dangling": build(builder, "dangling", "ln -s /nowhere $out"),
        "outside": build(builder, "outside", "ln -s /root/.profile $out"),
    }
    builder.run(f"ln -sfn {links['outside']} /tmp/to-outside")
    given = [links["to-a-path"], links["dangling"], "/tmp/to-outside"]
    assert bucket.push(builder, *given).counts()["pushed"] == PATHS + 3
    assert verify(bucket).problems == []
    for path in links.values():
        assert narinfo(bucket, path).store_path == path
    assert bucket.pull(builder, links["to-a-path"]) == PATHS + 1
    assert bucket.pull(builder, links["dangling"]) == 1
    assert bucket.pull(builder, links["outside"]) == 1


def test_a_derivation_is_pushed_as_a_path_and_never_built(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    """In a closure, and as what is to be pushed; Nix 2.8 would build it."""
    expression = """
        let d = derivation {
          name = "unbuilt"; system = builtins.currentSystem; builder = "/bin/sh";
          args = [ "-c" "echo built >$out" ];
        }; in
        { inherit d; refers = builtins.toFile "refers"
            (builtins.unsafeDiscardOutputDependency d.drvPath); }
    """
    evaluate = "nix-instantiate --eval --read-write-mode --json - -A"
    top = builder.run(f"{evaluate} refers", input=expression).stdout.strip().strip('"')
    drv = builder.run("nix-instantiate - -A d", input=expression).stdout.strip()
    output = builder.run(f"nix-store --query --outputs {drv}").stdout.strip()
    assert drv in requisites(builder, top)
    assert bucket.push(builder, top).counts()["pushed"] == 2
    assert bucket.push(builder, drv).counts()["reused"] == 1
    assert verify(bucket).problems == []
    assert not (builder.root / output[1:]).exists()
    assert b"Derive" in bucket.get(narinfo(bucket, drv).url) or narinfo(bucket, drv).nar_size > 0
    assert bucket.pull(builder, top) == 2


def test_names_may_have_every_character_that_nix_allows(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    path = build(builder, "A-z0.9+_?=", "echo odd >$out")
    assert bucket.push(builder, path).counts()["pushed"] == 1
    assert bucket.pull(builder, path) == 1


# One bad path.


def test_a_dead_pin_keeps_nothing_else_back(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    other = builder.make_closure(3, 3000, seed=91, name="beside")
    bucket.push(builder, closure, renew="yes").succeeded()
    bucket.age(2, *bucket.objects())
    builder.run("ln -sfn /nowhere /tmp/dead-pin")
    dead = f"/nix/store/{'0' * 32}-gone"
    pushed = bucket.push(builder, "/tmp/dead-pin", closure, dead, other, renew="yes")
    assert pushed.refused().endswith(
        f"path '{dead}' is not valid; build it, or copy it to this machine, and push again"
    )
    assert "push: list: '/tmp/dead-pin' is neither a store path nor a link to one" in pushed.log
    assert re.search(r"so far: pushed 3 paths \(.*\), reused 10, .* renewed 10, ", pushed.log)
    verdict = verify(bucket, leases=True)
    assert (verdict.narinfos, verdict.problems) == (PATHS + 3, [])
    assert bucket.pull(builder, other) == 3


def test_a_path_too_large_for_the_disk_keeps_nothing_else_back(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    large = build(builder, "large", "head -c 9000000 /dev/urandom >$out")
    top = build(builder, "above-large", "echo $large >$out", large=large)
    with small_disk(builder, 6_000_000) as disk:
        pushed = bucket.push(
            builder, top, closure, environment=f"TMPDIR={disk}", staging_limit=2_000_000
        )
        assert builder.run(f"ls {disk}").stdout == ""
    assert pushed.refused().endswith(f"free space in {disk}, or set TMPDIR to a larger disk")
    assert f"push: not pushed: {large}" in pushed.log
    assert "push: not published: 1 paths that refer to them" in pushed.log
    verdict = verify(bucket)
    assert (verdict.narinfos, verdict.problems) == (PATHS, [])
    assert bucket.pull(builder, closure) == PATHS


def test_a_nar_that_a_proxy_takes_for_too_large_keeps_nothing_else_back(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    paths = requisites(builder, closure)
    bucket.push(builder, closure).succeeded()
    victim = narinfo(bucket, paths[0]).url
    bucket.empty()
    dependents = builder.run(f"nix-store --query --referrers-closure {paths[0]}").stdout.split()

    def too_large(request: Request) -> int:
        return 413 if request.key == victim else PASS

    with fault_proxy(bucket.server, too_large) as proxy:
        pushed = bucket.push(builder, closure, endpoint=proxy.url)
    assert re.search(rf"PUT pushed/{victim}: HTTP 413; the server, or a proxy", pushed.refused())
    assert f"push: not pushed: {paths[0]}" in pushed.log
    found = verify(bucket)
    assert found.problems == []
    assert found.narinfos == PATHS - len(set(dependents) & set(paths))


def test_a_copy_that_a_proxy_cuts_off_each_time_is_sent_anew(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.push(builder, closure, renew="yes").succeeded()
    victim = narinfo(bucket, closure).url
    bucket.age(2, *bucket.objects())

    def cut(request: Request) -> int:
        return RESET_AFTER if request.copies and request.key == victim else PASS

    with fault_proxy(bucket.server, cut) as proxy:
        pushed = bucket.push(builder, closure, renew="yes", endpoint=proxy.url, changed=HASTY)
    counts = pushed.counts()
    assert (counts["pushed"], counts["renewed"]) == (1, PATHS - 1)
    assert verify(bucket, leases=True).problems == []


# The builder's directories.


@pytest.mark.parametrize("name", ["a b", "100%", "a%20b", "?&#"])
def test_a_directory_of_any_name_will_do(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, name: str
) -> None:
    directory = f"/tmp/{name}"
    builder.run(f"mkdir -p '{directory}'")
    environment = f"TMPDIR='{directory}' XDG_RUNTIME_DIR='{directory}'"
    pushed = bucket.push(builder, closure, environment=environment)
    assert pushed.counts()["pushed"] == PATHS
    assert builder.run(f"ls '{directory}'").stdout == ""
    assert leftovers(builder) == []
    assert verify(bucket).problems == []


def test_a_memory_without_space_is_named(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with small_disk(builder, 4096) as memory:
        builder.run(f"head -c 4096 /dev/zero >{memory}/full || true")
        pushed = bucket.push(builder, closure, environment=f"XDG_RUNTIME_DIR={memory}")
        assert pushed.refused().startswith(f"push: prepare: {memory}")
        assert pushed.refused().endswith(
            "takes no files (No space left on device); free space there"
        )
        assert builder.run(f"ls {memory}").stdout == "full\n"
    with small_disk(builder, 65536) as memory:
        pushed = bucket.push(builder, closure, environment=f"XDG_RUNTIME_DIR={memory}")
        assert pushed.counts()["pushed"] == PATHS
        assert bucket.push(builder, closure, environment=f"XDG_RUNTIME_DIR={memory}").counts()


# The server.


@pytest.mark.parametrize("size", ["a[$(touch /tmp/owned)]", "-1", "9" * 40, "", "1e9"])
def test_a_size_in_a_listing_is_a_number_or_nothing(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, size: str
) -> None:
    bucket.push(builder, closure).succeeded()

    def lie(request: Request, body: bytes) -> bytes:
        if "list-type" not in request.key:
            return body
        return re.sub(rb"<Size>\d+</Size>", f"<Size>{size}</Size>".encode(), body)

    with fault_proxy(bucket.server, change=lie) as proxy:
        counts = bucket.push(builder, closure, endpoint=proxy.url).counts()
    assert counts["pushed"] == PATHS
    assert not (builder.root / "tmp" / "owned").exists()
    assert verify(bucket).problems == []
    attack(f"a server lists the size {size[:20]!r}", "pushed again, nothing run")


def test_a_host_may_have_underscores(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    """Not MinIO's own, which refuses such a name, but a proxy's before it."""
    builder.run("grep -q my_minio /etc/hosts || echo 127.0.0.1 my_minio.home_lab >>/etc/hosts")
    with serving(StandIn()) as server:
        server.now = datetime.now(timezone.utc)
        endpoint = server.url.replace("127.0.0.1", "my_minio.home_lab")
        bucket.push(builder, closure, endpoint=endpoint, bucket="cache").succeeded()
        hosts = {seen.headers["host"] for seen in server.seen}
    assert hosts == {f"my_minio.home_lab:{server.port}"}


def test_a_fraction_of_a_second_may_be_asked_for(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with fault_proxy(bucket.server, until_asked_again(503), retry_after=1.5) as proxy:
        pushed = bucket.push(builder, closure, endpoint=proxy.url)
    assert pushed.counts()["pushed"] == PATHS
    assert "the server answers HTTP 503, trying again in 2 s" in pushed.log


def always(reply: Reply | Raw) -> Script:
    return lambda _: reply


def endless(head: bytes) -> Script:
    return lambda _: Raw(itertools.chain([head], itertools.repeat(bytes(1 << 16))))


def never_ending_pages(seen: Seen) -> Reply | None:
    if "list-type" not in seen.query:
        return None
    after = seen.query.get("start-after", "") or f"{seen.query.get('prefix', '')}0"
    entries = "".join(
        f"<Contents><Key>{after}0{number}</Key><LastModified>2026-11-26T12:00:00.000Z</LastModified>"
        "<ETag>x</ETag><Size>1</Size></Contents>"
        for number in range(2)
    )
    return Reply(
        200,
        {},
        f"<ListBucketResult><IsTruncated>true</IsTruncated>{entries}</ListBucketResult>".encode(),
    )


@pytest.mark.parametrize(
    ("script", "last_line"),
    [
        (always(Reply(200)), r"push: list: the server's listing cannot be read: an answer is no"),
        (always(Reply(302, {"Location": "/x"})), r"push: list: GET .*: HTTP 302; see that an S3"),
        (always(Raw([b""])), r"push: list: .*; see that the server runs and that endpoint"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n"), r"push: list: the server's listing cannot be read"),
        (
            endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"),
            r"push: list: the server's answer does not end; see that the server runs",
        ),
        (endless(b"HTTP/1.1 200 OK\r\nX: "), r"push: list: .*; see that the server runs"),
        (always(error(403, "AccessDenied")), r"push: list: GET .*AccessDenied; give user"),
        (
            always(Reply(200, {}, b'<!DOCTYPE a [<!ENTITY b "c">]><ListBucketResult/>')),
            r"push: list: the server's listing cannot be read: an answer declares a document type",
        ),
    ],
    ids=["yes", "redirects", "hangs up", "endless", "endless chunk", "endless header", "no", "xml"],
)
def test_a_server_that_is_none_ends_a_push_soon_and_in_one_sentence(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, script: Script, last_line: str
) -> None:
    trust(builder, bucket.server)
    with serving(StandIn()) as server:
        server.now = datetime.now(timezone.utc)
        server.script = script
        began = time.monotonic()
        pushed = bucket.push(builder, closure, endpoint=server.url, changed=HASTY)
    assert re.match(last_line, pushed.refused())
    assert len(pushed.log.splitlines()) == 1
    assert time.monotonic() - began < 60
    assert leftovers(builder) == []
    attack(f"a server is none: {last_line}", "the push ends in one sentence")


def test_listings_without_end_a_date_of_another_age_and_false_etags_cost_only_work(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with serving(StandIn()) as server:
        server.now = datetime.now(timezone.utc)
        server.script = never_ending_pages
        bucket.push(builder, closure, endpoint=server.url, bucket="cache").succeeded()
        signed = {key: one.content for key, one in server.objects.items() if "narinfo" in key}
        assert len(signed) == PATHS
        server.script = lambda seen: (
            Reply(200, {"ETag": '"x"', "Date": "Fri, 31 Dec 9999 23:59:59 GMT"})
            if seen.method == "PUT" and "x-amz-copy-source" not in seen.headers
            else None
        )
        forget(builder)
        again = bucket.push(builder, closure, endpoint=server.url, bucket="cache", renew="yes")
        assert again.code == 0, again.log
        assert {k: one.content for k, one in server.objects.items() if "narinfo" in k} == signed
    for key, content in signed.items():
        read = NarInfo.parse(content.decode())
        assert verified_by(read, {bucket.key.name: bucket.public_key}), key
        honest = builder.run(f"nix-store --query --hash {read.store_path}").stdout.strip()
        assert read.nar_hash == honest


# Standard input, and the queue.


def run(builder: ThrowawayBuilder, bucket: CacheBucket, options: str, lines: str) -> Pushed:
    """Run the push with a file of settings."""
    trust(builder, bucket.server)
    (builder.root / "run" / "settings").write_text(bucket.settings())
    command = " ".join([*place(builder), "--config /run/settings", options])
    ran = builder.run(command, input=lines, check=False)
    return Pushed(ran.returncode, ran.stdout, ran.stderr)


def test_each_line_is_acknowledged_once_its_closure_is_in_the_bucket(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    gone = f"/nix/store/{'0' * 32}-gone"
    builder.run(f"ln -sfn {closure} /tmp/top && ln -sfn /nowhere /tmp/dead-pin")
    lines = ["/tmp/top", gone, requisites(builder, closure)[0], "/tmp/dead-pin", "/etc/hostname"]
    ran = run(builder, bucket, "--stdin", "".join(f"{line}\n" for line in lines))
    assert ran.code == 1
    assert ran.output.splitlines() == [lines[0], lines[2]]
    assert f"path '{gone}' is not valid" in ran.log
    assert bucket.pull(builder, closure) == PATHS


def test_a_queue_loses_just_what_is_in_the_bucket(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    large = build(builder, "large", "head -c 9000000 /dev/urandom >$out")
    entries = {
        "top": closure,
        "dangling": build(builder, "dangling", "ln -s /nowhere $out"),
        "outside": build(builder, "outside", "ln -s /root/.profile $out"),
        "gone": f"/nix/store/{'0' * 32}-gone",
        "large": large,
        "nowhere": "/nowhere",
    }
    links = " && ".join(f"ln -s {target} {name}" for name, target in entries.items())
    builder.run(f"rm -rf /tmp/queue && mkdir /tmp/queue && cd /tmp/queue && {links}")
    with small_disk(builder, 6_000_000) as disk:
        trust(builder, bucket.server)
        command = " ".join([*place(builder), "--config /run/settings --queue /tmp/queue"])
        (builder.root / "run" / "settings").write_text(bucket.settings(staging_limit=2_000_000))
        ran = builder.run(f"TMPDIR={disk} {command}", check=False)
    assert ran.returncode == 1
    assert set(builder.run("ls /tmp/queue").stdout.split()) == {"gone", "large", "nowhere"}
    assert f"push: not pushed: {large}" in ran.stderr
    assert verify(bucket).narinfos == PATHS + 2
    builder.run("rm /tmp/queue/gone /tmp/queue/nowhere")
    assert run(builder, bucket, "--queue /tmp/queue", "").counts()["pushed"] == 1
    assert builder.run("ls /tmp/queue").stdout == ""
    assert run(builder, bucket, "--queue /tmp/queue", "") == Pushed(0, "", "")


# Large.


def test_a_nar_over_two_gibibytes_is_pushed_whole(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    """Numbers over 2^31 once ended in a push of nothing that said it was done."""
    path = build(builder, "sparse", "truncate -s 2300000000 $out")
    pushed = bucket.push(builder, path).succeeded()
    assert (pushed["pushed"], pushed["pushed_size"]) == ("1", "2.3 GB")
    entry = narinfo(bucket, path)
    assert entry.nar_size > 2_300_000_000
    assert bucket.objects()[entry.url].size == entry.file_size
    assert verify(bucket).problems == []


def test_a_nar_over_five_gibibytes_is_pushed_and_renewed_in_parts(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    """No server copies more than 5 GiB at once, nor takes more in one request."""
    size = 5_500_000_000
    if (free := shutil.disk_usage(builder.root / "var" / "tmp").free) < 5 * size:
        pytest.skip(f"a NAR over 5 GiB, copied on its server, needs 27 GB of disk: {free} are free")
    path = build(builder, "sparse-too", f"truncate -s {size} $out")
    began = time.monotonic()
    pushed = bucket.push(builder, path, compression="none").succeeded()
    assert (pushed["pushed"], pushed["pushed_size"]) == ("1", "5.5 GB")
    took = time.monotonic() - began
    entry = narinfo(bucket, path)
    there = bucket.objects()[entry.url]
    assert there.size == entry.file_size == entry.nar_size > size
    # It was written today, and no clock that a push believes makes it older.
    due = (
        "from push.publishing import Publication\n"
        "Publication.nar_is_due = Publication.narinfo_is_due = lambda *_: True\n"
    )
    with fault_proxy(bucket.server) as proxy:
        again = bucket.push(builder, path, renew="yes", endpoint=proxy.url, changed=due).counts()
    assert (again["reused"], again["renewed"], again["pushed"]) == (1, 1, 0)
    parts = [one for one in proxy.requests if one.copies and "partNumber" in one.key]
    assert len(parts) >= -(-size // 67_108_864)
    renewed = bucket.objects()[entry.url]
    assert renewed.size == there.size
    assert renewed.last_modified is not None
    assert there.last_modified is not None
    assert renewed.last_modified > there.last_modified
    print(f"a NAR of 5.5 GB was pushed in {took:.1f} s")
    bucket.empty()
