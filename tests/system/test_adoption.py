"""A cache made with the recipe's own commands comes under management and stays what it is."""

from __future__ import annotations

import io
import json
from pathlib import Path

from minio import Minio

from operations.preview_markdown import render
from tests.system.conftest import StackFactory, server_settings
from tests.system.minio_client import MinioClient
from tests.system.test_cache import s3
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

BUCKET, USER, POLICY, SECRET = "by-hand", "nixbuilder", "nix-cache-write", "made-by-hand-secret"
KEY_NAME = "cache.test-1"


def recipe(mc: MinioClient, directory: Path) -> None:
    """Make bucket, user, policy, anonymous download, nix-cache-info and expiry by hand."""
    actions = ["s3:AbortMultipartUpload", "s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket"]
    actions += ["s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts", "s3:PutObject"]
    resources = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    statement = {"Effect": "Allow", "Action": actions, "Resource": resources}
    document = directory / "nix-cache-write.json"
    document.write_text(json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    info = directory / "nix-cache-info"
    info.write_text("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
    mc.run(f"mb s3/{BUCKET}")
    mc.run("admin user add s3", text=f"{USER}\n{SECRET}\n")
    mc.run(f"admin policy create s3 {POLICY} {document}")
    mc.run(f"admin policy attach s3 {POLICY} --user {USER}")
    mc.run(f"anonymous set download s3/{BUCKET}")
    mc.run(f"cp {info} s3/{BUCKET}/nix-cache-info")
    mc.run(f"ilm rule add --expire-days 7 s3/{BUCKET}")


def contents(client: Minio) -> dict[str, tuple[str, str]]:
    """Return ETag and modification time of what was pushed, by name."""
    return {
        str(found.object_name): (str(found.etag), str(found.last_modified))
        for found in client.list_objects(BUCKET, recursive=True)
        if str(found.object_name).startswith("nar/") or str(found.object_name).endswith(".narinfo")
    }


def test_a_cache_made_by_hand_keeps_its_objects_its_key_and_its_user(
    new_stack: StackFactory, minio: MinioServer, builder: ThrowawayBuilder, tmp_path: Path
) -> None:
    mc = MinioClient(minio, tmp_path)
    recipe(mc, tmp_path)
    key = builder.run(
        f"nix --extra-experimental-features nix-command key generate-secret --key-name {KEY_NAME}"
    ).stdout
    public_key = builder.run(
        "nix --extra-experimental-features nix-command key convert-secret-to-public", input=key
    ).stdout
    by_hand = s3(minio, USER, SECRET)
    for name in ("0" * 32 + ".narinfo", "nar/" + "1" * 52 + ".nar.zst"):
        by_hand.put_object(BUCKET, name, io.BytesIO(b"pushed by hand"), 14)
    before = contents(by_hand)
    assert len(before) == 2

    stack = new_stack(**server_settings(minio), bucket=BUCKET, adoptBucket=True)
    stack.set(
        writePolicy=POLICY,
        builders=[{"name": "here", "local": True, "s3User": USER}],
        adoptedUserSecrets=f"{USER}:{SECRET}",
        adoptedSigningKeys=key,
    )
    assert stack.changes()["import"] == 1
    up = stack.up().succeeded()
    assert SECRET not in up.output
    assert SECRET not in stack.export()

    assert contents(by_hand) == before
    outputs = stack.outputs()
    assert outputs["publicKeys"] == [public_key.strip()]
    assert outputs["signingKeyBackup"] == key.strip()
    assert outputs["builders"]["here"] == {
        "accessKeyId": USER,
        "secretAccessKey": SECRET,
        "signingKey": KEY_NAME,
    }
    assert not stack.changes()
    assert not stack.changes("--refresh")

    # Once adopted, nothing hangs on the settings that said so.
    stack.set(adoptBucket=None, adoptedUserSecrets=None, adoptedSigningKeys=None)
    assert not stack.changes()
    stack.up("--expect-no-changes").succeeded()
    assert contents(by_hand) == before


def test_a_wrong_secret_for_a_user_made_by_hand_is_refused_and_locks_nobody_out(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    MinioClient(minio, tmp_path).run("admin user add s3", text=f"somebody\n{SECRET}\n")
    stack = new_stack(**server_settings(minio), bucket="refused")
    stack.set(
        builders=[{"name": "here", "local": True, "s3User": "somebody"}],
        adoptedUserSecrets="somebody:another-secret",
    )
    assert "the server knows somebody by another secret" in stack.up().refused()
    assert "another-secret" not in stack.export()
    assert MinioClient(minio, tmp_path).run("admin user info s3 somebody")


def test_a_bucket_that_is_there_already_is_refused_unless_it_is_adopted(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    MinioClient(minio, tmp_path).run("mb s3/already-there")
    stack = new_stack(**server_settings(minio), bucket="already-there")
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert 'bucket is "already-there": the server has a bucket of that name' in refused
        assert "set adoptBucket to true" in refused
    assert not [found for found in stack.resources() if found["type"].startswith("minio:")]
    stack.set(adoptBucket=True)
    stack.up().succeeded()
    assert not stack.changes()
    stack.destroy().succeeded()


def test_a_bucket_that_one_network_may_read_is_not_opened_to_everyone_unasked(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    mc, name = MinioClient(minio, tmp_path), "one-network"
    mc.run(f"mb s3/{name}")
    info, narinfo = tmp_path / "nix-cache-info", tmp_path / "narinfo"
    info.write_text("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 20\n")
    narinfo.write_text("no narinfo")
    mc.run(f"cp {info} s3/{name}/nix-cache-info")
    mc.run(f"cp {narinfo} s3/{name}/{'0' * 32}.narinfo")
    mc.run(f"ilm rule add --expire-days 3 s3/{name}")
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{name}/*"],
        "Condition": {"IpAddress": {"aws:SourceIp": ["10.0.0.0/8"]}},
    }
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    mc.run(f"anonymous set-json {policy} s3/{name}")
    before = mc.run(f"anonymous get-json s3/{name}")

    stack = new_stack(**server_settings(minio), bucket=name, adoptBucket=True)
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert "its policy limits who may do what (s3:GetObject under a condition)" in refused
        assert "set confirmSharedBucket to true" in refused
    assert mc.run(f"anonymous get-json s3/{name}") == before

    stack.set(confirmSharedBucket=True)
    shown = stack.preview().succeeded().output
    assert f"access: everyone may read all of bucket {name} from now on" in shown
    assert "nix-cache-info: Priority: 20 → 40" in shown
    text = render(json.loads(stack.preview("--json").succeeded().output))
    assert "lived for ever" not in text
    assert "Data would be lost" not in text
    stack.up().succeeded()
    assert not stack.changes()
