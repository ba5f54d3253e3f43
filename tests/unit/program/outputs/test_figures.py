"""The numbers on the page for people: published, dated, and the same until they are again."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from formats.error import FormatError
from program.outputs.figures import VARIABLE, Figures, current, size_in_words
from program.outputs.landing_page import landing_page
from tests.unit.program.outputs.test_landing_page import CLIENT, Page

NOW = datetime(2026, 11, 27, 9, 30, tzinfo=timezone.utc)
FIGURES = Figures(NOW, 12_345, 45_600_000_000, NOW - timedelta(hours=7))


def test_a_page_without_figures_has_none() -> None:
    page = landing_page(CLIENT, 7)
    assert "<dl" not in page
    assert current({}, page) is None
    assert current({}, "") is None


def test_they_stay_what_they_were_until_somebody_publishes_others() -> None:
    page = landing_page(CLIENT, 7, FIGURES)
    assert current({}, page) == FIGURES
    assert landing_page(CLIENT, 7, current({}, page)) == page
    later = Figures(NOW + timedelta(days=1), 1, 2, NOW)
    assert current({VARIABLE: str(later)}, page) == later


def test_they_are_shown_in_both_languages_with_their_date() -> None:
    html = landing_page(CLIENT, 7, FIGURES)
    for words in ("12,345", "45.6 GB", "2026-11-27", "As of 2026-11-27.", "截至 2026-11-27。"):
        assert words in html
    languages = Page(html).attributes("data-text")
    assert languages.count("en") == languages.count("zh")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "2026-11-27T09:30:00Z 1 2",
        "2026-11-27T09:30:00Z -1 2 2026-11-27T09:30:00Z",
        "2026-11-27T09:30:00Z 1 2 2026-13-27T09:30:00Z",
        "2026-11-27T09:30:00Z 1 2 <script>alert(1)</sc",
        f"2026-11-27T09:30:00Z {'9' * 13} 2 2026-11-27T09:30:00Z",
        "2026-11-27T09:30:00Z 1 2 2026-11-27T09:30:00Z\n",
    ],
)
def test_other_text_is_refused_and_on_a_page_it_is_none(text: str) -> None:
    with pytest.raises(FormatError):
        current({VARIABLE: text}, "")
    assert current({}, f'<dl class="figures" data-figures="{text}">') is None


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (45_600_000_000, "45.6 GB"),
        (7 * 10**15, "7.0 PB"),
        (7 * 10**19, "70000 PB"),
    ],
)
def test_sizes_are_as_people_write_them(size: int, words: str) -> None:
    assert size_in_words(size) == words
