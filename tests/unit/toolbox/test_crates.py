"""Crates: where they can be built, and that nothing but what is pinned is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from toolbox import crates
from toolbox.errors import ToolboxError

CRATE = crates.Crate("small", "1.2.3", "0" * 64, rust=(1, 90))


def command(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("NIXCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo"))
    return commands


def rust(path: Path, selected: str, **others: str) -> None:
    """Install a Rust, and others that rustup knows by their names."""
    command(path, "cargo", "exit 0")
    cases = "".join(f"{name}) echo 'rustc {version} (x)' ;;\n" for name, version in others.items())
    command(
        path,
        "rustc",
        f"case \"$RUSTUP_TOOLCHAIN\" in\n{cases}*) echo 'rustc {selected} (x)' ;;\nesac",
    )
    command(path, "rustup", f"printf '%s (active)\\n' {' '.join(others)}")


def test_without_rust_a_crate_cannot_be_had(path: Path) -> None:
    assert path.is_dir()
    assert crates.unavailable(CRATE) == "no Rust 1.90 or newer is installed"


def test_an_old_rust_is_not_enough(path: Path) -> None:
    rust(path, "1.89.1", stable="1.89.1")
    assert crates.unavailable(CRATE) == "no Rust 1.90 or newer is installed"
    with pytest.raises(ToolboxError, match=r"small 1\.2\.3 cannot be built here: no Rust 1\.90"):
        crates.built(CRATE)


def test_another_toolchain_of_rustup_that_is_new_enough_is_taken(path: Path) -> None:
    rust(path, "1.89.1", nightly="1.91.0-nightly")
    assert crates.unavailable(CRATE) is None


def test_a_command_that_the_build_runs_is_asked_for(path: Path) -> None:
    rust(path, "1.90.0")
    needy = replace(CRATE, needs=("no-such-compiler",))
    assert crates.unavailable(needy) == "its build needs no-such-compiler"


def test_an_archive_that_is_not_the_pinned_one_is_not_built(path: Path, tmp_path: Path) -> None:
    rust(path, "1.90.0")
    command(path, "cargo", f"[ $1 != install ] || touch {tmp_path}/built")
    archive = tmp_path / "cargo" / "registry" / "cache" / "index" / "small-1.2.3.crate"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    with pytest.raises(ToolboxError, match=r"is not the small 1\.2\.3 that is pinned; remove it"):
        crates.built(CRATE)
    assert not (tmp_path / "built").exists()
