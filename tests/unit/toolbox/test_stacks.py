"""Where a stack's settings come from, and which names a stack may have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.configuration import schema
from tests.unit.toolbox.conftest import SERVER
from toolbox import commands, stacks, tools
from toolbox.errors import ToolboxError


def commit(checkout: Path, text: str) -> None:
    (checkout / "Pulumi.dev.yaml").write_text(text)


def project(stack: stacks.Stack) -> dict[str, Any]:
    """Return the settings of the project that a stack runs in."""
    return dict(yaml.safe_load((stack.directory / "Pulumi.yaml").read_text())["config"])


def test_what_the_machine_adds_and_what_is_committed_are_defaults_and_no_settings(
    checkout: Path,
) -> None:
    commit(checkout, "config: {nixcache:protect: false, nixcache:priority: 30}")
    stack = stacks.existing("dev")
    declared = project(stack)
    assert {name: declared[name]["default"] for name in (*SERVER, "protect", "priority")} == {
        **SERVER,
        "protect": False,
        "priority": 30,
    }
    assert set(declared) == set(schema())
    assert stack.settings_file.read_text() == "encryptionsalt: v1\n"


def test_an_edit_of_the_committed_file_counts_at_once(checkout: Path) -> None:
    commit(checkout, "config: {nixcache:priority: 30}")
    assert project(stacks.existing("dev"))["priority"]["default"] == 30
    commit(checkout, "config: {nixcache:priority: 20}")
    assert project(stacks.existing("dev"))["priority"]["default"] == 20


def test_a_setting_in_both_places_is_told(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(checkout, "config: {nixcache:priority: 30, nixcache:protect: false}")
    stack = stacks.existing("dev")
    stack.settings_file.write_text("config: {nixcache:priority: '20', nixcache:protect: 'false'}")
    assert capsys.readouterr().err == ""
    stacks.existing("dev")
    assert capsys.readouterr().err == (
        "priority is 20 as you set it, not 30 as Pulumi.dev.yaml says; "
        'make pulumi ARGS="config rm priority" goes back to that\n'
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("config: [", "Pulumi.dev.yaml is no YAML"),
        ("[x]", "Pulumi.dev.yaml is no YAML"),
        ("config: {minio:user: x}", "minio is none of this program's settings"),
        ("config: {nixcache:retentionDays: seven}", 'retentionDays is "seven"; write one integer'),
        ("config: {nixcache:retentionDays: true}", "retentionDays is true; write one integer"),
        ("config: {nixcache:protect: 1}", "protect is 1; write one boolean"),
        ("config: {nixcache:minioPassword: {secure: x}}", "minioPassword is a secret"),
    ],
)
def test_a_committed_file_that_cannot_be_used_is_refused(
    checkout: Path, text: str, words: str
) -> None:
    commit(checkout, text)
    with pytest.raises(ToolboxError, match=words):
        stacks.existing("dev")


def test_a_setting_that_is_none_is_left_to_the_program_to_refuse(checkout: Path) -> None:
    commit(checkout, "config: {nixcache:retention: 7}")
    assert project(stacks.existing("dev"))["retention"] == {"value": 7}


def test_only_the_dev_stack_begins_with_the_committed_settings(checkout: Path) -> None:
    commit(checkout, "config: {nixcache:protect: false}")
    declared = project(stacks.machine_stack("staging"))
    assert declared["protect"]["default"] is True
    assert declared["endpoint"]["default"] == SERVER["endpoint"]


def environment(name: str) -> Mapping[str, str]:
    return stacks.existing(name).environment


def test_the_engine_is_told_the_stack_whatever_is_selected_and_finds_its_own_backend(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_STACK", "homelab")
    monkeypatch.setenv("PULUMI_BACKEND_URL", "file:///elsewhere")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/elsewhere")
    found = environment("dev")
    assert found["PULUMI_STACK"] == "dev"
    assert found["PULUMI_BACKEND_URL"] == f"file://{checkout}/.dev/state"
    assert "SSH_AUTH_SOCK" not in found


@pytest.mark.usefixtures("checkout")
def test_a_stack_of_the_owners_has_the_owners_engine_and_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    own = tmp_path / "bin" / "pulumi"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(own.parent))
    monkeypatch.setenv("PULUMI_BACKEND_URL", "file:///mine")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "mine")
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE_FILE", raising=False)
    found = environment("homelab")
    assert found["PATH"] == str(own.parent)
    assert found["PULUMI_BACKEND_URL"] == "file:///mine"
    assert "PULUMI_CONFIG_PASSPHRASE_FILE" not in found
    assert not stacks.existing("homelab").own_server


@pytest.mark.usefixtures("checkout")
def test_where_there_is_no_engine_and_no_backend_the_toolboxs_take_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[Path] = []
    monkeypatch.setattr(tools, "install_plugins", installed.append)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("PULUMI_BACKEND_URL", "PULUMI_HOME"):
        monkeypatch.delenv(name, raising=False)
    found = environment("homelab")
    assert found["PATH"].startswith(f"{tmp_path}:")
    assert found["PULUMI_BACKEND_URL"] == f"file://{tmp_path}/.dev/state"
    assert installed == [tmp_path / ".dev" / "pulumi"]

    # A backend that this user has logged in to is taken.
    credentials = tmp_path / "home" / ".pulumi" / "credentials.json"
    credentials.parent.mkdir(parents=True)
    credentials.write_text(json.dumps({"current": "https://pulumi.homelab.local"}))
    assert "PULUMI_BACKEND_URL" not in environment("homelab")


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("name", ["Bad_Name", "a" * 33, "-a", "a-", "ä", "../dev", "a b", "dev"])
def test_a_name_that_could_not_be_a_buckets_makes_no_stack(name: str) -> None:
    with pytest.raises(ToolboxError, match=f"NAME is '{name}'"):
        stacks.create(name, on_own_server=True)


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("name", ["", "../x", "a b", "-s", "$(reboot)"])
def test_what_is_no_stacks_name_is_refused(name: str) -> None:
    with pytest.raises(ToolboxError, match="STACK is "):
        stacks.existing(name)


def test_without_a_dev_stack_make_up_is_named(checkout: Path) -> None:
    (checkout / ".dev" / "stacks" / "dev" / "Pulumi.dev.yaml").unlink()
    with pytest.raises(ToolboxError, match="there is no dev stack yet; run make up first"):
        stacks.existing("dev")


@pytest.fixture
def engine(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[list[str]]]:
    """An owner's engine that fails with the error it is given, and notes its calls."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pulumi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{checkout}")
    calls: list[list[str]] = []

    def failing_with(error: str) -> list[list[str]]:
        def quietly(_: stacks.Stack, *arguments: str, text: str = "") -> str:
            calls.append([*arguments, *filter(None, [text])])
            if error:
                raise ToolboxError(f"pulumi {arguments[0]} failed: {error}")
            return ""

        monkeypatch.setattr(stacks.Stack, "quietly", quietly)
        return calls

    return failing_with


