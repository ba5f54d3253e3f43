"""What is said of an error that nobody foresaw: where it came from, and no value."""

from __future__ import annotations

import errno
import os
import re

import pytest

from push.failure import defect

SECRET = "a secret that an exception holds"


def raise_value() -> None:
    raise ValueError(SECRET)


def told(error: BaseException) -> str:
    line = defect(error)
    assert "\n" not in line
    assert SECRET not in line
    return line


def test_a_defect_is_a_line_with_its_places_and_without_its_text() -> None:
    with pytest.raises(ValueError, match=SECRET) as caught:
        raise_value()
    line = told(caught.value)
    assert re.search(r"ValueError at .*push/test_failure\.py:\d+ raise_value", line)


def raise_from(*, hidden: bool) -> None:
    try:
        raise_value()
    except ValueError as error:
        raise KeyError(SECRET) from None if hidden else error


def test_what_it_came_from_is_told_without_its_text_too() -> None:
    with pytest.raises(KeyError) as caught:
        raise_from(hidden=True)
    assert "ValueError" not in told(caught.value)
    with pytest.raises(KeyError) as caught:
        raise_from(hidden=False)
    assert re.search(r"defect: KeyError at .*, after ValueError at ", told(caught.value))


def test_only_the_systems_own_words_are_shown() -> None:
    full = os.strerror(errno.ENOSPC)
    assert f"OSError ({full}) at" in told(OSError(errno.ENOSPC, full, SECRET))
    assert "OSError at" in told(OSError(errno.ENOSPC, SECRET))
    assert "OSError at" in told(OSError(SECRET))


def test_errors_that_came_from_each_other_are_told_once() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert told(first).count("Error at") == 2
