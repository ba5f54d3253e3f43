"""Users and policies that a server has already: whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from components.access import read_policy, write_policy
from program.checks import admin_client, ownership, removal
from program.checks.bucket_settings import Lifecycle
from program.checks.recorded import (
    BUCKET,
    BUILDERS,
    COMMANDS,
    POLICY,
    READER,
    SERVER,
    USER,
    Recorded,
)
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import parse
from tests.unit.configuration import configuration
from tests.unit.recording_mocks import use_recording_mocks

SECRET = "a-secret-from-before"
ONE_BUILDER = [{"name": "here", "local": True, "s3User": "alice"}]
BY_HAND = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject"],
                "Resource": ["arn:aws:s3:::nix-cache", "arn:aws:s3:::nix-cache/*"],
            }
        ],
    }
)


@dataclass
class FakeServer:
    """A server with users, what its S3 side knows them by, and policies."""

    users: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    """Root and service accounts."""
    policies: Mapping[str, str] = field(default_factory=dict)
    holders_: frozenset[str] = frozenset()
    rights: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def check(self) -> None:
        """It is MinIO's admin API."""

    def user_status(self, name: str) -> str | None:
        return "enabled" if name in self.users else None

    def policy(self, name: str) -> str | None:
        return self.policies.get(name)

    def rights_of(self, name: str) -> frozenset[str]:
        return self.rights.get(name, frozenset())

    def holders(self, _policy: str) -> frozenset[str]:
        return self.holders_


def made(role: str, type_: str, name: str, **outputs: str) -> dict[str, dict[str, Any]]:
    """Return what a state has of a user or a policy of a role."""
    urn = f"urn:pulumi:test::nixcache::{role}${type_}::{name}"
    return {urn: {"type": type_, "outputs": {"name": name, **outputs}}}


def use_server(monkeypatch: pytest.MonkeyPatch, fake: FakeServer) -> None:
    """Let a server's users be known to its S3 side, and to its admin API."""
    use_recording_mocks()
    secrets = {**fake.users, **fake.others}

    def lifecycle(server: Server, _bucket: str) -> Lifecycle | None:
        if server.user not in secrets:
            raise ServerError("user", "the server knows no such user")
        if secrets[server.user] != server.password:
            raise ServerError("password", "the server refuses it")
        raise ServerError("user", "denied")

    def admin(server: Server) -> FakeServer:
        fake.server = server  # type: ignore[attr-defined]
        return fake

    monkeypatch.setattr(Server, "lifecycle", lifecycle)
    monkeypatch.setattr(ownership, "Admin", admin)


def check(
    monkeypatch: pytest.MonkeyPatch,
    fake: FakeServer,
    state: Recorded | None = None,
    **changes: Any,
) -> None:
    """Let a deployment be checked against a server and a state."""
    use_server(monkeypatch, fake)
    settings = parse(configuration(builders=ONE_BUILDER, **changes))
    server = Server("s3", True, "us-east-1", "pulumi", "password", None)
    ownership.check(settings, server, state or Recorded({}))


def refusal(monkeypatch: pytest.MonkeyPatch, fake: FakeServer, **changes: Any) -> str:
    with pytest.raises(SettingError) as error:
        check(monkeypatch, fake, **changes)
    assert SECRET not in str(error.value)
    return str(error.value)


def test_a_server_that_has_nothing_of_the_names_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, FakeServer())


def test_what_the_state_has_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeServer, "user_status", None)
    monkeypatch.setattr(FakeServer, "policy", None)
    state = {**made(BUILDERS, USER, "alice"), **made(BUILDERS, POLICY, "nix-cache-write")}
    check(monkeypatch, FakeServer(), Recorded(state))