Engine = Callable[[str], list[list[str]]]

INIT = ["stack", "init", "--no-select", "lab"]


def test_a_new_stack_gets_names_of_its_own(engine: Engine) -> None:
    calls = engine("")
    made = stacks.create("lab", on_own_server=False)
    assert calls == [
        INIT,
        ["config", "set", "bucket", "nix-cache-lab"],
        ["config", "set", "--path", "signingKeyDomains[0]", "nix-cache-lab"],
        ["config", "set", "--path", "signingKeys[0]", "nix-cache-lab-1"],
    ]
    assert made.names == {"bucket": "nix-cache-lab", "key": "nix-cache-lab-1"}
    assert (made.kept, made.missing) == ([], ["endpoint", "minioUser", "minioPassword"])


@pytest.mark.parametrize(
    ("settings", "filled", "names", "missing"),
    [
        (
            "nixcache:endpoint: https://s3, nixcache:bucket: b, nixcache:signingKeys: [s3-1]",
            [],
            {},
            ["minioUser", "minioPassword"],
        ),
        (
            "endpoint: https://s3, minioUser: x, minioPassword: {secure: v1:x}, bucket: b",
            [
                ["config", "set", "--path", "signingKeyDomains[0]", "nix-cache-lab"],
                ["config", "set", "--path", "signingKeys[0]", "nix-cache-lab-1"],
            ],
            {"key": "nix-cache-lab-1"},
            [],
        ),
        (
            "nixcache:signingKeyDomains: [cache.example.org, other], other:endpoint: x",
            [
                ["config", "set", "bucket", "nix-cache-lab"],
                ["config", "set", "--path", "signingKeys[0]", "cache.example.org-1"],
            ],
            {"bucket": "nix-cache-lab", "key": "cache.example.org-1"},
            ["endpoint", "minioUser", "minioPassword"],
        ),
    ],
)
def test_what_a_stacks_file_has_already_stays(
    checkout: Path,
    engine: Engine,
    settings: str,
    filled: list[list[str]],
    names: dict[str, str],
    missing: list[str],
) -> None:
    calls = engine("")
    (checkout / "Pulumi.lab.yaml").write_text(f"config: {{{settings}}}")
    made = stacks.create("lab", on_own_server=False)
    assert calls == [INIT, *filled]
    assert (made.names, made.missing) == (names, missing)


