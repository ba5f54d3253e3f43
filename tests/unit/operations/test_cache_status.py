"""What is known of a cache: from a listing and what builders tell, however hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

import pytest
from prometheus_client.parser import text_string_to_metric_families

from formats.keys import PublicKey
from formats.push_status import Lease, format_status
from formats.s3 import ListedObject
from formats.signing import SecretKey
from operations.cache_status import PinnedClosure, Rules, Seen, Status, asked_for, evaluate
from operations.status_text import age_in_words, as_json, as_prometheus, screen
from tests.unit.configuration import PROJECT_ROOT
from tests.unit.formats.told import TOLD

NOW = datetime(2026, 11, 27, 9, 30, tzinfo=timezone.utc)
WEEK = Rules(retention_days=7, rule_days=7, grace_days=1, at_midnight=True)
FOR_EVER = Rules(None, None, 1, at_midnight=True)
KEY = "_nixcache/status/cache-one"
HOSTILE = (
    "x" * 10_000,
    "\x1b[2J\x1b]0;owned\x07",
    "<script>alert(1)</script>",
    '"} 1\nfake_metric 2',
    "a\u202eb",
    "\\",
)


def listed(key: str, days_old: float, size: int = 100) -> ListedObject:
    return ListedObject(key, size, "etag", NOW - timedelta(days=days_old))


def narinfo(number: int, days_old: float) -> ListedObject:
    return listed(f"{number:032}.narinfo", days_old)


def nar(number: int, days_old: float, size: int = 1000) -> ListedObject:
    return listed(f"nar/{number:052}.nar.zst", days_old, size)


def status_of(
    *objects: ListedObject,
    told: bytes | None = None,
    rules: Rules = WEEK,
    pins: tuple[PinnedClosure, ...] = (),
    builders: tuple[tuple[str, str], ...] = (("one", "cache-one"),),
    stack: str = "homelab",
    signed_by: Mapping[str, str] | None = None,
    declared: Mapping[str, datetime] | None = None,
) -> Status:
    statuses = {} if told is None else {"cache-one": told}
    seen = Seen(objects, statuses, pins, declared=declared or {})
    keys = ["cache.test-1", "cache.test-2"]
    url = "https://s3.test/cache"
    return evaluate(stack, url, keys, dict(builders), signed_by or {}, rules, seen, NOW)


def test_a_builder_that_pushed_today_is_fine_and_it_is_told_when_its_entries_expire() -> None:
    status = status_of(listed(KEY, 0.2), told=format_status(TOLD))
    (builder,) = status.builders
    assert builder.lease is not None
    assert (builder.lease.own, builder.overdue) == (12, False)
    # Rounded up to midnight, as S3 does: at least seven days, and less than eight.
    assert builder.expires == datetime(2026, 12, 5, tzinfo=timezone.utc)
    assert status.findings == []


@pytest.mark.parametrize(
    ("days_old", "changes", "finding"),
    [
        (3.4, {}, None),
        (3.6, {}, "builder one: no push has kept all it has for 3 of the 7 days that entries live"),
        (0.1, {"failures": 1}, "builder one: no push that kept all it has is known"),
        (3.4, {"started_by": "queue"}, None),
        (3.6, {"started_by": "queue"}, "builder one: no push that kept all it has is known"),
        (
            0.1,
            {"started_by": "queue", "failures": 1},
            "builder one: no push that kept all it has is known",
        ),
    ],
)
def test_a_builder_is_overdue_where_nothing_kept_all_it_has_for_half_of_the_retention(
    days_old: float, changes: dict[str, object], finding: str | None
) -> None:
    told = format_status(replace(TOLD, **changes))  # type: ignore[arg-type]
    status = status_of(listed(KEY, days_old), told=told)
    assert status.findings == ([] if finding is None else [finding])
    # Where nothing expires, nothing is ever late.
    forever = status_of(listed(KEY, days_old), told=told, rules=FOR_EVER)
    assert forever.findings == []
    assert forever.builders[0].expires is None


KEYS = [SecretKey.generate(f"cache.test-{number}").public_key for number in (1, 2)]


@pytest.mark.parametrize(
    ("signed_by", "trusted", "notice"),
    [
        (KEYS[0], KEYS, None),
        (KEYS[1], KEYS, None),
        # It does not tell, or nobody knows whom clients trust.
        (None, KEYS, None),
        (KEYS[0], [], None),
        (
            KEYS[0],
            KEYS[1:],
            "builder one: its last push signed with cache.test-1, which clients do not trust; give "
            "it cache.test-2",
        ),
        (
            PublicKey("cache.test-2", bytes(32)),
            KEYS,
            "builder one: its last push signed with another key named cache.test-2 than clients "
            "trust; give it cache.test-2",
        ),
    ],
)
def test_a_builder_that_signs_with_a_key_that_clients_do_not_trust_is_named(
    signed_by: PublicKey | None, trusted: list[PublicKey], notice: str | None
) -> None:
    told = format_status(replace(TOLD, signed_by=str(signed_by) if signed_by else None))
    status = status_of(listed(KEY, 0.2), told=told)
    status = replace(status, public_keys=tuple(map(str, trusted)))
    assert status.notices == ([] if notice is None else [notice])
    assert status.findings == []
    (builder,) = json.loads(as_json(status))["builders"]
    assert builder["status"]["signed_by"] == (str(signed_by) if signed_by else None)


@pytest.mark.parametrize(
    ("retention_days", "hours", "why"),
    [
        (1, 13, None),
        (1, 25.9, None),
        (1, 26.1, "no push has kept all it has for 26 hours; entries live for 1 day"),
        (2, 25.9, None),
        (2, 47.9, "no push has kept all it has for 47 hours; entries live for 2 days"),
        (2, 48.1, "no push has kept all it has for 2 of the 2 days that entries live"),
        (3, 40, "no push has kept all it has for 40 hours; entries live for 3 days"),
        (7, 7 * 24, "no push has kept all it has for 7 of the 7 days that entries live"),
        (7, 58 * 24, "no push has kept all it has for 58 days; entries live for 7 days"),
    ],
)
def test_a_daily_push_is_never_late_and_how_late_another_is_makes_sense(
    retention_days: int, hours: float, why: str | None
) -> None:
    rules = Rules(retention_days, retention_days, 1, at_midnight=True)
    status = status_of(listed(KEY, hours / 24), told=format_status(TOLD), rules=rules)
    assert status.findings == ([] if why is None else [f"builder one: {why}"])


@pytest.mark.parametrize(
    ("others", "days_old", "expires", "finding"),
    [
        # All of it was renewed by that push, or may have been: on its day, or as it went past
        # midnight; what else is old is somebody else's.
        ((), 0.2, date(2026, 12, 5), None),
        ((0.3, 6.5), 0.9, date(2026, 12, 4), None),
        # Pushed daily, and renewed never.
        ((0.1,), 2.0, date(2026, 12, 3), None),
        ((), 3.4, date(2026, 12, 1), None),
        ((), 6.0, date(2026, 11, 29), "6 of the 7 days that entries live"),
        ((0.1, 0.2, 6.5), 6.0, date(2026, 12, 5), None),
        ((0.1, 6.5), 6.0, date(2026, 11, 29), "6 of the 7 days that entries live"),
    ],
)
def test_what_a_builder_keeps_is_no_younger_than_as_many_entries_of_the_listing(
    others: tuple[float, ...], days_old: float, expires: date, finding: str | None
) -> None:
    told = format_status(replace(TOLD, own=3))
    entries = [narinfo(0, 0.1), narinfo(1, days_old), narinfo(2, days_old)]
    more = [narinfo(number, age) for number, age in enumerate(others, 3)]
    status = status_of(listed(KEY, 0.2), *entries, *more, told=told)
    (builder,) = status.builders
    assert builder.expires is not None
    assert builder.expires.date() == expires
    why = f"its pushes have not renewed all it keeps for {finding}; give it the present outputs, "
    words = f"builder one: {why}and let it push again"
    assert status.findings == ([] if finding is None else [words])
    assert builder.overdue is (finding is not None)
    assert f"{expires}" in screen(status)
    never = status_of(listed(KEY, 0.2), *entries, *more, told=told, rules=FOR_EVER)
    assert (never.findings, never.builders[0].expires) == ([], None)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, "it has told of no push yet"),
        (format_status(replace(TOLD, failures=2)), "2 not pushed by its last push, on 2026-11-27"),
    ],
)
@pytest.mark.parametrize(
    ("declared", "late"), [(0, False), (3.4, False), (3.6, True), (None, None)]
)
def test_a_builder_is_not_late_before_it_could_have_pushed(
    told: bytes | None, why: str, declared: float | None, late: bool | None
) -> None:
    since = {} if declared is None else {"cache-one": NOW - timedelta(days=declared)}
    objects = [] if told is None else [listed(KEY, 0)]
    status = status_of(*objects, told=told, declared=since)
    # Where nobody knows, one that has told something is: of what it kept there may be some.
    expected = told is not None if late is None else late
    assert [one.overdue for one in status.builders] == [expected]
    if expected:
        assert (len(status.findings), status.notices) == (1, [])
    else:
        assert (status.findings, status.notices) == ([], [f"builder one: {why}"])
    overdue = 'nix_binary_cache_builder_overdue{stack="homelab",builder="one"}'
    assert f"{overdue} {int(expected)}\n" in as_prometheus(status)


def test_a_push_that_failed_hides_neither_the_one_before_nor_its_lease() -> None:
    before = TOLD.lease(NOW - timedelta(days=2))
    told = replace(TOLD, failures=3, pushed=0, before=before)
    status = status_of(listed(KEY, 0), told=format_status(told))
    assert status.builders[0].expires == datetime(2026, 12, 3, tzinfo=timezone.utc)
    assert status.findings == []
    assert status.notices == ["builder one: 3 not pushed by its last push, on 2026-11-27"]
    assert screen(status).endswith(f"\n\n- {status.notices[0]}")
    assert json.loads(as_json(status))["notices"] == status.notices
    # A lease that began after the object was written is nobody's.
    later = replace(told, before=TOLD.lease(NOW + timedelta(days=300)))
    assert status_of(listed(KEY, 0), told=format_status(later)).builders[0].lease is None


@pytest.mark.parametrize(
    ("told", "notice"),
    [
        (format_status(TOLD), None),
        (format_status(replace(TOLD, started_by="queue")), None),
        (
            format_status(replace(TOLD, failures=1500)),
            "builder one: 1,500 not pushed by its last push, on 2025-10-23",
        ),
        (b"{}", "builder one: what it tells of its pushes cannot be read"),
        (None, "builder one: it has told of no push yet"),
    ],
)
def test_where_nothing_expires_a_push_that_failed_is_said_and_so_is_one_that_nobody_knows_of(
    told: bytes | None, notice: str | None
) -> None:
    objects = [] if told is None else [listed(KEY, 400)]
    status = status_of(*objects, told=told, rules=FOR_EVER)
    assert status.findings == []
    assert status.notices == ([] if notice is None else [notice])
    assert f"! {notice}" not in screen(status)


def test_what_is_found_of_a_builder_is_not_said_twice() -> None:
    for told in (format_status(replace(TOLD, failures=2)), b"{}"):
        status = status_of(listed(KEY, 1), told=told)
        assert (len(status.findings), status.notices) == (1, [])


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(days=-300), None),
        (timedelta(seconds=-90), None),
        (timedelta(seconds=59), None),
        (timedelta(minutes=1), ("1 minute", "1 分钟")),
        (timedelta(hours=23.9), ("23 hours", "23 小时")),
        (timedelta(days=1), ("1 day", "1 天")),
        (timedelta(days=1500), ("1,500 days", "1,500 天")),
    ],
)
def test_an_age_is_told_in_its_largest_unit_and_is_never_less_than_nothing(
    age: timedelta, words: tuple[str, str] | None
) -> None:
    assert age_in_words(age) == words
    told = screen(status_of(listed(KEY, age / timedelta(days=1)), told=format_status(TOLD)))
    assert ("just now" if words is None else f"{words[0]} ago") in told


def test_a_builder_that_never_told_is_noticed_and_a_former_one_is_shown() -> None:
    status = status_of(listed("_nixcache/status/gone", 5))
    assert status.findings == []
    assert status.notices == ["builder one: it has told of no push yet"]
    assert status.former == ("gone",)
    assert "gone: no builder of this stack" in screen(status)


def test_a_former_builder_is_shown_as_long_as_what_it_pushed_may_be_there() -> None:
    # Seven days, one more for a NAR, both rounded up to midnight.
    last, gone = listed("_nixcache/status/last", 8.3), listed("_nixcache/status/gone", 9.5)
    assert status_of(last, gone).former == ("last",)
    assert "also told" not in screen(status_of(gone))
    assert status_of(last, gone, rules=FOR_EVER).former == ("gone", "last")


def test_many_former_builders_do_not_fill_the_screen() -> None:
    status = status_of(*(listed(f"_nixcache/status/b{number:04}", 1) for number in range(1000)))
    assert "b0006, b0007 and 992 more: no builder of this stack" in screen(status)


@pytest.mark.parametrize(
    ("builders", "signed_by", "told"),
    [
        ((), {}, "cache.test-2 signs; cache.test-1 is trusted"),
        (("a", "b"), {}, "cache.test-2 signs; cache.test-1 is trusted"),
        (("a", "b"), {"a": "cache.test-1"}, "cache.test-2 signs for b; cache.test-1 signs for a"),
        (("a",), {"a": "cache.test-1"}, "cache.test-2 is trusted; cache.test-1 signs"),
    ],
)
def test_each_key_is_told_with_the_builders_it_signs_for(
    builders: tuple[str, ...], signed_by: dict[str, str], told: str
) -> None:
    users = tuple((name, f"cache-{name}") for name in builders)
    status = status_of(builders=users, signed_by=signed_by)
    assert f"keys          {told}\n" in f"{screen(status)}\n"
    assert [one.signed_by for one in status.builders] == [
        signed_by.get(name, "cache.test-2") for name in builders
    ]


def test_only_statuses_that_are_there_are_asked_for() -> None:
    objects = [listed(KEY, 1), listed("_nixcache/status/other", 1)]
    assert asked_for(objects, ["cache-one", "cache-two", "a/b"]) == {"cache-one": KEY}


def test_entries_are_counted_by_the_day_on_which_they_go() -> None:
    status = status_of(
        narinfo(1, 0), narinfo(2, 0), narinfo(3, 5), narinfo(4, 20),
        nar(1, 0), nar(2, 0, 5000), nar(3, 5), nar(4, 20),
        listed("nix-cache-info", 90), listed("nar/strange name", 1), listed("a/b.narinfo", 1),
    )  # fmt: skip
    assert (status.entries, status.nars, status.nar_bytes) == (4, 4, 8000)
    due = {(one.day, one.entries, one.nars, one.nar_bytes) for one in status.expiring}
    assert due == {
        # What the server has not removed yet goes today.
        (date(2026, 11, 27), 1, 1, 1000),
        (date(2026, 11, 30), 1, 0, 0),
        (date(2026, 12, 1), 0, 1, 1000),
        (date(2026, 12, 5), 2, 0, 0),
        (date(2026, 12, 6), 0, 2, 6000),
    }
    assert status.expiring_by(date(2026, 11, 30)).entries == 2
    assert [one.size for one in status.largest] == [5000, 1000, 1000, 1000]
    assert "1 today, 1 2026-11-30, 2 later" in screen(status)


def documented() -> Status:
    """Return the status that the documents show."""
    objects: list[ListedObject] = []
    for days_old, count in ((0.31, 1616), (1.3, 12), (2.3, 31), (4.4, 208), (6.3, 74), (7.4, 9)):
        for number in range(len(objects), len(objects) + count):
            objects += [narinfo(number, days_old), nar(number, days_old, 1_482_000)]
    objects += [listed(KEY, 0.31), listed("_nixcache/status/cache-two", 0.033)]
    before = Lease(NOW - timedelta(days=4.4), 208, 900_000_000)
    failed = replace(TOLD, started_by="path", host="laptop", failures=2, before=before)
    told = replace(TOLD, own=1204, own_bytes=3_410_000_000, pushed=0, renewed=1204)
    release = "/nix/store/7hx1cpq3qv4kjcn9s60f0v1vbyb8nrxd-release-24"
    system = "/nix/store/2w8rqgjhr5wnsw9b6fhxyqzmx5qsknpx-nixos-system-nixbuilder-26.05"
    lost = {release: "its NAR is gone, or has another size"}
    pins = (
        PinnedClosure("live", (system,) * 3, 1391, 1_730_000_000),
        PinnedClosure("release-24", (release,), 74, 212_000_000, lost),
    )
    statuses = {"cache-one": format_status(told), "cache-two": format_status(failed)}
    return evaluate(
        "homelab",
        "https://s3.homelab.local/nix-cache",
        ["s3.homelab.local-1", "s3.homelab.local-2"],
        {"laptop": "cache-two", "nixbuilder": "cache-one"},
        {},
        WEEK,
        Seen(objects, statuses, pins),
        NOW,
    )


def test_the_documents_show_the_screen_as_it_is_printed() -> None:
    shown = (PROJECT_ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"\n```\n{screen(documented())}\n```\n" in shown


def test_where_expiry_is_not_rounded_up_it_is_told_to_the_minute() -> None:
    to_the_hour = Rules(retention_days=7, rule_days=8, grace_days=1, at_midnight=False)
    status = status_of(listed(KEY, 1), told=format_status(TOLD), rules=to_the_hour)
    assert status.builders[0].expires == NOW + timedelta(days=7)


def test_a_pin_that_is_incomplete_is_found_with_what_it_lacks() -> None:
    path = "/nix/store/" + "0" * 32 + "-release"
    lost = {path: "its NAR is gone, or has another size", "other": "x"}
    pins = (
        PinnedClosure("live", (path,), 3, 500, lost),
        PinnedClosure("odd", unreadable="a pin is no text"),
    )
    status = status_of(listed(KEY, 0), told=format_status(TOLD), pins=pins)
    assert status.findings == [
        f"pin live is incomplete: {path}: its NAR is gone, or has another size (and 1 more)",
        "pin odd: cannot be read: a pin is no text; run pulumi up --refresh --run-program to put "
        "it back",
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_hostile_reaches_no_terminal_and_no_metric(text: str) -> None:
    content = json.loads(format_status(TOLD)) | {"host": text}
    status = status_of(
        listed(KEY, 0),
        listed(f"_nixcache/status/{text}", 0),
        listed(f"nar/{text}", 0),
        told=json.dumps(content).encode(),
        stack=text,
        pins=(PinnedClosure("live", lost={text: text}),),
    )
    assert status.builders[0].status is None
    assert status.findings[0] == "builder one: what it tells of its pushes cannot be read"
    shown = screen(status)
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    names = {family.name for family in text_string_to_metric_families(as_prometheus(status))}
    assert all(name.startswith("nix_binary_cache_") for name in names)
    assert json.loads(as_json(status))["stack"] == text


def test_metrics_are_prometheus_and_named_as_it_wants() -> None:
    pins = (PinnedClosure("live", ("x",), 3, 500),)
    objects = (narinfo(1, 1), nar(1, 1), listed(KEY, 0.5))
    text = as_prometheus(status_of(*objects, told=format_status(TOLD), pins=pins))
    families = list(text_string_to_metric_families(text))
    assert all(family.type == "gauge" and family.documentation for family in families)
    values = {
        (sample.name, sample.labels.get("builder") or sample.labels.get("pin")): sample.value
        for family in families
        for sample in family.samples
    }
    name = "nix_binary_cache"
    assert values[f"{name}_entries", None] == 1
    assert values[f"{name}_nar_bytes", None] == 1000
    pushed = (NOW - timedelta(days=0.5)).timestamp()
    assert values[f"{name}_last_push_timestamp_seconds", "one"] == pushed
    assert values[f"{name}_builder_overdue", "one"] == 0
    assert values[f"{name}_pin_complete", "live"] == 1
    units = ("_seconds", "_bytes", "_info", "_paths", "_entries", "_failures")
    plain = ("_nars", "_complete", "_overdue")
    assert all(family.name.endswith((*units, *plain)) for family in families)
    assert {sample.labels["stack"] for family in families for sample in family.samples} == {
        "homelab"
    }


def test_what_is_not_known_is_no_metric_of_1970() -> None:
    text = as_prometheus(status_of(builders=()))
    assert "oldest" not in text
    assert "last_push" not in text
    assert text.endswith("\n")
