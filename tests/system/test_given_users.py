"""What is made elsewhere: users, and who may read. On a real MinIO of another region.

The program never calls its admin API.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3
from minio import Minio

from components.access import WRITE_ACTIONS, read_policy, write_policy
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.minio_client import MinioClient
from tests.system.reverse_proxy import reverse_proxy
from tests.system.stack import Stack
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

BUCKET = "given"
SECRETS = {"GK-builder": "the-secret-of-the-builder", "GK-reader": "the-secret-of-the-reader"}
DIRECTORY = "/var/lib/nix-binary-cache"


REGION = "garage"


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A running MinIO server that wants its own region in every signature."""
    with MinioServer(tmp_path_factory.mktemp("minio"), region=REGION) as server:
        yield server


@pytest.fixture(scope="module")
def root(minio: MinioServer) -> Minio:
    """An S3 client with the server's root credential."""
    return Minio(
        minio.endpoint.removeprefix("https://"),
        access_key=minio.root_user,
        secret_key=minio.root_password,
        region=REGION,
        http_client=urllib3.PoolManager(ca_certs=str(minio.ca_file), retries=False),
    )


def lines(**changes: str) -> str:
    """Return the setting `givenUserSecrets`, `_` in a name for `-`."""
    secrets = {**SECRETS, **{name.replace("_", "-"): secret for name, secret in changes.items()}}
    return "".join(f"{user}:{secret}\n" for user, secret in secrets.items())


@dataclass(frozen=True)
class Given:
    """A stack whose users an administrator made."""

    stack: Stack
    mc: MinioClient
    directory: Path
    root: Minio
    asked: list[str]
    """What its server has been asked."""

    def objects(self) -> set[str]:
        """Return the keys of all objects."""
        if not self.root.bucket_exists(BUCKET):
            return set()
        return {str(entry.object_name) for entry in self.root.list_objects(BUCKET, recursive=True)}

    def allow(self, user: str, policy: str) -> None:
        """Make a policy, instead of any other of the name, and give it to a user."""
        file = self.directory / f"{user}.json"
        file.write_text(policy)
        self.mc.run(f"admin policy create s3 {user} {file}")