def test_a_user_that_somebody_else_has_a_use_for_is_not_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = "urn:pulumi:test::nixcache::nixcache:index:BuilderCredentials$command:remote:Command::x"
    placed = {"type": COMMANDS[0], "outputs": {"triggers": ["ci.local", "/etc/nix-cache"]}}
    state = {
        **made(BUILDERS, USER, "ci"),
        **made(BUILDERS, USER, "alice"),
        **made(BUILDERS, POLICY, "nix-cache-write"),
    }
    server = FakeServer()
    there = Server("s3", True, "us-east-1", "pulumi", "password", None)
    monkeypatch.setattr(ownership, "Admin", lambda _: server)

    def leaves(*policies: str, more: Mapping[str, Any] = {}, **changes: Any) -> None:
        server.rights = {"ci": frozenset(policies)}
        settings = parse(configuration(**{"builders": ONE_BUILDER, **changes}))
        ownership.check_leaving(settings, there, Recorded({**state, **more}))

    def refused(*policies: str, **changes: Any) -> str:
        with pytest.raises(SettingError) as error:
            leaves(*policies, **changes)
        return str(error.value)

    leaves()
    leaves("nix-cache-write")
    (urn,) = made(BUILDERS, USER, "ci")
    forgotten = f"pulumi state delete '{urn}' --target-dependents --force"
    sentence = refused("another-write", "by-hand")
    assert sentence.startswith("builders: the user ci would be deleted, and it has another-write, ")
    assert sentence.endswith(
        f"by-hand on the server, which this stack did not give it; take that "
        f"away from it, or leave the user to others: {forgotten}"
    )
    sentence = refused("another-write", "nix-cache-write", more={files: placed})
    detached = "mc admin policy detach ALIAS nix-cache-write --user ci"
    assert f"{forgotten}, and {detached}; then remove /etc/nix-cache on ci.local by h" in sentence
    # Users that are given are none of the state's, whatever they are called.
    one = {**ONE_BUILDER[0], "accessKeyId": "given-ci"}
    one.pop("s3User")
    secrets: dict[str, Any] = {"users": "given", "givenUserSecrets": "given-ci:a-secret"}
    assert refused("by-hand", builders=[one], **secrets).startswith('users is "given": the user ci')

    # Where a server makes no users, none is deleted there.
    def no_api(*_: object) -> frozenset[str]:
        raise ServerError("users", "the server has no MinIO admin API")

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(FakeServer, "rights_of", no_api)
        leaves(builders=[one], **secrets)
        with pytest.raises(ServerError):
            leaves()
    # A builder that stays is asked nothing about.
    monkeypatch.setattr(FakeServer, "rights_of", None)
    ownership.check_leaving(
        parse(configuration(builders=ONE_BUILDER)),
        there,
        Recorded(made(BUILDERS, USER, "alice")),
    )


def test_a_destroy_leaves_a_user_that_somebody_else_has_a_use_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = {**made(BUILDERS, USER, "ci"), **made(BUILDERS, POLICY, "nix-cache-write")}
    server = FakeServer(rights={"ci": frozenset(["nix-cache-write"])})
    monkeypatch.setattr(admin_client, "Admin", lambda _: server)

    def refusal_of_a_destroy() -> str | None:
        settings = parse(configuration(builders=ONE_BUILDER, protect=False))
        there = Server("s3", True, "us-east-1", "pulumi", "password", None)
        return removal.refusal(settings, there, Recorded(state))

    assert refusal_of_a_destroy() is None
    server.rights = {"ci": frozenset(["by-hand", "nix-cache-write"])}
    assert str(refusal_of_a_destroy()).startswith("the user ci would be deleted, and it has by-h")


