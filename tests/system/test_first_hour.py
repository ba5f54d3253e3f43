"""The first hour of a new user on the dev stack, typed word for word at a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.system.clone import Clone
from toolbox import throwaway_builder

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        throwaway_builder.available() is not None, reason=str(throwaway_builder.available())
    ),
]

PULLED = r"pulled 60 paths in \d+\.\d s, all signed by "


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone in which `make up` has been typed, and that leaves nothing running."""
    made = Clone(tmp_path_factory.mktemp("first-hour"))
    try:
        for before in ("make audit", "make stack NAME=staging SERVER=dev"):
            assert made.refused(before).endswith(" yet; run make up first")
        first = made.done("make up")
        assert re.search(PULLED + r"127\.0\.0\.1-1\n\Z", first)
        assert "stack dev, on this machine's server" in first
        yield made
        assert made.git("status --porcelain") == ""
        made.done("make down")
        (made.directory / ".dev" / "project").mkdir()
        assert "; make clean removes it" in made.refused("make audit")
    finally:
        made.type("make clean")
    assert not (made.directory / ".dev").exists()


def test_what_one_sets_is_previewed_and_stays_a_rotation_and_a_retirement_too(
    clone: Clone,
) -> None:
    clone.done('make pulumi ARGS="config set retentionDays 14"')
    for number in (0, 1):
        path = f"--path 'signingKeys[{number}]' 127.0.0.1-{number + 1}"
        clone.done(f'make pulumi ARGS="config set {path}"')
    committed = clone.directory / "Pulumi.dev.yaml"
    before = committed.read_text()
    committed.write_text(f"{before}  nixcache:priority: 30\n")
    previewed = clone.done('make pulumi ARGS="preview --diff"')
    assert re.search(r"Priority +: 40 => 30", previewed)
    assert '"7d" => "14d"' in previewed
    assert "127.0.0.1-2 starts being trusted and signs" in previewed
    committed.write_text(before)

    assert re.search(PULLED + r"127\.0\.0\.1-1 and 127\.0\.0\.1-2\n", clone.done("make up"))
    clone.done("make pulumi ARGS=\"config rm --path 'signingKeys[0]'\"")
    for _ in range(2):
        assert re.search(PULLED + r"127\.0\.0\.1-2\n", clone.done("make up"))
    committed.write_text(f"{before}  nixcache:retentionDays: 21\n")
    retention = clone.done('make pulumi ARGS="stack output retention"')
    assert retention.endswith("An entry expires 14 days after its last push.\n")
    assert (
        "retentionDays is 14 as you set it, not 21 as Pulumi.dev.yaml says; "
        'make pulumi ARGS="config rm retentionDays" goes back to that'
    ) in retention
    clone.done('make pulumi ARGS="config rm retentionDays"')
    assert "as you set it" not in clone.done("make pulumi ARGS=config")
    committed.write_text(f"{before}  nixcache:sshPrivateKey:\n    secure: v1:x\n")
    assert (
        "sshPrivateKey is a secret, which only the stack itself can read; take it out, then "
        'make pulumi ARGS="config set --secret sshPrivateKey"'
    ) in clone.refused('make pulumi ARGS="stack output retention"')
    committed.write_text(before)
    clone.done('make pulumi ARGS="config set --secret sshPrivateKey"', ("value", "x\r"))
    clone.done('make pulumi ARGS="config rm sshPrivateKey"')


def test_a_second_stack_on_the_same_server_is_never_meant_by_chance(clone: Clone) -> None:
    clone.done("make stack NAME=staging SERVER=dev")
    set_by_itself = clone.done("make pulumi STACK=staging ARGS=config")
    assert re.search(r"minioPassword +\[secret\]", set_by_itself)
    again = clone.refused("make stack NAME=staging SERVER=dev")
    assert again == "error: there is a stack staging already"
    clone.done('make pulumi STACK=staging ARGS="config set protect false"')
    brought_up = clone.done("make up STACK=staging")
    assert re.search(PULLED + r"nix-cache-staging-1\n", brought_up)
    assert "take STACK=staging, as in make up STACK=staging; without it, dev is" in brought_up

    clone.done('make pulumi ARGS="stack select staging"')
    assert "\ndev: https://127.0.0.1" in clone.done("make audit")
    audit = clone.done("make audit STACK=staging")
    assert audit.startswith("stack staging, on this machine's server\n")
    assert "60 narinfos" in audit
    pushed = clone.done("make push STACK=staging BUILDER=throwaway")
    assert "throwaway: pushed 0 paths (0 B), reused 60" in pushed

    clone.done("make empty STACK=staging", ("name to remove", "nix-cache-staging\r"))
    clone.done('make pulumi STACK=staging ARGS="destroy --run-program --yes --remove"')
    assert "\ndev: https://127.0.0.1" in clone.done("make audit")
    clone.done("make stack NAME=staging SERVER=dev")


