"""Which settings no deployment has put in force, of those that a deployment of a part would.

The engine runs the whole program whatever it deploys, and writes all of the stack's outputs: what
clients trust, what is backed up, who pushes. Whoever lets it deploy a part asks here first. Pure.

How a builder is reached is not compared: that is in no output, and a builder that has moved or was
installed anew is reached by the settings of now. What its links point to is not, either: to follow
them is what a push is for.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.pins import targets_now
from formats.pin import PIN_FOLDER
from formats.printable import listed
from operations.cache_status import changed_setting
from operations.pulumi_cli import OperationError
from operations.status import rules_in_force, rules_of
from program import placed
from program.checks import readable
from program.checks.key_rotation import SIGNED_BY, trusted_before
from program.checks.recorded import (
    BUILDERS,
    COMMANDS,
    OBJECT,
    PROTECTED_OUTPUT,
    SIGNING_KEY,
    USER,
    Recorded,
)
from program.outputs.machines import substituter
from program.push_settings import push_settings
from program.settings.builders import BuilderSettings
from program.settings.reader import SettingError
from program.settings.stack import Settings

_SETTING = {
    "endpoint": "endpoint",
    "region": "region",
    "bucket": "bucket",
    "addressing": "addressing",
    "renew": "expire",
    "compression": "compression",
    "compression-level": "compressionLevel",
    "parallelism": "parallelism",
    "staging-limit": "stagingLimit",
    "part-size": "partSize",
    "upstream-key": "upstreamKeys",
    "logs": "logs",
    "listings": "listings",
    "ca-certificate": "caCertificateFile",
    "secret-access-key": "givenUserSecrets",
}
"""The stack's setting that says what a push is given, by the name that `push.settings` has."""

_IN_ADDRESS = frozenset({"access", "addressing", "bucket", "endpoint", "region"})
_BEFORE_PATHS = "--config"
"""What stands before `-` and the store paths in the command of a push."""
_MOST, _LONGEST = 5, 120


def refuse_undeployed(name: str, settings: Settings, state: Recorded) -> None:
    """Refuse to deploy a part of a stack whose settings would then be in force by halves.

    Args:
        name: the stack's name.
        settings: all of its settings, builders and pins too.
        state: its state, as the last deployment left it.

    Raises:
        OperationError: there is a setting of the kind, or the keys' names cannot be used.
    """
    try:
        found = undeployed(settings, state)
    except SettingError as error:
        raise OperationError(f"stack {name}: {error}") from None
    if found:
        raise OperationError(
            f"stack {name}: the settings are not deployed as they are "
            f"({listed(found, _MOST, _LONGEST)}), and this would put a part of them in force; see "
            "pulumi preview, then run pulumi up, or undo the change"
        )


def undeployed(settings: Settings, state: Recorded) -> list[str]:
    """Return in words what of the settings the last deployment has not put in force, each once.

    What an older state does not tell is not compared.

    Args:
        settings: all of the stack's settings.
        state: its state.

    Raises:
        SettingError: as `SigningKeySettings.settle`.
    """
    found = {
        **_of_keys(settings, state),
        **_of_cache(settings, state),
        **_of_outputs(settings, state),
    }
    address = substituter(settings)
    if not found.keys() & _IN_ADDRESS and state.stack_output("substituter", address) != address:
        found["publicUrl"] = f"publicUrl is {address}"
    builders = _of_builders(settings, state, keys_are_told="signingKeys" in found)
    return list(dict.fromkeys((*found.values(), *builders, *_of_pins(settings, state))))


def _of_keys(settings: Settings, state: Recorded) -> dict[str, str]:
    before = [key.name for key in trusted_before(state)]
    names = list(settings.signing_keys.settle(before).names)
    same = not before or names == before
    return {} if same else {"signingKeys": _said("signingKeys", names)}


def _of_cache(settings: Settings, state: Recorded) -> dict[str, str]:
    """Return what differs of retention and protection, by the setting's name."""
    found = {}
    meant, in_force = rules_of(settings), rules_in_force(settings, state)
    if meant.retention_days != in_force.retention_days:
        turned = None in (meant.retention_days, in_force.retention_days)
        found["expire" if turned else "retentionDays"] = changed_setting(meant, in_force)
    if state.stack_output(PROTECTED_OUTPUT, settings.protect) != settings.protect:
        found["protect"] = _said("protect", settings.protect)
    return found