@pytest.fixture(scope="module")
def given(
    engine: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    minio: MinioServer,
    root: Minio,
    builder: ThrowawayBuilder,
) -> Iterator[Given]:
    """A private cache with a builder and a reader, none of them with any rights yet."""
    directory = tmp_path_factory.mktemp("given")
    mc = MinioClient(minio, directory)
    nothing = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::none/*"]}
    closure = builder.make_closure(3, 300_000, seed=7, name="given")
    stack = Stack(engine, directory / "given")
    asked: list[str] = []

    def noted(method: str, target: str, _headers: Mapping[str, str]) -> None:
        asked.append(f"{method} {target}")

    with reverse_proxy(minio, lie=noted) as url:
        made = Given(stack, mc, directory, root, asked)
        for user, secret in SECRETS.items():
            mc.run("admin user add s3", text=f"{user}\n{secret}\n")
            made.allow(user, json.dumps({"Version": "2012-10-17", "Statement": [nothing]}))
            mc.run(f"admin policy attach s3 {user} --user {user}")
        machine = builder_settings(builder, closure)
        stack.set(
            server_settings(minio),
            endpoint=url,
            caCertificateFile=None,
            bucket=BUCKET,
            region=REGION,
            access="private",
            users="given",
            readerAccessKeyId="GK-reader",
            givenUserSecrets=lines(),
            sshPrivateKey=builder.private_key,
            upstreamKeys=[],
            builders=[{**machine, "accessKeyId": "GK-builder", "credentialsDirectory": DIRECTORY}],
        )
        yield made
        for key in made.objects():
            made.root.remove_object(BUCKET, key)
        # Nobody needs a builder's secret to take a cache away.
        stack.set(givenUserSecrets=lines(GK_builder="a-wrong-one", GK_reader="another"))
        stack.destroy().succeeded()
        assert not [line for line in asked if "/minio/admin/" in line]


def refusal(given: Given) -> str:
    """Return the one sentence of an `up` that pushed nothing, and that shows no secret."""
    before = given.objects()
    outcome = given.stack.up()
    assert "Traceback" not in outcome.output
    assert not any(secret in outcome.output for secret in SECRETS.values())
    assert not any(name.endswith(".narinfo") for name in given.objects() - before)
    return outcome.refused()


def test_a_builder_without_rights_is_one_sentence_before_anything_is_pushed(given: Given) -> None:
    assert (
        'builders[0].accessKeyId is "GK-builder": the server does not let it write in bucket given '
        "(HTTP 403 AccessDenied); give it the rights that make check-server STACK=test "
        "ARGS=--policy shows, or correct its secret in givenUserSecrets"
    ) in refusal(given)
    assert not given.objects()


def test_a_reader_without_rights_is_one_sentence_too(given: Given) -> None:
    given.allow("GK-builder", write_policy(BUCKET, None))
    assert 'readerAccessKeyId is "GK-reader": the server does not let it read' in refusal(given)
    assert not given.objects()


def test_with_their_rights_everything_is_pushed_and_no_admin_call_is_made(given: Given) -> None:
    given.allow("GK-reader", read_policy(BUCKET, None))
    up = given.stack.up().succeeded()
    assert "warning" not in up.output
    assert len([key for key in given.objects() if key.endswith(".narinfo")]) == 3
    assert not [key for key in given.objects() if "check" in key]
    assert not [line for line in given.asked if "/minio/admin/" in line]
    types = {resource["type"] for resource in given.stack.resources()}
    assert not {name for name in types if "Iam" in name or "Access" in name}
    outputs = given.stack.outputs()
    assert outputs["builderPolicy"] == json.dumps(json.loads(write_policy(BUCKET, None)), indent=2)
    assert all(action in outputs["builderPolicy"] for action in WRITE_ACTIONS)
    assert json.loads(outputs["readerPolicy"])["Statement"][0]["Action"] == ["s3:GetObject"]
    assert outputs["readerCredentials"] == (
        "[given-reader]\naws_access_key_id = GK-reader\n"
        "aws_secret_access_key = the-secret-of-the-reader\n"
    )
    assert outputs["nixos"]["builders"]["nixbuilder"]["accessKeyId"] == "GK-builder"
    assert not any(secret in given.stack.export() for secret in SECRETS.values())


def test_nothing_changes_drift_finds_nothing_and_the_audit_reads_it(given: Given) -> None:
    assert not given.stack.changes()
    given.stack.operate("drift", "--stack", "test").succeeded()
    given.stack.operate("audit", "--stack", "test").succeeded()


def test_a_wrong_secret_is_told_by_the_preview_and_refused_before_any_push(given: Given) -> None:
    given.stack.set(givenUserSecrets=lines(GK_builder="not-the-secret"))
    sentence = "givenUserSecrets: the server refuses the secret of GK-builder, as builder nixbuild"
    preview = given.stack.preview().succeeded()
    assert sentence in preview.output
    assert sentence in refusal(given)
    assert "not-the-secret" not in preview.output


def test_a_secret_is_rotated_by_giving_the_new_one(given: Given, builder: ThrowawayBuilder) -> None:
    given.mc.run("admin user add s3", text="GK-builder\na-new-secret\n")
    file = given.directory / "secrets"
    file.write_text(lines(GK_builder="a-new-secret"))
    given.stack.type(f"pulumi config set --secret givenUserSecrets < {file}").succeeded()
    given.stack.up().succeeded()
    assert builder.run(f"cat {DIRECTORY}/secret-access-key").stdout == "a-new-secret\n"
    assert "a-new-secret" not in given.stack.export()


def test_more_rights_than_a_builder_needs_are_told(given: Given) -> None:
    statement = {"Effect": "Allow", "Action": ["s3:*"], "Resource": [f"arn:aws:s3:::{BUCKET}/*"]}
    bucket = {**statement, "Resource": [f"arn:aws:s3:::{BUCKET}"]}
    everything = {"Version": "2012-10-17", "Statement": [statement, bucket]}
    given.allow("GK-builder", json.dumps(everything))
    given.stack.set(compression="xz")
    output = given.stack.up().succeeded().output
    assert "builders[0].accessKeyId is GK-builder: the server lets it delete" in output
    assert "lets it write what the deployment keeps in the bucket (_nixcache/)" in output
    assert not [key for key in given.objects() if "check" in key]


def deploy_in_the_former_order(stack: Stack) -> None:
    """Make a state of it in which the rules are not in the order of their ids."""
    state = json.loads(stack.export())
    for resource in state["deployment"]["resources"]:
        if "IlmPolicy" in resource["type"]:
            resource["inputs"]["rules"].reverse()
            resource["outputs"]["rules"].reverse()
    stack.run("stack", "import", "-s", stack.name, text=json.dumps(state)).succeeded()


def test_a_bucket_that_is_opened_elsewhere_is_proved_to_be_open(
    given: Given, new_stack: StackFactory, minio: MinioServer
) -> None:
    url = f"{minio.endpoint}/opened"
    stack = new_stack(
        **server_settings(minio),
        bucket="opened",
        region=REGION,
        users="given",
        bucketPolicy=False,
        publicUrl=url,
        expiresAtMidnight=False,
    )
    first = stack.up().succeeded()
    sentence = f"publicUrl is {url}: clients cannot read there (HTTP 403 for nix-cache-info)"
    assert sentence in first.output
    assert "garage bucket website --allow opened" in first.output
    assert sentence in stack.outputs()["readable"]
    assert not [found for found in stack.resources() if "S3BucketPolicy" in found["type"]]
    rules = given.root.get_bucket_lifecycle("opened")
    assert rules is not None
    assert {rule.expiration.days for rule in rules.rules if rule.expiration} == {8, 9}
    ids = [str(rule.rule_id) for rule in rules.rules]
    assert ids == sorted(ids)
    drift = stack.operate("drift", "--stack", "test")
    assert drift.code == 1
    assert sentence in drift.output
    given.mc.run("anonymous set download s3/opened")
    deploy_in_the_former_order(stack)
    assert stack.changes() == {"update": 1}
    assert "warning" not in stack.up().succeeded().output
    assert stack.outputs()["readable"] == f"everyone reads at {url}"
    assert "everyone reads" not in stack.preview().succeeded().output
    stack.destroy().succeeded()
