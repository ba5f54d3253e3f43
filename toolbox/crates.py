"""Servers for the tests that are built from crates.io, where a Rust toolchain is at hand."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolbox import cache, progress
from toolbox.errors import ToolboxError
from toolbox.tools import Tool

BUILT = "built from crates.io"


@dataclass(frozen=True)
class Crate:
    """A program that cargo can build; its own Cargo.lock pins what it is made of."""

    name: str
    version: str
    checksum: str
    """SHA-256 of its archive."""
    rust: tuple[int, int]
    """The oldest Rust that has built it."""
    options: tuple[str, ...] = ()
    """Options of `cargo install` besides those that all have."""
    profile: Mapping[str, str] = field(default_factory=dict)
    """What differs from the profile that it is published with, so that it builds in minutes."""
    needs: tuple[str, ...] = ()
    """Commands that its build runs."""


GARAGE = Crate(
    name="garage",
    version="2.5.0",
    checksum="e1752af176a3cd84e9afd6edf30df594db92b7730cc67bddcd74769841b3f3f5",
    rust=(1, 95),
    profile={
        "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        "CARGO_PROFILE_RELEASE_DEBUG": "0",
    },
)
RUSTFS = Crate(
    name="rustfs",
    version="1.0.1",
    checksum="82c6c7d281e28b34e6e6e263285916e46bdb062a2d6629593314809022f46e9f",
    # It asks for 1.98.1, and is built by a nightly of 1.97 as well.
    rust=(1, 97),
    options=("--ignore-rust-version", "--no-default-features", "--debug"),
    profile={"CARGO_PROFILE_DEV_DEBUG": "0"},
    needs=("protoc",),
)


def unavailable(crate: Crate) -> str | None:
    """Return why a crate can be neither found in the cache nor built here, or None."""
    if _entry(crate).is_dir():
        return None
    oldest = ".".join(map(str, crate.rust))
    if _toolchain(crate.rust) is None:
        return f"no Rust {oldest} or newer is installed"
    missing = [command for command in crate.needs if shutil.which(command) is None]
    return f"its build needs {' and '.join(missing)}" if missing else None


def _entry(crate: Crate) -> Path:
    recipe = [crate.checksum, *crate.options, *(f"{k}={v}" for k, v in crate.profile.items())]
    key = cache.checksum(part.encode() for part in recipe)
    return cache.directory() / f"{crate.name}-{crate.version}-{key}"


def built(crate: Crate) -> Tool:
    """Return a crate's command, built on the first call.

    Raises:
        ToolboxError: it cannot be built.
    """
    entry = cache.entry(_entry(crate).name, lambda target: _build(crate, target))
    return Tool(crate.name, entry / "bin" / crate.name, crate.version, BUILT)


def _build(crate: Crate, target: Path) -> None:
    why = unavailable(crate)
    toolchain = _toolchain(crate.rust)
    if why or toolchain is None:
        raise ToolboxError(f"{crate.name} {crate.version} cannot be built here: {why}")
    environment = {
        **os.environ,
        **crate.profile,
        **({"RUSTUP_TOOLCHAIN": toolchain} if toolchain else {}),
    }
    _verify(crate, environment)
    objects = target / "objects"
    progress.run(
        f"building {crate.name} {crate.version} from crates.io, which takes long",
        [
            "cargo",
            "install",
            f"{crate.name}@={crate.version}",
            "--locked",
            "--no-track",
            *crate.options,
            f"--root={target}",
            f"--target-dir={objects}",
        ],
        log=target / "build.log",
        remedy="let crates.io be reached, or do without this server",
        env=environment,
    )
    shutil.rmtree(objects)


def _verify(crate: Crate, environment: Mapping[str, str]) -> None:
    """Fetch a crate's archive, and see that it is the one that is pinned, before it is built."""
    subprocess.run(
        ["cargo", "info", "--quiet", f"{crate.name}@{crate.version}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    home = Path(environment.get("CARGO_HOME") or Path.home() / ".cargo")
    archives = list(home.glob(f"registry/cache/*/{crate.name}-{crate.version}.crate"))
    if not archives:
        raise ToolboxError(
            f"{crate.name} {crate.version} cannot be fetched; let crates.io be reached"
        )
    for archive in archives:
        if hashlib.sha256(archive.read_bytes()).hexdigest() != crate.checksum:
            raise ToolboxError(
                f"{archive} is not the {crate.name} {crate.version} that is pinned; remove it"
            )


def _toolchain(oldest: tuple[int, int]) -> str | None:
    """Return the name of an installed toolchain that is new enough; "" is the selected one."""
    if shutil.which("cargo") is None:
        return None
    names = [""]
    if shutil.which("rustup"):
        listed = subprocess.run(
            ["rustup", "toolchain", "list"], capture_output=True, text=True, check=False
        )
        names += [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]
    return next((name for name in names if _rust(name) >= oldest), None)


def _rust(toolchain: str) -> tuple[int, int]:
    environment = {**os.environ, **({"RUSTUP_TOOLCHAIN": toolchain} if toolchain else {})}
    answer = subprocess.run(
        ["rustc", "--version"], capture_output=True, text=True, check=False, env=environment
    )
    found = re.search(r"rustc (\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)
