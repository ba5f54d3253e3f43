"""What a preview says in words: the changes that a person has to know of, a line each.

The engine's own lines name the properties that differ (`[diff: ~content,etag]`), and not what that
means. Everything here is computed from the settings and from what the state knows; which signing
keys come and go is told by `program.checks.key_rotation`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pulumi

from components.binary_cache import nix_cache_info
from components.pins import targets_now
from components.push_program import PROGRAM_KEY, archive, push_command
from components.retention import expiration_rules, expirations, shortenings
from formats.pin import PIN_FOLDER
from formats.printable import listed, printable
from formats.signing import SecretKey
from program.checks.key_rotation import SIGNED_BY, trusted_before
from program.checks.recorded import (
    BUCKET_POLICY,
    BUILDERS,
    COMMANDS,
    LIFECYCLE,
    OBJECT,
    PROTECTED_OUTPUT,
    RETENTION_OUTPUT,
    USER,
    Recorded,
)
from program.outputs.machines import retention_in_words, substituter
from program.push_settings import push_settings
from program.settings.builders import BuilderSettings
from program.settings.signing_keys import DEFAULT, SigningKeys
from program.settings.stack import Settings

MOST_LINES = 12
"""More than this many changes are counted, and not told one by one."""

_MOST_OF_A_BUILDER = 3
_MOST_OF_A_PIN = 5
_LONGEST = 60
_LONGEST_PATH = 300
_PUSHES = " --config - "
"""What stands in the command of a push, and in no other."""


def announce(
    settings: Settings,
    keys: SigningKeys,
    recorded: Recorded,
    followed: Mapping[str, Sequence[str] | None],
) -> None:
    """Say what a preview's deployment would change; without effect in an update.

    Args:
        settings: the stack's settings.
        keys: the signing keys that it is to have.
        recorded: its state.
        followed: what builders' links point to, as `program.links.follow_links` found it.
    """
    if not pulumi.runtime.is_dry_run():
        return
    for loss in losses(settings, keys, recorded):
        pulumi.log.warn(f"data would be lost: {printable(loss)}")
    was_protected = recorded.bucket is not None and recorded.stack_output(PROTECTED_OUTPUT) is True
    if was_protected and not settings.protect:
        # No resource shows it: an option of theirs is no property.
        pulumi.log.warn(
            "protect goes off: nothing then keeps a destroy, or another bucket in the "
            f"settings, from deleting bucket {printable(str(recorded.bucket))} once it is empty; a "
            "destroy deletes the signing keys, too"
        )
    lines = [*signing(settings, keys, recorded), *changes(settings, recorded, followed)]
    for line in lines[:MOST_LINES]:
        pulumi.log.info(printable(line))
    if len(lines) > MOST_LINES:
        pulumi.log.info(f"and {len(lines) - MOST_LINES} more changes; --diff shows them")


def losses(settings: Settings, keys: SigningKeys, recorded: Recorded) -> Iterator[str]:
    """Yield what a deployment would take for good, in words.

    Args:
        settings: the stack's settings.
        keys: the signing keys that it is to have.
        recorded: its state.
    """
    if recorded.bucket is None:
        return
    for bucket in recorded.going(settings.bucket):
        if settings.bucket in recorded.buckets:
            yield f"bucket {bucket} is deleted, with every entry that is in it"
        else:
            yield (
                f"bucket {bucket} is replaced by {settings.bucket}: every entry of the cache is in "
                "it"
            )
    for name in recorded.signing_keys:
        if name not in keys.names:
            yield (
                f"signing key {name} is deleted: only this state has it, and clients that trust "
                "no other key refuse what it did not sign"
            )
    if settings.adopt_bucket and settings.bucket not in recorded.buckets:
        # Whoever asks the server for the bucket's own rules tells what they let live longer.
        return
    before = next(recorded.outputs(LIFECYCLE), {}).get("rules") or ()
    after = expiration_rules(settings.rule_days, settings.grace_days)
    yield from shortenings(expirations(before), {rule.prefix: rule.days for rule in after})


def signing(settings: Settings, keys: SigningKeys, recorded: Recorded) -> Iterator[str]:
    """Yield what a deployment would change in who signs with what, in words.

    That all who signed with the last key of the list go on to a new last key is what is said of the
    list. So is that the former one stays trusted, as it does in every rotation.

    Args:
        settings: the stack's settings.
        keys: the signing keys that it is to have.
        recorded: its state.
    """
    trusted = [key.name for key in trusted_before(recorded)]
    passed_over = settings.signing_keys.passed_over(trusted)
    if passed_over is not None:
        yield (
            f"signingKeys is unset or {json.dumps(DEFAULT)}, which means the keys that there are, "
            f"{listed(trusted)}; where {passed_over} alone is to stay, write that name"
        )
    # By its user: what the settings call a builder may change.
    before = {
        access["accessKeyId"]: access[SIGNED_BY]
        for access in recorded.stack_output("builders", {}).values()
        if {"accessKeyId", SIGNED_BY} <= access.keys()
    }
    now = {one.s3_user: one.signing_key or keys.names[-1] for one in settings.builders}
    moved: dict[tuple[str, str], list[str]] = {}
    for builder in settings.builders:
        old, new = before.get(builder.s3_user), now[builder.s3_user]
        if old not in (None, new):
            moved.setdefault((str(old), new), []).append(builder.name)
    former = trusted[-1] if trusted else None
    if moved.keys() - {(former, keys.names[-1])}:
        for (old, new), names in moved.items():
            several = len(names) > 1
            yield (
                f"builder{'s' if several else ''} {listed(names)} sign{'' if several else 's'} "
                f"with {new}; before: {old}"
            )
    for name in keys.names:
        idle = name in before.values() and name not in now.values()
        if idle and name not in (former, keys.names[-1]):
            yield (
                f"key {name} signs for no builder any more, and clients trust it until it leaves "
                "signingKeys"
            )


def changes(
    settings: Settings, recorded: Recorded, followed: Mapping[str, Sequence[str] | None]
) -> Iterator[str]:
    """Yield what a deployment would change, in words.

    Args:
        settings: the stack's settings.
        recorded: its state.
        followed: what builders' links point to.
    """
    yield from _adopted_keys(settings, recorded)
    if recorded.bucket is not None:
        yield from _readers(settings, recorded)
        yield from _texts(settings, recorded)
        yield from _pushes(settings, recorded)
    yield from _builders(settings, recorded, followed)
    yield from _pins(settings, recorded, followed)


def _adopted_keys(settings: Settings, recorded: Recorded) -> Iterator[str]:
    known = {key.name for key in trusted_before(recorded)}
    for name, text in settings.signing_keys.adopted.items():
        if name not in known:
            yield f"key {name} is adopted; clients trust it as {SecretKey.parse(text).public_key}"


def _readers(settings: Settings, recorded: Recorded) -> Iterator[str]:
    """Say who may read from now on, where that changes."""
    policy = next((str(one.get("policy")) for one in recorded.outputs(BUCKET_POLICY)), None)
    was_public = recorded.anonymous_download
    if was_public is None:
        told = recorded.stack_output("nixos", {}).get("access")
        was_public = None if told is None else told != "private"
    turns = was_public is not None and was_public == settings.private
    if settings.bucket_policy:
        # Who could read without one the state does not know.
        if turns or policy is None:
            yield _access(settings, turns=turns)
        listed = policy is not None and "s3:ListBucket" in policy
        if not settings.private and listed != settings.anonymous_listing:
            verb = "may list" if settings.anonymous_listing else "can no longer list"
            yield f"access: everyone {verb} what the bucket holds"
    elif policy is not None:
        then = (
            "see that the server's own means keep it closed then"
            if settings.private
            else "clients read nothing until you open it by the server's own means"
        )
        yield (
            f"access: bucketPolicy is off, and the policy of bucket {settings.bucket} goes at the "
            f"end of the deployment; {then}{_credentials(settings, turns=turns)}"
        )
    elif turns:
        does = "close" if settings.private else "open"
        yield (
            f"access: bucketPolicy is off; {does} bucket {settings.bucket} by the server's own "
            f"means{_credentials(settings, turns=turns)}"
        )
    address = recorded.stack_output("substituter")
    now = substituter(settings)
    if not turns and isinstance(address, str) and address != now:
        yield (
            f"clients: the cache's address changes from {address} to {now}; they look for it at "
            "the old one until they have the new one"
        )


def _access(settings: Settings, *, turns: bool) -> str:
    """Return who may read by the bucket's policy, which is new or changes."""
    if settings.private:
        return (
            "access: nobody reads without a credential any more"
            f"{_credentials(settings, turns=turns)}"
        )
    return (
        f"access: everyone may read, at {substituter(settings)}"
        f"{_credentials(settings, turns=turns)}"
    )


