"""The audit of real caches: rotated, damaged, private, and out of reach."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider

from formats.narinfo import NarInfo
from formats.nix32 import nix32_encode
from formats.signing import SecretKey
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.stack import Outcome, Stack
from tests.system.test_cache import s3
from tests.system.test_keys import FIRST, SECOND, backup
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

PATHS = 20


@dataclass(frozen=True)
class Audited:
    """What one audit came to."""

    outcome: Outcome
    report: Mapping[str, Any]

    def findings(self) -> set[tuple[str, str]]:
        """Return kind and object of what it found; the exit code must tell the same."""
        found = {(finding["kind"], finding["object"]) for finding in self.report["findings"]}
        assert self.outcome.code == (1 if found else 0), self.outcome.output
        return found

    def keys(self) -> dict[str, tuple[bool, int, int, int]]:
        """Return of each key: trusted, verified, alone, unknown."""
        return {
            name: (key["trusted"], key["verified"], key["alone"], key["unknown"])
            for name, key in self.report["keys"].items()
        }


def audit(stack: Stack, *arguments: str, **environment: str) -> Audited:
    """Audit the stack's cache as a user does."""
    file = stack.project / "audit.json"
    outcome = stack.operate(
        "audit", "--stack", stack.name, "--json", str(file), *arguments, **environment
    )
    assert file.exists(), outcome.output
    return Audited(outcome, json.loads(file.read_text()))


def root(server: MinioServer) -> Minio:
    """Return an S3 client that may do everything."""
    return s3(server, server.root_user, server.root_password)


def store(server: MinioServer, bucket: str, key: SecretKey, content: bytes) -> NarInfo:
    """Put a path with this NAR, signed by `key`, into a bucket."""
    digest = nix32_encode(hashlib.sha256(content).digest())
    narinfo = NarInfo(
        store_path=f"/nix/store/{digest[:32]}-path",
        url=f"nar/{digest}.nar",
        compression="none",
        nar_hash=f"sha256:{digest}",
        nar_size=len(content),
        file_hash=f"sha256:{digest}",
        file_size=len(content),
    )
    signed = replace(narinfo, signatures=(key.sign(narinfo.fingerprint),))
    put(server, bucket, narinfo.url, content)
    put(server, bucket, f"{digest[:32]}.narinfo", signed.format().encode())
    return signed


def put(
    server: MinioServer,
    bucket: str,
    name: str,
    content: bytes,
    content_type: str = "application/octet-stream",
) -> None:
    """Put an object into a bucket."""
    root(server).put_object(bucket, name, io.BytesIO(content), len(content), content_type)


def modified(server: MinioServer, bucket: str, ending: str) -> dict[str, object]:
    """Return when each object whose name ends so was last written."""
    entries = root(server).list_objects(bucket, recursive=True)
    return {
        str(entry.object_name): entry.last_modified
        for entry in entries
        if str(entry.object_name).endswith(ending)
    }


