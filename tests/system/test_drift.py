"""What is changed behind a stack's back is found, and put right as the documents say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import StackFactory, server_settings
from tests.system.minio_client import MinioClient
from tests.system.stack import Outcome, Stack
from toolbox.minio_server import MinioServer

BUCKET = "drifting"
BUILDERS = ("disabled", "changed", "deleted", "detached")
POLICY = f"{BUCKET}-write"
AS_DECLARED, DIFFERS, CANNOT_TELL = range(3)


@dataclass(frozen=True)
class Deployed:
    """A stack with one builder, and `mc` to tamper with it."""

    stack: Stack
    mc: MinioClient
    directory: Path

    def drift(self) -> Outcome:
        """`make drift`."""
        return self.stack.operate("drift", "--stack", self.stack.name)

    def repair(self) -> Outcome:
        """`make repair`, which must leave nothing that differs."""
        repaired = self.stack.operate("repair", "--stack", self.stack.name, "--yes").succeeded()
        assert self.drift().code == AS_DECLARED
        return repaired

    def file(self, text: str) -> Path:
        """Return a file with that text."""
        path = self.directory / "file"
        path.write_text(text)
        return path


@pytest.fixture(scope="module")
def deployed(
    engine: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory, minio: MinioServer
) -> Iterator[Deployed]:
    directory = tmp_path_factory.mktemp("drift")
    stack = Stack(engine, directory / "stack")
    stack.set(
        server_settings(minio),
        bucket=BUCKET,
        builders=[{"name": name, "local": True} for name in BUILDERS],
    )
    stack.up().succeeded()
    yield Deployed(stack, MinioClient(minio, directory), directory)
    stack.destroy()


WIDER = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}],
    }
)

Tampering = tuple[Callable[[Deployed], object], str]

SEEN_BY_A_REFRESH: dict[str, list[Tampering]] = {
    "is opened, widened, removed or changed": [
        (
            lambda d: d.mc.run(f"anonymous set public s3/{BUCKET}"),
            "changed | bucket policy `drifting`",
        ),
        (
            lambda d: d.mc.run(f"ilm rule rm --all --force s3/{BUCKET}"),
            "**deleted** | lifecycle `drifting`",
        ),
        (
            lambda d: d.mc.run(f"cp {d.file('StoreDir: /x')} s3/{BUCKET}/nix-cache-info"),
            "changed | object `drifting/nix-cache-info`",
        ),
        (
            lambda d: d.mc.run(f"admin policy create s3 {POLICY} {d.file(WIDER)}"),
            "changed | policy `drifting-write`",
        ),
    ],
    "is closed, added, deleted or detached": [
        (
            lambda d: d.mc.run(f"anonymous set none s3/{BUCKET}"),
            "bucket policy `drifting`",
        ),
        (
            lambda d: d.mc.run(f"ilm rule add --expire-days 1 s3/{BUCKET}"),
            "changed | lifecycle `drifting`",
        ),
        (
            lambda d: d.mc.run(f"rm s3/{BUCKET}/use.html"),
            "**deleted** | object `drifting/use.html`",
        ),
        (
            lambda d: d.mc.run(f"admin policy detach s3 {POLICY} --user {BUCKET}-detached"),
            "**deleted** | policy attachment `drifting-detached/drifting-write`",
        ),
    ],
}


@pytest.mark.parametrize("tampering", SEEN_BY_A_REFRESH)
def test_what_a_refresh_sees_is_found_and_put_right(deployed: Deployed, tampering: str) -> None:
    assert deployed.drift().code == AS_DECLARED
    for tamper, _ in SEEN_BY_A_REFRESH[tampering]:
        tamper(deployed)
    found = deployed.drift()
    assert found.code == DIFFERS
    for _, finding in SEEN_BY_A_REFRESH[tampering]:
        assert finding in found.output
    assert "error: " not in found.output
    assert found.output.endswith("make repair STACK=test puts it right\n")
    deployed.repair()


def test_a_refresh_that_runs_the_program_notes_what_is_gone(deployed: Deployed) -> None:
    deployed.mc.run(f"rm s3/{BUCKET}/use.html")
    deployed.mc.run(f"ilm rule rm --all --force s3/{BUCKET}")
    refresh = ("refresh", "--yes", "--skip-preview", "--run-program", "-s", deployed.stack.name)
    deployed.stack.run(*refresh).succeeded()
    urns = [resource["urn"] for resource in deployed.stack.resources()]
    assert not [urn for urn in urns if urn.endswith((f"IlmPolicy::{BUCKET}", "/use.html"))]
    assert [urn for urn in urns if urn.endswith("::safeguard")]
    deployed.stack.up().succeeded()
    assert deployed.drift().code == AS_DECLARED


def test_what_happens_to_builders_users_is_found_and_their_credentials_come_back(
    deployed: Deployed,
) -> None:
    before = deployed.stack.outputs()["builders"]
    deployed.mc.run(f"admin user disable s3 {BUCKET}-disabled")
    deployed.mc.run("admin user add s3", text=f"{BUCKET}-changed\nanother-secret-key\n")
    deployed.mc.run(f"admin user remove s3 {BUCKET}-deleted")
    found = deployed.drift()
    assert found.code == DIFFERS
    for name in ("disabled", "changed", "deleted"):
        assert f"builder {name}: the server refuses its user {BUCKET}-{name}" in found.output
    repaired = deployed.repair()
    assert f"user {BUCKET}-disabled was gone or disabled: put back" in repaired.output
    assert f"user {BUCKET}-changed had another secret: put back the one it had" in repaired.output
    assert deployed.stack.outputs()["builders"] == before
    for access in before.values():
        assert access["secretAccessKey"] not in found.output + repaired.output


def test_a_deleted_policy_is_found_and_put_back(deployed: Deployed) -> None:
    for name in BUILDERS:
        deployed.mc.run(f"admin policy detach s3 {POLICY} --user {BUCKET}-{name}")
    deployed.mc.run(f"admin policy remove s3 {POLICY}")
    found = deployed.drift()
    assert found.code == DIFFERS
    assert f"unable to read policy ({POLICY})" in found.output
    assert f"policy {POLICY} was gone: made again" in deployed.repair().output


def test_a_deleted_bucket_is_found_and_made_again(deployed: Deployed) -> None:
    deployed.mc.run(f"rb --force s3/{BUCKET}")
    found = deployed.drift()
    assert found.code == DIFFERS
    assert f"there is no bucket {BUCKET}" in found.output
    assert "make repair STACK=test puts it right, with an empty one" in found.output
    for refused in (deployed.stack.preview().refused(), deployed.stack.up().refused()):
        assert f'bucket is "{BUCKET}": the server has it no longer' in refused
        assert "make repair STACK=test" in refused
    assert f"bucket {BUCKET} was gone: made again, empty" in deployed.repair().output


def test_an_unusable_server_is_told_before_a_refresh_can_empty_the_state(
    new_stack: StackFactory, tmp_path: Path
) -> None:
    with MinioServer(tmp_path / "minio") as server:
        stack = new_stack(**server_settings(server))
        stack.up().succeeded()
        before = stack.export()
        stack.set(minioPassword="another-password")
        refused = stack.operate("drift", "--stack", stack.name)
        stack.set(minioPassword=server.root_password)
    silent = stack.operate("drift", "--stack", stack.name)
    assert refused.code == silent.code == CANNOT_TELL
    assert "minioPassword: the server refuses it" in refused.output
    assert "endpoint: no S3 server answers there" in silent.output
    assert stack.export() == before


@pytest.mark.parametrize("stays", [True, False])
def test_a_user_that_a_refresh_has_forgotten_and_not_its_policy_comes_back_or_goes(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path, stays: bool
) -> None:
    bucket = f"forgotten-{stays}".lower()
    builders = [{"name": "stays", "local": True}, {"name": "gone", "local": True}]
    stack = new_stack(**server_settings(minio), bucket=bucket, builders=builders)
    stack.up().succeeded()
    mc = MinioClient(minio, tmp_path)
    user = f"{bucket}-gone"
    mc.run(f"admin user rm s3 {user}")
    left = builders if stays else builders[:1]
    if not stays:
        stack.set(builders=left)
        refused = stack.up().refused()
        assert f"the user {user} would be deleted, and is gone from the server" in refused
        assert "make repair STACK=test puts it back first" in refused
        stack.set(builders=builders)
    assert "does not exist" in stack.refresh().refused()
    refused = stack.up().refused()
    assert f"builders: a refresh has forgotten {user}, gone from the server" in refused
    stack.set(builders=left)
    repaired = stack.operate("repair", "--stack", stack.name, "--yes").succeeded()
    assert f"user {user} was gone: made again, with another secret\n" in repaired.output
    assert not stack.changes("--refresh", "--run-program")
    users = mc.run("admin user ls s3")
    assert (user in users) == stays
    if stays:
        assert f"{bucket}-write" in mc.run(f"admin user info s3 {user}")
    stack.destroy().succeeded()


def test_what_a_repair_does_not_put_right_is_not_left_to_one(
    new_stack: StackFactory, tmp_path: Path
) -> None:
    with MinioServer(tmp_path / "one") as server, MinioServer(tmp_path / "other") as other:
        stack = new_stack(**server_settings(server))
        stack.up().succeeded()
        stack.set(builders=[{"name": "here", "local": True, "closures": ["/run/x!"]}])
        refused = stack.operate("drift", "--stack", stack.name)
        stack.set(builders=[])
        stack.set(server_settings(other))
        moved = stack.operate("drift", "--stack", stack.name)
        stack.set(adoptBucket=True)
        assert "there is no bucket nix-cache there, and this" in stack.preview().refused()
        stack.set(server_settings(server))
        stack.set(adoptBucket=None)
        assert stack.operate("drift", "--stack", stack.name).code == AS_DECLARED
    assert refused.code == moved.code == CANNOT_TELL
    assert "login shells disagree on !" in refused.output
    assert f"the last deployment was to {server.endpoint}: nothing was compar" in moved.output
    assert "repair" not in refused.output + moved.output
