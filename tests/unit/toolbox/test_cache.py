"""The cache of built things: each is whole or absent, and made once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolbox import cache


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIXCACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_thing_is_made_once_and_found_again(directory: Path) -> None:
    made = []

    def make(target: Path) -> None:
        made.append(target)
        (target / "file").write_text("whole")

    entries = {cache.entry("thing-1", make), cache.entry("thing-1", make)}
    assert entries == {directory / "thing-1"}
    assert len(made) == 1
    assert (directory / "thing-1" / "file").read_text() == "whole"


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(directory: Path) -> None:
    def fail(target: Path) -> None:
        (target / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cache.entry("thing-1", fail)
    assert [path.name for path in directory.iterdir()] == ["thing-1.lock"]
    assert list(cache.entry("thing-1", lambda _: None).iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(directory: Path) -> None:
    left = directory / ".thing-1.abc"
    left.mkdir(parents=True)
    (left / "half").touch()
    cache.entry("thing-1", lambda _: None)
    assert not left.exists()


def test_two_runs_at_once_make_a_thing_once() -> None:
    made = []

    def make(target: Path) -> None:
        made.append(target)
        (target / "file").touch()

    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda _: cache.entry("thing-1", make), range(8)))
    assert len(made) == 1
    assert all((entry / "file").exists() for entry in entries)


def test_the_checksum_depends_on_where_one_part_ends() -> None:
    assert cache.checksum([b"ab", b"c"]) != cache.checksum([b"a", b"bc"])


def test_without_a_choice_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIXCACHE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.directory() == Path("/somewhere/nixcache-toolbox")
