"""Access: which users and policies are declared, as the engine would be told."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import pulumi
import pulumi_minio as minio
import pytest

from components.access import (
    CACHE_FILES,
    WRITE_ACTIONS,
    BuilderAccess,
    BuilderAccessArgs,
    concerns_only,
    given_credential,
    read_policy,
    same_policy,
    unwrapped,
    users_of,
    without_administration,
    write_policy,
)
from components.retention import is_cache_file
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
    read, written, denied, administration = policy["Statement"]
    assert administration == {"Effect": "Deny", "Action": ["admin:*"]}
    actions = [*read["Action"], *written["Action"]]
    assert sorted(actions) == sorted(WRITE_ACTIONS)
    assert not [action for action in actions if "Delete" in action or "*" in action]
    assert read["Resource"] == ["arn:aws:s3:::nix-cache", "arn:aws:s3:::nix-cache/*"]
    assert written["Action"] == denied["Action"] == ["s3:PutObject"]
    status = "arn:aws:s3:::nix-cache/_nixcache/status/${aws:username}"
    assert [one for one in written["Resource"] if "_nixcache" in one] == [status]
    for allowed in (read, written):
        assert allowed["Effect"] == "Allow"
        assert allowed["Condition"] == {"StringEquals": {"aws:username": ["nixbuilder"]}}
    assert denied["Effect"] == "Deny"
    assert engine.inputs("minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment") == {
        "userName": "nixbuilder",
        "policyName": "nix-cache-write",
    }


KEY_HASH = "0" * 32
NAR_HASH = "1" * 52


@pytest.mark.parametrize(
    ("key", "may"),
    [
        (f"{KEY_HASH}.narinfo", True),
        (f"{KEY_HASH}.ls", True),
        (f"nar/{NAR_HASH}.nar.zst", True),
        (f"log/{KEY_HASH}-x.drv", True),
        ("_nixcache/status/alice", True),
        ("_nixcache/status/bob", False),
        ("_nixcache/status/alice/x", False),
        ("_nixcache/push.pyz", False),
        ("_nixcache/pins/live", False),
        ("_nixcache/pins/live.narinfo", False),
        ("_nixcache/x.ls", False),
        ("nix-cache-info", False),
        ("use.html", False),
        ("ca.pem", False),
    ],
)
def test_a_builder_writes_a_caches_files_and_its_own_status_and_nothing_else(
    key: str, may: bool
) -> None:
    statements = json.loads(write_policy("nix-cache", ["alice", "bob"]))["Statement"]

    def matches(effect: str) -> bool:
        return any(
            fnmatchcase(f"arn:aws:s3:::nix-cache/{key}", one.replace("${aws:username}", "alice"))
            for statement in statements
            if statement["Effect"] == effect and "s3:PutObject" in statement["Action"]
            for one in statement["Resource"]
        )

    assert (matches("Allow") and not matches("Deny")) == may


@pytest.mark.parametrize(
    "key",
    [f"{KEY_HASH}.narinfo", f"nar/{NAR_HASH}.nar", f"log/{KEY_HASH}-x.drv", f"{KEY_HASH}.ls"],
)
def test_what_a_policy_takes_for_a_caches_file_the_lifecycle_does_too(key: str) -> None:
    assert is_cache_file(key)
    assert any(fnmatchcase(key, pattern) for pattern in CACHE_FILES)


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
    assert users["new"] == {"name": "new"}
    assert users["by-hand"]["name"] == "by-hand"
    assert "S3CRET" in users["by-hand"]["secret"].values()
    assert SECRET in users["by-hand"]["secret"].values()


def test_without_builders_the_policy_allows_nothing(engine: RecordingMocks) -> None:
    settled(lambda: access({}, {}))
    policy = json.loads(engine.inputs("minio:index/iamPolicy:IamPolicy")["policy"])
    assert [statement["Effect"] for statement in policy["Statement"]] == ["Deny", "Deny"]


def policy(*statements: dict[str, object]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def allowing(*resources: str, **more: object) -> dict[str, object]:
    return {"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": list(resources), **more}


def test_a_policy_made_here_tells_its_users() -> None:
    for users in ([], ["a"], ["b", "a"]):
        text = write_policy("nix-cache", users)
        assert users_of(text, "nix-cache") == frozenset(users)
        assert users_of(without_administration(text), "nix-cache") == frozenset(users)
    assert users_of(write_policy("nix-cache", ["a"]), "nix-cache-2") is None


@pytest.mark.parametrize(
    ("text", "only"),
    [
        (policy(allowing("arn:aws:s3:::nix-cache/*")), True),
        (policy(allowing("arn:aws:s3:::nix-cache", "arn:aws:s3:::nix-cache/*")), True),
        (policy(allowing("arn:aws:s3:::nix-cache*")), False),
        (policy(allowing("arn:aws:s3:::*")), False),
        (policy(allowing("arn:aws:s3:::nix-cache/*"), allowing("arn:aws:s3:::photos/*")), False),
        (policy({"Effect": "Allow", "Action": ["admin:*"]}), False),
        (policy({"Effect": "Deny", "Action": ["admin:*"], "Resource": []}), True),
        (policy({"Effect": "Deny", "Action": "s3:*", "NotResource": "arn:aws:s3:::x"}), False),
        (policy({"Effect": "Allow", "Action": "s3:*", "NotResource": "arn:aws:s3:::x"}), False),
        (policy(allowing("arn:aws:s3:::nix-cache/*", Condition={})), True),
        ("", False),
        ("[]", False),
        ('{"Statement": {}}', True),
        ('{"Statement": [null]}', False),
    ],
)
def test_a_policy_of_somebody_else_tells_no_users_and_whether_it_is_about_the_bucket(
    text: str, only: bool
) -> None:
    assert concerns_only(text, "nix-cache") is only
    assert not users_of(text, "nix-cache")


def test_a_given_credential_declares_nothing_and_its_secret_is_one(engine: RecordingMocks) -> None:
    credential = given_credential("GK1", "S3CRET")

    async def described(secret: str) -> None:
        assert secret == "S3CRET"
        assert await credential.secret_access_key.is_secret()

    settled(lambda: credential.secret_access_key.apply(described))
    assert not engine.resources


@pytest.mark.parametrize("text", [write_policy("nix-cache", None), read_policy("nix-cache", None)])
def test_a_policy_to_give_is_for_whoever_has_it(text: str) -> None:
    assert concerns_only(text, "nix-cache")
    assert "Condition" not in text
    assert users_of(text, "nix-cache") is None
    assert next(s["Effect"] for s in json.loads(text)["Statement"]) == "Allow"


def wrapped(text: str) -> str:
    return json.dumps({"PolicyName": "p", "Policy": json.loads(text), "UpdateDate": "2026"})


@pytest.mark.parametrize(
    ("known", "ignored"),
    [
        (None, False),
        (write_policy("nix-cache", ["nixbuilder"]), False),
        (wrapped(write_policy("nix-cache", ["nixbuilder"])), False),
        (wrapped(without_administration(write_policy("nix-cache", ["nixbuilder"]))), True),
        (wrapped(without_administration(write_policy("nix-cache", ["another"]))), False),
        ('{"PolicyName": "p"}', False),
        ("no policy", False),
    ],
)
def test_a_policy_that_the_server_wraps_is_written_again_only_where_it_says_something_else(
    monkeypatch: pytest.MonkeyPatch, known: str | None, ignored: bool
) -> None:
    use_recording_mocks()
    options: list[pulumi.ResourceOptions] = []
    declare: Any = minio.IamPolicy

    def recorded(resource: str, /, *, opts: pulumi.ResourceOptions, **named: Any) -> Any:
        options.append(opts)
        return declare(resource, opts=opts, **named)

    monkeypatch.setattr(minio, "IamPolicy", recorded)
    args = BuilderAccessArgs(
        bucket="nix-cache",
        policy="nix-cache-write",
        users={"laptop": "nixbuilder"},
        known_policies={} if known is None else {"nix-cache-write": known},
    )
    settled(lambda: BuilderAccess("b", args).credentials["laptop"].access_key_id)
    assert [bool(opts.ignore_changes) for opts in options] == [ignored]


def test_policies_are_the_same_in_any_order_and_other_text_is_none() -> None:
    one = policy(allowing("arn:aws:s3:::a", "arn:aws:s3:::b"), allowing("arn:aws:s3:::c"))
    other = policy(
        {**allowing("arn:aws:s3:::c"), "Action": "s3:PutObject", "Sid": ""},
        allowing("arn:aws:s3:::b", "arn:aws:s3:::a"),
    )
    assert same_policy(one, other)
    assert not same_policy(one, policy(allowing("arn:aws:s3:::a"), allowing("arn:aws:s3:::c")))
    assert not same_policy("x", "x")
    text = write_policy("nix-cache", ["a"])
    assert same_policy(text, json.dumps(json.loads(text), sort_keys=True))
    assert unwrapped('{"Policy": "text"}') == '{"Policy": "text"}'
