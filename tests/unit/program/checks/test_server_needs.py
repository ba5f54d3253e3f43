"""What results mean for the product, and what an expiry is read from."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from program.checks.server_needs import DIFFERS, REFUSED, WORKS, Result, conclusion, expiry

FINE = Result("put", WORKS, "HTTP 200")
NO_USERS = Result("users", REFUSED, "none", "you make them", {"users": "given"}, kept=False)
NO_POLICY = Result("policy", REFUSED, "HTTP 501", "you open it", {"bucketPolicy": False}, False)
NO_PARTS = Result("parts", REFUSED, "HTTP 501", "nothing large", kept=False)


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([FINE], "every promise can be kept"),
        ([FINE, Result("versions", DIFFERS, "kept")], "every promise can be kept"),
        (
            [NO_USERS, FINE, NO_POLICY],
            'it can be used with the settings users: "given", bucketPolicy: false',
        ),
        ([NO_USERS, NO_PARTS], "it cannot be used: parts"),
    ],
)
def test_the_conclusion_is_one_sentence(results: list[Result], words: str) -> None:
    assert conclusion(results) == words


def test_a_result_is_one_line() -> None:
    assert str(FINE) == "put: works (HTTP 200)"
    assert str(NO_PARTS) == "parts: refused (HTTP 501); nothing large"


@pytest.mark.parametrize(
    ("header", "when"),
    [
        (
            'expiry-date="Sat, 05 Dec 2026 00:00:00 GMT", rule-id="log"',
            datetime(2026, 12, 5, tzinfo=timezone.utc),
        ),
        (
            'expiry-date="Sat, 05 Dec 2026 14:03:07 UTC", rule-id="log"',
            datetime(2026, 12, 5, 14, 3, 7, tzinfo=timezone.utc),
        ),
        ('expiry-date="tomorrow"', None),
        ("", None),
    ],
)
def test_when_an_object_expires_is_read_from_its_header(header: str, when: datetime | None) -> None:
    assert expiry(header) == when
