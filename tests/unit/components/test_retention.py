"""Retention: every narinfo expires by one rule, and nothing that must live by any."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

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
    is_folder,
    made_here,
    narinfo_days,
    narinfo_prefixes,
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
        st.tuples(st.sampled_from(["nix", "nar", "ind", "ni", "na", "in", "l"]), narinfo_names).map(
            lambda drawn: drawn[0] + drawn[1][len(drawn[0]) :]
        ),
    )
)
def test_every_narinfo_is_matched_by_exactly_one_rule_that_is_a_narinfo_rule(name: str) -> None:
    matching = [rule for rule in expiration_rules(7, 1) if name.startswith(rule.prefix)]
    assert [rule.days for rule in matching] == [7]
    assert matching[0].id.startswith("narinfo-")


def test_no_rule_matches_what_must_live() -> None:
    for key in ("nix-cache-info", "index.html"):
        assert not [rule for rule in expiration_rules(7, 1) if key.startswith(rule.prefix)]


@given(st.integers(1, 3650), st.integers(1, 365), st.text(NIX32_ALPHABET, max_size=52))
def test_nars_and_logs_outlive_their_narinfo(retention: int, grace: int, name: str) -> None:
    for key in (f"nar/{name}.nar.zst", f"log/{name}.drv"):
        due = [
            rule.days for rule in expiration_rules(retention, grace) if key.startswith(rule.prefix)
        ]
        assert due == [retention + grace]


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
    assert [rule.id for rule in expiration_rules(7, 1) if is_folder(rule.prefix)] == ["log", "nar"]
    assert narinfo_days(expiration_rules(7, 30)) == 7
    assert narinfo_days([ExpirationRule("temporary", "tmp/old", 1)]) is None


def test_a_difference_is_told_in_words() -> None:
    declared = expiration_rules(7, 1)
    assert difference(declared, tuple(reversed(declared))) is None
    lacking = difference(declared, declared[1:])
    assert lacking == "1 missing (log: log/ after 8 days)"
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
    assert len(ids) == len(set(ids)) == 313