def test_a_cache_goes_private_and_public_again(clone: Clone) -> None:
    clone.done('make pulumi ARGS="config set access private"')
    assert "access: nobody reads without a credential" in clone.done("make pulumi ARGS=preview")
    clone.done('make pulumi ARGS="up --yes --skip-preview"')
    assert re.search(PULLED, clone.done("make pull"))
    assert "make pull reads it as its reader does" in clone.refused("make shell")
    clone.done('make pulumi ARGS="config rm access"')
    assert "access: everyone may read" in clone.done('make pulumi ARGS="preview"')
    clone.done('make pulumi ARGS="up --yes --skip-preview"')


def test_a_clients_terminal_fetches_what_was_pushed(clone: Clone) -> None:
    (path,) = set(re.findall(r"/nix/store/\S+-dev", clone.done("make pulumi ARGS='stack output'")))
    typed = f"nix-store --realise {path} && exit\n"
    fetched = clone.done("make shell", ("exit leaves", typed))
    assert f"copying path '{path}' from 'https://127.0.0.1" in fetched


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("make pulumi", 'error: ARGS is missing; write make pulumi ARGS="preview"'),
        (
            "make audit ARGS=--nope",
            "error: unrecognized arguments: --nope; make audit ARGS=--help shows what there is",
        ),
        (
            "make audit ARGS='--hash some'",
            "error: argument --hash: 'some' is neither all nor a number; "
            "make audit ARGS=--help shows what there is",
        ),
        (
            "make drift ARGS=now",
            "error: unrecognized arguments: now; make drift ARGS=--help shows what there is",
        ),
        ("make audit STAK=x", "error: make audit has no variable STAK; it takes STACK and ARGS"),
        (
            "make stack NAME=Bad_Name",
            "error: NAME is 'Bad_Name'; write 1 to 32 lower-case letters, digits and hyphens, "
            "such as staging",
        ),
        ("make stack", "error: NAME is missing; write make stack NAME=staging"),
        (
            "make audit STACK=nobody",
            "error: there is no stack nobody; write the name of one that is there, or make it "
            "first: make stack NAME=nobody",
        ),
        (
            "make push BUILDER=nobody",
            "error: no builder nobody of stack dev pushes by a deployment or has a "
            "credentialsDirectory; there are throwaway",
        ),
        ("make nothing", "error: there is no make nothing; make lists what there is"),
        ("make down STACK=dev", "error: make down has no variable STACK; it takes none"),
    ],
)
def test_a_wrong_call_is_one_sentence(clone: Clone, command: str, sentence: str) -> None:
    refused = clone.refused(command)
    lines = [line for line in refused.splitlines() if not line.startswith("stack ")]
    assert lines == [sentence]


@pytest.mark.parametrize("command", ["make audit", "make drift", "make push", "make empty"])
def test_help_is_the_commands_own(clone: Clone, command: str) -> None:
    shown = clone.done(f"{command} ARGS=--help")
    assert shown.startswith(f"usage: {command} [STACK=NAME]")


@pytest.mark.parametrize(
    ("command", "seen"),
    [
        ("make up", "pulumi-language-python"),
        ("make up", "Updating"),
        ("make drift", "stack dev"),
        ("make empty", "Type the bucket's name"),
        ("make pulumi ARGS=up", "Do you want to perform this"),
        ("make repair", "Do you want to perform this"),
    ],
)
def test_an_interruption_says_the_same_at_every_moment(
    clone: Clone, command: str, seen: str
) -> None:
    session = clone.type(command, (seen, "\x03"))
    assert session.code != 0
    assert "Traceback" not in session.output
    assert "interrupted; run the command again to go on" in session.output
    # Nothing is in the way of the command that is run again.
    locks = clone.directory / ".dev" / "state" / ".pulumi" / "locks"
    assert not list(locks.rglob("*.json"))
