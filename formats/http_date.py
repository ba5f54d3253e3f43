"""Times as HTTP and S3 write them, taken for nothing else (RFC 9110; S3 `ListObjectsV2`)."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from formats.error import FormatError

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HTTP_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) "
    r"([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
_ISO_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]{1,9})?Z"
)
_LAST_YEAR = 9000
"""Whoever adds a lifecycle's days to a later time comes out of the calendar."""
_SECONDS = re.compile(r"([0-9]{1,5})(?:\.[0-9]{1,9})?")


def parse_http_date(text: str) -> datetime:
    """Return the time of a `Date` or `Last-Modified` header (RFC 9110, IMF-fixdate), in UTC.

    Raises:
        FormatError: it is written otherwise, or there is no such time.
    """
    return _within_reach(_http_date(text))


def parse_iso_time(text: str) -> datetime:
    """Return the time of a `LastModified` element, to the second, in UTC.

    Raises:
        FormatError: it is written otherwise, or there is no such time.
    """
    match = _ISO_TIME.fullmatch(text)
    if match is None:
        raise FormatError("a time is not written as S3 writes it")
    return _within_reach(_time(*map(int, match.groups())))


def parse_retry_after(text: str, now: datetime) -> float:
    """Return the seconds that a `Retry-After` header asks for: never negative, a day at the most.

    Whole seconds and dates are what RFC 9110 has; servers send fractions too.

    Raises:
        FormatError: it is none of these.
    """
    match = _SECONDS.fullmatch(text)
    if match is not None:
        return min(float(text), 86_400.0)
    return min(max((_http_date(text) - now).total_seconds(), 0.0), 86_400.0)


def _http_date(text: str) -> datetime:
    match = _HTTP_DATE.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        raise FormatError("a date is not written as HTTP writes it")
    day, month, year, *clock = match.groups()
    return _time(int(year), _MONTHS.index(month) + 1, int(day), *map(int, clock))


def _within_reach(time: datetime) -> datetime:
    if time.year > _LAST_YEAR:
        raise FormatError("there is no such time")
    return time


def _time(*parts: int) -> datetime:
    year, month, day, hour, minute, second = parts
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        raise FormatError("there is no such time") from None
