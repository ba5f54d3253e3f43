"""Retention: every narinfo expires by one rule, and nothing that must live by any."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.retention import (
    MAXIMUM_RULES,
    PROTECTED_KEYS,
    ExpirationRule,
    difference,
    expiration_rules,
    expired_share,
    expires_at,
    foreign_rules,
    is_folder,
    made_here,
    narinfo_days,
    narinfo_prefixes,
    same_prefixes,
)
from formats.nix32 import NIX32_ALPHABET
from formats.store_path import STORE_PATH_HASH_LENGTH

narinfo_names = st.text(
    NIX32_ALPHABET, min_size=STORE_PATH_HASH_LENGTH, max_size=STORE_PATH_HASH_LENGTH
).map(lambda hash_part: f"{hash_part}.narinfo")


@given(
    st.one_of(
        narinfo_names,
        # Names that begin as a protected key does, which chance would never draw.
        st.tuples(st.sampled_from(PROTECTED_KEYS), st.integers(1, 8), narinfo_names).map(
            lambda drawn: (
                "".join(c for c in drawn[0][: drawn[1]] if c in NIX32_ALPHABET) + drawn[2]
            )[-len(drawn[2]) :]
        ),
        st.tuples(st.sampled_from(["nix", "nar", "ni", "na", "n", "in", "l"]), narinfo_names).map(
            lambda drawn: drawn[0] + drawn[1][len(drawn[0]) :]
        ),
    )
)
def test_every_narinfo_is_matched_by_exactly_one_rule_that_is_a_narinfo_rule(name: str) -> None:
    matching = [rule for rule in expiration_rules(7, 1) if name.startswith(rule.prefix)]
    assert [rule.days for rule in matching] == [7]
    assert matching[0].id.startswith("narinfo-")


def test_no_rule_matches_what_must_live() -> None:
    for key in ("nix-cache-info", "use.html", "_nixcache/push.pyz"):
        assert not [rule for rule in expiration_rules(7, 1) if key.startswith(rule.prefix)]


@given(st.integers(1, 3650), st.integers(1, 365), st.text(NIX32_ALPHABET, max_size=52))
def test_nars_outlive_their_narinfo_and_logs_go_with_it(
    retention: int, grace: int, name: str
) -> None:
    for key, days in ((f"nar/{name}.nar.zst", retention + grace), (f"log/{name}.drv", retention)):
        rules = expiration_rules(retention, grace)
        assert [rule.days for rule in rules if key.startswith(rule.prefix)] == [days]


def test_rules_are_few_enough_and_named_once() -> None:
    rules = expiration_rules(7, 1)
    assert len(rules) < MAXIMUM_RULES
    assert len({rule.id for rule in rules}) == len(rules)
    assert all(len(rule.id) <= 255 for rule in rules)


def test_the_cover_is_the_smallest_there_is() -> None:
    prefixes = set(narinfo_prefixes())
    for prefix in prefixes:
        parent = prefix[:-1]
        # A prefix can only be shortened where no protected key begins with what is left.
        assert not parent or any(key.startswith(parent) for key in PROTECTED_KEYS)


def test_nothing_protected_needs_one_rule_a_character() -> None:
    assert narinfo_prefixes([]) == tuple(NIX32_ALPHABET)


def test_without_a_retention_nothing_expires() -> None:
    assert expiration_rules(None, 1) == ()


MONDAY = datetime(2026, 11, 23, 5, 0, tzinfo=timezone.utc)


def test_an_object_lives_its_days_in_whole_and_goes_at_midnight() -> None:
    assert expires_at(MONDAY, 7) == datetime(2026, 12, 1, tzinfo=timezone.utc)
    just_before_midnight = datetime(2026, 11, 23, 23, 59, tzinfo=timezone.utc)
    assert expires_at(just_before_midnight, 7) == expires_at(MONDAY, 7)


def test_the_share_that_a_shorter_retention_takes_at_once() -> None:
    ages = [MONDAY - timedelta(days=days) for days in (0, 6, 7, 8, 20)]
    assert expired_share(ages, 7, MONDAY) == 0.4
    assert expired_share(ages, 30, MONDAY) == 0
    assert expired_share([], 7, MONDAY) == 0


def test_the_days_of_narinfos_are_told_from_those_of_folders() -> None:
    assert [rule.id for rule in expiration_rules(7, 1) if is_folder(rule.prefix)] == ["nar"]
    assert narinfo_days(expiration_rules(7, 30)) == 7
    assert narinfo_days([ExpirationRule("temporary", "tmp/old", 1)]) is None


def test_a_difference_is_told_in_words() -> None:
    declared = expiration_rules(7, 1)
    assert difference(declared, tuple(reversed(declared))) is None
    lacking = difference(declared, declared[1:])
    assert lacking == "1 missing (nar: nar/ after 8 days)"
    more = difference((), (ExpirationRule("expire", "", 7),))
    assert more == "1 not declared (expire: everything after 7 days)"


def test_rules_of_another_retention_are_known_from_rules_of_somebody_else() -> None:
    ours = expiration_rules(30, 2)
    assert made_here(ours)
    assert not made_here(ours[1:])
    assert not made_here((*ours, ExpirationRule("expire", "", 7)))
    assert not made_here(())


def test_rules_are_in_the_order_of_their_ids_as_some_servers_give_them_back() -> None:
    ids = [rule.id for rule in expiration_rules(7, 1)]
    assert ids == sorted(ids)
    assert len(ids) == len(set(ids)) == 188


def former_rules(days: int) -> tuple[ExpirationRule, ...]:
    """Return the rules of when the page was `index.html`, and logs had one of their own."""
    prefixes = narinfo_prefixes((*PROTECTED_KEYS, "index.html", "log/"))
    narinfos = (ExpirationRule(f"narinfo-{prefix}", prefix, days) for prefix in prefixes)
    folders = (ExpirationRule(name, f"{name}/", days + 1) for name in ("log", "nar"))
    return tuple(sorted((*narinfos, *folders), key=lambda rule: rule.id))


def test_the_rules_of_an_earlier_version_are_known_as_the_programs_own() -> None:
    ours = former_rules(9)
    assert len(ours) == 313
    assert made_here(ours)
    assert narinfo_days(ours) == 9
    assert not foreign_rules(ours)
    # So that what the rules of now take besides, such as logo.png, is asked about once.
    assert not same_prefixes(ours)
    assert same_prefixes(expiration_rules(30, 2))
    without = tuple(rule for rule in ours if rule.prefix != "ind0")
    assert narinfo_days(without) is None
    assert not made_here(without)


@pytest.mark.parametrize(
    "rule",
    [
        ExpirationRule("narinfo-n", "n", 7),
        ExpirationRule("narinfo-0", "0", 8),
        ExpirationRule("backs", "backs", 7),
        ExpirationRule("log", "logs/", 8),
        ExpirationRule("narinfo-01", "01", 7, noncurrent_days=1),
    ],
)
def test_a_rule_that_the_program_would_not_make_is_not_taken_for_its_own(
    rule: ExpirationRule,
) -> None:
    assert not made_here((*expiration_rules(7, 1), rule))


def test_rules_that_only_look_like_the_programs_are_foreign() -> None:
    foreign = [
        ExpirationRule("backs", "backs", 7),
        ExpirationRule("log", "logs/", 8),
        ExpirationRule("old", "log/", 8),
    ]
    assert foreign_rules((*expiration_rules(7, 1), *foreign)) == foreign


def test_a_prefix_longer_than_any_hash_covers_nothing() -> None:
    assert narinfo_days([ExpirationRule("narinfo-", "0" * 1024, 7)]) is None
