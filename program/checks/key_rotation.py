"""Which signing keys a deployment makes clients trust, compared with the deployment before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pulumi

from formats.keys import KeyName, PublicKey
from formats.signing import SecretKey
from program.checks.recorded import Recorded
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings

PUBLIC_KEYS_OUTPUT = "publicKeys"
"""The stack output with the keys that clients trust; the next deployment compares with it."""

RETIRED_KEYS_OUTPUT = "retiredKeys"
"""The stack output with the keys that clients have trusted: no other may take one's name."""

SIGNED_BY = "signingKey"
"""What of a builder in the stack's outputs names the key that signs what it pushes."""


def check(
    settings: Settings,
    recorded: Recorded,
    known_to_clients: Callable[[SigningKeys], Collection[str]] = lambda _: (),
) -> SigningKeys:
    """Return the stack's keys; refuse those that clients could not follow, and say what changes.

    Args:
        settings: the stack's settings.
        recorded: its state.
        known_to_clients: tells which adopted keys the bucket shows, though the state does not know
            them. It is asked where no key that the state knows would stay.

    Raises:
        SettingError: as `SigningKeySettings.settle` and `refuse_a_step_back`; a builder's key is
            none of them, or an upstream's is; the state has lost a key that clients trust; or none
            of those that clients trust would stay.
    """
    before = trusted_before(recorded)
    names = [key.name for key in before]
    keys = settings.signing_keys.settle(names, recorded.signing_keys)
    _refuse_a_builders_key_that_is_none(settings, keys)
    _refuse_this_cache_as_its_upstream(settings, keys, recorded)
    refuse_a_step_back(before, keys, retired_before(recorded), recorded.signing_keys)
    _refuse_another_under_a_lost_name(recorded, names, keys)
    words = describe(names, keys.names)
    if words is None:
        return keys
    if names and not set(names) & set(keys.names) and not known_to_clients(keys):
        if not settings.confirm_key_replacement:
            raise SettingError(
                "signingKeys",
                list(keys.names),
                f"no key stays that clients trust ({', '.join(names)}), so they would refuse the "
                "cache until they trust the new one; append it to the list, and remove the old "
                "one later, or set confirmKeyReplacement to true to go on",
            )
        pulumi.log.warn(
            f"{words}; no key stays, so clients refuse the cache until they trust the new one"
        )
    else:
        pulumi.log.info(words)
    return keys


def _refuse_a_builders_key_that_is_none(settings: Settings, keys: SigningKeys) -> None:
    for index, builder in enumerate(settings.builders):
        if builder.signing_key is not None and builder.signing_key not in keys.names:
            raise SettingError(
                f"builders[{index}].signingKey",
                builder.signing_key,
                f"signingKeys has no such key; append it there, or write one of "
                f"{', '.join(keys.names)}",
            )


def _refuse_this_cache_as_its_upstream(
    settings: Settings, keys: SigningKeys, recorded: Recorded
) -> None:
    """Refuse a list of what a machine trusts, pasted whole: nothing would be pushed or renewed.

    Another cache's key of the same name is refused too, since clients could trust one of them only.
    """
    made = {key.name: key for key in trusted_before(recorded)}
    made |= {name: PublicKey.parse(key) for name, key in recorded.signing_keys.items()}
    made |= {name: SecretKey.parse(key).public_key for name, key in keys.adopted.items()}
    another = (
        "list a domain in signingKeyDomains, such as cache.example.org, and name this cache's key "
        "after it in signingKeys"
    )
    for upstream in map(PublicKey.parse, settings.upstream_keys):
        if upstream.name not in keys.names:
            continue
        own = made.get(upstream.name)
        if own is None:
            sentence = (
                "this cache will make a key of that name, and Nix keeps one key of a name; leave "
                f"it out, or, if it is another cache's, {another}"
            )
        elif own == upstream:
            sentence = (
                "this is a key of the cache itself, and what it signed would be left to another "
                "cache, neither pushed nor renewed; leave it out"
            )
        else:
            sentence = (
                f"a key of this cache has the same name, and Nix keeps one key of a name; {another}"
            )
        raise SettingError("upstreamKeys", upstream.name, sentence)


def refuse_a_step_back(
    before: Sequence[PublicKey],
    keys: SigningKeys,
    retired: Sequence[PublicKey] = (),
    kept: Collection[str] = (),
) -> None:
    """Compare a stack's keys with those that clients trust already, or have trusted.

    Args:
        before: the keys that the last deployment made clients trust.
        keys: the stack's keys.
        retired: keys that clients were made to trust before, and that have gone since.
        kept: names of the keys that the state has. One that comes back is the same key: a
            deployment of some resources alone (`--target`) writes all outputs of the stack, and
            calls a key retired that it left where it was.

    Raises:
        SettingError: a new key has no higher integer than those of its domain before it, or an
            adopted one takes the name of another key. Clients keep one key of a name, silently.
    """
    trusted = {key.name for key in before}
    known = {key.name: key for key in (*retired, *before)}
    for name in keys.names:
        adopted = keys.adopted.get(name)
        if adopted is not None:
            if name in known and SecretKey.parse(adopted).public_key != known[name]:
                raise SettingError(
                    "adoptedSigningKeys",
                    None,
                    f"clients trust another key named {name}; leave this one out, "
                    "or append a new name to signingKeys",
                )
        elif name not in trusted and name not in kept:
            new = KeyName.parse(name)
            older = [key for key in map(KeyName.parse, known) if key.domain == new.domain]
            if older and max(older) >= new:
                raise SettingError(
                    "signingKeys",
                    name,
                    f"this stack has had {max(older)}; a new key takes a higher integer, "
                    f"such as {max(older).next}",
                )


def trusted_before(recorded: Recorded) -> tuple[PublicKey, ...]:
    """Return the keys that the last deployment made clients trust.

    Where none has come that far, those that the state has: something may be signed with them.
    """
    told = recorded.stack_output(PUBLIC_KEYS_OUTPUT)
    if told is None:
        kept = [PublicKey.parse(key) for key in recorded.signing_keys.values()]
        return tuple(sorted(kept, key=lambda key: KeyName.parse(key.name)))
    return tuple(PublicKey.parse(key) for key in told)


def retired_before(recorded: Recorded) -> tuple[PublicKey, ...]:
    """Return the keys that clients were made to trust once, and that have gone since."""
    told = recorded.stack_output(RETIRED_KEYS_OUTPUT, ())
    return tuple(PublicKey.parse(key) for key in told)


def retired_now(recorded: Recorded, keys: SigningKeys) -> list[str]:
    """Return the keys that clients were made to trust once, and do not need after this deployment.

    A key that was made for a deployment which failed is among them: its page, or what a builder
    pushed, may have shown it.

    Args:
        recorded: the stack's state.
        keys: the stack's keys.
    """
    made = map(PublicKey.parse, recorded.signing_keys.values())
    once = {*retired_before(recorded), *trusted_before(recorded), *made}
    return sorted(str(key) for key in once if key.name not in keys.names)


def _refuse_another_under_a_lost_name(
    recorded: Recorded, names: Sequence[str], keys: SigningKeys
) -> None:
    for name in keys.names:
        if name in names and name not in recorded.signing_keys and name not in keys.adopted:
            raise SettingError(
                "signingKeys",
                name,
                "clients trust this key, and the state has lost it: another one of its name would "
                "be refused; give it in adoptedSigningKeys from its backup, or write "
                f"{KeyName.parse(name).next} in its place",
            )


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
