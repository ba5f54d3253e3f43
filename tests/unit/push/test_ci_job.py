"""A CI job's own files: what is somebody else's stays, and what cannot work is one sentence."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from formats.nix_conf import patience
from formats.signing import SecretKey
from push import ci_job, user_nix_conf
from push.ci_job import main
from push.job_nix import NoAnswerError
from push.settings import read
from toolbox.processes import wait_until

CACHE = {"substituter": "https://s3/c", "publicKeys": ["c-1:k"], "push": {}, "builders": {}}
MARK = "# nix-binary-cache: begin\n"
BUILT = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-built"


def in_force(environment: Mapping[str, str]) -> dict[str, str]:
    """Stand in for what a Nix says that reads the job's own file."""
    file = Path(environment["XDG_CONFIG_HOME"], "nix", "nix.conf")
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    pairs = (line.removeprefix("extra-").partition(" = ") for line in lines)
    return {name: value for name, sign, value in pairs if sign}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a job whose Nix does as it is told."""
    monkeypatch.setattr(ci_job, "settings_in_force", in_force)
    monkeypatch.setattr(ci_job, "why_nothing_is_queued", lambda *_: None)
    monkeypatch.setattr(ci_job, "why_nothing_is_taken", lambda *_: None)
    (tmp_path / "cache.json").write_text(json.dumps(CACHE))
    (tmp_path / "nix").mkdir()
    return {
        "NIX_BINARY_CACHE_CONFIGURATION": "cache.json",
        "GITHUB_WORKSPACE": str(tmp_path),
        "RUNNER_TEMP": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }


def test_what_is_not_ours_stays_also_behind_a_block_without_an_end(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "nix" / "nix.conf"
    for before in ("cores = 2\n", f"cores = 2\n{MARK}max-jobs = 3\n"):
        file.write_text(before)
        assert main(["start"], environment) == 0
        assert file.read_text().startswith(before)
        assert "extra-substituters = https://s3/c\n" in file.read_text()
        assert main(["finish"], environment) == 0
        assert file.read_text() == before


def test_a_file_that_cannot_be_changed_is_one_sentence(
    environment: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nix" / "nix.conf"
    file.write_bytes(b"\xff\n")
    assert main(["start"], environment) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "nix.conf' cannot be changed (it is no text in UTF-8); set XDG_CONFIG_HOME" in said
    assert file.read_bytes() == b"\xff\n"


def test_what_is_no_file_of_this_users_stays(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        # Whoever may not make one may not replace the machine's either.
        null = Path(os.devnull)
    file = tmp_path / "nix" / "nix.conf"
    file.symlink_to(null)
    assert main(["start"], environment) == 1
    assert "null' cannot be changed (it is no file); set XDG_CONFIG_HOME" in capfd.readouterr().err
    assert null.is_char_device()
    assert main(["finish"], environment) == 0
    assert null.is_char_device()

    monkeypatch.setattr(user_nix_conf, "STORE_DIR", str(tmp_path / "store"))
    managed = tmp_path / "store" / "home-manager-files"
    managed.parent.mkdir()
    managed.write_text("cores = 2\n")
    file.unlink()
    file.symlink_to(managed)
    assert main(["start"], environment) == 1
    assert "files' cannot be changed (it lies in the Nix store)" in capfd.readouterr().err
    assert main(["finish"], environment) == 0
    assert managed.read_text() == "cores = 2\n"


def test_a_job_takes_no_hook_away_from_another_that_goes_on(
    pushing: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = two_places(pushing, tmp_path)
    file = tmp_path / "nix" / "nix.conf"
    assert main(["start"], first) == 0
    configured = file.read_text()
    assert f"post-build-hook = {tmp_path}/nix/nix-binary-cache-" in configured
    try:
        assert main(["start"], second) == 1
        assert "another job of this user's goes on, whose hook" in capfd.readouterr().err
        assert main(["finish"], second) == 1
        assert f"a job goes on in '{tmp_path}/1/nix-binary-cache-" in capfd.readouterr().err
        assert file.read_text() == configured
        assert [path.name for path in (tmp_path / "2").iterdir()] == []
    finally:
        main(["finish"], first)
    assert file.read_text() == ""
    # What a build that goes on has the name of stays.
    hooks = list(file.parent.glob("nix-binary-cache-*-post-build-hook"))
    assert len(hooks) == 2
    # What one that was killed has left is in nobody's way.
    file.write_text(configured)
    (tmp_path / "1" / f"nix-binary-cache-{os.getuid()}").mkdir()
    (tmp_path / "1" / f"nix-binary-cache-{os.getuid()}" / "log").touch()
    assert main(["start"], second) == 0
    assert file.read_text().count("post-build-hook = ") == 1
    main(["finish"], second)
    assert file.read_text() == ""


@pytest.mark.parametrize("owner", ["/", "a\0b", "/nowhere/job", "/dev/job"])
def test_a_block_that_is_nobodys_is_taken_away_and_what_it_names_stays(
    environment: dict[str, str], tmp_path: Path, owner: str
) -> None:
    file = tmp_path / "nix" / "nix.conf"
    hook = tmp_path / "nix-binary-cache-hook"
    hook.touch()
    lines = f"# of {owner}\npost-build-hook = {hook}\nssl-cert-file = {file}\n"
    file.write_text(f"{MARK}{lines}# nix-binary-cache: end\n")
    assert main(["start"], environment) == 0
    assert "post-build-hook" not in file.read_text()
    assert main(["finish"], environment) == 0
    assert file.read_text() == ""
    assert hook.exists()


def test_a_nix_conf_stays_its_users_where_root_changes_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "nix" / "nix.conf"
    file.write_text("cores = 2\n")
    whose = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(file, *whose)
    for step in ("start", "finish"):
        assert main([step], environment) == 0
        assert (file.stat().st_uid, file.stat().st_gid) == whose


def test_what_stands_where_a_jobs_files_should_is_not_taken_for_them(
    pushing: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "settings").touch()
    (theirs / "log").write_text("a secret of theirs")
    place = tmp_path / f"nix-binary-cache-{os.getuid()}"
    place.symlink_to(theirs)
    assert main(["finish"], pushing) == 1
    said = capfd.readouterr().err
    assert said.endswith("is another user's; set RUNNER_TEMP to one of ours\n")
    assert "a secret" not in said
    assert sorted(path.name for path in theirs.iterdir()) == ["log", "settings"]


@pytest.mark.parametrize("change", [{"publicKeys": "k"}, {"builders": {"ci": []}}, {"push": 3}])
def test_a_configuration_of_another_shape_is_one_sentence(
    environment: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, object],
) -> None:
    (tmp_path / "cache.json").write_text(json.dumps({**CACHE, **change}))
    assert main(["start"], environment) == 1
    assert "CONFIGURATION 'cache.json' cannot be read; name the file" in capfd.readouterr().err
    assert not (tmp_path / "nix" / "nix.conf").exists()


@pytest.fixture
def pushing(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a job that pushes."""
    push = {"endpoint": "https://s3.test", "bucket": "cache"}
    builders = {"ci": {"accessKeyId": "cache-ci", "pins": []}}
    key = SecretKey.generate("cache.test-1")
    cache = {**CACHE, "publicKeys": [str(key.public_key)], "push": push, "builders": builders}
    (tmp_path / "cache.json").write_text(json.dumps(cache))
    return {
        **environment,
        "NIX_BINARY_CACHE_BUILDER": "ci",
        "NIX_BINARY_CACHE_SECRET_ACCESS_KEY": "a secret",
        "NIX_BINARY_CACHE_SIGNING_KEY": key.to_nix(),
    }


