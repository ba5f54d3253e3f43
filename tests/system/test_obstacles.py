"""No network, no space, no root: `make` says so in one sentence, and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.clone import Clone
from tests.system.stack import CHECKOUT
from toolbox import throwaway_builder

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        throwaway_builder.available() is not None, reason=str(throwaway_builder.available())
    ),
]

FULL = "there is no space left; make some, and run the command again"
NO_INDEX = (
    "error: pip cannot install the packages of requirements-dev.txt: the network does not answer; "
    "let pip reach its index, or name another in PIP_INDEX_URL"
)
COMMANDS = ("make up", "make tools", "make prepare", "make check")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = Clone(tmp_path_factory.mktemp("obstacles"))
    made.environment["PIP_RETRIES"] = "0"
    return made


@pytest.fixture
def bare(clone: Clone) -> Clone:
    """The same without a virtual environment."""
    venv = clone.directory / ".venv"
    if venv.is_symlink():
        venv.unlink()
    return clone


@pytest.fixture
def ready(clone: Clone) -> Clone:
    """The same with one."""
    venv = clone.directory / ".venv"
    if not venv.is_symlink():
        if venv.exists():
            venv.rename(clone.directory / "made")
        venv.symlink_to(CHECKOUT / ".venv")
    return clone


def without_space(directory: Path, size: str, command: str) -> str:
    """Return a command that runs another with nothing but so much space in a directory.

    What it leaves running ends with it: nobody else would find it.
    """
    directory.mkdir(exist_ok=True)
    return (
        "unshare --mount --mount-proc --pid --fork --kill-child "
        f"sh -c 'mount -t tmpfs -o size={size} none {directory} && {command}'"
    )


def errors(shown: str) -> list[str]:
    """Return what a terminal showed from the first error on."""
    lines = shown.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    return lines[first:]


def test_a_full_disk_keeps_the_virtual_environment_from_being_made(bare: Clone) -> None:
    venv = bare.directory / ".venv"
    assert errors(bare.refused(without_space(venv, "1m", "make up"))) == [f"error: {FULL}"]
    assert errors(bare.refused(without_space(venv, "30m", "make up"))) == [
        f"error: pip cannot install the packages of requirements-dev.txt: {FULL}"
    ]
    venv.rmdir()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_network_packages_cannot_be_installed(bare: Clone, command: str) -> None:
    assert bare.refused(f"unshare --net {command}").splitlines() == [
        "installing the Python packages into .venv",
        NO_INDEX,
    ]


@pytest.mark.parametrize("command", ["make tools", "make up"])
def test_without_a_network_what_must_be_built_names_what_it_needs(
    ready: Clone, command: str, tmp_path: Path
) -> None:
    empty = {name: str(tmp_path / name) for name in ("NIXCACHE_CACHE", "GOMODCACHE", "GOCACHE")}
    session = ready.type(f"unshare --net {command}", **empty, GOFLAGS="", GOPROXY="")
    assert session.code != 0
    told, *more = errors(session.output)
    assert told.startswith(("error: building the engine", "error: fetching a Go toolchain"))
    assert "the network does not answer; let " in told
    assert [line for line in more if not line.startswith("make: ***")] == []


def test_a_full_disk_stops_the_linter_of_workflows_and_the_dev_stack(
    ready: Clone, tmp_path: Path
) -> None:
    home = ready.directory / ".dev"
    for size in ("64k", "2m"):
        shown = ready.refused(without_space(home, size, "make up"))
        assert errors(shown)[0] in (f"error: {home}: {FULL}", f"error: {FULL}")
        assert len(errors(shown)) == 1
    temporary = tmp_path / "temporary"
    environment = {"TMPDIR": str(temporary), "NIXCACHE_CACHE": str(tmp_path / "empty")}
    session = ready.type(without_space(temporary, "64k", "make tools"), **environment)
    assert [line for line in errors(session.output) if "make: ***" not in line] == [
        f"error: {temporary}: {FULL}"
    ]


def test_who_is_not_root_has_a_server_and_a_stack_and_is_told_how_to_add_a_builder(
    ready: Clone,
) -> None:
    # A user of no name, whose files those of root are.
    made = ready.type("unshare --user --map-user=1000 --map-group=1000 make prepare").succeeded()
    assert made.output.splitlines()[-1].startswith("no throwaway builder: ")
    up = ready.type("unshare --user --map-user=1000 --map-group=1000 make up")
    try:
        told = up.succeeded().output
        assert "No builder: there is no nix here, and " in told
        assert (
            "To add one, set builders (name, host, hostKey, closures; see docs/settings.md)."
            in told
        )
        assert "; on a machine with Nix: make pull" in told
        assert "Traceback" not in told
    finally:
        ready.done("make clean")
    assert os.geteuid() == 0