def test_a_rotation_signs_what_is_there_and_a_retired_key_is_not_missed(
    engine: Mapping[str, str], tmp_path: Path, minio: MinioServer, builder: ThrowawayBuilder
) -> None:
    closure = builder.make_closure(PATHS, 2_000_000, seed=7, name="rotated")
    stack = Stack(engine, tmp_path / "rotated")
    stack.set(server_settings(minio))
    stack.set(
        bucket="rotated",
        sshPrivateKey=builder.private_key,
        builders=[builder_settings(builder, closure)],
        upstreamKeys=[],
    )
    stack.up().succeeded()
    first = audit(stack, "--hash", "3")
    assert first.findings() == set()
    assert first.keys() == {FIRST: (True, PATHS, PATHS, 0)}
    assert first.report["hashed"] == 3
    written = modified(minio, "rotated", ".nar.zst")
    assert len(written) == PATHS

    stack.set(signingKeys=[FIRST, SECOND])
    stack.up("--target", "**SigningKey**").succeeded()
    assert len(stack.outputs()["nixos"]["publicKeys"]) == 2
    status = stack.operate("status", "--stack", stack.name).succeeded().output
    assert f"{SECOND} is trusted; {FIRST} signs\n" in status
    assert audit(stack).keys() == {
        FIRST: (True, PATHS, PATHS, 0),
        SECOND: (True, 0, 0, 0),
    }
    stack.up().succeeded()
    (pushed,) = stack.outputs()["builders"].values()
    assert pushed["lastPush"].startswith("pushed 0 paths")
    status = stack.operate("status", "--stack", stack.name).succeeded().output
    assert f"{SECOND} signs; {FIRST} is trusted\n" in status
    both = audit(stack)
    assert both.findings() == set()
    assert both.keys() == {FIRST: (True, PATHS, 0, 0), SECOND: (True, PATHS, 0, 0)}
    assert modified(minio, "rotated", ".nar.zst") == written

    stack.set(signingKeys=[SECOND])
    stack.up().succeeded()
    retired = audit(stack, "--hash", "all")
    assert retired.findings() == set()
    assert retired.keys() == {FIRST: (False, 0, 0, PATHS), SECOND: (True, PATHS, PATHS, 0)}
    assert retired.report["hashed"] == PATHS
    outputs = stack.outputs()
    builder.trust(minio.ca_file)
    builder.run(
        "export NIX_CONFIG='experimental-features = nix-command\n"
        f"substituters =\ntrusted-public-keys = {outputs['publicKeys'][0]}'\n"
        f"nix copy --to /tmp/clients-store --from {outputs['substituter']} {closure}"
    )

    # What a client needs and does not get is found, and put right as the audit says.
    leaf = leaf_of(minio, "rotated")
    root(minio).remove_object("rotated", leaf)
    missing = audit(stack)
    assert missing.findings() == {("reference-missing", leaf)}
    assert missing.outcome.output.endswith(
        "make push STACK=test pushes again what its builders have\n"
    )
    pushed_again = stack.operate("push", "--stack", stack.name).succeeded().output
    assert pushed_again.splitlines()[-1].startswith("nixbuilder: pushed 1 paths")
    assert audit(stack).findings() == set()

    for name in modified(minio, "rotated", ""):
        if name not in ("nix-cache-info", "use.html") and not name.startswith("_nixcache/"):
            root(minio).remove_object("rotated", name)
    assert audit(stack).findings() == {("closure-missing", f"{closure[11:43]}.narinfo")}
    drift = stack.operate("drift", "--stack", stack.name)
    assert drift.code == 1
    assert f"builder nixbuilder pushed {closure}, which the cache does not have" in drift.output
    pushed_again = stack.operate("push", "--stack", stack.name, "nixbuilder").succeeded().output
    assert pushed_again.splitlines()[-1].startswith(f"nixbuilder: pushed {PATHS} paths")
    assert stack.operate("drift", "--stack", stack.name).succeeded()
    assert stack.changes() == {}

    # A NAR whose bytes are others, and as many, is not what a push sees: it goes first.
    narinfo = NarInfo.parse(root(minio).get_object("rotated", leaf).read().decode())
    put(minio, "rotated", narinfo.url, b"x" * (narinfo.file_size or 0))
    damaged = audit(stack, "--hash", "all")
    assert damaged.findings() == {("nar-content", leaf)}
    names = sorted([leaf, narinfo.url])
    remedy = f'make empty STACK=test ARGS="{" ".join(names)}" removes what is wrong'
    assert remedy in damaged.outcome.output
    stack.operate("empty", "--stack", stack.name, *names, text="rotated\n").succeeded()
    stack.operate("push", "--stack", stack.name).succeeded()
    assert audit(stack, "--hash", "all").findings() == set()

    # What a disk has lost of them is found, and the rest beside it; it goes the same way.
    narinfo = NarInfo.parse(root(minio).get_object("rotated", leaf).read().decode())
    other, of_other = next(
        (name, found)
        for name in modified(minio, "rotated", ".narinfo")
        for found in [NarInfo.parse(root(minio).get_object("rotated", name).read().decode())]
        if name != leaf
    )
    turn_a_bit(minio, "rotated", leaf, narinfo.store_path.encode())
    turn_a_bit(minio, "rotated", of_other.url)
    rotten = audit(stack, "--hash", "all")
    assert rotten.findings() == {("unanswered", leaf), ("unanswered", other)}
    assert "an overload passes, damage on its disk does not" in rotten.outcome.output
    assert "make repair" not in rotten.outcome.output
    names = sorted([leaf, other, of_other.url])
    assert f'make empty STACK=test ARGS="{" ".join(names)}"' in rotten.outcome.output
    stack.operate("empty", "--stack", stack.name, *names, text="rotated\n").succeeded()
    stack.operate("push", "--stack", stack.name).succeeded()
    assert audit(stack, "--hash", "all").findings() == set()

    unknown = stack.operate("push", "--stack", stack.name, "nobody")
    assert (unknown.code, unknown.output) == (
        2,
        "error: no builder nobody of stack test pushes by a deployment or has a "
        "credentialsDirectory; there are nixbuilder\n",
    )


