"""The three numbers of a cache on its page for people: measured by a report, dated. Pure.

They change when somebody publishes a report, and at no other time: a page that measured whenever it
was declared would differ in every preview. So a deployment takes them from the page that the state
has, and the one that publishes them gets them in its environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from formats.error import FormatError
from formats.http_date import parse_iso_time
from program.outputs.page import both

VARIABLE = "NIX_BINARY_CACHE_FIGURES"
"""Where a deployment that publishes figures finds them."""

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_TEXT = re.compile(r"(\S{20}) ([0-9]{1,12}) ([0-9]{1,18}) (\S{20})")
_IN_PAGE = re.compile(r'<dl class="figures" data-figures="([^"]{1,100})">')


@dataclass(frozen=True)
class Figures:
    """What a cache had when it was looked at."""

    at: datetime
    entries: int
    nar_bytes: int
    newest: datetime
    """When an entry was last written: a push, or a lease that began anew."""

    def __str__(self) -> str:
        """Return it as the environment and the page have it."""
        times = self.at.strftime(_TIME), self.newest.strftime(_TIME)
        return f"{times[0]} {self.entries} {self.nar_bytes} {times[1]}"

    @classmethod
    def parse(cls, text: str) -> Figures:
        """Read what `str` wrote.

        Raises:
            FormatError: it is written otherwise.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise FormatError("these are no figures of a cache")
        at, entries, nar_bytes, newest = match.groups()
        return cls(parse_iso_time(at), int(entries), int(nar_bytes), parse_iso_time(newest))

    def markup(self) -> str:
        """Return what the page shows of them."""
        return (
            f'<dl class="figures" data-figures="{self}">\n'
            f"{_figure(f'{self.entries:,}', ('store paths', '个 store 路径'))}"
            f"{_figure(size_in_words(self.nar_bytes), ('compressed', '压缩后大小'))}"
            f"{_figure(self.newest.strftime('%Y-%m-%d'), ('last written', '最近写入'))}"
            "</dl>\n"
            f'<p class="quiet asof">{both(*_as_of(self.at))}</p>\n'
        )


def current(environment: Mapping[str, str], page_before: str) -> Figures | None:
    """Return the figures that a page is to have, None where nobody has published any.

    Args:
        environment: of the deployment.
        page_before: the page as the last deployment left it; empty where there is none.

    Raises:
        FormatError: the environment has none.
    """
    if VARIABLE in environment:
        return Figures.parse(environment[VARIABLE])
    match = _IN_PAGE.search(page_before)
    try:
        return None if match is None else Figures.parse(match[1])
    except FormatError:
        return None


def size_in_words(size: int) -> str:
    """Return a number of bytes as people write it."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    digits = 0 if units[0] == "B" or value >= 99.95 else 1
    return f"{value:.{digits}f} {units[0]}"


def _figure(value: str, meaning: tuple[str, str]) -> str:
    return f"<div><dt>{both(*meaning)}</dt><dd>{value}</dd></div>\n"


def _as_of(at: datetime) -> tuple[str, str]:
    day = at.strftime("%Y-%m-%d")
    return f"As of {day}.", f"截至 {day}。"
