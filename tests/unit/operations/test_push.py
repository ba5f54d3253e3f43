"""Which resources a push again is about."""

from __future__ import annotations

from typing import Any

import pytest

from operations import push
from operations.push import options
from program.checks.recorded import STACK, Recorded
from program.settings.stack import parse
from tests.unit.configuration import configuration
from tests.unit.operations.test_undeployed import BASE, deployed

PREFIX = "urn:pulumi:homelab::nixcache::"
PUSH = f"{PREFIX}nixcache:index:ClosurePush$command:remote:Command::"
LOCAL = f"{PREFIX}nixcache:index:ClosurePush$command:local:Command::"
CLOSURE = f"{PREFIX}pulumi-python:dynamic/nixcache:Closure::"
FILES = f"{PREFIX}nixcache:index:BuilderCredentials$command:remote:Command::"


@pytest.fixture(autouse=True)
def _settings_as_deployed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deployed, `test_undeployed` compares; the states of this module tell little."""
    monkeypatch.setattr(push, "read_settings", lambda *_, **__: parse(configuration()))
    if "undeployed" not in request.node.name:
        monkeypatch.setattr(push, "refuse_undeployed", lambda *_: None)


def test_a_builders_push_is_made_again_and_its_links_are_followed_anew() -> None:
    urns = [
        f"{PUSH}nix-cache-a-push",
        f"{LOCAL}nix-cache-b-push",
        f"{CLOSURE}nix-cache-a",
        f"{CLOSURE}nix-cache-b",
        f"{FILES}nix-cache-a",
        f"{PREFIX}minio:index/iamUser:IamUser::nix-cache-a",
    ]
    assert list(options(urns, ["nix-cache-a"])) == [
        f"--target-replace={PUSH}nix-cache-a-push",
        f"--target={CLOSURE}nix-cache-a",
    ]
    assert len(list(options(urns, ["nix-cache-a", "nix-cache-b"]))) == 4


def test_the_files_of_a_builder_that_is_named_are_placed_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{FILES}{name}/var/lib/x-files": name for name in ("own", "both", "former")}
    secrets = {"own": "secret of own", "both": "secret of both", "pushes": "secret of pushes"}
    builders = {name: {"accessKeyId": name, "secretAccessKey": s} for name, s in secrets.items()}
    for name in ("both", "pushes"):
        builders[name]["lastPush"] = "pushed 1"
    resources: dict[str, dict[str, Any]] = {
        f"{PREFIX}{STACK}::s": {"type": STACK, "outputs": {"builders": builders}},
        f"{PUSH}both-push": {"type": "push"},
        f"{PUSH}pushes-push": {"type": "push"},
        **{
            urn: {"type": "files", "outputs": {"stdin": f"{secrets.get(name)}\nkey\n"}}
            for urn, name in files.items()
        },
    }
    told: list[set[str]] = []

    def deploy(*arguments: str) -> int:
        told.append(set(arguments[5:]))
        return 0

    monkeypatch.setattr(push, "read_state", lambda _: Recorded(resources))
    monkeypatch.setattr(push, "read_output", lambda *_: builders)
    monkeypatch.setattr(push, "on_terminal", deploy)
    placed = {name: f"--target-replace={urn}" for urn, name in files.items()}
    pushed = {name: f"--target-replace={PUSH}{name}-push" for name in ("both", "pushes")}
    for named, targets in (
        (["own"], {placed["own"]}),
        (["both"], {placed["both"], pushed["both"]}),
        (["pushes"], {pushed["pushes"]}),
        ([], set(pushed.values())),
    ):
        assert push.main(["--stack", "test", *named]) == 0
        assert told.pop() == targets
    out, _ = capsys.readouterr()
    assert out.count("own: its credential files are placed anew\n") == 1
    assert out.count("both: pushed 1\n") == 2
    assert push.main(["--stack", "test", "nobody"]) == 2
    assert "there are both, own, pushes" in capsys.readouterr().err
    assert "secret of" not in out


def test_a_stack_whose_first_deployment_failed_is_to_be_deployed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resources = {f"{PREFIX}{STACK}::nixcache-homelab": {"type": STACK, "outputs": {}}}
    monkeypatch.setattr(push, "read_state", lambda _: Recorded(resources))
    for named in ([], ["a"]):
        assert push.main(["--stack", "test", *named]) == 2
        assert "has come to its end" in (told := capsys.readouterr().err)
        assert "pulumi up" in told


def test_what_a_builder_printed_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urn, root = f"{PUSH}nix-cache-a-push", f"{PREFIX}{STACK}::nixcache-homelab"
    access = {"accessKeyId": "nix-cache-a", "secretAccessKey": "a secret"}
    builders = {"a": {**access, "lastPush": "pushed\x1b[2J 1\nand 2\n"}}
    state = Recorded({urn: {"type": urn}, root: {"type": STACK, "outputs": {"builders": builders}}})
    monkeypatch.setattr(push, "read_state", lambda _: state)
    monkeypatch.setattr(push, "read_output", lambda *_: builders)
    monkeypatch.setattr(push, "on_terminal", lambda *_: 0)
    assert push.main(["--stack", "test"]) == 0
    assert capsys.readouterr().out == "a: pushed?[2J 1\nand 2\n"


def test_nothing_is_pushed_while_settings_are_undeployed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, ...]] = []

    def deploy(*arguments: str) -> int:
        told.append(arguments)
        return 0

    state = deployed()
    monkeypatch.setattr(push, "read_state", lambda _: state)
    monkeypatch.setattr(push, "read_output", lambda *_: state.stack_output("builders"))
    monkeypatch.setattr(push, "on_terminal", deploy)
    changed = parse(configuration(**{**BASE, "publicUrl": "https://new.test"}))
    monkeypatch.setattr(push, "read_settings", lambda *_, **__: changed)
    for named in ([], ["near"]):
        assert push.main(["--stack", "test", *named]) == 2
        assert "(publicUrl is https://new.test)" in capsys.readouterr().err
    assert told == []
    unchanged = parse(configuration(**BASE))
    monkeypatch.setattr(push, "read_settings", lambda *_, **__: unchanged)
    assert push.main(["--stack", "test", "near"]) == 0
    assert [argument.rpartition("::")[2] for argument in told[0][5:]] == ["nix-cache-near-push"]
