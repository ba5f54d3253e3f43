"""Every wrong call of a command is one sentence, and changes nothing."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from toolbox import commands, stacks
from toolbox.commands import COMMANDS, Call, Command, run


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the command `audit` was called with; it does nothing else."""
    calls: list[Call] = []

    def note(call: Call) -> int:
        calls.append(call)
        return 0

    monkeypatch.delenv("MAKEFLAGS", raising=False)
    monkeypatch.setitem(COMMANDS, "audit", Command(note, ["STACK", "ARGS"]))
    return calls


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one sentence that a command is refused with."""
    assert run(words) == commands.FAILED
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


def test_a_stack_is_the_dev_stack_unless_makes_command_line_names_another(
    called: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACK", "homelab")
    assert run(["audit"]) == 0
    monkeypatch.setenv("MAKEFLAGS", " -- STACK=homelab")
    assert run(["audit"]) == 0
    assert [call.stack for call in called] == ["dev", "homelab"]


def test_arguments_come_through_make_word_for_word(
    called: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGS", "config set --path 'signingKeys[0]' \"a b\" X=1")
    monkeypatch.setenv("MAKEFLAGS", r"s -- ARGS=config\ set\ --path\ 'signingKeys[0]'\ X=1")
    assert run(["audit"]) == 0
    assert called[0].arguments == ["config", "set", "--path", "signingKeys[0]", "a b", "X=1"]


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nope"], "error: there is no nope; make lists what there is"),
        ([], "error: there is no empty command; make lists what there is"),
        (["audit", "STAK=x"], "error: make audit has no variable STAK; it takes STACK and ARGS"),
        (["down", "STACK=x"], "error: make down has no variable STACK; it takes none"),
        (["pulumi"], 'error: ARGS is missing; write make pulumi ARGS="preview"'),
        (["pulumi", "ARGS='x"], 'error: ARGS is "\'x": a quotation in it has no end'),
        (
            ["pulumi", "ARGS=up -s homelab"],
            "error: ARGS names a stack; write it as STACK=NAME beside ARGS",
        ),
        (
            ["pulumi", "ARGS=up --stack=homelab"],
            "error: ARGS names a stack; write it as STACK=NAME beside ARGS",
        ),
        (
            ["pulumi", "ARGS=stack init x"],
            "error: a stack is made by make stack NAME=staging",
        ),
        (["stack"], "error: NAME is missing; write make stack NAME=staging"),
        (
            ["stack", "NAME=x", "SERVER=https://s3"],
            "error: SERVER is 'https://s3'; write dev for this machine's server, or leave it out "
            "and set endpoint, minioUser and minioPassword",
        ),
        (
            ["drift", "STACK=a b"],
            "error: STACK is 'a b'; write a stack's name, such as dev or homelab",
        ),
    ],
)
def test_a_wrong_call_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, *words) == sentence


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "there is no space left; make some, and run the command again"),
        (errno.EDQUOT, "there is no space left"),
        (errno.EACCES, "this user may not write there; take a checkout of your own"),
        (errno.EROFS, "this user may not write there"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_disk_refuses_is_one_sentence(
    number: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(_: Call) -> int:
        raise OSError(number, os.strerror(number), "/checkout/.dev")

    monkeypatch.delenv("MAKEFLAGS", raising=False)
    monkeypatch.setitem(COMMANDS, "up", Command(full))
    assert refusal(capsys, "up").startswith(f"error: /checkout/.dev: {words}")


def test_a_builders_name_and_arguments_reach_the_push(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    monkeypatch.setattr(stacks, "named", lambda name: name)

    def operate(_: object, operation: str, words: list[str]) -> int:
        given.append([operation, *words])
        return 0

    monkeypatch.setattr(commands, "_operate", operate)
    assert run(["push", "BUILDER=nixbuilder"]) == 0
    assert given == [["push", "nixbuilder"]]


def test_files_are_meant_where_the_call_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[list[str]] = []
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    stack = stacks.Stack("own", there, dict(os.environ), own_server=True)
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    monkeypatch.setattr(stacks, "named", lambda _: stack)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr("runpy.run_module", lambda *_, **__: given.append(sys.argv))
    calls = (
        ["import", "FROM=https://old", "KEYS=a-1:x b-1:y", "PATHS=paths"],
        ["import", "FROM=https://old", "PATHS=-", "ARGS=--ca-file ca.pem"],
        ["audit", "ARGS=--hash all --json report.json"],
        ["status", "ARGS=--json - --prometheus=x.prom"],
        ["report", "ARGS=--output /srv/page.html --publish"],
        ["report", "ARGS=--publish"],
    )
    for words in calls:
        monkeypatch.chdir(here)
        assert run(words) == 0
        assert Path.cwd() == there
    own, source = ["--stack", "own"], ["--from", "https://old"]
    assert given == [
        ["operations.import_cache", *own, *source, "--keys", "a-1:x b-1:y", "--paths",
         f"{here}/paths"],
        ["operations.import_cache", *own, "--ca-file", f"{here}/ca.pem", *source, "--paths", "-"],
        ["operations.audit", *own, "--hash", "all", "--json", f"{here}/report.json"],
        ["operations.status", *own, "--json", "-", f"--prometheus={here}/x.prom"],
        ["operations.report", *own, "--output", "/srv/page.html", "--publish"],
        ["operations.report", *own, "--publish", "--output", f"{here}/build/report-own.html"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "kept", "missing", "said"),
    [
        (
            {"bucket": "nix-cache-lab", "key": "nix-cache-lab-1"},
            [],
            ["endpoint", "minioUser", "minioPassword"],
            [
                "stack lab: a bucket nix-cache-lab and a key nix-cache-lab-1 of its own",
                "Pulumi.lab.yaml wants endpoint, minioUser and minioPassword: see docs/settings.md",
            ],
        ),
        (
            {},
            ["endpoint", "minioUser", "bucket"],
            ["minioPassword"],
            [
                "stack lab: Pulumi.lab.yaml keeps endpoint, minioUser and bucket",
                "Pulumi.lab.yaml wants minioPassword: see docs/settings.md",
            ],
        ),
        (
            {"key": "nix-cache-lab-1"},
            ["bucket"],
            [],
            [
                "stack lab: a key nix-cache-lab-1 of its own",
                "stack lab: Pulumi.lab.yaml keeps bucket",
                "make up STACK=lab brings it up",
            ],
        ),
    ],
)
def test_a_new_stack_says_what_it_has_and_what_it_wants(
    names: dict[str, str],
    kept: list[str],
    missing: list[str],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    stack = stacks.Stack("lab", tmp_path, {}, own_server=False)
    made = stacks.Made(stack, names, kept, missing)
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    monkeypatch.setattr(stacks, "create", lambda *_, **__: made)
    assert run(["stack", "NAME=lab"]) == 0
    assert capsys.readouterr().err.splitlines() == said
