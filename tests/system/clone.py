"""A fresh clone of this project, as a new user has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.system.stack import CHECKOUT
from tests.system.terminal import Session, at_terminal
from toolbox import cache


class Clone:
    """A checkout of what is here now, and a person who works in it.

    Its virtual environment is this checkout's, and so are the things that the toolbox has built.
    """

    def __init__(self, directory: Path) -> None:
        """Make it, with nothing on PATH that the project would take for the person's own."""
        self.directory = directory / "clone"
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (CHECKOUT / name).is_file():
                target = self.directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CHECKOUT / name, target, follow_symlinks=False)
        for name in ("requirements.txt", "requirements-dev.txt"):
            # Older than the virtual environment, which is made already.
            os.utime(self.directory / name, (0, 0))
        (self.directory / ".venv").symlink_to(CHECKOUT / ".venv")
        self.home = directory / "home"
        self.home.mkdir()
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                # The engine asks nobody where it takes itself to be in CI.
                if not name.startswith(("PULUMI_", "MAKE", "CI", "GITHUB_", "BUILD"))
            },
            "HOME": str(self.home),
            "TERM": "xterm",
            "NIXCACHE_CACHE": str(cache.directory()),
        }
        for command in ("init --quiet", "add --all", "commit --quiet --message clone"):
            self.git(command)

    def git(self, command: str) -> str:
        """Run git in it, as nobody in particular."""
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *who, *command.split()],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def type(self, command: str, *answers: tuple[str, str], **environment: str) -> Session:
        """Type a command at a terminal."""
        return at_terminal(command, self.directory, {**self.environment, **environment}, answers)

    def done(self, command: str, *answers: tuple[str, str]) -> str:
        """Type a command that succeeds; return what the terminal showed."""
        return self.type(command, *answers).succeeded().output

    def refused(self, command: str, *answers: tuple[str, str]) -> str:
        """Type a command that fails; return what the terminal showed but for make's last word."""
        session = self.type(command, *answers)
        assert session.code != 0, session.output
        lines = [line for line in session.output.splitlines() if not line.startswith("make: ***")]
        assert "Traceback" not in session.output, session.output
        return "\n".join(lines)


def sentences(text: str) -> Sequence[str]:
    """Return the errors that a terminal showed."""
    return [line for line in text.splitlines() if line.startswith("error: ")]
