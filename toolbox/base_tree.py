"""A small Debian tree with Nix, an SSH server and what a NixOS host has: a builder's disk."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from toolbox import cache, debian_packages, progress
from toolbox.errors import ToolboxError

SUITES = {"bookworm": "2.8", "trixie": "2.26", "forky": "2.34"}
"""Debian suites that carry Nix, each with the version of Nix it brings."""

DEFAULT_SUITE = "forky"
"""The suite of a builder that is to be like a NixOS host of today."""

NAMED = "named"
"""In a suite's place: the default suite's tree with the Nix that the environment names over it."""

VARIABLE = "NIXCACHE_NIX"
"""Names a directory with another Nix, as `DESTDIR=… ninja install` makes one, prefix `/usr`."""

PACKAGES = (
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "findutils",
    "grep",
    "mawk",
    "nix-bin",
    "openssh-server",
    "openssl",
    "perl-base",
    "python3",
    "sed",
)

EQUIPMENT = ("fish", "openssh-client", "sudo", "systemd", "tcsh", "zsh")
"""Packages of a builder for the tests of odd login shells, of other users, of units, of jobs."""

# A machine's own Nix: builds as root without a sandbox, and asks no substituter, since tests
# have no network. Experimental features stay off, as on a NixOS host.
NIX_CONF = """\
build-users-group =
sandbox = false
substituters =
fsync-metadata = false
"""

NAMESPACES = ("unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child")
"""What a process mounts or starts in these ends with it."""

OPTIONS = (
    "--variant=minbase",
    "--mode=root",
    "--format=directory",
    # Snapshots of the archive are older than their release files allow.
    '--aptopt=Acquire::Check-Valid-Until "false"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


def named_nix() -> Path | None:
    """Return the directory with the Nix that the environment names, None where it names none.

    Raises:
        ToolboxError: no Nix is in it.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    directory = Path(named)
    # A link may lead to where only the builder's own root has something.
    if not directory.is_absolute() or not os.path.lexists(directory / "usr/bin/nix"):
        raise ToolboxError(
            f"{VARIABLE} is {named!r}, which is no absolute path of a directory with usr/bin/nix; "
            "install a Nix there with the prefix /usr, or leave it unset"
        )
    return directory


def suites() -> tuple[str, ...]:
    """Return one suite for each Nix to be tested, that of every other builder last."""
    return (*SUITES, *([NAMED] if named_nix() else []))


def base_tree(suite: str, more: Sequence[str] = ()) -> Path:
    """Return the cached tree of `suite`, made on the first call. Never write into it.

    Args:
        suite: one of `SUITES`.
        more: packages besides those that every builder has; each choice is a tree of its own.

    Raises:
        ToolboxError: the suite is unknown, or mmdebstrap fails.
    """
    if suite not in SUITES:
        raise ToolboxError(f"suite {suite!r} is unknown; write one of {', '.join(SUITES)}")
    packages = (*PACKAGES, *more)
    recipe = [suite, platform.machine(), *packages, *OPTIONS, NIX_CONF]
    name = f"debian-{suite}-{cache.checksum(part.encode() for part in recipe)}"
    return cache.entry(name, lambda target: _make(suite, packages, target)) / "tree"


def plain_tree(suite: str, packages: Sequence[str]) -> Path:
    """Return the cached tree of a suite with some packages and what they need. Never write into it.

    Args:
        suite: a Debian suite.
        packages: what is in it besides the least that Debian has.

    Raises:
        ToolboxError: mmdebstrap fails.
    """
    recipe = [suite, platform.machine(), *packages, *OPTIONS]
    name = f"debian-{suite}-{packages[-1]}-{cache.checksum(part.encode() for part in recipe)}"
    what = f"making a Debian {suite} tree with {packages[-1]}"
    return cache.entry(name, lambda target: _debootstrap(what, suite, packages, target)) / "tree"


def _make(suite: str, packages: Sequence[str], target: Path) -> None:
    tree = target / "tree"
    what = f"making a Debian {suite} tree with Nix {SUITES[suite]}"
    _debootstrap(what, suite, packages, target)
    for key in (tree / "etc" / "ssh").glob("ssh_host_*"):
        key.unlink()
    (tree / "etc" / "nix").mkdir(exist_ok=True)
    (tree / "etc" / "nix" / "nix.conf").write_text(NIX_CONF)
    subprocess.run(["chroot", str(tree), "mkdir", "-p", "/nix/store", "/run/sshd"], check=True)


def _debootstrap(what: str, suite: str, packages: Sequence[str], target: Path) -> None:
    mirror = debian_packages.mirror()
    if mirror is None:
        raise ToolboxError(
            "apt's sources name no Debian archive with a plain suite and component main; "
            "add one to /etc/apt/sources.list"
        )
    progress.run(
        what,
        [
            *NAMESPACES,
            "mmdebstrap",
            *OPTIONS,
            f"--include={','.join(packages)}",
            suite,
            str(target / "tree"),
            mirror,
        ],
        log=target / "mmdebstrap.log",
        remedy="see that apt-get update works on this machine",
    )
