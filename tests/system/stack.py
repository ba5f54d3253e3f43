"""A stack of this project on the real engine, in a directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tests.system.preloaded_python.environment import VIRTUALENV
from tests.system.terminal import Session, at_terminal
from tests.system.transit_vault import PROVIDER, address

_KEY = "encryptedkey"
_ENGINES = ("PULUMI_", "VAULT_")
"""What the engine of whoever runs the tests is told, and theirs is not."""
CHECKOUT = Path(__file__).parents[2]
PROGRAM = ("Pulumi.yaml", "__main__.py", "components", "formats", "program", "push")
SECRET_SETTINGS = frozenset(
    {
        "minioPassword",
        "sshPrivateKey",
        "adoptedSigningKeys",
        "adoptedUserSecrets",
        "givenUserSecrets",
    }
)


@dataclass(frozen=True)
class Outcome:
    """What one run of the engine came to."""

    code: int
    output: str
    """Everything it printed, standard error included."""

    def succeeded(self) -> Outcome:
        """Return itself, or fail the test with what the engine printed."""
        assert self.code == 0, self.output
        return self

    def refused(self) -> str:
        """Return the lines of its errors; fail the test if it succeeded."""
        assert self.code != 0, self.output
        return "\n".join(line.strip() for line in self.output.splitlines() if "error:" in line)


class Stack:
    """The program as a user runs it, with a file backend and settings of its own."""

    _key: ClassVar[str | None] = None
    """The first stack's, as the vault has encrypted it. With the same key what the engine has
    encrypted once needs no other run of it."""
    _encrypted: ClassVar[dict[str, object]] = {}
    """What the engine made of a secret with this key."""

    def __init__(
        self,
        engine: Mapping[str, str],
        directory: Path,
        name: str = "test",
        passphrase: str | None = None,
    ) -> None:
        """Create the stack.

        Args:
            engine: the environment that finds the engine and its plugins.
            directory: where the stack's project and its state are put.
            name: the stack's.
            passphrase: what its secrets are encrypted with; None for a vault's key.
        """
        self.name = name
        self.project = directory / "project"
        self.project.mkdir(parents=True)
        for part in PROGRAM:
            (self.project / part).symlink_to(CHECKOUT / part)
        (self.project / ".venv").symlink_to(engine.get(VIRTUALENV, CHECKOUT / ".venv"))
        (directory / "state").mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_ENGINES)},
            **engine,
            "PULUMI_BACKEND_URL": f"file://{directory / 'state'}",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        }
        self.environment.pop("SSH_AUTH_SOCK", None)
        if passphrase is not None:
            self.environment["PULUMI_CONFIG_PASSPHRASE"] = passphrase
            self.run("stack", "init", name).succeeded()
            return
        self.environment["VAULT_ADDR"] = address()
        # A sixth of the processor time of a short command is its collecting of garbage.
        self.environment |= {"GOGC": "off", "GOMEMLIMIT": "500MiB"}
        if Stack._key is not None:
            settings = {"secretsprovider": PROVIDER, _KEY: Stack._key}
            self.settings_file.write_text(yaml.safe_dump(settings))
        self.run("stack", "init", "--secrets-provider", PROVIDER, name).succeeded()
        if Stack._key is None:
            Stack._key = yaml.safe_load(self.settings_file.read_text())[_KEY]

    @property
    def settings_file(self) -> Path:
        """The stack's `Pulumi.<name>.yaml`."""
        return self.project / f"Pulumi.{self.name}.yaml"

    def set(self, settings: Mapping[str, object] = {}, /, **more: object) -> None:
        """Change settings, secret ones through the engine; None removes one."""
        stack = yaml.safe_load(self.settings_file.read_text()) or {}
        config = stack.setdefault("config", {})
        changes = {**settings, **more}
        for setting, value in changes.items():
            config.pop(f"nixcache:{setting}", None)
            if value is not None and setting not in SECRET_SETTINGS:
                config[f"nixcache:{setting}"] = value
        secrets = {
            setting: str(changes[setting])
            for setting in SECRET_SETTINGS & changes.keys()
            if changes[setting] is not None
        }
        known = self._encrypted if _KEY in stack and stack[_KEY] == Stack._key else {}
        for setting, text in secrets.items():
            if text in known:
                config[f"nixcache:{setting}"] = known[text]
        self.settings_file.write_text(yaml.safe_dump(stack))
        for setting, text in secrets.items():
            if text not in known:
                self.run("config", "set", "--secret", setting, text=text).succeeded()
                stack = yaml.safe_load(self.settings_file.read_text())
                known[text] = stack["config"][f"nixcache:{setting}"]

    def run(self, *arguments: str, text: str = "", limit: float | None = None) -> Outcome:
        """Run the engine's command in the project, `text` on its standard input.

        Raises:
            subprocess.TimeoutExpired: it took longer than `limit` seconds.
        """
        done = subprocess.run(
            ["pulumi", "--non-interactive", "--color=never", *arguments],
            cwd=self.project,
            env=self.environment,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=limit,
        )
        return Outcome(done.returncode, done.stdout)

    def type(self, command: str, *answers: tuple[str, str]) -> Session:
        """Type a command at a terminal in the project; the stack is the one that is selected."""
        # The engine asks nobody where it takes itself to be in CI.
        environment = {
            name: value
            for name, value in self.environment.items()
            if not name.startswith(("CI", "GITHUB_", "BUILD"))
        }
        return at_terminal(command, self.project, {**environment, "TERM": "xterm"}, answers)

    def operate(self, module: str, *arguments: str, text: str = "", **environment: str) -> Outcome:
        """Run a module of `operations` in the project, with the changes to the environment."""
        done = subprocess.run(
            [str(self.project / ".venv/bin/python"), "-m", f"operations.{module}", *arguments],
            cwd=self.project,
            env={**self.environment, "PYTHONPATH": str(CHECKOUT), **environment},
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Outcome(done.returncode, done.stdout)

    def up(self, *arguments: str, limit: float | None = None) -> Outcome:
        """`pulumi up` without questions, in at most `limit` seconds."""
        return self.run("up", "--yes", "--skip-preview", "-s", self.name, *arguments, limit=limit)

    def preview(self, *arguments: str) -> Outcome:
        """`pulumi preview`."""
        return self.run("preview", "-s", self.name, *arguments)

    def refresh(self) -> Outcome:
        """`pulumi refresh` without questions."""
        return self.run("refresh", "--yes", "--skip-preview", "-s", self.name)

    def destroy(self) -> Outcome:
        """`pulumi destroy` without questions."""
        return self.run("destroy", "--run-program", "--yes", "--skip-preview", "-s", self.name)

    def changes(self, *arguments: str) -> Counter[str]:
        """Return how many resources a preview would create, update, delete and so on.

        What stays the same or is only read is left out: nothing to do is an empty counter.
        """
        answer = self.preview("--json", *arguments).succeeded()
        summary = json.loads(answer.output)["changeSummary"]
        return Counter(
            {
                operation: count
                for operation, count in summary.items()
                if operation not in ("same", "read")
            }
        )

    def outputs(self) -> dict[str, Any]:
        """Return the stack's outputs with secrets in plain text."""
        answer = self.run("stack", "output", "--json", "--show-secrets", "-s", self.name)
        return dict(json.loads(answer.succeeded().output))

    def export(self) -> str:
        """Return the state as `pulumi stack export` prints it, secrets encrypted."""
        return self.run("stack", "export", "-s", self.name).succeeded().output

    def resources(self) -> list[dict[str, Any]]:
        """Return the state's resources."""
        return list(json.loads(self.export())["deployment"].get("resources", []))

    def kept(self) -> list[dict[str, Any]]:
        """Return the state's resources as the backend's file has them, without asking the CLI."""
        directory = Path(self.environment["PULUMI_BACKEND_URL"].removeprefix("file://"))
        (file,) = directory.rglob(f"stacks/**/{self.name}.json")
        checkpoint = json.loads(file.read_text())["checkpoint"]["latest"]
        return list((checkpoint or {}).get("resources", []))

    def resources_with_secrets(self) -> list[dict[str, Any]]:
        """Return the state's resources with secrets as `{"plaintext": JSON}`."""
        answer = self.run("stack", "export", "--show-secrets", "-s", self.name).succeeded()
        return list(json.loads(answer.output)["deployment"].get("resources", []))
