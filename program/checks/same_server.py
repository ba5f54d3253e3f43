"""Whether a stack's bucket, users and policies are those at the endpoint of its settings.

A state knows them by name, and on another server those names are somebody else's: the defaults are
the same for every cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.retention import PAGE_KEY
from formats.keys import PublicKey
from formats.pin import LARGEST_PIN, PIN_FOLDER, format_pin
from formats.signing import verified_by
from program import former_names
from program.checks import key_rotation, sampled
from program.checks.recorded import Recorded
from program.checks.s3_client import Server
from program.outputs.landing_page import LARGEST_PAGE, is_landing_page
from program.settings.reader import SettingError
from program.settings.stack import CACHE_NIXOS_ORG, Settings


def moved_from(settings: Settings, recorded: Recorded) -> str | None:
    """Return the endpoint of the last deployment where the settings name another one, or None."""
    before = recorded.endpoint
    return None if before == str(settings.endpoint) else before


def check(settings: Settings, server: Server, recorded: Recorded) -> None:
    """Refuse another server than that of the last deployment, unless the bucket is there, too.

    It is where its page names a key of this stack, where a key of this stack has signed what it
    holds, or where it has what a pin of this stack keeps. A bucket that shows neither these nor
    another cache's keys is taken for the stack's where `adoptBucket` says so.

    Raises:
        SettingError: it is another server, and the bucket there is not this stack's, or not told
            apart from somebody else's.
        ServerError: no answer, or the server refuses the user.
    """
    before, now = moved_from(settings, recorded), str(settings.endpoint)
    if before is None or not recorded.has_names:
        return
    if not recorded.buckets:
        raise SettingError(
            "endpoint",
            now,
            f"this stack has made users or policies at {before}, and there may be others of their "
            "names here; name that server and destroy the stack first, or make a new one",
        )
    bucket = settings.bucket
    if going := recorded.going(bucket):
        if bucket in recorded.buckets:
            raise SettingError(
                "endpoint",
                now,
                f"this stack has still to delete its bucket {going[0]} at {before}, and there may "
                "be another of that name here; name that server until a deployment has deleted it",
            )
        raise SettingError(
            "bucket",
            bucket,
            f"endpoint is another one, too, and {now} may have a bucket {going[0]} of somebody "
            f"else's, which would be deleted; move the bucket under its name, {going[0]}, first, "
            "or make a new stack",
        )
    exists = server.lifecycle(bucket) is not None
    ours = _is_ours(settings, server, recorded) if exists else None
    if ours or (ours is None and settings.adopt_bucket):
        return
    moved = ", or set adoptBucket to true if the bucket has moved there" if ours is None else ""
    raise SettingError(
        "endpoint",
        now,
        f"the bucket {bucket} there shows no key of this stack, which was deployed to {before}; "
        f"name that server, or make a new stack for another{moved}",
    )


def _is_ours(settings: Settings, server: Server, recorded: Recorded) -> bool | None:
    """Return whether a bucket is this stack's; None where it shows neither that nor another's."""
    keys = _keys(recorded)
    # Whoever takes a bucket over leaves entries of former keys there, and puts a page of its own.
    for page in _pages(settings, server, recorded, keys):
        return page
    entries = list(_entries(settings, server, keys))
    if entries:
        return any(entries)
    # Only now: two caches may keep the same.
    return _has_a_pin(server, recorded, settings.bucket) or None


def _keys(recorded: Recorded) -> dict[str, PublicKey]:
    """Return the keys that this stack has, or has had, by name."""
    had = (*key_rotation.retired_before(recorded), *key_rotation.trusted_before(recorded))
    kept = map(PublicKey.parse, recorded.signing_keys.values())
    return {key.name: key for key in (*had, *kept)}


def _pages(
    settings: Settings, server: Server, recorded: Recorded, keys: Mapping[str, PublicKey]
) -> Iterator[bool]:
    """Yield of each page for people, which only a public cache has, whether it is this stack's."""
    if recorded.anonymous_download is False:
        return
    for name in (PAGE_KEY, former_names.PAGE_KEY):
        page = server.read(settings.bucket, name, LARGEST_PAGE)
        if page is None:
            continue
        ours = any(str(key).encode() in page for key in keys.values())
        # Many a bucket has an index.html: it says something where it is a cache's, or would go.
        if ours or name in recorded.objects(settings.bucket) or is_landing_page(page):
            yield ours


def _entries(settings: Settings, server: Server, keys: Mapping[str, PublicKey]) -> Iterator[bool]:
    """Yield of each narinfo whether this stack has signed it; those of other caches say nothing."""
    upstream = {PublicKey.parse(key).name for key in (CACHE_NIXOS_ORG, *settings.upstream_keys)}
    for narinfo in sampled.narinfos(server, settings.bucket):
        if {signature.partition(":")[0] for signature in narinfo.signatures} - upstream:
            yield bool(verified_by(narinfo, keys))


def _has_a_pin(server: Server, recorded: Recorded, bucket: str) -> bool:
    """Return whether a bucket has a pin as the state knows it: what it names is nobody's guess."""
    for key in sorted(recorded.objects(bucket)):
        content = recorded.content(key).encode()
        if not key.startswith(PIN_FOLDER) or content in (b"", format_pin([]).encode()):
            continue
        if server.read(bucket, key, LARGEST_PIN) == content:
            return True
    return False