def _credentials(settings: Settings, *, turns: bool) -> str:
    """Return what becomes of the reader's credential where a cache turns private, or public."""
    if not turns:
        return ""
    if settings.private:
        return (
            f"; clients need {settings.reader_user}'s (output readerCredentials), and the address "
            f"{substituter(settings)}"
        )
    return "" if settings.given_users else f"; user {settings.reader_user} goes"


def _texts(settings: Settings, recorded: Recorded) -> Iterator[str]:
    """Say which lines of what clients read change."""
    info = nix_cache_info(settings.want_mass_query, settings.priority)
    content = recorded.content("nix-cache-info")
    for old, new in zip(content.splitlines(), info.splitlines(), strict=False):
        if old != new:
            yield f"nix-cache-info: {old} → {new.partition(': ')[2]}"
    before = recorded.stack_output(RETENTION_OUTPUT)
    now = retention_in_words(settings)
    if before not in (None, now):
        yield f"retention: {now} Before: {before}"


def _pushes(settings: Settings, recorded: Recorded) -> Iterator[str]:
    """Say why every builder that pushes does so again, although its closures stay."""
    before = recorded.stack_output("nixos", {}).get("push", {})
    changed = [
        f"{name} {_shown(before[name])} → {_shown(value)}"
        for name, value in push_settings(settings).items()
        if name in before and before[name] != value
    ]
    commands = [str(found["create"]) for type_ in COMMANDS for found in recorded.outputs(type_)]
    pushes = [command for command in commands if _PUSHES in command]
    now = push_command([], archive(recorded.binary_content(PROGRAM_KEY)))
    if not all(command.startswith(now) for command in pushes):
        changed.append("the program that pushes changes")
    if changed and pushes:
        yield f"every builder pushes again: {', '.join(changed)}"


