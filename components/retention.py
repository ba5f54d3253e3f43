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

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from formats.nix32 import NIX32_ALPHABET
from formats.store_path import STORE_PATH_HASH_LENGTH

OWN_FOLDER = "_nixcache/"
"""What the program keeps for itself in a cache's bucket. No narinfo's name begins with `_`."""

PAGE_KEY = "use.html"
"""The page for people. No narinfo's name begins with `u`, so it costs no rule: `index.html`, which
begins like some, took 93 of them, and each is a part of every preview."""

OWN_KEYS = ("nix-cache-info", PAGE_KEY, OWN_FOLDER)
"""Keys, and folders, that are the deployment's alone to write. They live for ever."""

NAR_FOLDER = "nar/"
"""Where NARs lie, which narinfos point to and which must outlive them."""

PROTECTED_KEYS = (*OWN_KEYS, NAR_FOLDER)
"""Keys, and prefixes of keys, that no narinfo rule may match.

NARs have a rule of their own. A NAR's listing (`.ls`), which has the narinfo's name, a build's log
(`log/`) and what else `nix copy` writes (`debuginfo/`, `realisations/`, `build-trace-v2/`) goes
with the narinfos: nothing points to it that outlives it.
"""

RETENTION_DAYS = 7
"""Days that an entry lives after its last push, where nobody says otherwise."""

GRACE_DAYS = 1
"""Days that what a narinfo points to outlives it, where nobody says otherwise."""

SUPERSEDED_DAYS = 1
"""Days that a version lives which another has followed, in a bucket that keeps versions."""

MAXIMUM_RULES = 1000
"""Rules that S3 and MinIO accept in one lifecycle configuration."""

# Names of Nix, `src/libstore/binary-cache-store.cc` and `nar-info-disk-cache.cc`: narinfos and
# listings at the root, NARs by their hash, logs by their derivation, and what is off by default.
_HASH = f"[{NIX32_ALPHABET}]"
_CACHE_FILE = re.compile(
    rf"{_HASH}{{32}}\.(narinfo|ls)"
    rf"|nar/({_HASH}{{52}}|{_HASH}{{32}}-{_HASH}{{52}}|[0-9a-f]{{64}})\.nar(\.[a-z0-9]+)?"
    rf"|log/{_HASH}{{32}}-[0-9A-Za-z+._?=-]+\.drv"
    r"|debuginfo/[0-9a-f]{40}(\.debug)?"
    r"|(realisations|build-trace-v2)/[0-9A-Za-z:!+._?=^-]+(/[0-9A-Za-z:!+._?=^-]+)?\.doi"
)


@dataclass(frozen=True)
class ExpirationRule:
    """One lifecycle rule: objects whose key starts with `prefix` go after `days` days."""

    id: str
    prefix: str
    days: int
    noncurrent_days: int | None = None
    """Days after which a version that another has followed goes, in a bucket that keeps versions;
    None for ever."""


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


def expiration_rules(
    retention_days: int | None, grace_days: int, versioned: bool = False
) -> tuple[ExpirationRule, ...]:
    """Return the bucket's lifecycle rules, none where nothing is to expire.

    They are in the order of their ids: some servers (Ceph's RGW) give them back in it, whatever
    they were given, and MinIO in the order that they were given.

    Args:
        retention_days: days that a narinfo lives after its last push or renewal; None for ever.
        grace_days: days that what a narinfo points to lives longer than the narinfo.
        versioned: whether the bucket keeps a version of whatever is written again or expires. Each
            renewal leaves one, and nobody reads it. The markers of what expired go with the rules.
    """
    if retention_days is None:
        return ()
    noncurrent = SUPERSEDED_DAYS if versioned else None
    narinfos = (
        ExpirationRule(f"narinfo-{prefix}", prefix, retention_days, noncurrent)
        for prefix in narinfo_prefixes()
    )
    nars = ExpirationRule("nar", NAR_FOLDER, retention_days + grace_days, noncurrent)
    return tuple(sorted((*narinfos, nars), key=lambda rule: rule.id))


_PREFIXES = frozenset(rule.prefix for rule in expiration_rules(1, 1))
_FORMER_LOG_FOLDER = "log/"