def _of_outputs(settings: Settings, state: Recorded) -> dict[str, str]:
    """Return what machines would be told that they are not told now, by the setting's name."""
    nixos = state.stack_output("nixos")
    if nixos is None:
        return {}
    found = {}
    if nixos.get("access", settings.access) != settings.access:
        found["access"] = _said("access", settings.access)
    if state.stack_output("caCertificate") != settings.ca_certificate:
        found["caCertificateFile"] = _said("caCertificateFile", settings.ca_certificate_file)
    if (state.stack_output(readable.OUTPUT) is None) != settings.bucket_policy:
        found["bucketPolicy"] = _said("bucketPolicy", settings.bucket_policy)
    if (state.stack_output("builderPolicy") is not None) != settings.given_users:
        found["users"] = _said("users", "given" if settings.given_users else "minio")
    reader = state.stack_output("readerCredentials")
    if settings.private and reader is not None and settings.given_users:
        lines = str(reader).splitlines()
        if f"aws_access_key_id = {settings.reader_user}" not in lines:
            found["readerAccessKeyId"] = _said("readerAccessKeyId", settings.reader_user)
        secret = settings.given_user_secrets.get(settings.reader_user)
        if f"aws_secret_access_key = {secret}" not in lines:
            found["givenUserSecrets"] = "givenUserSecrets has other secrets"
    given = {name: _texts(value) for name, value in nixos.get("push", {}).items()}
    return {**found, **_differences(settings, given, _now(settings))}


def _now(settings: Settings) -> dict[str, list[str]]:
    return {name: _texts(value) for name, value in push_settings(settings).items()}


def _differences(
    settings: Settings, before: Mapping[str, list[str]], now: Mapping[str, list[str]]
) -> dict[str, str]:
    """Return what a push would be given that it was not, by the setting's name."""
    values = {
        "expire": settings.retention_days is not None,
        "addressing": "virtual" if settings.virtual_hosts else "path",
        "logs": settings.logs,
        "listings": settings.listings,
        "upstreamKeys": list(settings.upstream_keys),
        "caCertificateFile": settings.ca_certificate_file,
    }
    found = {}
    for name, setting in _SETTING.items():
        if before.get(name, []) == now.get(name, []):
            continue
        if setting == "givenUserSecrets":
            found[setting] = "givenUserSecrets has other secrets"
        else:
            found[setting] = _said(setting, values.get(setting, "".join(now.get(name, []))))
    return found


def _of_builders(settings: Settings, state: Recorded, *, keys_are_told: bool) -> Iterator[str]:
    """Yield which builders come, go, or would push otherwise."""
    outputs: Mapping[str, Mapping[str, Any]] = state.stack_output("builders") or {}
    users = state.names_of(BUILDERS, USER)
    told_pins = (state.stack_output("nixos") or {}).get("builders", {})
    placed_for = {builder.name: one for one, builder in placed.kept(settings.builders, state)}
    last = settings.signing_keys.settle([key.name for key in trusted_before(state)]).names[-1]
    secrets = {
        str(key.get("key_name")): str(key.get("secret_key")) for key in state.outputs(SIGNING_KEY)
    }
    for builder in settings.builders:
        access = outputs.get(builder.name, {})
        made = settings.given_users or builder.s3_user in users
        if access.get("accessKeyId") != builder.s3_user or not made:
            yield f"builders has {builder.name}"
            continue
        key = builder.signing_key or last
        command = _push_of(builder, state)
        if _pushed(builder, state, command) != list(builder.pushed):
            yield f"builder {builder.name} pushes other closures or pins"
        elif list(told_pins.get(builder.name, {}).get("pins", builder.pins)) != list(builder.pins):
            yield f"builder {builder.name} has other pins"
        one = placed_for.get(builder.name)
        if (one is None) != (builder.credentials_directory is None):
            yield f"builder {builder.name} has another credentialsDirectory"
        signs = [access.get(SIGNED_BY, key) == key]
        given = {} if command is None else _given(command)
        if "endpoint" in given:
            signs.append(given.get("signing-key") == [secrets.get(key)])
            yield from _differences(
                settings, given, _now(settings) | _own(settings, builder, given)
            ).values()
        if one is not None:
            stdin = str(state.resources[one.urn]["outputs"].get("stdin"))
            signs.append(secrets.get(key) in stdin.splitlines())
        if not all(signs) and not keys_are_told:
            yield f"builder {builder.name} is to sign with {key} and does not yet"
    names = {builder.name for builder in settings.builders}
    yield from (f"builders lacks {name}" for name in outputs if name not in names)
    told = {access.get("accessKeyId") for access in outputs.values()}
    declared = {builder.s3_user for builder in settings.builders}
    yield from (f"builders lacks the one of user {user}" for user in users - told - declared)


