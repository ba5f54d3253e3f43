"""What a repair does with a state that an interruption left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from components.access import read_policy
from operations import deployed_stack, repair, state
from operations.administration import Administration
from operations.state import Interrupted
from program.checks.recorded import BUCKET, COMMANDS, OBJECT, POLICY, SERVER, STACK, USER
from program.checks.s3_client import Server
from program.settings.stack import ADOPTED_BUCKET
from tests.unit.configuration import configuration

HERE = "s3.homelab.local"
FILES = "urn:pulumi:test::p::nixcache:index:BuilderCredentials$command:local:Command::x-files"


def resource(type_: str, **values: object) -> dict[str, Any]:
    urn = f"urn:pulumi:test::p::{type_}::{values.get('name', 'one')}"
    return {"urn": urn, "type": type_, "inputs": values, "outputs": values}


def provider(address: str = HERE) -> dict[str, Any]:
    return resource(SERVER, minioServer=address, minioSsl="true")


class Repaired:
    """A repair of a stack in whose state resources were being made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.adopted: str | None = None
        """The bucket that the deployment might adopt."""
        self.cleared = False
        """Whether what was interrupted is forgotten."""
        self.placed: list[str] = []
        """What has the deployment of credential files place them."""
        self.written = False
        """Whether the stack's settings were."""
        self.users: dict[str, dict[str, object]] = {}
        """The server's, as it tells of them."""
        self.policies: dict[str, str] = {}
        self.holders: frozenset[str] = frozenset()
        self.buckets: set[str] = set()

    def run(
        self,
        *making: dict[str, Any],
        up: int = 0,
        made: tuple[dict[str, Any], ...] = (),
        server: str = HERE,
        known: tuple[dict[str, Any], ...] = (),
        options: tuple[str, ...] = (),
        placing: int = 0,
        **settings: object,
    ) -> None:
        """Repair; `made` is what the deployment makes, and it exits with `up`.

        The state has what is `known`. That which places files exits with `placing`.
        """
        there = [resource(STACK), provider(server), *known]

        def read_text(*arguments: str) -> str:
            if arguments[:2] == ("stack", "export"):
                pending = [{"resource": one, "type": "creating"} for one in making]
                deployment = {"resources": there, "pending_operations": pending}
                return json.dumps({"deployment": deployment})
            self.written |= arguments[0] == "config"
            self.cleared |= "--clear-pending-creates" in arguments
            return ""

        def deploy(*arguments: str) -> int:
            placed = [one for one in arguments if one.startswith("--target-replace=")]
            if placed:
                self.placed = placed
                return placing
            self.adopted = os.environ.get(ADOPTED_BUCKET)
            there.extend(made)
            if up < 0:
                raise KeyboardInterrupt
            return up

        given = {f"nixcache:{name}": {"value": v} for name, v in configuration(**settings).items()}
        patch = self._monkeypatch.setattr
        patch(repair, "remove_empty_attributes", lambda: 0)
        patch(repair, "put_back", lambda *_: iter(()))
        patch(repair, "on_terminal", deploy)
        patch(deployed_stack, "read_output", lambda *_: given)
        patch(repair, "read_text", read_text)
        patch(state, "read_text", read_text)
        patch(Server, "lifecycle", lambda _, name: object() if name in self.buckets else None)
        patch(
            Administration, "user_status", lambda _, name: "enabled" if name in self.users else None
        )
        patch(Administration, "policy", lambda _, name: self.policies.get(name))
        patch(Administration, "holders", lambda *_: self.holders)
        patch(Administration, "remove_user", lambda _, name: self.users.pop(name))
        patch(Administration, "remove_policy", lambda _, name: self.policies.pop(name))
        patch(Administration, "_user", lambda _, name: self.users.get(name))
        code = repair.main(["--stack", "test", *options])
        assert code == {0: 0, -1: 130}.get(up or placing, 2)
        assert ADOPTED_BUCKET not in os.environ
        assert not self.written


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> Repaired:
    return Repaired(monkeypatch)


