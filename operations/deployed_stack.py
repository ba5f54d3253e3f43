"""A stack as the Pulumi CLI knows it: its settings and its outputs."""

from __future__ import annotations

import configparser
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from formats.error import FormatError
from formats.keys import PublicKey
from formats.store_path import is_store_path
from operations.bucket import Credential
from operations.pulumi_cli import OperationError, read_output
from operations.state import read_interrupted_state
from program.checks.key_rotation import PUBLIC_KEYS_OUTPUT, SIGNED_BY
from program.checks.recorded import Recorded
from program.settings.reader import SettingError
from program.settings.stack import Settings, parse

_NAMESPACE = "nixcache:"
_NOT_READ = {
    "builders": "[]",
    "pins": "[]",
    "sshPrivateKey": "",
    "adoptedSigningKeys": "",
    "adoptedUserSecrets": "",
    "givenUserSecrets": "",
}


@dataclass(frozen=True)
class DeployedStack:
    """What a stack was deployed with, and what came of it."""

    name: str
    settings: Settings
    """Its settings, without builders and their secrets unless they were wanted."""
    substituter: str
    """The URL that clients read from."""
    public_keys: tuple[PublicKey, ...]
    """The keys that clients trust; the last one signs."""
    closures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Store paths whose closures the cache is to have, by who says so: `builder NAME pushed`, `pin
    NAME keeps`."""
    builders: Mapping[str, str] = field(default_factory=dict)
    """The user of each builder on the server, by the builder's name."""
    signed_by: Mapping[str, str] = field(default_factory=dict)
    """The name of the key that signs what a builder pushes, by the builder's name."""
    reader: Credential | None = None
    """Who clients of a private cache read as; None where everyone may read."""


def read_settings(name: str, *, whole: bool = False) -> Settings:
    """Ask the CLI for the settings of a stack of the project in the present directory.

    Builders and their secrets are left out unless the `whole` is wanted. Secrets stay in this
    process.

    Raises:
        OperationError: there is no CLI, no such stack, or a setting cannot be used.
    """
    given = read_output("config", "--show-secrets", "--stack", name)
    configuration = {
        setting.removeprefix(_NAMESPACE): str(value.get("value", ""))
        for setting, value in given.items()
        if setting.startswith(_NAMESPACE)
    }
    try:
        return parse(configuration if whole else {**configuration, **_NOT_READ})
    except SettingError as error:
        raise OperationError(f"stack {name}: {error}") from None


def read_stack(name: str, *, whole: bool = False) -> DeployedStack:
    """Ask the CLI for a stack of the project in the present directory, and what came of it.

    Builders and their secrets are left out of its settings unless the `whole` is wanted.

    Raises:
        OperationError: as `read_settings`; or it has not been deployed.
    """
    # The CLI takes a while to start, and is asked twice.
    with ThreadPoolExecutor(1) as thread:
        answering = thread.submit(read_output, "stack", "output", "--stack", name)
        settings = read_settings(name, whole=whole)
        outputs = answering.result()
    builders = outputs.get("builders") or {}
    try:
        public_keys = tuple(PublicKey.parse(key) for key in outputs[PUBLIC_KEYS_OUTPUT])
        return DeployedStack(
            name,
            settings,
            outputs["substituter"],
            public_keys,
            _closures(builders, outputs.get("pins") or {}),
            {name: str(builder["accessKeyId"]) for name, builder in builders.items()},
            {
                name: str(builder[SIGNED_BY])
                for name, builder in builders.items()
                if SIGNED_BY in builder
            },
            _reader(name, settings.reader_profile) if settings.private else None,
        )
    except (KeyError, FormatError):
        raise OperationError(
            f"stack {name} has no substituter or public keys among its outputs; run make up "
            f"STACK={name}"
        ) from None


def read_deployed(name: str, *, whole: bool = False) -> tuple[DeployedStack, Recorded]:
    """Ask the CLI for a stack, as `read_stack` does, and for its state.

    Raises:
        OperationError: as `read_stack`.
    """
    # The CLI takes a while to start, and is asked thrice.
    with ThreadPoolExecutor(1) as thread:
        exported = thread.submit(read_interrupted_state, name)
        stack = read_stack(name, whole=whole)
        state, _ = exported.result()
    return stack, state.of(stack.settings.bucket)


def _closures(builders: Mapping[str, Any], pins: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what the outputs say was pushed and is kept; a link was never followed."""
    closures = {
        f"builder {name} pushed": [one for one in builder.get("closures", ()) if is_store_path(one)]
        for name, builder in builders.items()
    }
    known = {path for paths in closures.values() for path in paths}
    kept = {
        f"pin {name} keeps": [one for one in paths if is_store_path(one) and one not in known]
        for name, paths in pins.items()
    }
    return closures | kept


def _reader(name: str, profile: str) -> Credential:
    command = ("stack", "output", "readerCredentials", "--show-secrets")
    file = configparser.RawConfigParser()
    file.read_string(read_output(*command, "--stack", name))
    section = file[profile]
    return Credential(section["aws_access_key_id"], section["aws_secret_access_key"])
