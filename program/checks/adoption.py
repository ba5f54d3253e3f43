"""What was made by hand before there was a stack, and comes under its management as it is.

A bucket is imported. Everything else on the server is put over what is there, which leaves it in
place: a policy of the same name gets this program's text, an attachment stays, and a user keeps
its secret where the settings give it. A key is adopted by `SigningKey`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi

from components.access import same_policy
from components.binary_cache import anonymous_policy, nix_cache_info
from components.retention import PAGE_KEY
from formats.foreign_json import parse_foreign_json
from formats.keys import NAME_LETTERS, KeyName, PublicKey
from formats.narinfo import NarInfo
from formats.printable import listed, printable
from formats.signing import SecretKey, verifies
from formats.store_path import STORE_DIR
from program.checks import sampled
from program.checks.recorded import Recorded
from program.checks.s3_client import Server
from program.outputs.landing_page import LARGEST_PAGE, is_landing_page
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings

_LARGEST_INFO = 1 << 16
_LONGEST = 100
_NAMED = 5
_READING = {"s3:GetBucketLocation", "s3:GetObject", "s3:ListBucket"}
_READS = {"*", "s3:*", "s3:Get*", "s3:GetObject"}
_UNUSUAL = "something unusual"
_KEY_OF_A_PAGE = rb"(?<![%b])%%b:[\w+/]{43}=" % NAME_LETTERS.encode()


def check(settings: Settings, keys: SigningKeys, server: Server, recorded: Recorded) -> None:
    """Refuse to adopt a bucket where the deployment would not fit what is in it.

    Args:
        settings: the stack's settings.
        keys: its signing keys.
        server: has the bucket.
        recorded: the state. It may have keys where it has no bucket: one that a refresh did not
            find, say.

    Raises:
        SettingError: clients would refuse what is there, because it was signed by another key of
            the same name, or is for another store; or the cache's policy would take the place of
            one that grants more than reading, or not to everyone.
        ServerError: no answer, or the server refuses the user.
    """
    info = server.read(settings.bucket, "nix-cache-info", _LARGEST_INFO) or b""
    _check_store(settings, info)
    _check_signatures(settings, keys, server, recorded)
    if settings.bucket_policy:
        _check_policy(settings, server.access(settings.bucket))
    for sentence in _lines_that_change(settings, info):
        pulumi.log.info(sentence)


def check_page(settings: Settings, server: Server) -> None:
    """Refuse to put the page for people, which a public cache has, in another page's place.

    Raises:
        SettingError: there is one, and it is none of a cache's.
        ServerError: no answer, or the server refuses the user.
    """
    if settings.private:
        return
    page = server.read(settings.bucket, PAGE_KEY, LARGEST_PAGE)
    if page is not None and not is_landing_page(page) and not settings.confirm_shared_bucket:
        raise SettingError(
            "bucket",
            settings.bucket,
            f"its {PAGE_KEY} is somebody else's page, and the cache's would take its place; move "
            "it, or set confirmSharedBucket to true to let it go",
        )


def _check_store(settings: Settings, info: bytes) -> None:
    """Refuse a cache of a store that lies elsewhere: it would be told to be one of `/nix/store`."""
    found = re.search(r"(?m)^StoreDir: *(\S+)", info.decode(errors="replace"))
    if found is not None and found[1] != STORE_DIR:
        raise SettingError(
            "bucket",
            settings.bucket,
            f"it is a cache for a store at {found[1][:_LONGEST]}, and this program makes caches "
            f"for {STORE_DIR}; take another bucket",
        )


def _lines_that_change(settings: Settings, info: bytes) -> Iterator[str]:
    """Yield what `nix-cache-info` says otherwise once it is the cache's own."""
    text = info.decode(errors="replace")
    for line in nix_cache_info(settings.want_mass_query, settings.priority).splitlines():
        name, _, value = line.partition(": ")
        found = re.search(rf"(?m)^{name}: *(\S+)", text)
        if found is not None and found[1] != value:
            yield f"nix-cache-info: {name}: {printable(found[1], _LONGEST)} → {value}"


