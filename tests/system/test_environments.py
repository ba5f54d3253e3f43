"""Stacks for several environments live side by side on one server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from minio.error import S3Error

from formats.keys import PublicKey
from tests.system.conftest import StackFactory, server_settings
from tests.system.minio_client import MinioClient
from tests.system.stack import Stack
from tests.system.test_cache import s3
from toolbox.minio_server import MinioServer

NAMES = ("staging", "homelab")


def environment(stack: Stack, server: MinioServer) -> None:
    """Give a stack the settings that docs/environments.md gives it."""
    names = f"nix-cache-{stack.name}"
    stack.set(server_settings(server))
    stack.set(bucket=names, signingKeyDomains=[names], signingKeys=[f"{names}-1"])
    stack.set(builders=[{"name": "here", "local": True}])


def on_the_server(mc: MinioClient) -> dict[str, set[str]]:
    """Return the names of buckets, users and policies of the environments, by kind."""

    def listed(arguments: str, *keys: str) -> set[str]:
        lines = [json.loads(line) for line in mc.run(f"--json {arguments}").splitlines()]
        names = {str(line.get(key, "")).strip("/") for line in lines for key in keys}
        return {name for name in names if name.startswith("nix-cache-")}

    return {
        "buckets": listed("ls s3", "key"),
        "users": listed("admin user list s3", "accessKey"),
        "policies": listed("admin policy list s3", "policy"),
    }


def belonging_to(everything: dict[str, set[str]], name: str) -> dict[str, set[str]]:
    """Return what of `everything` has the environment's name."""
    return {
        kind: {found for found in names if found.startswith(f"nix-cache-{name}")}
        for kind, names in everything.items()
    }


def test_two_stacks_go_up_at_once_and_destroying_one_leaves_the_other_as_it_was(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    mc = MinioClient(minio, tmp_path)
    stacks = [new_stack(name) for name in NAMES]
    for stack in stacks:
        environment(stack, minio)
    with ThreadPoolExecutor() as pool:
        for up in pool.map(Stack.up, stacks):
            up.succeeded()
    staging, homelab = stacks
    everything = on_the_server(mc)
    for name in NAMES:
        assert all(belonging_to(everything, name).values())
    keys = [PublicKey.parse(key) for stack in stacks for key in stack.outputs()["publicKeys"]]
    assert len({key.name for key in keys}) == 2

    access = homelab.outputs()["builders"]["here"]
    builder = s3(minio, access["accessKeyId"], access["secretAccessKey"])
    assert builder.bucket_exists("nix-cache-homelab")
    stranger = staging.outputs()["builders"]["here"]
    foreign = s3(minio, stranger["accessKeyId"], stranger["secretAccessKey"])
    with pytest.raises(S3Error, match="AccessDenied"):
        list(foreign.list_objects("nix-cache-homelab"))

    staging.destroy().succeeded()
    assert not any(belonging_to(on_the_server(mc), "staging").values())
    assert belonging_to(on_the_server(mc), "homelab") == belonging_to(everything, "homelab")
    assert not homelab.changes("--refresh")
    assert builder.bucket_exists("nix-cache-homelab")
    homelab.destroy().succeeded()
