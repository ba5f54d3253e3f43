"""The recipe by hand keeps working against the stack, and its keys are ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from formats.signing import SecretKey
from tests.system.conftest import server_settings
from tests.system.signing_proxy import signing_proxy
from tests.system.stack import Stack
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

NIX = "export NIX_CONFIG='experimental-features = nix-command\nsubstituters ='\n"


def test_sign_and_copy_by_hand_fill_the_cache_that_clients_read(
    engine: Mapping[str, str],
    tmp_path: Path,
    minio: MinioServer,
    builder: ThrowawayBuilder,
    second_builder: ThrowawayBuilder,
) -> None:
    stack = Stack(engine, tmp_path / "by-hand")
    stack.set(server_settings(minio))
    stack.set(builders=[{"name": "nixbuilder", "local": True, "s3User": "nixbuilder"}])
    stack.up().succeeded()
    outputs = stack.outputs()
    access = outputs["builders"]["nixbuilder"]
    (signing_key,) = (
        json.loads(resource["outputs"]["secret_key"]["plaintext"])
        for resource in stack.resources_with_secrets()
        if resource["type"].endswith(":SigningKey")
    )
    closure = builder.make_closure(5, 100_000, seed=2, name="by-hand")
    builder.run("umask 077; cat > /root/key", input=signing_key)
    builder.run(
        "umask 077; mkdir -p ~/.aws; cat > ~/.aws/credentials",
        input=f"[nixbuilder]\naws_access_key_id = {access['accessKeyId']}\n"
        f"aws_secret_access_key = {access['secretAccessKey']}\n",
    )
    builder.run(f"{NIX} nix store sign --recursive --key-file /root/key {closure}")
    with signing_proxy(minio, access["accessKeyId"], access["secretAccessKey"]) as url:
        builder.run(
            f"{NIX} nix copy --to 's3://nix-cache?profile=nixbuilder&endpoint={url}' {closure}"
        )
    second_builder.trust(minio.ca_file)
    second_builder.run(
        f"{NIX} nix copy --from {outputs['substituter']} "
        f"--option trusted-public-keys '{outputs['publicKeys'][0]}' {closure}"
    )


def test_a_key_made_by_nix_and_one_made_here_are_the_same_to_nix(
    builder: ThrowawayBuilder,
) -> None:
    ours = SecretKey.generate("cache.test-1")
    public = builder.run(f"{NIX} nix key convert-secret-to-public", input=ours.to_nix()).stdout
    assert public == str(ours.public_key)
    made_by_nix = builder.run(f"{NIX} nix key generate-secret --key-name cache.test-1").stdout
    theirs = SecretKey.parse(made_by_nix)
    assert theirs.to_nix() == made_by_nix
    public = builder.run(f"{NIX} nix key convert-secret-to-public", input=made_by_nix).stdout
    assert str(theirs.public_key) == public