def _check_policy(settings: Settings, policy: str | None) -> None:
    """Refuse a policy that is more, or less, than reading for everyone; tell who may read now."""
    statements = _statements(policy)
    more = [_UNUSUAL] if statements is None else _rights_beyond_reading(statements)
    limits = list(_limits(settings.bucket, statements or ()))
    if (more or limits) and not settings.confirm_shared_bucket:
        what = " and ".join(
            [
                *([f"grants {listed(more)}"] if more else ()),
                *([f"limits who may do what ({listed(limits)})"] if limits else ()),
            ]
        )
        remedy = "grant it elsewhere" if not limits else "take a bucket of the cache's own"
        raise SettingError(
            "bucket",
            settings.bucket,
            f"its policy {what}, and the cache's would take its place; {remedy}, or set "
            f"confirmSharedBucket to true to let {'them' if limits else 'it'} go",
        )
    if limits:
        pulumi.log.warn(
            f"bucket {settings.bucket}: its policy goes, which limits who may do what "
            f"({listed(limits)})"
        )
    opened = not limits and any(
        found.get("Effect") != "Deny" and _READS & {*_actions(found)} for found in statements or ()
    )
    if opened == settings.private:
        pulumi.log.info(
            f"access: bucket {settings.bucket} is open, and nobody reads it without a credential "
            "any more"
            if opened
            else f"access: everyone may read all of bucket {settings.bucket} from now on; its "
            "policy of before does not say so"
        )


def _statements(policy: str | None) -> Sequence[Mapping[str, Any]] | None:
    """Return a bucket policy's statements; None where it has any that is not understood."""
    try:
        found = parse_foreign_json(policy or "{}").get("Statement", ())
        statements = [found] if isinstance(found, dict) else list(found)
        for statement in statements:
            _actions(statement)
    except (ValueError, TypeError, AttributeError):
        return None
    return statements