def test_a_server_at_another_endpoint_has_the_users_and_policies_that_the_state_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = {"minioServer": "before:9000", "minioSsl": "true"}
    text = write_policy("nix-cache", ["alice"])
    state = {
        **made(BUILDERS, USER, "alice", secret=SECRET),
        **made(BUILDERS, POLICY, "nix-cache-write", policy=text),
        "urn:server": {"type": SERVER, "outputs": provider},
    }

    def moved(server: FakeServer, **changes: Any) -> None:
        use_server(monkeypatch, server)
        settings = parse(configuration(**changes))
        there = Server("s3", True, "us-east-1", "pulumi", "password", None)
        ownership.check_moved(settings, there, Recorded(state))

    policies = {"nix-cache-write": json.dumps(json.loads(text), sort_keys=True)}
    moved(FakeServer({"alice": SECRET}, policies=policies))
    # Who has left since has rights there still, or a secret.
    former = {"nix-cache-write": write_policy("nix-cache", ["alice", "gone"])}
    for server, wrong in (
        (FakeServer(policies=policies), "not this stack's user alice"),
        (FakeServer({"alice": SECRET}), "not this stack's policy nix-cache-write"),
        (FakeServer({"alice": SECRET}, policies=former), "another policy nix-cache-write than th"),
        (FakeServer({"alice": "former"}, policies=policies), "the user alice by another secret"),
    ):
        with pytest.raises(SettingError, match=f"has the bucket, and {wrong}.*; make repair"):
            moved(server)
        moved(server, endpoint="https://before:9000")
    # Without the bucket there, the cache is where it was.
    state["urn:bucket"] = {"type": BUCKET, "outputs": {"bucket": "nix-cache"}}
    monkeypatch.setattr(Server, "lifecycle", lambda *_: None)
    there = Server("s3", True, "us-east-1", "pulumi", "password", None)
    with pytest.raises(SettingError) as refused:
        ownership.check_moved(parse(configuration()), there, Recorded(state))
    assert (
        "there is no bucket nix-cache there, and this stack was deployed to https://before:9000"
        in str(refused.value)
    )


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (made(READER, USER, "alice"), {}, 'builders[0].s3User is "alice": it is the user of the'),
        (made(READER, POLICY, "xyz"), {"writePolicy": "xyz"}, "it is the policy of the cache's"),
        (
            made(BUILDERS, USER, "nix-cache-reader"),
            {"access": "private"},
            "reader would have the name nix-cache-reader, which is a builder's user",
        ),
        (
            made(BUILDERS, POLICY, "nix-cache-reader"),
            {"access": "private"},
            "which is the builders' policy",
        ),
    ],
)
def test_no_name_goes_from_one_role_to_another_in_one_deployment(
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, dict[str, Any]],
    changes: dict[str, str],
    message: str,
) -> None:
    # The engine deletes last, by name: what it has just put over it.
    assert message in refusal(monkeypatch, FakeServer(), state=Recorded(state), **changes)


def test_a_user_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, FakeServer({"alice": SECRET}))
    assert message.startswith('builders[0].s3User is "alice": the server has a user alice already')
    assert "give its secret in adoptedUserSecrets, or take another name" in message


def test_an_adopted_user_has_to_open_with_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    adopted: dict[str, Any] = {"adoptedUserSecrets": f"alice:{SECRET}"}
    check(monkeypatch, FakeServer({"alice": SECRET}), **adopted)
    check(monkeypatch, FakeServer(), **adopted)
    message = refusal(monkeypatch, FakeServer({"alice": "another"}), **adopted)
    assert "adoptedUserSecrets: the server knows alice by another secret" in message


@pytest.mark.parametrize("adopted", ["", f"alice:{SECRET}"])
def test_root_and_service_accounts_are_nobodys_to_take(
    monkeypatch: pytest.MonkeyPatch, adopted: str
) -> None:
    server = FakeServer(others={"alice": SECRET})
    message = refusal(monkeypatch, server, adoptedUserSecrets=adopted)
    assert "its root user or a service account; take another name" in message


