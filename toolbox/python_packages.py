"""The Python packages that everything here needs, in `.venv`.

Runs on the standard library alone: `python3 -m toolbox.python_packages`, in the checkout.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from toolbox.errors import ToolboxError
from toolbox.progress import obstacle, say

VENV = Path(".venv")
REQUIREMENTS = "requirements-dev.txt"
LOG = Path("build/pip.log")
_ENOUGH = 32 << 20
"""Bytes that a virtual environment takes while it has pip alone, and more."""
NO_INDEX = "let pip reach its index, or name another in PIP_INDEX_URL"


def main() -> int:
    """Install the packages; return the exit code."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        install()
    except ToolboxError as error:
        say(f"error: {error}")
        return 1
    except OSError as error:
        say(f"error: {error.filename}: {obstacle(str(error), '') or error.strerror}")
        return 1
    except KeyboardInterrupt:
        say("\ninterrupted; run the command again to go on")
        return 130
    return 0


def install() -> None:
    """Make the virtual environment where there is none, and install what is pinned.

    Raises:
        ToolboxError: either fails.
    """
    if not (VENV / "bin" / "pip").exists():
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            text = made.stdout + made.stderr
            # It does not say why.
            if VENV.exists() and shutil.disk_usage(VENV).free < _ENOUGH:
                text += os.strerror(errno.ENOSPC)
            shutil.rmtree(VENV, ignore_errors=True)
            raise ToolboxError(
                obstacle(text, "")
                or f"{sys.executable} cannot make a virtual environment; on Debian: "
                "apt-get install python3-venv"
            )
    say(f"installing the Python packages into {VENV}")
    LOG.parent.mkdir(exist_ok=True)
    command = [str(VENV / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    with LOG.open("wb") as log:
        done = subprocess.run(
            [*command, "--requirement", REQUIREMENTS], stdout=log, stderr=log, check=False
        )
    if done.returncode != 0:
        text = LOG.read_text(errors="replace")
        errors = [line for line in text.splitlines() if line.startswith("ERROR: ")]
        last = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
        reason = obstacle(text, NO_INDEX) or f"{last}; {LOG} has the rest"
        raise ToolboxError(f"pip cannot install the packages of {REQUIREMENTS}: {reason}")
    (VENV / "ready").touch()


if __name__ == "__main__":
    sys.exit(main())
