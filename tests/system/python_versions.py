"""Virtual environments of other Python versions, with what the program needs in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from toolbox import cache

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"


def interpreter(version: str) -> Path | None:
    """Return a Python of that minor version, from PATH or from pyenv, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    candidates = [Path(found)] if found else []
    candidates += sorted(pyenv.glob(f"{version}.*/bin/python{version}"))
    for candidate in candidates:
        # pyenv's shim stands on PATH for versions that are not switched on, too.
        answer = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.stdout.strip() == version:
            return candidate
    return None


def virtual_environment(python: Path, version: str) -> Path:
    """Return a virtual environment of `python` with the program's packages, made once."""

    def make(directory: Path) -> None:
        subprocess.run([python, "-m", "venv", directory], check=True)
        subprocess.run(
            [
                *(directory / "bin" / "python", "-m", "pip", "install"),
                *("--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS),
            ],
            check=True,
        )

    checksum = cache.checksum([REQUIREMENTS.read_bytes(), str(python).encode()])
    return cache.entry(f"python-{version}-{checksum}", make)