def _own(
    settings: Settings, builder: BuilderSettings, given: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Return what a builder's push would be given beside what all builders' pushes are."""
    own = {"secret-access-key": given.get("secret-access-key", [])}
    if settings.given_users:
        own["secret-access-key"] = _texts(settings.given_user_secrets.get(builder.s3_user))
    if settings.ca_certificate is not None:
        own["ca-certificate"] = [base64.b64encode(settings.ca_certificate.encode()).decode()]
    return own


def _push_of(builder: BuilderSettings, state: Recorded) -> Mapping[str, Any] | None:
    """Return the outputs of the command by which a builder pushes; None where none does.

    It is another one where the builder was reached over SSH, and now is this machine.
    """
    kind = next(one for one in COMMANDS if (":local:" in one) == builder.local)
    name = [f"nixcache:index:ClosurePush${kind}", f"{builder.s3_user}-push"]
    for urn, resource in state.resources.items():
        if urn.split("::")[2:] == name:
            outputs: Mapping[str, Any] = resource["outputs"]
            return outputs
    return None


def _pushed(
    builder: BuilderSettings, state: Recorded, command: Mapping[str, Any] | None
) -> list[str]:
    """Return what the last deployment let a builder push: store paths, and links as such."""
    closure = f"nixcache:Closure::{builder.s3_user}"
    for urn, resource in state.resources.items():
        if urn.endswith(closure) and command is not None:
            return list(resource["outputs"].get("links", ()))
    if command is None:
        return []
    words = shlex.split(str(command.get("create")))
    return words[words.index(_BEFORE_PATHS) + 2 :] if _BEFORE_PATHS in words else []


def _given(command: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the settings that a push was given: they follow the program that fetches it."""
    length, _, rest = str(command.get("stdin")).partition("\n")
    settings = rest[int(length.split()[0]) :] if length[:1].isdecimal() else rest
    found: dict[str, list[str]] = {}
    # The bucket is in it twice.
    for line in dict.fromkeys(settings.splitlines()):
        name, _, value = line.partition("=")
        found.setdefault(name, []).append(value)
    return found


def _of_pins(settings: Settings, state: Recorded) -> Iterator[str]:
    """Yield which pins come, go, or would keep something else."""
    objects = [str(one.get("objectName", "")) for one in state.outputs(OBJECT)]
    there = [name.removeprefix(PIN_FOLDER) for name in objects if name.startswith(PIN_FOLDER)]
    builders = state.stack_output("builders") or {}
    told = state.stack_output("pins") or {}
    pushed = {builder.name: builder.pushed for builder in settings.builders}
    for pin in settings.pins:
        if pin.name not in there:
            yield f"pins has {pin.name}"
        elif pin.builder is None:
            if list(state.pinned(pin.name)) != [pin.path]:
                yield f"pin {pin.name} keeps {pin.path}"
        elif pin.name in told:
            kept, place = list(told[pin.name]), pushed[pin.builder].index(pin.path)
            # Not of the object in the bucket, which a push of a link that has moved leaves.
            now = builders.get(pin.builder, {}).get("closures", ())[place : place + 1]
            if now and targets_now(now[0], kept, pin.keep_last) != kept:
                yield f"pin {pin.name} keeps something else"
    named = {pin.name for pin in settings.pins}
    yield from (f"pins lacks {name}" for name in there if name not in named)


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(one) for one in value]
    # Numbers of a state are those of JSON.
    return [str(int(value) if isinstance(value, float) and value.is_integer() else value)]


def _said(setting: str, value: object) -> str:
    words = value if isinstance(value, str) else json.dumps(value)
    return f"{setting} is {'empty' if value is None else words}"
