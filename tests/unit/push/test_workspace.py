"""A push's directories: where they are, who may read them, and who removes them."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from push.failure import PushError
from push.workspace import Workspace, _memory

CHECKOUT = Path(__file__).parents[3]
OLD = 1_000_000_000


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with a TMPDIR, and a directory that passes for one in memory."""
    for name in ("disk", "memory"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(
        "push.workspace._memory", lambda environment: Path(environment["XDG_RUNTIME_DIR"])
    )
    return {"TMPDIR": str(tmp_path / "disk"), "XDG_RUNTIME_DIR": str(tmp_path / "memory")}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that passes for /var/tmp."""
    directory = tmp_path / "var-tmp"
    directory.mkdir()
    monkeypatch.setattr("push.workspace._DISK", str(directory))
    return directory


def directories(base: str | Path) -> list[Path]:
    return sorted(Path(base).iterdir())


def test_directories_are_this_users_alone_and_go_with_the_push(places: dict[str, str]) -> None:
    workspace = Workspace(places)
    secret = workspace.write_secret("signing-key", "s\u00e9cret")
    assert secret.read_text(encoding="utf-8") == "s\u00e9cret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    for name in places.values():
        (directory,) = directories(name)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert workspace.stage.parent == Path(places["TMPDIR"])
    assert secret.parent.parent == Path(places["XDG_RUNTIME_DIR"])
    workspace.remove()
    workspace.remove()
    assert [directories(name) for name in places.values()] == [[], []]


def test_without_memory_secrets_lie_on_the_disk(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("push.workspace._memory", lambda _: None)
    workspace = Workspace(places)
    assert workspace.run == workspace.stage
    workspace.remove()


@pytest.mark.parametrize(
    "name", ["a b", "100%", "a%20b", "a?b", "a#b", "a&b", "a'b", "\u00e9", "x\n"]
)
@pytest.mark.parametrize("variable", ["TMPDIR", "XDG_RUNTIME_DIR"])
def test_a_directory_of_any_name_is_reached_by_a_plain_one(
    places: dict[str, str], variable: str, name: str
) -> None:
    odd = Path(places[variable]) / name
    odd.mkdir()
    workspace = Workspace({**places, variable: str(odd)})
    for path in (workspace.stage, workspace.run):
        assert re.fullmatch(r"[/A-Za-z0-9._+-]+", str(path))
    workspace.write_secret("key", "secret")
    (workspace.stage / "nar").write_text("nar")
    (inside,) = directories(odd)
    assert (inside / ("nar" if variable == "TMPDIR" else "key")).exists()
    links = [path.parent for path in (workspace.stage, workspace.run) if path.is_symlink()]
    workspace.remove()
    assert directories(odd) == []
    assert links
    assert not any(directory.exists() for directory in links)


def test_a_relative_directory_is_taken_from_where_the_push_runs(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Path(places["TMPDIR"]) / "a b"
    odd.mkdir()
    monkeypatch.chdir(places["TMPDIR"])
    workspace = Workspace({**places, "TMPDIR": "a b"})
    monkeypatch.chdir("/")
    (workspace.stage / "nar").write_text("nar")
    assert len(list(odd.rglob("nar"))) == 1
    assert workspace.base == odd
    workspace.remove()


def test_a_linked_directory_is_as_good_as_any(places: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(places["TMPDIR"])
    workspace = Workspace({**places, "TMPDIR": str(tmp_path / "link")})
    assert len(directories(places["TMPDIR"])) == 1
    workspace.remove()
    assert directories(places["TMPDIR"]) == []


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("TMPDIR", "set TMPDIR to a directory with space for staging-limit"),
        ("XDG_RUNTIME_DIR", "free space there"),
    ],
)
def test_the_directory_that_takes_no_files_is_named_and_nothing_stays(
    places: dict[str, str], variable: str, remedy: str
) -> None:
    gone = f"{places[variable]}/gone"
    with pytest.raises(PushError) as caught:
        Workspace({**places, variable: gone})
    assert str(caught.value) == (
        f"prepare: {gone} takes no files (No such file or directory); {remedy}"
    )
    assert [directories(name) for name in places.values()] == [[], []]


def test_where_a_secret_finds_no_space_is_named(places: dict[str, str]) -> None:
    workspace = Workspace(places)
    workspace.write_secret("key", "one")
    with pytest.raises(PushError, match=f"{places['XDG_RUNTIME_DIR']} takes no files"):
        workspace.write_secret("key", "two")
    workspace.remove()


@pytest.fixture
def shared() -> Path:
    """A directory in memory that is every user's."""
    directory = Path("/dev/shm")
    if not directory.is_dir() or directory.stat().st_dev == Path("/").stat().st_dev:
        pytest.skip("this machine has no tmpfs at /dev/shm")
    return directory


def test_memory_is_a_directory_of_another_file_system_that_takes_files(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("push.workspace.os.access", lambda path, _: path == shared)
    assert _memory({}) == shared
    assert _memory({"XDG_RUNTIME_DIR": "dev/shm"}) == shared
    assert _memory({"XDG_RUNTIME_DIR": "/"}) == shared
    monkeypatch.setattr("push.workspace.os.access", lambda *_: False)
    assert _memory({"XDG_RUNTIME_DIR": "/nowhere"}) is None


# Where somebody else can exchange what lies there.

GIVE_AWAY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")


def given_away(directory: Path) -> None:
    os.chown(directory, 65534, 65534)


def given_to_a_group(directory: Path) -> None:
    os.chown(directory, -1, 65534)
    directory.chmod(0o775)


def opened_to_all(directory: Path) -> None:
    directory.chmod(0o777)


EXCHANGED = [
    pytest.param(given_away, marks=GIVE_AWAY),
    pytest.param(given_to_a_group, marks=GIVE_AWAY),
    opened_to_all,
]


@pytest.mark.parametrize("exchanged", EXCHANGED)
def test_another_directory_is_taken_where_others_can_exchange_what_is_in_tmpdir(
    places: dict[str, str], disk: Path, exchanged: Callable[[Path], None]
) -> None:
    outer = Path(places["TMPDIR"])
    inner = outer / "inner"
    inner.mkdir(mode=0o700)
    exchanged(outer)
    for stated in (outer, inner):
        workspace = Workspace({**places, "TMPDIR": str(stated)})
        assert workspace.base == workspace.stage.parent == disk
        workspace.remove()


def test_a_link_to_tmpdir_that_is_exchanged_leads_nowhere_else(
    places: dict[str, str], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(places["TMPDIR"])
    workspace = Workspace({**places, "TMPDIR": str(link)})
    link.unlink()
    link.symlink_to("/nowhere")
    (workspace.stage / "nar").write_text("nar")
    assert workspace.base == Path(places["TMPDIR"])
    workspace.remove()


def test_where_others_can_exchange_all_there_is_the_remedy_is_said(
    places: dict[str, str], disk: Path
) -> None:
    opened_to_all(Path(places["TMPDIR"]))
    opened_to_all(disk)
    with pytest.raises(PushError) as caught:
        Workspace(places)
    assert str(caught.value) == (
        f"prepare: somebody else can exchange what is written to {places['TMPDIR']}; set TMPDIR to "
        "a directory that root or this user alone may write to, as all that it lies in"
    )
    assert not [*disk.iterdir(), *Path(places["TMPDIR"]).iterdir()]


@pytest.mark.parametrize("exchanged", EXCHANGED)
def test_secrets_lie_nowhere_where_others_can_exchange_them(
    shared: Path, exchanged: Callable[[Path], None]
) -> None:
    with tempfile.TemporaryDirectory(dir=shared) as name:
        environment = {"XDG_RUNTIME_DIR": name}
        assert _memory(environment) == Path(name)
        exchanged(Path(name))
        assert _memory(environment) in (shared, Path("/run"))


def test_a_link_for_a_plain_name_is_made_where_nobody_can_exchange_it(
    places: dict[str, str], disk: Path
) -> None:
    odd = Path(places["TMPDIR"]) / "a b"
    odd.mkdir()
    workspace = Workspace({**places, "TMPDIR": str(odd)})
    assert workspace.stage.parent.parent == disk
    workspace.remove()
    opened_to_all(disk)
    workspace = Workspace({**places, "TMPDIR": str(odd)})
    assert workspace.stage.parent.parent == Path("/tmp").resolve()
    workspace.remove()


@GIVE_AWAY
def test_root_that_a_namespace_does_not_know_is_root_all_the_same(
    places: dict[str, str], disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_away(Path(places["TMPDIR"]))
    for row, base in (("0 0 4294967295", disk), ("1000 1000 1", Path(places["TMPDIR"]))):
        (tmp_path / "uid_map").write_text(f"{row}\n")
        monkeypatch.setattr("push.workspace._UID_MAP", str(tmp_path / "uid_map"))
        workspace = Workspace(places)
        assert workspace.base == base
        workspace.remove()


# What killed pushes left.


def left_over(base: str, name: str, *, lock: bool = True) -> Path:
    directory = Path(base) / f"nixcache-push.{name}"
    directory.mkdir()
    (directory / "signing-key").write_text("secret")
    if lock:
        (directory / "lock").touch()
    return directory


def survivors(places: Mapping[str, str]) -> set[str]:
    """Return what is left in TMPDIR after a push has begun and ended."""
    Workspace(places).remove()
    return {path.name.partition(".")[2] for path in directories(places["TMPDIR"])}


def test_what_nobody_holds_is_removed(places: dict[str, str]) -> None:
    left_over(places["TMPDIR"], "dead")
    left_over(places["XDG_RUNTIME_DIR"], "dead")
    assert survivors(places) == set()
    assert directories(places["XDG_RUNTIME_DIR"]) == []


def test_where_others_can_exchange_it_nothing_is_removed(
    places: dict[str, str], disk: Path
) -> None:
    left_over(places["TMPDIR"], "dead")
    base = Path(places["TMPDIR"])
    base.chmod(0o777)
    assert survivors(places) == {"dead"}
    base.chmod(0o1777)
    assert survivors(places) == set()
    assert not list(disk.iterdir())


def test_what_another_push_holds_is_left_alone(places: dict[str, str]) -> None:
    directory = left_over(places["TMPDIR"], "alive")
    with (directory / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert survivors(places) == {"alive"}
    assert survivors(places) == set()


def test_what_a_killed_push_held_is_removed(places: dict[str, str]) -> None:
    script = (
        "import os, sys; from push import workspace; workspace._memory = lambda _: None;"
        "made = workspace.Workspace(os.environ); print(made.stage, flush=True);"
        "sys.stdin.read(); os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
        env={**os.environ, **places},
    ) as process:
        assert process.stdout
        name = Path(process.stdout.readline().decode().strip()).name.partition(".")[2]
        assert survivors(places) == {name}
        process.communicate()
    assert survivors(places) == set()


def test_what_is_not_locked_yet_is_left_alone_for_an_hour(places: dict[str, str]) -> None:
    left_over(places["TMPDIR"], "young", lock=False)
    old = left_over(places["TMPDIR"], "old", lock=False)
    (old / "lock.new").touch()
    os.utime(old, (OLD, OLD))
    assert survivors(places) == {"young"}


def test_a_push_that_is_about_to_lock_is_not_taken_for_a_dead_one(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another push looks for leftovers at the very moment when this one locks its directory."""
    real = fcntl.flock
    looked: list[int] = []

    def look_and_lock(file: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not looked:
            looked.append(operation)
            Workspace(places).remove()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", look_and_lock)
    workspace = Workspace(places)
    assert looked
    assert workspace.stage.is_dir()
    workspace.remove()


def test_what_is_no_directory_of_a_push_is_left_alone(
    places: dict[str, str], tmp_path: Path
) -> None:
    base = places["TMPDIR"]
    outside = left_over(str(tmp_path), "outside")
    (Path(base) / "nixcache-push.link").symlink_to(outside)
    (Path(base) / "nixcache-push.file").touch()
    linked = left_over(base, "linked", lock=False)
    (linked / "lock").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").touch()
    (Path(base) / "somebody-elses").mkdir()
    assert survivors(places) == {"link", "file", "linked", ""}
    assert (outside / "signing-key").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
def test_what_is_another_users_is_left_alone(places: dict[str, str]) -> None:
    directory = left_over(places["TMPDIR"], "theirs")
    os.chown(directory, 65534, 65534)
    assert survivors(places) == {"theirs"}


def test_a_leftover_that_leads_out_takes_nothing_with_it(
    places: dict[str, str], tmp_path: Path
) -> None:
    directory = left_over(places["TMPDIR"], "dead")
    (tmp_path / "precious").write_text("precious")
    (directory / "out").symlink_to(tmp_path)
    assert survivors(places) == set()
    assert (tmp_path / "precious").exists()


def test_narinfos_lie_in_memory_only_where_that_has_much_space(places: dict[str, str]) -> None:
    workspace = Workspace(places)
    assert workspace.for_narinfos("signed", 1) == workspace.run / "signed"
    assert workspace.for_narinfos("signed", 1 << 40) == workspace.stage / "signed"
    workspace.remove()


def test_what_a_push_was_killed_in_the_midst_of_removing_is_removed(
    places: dict[str, str],
) -> None:
    base = Path(places["TMPDIR"])
    nothing = base / "nixcache-push.nothing"
    nothing.mkdir()
    Workspace(places).remove()
    assert list(base.iterdir()) == []


def test_a_directory_that_another_push_took_for_dead_is_made_again(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    mkdtemp = tempfile.mkdtemp

    def removed_at_once(**arguments: Any) -> str:
        made.append(mkdtemp(**arguments))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", removed_at_once)
    workspace = Workspace(places)
    assert Path(made[1]).is_dir()
    workspace.remove()
    assert not any(Path(one).exists() for one in made)


def test_what_a_thread_removes_at_the_same_time_keeps_nothing_else_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("push.workspace._memory", lambda _: None)
    workspace = Workspace({"TMPDIR": str(tmp_path)})
    for name in ("one", "two"):
        (workspace.stage / name).touch()
    as_usual = Path.unlink

    def removed_before(path: Path, missing_ok: bool = False) -> None:
        as_usual(path)
        as_usual(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", removed_before)
    workspace.remove()
    assert not list(tmp_path.iterdir())