def test_the_reader_is_no_user_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, FakeServer({"nix-cache-reader": SECRET}), access="private")
    assert message.startswith('bucket is "nix-cache": the server has a user nix-cache-reader')
    assert "it would be the cache's reader; give its secret in adoptedUserSecrets, or re" in message
    adopted: dict[str, Any] = {
        "access": "private",
        "adoptedUserSecrets": f"nix-cache-reader:{SECRET}",
    }
    check(monkeypatch, FakeServer({"nix-cache-reader": SECRET}), **adopted)
    message = refusal(monkeypatch, FakeServer({"nix-cache-reader": "another-secret"}), **adopted)
    assert "by another secret; give the one that its clients use" in message


@pytest.mark.parametrize(
    ("users", "policies", "changes"),
    [
        ({"alice": SECRET}, {"nix-cache-write": write_policy("nix-cache", ["alice"])}, {}),
        (
            {"nix-cache-reader": SECRET},
            {"nix-cache-reader": read_policy("nix-cache", "nix-cache-reader")},
            {"access": "private"},
        ),
    ],
    ids=["a builder's user", "the reader"],
)
def test_what_an_interrupted_deployment_made_is_known_by_the_policy(
    monkeypatch: pytest.MonkeyPatch,
    users: dict[str, str],
    policies: dict[str, str],
    changes: dict[str, Any],
) -> None:
    check(monkeypatch, FakeServer(users, policies=policies), **changes)


def test_a_builder_that_is_renamed_after_an_interrupted_deployment_is_no_other_stacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = FakeServer(
        {"old": SECRET, "bob": SECRET},
        policies={"nix-cache-write": write_policy("nix-cache", ["old"])},
    )
    state = Recorded(made(BUILDERS, USER, "old"))
    check(monkeypatch, server, state)
    server.policies = {"nix-cache-write": write_policy("nix-cache", ["old", "bob"])}
    with pytest.raises(SettingError, match="whose users bob would have no rights any more"):
        check(monkeypatch, server, state)


def test_a_policy_that_names_others_makes_nobody_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = {"nix-cache-write": write_policy("nix-cache", ["bob"])}
    assert "alice" in refusal(monkeypatch, FakeServer({"alice": SECRET}, policies=policies))


def test_another_stacks_builders_are_not_shut_out_unless_that_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = FakeServer(
        {"alice": SECRET, "bob": SECRET},
        policies={"nix-cache-write": write_policy("nix-cache", ["alice", "bob"])},
    )
    message = refusal(monkeypatch, server, adoptBucket=True)
    assert "a stack with this bucket whose users bob would have no rights any more" in message
    check(monkeypatch, server, confirmSharedBucket=True)


@pytest.mark.parametrize(
    ("text", "adopt", "holders", "expected"),
    [
        (BY_HAND, True, [], None),
        (BY_HAND, True, ["alice"], None),
        (BY_HAND, True, ["alice", "bob"], "and bob have it too"),
        (BY_HAND, False, [], "which this stack did not make"),
        (BY_HAND.replace("nix-cache/*", "photos/*"), True, [], "which this stack did not make"),
        (write_policy("nix-cache", ["alice"]), False, ["bob"], None),
        (write_policy("photos", ["alice"]), True, [], "which this stack did not make"),
    ],
)
def test_a_policy_is_taken_over_only_where_it_is_the_caches(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    adopt: bool,
    holders: list[str],
    expected: str | None,
) -> None:
    server = FakeServer(policies={"nix-cache-write": text}, holders_=frozenset(holders))
    if expected is None:
        check(monkeypatch, server, adoptBucket=adopt)
    else:
        message = refusal(monkeypatch, server, adoptBucket=adopt)
        assert message.startswith('writePolicy is "nix-cache-write": the server has a policy')
        assert expected in message


def test_names_that_a_server_tells_do_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holders = frozenset({"\x1b]0;owned\x07", *(f"user{number}" * 50 for number in range(99))})
    server = FakeServer(policies={"nix-cache-write": BY_HAND}, holders_=holders)
    message = refusal(monkeypatch, server, adoptBucket=True)
    assert message.isprintable()
    assert "and ?]0;owned?, user0user0" in message
    assert " and 90 more have it too; write another name" in message
    assert len(message) < 1_500