MAKING = resource(BUCKET, bucket="nix-cache")


def test_a_bucket_that_was_being_made_is_taken_over_by_that_one_deployment(
    repaired: Repaired,
) -> None:
    repaired.run(MAKING, made=(MAKING,))
    assert repaired.adopted == "nix-cache"
    assert repaired.cleared


def test_a_bucket_of_another_name_or_server_than_was_being_made_is_not_taken_over(
    repaired: Repaired,
) -> None:
    repaired.run(resource(BUCKET, bucket="mistyped"), up=255)
    assert repaired.adopted is None
    repaired.run(MAKING, server="another.homelab.local", up=255)
    assert repaired.adopted is None
    repaired.run(resource(POLICY, name="nix-cache-write", policy="{}"), up=255)
    assert repaired.adopted is None
    repaired.run(known=(resource(OBJECT, bucketName="another", objectName="x"),))
    assert repaired.adopted is None


def test_a_bucket_that_a_refresh_has_forgotten_and_not_what_is_in_it_is_taken_over(
    repaired: Repaired,
) -> None:
    page = resource(OBJECT, bucketName="nix-cache", objectName="use.html")
    repaired.run(known=(page,))
    assert repaired.adopted == "nix-cache"
    repaired.run(known=(page,), server="another.homelab.local")
    assert repaired.adopted is None
    repaired.run(known=(page, MAKING))
    assert repaired.adopted is None


@pytest.mark.parametrize("up", [255, -1])
def test_where_the_deployment_does_not_come_about_the_state_still_says_what_was_being_made(
    repaired: Repaired, up: int
) -> None:
    repaired.run(MAKING, up=up)
    assert not repaired.cleared


def test_nor_is_it_forgotten_where_it_was_only_previewed(repaired: Repaired) -> None:
    builders = [{"name": "here", "local": True}]
    user = resource(USER, name="nix-cache-here")
    for one in (MAKING, user, resource(POLICY, name="nix-cache-write", policy="{}")):
        repaired.run(one, builders=builders)
        assert not repaired.cleared
    repaired.run(user, builders=builders, made=(user,))
    assert repaired.cleared


def test_what_was_being_changed_or_deleted_is_nothing_that_was_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operations = [
        {"resource": MAKING, "type": type_}
        for type_ in ("creating", "updating", "deleting", "importing")
    ]
    exported = json.dumps({"deployment": {"pending_operations": operations}})
    monkeypatch.setattr(state, "read_text", lambda *_: exported)
    _, making = state.read_interrupted_state("test")
    assert making == (Interrupted(MAKING["urn"], BUCKET, {"bucket": "nix-cache"}),)


def test_files_on_builders_are_placed_anew_after_all_else(
    repaired: Repaired, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"type": COMMANDS[1], "urn": FILES, "outputs": {}}
    repaired.run(made=(files,), up=255)
    assert repaired.placed == []
    repaired.run(MAKING, made=(MAKING, files), placing=255)
    assert repaired.placed == [f"--target-replace={FILES}"]
    assert repaired.cleared
    assert "make push STACK=test BUILDER=NAME places them" in capsys.readouterr().out
    repaired.run(made=(files,))
    assert "BUILDER=NAME" not in capsys.readouterr().out


LATE = "nix-cache-late"


def test_a_user_that_the_settings_do_not_name_any_more_is_removed(
    repaired: Repaired, capsys: pytest.CaptureFixture[str]
) -> None:
    repaired.users = {LATE: {"status": "enabled"}, "other": {}}
    repaired.run(resource(USER, name=LATE), resource(USER, name="never-made"))
    assert list(repaired.users) == ["other"]
    assert f"user {LATE} was left by an up that was interrupted: removed\n" in (
        capsys.readouterr().out
    )
    assert repaired.cleared


