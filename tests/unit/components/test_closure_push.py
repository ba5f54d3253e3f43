"""ClosurePush: what builders are given, and what travels to them."""

from __future__ import annotations

import base64
import hashlib
import json

import pulumi
import pulumi_command as command
import pytest

from components.access import (
    Credential,
)
from components.closure_push import BuilderPush, ClosurePush, ClosurePushArgs, summary_of
from components.push_program import PROGRAM_KEY, archive, bootstrap
from components.text_object import multipart_etag
from tests.unit.components.test_push_program import as_by_another_zlib
from tests.unit.configuration import HOST_KEY
from tests.unit.recording_mocks import SECRET, RecordingMocks, settled, use_recording_mocks

PROGRAM = f"nix-cache/{PROGRAM_KEY}"
STORE_PATH = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting"


@pytest.fixture
def engine() -> RecordingMocks:
    """An engine that records."""
    return use_recording_mocks()


def pushed(
    connection: command.remote.ConnectionArgs | None, uploaded: bytes = b""
) -> pulumi.Output[str]:
    """Declare a push with every secret recognisable; return what it prints."""
    credential = Credential(
        access_key_id=pulumi.Output.from_input("nixbuilder"),
        secret_access_key=pulumi.Output.from_input("S3CRET-USER"),
    )
    args = ClosurePushArgs(
        builders={
            "laptop": BuilderPush(
                closures=[STORE_PATH],
                credential=credential,
                signing_key="s3.homelab.local-2:S3CRET-NEW",
                connection=connection,
            )
        },
        bucket_name="nix-cache",
        bucket="nix-cache",
        settings={
            "endpoint": "https://s3.homelab.local",
            "parallelism": 2,
            "upstream-key": ["a", "b"],
        },
        ca_certificate="-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n",
        uploaded=uploaded,
    )
    return ClosurePush("builders", args).summaries["laptop"]


def test_a_push_says_what_it_pushes_and_gives_secrets_on_standard_input_only(
    engine: RecordingMocks,
) -> None:
    connection = command.remote.ConnectionArgs(host="builder", host_key=HOST_KEY)
    settled(lambda: pushed(connection))
    inputs = engine.inputs("command:remote:Command")
    stdin = inputs.pop("stdin")
    settings = stdin["value"]
    assert SECRET in stdin.values()
    (program,) = [inputs for _, name, inputs in engine.resources if name == PROGRAM]
    assert program["objectName"] == PROGRAM_KEY
    assert base64.b64decode(program["contentBase64"]) == archive()
    checksum = hashlib.sha256(archive()).hexdigest()
    assert inputs["create"].endswith(f" {checksum} --config - {STORE_PATH}")
    assert "S3CRET" not in json.dumps(inputs)
    assert settings.startswith(bootstrap(archive()))
    lines = settings.removeprefix(bootstrap(archive())).splitlines()
    (ca,) = [line for line in lines if line.startswith("ca-certificate=")]
    assert base64.b64decode(ca.partition("=")[2]).startswith(b"-----BEGIN CERTIFICATE")
    assert [line for line in lines if line != ca] == [
        "endpoint=https://s3.homelab.local",
        "parallelism=2",
        "upstream-key=a",
        "upstream-key=b",
        "bucket=nix-cache",
        "access-key-id=nixbuilder",
        "secret-access-key=S3CRET-USER",
        "signing-key=s3.homelab.local-2:S3CRET-NEW",
    ]


def test_what_the_last_deployment_uploaded_is_what_pushes_where_it_is_this_push(
    engine: RecordingMocks,
) -> None:
    uploaded = as_by_another_zlib()
    settled(lambda: pushed(None, uploaded))
    (program,) = [inputs for _, name, inputs in engine.resources if name == PROGRAM]
    assert base64.b64decode(program["contentBase64"]) == uploaded
    assert program["etag"] == multipart_etag(uploaded)
    checksum = hashlib.sha256(uploaded).hexdigest()
    assert f" {checksum} " in engine.inputs("command:local:Command")["create"]


def test_a_summary_is_the_last_line_whatever_a_login_shell_prints() -> None:
    assert summary_of("Welcome!\nLast login: today\npushed 1 paths (1 B)\n") == (
        "pushed 1 paths (1 B)"
    )
    assert summary_of("") == ""


def test_this_machine_pushes_without_ssh(engine: RecordingMocks) -> None:
    settled(lambda: pushed(None))
    assert "command:remote:Command" not in engine.types()
    assert engine.inputs("command:local:Command")["create"].endswith(STORE_PATH)
