"""One server of each kind, and the whole program on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from components.access import read_policy, write_policy
from components.retention import expiration_rules
from formats.push_status import STATUS_FOLDER
from tests.system.conftest import builder_settings
from tests.system.stack import Stack
from toolbox.servers.ceph_rgw import CephRGW
from toolbox.servers.garage import Garage
from toolbox.servers.minio import MinIO
from toolbox.servers.rustfs import RustFS
from toolbox.servers.s3_server import Credential, S3Server, running
from toolbox.servers.seaweedfs import SeaweedFS
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 5
BUCKET = "nix-cache"
KINDS = (
    MinIO,
    CephRGW,
    SeaweedFS,
    pytest.param(Garage, marks=pytest.mark.by_request),
    pytest.param(RustFS, marks=pytest.mark.by_request),
)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: str(kind.__name__))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    """A running server of each kind that can be had here."""
    kind: type[S3Server] = request.param
    reason = kind.unavailable()
    if reason is not None:
        pytest.skip(f"no {kind.title}: {reason}")
    with running(kind(tmp_path_factory.mktemp(kind.__name__))) as server:
        yield server


@dataclass
class Life:
    """A cache on a server, from its first deployment to its end."""

    server: S3Server
    stack: Stack
    machine: ThrowawayBuilder
    builder: Credential
    reader: Credential
    closure: str
    up: str = ""
    """What the first deployment said."""
    ended: bool = False

    def objects(self) -> dict[str, datetime]:
        """Return when each object was last written, but for what pushes tell of themselves."""
        listed = self.server.client().list_objects(BUCKET, recursive=True)
        return {
            str(entry.object_name): entry.last_modified
            for entry in listed
            if entry.last_modified and not str(entry.object_name).startswith(STATUS_FOLDER)
        }

    def declared(self, retention: int) -> dict[str, int]:
        """Return the same as it is to be with these `retentionDays`."""
        days = retention if self.server.expires_at_midnight else retention + 1
        return {rule.prefix: rule.days for rule in expiration_rules(days, 1)}

    def expiration(self) -> dict[str, int]:
        """Return after how many days the objects of each prefix go, by the server's word."""
        lifecycle = self.server.client().get_bucket_lifecycle(BUCKET)
        found = {}
        for rule in lifecycle.rules if lifecycle else ():
            assert rule.rule_filter
            assert rule.expiration
            found[str(rule.rule_filter.prefix)] = int(rule.expiration.days or 0)
        return found

    def pull(self, url: str, keys: list[str]) -> int:
        """Copy the closure into a new store that trusts these keys alone; return its paths."""
        pulled = self.machine.run(
            f"""set -eu
            store=$(mktemp -d)
            export NIX_SSL_CERT_FILE=/etc/private-ca.pem XDG_CACHE_HOME=$store/cache
            export NIX_CONFIG='experimental-features = nix-command
            trusted-public-keys = {" ".join(keys)}
            substituters ='
            nix copy --to $store --from {url} {self.closure}
            nix store verify --store $store --sigs-needed 1 --recursive {self.closure}
            nix path-info --store $store --recursive {self.closure} | wc -l
            chmod -R u+w $store; rm -r $store"""
        )
        return int(pulled.stdout)


@pytest.fixture(scope="module")
def life(
    server: S3Server,
    engine: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    builder: ThrowawayBuilder,
) -> Iterator[Life]:
    """A stack with given users that has pushed, as its server's owner would set it up."""
    machine = builder
    closure = machine.make_closure(PATHS, 40_000_000, seed=19, name="servers")
    (machine.root / "etc" / "private-ca.pem").write_bytes(server.ca_file.read_bytes())
    pushes, reads = server.make_user("nixbuilder"), server.make_user("nixreader")
    stack = Stack(engine, tmp_path_factory.mktemp("life") / "cache")
    stack.set(
        endpoint=server.endpoint,
        region=server.region,
        caCertificateFile=str(server.ca_file),
        minioUser=server.root_user,
        minioPassword=server.root_password,
        signingKeys=["cache.test-1"],
        signingKeyDomains=["cache.test"],
        protect=False,
        expiresAtMidnight=server.expires_at_midnight,
        users="given",
        givenUserSecrets=secrets_of(pushes),
        sshPrivateKey=machine.private_key,
        upstreamKeys=[],
        # So that parts are sent and, on renewal, copied.
        compression="none",
        partSize=5 << 20,
        builders=[
            {**builder_settings(machine, closure), "accessKeyId": pushes.access_key_id},
        ],
    )
    if server.makes_buckets_elsewhere:
        server.make_bucket(BUCKET)
        stack.set(adoptBucket=True)
    # The rights may be given before there is a bucket, but where the bucket itself has them.
    server.let_write("nixbuilder", BUCKET, write_policy(BUCKET, None))
    server.let_read("nixreader", BUCKET, read_policy(BUCKET, None))
    if not server.has_bucket_policies:
        stack.set(bucketPolicy=False, publicUrl=server.open_to_everybody(BUCKET))
    made = Life(server, stack, machine, pushes, reads, closure)
    made.up = stack.up().succeeded().output
    yield made
    if not made.ended:
        stack.operate("empty", "--stack", stack.name, text=f"{BUCKET}\n")
        stack.destroy()


def secrets_of(*users: Credential) -> str:
    """Return users' secrets as the settings have them."""
    return "".join(f"{who.access_key_id}:{who.secret_access_key}\n" for who in users)


def expected() -> dict[str, dict[str, str]]:
    """Return what each server is known to answer to each need."""
    return dict(json.loads(Path(__file__).with_name("expected.json").read_text()))