@pytest.mark.parametrize(
    ("told", "inputs", "more"),
    [
        ({"policyName": "readwrite"}, {}, {}),
        ({"memberOf": ["staff"]}, {}, {}),
        # It was adopted.
        ({}, {"secret": "of its owner"}, {}),
        ({}, {}, {"server": "another.homelab.local"}),
        ({}, {}, {"builders": [{"name": "late", "local": True}]}),
    ],
)
def test_a_user_that_somebody_has_stays(
    repaired: Repaired,
    capsys: pytest.CaptureFixture[str],
    told: dict[str, object],
    inputs: dict[str, object],
    more: dict[str, Any],
) -> None:
    repaired.users = {LATE: told}
    repaired.run(resource(USER, name=LATE, **inputs), **more)
    assert LATE in repaired.users
    said = capsys.readouterr().out
    assert ("where it is nobody's, mc admin user remove" in said) != bool(more)
    assert "of its owner" not in said


@pytest.mark.parametrize("kept", ["changed", "held"])
def test_a_policy_goes_where_it_is_as_it_was_made_and_nobody_has_it(
    repaired: Repaired, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    name, text = "nix-cache-reader", read_policy("nix-cache", "nix-cache-reader")
    making = resource(POLICY, name=name, policy=text)
    repaired.policies = {name: text if kept == "held" else read_policy("nix-cache", "somebody")}
    repaired.holders = frozenset({"somebody"} if kept == "held" else ())
    repaired.run(making)
    assert name in repaired.policies
    assert f"where it is nobody's, mc admin policy remove s3 {name}" in capsys.readouterr().out
    repaired.policies, repaired.holders = {name: text}, frozenset()
    repaired.run(making, access="private", up=255)
    assert name in repaired.policies
    repaired.run(making)
    assert repaired.policies == {}


def test_a_bucket_and_files_that_are_left_are_told(
    repaired: Repaired, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"type": COMMANDS[1], "urn": FILES, "inputs": {"triggers": ["", "/var/lib/x"]}}
    repaired.buckets = {"mistyped"}
    making = (resource(BUCKET, bucket="mistyped"), files)
    repaired.run(*making)
    said = capsys.readouterr().out
    assert "bucket mistyped may be left by an up that was interrupted" in said
    assert "/var/lib/x on this machine may hold a credential" in said
    repaired.buckets = set()
    builder = {"name": "here", "local": True, "credentialsDirectory": "/var/lib/x"}
    repaired.run(*making, builders=[builder])
    assert "may" not in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["file://~", "file://{home}", "https://api.example"])
def test_attributes_that_were_cut_off_are_found_where_the_state_is(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    stacks = tmp_path / ".pulumi" / "stacks"
    stacks.mkdir(parents=True)
    (stacks / "cut.json.attrs").touch()
    (stacks / "whole.json.attrs").write_text("{}")
    # It has gone by the time it is looked at.
    (stacks / "gone.json.attrs").symlink_to("nowhere")
    lock = tmp_path / ".pulumi" / "locks" / "cut.json.attrs"
    lock.parent.mkdir()
    lock.touch()
    url = backend.format(home=tmp_path)
    monkeypatch.setattr(state, "read_output", lambda *_: {"url": url})
    assert state.remove_empty_attributes() == int(backend.startswith("file:"))
    assert lock.exists()
    left = {file.name for file in stacks.iterdir()} - {"gone.json.attrs"}
    assert left == {"whole.json.attrs"} | ({"cut.json.attrs"} if backend[:5] == "https" else set())


def test_a_project_may_be_called_as_the_directory_of_locks_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / ".pulumi" / "stacks" / "locks" / "dev.json.attrs"
    cut.parent.mkdir(parents=True)
    cut.touch()
    monkeypatch.setattr(state, "read_output", lambda *_: {"url": f"file://{tmp_path}"})
    assert state.remove_empty_attributes() == 1
    assert not cut.exists()