def test_a_file_of_another_passphrase_is_refused_with_the_remedy(engine: Engine) -> None:
    engine("could not create secrets manager for new stack: incorrect passphrase")
    with pytest.raises(ToolboxError) as refused:
        stacks.create("lab", on_own_server=False)
    assert str(refused.value) == (
        "Pulumi.lab.yaml is encrypted with another passphrase; take encryptionsalt and every "
        "setting that is secure out of it, then make it: make stack NAME=lab, and set those anew"
    )


def test_a_stack_that_has_lost_its_file_is_refused_with_the_remedy(engine: Engine) -> None:
    engine("stack 'organization/nixcache/lab' already exists")
    with pytest.raises(ToolboxError) as refused:
        stacks.create("lab", on_own_server=False)
    assert str(refused.value) == (
        "there is a stack lab already, without its Pulumi.lab.yaml; "
        'make pulumi STACK=lab ARGS="config refresh" writes it as it was last deployed, and '
        'make pulumi STACK=lab ARGS="stack rm" removes what never was'
    )
    with pytest.raises(ToolboxError) as refused:
        stacks.create("lab", on_own_server=True)
    assert str(refused.value) == (
        "there is a stack lab already, without its Pulumi.lab.yaml; put that back into "
        f"{stacks.HOME}/stacks/lab, or take another NAME"
    )


def test_what_else_the_engine_says_of_a_new_stack_stands(checkout: Path, engine: Engine) -> None:
    (checkout / "Pulumi.lab.yaml").touch()
    engine("stack 'lab' already exists")
    with pytest.raises(ToolboxError, match="stack 'lab' already exists"):
        stacks.create("lab", on_own_server=False)


def test_a_file_that_is_none_makes_no_stack(checkout: Path, engine: Engine) -> None:
    calls = engine("")
    (checkout / "Pulumi.lab.yaml").write_text("config: [")
    with pytest.raises(ToolboxError, match=r"Pulumi\.lab\.yaml is no YAML with a config; mend it"):
        stacks.create("lab", on_own_server=False)
    assert calls == []


@pytest.mark.parametrize("verb", ["up", "pulumi", "shell"])
def test_a_stack_that_is_not_there_is_one_sentence(
    engine: Engine, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = engine("no stack named 'nosuch' found")
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    given = ["ARGS=config"] if verb == "pulumi" else []
    assert commands.run([verb, "STACK=nosuch", *given]) == commands.FAILED
    assert capsys.readouterr().err == (
        "error: there is no stack nosuch; write the name of one that is there, or make it first: "
        "make stack NAME=nosuch\n"
    )
    assert calls == [["stack", "--stack", "nosuch", "--show-name"]]


def test_a_backend_that_does_not_answer_is_left_to_the_command(engine: Engine) -> None:
    engine("PULUMI_ACCESS_TOKEN must be set for login during non-interactive CLI sessions")
    assert stacks.existing("homelab").name == "homelab"