def expirations(rules: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the days to expiry by prefix, of a lifecycle's rules as pulumi-minio has them."""
    days = {}
    for rule in rules:
        match = re.fullmatch(r"([0-9]+)d", str(rule.get("expiration")))
        if match:
            days[str(rule.get("filter"))] = int(match[1])
    return days


def shortenings(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[str]:
    """Yield in words what a lifecycle takes sooner than another did.

    Args:
        before: days to expiry by prefix; nothing where nothing expired.
        after: the same of the one that takes its place.
    """
    found: dict[str, None] = {}
    # Entries are told first, which the rules' order does not say.
    for prefix, days in sorted(after.items(), key=lambda one: is_folder(one[0])):
        what = "NARs" if is_folder(prefix) else "entries"
        if not before:
            found[f"{what} that lived for ever now expire after {days} days"] = None
        elif days < before.get(prefix, days):
            found[f"{what} now expire after {days} days instead of {before[prefix]}"] = None
    yield from (f"retention is shortened: {words}" for words in found)


def is_folder(prefix: str) -> bool:
    """Tell whether a rule's prefix is a folder's: narinfos lie at the bucket's root."""
    return "/" in prefix


def narinfo_days(rules: Iterable[ExpirationRule]) -> int | None:
    """Return after how many days `rules` have taken every narinfo; None where some stay for ever.

    A rule counts for the narinfos whose names it matches, whoever made it: the earliest due wins.
    """
    days: dict[str, int] = {}
    for rule in rules:
        days[rule.prefix] = min(rule.days, days.get(rule.prefix, rule.days))

    def longest(prefix: str) -> int | None:
        matching = [days[part] for part in _beginnings(prefix) if part in days]
        if matching:
            return min(matching)
        if len(prefix) == STORE_PATH_HASH_LENGTH or not any(
            longer.startswith(prefix) for longer in days
        ):
            return None
        parts = [longest(prefix + character) for character in NIX32_ALPHABET]
        known = [part for part in parts if part is not None]
        return max(known) if len(known) == len(parts) else None

    return longest("")


def made_here(rules: Sequence[ExpirationRule]) -> bool:
    """Return whether `rules` are what this program makes, or made, for whatever number of days.

    It has covered narinfos by other prefixes, while the page was `index.html`, and given logs a
    rule of their own.
    """
    narinfos = [rule for rule in rules if not is_folder(rule.prefix)]
    folders = [rule for rule in rules if is_folder(rule.prefix)]
    return (
        all(_named_here(rule) for rule in rules)
        and len({rule.noncurrent_days for rule in rules}) == 1
        and len({rule.days for rule in narinfos}) == len({rule.days for rule in folders}) == 1
        and narinfo_days(narinfos) is not None
        and not any(key.startswith(rule.prefix) for key in PROTECTED_KEYS for rule in narinfos)
    )


def same_prefixes(rules: Iterable[ExpirationRule]) -> bool:
    """Return whether `rules` are about the prefixes that `expiration_rules` are about."""
    return {rule.prefix for rule in rules} == _PREFIXES


def foreign_rules(rules: Iterable[ExpirationRule]) -> list[ExpirationRule]:
    """Return the rules that are about something else than this cache's files.

    A rule for everything is not among them: it would take the cache too.
    """
    return [
        rule
        for rule in rules
        if rule.prefix and rule.prefix not in _PREFIXES and not _named_here(rule)
    ]


def _named_here(rule: ExpirationRule) -> bool:
    """Tell whether a rule has the id that this program gives, or gave, one of that prefix."""
    if rule.prefix in (NAR_FOLDER, _FORMER_LOG_FOLDER):
        return rule.id == rule.prefix.rstrip("/")
    return rule.id == f"narinfo-{rule.prefix}"


def is_cache_file(key: str) -> bool:
    """Tell whether a key is one that Nix, or this program, writes to a binary cache."""
    return key in OWN_KEYS or key.startswith(OWN_FOLDER) or bool(_CACHE_FILE.fullmatch(key))


def foreign_keys(keys: Iterable[str], prefixes: Iterable[str]) -> Iterator[str]:
    """Yield those of `keys` that expire and that are no file of a binary cache.

    Args:
        keys: names of a bucket's objects.
        prefixes: what the names of objects that expire begin with.
    """
    expiring = tuple(prefixes)
    for key in keys:
        if not is_cache_file(key) and key.startswith(expiring):
            yield key


def _beginnings(prefix: str) -> Iterator[str]:
    return (prefix[:length] for length in range(len(prefix) + 1))


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
