"""A stack as the Pulumi CLI knows it: its settings and its outputs."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from formats.error import FormatError
from formats.keys import PublicKey
from operations.bucket import Credential
from program.checks.key_rotation import PUBLIC_KEYS_OUTPUT
from program.settings.reader import SettingError
from program.settings.stack import Settings, parse

_NAMESPACE = "nixcache:"
_NOT_READ = {
    "builders": "[]",
    "sshPrivateKey": "",
    "adoptedSigningKeys": "",
    "adoptedUserSecrets": "",
}


class OperationError(Exception):
    """What keeps an operation from running: one sentence with the remedy."""


@dataclass(frozen=True)
class DeployedStack:
    """What a stack was deployed with, and what came of it."""

    name: str
    settings: Settings
    """Its settings, without builders and their secrets."""
    substituter: str
    """The URL that clients read from."""
    public_keys: tuple[PublicKey, ...]
    """The keys that clients trust; the last one signs."""
    reader: Credential | None = None
    """Who clients of a private cache read as; None where everyone may read."""


def read_stack(name: str) -> DeployedStack:
    """Ask the CLI for a stack of the project in the present directory.

    The CLI is the one on PATH, or the one that `PULUMI_COMMAND` names; it finds the backend and
    the passphrase as ever. Secrets come back on a pipe and stay in this process.

    Raises:
        OperationError: there is no CLI, no such stack, or it has not been deployed.
    """
    configuration = {
        setting.removeprefix(_NAMESPACE): str(value.get("value", ""))
        for setting, value in _ask("config", "--json", "--show-secrets", "--stack", name).items()
        if setting.startswith(_NAMESPACE)
    }
    outputs = _ask("stack", "output", "--json", "--stack", name)
    try:
        settings = parse({**configuration, **_NOT_READ})
    except SettingError as error:
        raise OperationError(f"stack {name}: {error}") from None
    try:
        return DeployedStack(
            name,
            settings,
            outputs["substituter"],
            tuple(PublicKey.parse(key) for key in outputs[PUBLIC_KEYS_OUTPUT]),
            _reader(name, settings.reader_user) if settings.private else None,
        )
    except (KeyError, FormatError):
        raise OperationError(
            f"stack {name} has no substituter or public keys among its outputs; run pulumi up"
        ) from None


def _reader(name: str, profile: str) -> Credential:
    command = ("stack", "output", "readerCredentials", "--json", "--show-secrets")
    file = configparser.RawConfigParser()
    file.read_string(_ask(*command, "--stack", name))
    section = file[profile]
    return Credential(section["aws_access_key_id"], section["aws_secret_access_key"])


def _ask(*arguments: str) -> Any:
    command = os.environ.get("PULUMI_COMMAND") or "pulumi"
    if shutil.which(command) is None:
        raise OperationError(
            f"there is no {command} on PATH; install the Pulumi CLI, or name it in PULUMI_COMMAND"
        )
    done = subprocess.run(
        [command, "--non-interactive", "--color=never", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        reason = reasons[0] if reasons else f"exit code {done.returncode}"
        raise OperationError(f"pulumi {arguments[0]} failed: {reason.removeprefix('error: ')}")
    return json.loads(done.stdout)
