"""A user's `nix.conf` where somebody else changes or holds meanwhile what it lies in."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from push import user_nix_conf
from push.failure import PushError
from push.user_nix_conf import UserNixConf
from push.whole_file import replace_whole

OWNER = Path("/nowhere/job")


@pytest.fixture
def conf(tmp_path: Path) -> UserNixConf:
    """A file below a directory."""
    (tmp_path / "nix").mkdir()
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    return UserNixConf(environment, lambda _: False)


def test_a_link_in_the_place_of_a_file_beside_it_leads_to_no_other_mode(
    conf: UserNixConf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.touch(0o600)

    def replaced(path: Path, *arguments: Any) -> None:
        replace_whole(path, *arguments)
        path.unlink()
        path.symlink_to(victim)

    monkeypatch.setattr(user_nix_conf, "replace_whole", replaced)
    conf.put_beside("post-build-hook", "#!/bin/sh\n", 0o755)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_what_a_link_in_the_files_place_leads_to_is_not_read_into_it(
    conf: UserNixConf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, victim, flock = conf.path(), tmp_path / "victim", fcntl.flock
    file.write_text("cores = 2\n")
    victim.write_text("root's\n")

    def locks(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if not file.is_symlink():
            file.unlink()
            file.symlink_to(victim)

    monkeypatch.setattr(fcntl, "flock", locks)
    with pytest.raises(PushError, match="cannot be changed"):
        conf.write(OWNER, ["cores = 3"])
    assert file.is_symlink()
    assert [one.name for one in file.parent.iterdir()] == ["nix.conf"]


@pytest.mark.parametrize(
    ("variable", "below", "remedy"),
    [
        ("XDG_CONFIG_HOME", "", "set XDG_CONFIG_HOME to"),
        ("NIX_USER_CONF_FILES", "nix/nix.conf", "let NIX_USER_CONF_FILES begin with a file in"),
    ],
)
def test_a_directory_that_somebody_keeps_locked_is_one_sentence_after_half_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, below: str, remedy: str
) -> None:
    (tmp_path / "nix").mkdir()
    conf = UserNixConf({variable: str(tmp_path / below)}, lambda _: False)
    waited: list[float] = []

    class Clock:
        def monotonic(self) -> float:
            return sum(waited)

        def sleep(self, seconds: float) -> None:
            waited.append(seconds)

    monkeypatch.setattr(user_nix_conf, "time", Clock())
    theirs = os.open(tmp_path / "nix", os.O_RDONLY)
    try:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(PushError) as refused:
            conf.write(OWNER, [])
    finally:
        os.close(theirs)
    assert str(refused.value) == (
        f"settings: another process has locked '{tmp_path}/nix' for 30 s; end that, or {remedy} "
        "a directory that this user alone can read"
    )
    assert 30.0 <= sum(waited) < 31.0
    assert conf.write(OWNER, []) == tmp_path / "nix" / "nix.conf"


def test_one_that_lets_go_is_waited_for(
    conf: UserNixConf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = os.open(tmp_path / "nix", os.O_RDONLY)
    fcntl.flock(theirs, fcntl.LOCK_EX)

    class Clock:
        def monotonic(self) -> float:
            return 0.0

        def sleep(self, _: float) -> None:
            os.close(theirs)

    monkeypatch.setattr(user_nix_conf, "time", Clock())
    assert conf.write(OWNER, ["cores = 3"]).read_text().count("cores = 3\n") == 1


def test_a_file_that_became_a_link_meanwhile_is_changed_where_it_leads(
    conf: UserNixConf, tmp_path: Path
) -> None:
    file = conf.write(OWNER, ["cores = 3"])
    moved = file.rename(tmp_path / "dotfiles")
    file.symlink_to(moved)
    assert "cores = 3\n" in conf.remove(file, [OWNER])
    assert file.is_symlink()
    assert moved.read_text() == ""
