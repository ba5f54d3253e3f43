"""The queue: what a build leaves, what a push takes out, and what neither may touch."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from push.failure import PushError
from push.post_build_hook import enqueue
from push.queue import Queue

OLD = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-old"
NEW = "/nix/store/1rw6q1lf4vk6x5cyxg1k9g1r0dzvnkmn-new+1.0_x?y=z"


def built(*paths: str) -> dict[str, str]:
    """Return what Nix tells the hook."""
    return {"OUT_PATHS": " ".join(paths), "DRV_PATH": f"{OLD}.drv"}


def test_each_path_that_was_built_waits_under_its_name(tmp_path: Path) -> None:
    assert enqueue(built(OLD, NEW), tmp_path) == []
    assert enqueue(built(NEW), tmp_path) == []
    assert {link.name: str(link.readlink()) for link in tmp_path.iterdir()} == {
        Path(path).name: path for path in (OLD, NEW)
    }
    assert sorted(Queue(tmp_path).targets) == sorted([OLD, NEW])


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/nix/store/../../x", f"{OLD}/bin", "/nix/store/.links", "*", "-rf", "\udcff"],
)
def test_what_is_no_store_path_leaves_nothing_and_holds_up_nothing(
    tmp_path: Path, path: str
) -> None:
    (complaint,) = enqueue(built(path, NEW), tmp_path)
    assert complaint == f"{path!a} is no store path, and not queued"
    assert [link.name for link in tmp_path.iterdir()] == [Path(NEW).name]


def test_a_build_without_outputs_and_a_missing_queue_are_survived(tmp_path: Path) -> None:
    assert enqueue({}, tmp_path) == []
    assert enqueue(built(OLD), tmp_path / "gone") == [
        f"{OLD} is not queued in {tmp_path}/gone (No such file or directory)"
    ]


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """The queue of a job of this user's."""
    path = tmp_path / "job" / "queue"
    path.parent.mkdir(mode=0o711)
    path.mkdir(mode=0o700)
    return path


def test_a_link_goes_into_the_queue_of_whose_it_is(queue: Path) -> None:
    assert enqueue(built(OLD), queue, os.getuid()) == []
    assert [link.name for link in queue.iterdir()] == [Path(OLD).name]


@pytest.mark.parametrize("others", ["queue", "job"])
@pytest.mark.parametrize("how", ["link", "writable", "whose"])
def test_nothing_is_written_where_others_decide_what_the_queue_is(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: str, how: str
) -> None:
    place = queue if others == "queue" else queue.parent
    reason = "Not a directory"
    if how == "link":
        theirs = place.rename(tmp_path / "theirs")
        place.symlink_to(theirs)
    elif how == "writable":
        place.chmod(place.stat().st_mode | stat.S_IWGRP)
        reason = "others can write to it"
    else:
        number, fstat = place.stat().st_ino, os.fstat

        def seen(descriptor: int) -> os.stat_result:
            found = fstat(descriptor)
            uid = os.getuid() + (found.st_ino == number)
            return os.stat_result((*found[:4], uid, *found[5:]))

        monkeypatch.setattr(os, "fstat", seen)
        reason = "it is another user's"
    complaints = enqueue(built(OLD), queue, os.getuid())
    assert complaints == [f"{OLD} is not queued in {queue} ({reason})"]
    assert list(queue.iterdir()) == []


def test_a_queue_below_gcroots_is_no_link_and_its_users_alone(queue: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(queue)
    assert enqueue(built(OLD), link) == [f"{OLD} is not queued in {link} (Not a directory)"]
    queue.chmod(0o757)
    (complaint,) = enqueue(built(OLD), queue)
    assert "(others can write to it)" in complaint
    assert list(queue.iterdir()) == []


def test_what_takes_the_queues_place_meanwhile_gets_no_link(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, fstat = tmp_path / "theirs", os.fstat
    theirs.mkdir()

    def and_then(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if found.st_ino == queue.stat().st_ino:
            queue.rename(tmp_path / "gone")
            queue.symlink_to(theirs)
        return found

    monkeypatch.setattr(os, "fstat", and_then)
    assert enqueue(built(OLD), queue, os.getuid()) == []
    assert list(theirs.iterdir()) == []
    assert len(list((tmp_path / "gone").iterdir())) == 1


@pytest.mark.parametrize("standard_error", ["closed", "full"])
def test_a_build_never_fails_for_its_hook(standard_error: str) -> None:
    where = {"closed": "2>&-", "full": "2>/dev/full"}[standard_error]
    hook = "import pathlib, push.post_build_hook as hook; hook.main(pathlib.Path('/nowhere'))"
    ran = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {where}', sys.executable, hook],
        env={"OUT_PATHS": f"{OLD} /etc/passwd", "PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
    )
    assert ran.returncode == 0


def test_the_oldest_waits_no_longer_than_the_others(tmp_path: Path) -> None:
    for age, path in ((1, NEW), (2, OLD)):
        enqueue(built(path), tmp_path)
        link = tmp_path / Path(path).name
        os.utime(link, (2_000_000_000 - age, 2_000_000_000 - age), follow_symlinks=False)
    assert Queue(tmp_path).targets == [OLD, NEW]


def test_only_links_to_what_was_pushed_are_removed(tmp_path: Path) -> None:
    enqueue(built(OLD, NEW), tmp_path)
    (tmp_path / "another").symlink_to(OLD)
    (tmp_path / "relative").symlink_to("../elsewhere")
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    queue = Queue(tmp_path)
    assert set(queue.targets) == {OLD, NEW, f"{tmp_path}/../elsewhere"}
    queue.remove([OLD])
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {Path(NEW).name, "relative", "file", "directory"}


def test_what_is_no_link_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (failure,) = Queue(tmp_path).strange.values()
    assert str(failure) == f"list: '{tmp_path}/file' is no link; move it out of the queue"


def test_a_queue_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(PushError, match=r"--queue '.*/gone' cannot be read \(No such file"):
        Queue(tmp_path / "gone")
