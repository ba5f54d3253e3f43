"""How long things live: from settings to the bucket's lifecycle rules. Pure.

A push renews every entry of its closure, so an entry lives `retention_days` after the last push
of a closure that contains it. The rules only have to say what expires, and when.

An S3 lifecycle rule selects keys by prefix and cannot exclude one, and of several matching rules
the earliest due wins. So the narinfos, which lie at the bucket's root, are matched by a cover:
the shortest nix32 prefixes that no protected key shares.

Source: S3 `PutBucketLifecycleConfiguration`; names of a cache's files: Nix,
`src/libstore/binary-cache-store.cc`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from formats.nix32 import NIX32_ALPHABET

OWN_FOLDER = "_nixcache/"
"""What the program keeps for itself in a cache's bucket. No narinfo's name begins with `_`."""

OWN_KEYS = ("nix-cache-info", "index.html", OWN_FOLDER)
"""Keys, and folders, that are the deployment's alone to write. They live for ever."""

FOLDERS_OF_NARINFOS = ("nar/", "log/")
"""Folders whose files belong to a narinfo and must outlive it."""

PROTECTED_KEYS = (*OWN_KEYS, *FOLDERS_OF_NARINFOS)
"""Keys, and prefixes of keys, that no narinfo rule may match.

The folders have rules of their own. What else `nix copy` can be told to write (`debuginfo/`,
`realisations/`, a NAR's `.ls` beside its narinfo) may go with the narinfos: nothing points to it
that outlives it.
"""

RETENTION_DAYS = 7
"""Days that an entry lives after its last push, where nobody says otherwise."""

GRACE_DAYS = 1
"""Days that what a narinfo points to outlives it, where nobody says otherwise."""

MAXIMUM_RULES = 1000
"""Rules that S3 and MinIO accept in one lifecycle configuration."""


@dataclass(frozen=True)
class ExpirationRule:
    """One lifecycle rule: objects whose key starts with `prefix` go after `days` days."""

    id: str
    prefix: str
    days: int


def narinfo_prefixes(protected_keys: Iterable[str] = PROTECTED_KEYS) -> tuple[str, ...]:
    """Return the fewest prefixes that match every narinfo's name and none of `protected_keys`."""
    protected = tuple(protected_keys)

    def cover(prefix: str) -> Iterator[str]:
        for character in NIX32_ALPHABET:
            longer = prefix + character
            if any(key.startswith(longer) for key in protected):
                yield from cover(longer)
            else:
                yield longer

    return tuple(cover(""))


def expiration_rules(retention_days: int | None, grace_days: int) -> tuple[ExpirationRule, ...]:
    """Return the bucket's lifecycle rules, none where nothing is to expire.

    Args:
        retention_days: days that a narinfo lives after its last push or renewal; None for ever.
        grace_days: days that what a narinfo points to lives longer than the narinfo.
    """
    if retention_days is None:
        return ()
    narinfos = (
        ExpirationRule(f"narinfo-{prefix}", prefix, retention_days) for prefix in narinfo_prefixes()
    )
    folders = (
        ExpirationRule(folder.rstrip("/"), folder, retention_days + grace_days)
        for folder in FOLDERS_OF_NARINFOS
    )
    return (*narinfos, *folders)


def is_folder(prefix: str) -> bool:
    """Tell whether a rule's prefix is a folder's: narinfos lie at the bucket's root."""
    return "/" in prefix


def narinfo_days(rules: Iterable[ExpirationRule]) -> int | None:
    """Return the days of the narinfos' rules, the most where they differ; None without any."""
    return max((rule.days for rule in rules if not is_folder(rule.prefix)), default=None)


def made_here(rules: Sequence[ExpirationRule]) -> bool:
    """Return whether `rules` are what `expiration_rules` makes, for whatever number of days."""
    days = narinfo_days(rules)
    folder_days = {rule.days for rule in rules if is_folder(rule.prefix)}
    if days is None or len(folder_days) != 1:
        return False
    return set(rules) == set(expiration_rules(days, folder_days.pop() - days))


def expires_at(last_modified: datetime, days: int) -> datetime:
    """Return when a lifecycle of `days` takes an object: whole days later, at midnight UTC.

    S3 and MinIO round up: an object lives at least `days` days and less than one more.

    Args:
        last_modified: when the object was written, with its time zone in UTC.
        days: the rule's days.
    """
    due = last_modified + timedelta(days=days + 1)
    return due.replace(hour=0, minute=0, second=0, microsecond=0)


def expired_share(last_modified: Iterable[datetime], days: int, now: datetime) -> float:
    """Return what part of the entries, 0 to 1, a lifecycle of `days` would take at once."""
    expired = [expires_at(moment, days) <= now for moment in last_modified]
    return sum(expired) / len(expired) if expired else 0.0


def difference(declared: Sequence[ExpirationRule], applied: Sequence[ExpirationRule]) -> str | None:
    """Return in words how the rules in force differ from the declared ones, None where not."""
    wanted, found = set(declared), set(applied)
    parts = []
    for what, rules in (("missing", wanted - found), ("not declared", found - wanted)):
        if rules:
            example = min(rules, key=lambda rule: rule.id)
            where = example.prefix or "everything"
            parts.append(f"{len(rules)} {what} ({example.id}: {where} after {example.days} days)")
    return " and ".join(parts) or None
