"""What a bucket's lifecycle would take, asked before it is put on the bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

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
from program.outputs.landing_page import LARGEST_PAGE, is_landing_page
from program.settings.reader import SettingError
from program.settings.stack import Settings
from push.settings import YES_NO

if TYPE_CHECKING:
    # A preview need not wait for the S3 client.
    from program.checks.bucket_settings import Lifecycle
    from program.checks.recorded import Recorded
    from program.checks.s3_client import Server

_CONFIRMED_ABOVE = 0.5
_SMALLEST_SHOWN = 0.005
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
        SettingError: more than half of the entries would go at once, or any where nothing expired
            before; or anything that is no file of a cache, or somebody else's rules.
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


def renewals_begin(settings: Settings, recorded: Recorded) -> str | None:
    """Return who has to be told that entries expire from now on; None where that is nothing new.

    A push that no deployment starts goes by the outputs that its builder was given, and those of
    a cache without expiry say that nothing needs to be renewed.

    Args:
        settings: the stack's settings.
        recorded: its state.
    """
    told = recorded.stack_output("nixos", {})
    if settings.retention_days is None or told.get("push", {}).get("renew") != YES_NO[False]:
        return None
    alone = [one.name for one in settings.builders if not one.pushed]
    who = ", ".join([*(name for name in alone if name in told.get("builders", {})), "CI jobs"])
    return (
        "expire goes on: pushes that no deployment starts renew nothing until they go by the new "
        f"output nixos; give it to {who} and builders with a timer, or what they push is gone "
        f"{settings.retention_days} days after it was written"
    )


def _check_share(
    settings: Settings, days: int, before: int | None, written: Collection[datetime]
) -> None:
    now = datetime.now(timezone.utc)
    share = expired_share(written, days, now)
    if share == 0:
        return
    # A bucket without rules keeps its entries for ever.
    was = "no expiry" if before is None else f"{before} days"
    part = "less than 1%" if share < _SMALLEST_SHOWN else f"{share:.0%}"
    sentence = f"{part} of the cache's entries would expire at once (it was {was})"
    remedy = ""
    # Then no push has renewed anything, and how old an entry is does not tell who needs it.
    never = before is None and bool(settings.builders or settings.pins)
    if never:
        longer = (now - min(written)).days + 1 + (settings.retention_days or 0)
        remedy = (
            f"set retentionDays to {longer} until every builder has pushed by the new outputs, or "
        )
    if (never or share > _CONFIRMED_ABOVE) and not settings.confirm_shorter_retention:
        raise SettingError(
            "retentionDays",
            settings.retention_days,
            f"{sentence}; {remedy}set confirmShorterRetention to true to go on",
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
