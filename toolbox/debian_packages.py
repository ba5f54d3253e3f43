"""Debian's packages: what this project needs of them, and where this machine gets them.

Runs on the standard library alone, before there is a virtual environment:
`python3 -m toolbox.debian_packages` installs what is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolbox import progress
from toolbox.errors import ToolboxError

NEEDED = ("ca-certificates", "mmdebstrap", "openssh-client")
"""Packages for the throwaway builder."""

FOR_TESTS = ("chromium", "fonts-droid-fallback", "iproute2", "jq", "systemd")
"""Packages for the tests: a browser with Chinese characters, `ip`, `jq`, and systemd-analyze."""

APT_SOURCES = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")


def is_debian() -> bool:
    """Whether this machine runs Debian itself, not a derivative with an archive of its own."""
    return OS_RELEASE.exists() and "\nID=debian\n" in f"\n{OS_RELEASE.read_text()}\n"


def missing(packages: Sequence[str]) -> list[str]:
    """Those of `packages`, and of what a virtual environment needs, that are not installed."""
    wanted = list(packages)
    if subprocess.run([sys.executable, "-c", "import ensurepip"], check=False).returncode != 0:
        wanted.append("python3-venv")
    return [name for name in wanted if not _is_installed(name)]


def install(packages: Sequence[str] = NEEDED) -> None:
    """Install those of `packages` that are missing; without effect when there are none.

    Raises:
        ToolboxError: apt fails.
    """
    wanted = missing(packages)
    if not wanted:
        return
    apt = ["apt-get", "--quiet", "--option", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["update"],
        ["install", "--yes", "--no-install-recommends", *wanted],
    ):
        with tempfile.NamedTemporaryFile() as log:
            progress.run(
                f"apt-get {arguments[0]} for {' '.join(wanted)}",
                [*apt, *arguments],
                log=Path(log.name),
                remedy="see that apt-get works on this machine",
                env=environment,
            )


def mirror() -> str | None:
    """Return the Debian archive that this machine's apt uses, or None when it names none."""
    return next(iter(archives(_sources())), None)


def archives(texts: Iterator[str]) -> Iterator[str]:
    """Yield the archives with component `main` in the texts of apt's sources, in either format.

    Both formats are described in sources.list(5). Security and update suites lie in archives
    of their own or beside the main one; a plain suite name marks the main archive.
    """
    for text in texts:
        found = list(_one_line(text)) or list(_deb822(text))
        for uri, suites, components in found:
            if "main" in components and any(re.fullmatch(r"[a-z]+", suite) for suite in suites):
                yield uri


def _one_line(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for line in text.splitlines():
        found = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)", line)
        if found:
            yield found[1], [found[2]], found[3].partition("#")[0].split()


def _deb822(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            value = line
            if not line[:1].isspace():
                name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), []).extend(value.split())
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", []):
                yield uri, fields.get("suites", []), fields.get("components", [])


def _sources() -> Iterator[str]:
    parts = sorted((APT_SOURCES / "sources.list.d").glob("*"))
    for path in [APT_SOURCES / "sources.list", *parts]:
        if path.suffix in (".list", ".sources") and path.is_file():
            yield path.read_text()


def _is_installed(package: str) -> bool:
    answer = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout == "installed"


def main() -> str | None:
    """Install what is missing where that is possible; return what a person must mend."""
    if not is_debian() or os.geteuid() != 0:
        print("not root on Debian: installing no packages", file=sys.stderr)
        return None
    try:
        install()
    except ToolboxError as error:
        return f"error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