def turn_a_bit(server: MinioServer, bucket: str, name: str, beginning: bytes = b"") -> None:
    """Let the disk forget a bit of an object, of what begins so or of its last byte."""
    *_, file = sorted(path for path in (server.directory / "data" / bucket / name).rglob("*"))
    content = bytearray(file.read_bytes())
    place = content.find(beginning) if beginning else len(content) - 1
    assert place >= 0
    content[place] ^= 1
    file.write_bytes(content)


def leaf_of(server: MinioServer, bucket: str) -> str:
    """Return the name of the narinfo of a path that refers to no other."""
    for name in modified(server, bucket, ".narinfo"):
        narinfo = NarInfo.parse(root(server).get_object(bucket, name).read().decode())
        if not set(narinfo.references) - {narinfo.store_path[11:]}:
            return name
    raise AssertionError("every path refers to another")


def test_an_adopted_key_signs_nothing_anew(
    new_stack: StackFactory, minio: MinioServer, builder: ThrowawayBuilder
) -> None:
    settings = {
        **server_settings(minio),
        "bucket": "adopted",
        "sshPrivateKey": builder.private_key,
        "builders": [
            builder_settings(builder, builder.make_closure(PATHS, 2_000_000, 8, "adopted"))
        ],
        "upstreamKeys": [],
        "adoptedSigningKeys": builder.run(
            f"cd /tmp\nnix-store --generate-binary-cache-key {FIRST} secret public\ncat secret"
        ).stdout,
    }
    new_stack("first", **settings).up().succeeded()
    written = modified(minio, "adopted", ".narinfo")
    assert len(written) == PATHS
    second = new_stack("second", **settings, adoptBucket=True)
    second.up().succeeded()
    (pushed,) = second.outputs()["builders"].values()
    assert pushed["lastPush"].startswith("pushed 0 paths")
    assert modified(minio, "adopted", ".narinfo") == written
    assert audit(second).keys() == {FIRST: (True, PATHS, PATHS, 0)}


