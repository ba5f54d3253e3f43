"""How to list what is named by hashes: pages, and where they begin."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.nix32 import NIX32_ALPHABET, nix32_encode
from push.listing import NAR_KEYS, NARINFO_KEYS, PAGE_IN_LOOKS, HashedKeys, worth_listing

KINDS = {"narinfos": NARINFO_KEYS, "nars": NAR_KEYS}


def key(kind: str, number: int) -> str:
    """Return the key of the NAR or narinfo with that number."""
    digest = hashlib.sha256(b"%d" % number).digest()
    if kind == "nars":
        return f"nar/{nix32_encode(digest)}.nar.zst"
    return f"{nix32_encode(digest[:20])}.narinfo"


@pytest.mark.parametrize("kind", KINDS)
@given(position=st.floats(0, 1, exclude_max=True))
def test_a_text_lies_where_it_was_asked_for(kind: str, position: float) -> None:
    keys = KINDS[kind]
    text = keys.key(position)
    assert text.startswith(keys.prefix)
    assert set(text[len(keys.prefix) :]) <= set(NIX32_ALPHABET)
    assert len(text) == len(keys.prefix) + 5
    assert 0 <= position - keys.position(text) < 2 / (keys.first_digits * 32**4)


@pytest.mark.parametrize("kind", KINDS)
@given(first=st.integers(0, 10_000), second=st.integers(0, 10_000))
def test_the_order_of_positions_is_that_of_keys(kind: str, first: int, second: int) -> None:
    keys = KINDS[kind]
    one, other = sorted([key(kind, first), key(kind, second)])
    assert 0 <= keys.position(one) <= keys.position(other) < 1


@pytest.mark.parametrize(
    ("keys", "text", "position"),
    [
        (NARINFO_KEYS, "", 0.0),
        (NARINFO_KEYS, "0", 0.0),
        (NARINFO_KEYS, "1", 1 / 32),
        (NARINFO_KEYS, "h", 0.5),
        (NARINFO_KEYS, "01", 1 / 1024),
        (NARINFO_KEYS, "00001zzzzz", 1 / 32**5),
        (NARINFO_KEYS, "zzzzz", 1 - 1 / 32**5),
        (NARINFO_KEYS, "index.html", NARINFO_KEYS.position("ind0x")),
        (NARINFO_KEYS, "_nixcache/push.pyz", NARINFO_KEYS.position("0nixc")),
        (NAR_KEYS, "nar/0", 0.0),
        (NAR_KEYS, "nar/1", 0.5),
        (NAR_KEYS, "nar/0h", 0.25),
        (NAR_KEYS, "nar/z", 1.0),
        (NAR_KEYS, "nar/\u20ac", 0.0),
    ],
)
def test_any_key_lies_somewhere(keys: HashedKeys, text: str, position: float) -> None:
    assert keys.position(text) == pytest.approx(position, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [1_001, 2_000, 10_000, 30_000])
def test_the_first_page_tells_how_many_more_there_are(kind: str, total: int) -> None:
    keys = KINDS[kind]
    last = sorted(key(kind, number) for number in range(total))[999]
    pages = keys.pages(last)
    needed = (total - 1000) / 1000
    # Enough for chance, and not many more.
    assert needed < pages <= 1.6 * needed + 2


@pytest.mark.parametrize(
    ("last", "pages"),
    [
        ("h", int(1 / 0.8) + 1),
        ("8", int(3 / 0.8) + 1),
        ("1", int(31 / 0.8) + 1),
        ("", 1),
        ("0", 1),
        ("\u20ac", 1),
    ],
)
def test_pages_are_planned_to_be_four_fifths_full(last: str, pages: int) -> None:
    """Of as many keys as the first has: not every server gives a thousand."""
    assert NARINFO_KEYS.pages(last) == pages


def test_a_last_key_beyond_all_keys_means_one_more_page() -> None:
    assert NAR_KEYS.pages("nar/zzzzz") == 1
    assert NAR_KEYS.parts("nar/zzzzz", 1) == [("nar/zzzzz", None)]
    assert NARINFO_KEYS.parts("zzzzz", 3) == [("zzzzz", None)]
    assert NAR_KEYS.parts("nar/2", 3) == [("nar/2", None)]


@pytest.mark.parametrize("kind", KINDS)
@given(last=st.integers(0, 1000), pages=st.integers(1, 200))
def test_parts_cover_the_rest_without_gaps(kind: str, last: int, pages: int) -> None:
    begin = key(kind, last)
    parts = KINDS[kind].parts(begin, pages)
    assert 1 <= len(parts) <= pages
    assert parts[0][0] == begin
    assert parts[-1][1] is None
    for (start, end), (following, _) in pairwise(parts):
        assert end == following
        assert start < following


@given(st.text(), st.integers(1, 50))
def test_parts_go_on_from_whatever_a_server_says(last: str, pages: int) -> None:
    for keys in KINDS.values():
        parts = keys.parts(last, pages)
        assert parts[0][0] == last
        assert len(parts) <= pages
        starts = [start for start, _ in parts]
        assert starts == sorted(set(starts))


def test_parts_are_even() -> None:
    assert NARINFO_KEYS.parts("h0000", 4) == [
        ("h0000", "l0000"),
        ("l0000", "q0000"),
        ("q0000", "w0000"),
        ("w0000", None),
    ]
    assert NAR_KEYS.parts("nar/00000", 2) == [("nar/00000", "nar/10000"), ("nar/10000", None)]


@pytest.mark.parametrize(
    ("pages", "looks", "worth"), [(1, 29, False), (1, 30, True), (10, 299, False), (10, 300, True)]
)
def test_listing_is_worth_it_while_it_costs_less_than_asking(
    pages: int, looks: int, worth: bool
) -> None:
    assert PAGE_IN_LOOKS == 30
    assert worth_listing(pages, looks) is worth