def _shown(value: object) -> str:
    text = json.dumps(int(value) if isinstance(value, float) else value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _builders(
    settings: Settings, recorded: Recorded, followed: Mapping[str, Sequence[str] | None]
) -> Iterator[str]:
    """Say which builders come and go, and what each is to push."""
    before = {
        name: access
        for name, access in recorded.stack_output("builders", {}).items()
        if "accessKeyId" in access
    }
    users = recorded.names_of(BUILDERS, USER)
    if settings.given_users:
        users = frozenset(access["accessKeyId"] for access in before.values())
    stays = _stays(settings, recorded)
    for builder in settings.builders:
        if recorded.bucket is not None and builder.s3_user not in users:
            yield f"builder {builder.name} comes, as user {builder.s3_user}"
        # By its user: what the settings call a builder may change.
        last: Mapping[str, Any] = next(
            (a for a in before.values() if a["accessKeyId"] == builder.s3_user), {}
        )
        if "lastPush" in last and "closures" not in last:
            # A deployment of before this output was there.
            continue
        targets = followed.get(builder.name, builder.pushed)
        if targets is None:
            # It did not answer, and a warning says so.
            continue
        lines = _pushed(builder, last.get("closures", ()), targets)
        yield from islice(lines, _MOST_OF_A_BUILDER)
        rest = sum(1 for _ in lines)
        if rest:
            yield f"builder {builder.name} pushes {rest} more"
        gone = _let_go(last.get("closures", ()), targets)
        if gone:
            yield (
                f"builder {builder.name} no longer pushes "
                f"{listed(gone, _MOST_OF_A_BUILDER, _LONGEST_PATH)}{stays}"
            )
    for name, access in before.items():
        user = access["accessKeyId"]
        if user not in settings.users:
            made_here = user in recorded.users or not settings.given_users
            goes = f"and its user {user}" if made_here else f"its user {user} is yours to remove"
            yield f"builder {name} goes, {goes}{stays}"
    told = {access["accessKeyId"] for access in before.values()}
    # A deployment of something else alone has written the outputs, and left these.
    for user in sorted(recorded.names_of(BUILDERS, USER) - {*settings.users, *told}):
        yield f"user {user} goes, and the builder that has it{stays}"


def _stays(settings: Settings, recorded: Recorded) -> str:
    """Return what a sentence says of what is pushed no longer: nothing where the bucket goes."""
    if recorded.bucket is not None and settings.bucket not in recorded.buckets:
        return ""
    return f"; what it pushed stays{'' if settings.rule_days is None else ' until it expires'}"


def _pushed(builder: BuilderSettings, last: Sequence[str], targets: Sequence[str]) -> Iterator[str]:
    for number, (link, target) in enumerate(zip(builder.pushed, targets, strict=True)):
        if target in last:
            continue
        path = target if link == target else f"{target} ({link})"
        before = last[number] if number < len(last) else None
        came = f"; before: {before}" if before and before not in targets else " for the first time"
        yield f"builder {builder.name} pushes {path}{came}"


def _let_go(last: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Return what a builder pushed last and pushes no longer, of what `_pushed` does not tell."""
    told = {before for before, now in zip(last, targets, strict=False) if now not in last}
    return [path for path in last if path not in targets and path not in told]


def _pins(
    settings: Settings, recorded: Recorded, followed: Mapping[str, Sequence[str] | None]
) -> Iterator[str]:
    """Say which closures the cache keeps from now on, and which it lets age."""
    pushed = {builder.name: builder.pushed for builder in settings.builders}
    # A deployment of something else alone writes the outputs, and leaves what they are about.
    names = [str(found["objectName"]) for found in recorded.outputs(OBJECT)]
    pins = [name.removeprefix(PIN_FOLDER) for name in names if name.startswith(PIN_FOLDER)]
    before = {name: recorded.pinned(name) for name in pins}
    ages = "; what it keeps no longer ages from its last push" if _stays(settings, recorded) else ""
    for pin in settings.pins:
        target = pin.path
        if pin.builder is not None:
            targets = followed.get(pin.builder, pushed[pin.builder])
            if targets is None:
                # It did not answer, and a warning says so.
                continue
            target = targets[pushed[pin.builder].index(pin.path)]
        kept = before.get(pin.name, ())
        told = list(kept[:1])
        if told != [target]:
            was = f"; before: {told[0]}" if told else ""
            yield f"pin {pin.name} keeps {target}{was}"
        now = targets_now(target, kept, pin.keep_last)
        gone = [path for path in kept if path not in now and path not in told]
        if gone:
            yield f"pin {pin.name} lets go of {listed(gone, _MOST_OF_A_PIN, _LONGEST_PATH)}{ages}"
    for name in sorted(before.keys() - {pin.name for pin in settings.pins}):
        yield f"pin {name} goes{ages and '; what it kept ages from its last push'}"
