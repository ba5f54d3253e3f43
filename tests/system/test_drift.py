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
USER, POLICY = f"{BUCKET}-here", f"{BUCKET}-write"
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

    def repair(self) -> None:
        """The one command that docs/recovery.md gives for what a refresh sees."""
        self.stack.up("--refresh", "--run-program").succeeded()

    def set_user(self) -> None:
        """What docs/recovery.md gives for a builder's user: its secret from the state, anew."""
        secret = self.stack.outputs()["builders"]["here"]["secretAccessKey"]
        self.mc.run("admin user add s3", text=f"{USER}\n{secret}\n")

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
    stack.set(server_settings(minio), bucket=BUCKET, builders=[{"name": "here", "local": True}])
    stack.up().succeeded()
    yield Deployed(stack, MinioClient(minio, directory), directory)
    stack.destroy()


WIDER = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}],
    }
)

SEEN_BY_A_REFRESH: dict[str, tuple[Callable[[Deployed], object], str]] = {
    "the bucket's policy is opened": (
        lambda d: d.mc.run(f"anonymous set public s3/{BUCKET}"),
        "changed | bucket policy `cache-download`",
    ),
    "the bucket's policy is removed": (
        lambda d: d.mc.run(f"anonymous set none s3/{BUCKET}"),
        "bucket policy `cache-download`",
    ),
    "the lifecycle is removed": (
        lambda d: d.mc.run(f"ilm rule rm --all --force s3/{BUCKET}"),
        "**deleted** | lifecycle `cache-retention`",
    ),
    "a rule is added to the lifecycle": (
        lambda d: d.mc.run(f"ilm rule add --expire-days 1 s3/{BUCKET}"),
        "changed | lifecycle `cache-retention`",
    ),
    "an object is changed": (
        lambda d: d.mc.run(f"cp {d.file('StoreDir: /x')} s3/{BUCKET}/nix-cache-info"),
        "changed | object `cache-nix-cache-info`",
    ),
    "an object is deleted": (
        lambda d: d.mc.run(f"rm s3/{BUCKET}/index.html"),
        "**deleted** | object `cache-index.html`",
    ),
    "the builders' policy is widened": (
        lambda d: d.mc.run(f"admin policy create s3 {POLICY} {d.file(WIDER)}"),
        "changed | policy `builders-policy`",
    ),
    "the builder's policy is detached": (
        lambda d: d.mc.run(f"admin policy detach s3 {POLICY} --user {USER}"),
        "**deleted** | policy attachment `here-attachment`",
    ),
    "the bucket is deleted": (
        lambda d: d.mc.run(f"rb --force s3/{BUCKET}"),
        f"there is no bucket {BUCKET}",
    ),
}

SEEN_BY_ITS_CREDENTIAL: dict[str, Callable[[Deployed], object]] = {
    "the builder's user is disabled": lambda d: d.mc.run(f"admin user disable s3 {USER}"),
    "the builder's secret is changed": lambda d: d.mc.run(
        "admin user add s3", text=f"{USER}\nanother-secret-key\n"
    ),
    "the builder's user is deleted": lambda d: d.mc.run(f"admin user remove s3 {USER}"),
}


@pytest.mark.parametrize("tampering", SEEN_BY_A_REFRESH)
def test_drift_is_found_and_an_up_with_refresh_puts_it_right(
    deployed: Deployed, tampering: str
) -> None:
    assert deployed.drift().code == AS_DECLARED
    tamper, finding = SEEN_BY_A_REFRESH[tampering]
    tamper(deployed)
    found = deployed.drift()
    assert found.code == DIFFERS
    assert finding in found.output
    assert "error: " not in found.output
    deployed.repair()
    assert deployed.drift().code == AS_DECLARED


def test_a_refresh_that_runs_the_program_notes_what_is_gone(deployed: Deployed) -> None:
    deployed.mc.run(f"rm s3/{BUCKET}/index.html")
    deployed.mc.run(f"ilm rule rm --all --force s3/{BUCKET}")
    refresh = ("refresh", "--yes", "--skip-preview", "--run-program", "-s", deployed.stack.name)
    deployed.stack.run(*refresh).succeeded()
    names = {resource["urn"].rpartition("::")[2] for resource in deployed.stack.resources()}
    assert not names & {"cache-index.html", "cache-retention"}
    assert "safeguard" in names
    deployed.stack.up().succeeded()
    assert deployed.drift().code == AS_DECLARED


@pytest.mark.parametrize("tampering", SEEN_BY_ITS_CREDENTIAL)
def test_what_happens_to_a_builders_user_is_found_and_its_credential_comes_back(
    deployed: Deployed, tampering: str
) -> None:
    before = deployed.stack.outputs()["builders"]["here"]
    SEEN_BY_ITS_CREDENTIAL[tampering](deployed)
    found = deployed.drift()
    assert found.code == DIFFERS
    assert f"the server refuses its user {USER}" in found.output
    assert before["secretAccessKey"] not in found.output
    deployed.set_user()
    deployed.repair()
    assert deployed.drift().code == AS_DECLARED
    assert deployed.stack.outputs()["builders"]["here"] == before


def test_a_deleted_policy_is_found_and_put_right_once_there_is_one_of_its_name(
    deployed: Deployed,
) -> None:
    deployed.mc.run(f"admin policy detach s3 {POLICY} --user {USER}")
    deployed.mc.run(f"admin policy remove s3 {POLICY}")
    found = deployed.drift()
    assert found.code == DIFFERS
    assert f"unable to read policy ({POLICY})" in found.output
    deployed.mc.run(f"admin policy create s3 {POLICY} {deployed.file(WIDER)}")
    deployed.repair()
    assert deployed.drift().code == AS_DECLARED


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
