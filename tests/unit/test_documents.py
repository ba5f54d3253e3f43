"""The pages: their links, the decisions' index, and what a release says of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from push.settings import SETTINGS
from tests.unit.configuration import PROJECT_ROOT

DECISIONS = PROJECT_ROOT / "docs" / "decisions"
PAGES = sorted(
    str(page.relative_to(PROJECT_ROOT))
    for pattern in ("*.md", "docs/**/*.md")
    for page in PROJECT_ROOT.glob(pattern)
)


def read(path: str | Path) -> str:
    return (PROJECT_ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_a_link_to_a_file_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", read(page)):
        assert (PROJECT_ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if "decisions" not in page])
def test_a_file_that_a_page_names_is_there(page: str) -> None:
    rooms = "benchmarks|components|docs|formats|nix|operations|program|push|tests|toolbox"
    named = re.findall(rf"`((?:{rooms})/[a-z0-9_./-]+)`", read(page))
    assert [name for name in named if not (PROJECT_ROOT / name).exists()] == []


def test_the_decisions_are_numbered_and_dated_and_the_index_has_each_of_them() -> None:
    index = re.findall(
        r"^\| \[(\d{4})\]\((.+?)\) (.+) \| (\d{4}-\d\d-\d\d) \|$",
        read(DECISIONS / "README.md"),
        re.MULTILINE,
    )
    pages = sorted(page.name for page in DECISIONS.glob("*.md") if page.name != "README.md")
    assert [name for _, name, _, _ in index] == pages
    for position, (number, name, title, date) in enumerate(index, start=1):
        assert int(number) == position, f"{name}: take the next free number"
        assert name.startswith(f"{number}-")
        assert read(DECISIONS / name).startswith(f"# {position}. {title}\n\nDate: {date}\n\n"), name


def test_the_table_of_the_pushs_settings_is_the_one_list() -> None:
    table = read("docs/push.md").partition("| setting |")[2].partition("\n\n")[0]
    assert table.splitlines()[2:] == [
        f"| `{setting.name}`{', may repeat' if setting.repeats else ''} "
        f"| {'none' if setting.default is None else f'`{setting.default}`'} | {setting.meaning} |"
        for setting in SETTINGS
    ]


def test_the_version_is_the_newest_of_the_changes() -> None:
    version = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)
    newest = re.search(
        r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", read("CHANGELOG.md"), re.MULTILINE
    )
    assert version
    assert newest
    assert version[1] == newest[1]


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_a_readme_names_the_licence_of_the_project(page: str) -> None:
    declared = re.search(r'^license = "(.+)"$', read("pyproject.toml"), re.MULTILINE)
    assert declared
    assert f"SPDX-License-Identifier: {declared[1]}" in read(page)
    assert read("LICENSE").startswith(f"{declared[1]} License\n")
