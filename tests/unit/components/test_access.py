"""Access: which users and policies are declared, as the engine would be told."""

from __future__ import annotations

import json

import pulumi
import pytest

from components.access import WRITE_ACTIONS, BuilderAccess, BuilderAccessArgs
from tests.unit.recording_mocks import SECRET, RecordingMocks, settled, use_recording_mocks


@pytest.fixture
def engine() -> RecordingMocks:
    """An engine that records."""
    return use_recording_mocks()


def access(users: dict[str, str], secrets: dict[str, str]) -> pulumi.Output[dict[str, str]]:
    """Declare builders' access; return their secrets by the builders' names."""
    args = BuilderAccessArgs(
        bucket="nix-cache", policy="nix-cache-write", users=users, secrets=secrets
    )
    credentials = BuilderAccess("builders", args).credentials
    return pulumi.Output.all(
        **{builder: credential.secret_access_key for builder, credential in credentials.items()}
    )


def test_a_builder_has_a_user_whose_secret_nobody_chose_and_the_recipes_policy(
    engine: RecordingMocks,
) -> None:
    settled(lambda: access({"laptop": "nixbuilder"}, {}))
    assert engine.inputs("minio:index/iamUser:IamUser") == {"name": "nixbuilder"}
    policy = json.loads(engine.inputs("minio:index/iamPolicy:IamPolicy")["policy"])
    (statement,) = policy["Statement"]
    assert sorted(statement["Action"]) == sorted(WRITE_ACTIONS)
    assert not [action for action in statement["Action"] if "Delete" in action or "*" in action]
    assert statement["Resource"] == ["arn:aws:s3:::nix-cache", "arn:aws:s3:::nix-cache/*"]
    assert engine.inputs("minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment") == {
        "userName": "nixbuilder",
        "policyName": "nix-cache-write",
    }


def test_builders_share_a_policy_and_keep_the_secrets_that_they_have(
    engine: RecordingMocks,
) -> None:
    settled(lambda: access({"laptop": "by-hand", "server": "new"}, {"by-hand": "S3CRET"}))
    assert engine.types().count("minio:index/iamPolicy:IamPolicy") == 1
    users = {
        name: inputs
        for typ, name, inputs in engine.resources
        if typ == "minio:index/iamUser:IamUser"
    }
    assert users["server-user"] == {"name": "new"}
    assert users["laptop-user"]["name"] == "by-hand"
    assert "S3CRET" in users["laptop-user"]["secret"].values()
    assert SECRET in users["laptop-user"]["secret"].values()