@pytest.mark.parametrize("name", ["cache.test-0", "cache.test-1", "other.test-2"])
def test_a_job_with_a_key_that_clients_do_not_trust_is_refused_at_its_start(
    pushing: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    pushing["NIX_BINARY_CACHE_SIGNING_KEY"] = SecretKey.generate(name).to_nix()
    assert main(["start"], pushing) == 1
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith(f"push: settings: the signing key {name} is ")
    assert "the key that the stack has it sign with now (docs/ci.md)" in told
    assert {one.name for one in tmp_path.iterdir()} == {"cache.json", "nix"}
    assert not list((tmp_path / "nix").iterdir())


def test_a_key_of_a_rotation_that_a_branch_has_not_got_yet_is_told_once(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The forge gives its new key to jobs of branches that are older than it, too."""
    newer = SecretKey.generate("cache.test-2")
    pushing["NIX_BINARY_CACHE_SIGNING_KEY"] = newer.to_nix()
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    assert main(["start"], pushing) == 0
    told = capfd.readouterr().err
    assert told.count("cache.test-2 is newer than all of trusted-key; give this machine, or") == 1
    lines = (tmp_path / f"nix-binary-cache-{os.getuid()}" / "settings").read_text().splitlines()
    given = read(lines)
    assert [one.name for one in given.trusted_keys] == ["cache.test-1", "cache.test-2"]
    assert (given.public_key, given.notice) == (newer.public_key, None)


def two_places(environment: dict[str, str], directory: Path) -> list[dict[str, str]]:
    """Return the environments of two jobs of one user, each with a directory of its own."""
    places = [directory / name for name in ("1", "2")]
    for place in places:
        place.mkdir()
    return [{**environment, "RUNNER_TEMP": str(place)} for place in places]


def test_a_disk_that_is_full_costs_nobody_their_settings(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "nix" / "nix.conf"
    file.write_text("access-tokens = x\n")
    monkeypatch.setattr(os, "replace", full)
    assert main(["start"], environment) == 1
    assert "cannot be changed (No space left on device)" in capfd.readouterr().err
    assert [one.name for one in file.parent.iterdir()] == ["nix.conf"]
    assert file.read_text() == "access-tokens = x\n"


def test_a_link_a_mode_and_the_ends_of_lines_stay_as_they_are(
    environment: dict[str, str], tmp_path: Path
) -> None:
    mine = tmp_path / "dotfiles"
    mine.write_bytes(b"cores = 2\r\n")
    mine.chmod(0o600)
    (tmp_path / "nix" / "nix.conf").symlink_to(mine)
    assert main(["start"], environment) == 0
    assert (tmp_path / "nix" / "nix.conf").is_symlink()
    assert mine.stat().st_mode & 0o777 == 0o600
    assert mine.read_bytes().startswith(b"cores = 2\r\n# nix-binary-cache: begin\n")
    assert main(["finish"], environment) == 0
    assert mine.read_bytes() == b"cores = 2\r\n"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_start_that_fails_at_its_end_leaves_no_hook_behind(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    failure: BaseException,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "Popen", fails)
    assert main(["start"], pushing) in (1, 130)
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert (tmp_path / "nix" / "nix.conf").read_text() == ""
    assert not list(tmp_path.glob("nix-binary-cache-*"))


def test_a_start_beside_another_job_takes_nothing_from_it(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    assert main(["start"], pushing) == 0
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    before = (tmp_path / "nix" / "nix.conf").read_text()
    assert "post-build-hook" in before
    assert main(["start"], pushing) == 1
    assert (directory / "settings").exists()
    assert (tmp_path / "nix" / "nix.conf").read_text() == before


class Pushes:
    """Stands in for a push that is started: something comes while it is waited for."""

    pid = 1 << 30
    """Nobody's."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile = meanwhile
        self._ended = False
        self.calls: list[str] = []

    def __call__(self, *_: object, **__: object) -> Pushes:
        self._ended = False
        return self

    def wait(self, timeout: float) -> int:
        self.calls.append("wait")
        assert timeout <= 5.0
        if not self._ended:
            self._ended = True
            self._meanwhile()
        return 0

    def terminate(self) -> None:
        self.calls.append("terminate")

    def kill(self) -> None:
        self.calls.append("kill")


SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("during", ["push", "both", "clean-up"])
def test_a_job_that_is_cancelled_leaves_nothing(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    during: str,
) -> None:
    """A forge's runner sends one after the other: while it pushes, and some seconds later."""
    as_usual, handlers = shutil.rmtree, [signal.getsignal(one) for one in SIGNALS]

    def strike(where: str) -> None:
        if during in (where, "both"):
            signal.raise_signal(number)

    def removes(*arguments: Any, **more: Any) -> None:
        strike("clean-up")
        as_usual(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    assert main(["start"], pushing) == 0
    push = Pushes(lambda: strike("push"))
    monkeypatch.setattr(subprocess, "Popen", push)
    monkeypatch.setattr(shutil, "rmtree", removes)
    assert main(["finish"], pushing) == (0 if during == "clean-up" else 130)
    # Let go before it is killed: it has a key to remove.
    assert push.calls[:3] == ["wait", "terminate", "wait"]
    assert (tmp_path / "nix" / "nix.conf").read_text() == ""
    assert not list(tmp_path.glob("nix-binary-cache-*"))
    assert [signal.getsignal(one) for one in SIGNALS] == handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_a_start_that_is_cancelled_leaves_nothing(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    as_usual = shutil.rmtree

    def strike(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    def removes(*arguments: Any, **more: Any) -> None:
        signal.raise_signal(number)
        as_usual(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", strike)
    monkeypatch.setattr(shutil, "rmtree", removes)
    assert main(["start"], pushing) == 130
    assert (tmp_path / "nix" / "nix.conf").read_text() == ""
    assert not list(tmp_path.glob("nix-binary-cache-*"))


def test_a_signal_that_whoever_starts_it_ignores_is_ignored(
    pushing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = Pushes(lambda: signal.raise_signal(signal.SIGHUP))
        monkeypatch.setattr(subprocess, "Popen", hang_up)
        assert main(["start"], pushing) == 0
        assert main(["finish"], pushing) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_push_that_is_cancelled_has_time_to_remove_its_key(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    push = tmp_path / "push"
    push.write_text(
        f"#!{sys.executable} -IS\n"
        "import os, signal, sys, time\n"
        f"def end(*_): time.sleep(0.5); os.unlink({str(key)!r}); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\n"
        f"open({str(key)!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    push.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", Pushes(lambda: None))
        assert main(["start"], pushing) == 0
    monkeypatch.setattr(sys, "executable", str(push))

    def cancel() -> None:
        assert wait_until(key.exists, 60)
        os.kill(os.getpid(), signal.SIGTERM)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    assert main(["finish"], pushing) == 130
    canceller.join()
    assert not key.exists()


def test_names_in_a_file_write_no_lines_of_their_own(
    pushing: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Such systems take lines of a log for commands."""
    file = tmp_path / "cache.json"
    cache = json.loads(file.read_text())
    file.write_text(json.dumps({**cache, "builders": {"x\n::stop-commands::y\x1b[2J": {}}}))
    assert main(["start"], pushing) == 1
    said = capfd.readouterr().err
    assert "write one of x?::stop-commands::y?[2J" in said
    assert len(said.splitlines()) == 1


def test_a_user_without_a_home_is_told_what_to_set(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    file = Path(environment["XDG_CONFIG_HOME"], "nix", "nix.conf")
    file.symlink_to(file)
    assert main(["start"], environment) == 1
    assert "set XDG_CONFIG_HOME" in capfd.readouterr().err
    assert file.is_symlink()
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert main(["start"], {**environment, "XDG_CONFIG_HOME": ""}) == 1
    assert "set XDG_CONFIG_HOME" in capfd.readouterr().err


@pytest.fixture
def started(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, str]]:
    """The directory of a job whose pusher was not started, and the job's environment."""
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", Pushes(lambda: None))
        assert main(["start"], pushing) == 0
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    return directory, pushing


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_nobody_else_writes_into_a_jobs_files_whatever_the_umask(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    (tmp_path / "nix" / "nix.conf").touch()
    before = os.umask(umask)
    try:
        assert main(["start"], pushing) == 0
    finally:
        os.umask(before)
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in directory.iterdir()}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o711
    private = ("settings", "log", "job", "pusher", "told-nix")
    assert modes == {**dict.fromkeys(private, 0o600), "queue": 0o700}
    (hook,) = (tmp_path / "nix").glob("nix-binary-cache-*-post-build-hook")
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755


@pytest.mark.parametrize("linked", ["nix-binary-cache-{}", "nix-binary-cache-{}/queue"])
def test_the_hook_of_a_job_that_is_over_writes_nothing_wherever_its_queue_leads(
    started: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    linked: str,
) -> None:
    directory, environment = started
    (hook,) = (tmp_path / "nix").glob("nix-binary-cache-*-post-build-hook")

    def is_built() -> str:
        return run_hook(hook, BUILT)

    assert is_built() == ""
    assert [link.name for link in (directory / "queue").iterdir()] == [Path(BUILT).name]
    (directory / "queue" / Path(BUILT).name).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", Pushes(lambda: None))
        assert main(["finish"], environment) == 0
    assert is_built() == ""
    theirs = tmp_path / "theirs"
    (theirs / "queue").mkdir(parents=True)
    link = tmp_path / linked.format(os.getuid())
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(theirs)
    said = is_built()
    assert [one.name for one in theirs.rglob("*")] == ["queue"]
    assert f"{BUILT} is not queued in " in said
    # Nor does what it says of that go where a link leads.
    (record,) = (tmp_path / "nix").glob("nix-binary-cache-*-missed")
    victim = record.rename(tmp_path / "victim")
    victim.write_text("theirs")
    record.symlink_to(victim)
    assert is_built() == said
    assert victim.read_text() == "theirs"


def run_hook(hook: Path, path: str) -> str:
    """Run the hook as Nix does that has built a path, and return what it says."""
    told = {"OUT_PATHS": path, "PATH": os.environ["PATH"]}
    ran = subprocess.run([hook], env=told, check=True, capture_output=True, text=True, cwd="/")
    return ran.stderr


@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ("nothing", ""),
        ("mode", f"{BUILT} is not queued in "),
        ("queue", "(Not a directory)"),
        ("python", "not found"),
        ("record", "-missed' cannot be read (No such file or directory)"),
        ("a record", "-missed' cannot be read (Too many levels of symbolic links)"),
    ],
)
def test_what_the_hook_could_not_queue_fails_finish_and_no_build(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    lacking: str,
    why: str,
) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", Pushes(lambda: None))
        patched.setattr(sys, "executable", str(python))
        assert main(["start"], pushing) == 0
    (hook,) = (tmp_path / "nix").glob("nix-binary-cache-*-post-build-hook")
    (record,) = (tmp_path / "nix").glob("nix-binary-cache-*-missed")
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    queue, away = directory / "queue", directory / "away"
    if lacking == "mode":
        queue.chmod(0o770)
    elif lacking == "queue":
        queue.rename(away)
        queue.symlink_to(away)
    elif lacking == "python":
        python.unlink()
    elif lacking == "record":
        record.unlink()
    elif lacking == "a record":
        record.rename(tmp_path / "record")
        record.symlink_to(tmp_path / "record")
    number = record.stat().st_ino if record.exists() else None
    assert (why in run_hook(hook, BUILT)) == (not lacking.endswith("record"))
    # A disk that is full has place for no other file.
    assert number is None or record.stat().st_ino == number
    if lacking == "queue":
        queue.unlink()
        away.rename(queue)
    queue.chmod(0o700)
    for link in queue.iterdir():
        link.unlink()
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    assert main(["finish"], pushing) == (lacking != "nothing")
    told = "not all that was built was queued, the last time for '"
    said = capfd.readouterr().err
    assert (told in said) == (lacking != "nothing")
    assert why in said


def test_the_hook_does_without_the_checkout(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("push", "formats"):
        shutil.copytree(Path(ci_job.__file__).parents[1] / name, checkout / name)
    with monkeypatch.context() as patched:
        patched.setattr(ci_job, "_CHECKOUT", checkout)
        patched.setattr(subprocess, "Popen", Pushes(lambda: None))
        assert main(["start"], pushing) == 0
    shutil.rmtree(checkout)
    (hook,) = (tmp_path / "nix").glob("nix-binary-cache-*-post-build-hook")
    assert run_hook(hook, BUILT) == ""
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    assert [link.name for link in (directory / "queue").iterdir()] == [Path(BUILT).name]


def test_the_secrets_of_a_job_that_queues_nothing_go_with_its_time_and_keep_nobody_out(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = two_places(pushing, tmp_path)
    outputs: list[int] = []

    def starts(*_: object, **more: Any) -> Pushes:
        # As a process does that has it as its output.
        outputs.append(os.dup(more["stdout"].fileno()))
        return Pushes(lambda: None)

    monkeypatch.setattr(ci_job, "why_nothing_is_queued", lambda *_: "Nix runs none")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", starts)
        assert main(["start"], first) == 0
        assert main(["start"], second) == 0
    for output in outputs:
        os.close(output)
    assert len(outputs) == 2
    assert "another job" not in capfd.readouterr().err
    (directory,) = (tmp_path / "1").iterdir()
    monkeypatch.setattr(ci_job, "time", Clock({}))
    assert main(["run"], first) == 0
    assert not directory.exists()


def test_a_jobs_directory_that_becomes_a_link_leads_to_no_other_mode(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, mkdir = tmp_path / "victim", Path.mkdir
    victim.mkdir(mode=0o700)

    def makes(path: Path, *arguments: Any, **more: Any) -> None:
        mkdir(path, *arguments, **more)
        if path.name.startswith("nix-binary-cache-"):
            path.rmdir()
            path.symlink_to(victim)

    monkeypatch.setattr(Path, "mkdir", makes)
    assert main(["start"], pushing) == 1
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700


def test_what_another_user_has_queued_is_not_pushed(
    started: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory, environment = started
    uid, lstat = os.getuid(), Path.lstat

    def seen(path: Path) -> os.stat_result:
        found = lstat(path)
        owner = {"mine": uid, "roots": 0}.get(path.name, uid + 1)
        if not stat.S_ISLNK(found.st_mode):
            return found
        return os.stat_result((*found[:4], owner, *found[5:]))

    for name in ("mine", "roots", "anothers\n::error::"):
        (directory / "queue" / name).symlink_to("/nix/store/x")
    left: list[list[str]] = []
    push = Pushes(lambda: left.append(sorted(one.name for one in (directory / "queue").iterdir())))
    monkeypatch.setattr(subprocess, "Popen", push)
    monkeypatch.setattr(Path, "lstat", seen)
    assert main(["finish"], environment) == 0
    assert left == [["mine", "roots"]]
    said = capfd.readouterr().err
    assert "anothers?::error::' is another user's; it is removed, and not pushed\n" in said
    assert len(said.splitlines()) == 1


class Clock:
    """A time that passes only as it is waited for, until somebody says that it is enough."""

    def __init__(self, events: dict[float, Callable[[], object]]) -> None:
        self.now = 0.0
        self._events = events

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in sorted(one for one in self._events if one <= self.now):
            self._events.pop(moment)()


def test_what_cannot_be_pushed_is_tried_less_and_less_often_and_what_is_new_at_once(
    started: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, environment = started
    queue = directory / "queue"
    (queue / "stuck").symlink_to("/nix/store/stuck")
    clock = Clock(
        {
            1_000.0: lambda: (queue / "new").symlink_to("/nix/store/new"),
            2_001.0: (directory / "stop").touch,
        }
    )
    pushed: list[float] = []

    def takes() -> None:
        pushed.append(clock.now)
        (queue / "new").unlink(missing_ok=True)

    monkeypatch.setattr(subprocess, "Popen", Pushes(takes))
    monkeypatch.setattr(ci_job, "time", clock)
    assert main(["run"], environment) == 0
    assert pushed[:5] == [0.0, 2.0, 6.0, 14.0, 30.0]
    assert 1_000.0 in pushed
    assert len(pushed) < 30
    pauses = [later - before for before, later in itertools.pairwise(pushed)]
    assert max(pauses) <= 120.0
    # It looks as often as ever whether it is enough.
    assert clock.now == 2_002.0


def test_what_is_pushed_waits_for_no_pause(
    started: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, environment = started
    link = directory / "queue" / "path"
    again = {2.0 * number: lambda: link.symlink_to("/nix/store/path") for number in range(1, 6)}
    clock = Clock({**again, 20.0: (directory / "stop").touch})
    pushed: list[float] = []

    def takes() -> None:
        pushed.append(clock.now)
        link.unlink()

    monkeypatch.setattr(subprocess, "Popen", Pushes(takes))
    monkeypatch.setattr(ci_job, "time", clock)
    assert main(["run"], environment) == 0
    assert pushed == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_pusher_ends_with_the_time_that_its_job_has_and_with_its_files(
    started: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory, environment = started
    before = tmp_path / "before"
    shutil.copytree(directory, before)
    for given, end in (("3600", 3_600.0), ("", 86_400.0), ("an hour", 86_400.0)):
        clock = Clock({})
        monkeypatch.setattr(ci_job, "time", clock)
        assert main(["run"], {**environment, "CI_JOB_TIMEOUT": given}) == 0
        assert clock.now == end
        # Nobody has to come any more who would remove its secrets.
        assert not directory.exists()
        shutil.copytree(before, directory)

    def is_emptied_and_filled_by_the_next() -> None:
        directory.rename(tmp_path / "gone")
        directory.mkdir()
        (directory / "log").touch()

    clock = Clock({100.0: is_emptied_and_filled_by_the_next})
    monkeypatch.setattr(ci_job, "time", clock)
    assert main(["run"], environment) == 0
    assert clock.now == 100.0
    shutil.rmtree(directory)
    assert main(["finish"], environment) == 1
    assert f"'{directory}' is gone, and what the job had queued with it" in capfd.readouterr().err


@pytest.mark.parametrize("same", [True, False])
def test_a_place_is_taken_from_another_job_and_never_from_the_same(
    pushing: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    same: bool,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    place = {**pushing, "CI_RUNNER_ID": "7", "CI_CONCURRENT_ID": "1", "CI_JOB_ID": "20"}
    assert main(["start"], place) == 0
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    assert directory.name == f"nix-binary-cache-{os.getuid()}-7-1"
    (directory / "queue" / "path").symlink_to("/nix/store/path")
    code = main(["start"], place if same else {**place, "CI_JOB_ID": "21"})
    said = capfd.readouterr().err
    assert code == same
    assert ("run finish first" in said) == same
    assert ("what it had queued waits for the next" in said) == (not same)
    assert len(list((directory / "queue").iterdir())) == same
    # Another number is another place, and what is none is of no help.
    other = {**place, "XDG_CONFIG_HOME": str(tmp_path / "other")}
    for number in ("2", "../3"):
        assert main(["start"], {**other, "CI_CONCURRENT_ID": number}) == 0
        assert main(["finish"], {**other, "CI_CONCURRENT_ID": number}) == 0
        assert directory.exists()
    plain = tmp_path / f"nix-binary-cache-{os.getuid()}"
    plain.mkdir()
    assert main(["start"], {**other, "CI_CONCURRENT_ID": "../3"}) == 1


def test_what_nix_does_not_read_is_refused_and_taken_back(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ci_job, "settings_in_force", lambda _: {"trusted-public-keys": "other:x"})
    assert main(["start"], environment) == 1
    file = tmp_path / "nix" / "nix.conf"
    assert f"Nix does not read '{file}'; unset what keeps it" in capfd.readouterr().err
    assert file.read_text() == ""


@pytest.mark.parametrize("named", ["", ":", "::"])
def test_a_variable_that_names_no_file_is_refused(
    environment: dict[str, str], capfd: pytest.CaptureFixture[str], named: str
) -> None:
    assert main(["start"], {**environment, "NIX_USER_CONF_FILES": named}) == 1
    said = capfd.readouterr().err
    assert "NIX_USER_CONF_FILES is empty, so Nix reads no nix.conf; unset it\n" in said


def test_a_file_that_a_variable_names_and_nobody_may_write_has_its_own_remedy(
    environment: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named = {**environment, "NIX_USER_CONF_FILES": f"{tmp_path / 'directory'}:/other"}
    (tmp_path / "directory").mkdir()
    assert main(["start"], named) == 1
    assert "(it is no file); let NIX_USER_CONF_FILES begin with a file" in capfd.readouterr().err


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("known", "asked", "line", "said"),
    [
        # What Nix trusts, whether it asks the cache with the file and without, and what follows.
        ("others\n", {True: None}, True, ""),
        ("others\n", {True: "CA (77)", False: None}, False, ""),
        (
            "others\n",
            {True: "away", False: "away still"},
            False,
            "taken from the cache: away still",
        ),
        (f"others\n{CERTIFICATE}others\n", {False: None}, False, ""),
        (None, {False: "CA unknown"}, False, "nothing is taken from the cache: CA unknown"),
    ],
)
def test_a_private_ca_is_added_to_those_that_nix_trusts_where_that_is_of_use(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    known: str | None,
    asked: dict[bool, str | None],
    line: bool,
    said: str,
) -> None:
    (tmp_path / "cache.json").write_text(json.dumps({**CACHE, "caCertificate": CERTIFICATE}))
    bundle = tmp_path / "bundle.pem"
    if known is not None:
        bundle.write_text(known)

    def of_a_machine(environment: Mapping[str, str]) -> dict[str, str]:
        return {"ssl-cert-file": str(bundle)} | in_force(environment)

    def ask(_: Mapping[str, str], url: str, options: Mapping[str, str]) -> str | None:
        assert url == CACHE["substituter"]
        if options:
            (file,) = options.values()
            assert Path(file).read_text() == f"others\n\n{CERTIFICATE}"
        return asked[bool(options)]

    monkeypatch.setattr(ci_job, "settings_in_force", of_a_machine)
    monkeypatch.setattr(ci_job, "why_nothing_is_taken", ask)
    assert main(["start"], environment) == 0
    file = tmp_path / "nix" / "nix.conf"
    assert ("ssl-cert-file = " in file.read_text()) == line
    assert "extra-substituters = " in file.read_text()
    assert said in capfd.readouterr().err
    assert main(["finish"], environment) == 0
    assert file.read_text() == ""


def test_a_cache_that_lets_nix_wait_is_left_out_of_the_job(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def ask(*_: object) -> None:
        raise NoAnswerError("no answer after 120 s")

    monkeypatch.setattr(ci_job, "why_nothing_is_taken", ask)
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    assert main(["start"], pushing) == 0
    text = (tmp_path / "nix" / "nix.conf").read_text()
    assert "post-build-hook = " in text
    assert "substituters" not in text
    assert "this job goes without it" in capfd.readouterr().err


@pytest.mark.parametrize("override", ["substituters = https://other", "substitute = false"])
def test_other_settings_that_keep_nix_from_asking_are_told(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    override: str,
) -> None:
    name, _, value = override.partition(" = ")
    monkeypatch.setattr(ci_job, "settings_in_force", lambda e: {**in_force(e), name: value})
    assert main(["start"], environment) == 0
    assert "other settings keep Nix from asking it" in capfd.readouterr().err


def test_a_hook_that_came_meanwhile_is_told_at_the_end(
    started: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, environment = started
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    monkeypatch.setattr(
        ci_job, "settings_in_force", lambda e: {**in_force(e), "post-build-hook": "/their/hook"}
    )
    # Its lines are taken out where they are, wherever Nix would look by now.
    other = {**environment, "NIX_USER_CONF_FILES": str(tmp_path / "other.conf")}
    assert main(["finish"], other) == 1
    assert "the post-build-hook is '/their/hook' by now" in capfd.readouterr().err
    assert (tmp_path / "nix" / "nix.conf").read_text() == ""


@pytest.mark.parametrize("variable", ["XDG_CONFIG_HOME", "NIX_USER_CONF_FILES"])
def test_a_place_that_depends_on_the_directory_is_refused(
    environment: dict[str, str], capfd: pytest.CaptureFixture[str], variable: str
) -> None:
    assert main(["start"], {**environment, variable: "ci/nix"}) == 1
    said = capfd.readouterr().err
    assert f"{variable} is 'ci/nix', another place in each directory; write a whole path" in said


def test_a_start_that_goes_on_is_another_job_that_goes_on(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = two_places(pushing, tmp_path)
    codes: list[int] = []

    def starts(*_: object, **__: object) -> Pushes:
        # The first one has told Nix by now, and its pusher is not there yet.
        codes.append(main(["start"], second))
        return Pushes(lambda: None)

    monkeypatch.setattr(subprocess, "Popen", starts)
    assert main(["start"], first) == 0
    assert codes == [1]
    assert "another job of this user's goes on" in capfd.readouterr().err


def test_readers_take_nothing_from_each_other_at_their_end(
    environment: dict[str, str], tmp_path: Path
) -> None:
    first, second = ({**environment, "RUNNER_TEMP": str(tmp_path / name)} for name in ("1", "2"))
    file = tmp_path / "nix" / "nix.conf"
    assert main(["start"], first) == 0
    assert main(["start"], second) == 0
    configured = file.read_text()
    assert main(["finish"], first) == 0
    assert file.read_text() == configured
    assert main(["finish"], second) == 0
    assert file.read_text() == ""


def test_a_private_cache_that_nobody_gave_the_job_a_credential_for_is_told(
    environment: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache.json").write_text(json.dumps({**CACHE, "access": "private"}))
    assert main(["start"], environment) == 0
    assert "its reader's credential, which is not the job's to set" in capfd.readouterr().err


def test_a_jobs_lines_have_all_that_every_text_has(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert main(["start"], environment) == 0
    lines = (tmp_path / "nix" / "nix.conf").read_text().splitlines()
    assert set(patience("{name} = {value}").splitlines()) < set(lines)


# Which job is whose.


@pytest.fixture
def plain(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment of a job that pushes, where no forge says which one it is."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    monkeypatch.setattr(ci_job, "_PATIENCE", 0.2)
    return {name: value for name, value in pushing.items() if name != "RUNNER_TEMP"}


def that_reads(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a job that has no builder and no secret."""
    kept = ("NIX_BINARY_CACHE_CONFIGURATION",)
    return {
        name: value
        for name, value in environment.items()
        if name in kept or not name.startswith("NIX_BINARY_CACHE_")
    }


def contents(directory: Path) -> dict[str, bytes]:
    """Return what a job's files hold, but for what its pusher is started with."""
    return {one.name: one.read_bytes() for one in directory.iterdir() if one.is_file()}


@contextlib.contextmanager
def going_on(directory: Path) -> Iterator[None]:
    """Hold a job's lock, as its pusher does."""
    with (directory / "log").open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("reads", [False, True])
def test_jobs_that_have_a_nix_conf_each_are_in_nobodys_way(
    plain: dict[str, str], tmp_path: Path, reads: bool
) -> None:
    first = {**plain, "XDG_CONFIG_HOME": str(tmp_path / "1")}
    second = {**plain, "XDG_CONFIG_HOME": str(tmp_path / "2")}
    second = that_reads(second) if reads else second
    assert main(["start"], first) == 0
    (directory,) = (tmp_path / "temporary").iterdir()
    before = contents(directory)
    with going_on(directory):
        assert main(["start"], second) == 0
        assert main(["finish"], second) == 0
        assert contents(directory) == before
    assert "post-build-hook" in (tmp_path / "1" / "nix" / "nix.conf").read_text()
    assert main(["finish"], first) == 0
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("paths", [[], ["/nix/store/of-a-stranger"]])
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_job_that_only_reads_takes_no_job_for_its_own(
    plain: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    goes_on: bool,
    paths: list[str],
) -> None:
    assert main(["start"], plain) == 0
    (directory,) = (tmp_path / "temporary").iterdir()
    (directory / "queue" / "path").symlink_to("/nix/store/path")
    file, push = tmp_path / "nix" / "nix.conf", Pushes(lambda: None)
    configured, before = file.read_text(), contents(directory)
    monkeypatch.setattr(subprocess, "Popen", push)
    with going_on(directory) if goes_on else contextlib.nullcontext():
        assert main(["start"], that_reads(plain)) == goes_on
        said = capfd.readouterr().err
        assert ("another job of this user's goes on, whose hook" in said) == goes_on
        assert (file.read_text() == configured) == goes_on
        assert main(["finish", *paths], that_reads(plain)) == (goes_on or bool(paths))
        # Where it was asked for nothing and started well, there is nothing to say.
        assert ("settings: " in capfd.readouterr().err) == (goes_on or bool(paths))
    assert push.calls == []
    assert contents(directory) == before
    assert len(list((directory / "queue").iterdir())) == 1
    assert file.read_text() == (configured if goes_on else "")
    # What took the lines of one that seemed to be over was told to nobody before.
    assert main(["finish"], plain) == (not goes_on)
    assert not directory.exists()


def test_a_job_that_another_finish_has_ended_does_not_end_well(
    plain: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["start"], plain) == 0
    (directory,) = (tmp_path / "temporary").iterdir()
    assert main(["finish"], plain) == 0
    assert capfd.readouterr().err == ""
    assert main(["finish"], plain) == 1
    said = capfd.readouterr().err
    assert f"nothing was started in '{directory}' that could push, or it is over; run fin" in said


def test_a_finish_with_another_place_for_temporary_files_says_where_its_job_goes_on(
    plain: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["start"], plain) == 0
    (directory,) = (tmp_path / "temporary").iterdir()
    configured = (tmp_path / "nix" / "nix.conf").read_text()
    (tmp_path / "nix-shell").mkdir()
    with going_on(directory), monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "nix-shell"))
        assert main(["finish"], plain) == 1
    said = capfd.readouterr().err
    assert f"a job goes on in '{directory}'; run finish with the variables that start had" in said
    assert (directory / "settings").exists()
    assert (tmp_path / "nix" / "nix.conf").read_text() == configured


@pytest.mark.parametrize("reads", [False, True])
def test_a_runner_that_has_one_job_at_a_time_ends_the_one_before(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    reads: bool,
) -> None:
    push = Pushes(lambda: None)
    monkeypatch.setattr(subprocess, "Popen", push)
    first = {**pushing, "GITHUB_RUN_ID": "20", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_JOB": "build"}
    assert main(["start"], first) == 0
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    (directory / "queue" / "path").symlink_to("/nix/store/path")
    second = {**first, "GITHUB_RUN_ATTEMPT": "2"}
    second = that_reads(second) if reads else second
    assert main(["start"], second) == 0
    assert "what it had queued waits for the next" in capfd.readouterr().err
    assert directory.exists() != reads
    assert not list(tmp_path.glob("nix-binary-cache-*/queue/*"))
    # An action's steps have what the forge says of the job, and the inputs of their own.
    assert main(["finish"], that_reads(second)) == 0
    assert not directory.exists()
    assert (push.calls == []) == reads


def test_a_place_for_temporary_files_that_is_not_there_has_its_own_remedy(
    pushing: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["start"], {**pushing, "RUNNER_TEMP": str(tmp_path / "none")}) == 1
    said = capfd.readouterr().err
    assert "cannot be made (No such file or directory); set RUNNER_TEMP to a directory" in said
    assert "finish" not in said


def test_a_home_without_a_name_is_a_place_in_each_directory(
    plain: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = {**plain, "HOME": ""}
    del nowhere["XDG_CONFIG_HOME"]
    for step in ("start", "finish"):
        assert main([step], nowhere) == 1
        said = capfd.readouterr().err
        assert "HOME is '', another place in each directory; write a whole path\n" in said


@pytest.mark.parametrize("paths", [[], ["result"]])
def test_a_job_whose_forge_gives_it_no_secrets_reads_and_ends_well(
    plain: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], paths: list[str]
) -> None:
    a_forks = {**that_reads(plain), "NIX_BINARY_CACHE_BUILDER": "ci"}
    empty = dict.fromkeys(("SECRET_ACCESS_KEY", "SESSION_TOKEN", "SIGNING_KEY"), "")
    a_forks |= {f"NIX_BINARY_CACHE_{name}": value for name, value in empty.items()}
    assert main(["start"], a_forks) == 0
    said = capfd.readouterr().err
    assert "SECRET_ACCESS_KEY and NIX_BINARY_CACHE_SIGNING_KEY are empty, as a forge " in said
    assert "extra-substituters = " in (tmp_path / "nix" / "nix.conf").read_text()
    assert not list((tmp_path / "temporary").iterdir())
    assert main(["finish", *paths], a_forks) == 0
    assert capfd.readouterr().err == ""
    assert (tmp_path / "nix" / "nix.conf").read_text() == ""
    # One of two is a name that was mistyped.
    for name in ("SECRET_ACCESS_KEY", "SIGNING_KEY"):
        one = {**plain, f"NIX_BINARY_CACHE_{name}": ""}
        assert main(["start"], one) == 1
        assert f"NIX_BINARY_CACHE_{name} is empty; give the job" in capfd.readouterr().err


# What was not pushed.


def test_what_a_job_could_not_push_is_pushed_by_the_next_one_with_that_cache(
    pushing: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    monkeypatch.setattr(ci_job, "STORE_DIR", str(tmp_path / "store"))
    names = [f"{letter * 32}-built" for letter in "0123"]
    for name in names[1:]:
        (tmp_path / "store" / name).mkdir(parents=True)
    week = 7 * 86_400

    def queued() -> list[str]:
        (directory,) = tmp_path.glob("nix-binary-cache-*")
        return sorted(link.name for link in (directory / "queue").iterdir())

    def starts(expected: list[str]) -> None:
        assert main(["start"], pushing) == 0
        assert queued() == expected

    starts([])
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    for name in names:
        (directory / "queue" / name).symlink_to(tmp_path / "store" / name)
    old = time.time() - week
    os.utime(directory / "queue" / names[1], (old, old), follow_symlinks=False)
    assert main(["finish"], pushing) == 0
    assert "queue: 4 paths are not pushed; this user's next job here " in capfd.readouterr().err
    (kept,) = (tmp_path / "nix").glob("nix-binary-cache-*-unpushed")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    before = kept.read_text()
    # What is not there any more is not, what has failed for days is not, nor is what is no name.
    kept.write_text(f"{before}x\n1 ../../etc\n{'9' * 5_000} {names[2]}\n")
    # Another cache's job takes none of it.
    cache = json.loads((tmp_path / "cache.json").read_text())
    other = {**cache, "push": {**cache["push"], "bucket": "another"}}
    (tmp_path / "cache.json").write_text(json.dumps(other))
    starts([])
    assert main(["finish"], pushing) == 0
    (tmp_path / "cache.json").write_text(json.dumps(cache))
    starts(names[2:])
    assert kept.read_text() == ""
    link = directory / "queue" / names[2]
    assert link.readlink() == tmp_path / "store" / names[2]
    # A job that is ended leaves it, as old as it was.
    os.utime(link, (time.time() - 60, int(time.time()) - 60), follow_symlinks=False)
    since = int(link.lstat().st_mtime)
    clock = Clock({})
    clock.time = time.time  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(ci_job, "time", clock)
        assert main(["run"], pushing) == 0
    assert f"{since} {names[2]}\n" in kept.read_text()
    starts(names[2:])
    assert int(link.lstat().st_mtime) == since


@pytest.mark.parametrize("whose", ["another user's", "everybody's", "a link"])
def test_names_that_others_could_have_written_are_not_pushed(
    pushing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Pushes(lambda: None))
    monkeypatch.setattr(ci_job, "STORE_DIR", str(tmp_path / "store"))
    name = f"{'0' * 32}-built"
    (tmp_path / "store" / name).mkdir(parents=True)
    assert main(["start"], pushing) == 0
    (directory,) = tmp_path.glob("nix-binary-cache-*")
    (directory / "queue" / name).symlink_to(tmp_path / "store" / name)
    assert main(["finish"], pushing) == 0
    (kept,) = (tmp_path / "nix").glob("nix-binary-cache-*-unpushed")
    if whose == "everybody's":
        kept.chmod(0o602)
    elif whose == "a link":
        kept.symlink_to(kept.rename(tmp_path / "theirs"))
    else:
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert main(["start"], pushing) == 0
    assert list((directory / "queue").iterdir()) == []