def test_a_new_stack_takes_over_the_keys_and_the_bucket_of_a_lost_one(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    lost = new_stack("lost", **server_settings(minio), bucket="lost")
    lost.set(signingKeys=[FIRST, SECOND])
    lost.up().succeeded()
    offline = tmp_path / "signing-keys"
    offline.write_text(backup(lost))
    store(minio, "lost", SecretKey.parse(offline.read_text().splitlines()[-1]), b"x" * 500)

    new = new_stack("new", **server_settings(minio), bucket="lost")
    new.set(signingKeys=[FIRST, SECOND])
    command = ("config", "set", "--secret", "adoptedSigningKeys", "--stack", "new")
    new.run(*command, text=offline.read_text()).succeeded()
    assert "set adoptBucket to true" in new.up().refused()
    new.set(adoptBucket=True)
    new.up().succeeded()
    assert new.changes() == {}
    assert new.outputs()["publicKeys"] == lost.outputs()["publicKeys"]
    assert backup(new) == offline.read_text()
    audited = audit(new, "--hash", "all")
    assert audited.findings() == set()
    assert audited.keys()[SECOND] == (True, 1, 1, 0)


def test_damage_is_found(new_stack: StackFactory, minio: MinioServer) -> None:
    stack = new_stack(**server_settings(minio), bucket="damaged")
    stack.up().succeeded()
    key = SecretKey.parse(backup(stack))
    sound, gone, changed, cut = (store(minio, "damaged", key, bytes([n]) * 500) for n in range(4))
    assert audit(stack, "--hash", "all").findings() == set()

    root(minio).remove_object("damaged", gone.url)
    put(minio, "damaged", changed.url, b"x" * 500)
    put(minio, "damaged", cut.url, b"x" * 499)
    names = {narinfo: f"{narinfo.store_path[11:43]}.narinfo" for narinfo in (gone, changed, cut)}
    quick = audit(stack)
    assert quick.findings() == {("nar-missing", names[gone]), ("nar-size", names[cut])}
    assert names[gone] in quick.outcome.output
    assert audit(stack, "--hash", "all").findings() == {
        ("nar-missing", names[gone]),
        ("nar-content", names[changed]),
        ("nar-size", names[cut]),
    }
    assert sound.url not in quick.outcome.output

    # What is no narinfo at all, and what a browser would run, goes as the audit says.
    worker = f"{'0' * 32}.narinfo"
    put(minio, "damaged", worker, b"self.registration", "text/javascript")
    put(minio, "damaged", sound.url, bytes(500), "text/html")
    served = audit(stack)
    name = f"{sound.store_path[11:43]}.narinfo"
    assert served.findings() - quick.findings() == {
        ("content-type", worker),
        ("malformed", worker),
        ("content-type", name),
    }
    wrong = sorted([name, sound.url, worker])
    assert f'ARGS="{" ".join(wrong)}" removes what is wrong' in served.outcome.output
    stack.operate("empty", "--stack", stack.name, *wrong, text="damaged\n").succeeded()
    assert audit(stack).findings() == quick.findings()


def test_a_private_cache_is_read_with_its_readers_credential(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="private", access="private")
    stack.up().succeeded()
    store(minio, "private", SecretKey.parse(backup(stack)), b"x" * 500)
    credentials = stack.outputs()["readerCredentials"].split()[1:]
    audited = audit(stack, "--hash", "all")
    assert audited.findings() == set()
    assert (audited.report["narinfos"], audited.report["hashed"]) == (1, 1)
    assert credentials[-1] not in audited.outcome.output

    # The deploying user may read everything: what follows shows that the reader is asked.
    admin = MinioAdmin(
        endpoint=minio.endpoint.removeprefix("https://"),
        credentials=StaticProvider(minio.root_user, minio.root_password),
        http_client=urllib3.PoolManager(ca_certs=str(minio.ca_file)),
    )
    admin.user_disable(credentials[2])
    assert {kind for kind, _ in audit(stack).findings()} == {"cache-info", "unreadable"}


def test_no_secret_is_an_argument_of_the_engines_command(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path, engine: Mapping[str, str]
) -> None:
    stack = new_stack(**server_settings(minio), bucket="arguments", access="private")
    stack.up().succeeded()
    log, wrapper = tmp_path / "arguments", tmp_path / "watched"
    pulumi = shutil.which("pulumi", path=engine["PATH"])
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{log}\nexec {pulumi} "$@"\n')
    wrapper.chmod(0o755)
    assert audit(stack, PULUMI_COMMAND=str(wrapper)).findings() == set()
    outputs = stack.outputs()
    arguments = log.read_text()
    assert "--stack test" in arguments
    for secret in (
        minio.root_password,
        outputs["readerCredentials"].split()[-1],
        outputs["signingKeyBackup"],
    ):
        assert secret not in arguments


def test_what_cannot_be_audited_is_told_from_findings(
    new_stack: StackFactory, tmp_path: Path
) -> None:
    with MinioServer(tmp_path / "minio") as server:
        stack = new_stack(**server_settings(server), bucket="stopped")
        command = ("audit", "--stack", stack.name)
        never = stack.operate(*command)
        assert (never.code, never.output.count("\n")) == (2, 1)
        assert "run make up STACK=test" in never.output
        stack.up().succeeded()
        wrong = stack.operate("audit", "--stack", "nobody")
        assert (wrong.code, "there is no stack nobody" in wrong.output) == (2, True)
        missing = stack.operate(*command, PULUMI_COMMAND="no-such-pulumi")
        assert (missing.code, "PULUMI_COMMAND" in missing.output) == (2, True)
    stopped = stack.operate(*command)
    assert (stopped.code, "Traceback" in stopped.output) == (2, False)
    assert "no S3 server answers there" in stopped.output
