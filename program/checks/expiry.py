"""What a bucket's lifecycle would take, asked before it is put on the bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timezone

import pulumi

from components.retention import (
    NAR_FOLDER,
    ExpirationRule,
    expiration_rules,
    expired_share,
    foreign_keys,
    foreign_rules,
    is_folder,
    made_here,
    narinfo_days,
    same_prefixes,
    shortenings,
)
from formats.printable import printable
from program import former_names
from program.checks.bucket_settings import Lifecycle
from program.checks.s3_client import Server
from program.outputs.landing_page import LARGEST_PAGE, is_landing_page
from program.settings.reader import SettingError
from program.settings.stack import Settings

_CONFIRMED_ABOVE = 0.5
_SHOWN, _LONGEST = 10, 80


def check(
    settings: Settings,
    server: Server,
    lifecycle: Lifecycle,
    own: Collection[str] = (),
    *,
    adopted: bool = False,
) -> None:
    """Refuse a lifecycle that would take what nobody has said may go.

    Where the rules in force are this program's already, and take things no later, nothing changes
    and nothing is asked: `operations.audit` and `operations.drift` tell what came since.

    Args:
        settings: the stack's settings.
        server: has the bucket.
        lifecycle: the bucket's, as it is.
        own: keys of what the stack has put into the bucket, whatever their names.
        adopted: whether the bucket is none of the stack's yet: a preview then tells here, and not
            by the state, which of its entries are to live shorter.

    Raises:
        SettingError: more than half of the entries would go at once, or anything that is no file
            of a cache, or somebody else's rules.
        ServerError: no answer, or the server refuses the user.
    """
    days = settings.rule_days
    if days is None:
        return
    before = narinfo_days(lifecycle.rules)
    ours = made_here(lifecycle.rules) and same_prefixes(lifecycle.rules)
    unchanged = ours and not lifecycle.others
    if unchanged and before is not None and before <= days:
        return
    written, keys = [], []
    for key, moment in server.objects(settings.bucket):
        if key.endswith(".narinfo") and "/" not in key:
            written.append(moment)
        if key not in own:
            keys.append(key)
    if before is None or before > days:
        _check_share(settings, days, before, written)
    if adopted and written and pulumi.runtime.is_dry_run():
        for loss in _shortened(settings, lifecycle.rules):
            pulumi.log.warn(f"data would be lost: {loss}")
    if former_names.PAGE_KEY in keys and _is_a_caches_page(settings, server):
        keys.remove(former_names.PAGE_KEY)
    _check_foreign(settings, lifecycle, keys)


def _shortened(settings: Settings, rules: Sequence[ExpirationRule]) -> Iterator[str]:
    """Yield in words what a lifecycle of the settings takes sooner than a bucket's own rules."""
    nars = [rule.days for rule in rules if NAR_FOLDER.startswith(rule.prefix)]
    before = {"": narinfo_days(rules), NAR_FOLDER: min(nars, default=None)}
    declared = expiration_rules(settings.rule_days, settings.grace_days)
    after = {rule.prefix if is_folder(rule.prefix) else "": rule.days for rule in declared}
    for place, days in before.items():
        known = {} if days is None else {place: days}
        yield from shortenings(known, {place: after[place]})


def _is_a_caches_page(settings: Settings, server: Server) -> bool:
    """Tell whether what has the page's former name is one: a new state does not know its own."""
    page = server.read(settings.bucket, former_names.PAGE_KEY, LARGEST_PAGE)
    return page is not None and is_landing_page(page)


def check_versions(settings: Settings, server: Server) -> bool:
    """Return whether the bucket keeps versions; refuse one whose versions no rule can remove.

    Raises:
        SettingError: what is written to the bucket cannot be deleted, or is copied elsewhere.
        ServerError: no answer, or the server refuses the user.
    """
    if settings.retention_days is None or not server.keeps_versions(settings.bucket):
        return False
    remedy = "take another bucket, or set expire to false and let it grow"
    if server.locks_objects(settings.bucket):
        raise SettingError(
            "bucket",
            settings.bucket,
            f"it locks what is written for a while, so nothing of the cache could expire; {remedy}",
        )
    if server.replicates(settings.bucket):
        raise SettingError(
            "bucket",
            settings.bucket,
            f"it is replicated, and the copies would keep every renewal and all that expired; "
            f"{remedy}",
        )
    return True


def _check_share(
    settings: Settings, days: int, before: int | None, written: Iterable[datetime]
) -> None:
    share = expired_share(written, days, datetime.now(timezone.utc))
    if share == 0:
        return
    # A bucket without rules keeps its entries for ever.
    was = "no expiry" if before is None else f"{before} days"
    sentence = f"{share:.0%} of the cache's entries would expire at once (it was {was})"
    if share > _CONFIRMED_ABOVE and not settings.confirm_shorter_retention:
        raise SettingError(
            "retentionDays",
            settings.retention_days,
            f"{sentence}; set confirmShorterRetention to true to go on",
        )
    pulumi.log.warn(f"retentionDays is {settings.retention_days}: {sentence}")


def in_words(keys: Iterable[str]) -> str | None:
    """Return how many keys there are and where, those of a folder together; None without any."""
    places = Counter(
        f"{folder}/" if slash else folder
        for folder, slash, _ in (key.partition("/") for key in keys)
    )
    if not places:
        return None
    shown = places.most_common(_SHOWN)
    # A key is anybody's text: it must not steer a terminal.
    words = [
        printable(place, _LONGEST) + (f" ({count})" if place.endswith("/") else "")
        for place, count in shown
    ]
    total = sum(places.values())
    rest = total - sum(count for _, count in shown)
    return f"{total} ({', '.join(words)}{f' and {rest} more' if rest else ''})"


def _check_foreign(settings: Settings, lifecycle: Lifecycle, keys: Iterable[str]) -> None:
    rules = [*lifecycle.others, *(rule.id for rule in foreign_rules(lifecycle.rules))]
    lost = foreign_keys(
        keys, (rule.prefix for rule in expiration_rules(settings.rule_days, settings.grace_days))
    )
    found = [
        f"{what}: {which}"
        for what, which in (
            ("objects would expire that are no files of a cache", in_words(lost)),
            ("lifecycle rules of somebody else would go", in_words(rules)),
        )
        if which is not None
    ]
    if not found:
        return
    sentence = "; ".join(found)
    if not settings.confirm_shared_bucket:
        raise SettingError(
            "bucket",
            settings.bucket,
            f"{sentence}; move them, take a bucket of the cache's own, "
            "or set confirmSharedBucket to true to let them go",
        )
    pulumi.log.warn(f"bucket {settings.bucket}: {sentence}")
