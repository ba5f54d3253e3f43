"""Files that are written whole, also by root in a directory whose owner changes it meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from push.whole_file import replace_whole


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that root alone may read."""
    path = tmp_path / "victim"
    path.write_text("root's\n")
    path.chmod(0o600)
    return path


def swapping(directory: Path, victim: Path) -> Callable[..., Any]:
    """Return what opens a descriptor, and puts a link in the place of each file that is new."""
    fdopen = os.fdopen

    def opens(*arguments: Any, **more: Any) -> Any:
        for new in directory.glob(".*"):
            new.unlink()
            new.symlink_to(victim)
        return fdopen(*arguments, **more)

    return opens


@pytest.mark.parametrize("mode", [None, 0o755])
@pytest.mark.parametrize("before", [True, False])
def test_a_link_in_the_place_of_the_new_file_leads_to_no_change(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, before: bool, mode: int | None
) -> None:
    file = tmp_path / "theirs" / "nix.conf"
    file.parent.mkdir()
    if before:
        file.write_text("cores = 2\n")
        file.chmod(0o666)
        if os.geteuid() == 0:
            os.chown(file, 65534, 65534)
    monkeypatch.setattr(os, "fdopen", swapping(file.parent, victim))
    arguments = () if mode is None else (mode,)
    replace_whole(file, "cores = 3\n", *arguments)
    found = victim.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
    assert victim.read_text() == "root's\n"


def test_a_link_in_the_place_of_the_one_before_gives_nothing_of_what_it_leads_to(
    tmp_path: Path, victim: Path
) -> None:
    victim.chmod(0o4711)
    file = tmp_path / "nix.conf"
    file.symlink_to(victim)
    replace_whole(file, "cores = 3\n")
    assert not file.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert victim.read_text() == "root's\n"


def test_a_file_takes_over_who_may_read_it_and_no_rights_of_a_program(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(0o4750)
    replace_whole(file, "text")
    assert stat.S_IMODE(file.stat().st_mode) == 0o750
    replace_whole(file, "text", 0o600)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_another_directory_of_its_name_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, elsewhere, fdopen = tmp_path / "place", tmp_path / "elsewhere", os.fdopen
    place.mkdir()
    elsewhere.mkdir()

    def opens(*arguments: Any, **more: Any) -> Any:
        place.rename(tmp_path / "moved")
        place.symlink_to(elsewhere)
        return fdopen(*arguments, **more)

    monkeypatch.setattr(os, "fdopen", opens)
    replace_whole(place / "file", "text")
    assert list(elsewhere.iterdir()) == []
    assert [one.name for one in (tmp_path / "moved").iterdir()] == ["file"]
