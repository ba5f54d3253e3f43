"""The whole way: from nothing to a closure that a client which trusts only the key can use."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3
from minio import Minio
from minio.error import S3Error

from formats.keys import PublicKey
from formats.narinfo import NarInfo
from formats.signing import verified_by
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.stack import Outcome, Stack
from tests.system.terminal import YES
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 60


def s3(server: MinioServer, user: str | None = None, password: str | None = None) -> Minio:
    """Return an S3 client of the server for a user, or for nobody in particular."""
    return Minio(
        server.endpoint.removeprefix("https://"),
        access_key=user,
        secret_key=password,
        region="us-east-1",
        http_client=urllib3.PoolManager(ca_certs=str(server.ca_file), retries=False),
    )


@dataclass(frozen=True)
class Deployed:
    """A stack after its first `up`."""

    stack: Stack
    up: Outcome
    outputs: dict[str, Any]
    closure: str
    server: MinioServer


@pytest.fixture(scope="module")
def deployed(
    engine: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    minio: MinioServer,
    builder: ThrowawayBuilder,
) -> Iterator[Deployed]:
    """A stack that has pushed a closure with references, destroyed in the end."""
    closure = builder.make_closure(PATHS, 20_000_000, seed=1, name="closure")
    stack = Stack(engine, tmp_path_factory.mktemp("stack") / "cache")
    stack.set(server_settings(minio))
    stack.set(
        sshPrivateKey=builder.private_key,
        builders=[{**builder_settings(builder, closure), "s3User": "nixbuilder"}],
        upstreamKeys=[],
    )
    up = stack.up().succeeded()
    yield Deployed(stack, up, stack.outputs(), closure, minio)
    stack.destroy()


def test_a_client_with_only_the_public_key_pulls_what_a_builder_pushed(
    deployed: Deployed, second_builder: ThrowawayBuilder
) -> None:
    second_builder.trust(deployed.server.ca_file)
    keys = " ".join(deployed.outputs["publicKeys"])
    url, closure = deployed.outputs["substituter"], deployed.closure
    nix = (
        "export NIX_CONFIG='experimental-features = nix-command\n"
        f"substituters = {url}\ntrusted-public-keys = {keys}'\n"
    )
    second_builder.run(f"{nix} nix copy --from {url} {closure}")
    # A store of its own counts only what was pulled, and verifies against this key alone.
    counted = second_builder.run(f"{nix} nix path-info --recursive {closure} | wc -l").stdout
    assert int(counted) == PATHS
    second_builder.run(
        f"{nix} nix store verify --recursive --sigs-needed 1 --option substituters '' {closure}"
    )


def test_a_client_that_trusts_another_key_refuses_it(
    deployed: Deployed, second_builder: ThrowawayBuilder
) -> None:
    second_builder.trust(deployed.server.ca_file)
    url = deployed.outputs["substituter"]
    other = PublicKey("cache.test-1", bytes(32))
    refused = second_builder.run(
        "export NIX_CONFIG='experimental-features = nix-command\n"
        f"substituters = {url}\ntrusted-public-keys = {other}'\n"
        f"nix copy --to /tmp/other-store --from {url} {deployed.closure}",
        check=False,
    )
    assert refused.returncode != 0
    assert "lacks a signature by a trusted key" in refused.stderr


def test_a_second_up_changes_nothing_and_a_refresh_finds_no_drift(deployed: Deployed) -> None:
    assert not deployed.stack.changes()
    again = deployed.stack.up("--expect-no-changes").succeeded()
    assert "unchanged" in again.output
    assert not deployed.stack.changes("--refresh")


def test_the_push_is_shown_as_one_line(deployed: Deployed) -> None:
    (builder,) = deployed.outputs["builders"].values()
    assert builder["lastPush"].startswith(f"pushed {PATHS} paths")
    assert len(builder["lastPush"].splitlines()) == 1


def test_every_narinfo_is_signed_and_has_its_nar(deployed: Deployed) -> None:
    client = s3(deployed.server, deployed.server.root_user, deployed.server.root_password)
    keys = {key.name: key for key in map(PublicKey.parse, deployed.outputs["publicKeys"])}
    sizes = {o.object_name: o.size for o in client.list_objects("nix-cache", recursive=True)}
    narinfos = [name for name in sizes if str(name).endswith(".narinfo")]
    assert len(narinfos) == PATHS
    for name in narinfos:
        narinfo = NarInfo.parse(client.get_object("nix-cache", str(name)).read().decode())
        assert verified_by(narinfo, keys) == ("cache.test-1",)
        assert sizes[narinfo.url] == narinfo.file_size


def test_anybody_may_read_and_do_nothing_else(deployed: Deployed) -> None:
    anybody = s3(deployed.server)
    info = anybody.get_object("nix-cache", "nix-cache-info")
    assert info.read() == b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"
    assert info.headers["Content-Type"] == "text/x-nix-cache-info"
    for attempt in (
        lambda: list(anybody.list_objects("nix-cache")),
        lambda: anybody.put_object("nix-cache", "x", io.BytesIO(b"x"), 1),
        lambda: anybody.remove_object("nix-cache", "nix-cache-info"),
    ):
        with pytest.raises(S3Error, match="AccessDenied"):
            attempt()


def test_a_builder_may_write_and_neither_delete_nor_open_nor_leave_its_bucket(
    deployed: Deployed,
) -> None:
    (access,) = deployed.outputs["builders"].values()
    builder = s3(deployed.server, access["accessKeyId"], access["secretAccessKey"])
    builder.put_object("nix-cache", "log/test.drv", io.BytesIO(b"x"), 1)
    s3(deployed.server, deployed.server.root_user, deployed.server.root_password).make_bucket(
        "other"
    )
    policy = json.dumps({"Version": "2012-10-17", "Statement": []})
    for attempt in (
        lambda: builder.remove_object("nix-cache", "nix-cache-info"),
        lambda: builder.set_bucket_policy("nix-cache", policy),
        lambda: builder.delete_bucket_lifecycle("nix-cache"),
        lambda: builder.put_object("other", "x", io.BytesIO(b"x"), 1),
        lambda: list(builder.list_objects("other")),
    ):
        with pytest.raises(S3Error, match="AccessDenied"):
            attempt()


def test_no_secret_stands_in_plain_text_anywhere(
    deployed: Deployed, builder: ThrowawayBuilder, minio: MinioServer
) -> None:
    stack = deployed.stack
    secret_keys = [
        json.loads(resource["outputs"]["secret_key"]["plaintext"])
        for resource in stack.resources_with_secrets()
        if resource["type"].endswith(":SigningKey")
    ]
    (access,) = deployed.outputs["builders"].values()
    secrets = [
        *(key.partition(":")[2] for key in secret_keys),
        access["secretAccessKey"],
        minio.root_password,
        builder.private_key.splitlines()[2],
    ]
    assert len(secrets) == 4
    seen = stack.export() + deployed.up.output + stack.preview("--diff").output
    disk = builder.run(
        "grep -rlFf /dev/stdin --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev / || true",
        input="\n".join(secrets) + "\n",
    ).stdout
    assert not [secret for secret in secrets if secret in seen]
    assert disk == ""


def test_children_belong_to_their_components(deployed: Deployed) -> None:
    parents = {
        resource["urn"].rpartition("::")[2]: resource.get("parent", "").rpartition("::")[2]
        for resource in deployed.stack.resources()
    }
    assert parents["nix-cache"] == parents["nix-cache/nix-cache-info"] == "cache"
    assert parents["nixbuilder-push"] == parents["nixbuilder"] == "builders"


def test_settings_of_the_bucket_are_never_written_at_the_same_moment(deployed: Deployed) -> None:
    (lifecycle,) = [
        resource
        for resource in deployed.stack.resources()
        if resource["type"] == "minio:index/ilmPolicy:IlmPolicy"
    ]
    assert [urn for urn in lifecycle["dependencies"] if urn.endswith("S3BucketPolicy::nix-cache")]


def test_an_object_changed_behind_its_back_is_found_and_put_right(deployed: Deployed) -> None:
    root = s3(deployed.server, deployed.server.root_user, deployed.server.root_password)
    root.put_object("nix-cache", "nix-cache-info", io.BytesIO(b"StoreDir: /x\n"), 13)
    assert sum(deployed.stack.changes("--refresh").values()) == 1
    deployed.stack.type("pulumi up --refresh --run-program", YES).succeeded()
    assert b"Priority: 40" in root.get_object("nix-cache", "nix-cache-info").read()


def test_a_first_up_of_many_builders_does_not_wait_for_itself(
    minio: MinioServer, new_stack: StackFactory
) -> None:
    """The SDK's threads all wait for users that come after what the program is asked first."""
    many = [{"name": f"builder-{number}", "local": True} for number in range(20)]
    stack = new_stack("many", **server_settings(minio), bucket="many", builders=many)
    stack.up("--parallel", "1", limit=300).succeeded()
    assert len(stack.outputs()["builders"]) == 20
    stack.destroy().succeeded()
