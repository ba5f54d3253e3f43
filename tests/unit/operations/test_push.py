"""Which resources a push again is about."""

from __future__ import annotations

import pytest

from operations import push
from operations.push import options
from program.checks.recorded import STACK, Recorded

PREFIX = "urn:pulumi:homelab::nixcache::"
PUSH = f"{PREFIX}nixcache:index:ClosurePush$command:remote:Command::"
LOCAL = f"{PREFIX}nixcache:index:ClosurePush$command:local:Command::"
CLOSURE = f"{PREFIX}pulumi-python:dynamic/nixcache:Closure::"
FILES = f"{PREFIX}nixcache:index:BuilderCredentials$command:remote:Command::"


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


def test_what_a_builder_printed_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urn, root = f"{PUSH}nix-cache-a-push", f"{PREFIX}{STACK}::nixcache-homelab"
    builders = {"a": {"accessKeyId": "nix-cache-a", "lastPush": "pushed\x1b[2J 1\nand 2\n"}}
    state = Recorded({urn: {"type": urn}, root: {"type": STACK, "outputs": {"builders": builders}}})
    monkeypatch.setattr(push, "read_state", lambda _: state)
    monkeypatch.setattr(push, "read_output", lambda *_: builders)
    monkeypatch.setattr(push, "on_terminal", lambda *_: 0)
    assert push.main(["--stack", "test"]) == 0
    assert capsys.readouterr().out == "a: pushed?[2J 1\nand 2\n"