def _actions(statement: Mapping[str, Any]) -> list[str]:
    return [str(action) for action in _listed(statement.get("Action", _UNUSUAL))]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _rights_beyond_reading(statements: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is granted besides what a cache's policy grants, or the canned ones do."""
    granted = {
        action
        for statement in statements
        if statement.get("Effect") != "Deny"
        for action in _actions(statement)
    }
    return sorted(granted - _READING)


def _limits(bucket: str, statements: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield in words what is forbidden, or not granted to everyone for the whole bucket.

    A cache's policy grants all that it grants without a limit.
    """
    closed = parse_foreign_json(anonymous_policy(bucket, download=False, listing=False))
    if same_policy(json.dumps(closed["Statement"]), json.dumps(statements)):
        # A private cache's own forbids what is never there.
        return
    arn = f"arn:aws:s3:::{bucket}"
    everything = {"*", "arn:aws:s3:::*", f"{arn}*", f"{arn}/*"}
    for statement in statements:
        actions = listed(_actions(statement), _NAMED)
        reads_objects = "s3:GetObject" in _actions(statement)
        principal = statement.get("Principal", "*")
        resources = {str(one) for one in _listed(statement.get("Resource", "*"))}
        if statement.get("Effect") == "Deny":
            yield f"denies {actions}"
        elif statement.get("Condition"):
            yield f"{actions} under a condition"
        elif "NotPrincipal" in statement or not _is_everyone(principal):
            yield f"{actions} for some users alone"
        elif "NotResource" in statement or (reads_objects and not resources & everything):
            yield f"{actions} for some objects alone"


def _is_everyone(principal: Any) -> bool:
    if isinstance(principal, Mapping):
        principal = principal.get("AWS", ())
    return "*" in _listed(principal)


def _check_signatures(
    settings: Settings, keys: SigningKeys, server: Server, recorded: Recorded
) -> None:
    """Compare signatures of a sample of narinfos with the keys that would have their names."""
    sample = sampled.narinfos(server, settings.bucket)
    signers = {signature.partition(":")[0] for one in sample for signature in one.signatures}
    known = {*keys.names, *(PublicKey.parse(key).name for key in settings.upstream_keys)}
    others = sorted(signers - known)
    if others:
        pulumi.log.warn(
            f"bucket {settings.bucket}: what is there is also signed by "
            f"{listed(others, _NAMED)}, which this stack does not have; its clients "
            "refuse what no key of theirs has signed, unless adoptedSigningKeys has it"
        )
    for name in keys.names:
        _check_name(settings, keys, recorded, name, _Shown(sample, b""))


def check_new_keys(
    settings: Settings, keys: SigningKeys, server: Server, recorded: Recorded
) -> None:
    """Refuse to make a key of a name that this stack's bucket shows another key of.

    A state that is older than the bucket lacks the keys that were added since.

    Raises:
        SettingError: the page names another key of the name, or one has signed what is there.
        ServerError: no answer, or the server refuses the user.
    """
    new = [name for name in keys.names if name not in recorded.signing_keys]
    if not new:
        return
    shown = _shown(settings, server)
    for name in new:
        _check_name(settings, keys, recorded, name, shown)


def known_to_clients(settings: Settings, keys: SigningKeys, server: Server) -> frozenset[str]:
    """Return the names of the adopted keys that the bucket shows: clients trust them, or some do.

    Raises:
        ServerError: no answer, or the server refuses the user.
    """
    adopted = {
        name: SecretKey.parse(key).public_key
        for name, key in keys.adopted.items()
        if name in keys.names
    }
    if not adopted or server.lifecycle(settings.bucket) is None:
        return frozenset()
    shown = _shown(settings, server)
    return frozenset(name for name, key in adopted.items() if shown.has(key))


@dataclass(frozen=True)
class _Shown:
    """What a bucket shows of keys: those that have signed what it holds, and those of its page."""

    narinfos: Sequence[NarInfo]
    page: bytes

    def signatures(self, name: str) -> list[tuple[str, str]]:
        """Return what keys of a name have signed, each fingerprint with the signature."""
        return [
            (narinfo.fingerprint, signature)
            for narinfo in self.narinfos
            for signature in narinfo.signatures
            if signature.startswith(f"{name}:")
        ]

    def named(self, name: str) -> list[bytes]:
        """Return the public keys of a name that the page has."""
        return re.findall(_KEY_OF_A_PAGE % re.escape(name.encode()), self.page)

    def has(self, key: PublicKey) -> bool:
        """Return whether it shows this key."""
        signatures = self.signatures(key.name)
        return str(key).encode() in self.named(key.name) or any(
            verifies(key, *found) for found in signatures
        )


def _shown(settings: Settings, server: Server) -> _Shown:
    page = server.read(settings.bucket, PAGE_KEY, LARGEST_PAGE) or b""
    narinfos = sampled.narinfos(server, settings.bucket)
    return _Shown(narinfos, page if is_landing_page(page) else b"")


def _check_name(
    settings: Settings, keys: SigningKeys, recorded: Recorded, name: str, shown: _Shown
) -> None:
    signed, named = shown.signatures(name), shown.named(name)
    own = _public_keys(keys, recorded).get(name)
    if not (signed or named) or (own is not None and shown.has(own)):
        return
    where = "what is in the bucket" if signed else "the page of the bucket"
    does = "is signed by" if signed else "names"
    given = name in keys.adopted
    # In the place of one that the state has, no other is adopted.
    remedy = (
        "take another bucket, or write"
        if name in recorded.signing_keys
        else "give that key in adoptedSigningKeys, or write"
    )
    raise SettingError(
        "adoptedSigningKeys" if given else "signingKeys",
        None if given else name,
        f"{where} {settings.bucket} {does} another key of the name {name}, and clients that trust "
        f"that one would refuse what this stack signs; {remedy} {KeyName.parse(name).next} "
        "in its place",
    )


def _public_keys(keys: SigningKeys, recorded: Recorded) -> dict[str, PublicKey]:
    """Return those of a stack's keys that there are already, by name; others are yet to be made."""
    kept = {name: PublicKey.parse(key) for name, key in recorded.signing_keys.items()}
    adopted = {name: SecretKey.parse(key).public_key for name, key in keys.adopted.items()}
    return kept | adopted
