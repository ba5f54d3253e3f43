"""Background processes: none outlives its parent unless asked to, none is mistaken for another."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from toolbox import processes
from toolbox.errors import ToolboxError
from toolbox.processes import Process

PARENT = """\
import sys, pathlib
from toolbox.processes import start
popen, process = start(
    ["sleep", "600"], log=pathlib.Path(sys.argv[1]), port=1, detached=sys.argv[2] == "detached"
)
process.write(pathlib.Path(sys.argv[3]))
"""


def started_by_a_parent_that_went(tmp_path: Path, kind: str) -> Process:
    record = tmp_path / "record"
    subprocess.run(
        [sys.executable, "-c", PARENT, str(tmp_path / "log"), kind, str(record)],
        check=True,
        cwd=Path(__file__).parents[3],
    )
    process = processes.recorded(record)
    assert process is not None
    return process


def test_a_process_dies_with_its_parent(tmp_path: Path) -> None:
    process = started_by_a_parent_that_went(tmp_path, "attached")
    assert processes.wait_until(lambda: not process.alive(), 10)


def test_a_detached_process_outlives_its_parent_until_it_is_killed(tmp_path: Path) -> None:
    process = started_by_a_parent_that_went(tmp_path, "detached")
    try:
        assert process.alive()
    finally:
        process.kill()
    assert not process.alive()


def test_a_process_that_got_the_recorded_number_later_is_left_alone() -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        began = processes.started(other.pid)
        assert began is not None
        earlier = replace(Process(other.pid, began, 1), started=began - 1)
        earlier.kill()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("text", ["", "{}", '{"pid": 1}', "[]"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "record").write_text(text)
    assert processes.recorded(tmp_path / "record") is None


def test_a_process_that_ends_instead_of_listening_is_noticed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    popen, _ = processes.start(["false"], log=log, port=1, detached=False)
    assert processes.wait_for_listener(popen, lambda: False, log, "the server") is False


def test_a_process_that_never_listens_is_ended_with_the_last_of_its_log(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    popen, process = processes.start(
        ["sh", "-c", "echo disk full; exec sleep 600"], log=log, port=1, detached=False
    )
    assert processes.wait_until(lambda: log.read_text() == "disk full\n", 10)
    with pytest.raises(ToolboxError, match=r"(?s)the server did not answer.*disk full"):
        processes.wait_for_listener(popen, lambda: False, log, "the server", 0.2)
    assert not process.alive()


def test_this_process_counts_as_running() -> None:
    began = processes.started(os.getpid())
    assert began is not None
    assert Process(os.getpid(), began, 1).alive()
