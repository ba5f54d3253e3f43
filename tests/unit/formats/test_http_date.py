"""Times as servers write them, and texts that are none."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.error import FormatError
from formats.http_date import parse_http_date, parse_iso_time, parse_retry_after

NOW = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
times = st.integers(-30_610_224_000, 221_845_392_000).map(
    lambda seconds: datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
)
"""Of the years from 1000 to 9000."""


@given(times)
def test_a_time_goes_round(when: datetime) -> None:
    assert parse_http_date(when.strftime("%a, %d %b %Y %H:%M:%S GMT")) == when
    assert parse_iso_time(when.strftime("%Y-%m-%dT%H:%M:%SZ")) == when
    assert parse_iso_time(when.strftime("%Y-%m-%dT%H:%M:%S.123456789Z")) == when


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Thu, 26 Nov 2026 12:00:00",
        "Thu, 26 Nov 2026 12:00:00 UTC",
        "Thu, 26 Nov 2026 12:00:00 GMT ",
        "Thu, 26 Nov 2026 12:00:00 GMT\n",
        "thu, 26 Nov 2026 12:00:00 GMT",
        "Thu, 26 nov 2026 12:00:00 GMT",
        "Thu, 26 Xyz 2026 12:00:00 GMT",
        "Thu, 6 Nov 2026 12:00:00 GMT",
        "Thu, 31 Nov 2026 12:00:00 GMT",
        "Thu, 00 Nov 2026 12:00:00 GMT",
        "Thu, 26 Nov 0000 12:00:00 GMT",
        "Thu, 26 Nov 20266 12:00:00 GMT",
        "Fri, 31 Dec 9999 12:00:00 GMT",
        "Thu, 26 Nov 2026 24:00:00 GMT",
        "Thu, 26 Nov 2026 12:60:00 GMT",
        "Thu, 26 Nov 2026 12:00:60 GMT",
        "Thursday, 26-Nov-26 12:00:00 GMT",
        "Thu Nov 26 12:00:00 2026",
        "Thu, \u0662\u0666 Nov 2026 12:00:00 GMT",
        "Thu, 26 Nov 2026 12:00:00 GMT" * 2,
    ],
)
def test_a_date_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(
        FormatError, match=r"^(a date is not written as HTTP writes it|there is no such time)$"
    ):
        parse_http_date(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-26",
        "2026-11-26T12:00:00",
        "2026-11-26T12:00:00z",
        "2026-11-26T12:00:00+00:00",
        "2026-11-26t12:00:00Z",
        "2026-11-26 12:00:00Z",
        "2026-11-26T12:00:00.Z",
        "2026-11-26T12:00:00.1234567890Z",
        "2026-11-26T12:00Z",
        "2026-02-30T12:00:00Z",
        "0000-01-01T00:00:00Z",
        "12026-01-01T00:00:00Z",
        "-2026-01-01T00:00:00Z",
        "2026-11-26T12:00:61Z",
        "2026-11-26T12:00:00Z\n",
        "\u0662026-11-26T12:00:00Z",
    ],
)
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(
        FormatError, match=r"^(a time is not written as S3 writes it|there is no such time)$"
    ):
        parse_iso_time(text)


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (parse_http_date, parse_iso_time):
        with pytest.raises(FormatError):
            parse(text)


def after(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("007", 7.0),
        ("1.5", 1.5),
        ("0.000000001", 0.000000001),
        ("86400", 86_400.0),
        ("86401", 86_400.0),
        ("99999.999999999", 86_400.0),
        (after(90), 90.0),
        (after(0), 0.0),
        (after(-90), 0.0),
        (after(86_400), 86_400.0),
        (after(86_401), 86_400.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0),
    ],
)
def test_a_pause_is_seconds_or_a_date_and_a_day_at_the_most(text: str, seconds: float) -> None:
    assert parse_retry_after(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "1e3",
        ".5",
        "1.",
        "1.5.5",
        "inf",
        "nan",
        "0x1",
        " 1",
        "1\n",
        "999999",
        "1_0",
        "1.0123456789",
        "٣",
        "soon",
    ],
)
def test_a_pause_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_retry_after(text, NOW)
