"""Which signing keys a deployment makes clients trust, compared with the deployment before it."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi

from formats.keys import KeyName, PublicKey
from formats.signing import SecretKey
from program.checks.recorded import Recorded
from program.settings.reader import SettingError
from program.settings.stack import Settings

PUBLIC_KEYS_OUTPUT = "publicKeys"
"""The stack output with the keys that clients trust; the next deployment compares with it."""


def check(settings: Settings, recorded: Recorded) -> None:
    """Refuse keys that clients of this stack could not follow, and say in words what changes.

    Raises:
        SettingError: as `refuse_a_step_back`.
    """
    before = trusted_before(recorded)
    refuse_a_step_back(before, settings)
    names = [key.name for key in before]
    words = describe(names, settings.signing_keys)
    if words is None:
        return
    if names and not set(names) & set(settings.signing_keys):
        pulumi.log.warn(
            f"{words}; no key stays, so clients refuse the cache until they trust the new one"
        )
    else:
        pulumi.log.info(words)


def refuse_a_step_back(before: Sequence[PublicKey], settings: Settings) -> None:
    """Compare a stack's keys with those that clients trust already.

    Raises:
        SettingError: a new key has a lower integer than one of its domain before it, or an adopted
            one takes the name of another key. Clients keep one key of a name, silently.
    """
    known = {key.name: key for key in before}
    for name in settings.signing_keys:
        adopted = settings.adopted_signing_keys.get(name)
        if adopted is not None:
            if name in known and SecretKey.parse(adopted).public_key != known[name]:
                raise SettingError(
                    "adoptedSigningKeys",
                    None,
                    f"clients trust another key named {name}; leave this one out, "
                    "or append a new name to signingKeys",
                )
        elif name not in known:
            new = KeyName.parse(name)
            older = [key for key in map(KeyName.parse, known) if key.domain == new.domain]
            if older and max(older) > new:
                raise SettingError(
                    "signingKeys",
                    name,
                    f"this stack has had {max(older)}; a new key takes a higher integer, "
                    f"such as {KeyName(new.domain, max(older).number + 1)}",
                )


def trusted_before(recorded: Recorded) -> tuple[PublicKey, ...]:
    """Return the keys that the last deployment made clients trust."""
    return tuple(PublicKey.parse(key) for key in recorded.stack_output(PUBLIC_KEYS_OUTPUT, ()))


def describe(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Return in words which keys start, stay and stop being trusted, or None for no change.

    Args:
        before: names of the keys that the last deployment made clients trust.
        now: names of the keys in this one; the last one signs.
    """
    if list(before) == list(now):
        return None
    words = [
        f"{name} {'stays' if name in before else 'starts being'} trusted"
        + (" and signs" if name == now[-1] else "")
        for name in now
    ]
    words += [f"{name} stops being trusted" for name in before if name not in now]
    return f"signing keys: {', '.join(words)}"
