"""A cache that goes private and public again while it is in use, seen from outside."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import urllib3
from minio import Minio
from minio.error import S3Error

from tests.system.cache_bucket import place
from tests.system.conftest import builder_settings, server_settings
from tests.system.signing_proxy import signing_proxy
from tests.system.stack import Stack
from tests.system.test_cache import s3
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

BUCKET = "nix-cache"
DIRECTORY = "/var/lib/nix-binary-cache"
FILES = f"find {DIRECTORY} -printf '%f %m %u\\n' | sort"


@pytest.fixture
def stack(
    engine: Mapping[str, str], tmp_path: Path, minio: MinioServer, builder: ThrowawayBuilder
) -> Iterator[Stack]:
    """A stack with a builder, destroyed in the end with all that its bucket holds."""
    stack = Stack(engine, tmp_path / "private")
    stack.set(server_settings(minio))
    stack.set(sshPrivateKey=builder.private_key)
    yield stack
    destroy(stack, minio)


def destroy(stack: Stack, server: MinioServer) -> None:
    """Empty the bucket, as the README says, and destroy the stack."""
    root = s3(server, server.root_user, server.root_password)
    if root.bucket_exists(BUCKET):
        for entry in root.list_objects(BUCKET, recursive=True):
            root.remove_object(BUCKET, str(entry.object_name))
    stack.destroy().succeeded()


def name_of(store_path: str) -> str:
    """Return the key of a store path's narinfo."""
    return store_path.removeprefix("/nix/store/").partition("-")[0] + ".narinfo"


def anonymous(server: MinioServer, key: str) -> int:
    """Return the status of a GET without a credential."""
    pool = urllib3.PoolManager(ca_certs=str(server.ca_file), retries=False)
    return pool.request("GET", f"{server.endpoint}/{BUCKET}/{key}").status


def read(client: Minio, key: str) -> str:
    """Return an object's text as a user reads it, or the code of the server's refusal."""
    try:
        answer = client.get_object(BUCKET, key)
    except S3Error as error:
        return str(error.code)
    with answer:
        return answer.data.decode()


def refusals(client: Minio) -> list[str]:
    """Return what the server says to a user who lists, writes and deletes."""
    codes = []
    for forbidden in (
        lambda: list(client.list_objects(BUCKET)),
        lambda: client.put_object(BUCKET, "use.html", io.BytesIO(b"x"), 1),
        lambda: client.remove_object(BUCKET, "nix-cache-info"),
    ):
        with pytest.raises(S3Error) as refused:
            forbidden()
        codes.append(str(refused.value.code))
    return codes


def test_a_live_cache_goes_private_and_public_again(
    stack: Stack, minio: MinioServer, builder: ThrowawayBuilder, second_builder: ThrowawayBuilder
) -> None:
    first = builder.make_closure(6, 60_000, seed=31, name="first")
    stack.set(builders=[builder_settings(builder, first)])
    stack.up().succeeded()
    public_keys = stack.outputs()["publicKeys"]
    keys = ("nix-cache-info", "use.html", name_of(first))
    assert [anonymous(minio, key) for key in keys] == [200, 200, 200]

    second = builder.make_closure(6, 60_000, seed=32, name="second")
    stack.set(access="private", builders=[builder_settings(builder, first, second)])
    stack.up().succeeded()
    assert not stack.changes()
    outputs = stack.outputs()
    assert outputs["publicKeys"] == public_keys
    assert outputs["nixos"]["access"] == "private"
    assert [anonymous(minio, key) for key in (*keys, name_of(second))] == [403] * 4

    section, user, secret = outputs["readerCredentials"].splitlines()
    user, secret = (line.partition(" = ")[2] for line in (user, secret))
    assert section == f"[{user}]"
    assert f"profile={user}" in outputs["substituter"]
    reader = s3(minio, user, secret)
    assert "StorePath: " in read(reader, name_of(first))
    assert "StorePath: " in read(reader, name_of(second))
    assert refusals(reader) == ["AccessDenied"] * 3
    # Nix takes either answer for a path that is not there.
    assert read(reader, f"{'0' * 32}.narinfo") in ("NoSuchKey", "AccessDenied")

    # Debian's Nix cannot sign; the proxy does, with the reader's credential.
    with signing_proxy(minio, user, secret) as url:
        substituter = outputs["substituter"].replace(minio.endpoint, url)
        second_builder.run(
            f"nix-store --realise {second} --option substituters '{substituter}' "
            f"--option trusted-public-keys '{public_keys[0]}'"
        )

    stack.set(access="public")
    stack.up().succeeded()
    assert not stack.changes()
    assert [anonymous(minio, key) for key in (*keys, name_of(second))] == [200] * 4
    assert read(reader, name_of(first)) == "InvalidAccessKeyId"
    assert "readerCredentials" not in stack.outputs()


def test_a_builders_own_credential_is_placed_renewed_and_removed(
    stack: Stack, minio: MinioServer, builder: ThrowawayBuilder
) -> None:
    machine = builder_settings(builder)
    stack.set(builders=[{**machine, "credentialsDirectory": DIRECTORY}])
    up = stack.up().succeeded()
    outputs = stack.outputs()
    secret = outputs["builders"]["nixbuilder"]["secretAccessKey"]
    assert builder.run(FILES).stdout.splitlines() == [
        ".placed-by 600 root",
        "nix-binary-cache 700 root",
        "secret-access-key 600 root",
        "signing-key 600 root",
    ]
    assert builder.run(f"cat {DIRECTORY}/secret-access-key").stdout == f"{secret}\n"
    assert builder.run(f"cat {DIRECTORY}/signing-key").stdout == f"{outputs['signingKeyBackup']}\n"
    assert secret not in up.output
    assert secret not in stack.export()
    assert not stack.changes()

    # A builder pushes by itself with these files and what the modules are given.
    closure = builder.make_closure(3, 30_000, seed=33, name="own")
    push = outputs["nixos"]["push"]
    lines = [
        f"endpoint={push['endpoint']}",
        f"bucket={push['bucket']}",
        f"access-key-id={outputs['nixos']['builders']['nixbuilder']['accessKeyId']}",
        f"secret-access-key-file={DIRECTORY}/secret-access-key",
        f"signing-key-file={DIRECTORY}/signing-key",
        "ca-certificate-file=/root/ca.pem",
    ]
    builder.run("cat >/root/ca.pem", input=outputs["nixos"]["caCertificate"])
    command = " ".join(place(builder))
    pushed = builder.run(
        f"{command} --config - {closure}", input="".join(f"{line}\n" for line in lines)
    )
    assert pushed.stdout.startswith("pushed 3 paths")

    stack.set(signingKeys=["cache.test-1", "cache.test-2"], signingKeyDomains=["cache.test"])
    stack.up().succeeded()
    assert builder.run(f"cut -d: -f1 {DIRECTORY}/signing-key").stdout == "cache.test-2\n"

    moved = "/var/lib/elsewhere"
    stack.set(builders=[{**machine, "credentialsDirectory": moved}])
    stack.up().succeeded()
    assert builder.run(f"ls {moved}").stdout.split() == ["secret-access-key", "signing-key"]
    assert builder.run(f"test -e {DIRECTORY}", check=False).returncode == 1

    destroy(stack, minio)
    assert builder.run(f"test -e {moved}", check=False).returncode == 1
