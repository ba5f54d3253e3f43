"""Build logs and listings of NARs on real parts: what `nix log` and `nix store ls` show clients."""

from __future__ import annotations

import json
import re
from datetime import timezone

import pytest
from minio.time import utcnow

from components.retention import is_cache_file
from formats.narinfo import NarInfo, listing_of, narinfo_of
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, trust
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.fault_proxy import fault_proxy
from tests.system.inventory import Inventory
from tests.system.stack import Stack
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

NIX = "nix --extra-experimental-features nix-command"
BOTH = {"logs": "yes", "listings": "yes"}
EXPRESSION = r"""
let
  make = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
  };
  library = make "library" "echo the library was built >&2; mkdir $out; echo 1 > $out/lib.so";
in make "program" ''
  echo 'the program was built' >&2
  mkdir -p $out/bin $out/empty
  echo ${library} > $out/bin/program
  chmod +x $out/bin/program
  ln -s bin/program $out/link
  printf 12345678 > "$out/ü"
''
"""


@pytest.fixture(scope="module")
def path(builder: ThrowawayBuilder) -> str:
    """A path that was built, and refers to another that was."""
    link = "/nix/var/nix/gcroots/program"
    return builder.run(f"nix-build --out-link {link} -", input=EXPRESSION).stdout.strip()


@pytest.fixture
def bucket(minio: MinioServer, request: pytest.FixtureRequest) -> CacheBucket:
    """A bucket of the test's own."""
    return CacheBucket(minio, f"beside-{abs(hash(request.node.name)) % 10**8}")


def shown(client: ThrowawayBuilder, cache: str, command: str) -> str:
    """Return what a client whose Nix remembers nothing shows of a cache."""
    script = f"XDG_CACHE_HOME=$(mktemp -d) NIX_SSL_CERT_FILE=/etc/private-ca.pem {NIX} {command}"
    return client.run(f"{script} --store {cache}").stdout


@pytest.mark.parametrize("variable", ["NIX_REMOTE='{}'", "NIX_CONFIG='store = {}'"])
def test_a_store_below_another_root_gets_no_listing_of_what_lies_in_this_ones(
    builder: ThrowawayBuilder, bucket: CacheBucket, variable: str
) -> None:
    # As large, with a file that the one below does not have.
    path = builder.run(
        f"""set -eu
        cd $(mktemp -d) && mkdir there && head -c 300 /dev/urandom >there/file
        path=$(nix-store --add there)
        {NIX} copy --no-check-sigs --to 'local?root=/srv/chroot' $path >&2
        nix-store --delete $path >&2
        mkdir $path && head -c 300 /dev/zero >$path/FILE
        echo $path"""
    ).stdout.strip()
    try:
        where = variable.format("local?root=/srv/chroot")
        ran = bucket.push(builder, path, environment=where, **BOTH)
        ran.succeeded()
        assert narinfo_of(path) in bucket.objects()
        # Some versions write it as local://.
        assert re.search(r"no listings of what Nix has in 'local.*\?root=/srv/chroot'", ran.log)
        assert listing_of(path) not in bucket.objects()
        assert verify(bucket).problems == []
    finally:
        builder.run(f"rm -r {path}")


@pytest.mark.parametrize("store", ["auto", "local"])
def test_a_store_of_a_usual_name_gets_listings(
    builder: ThrowawayBuilder, bucket: CacheBucket, path: str, store: str
) -> None:
    bucket.push(builder, path, environment=f"NIX_REMOTE={store}", **BOTH).succeeded()
    assert listing_of(path) in bucket.objects()


def test_a_listing_and_a_log_are_what_nix_itself_writes(
    builder: ThrowawayBuilder, bucket: CacheBucket, path: str
) -> None:
    bucket.push(builder, path, **BOTH).succeeded()
    assert verify(bucket).problems == []
    written = builder.run(
        f"""set -eu
        cache=$(mktemp -d)
        {NIX} copy --to "file://$cache?write-nar-listing=true&compression=none" {path}
        {NIX} store copy-log --to file://$cache $(nix-store --query --deriver {path})
        cd $cache && for file in *.ls log/*; do echo "== $file"; cat $file; echo; done"""
    ).stdout
    by_nix = dict(re.findall(r"== (.+)\n((?:(?!==).*\n)+)", written))
    assert len(by_nix) == 3
    for key, content in by_nix.items():
        # Since 2.35 Nix says it of files that are not, too; whoever reads takes its absence so.
        alike = content.replace('"executable":false,', "")
        assert bucket.get(key).decode().strip() == alike.strip()
    kept = bucket.objects().keys()
    assert kept >= by_nix.keys()
    assert all(map(is_cache_file, kept))


def test_a_client_is_shown_logs_and_what_a_path_holds(
    new_stack: StackFactory,
    minio: MinioServer,
    builder: ThrowawayBuilder,
    second_builder: ThrowawayBuilder,
    path: str,
) -> None:
    stack: Stack = new_stack(**server_settings(minio), upstreamKeys=[], bucket="shown")
    stack.set(sshPrivateKey=builder.private_key, builders=[builder_settings(builder, path)])
    stack.up().succeeded()
    stack.set(logs=True, listings=True)
    # What the cache has already gets them, too.
    stack.up().succeeded()
    trust(second_builder, minio)
    with fault_proxy(minio) as proxy:
        cache = f"{proxy.url}/shown"
        assert shown(second_builder, cache, f"log {path}") == "the program was built\n"
        assert not [one.key for one in proxy.requests if "nar/" in one.key]
        names = shown(second_builder, cache, f"store ls --recursive {path}").split()
    assert names == ["./bin", "./bin/program", "./empty", "./link", "./ü"]
    root = Inventory(minio).root
    listing = json.loads(root.get_object("shown", listing_of(path)).read())["root"]["entries"]
    assert sorted(listing) == ["bin", "empty", "link", "ü"]

    stack.up("--expect-no-changes").succeeded()
    assert stack.operate("drift", "--stack", stack.name).code == 0
    root.remove_object("shown", narinfo_of(path))
    audited = stack.operate("audit", "--stack", stack.name)
    assert "2 listings and 2 build logs, 2 of them of no narinfo" in audited.output
    assert "foreign" not in audited.output


def test_listings_and_logs_live_and_expire_with_their_paths(
    builder: ThrowawayBuilder, bucket: CacheBucket, path: str
) -> None:
    bucket.push(builder, path, renew="yes", **BOTH).succeeded()
    keys = bucket.objects().keys() - {"nix-cache-info"}
    deriver = NarInfo.parse(bucket.get(narinfo_of(path)).decode()).deriver
    assert {listing_of(path), f"log/{deriver}"} <= keys
    bucket.age(3, *keys)
    bucket.push(builder, path, renew="yes", **BOTH).succeeded()
    today = utcnow().astimezone(timezone.utc).date()
    assert {
        found.last_modified and found.last_modified.date()
        for key, found in bucket.objects().items()
        if key in keys
    } == {today}
