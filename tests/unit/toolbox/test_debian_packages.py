"""Apt's sources: the Debian archive is found in either format, and nothing else is."""

from __future__ import annotations

import pytest

from toolbox.debian_packages import archives

MAIN = "http://archive.test/debian"

DEB822 = f"""\
# A comment
Types: deb
URIs: {MAIN}
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://archive.test/debian-security
Suites: bookworm-security
Components: main
"""


def found(*texts: str) -> list[str]:
    return list(archives(iter(texts)))


def test_the_archive_is_found_in_deb822_and_the_security_archive_is_not() -> None:
    assert found(DEB822) == [MAIN]


@pytest.mark.parametrize(
    "line",
    [
        f"deb {MAIN} bookworm main",
        f"deb [signed-by=/usr/share/keyrings/a.gpg arch=amd64] {MAIN} trixie main contrib # x",
    ],
)
def test_the_archive_is_found_in_one_line_entries(line: str) -> None:
    assert found(f"# deb http://old.test/debian buster main\n{line}\n") == [MAIN]


@pytest.mark.parametrize(
    "text",
    [
        "deb-src http://archive.test/debian bookworm main",
        "deb http://archive.test/debian bookworm contrib",
        "deb http://security.test/debian bookworm-security main",
        "deb http://vendor.test/apt cloud-sdk-bookworm main",
        DEB822.replace("Types: deb\n", "Types: deb-src\n"),
        DEB822.replace("Types: deb\n", "Types: deb\nEnabled: no\n"),
    ],
)
def test_an_entry_that_is_not_the_main_archive_is_passed_over(text: str) -> None:
    assert found(text) == []


def test_a_field_of_several_lines_is_read_whole() -> None:
    text = f"Types: deb\nURIs:\n {MAIN}\nSuites:\n bookworm-updates\n bookworm\nComponents: main\n"
    assert found(text) == [MAIN]


def test_the_first_of_several_archives_comes_first() -> None:
    assert found("deb http://a.test/debian forky main", DEB822) == ["http://a.test/debian", MAIN]
