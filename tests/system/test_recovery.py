"""An `up` that is killed at any point is brought to its end as docs/recovery.md says."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import StackFactory, server_settings
from tests.system.preloaded_python.environment import forks
from tests.system.stack import Stack
from tests.system.test_cache import s3
from toolbox.minio_server import MinioServer


@dataclass(frozen=True)
class Point:
    """When an `up` is killed: so many seconds after it has printed so many lines."""

    lines: int
    seconds: float


SEED = 20
CHANCE = random.Random(SEED)
POINTS = [
    [Point(CHANCE.randrange(1, most), CHANCE.uniform(0, 0.03)) for most in (28, 9)]
    for _ in range(10)
]
"""Twenty: in a first `up`, which prints some 45 lines, and in one that changes a stack.

They end well before the `up` does, however fast its plugins are.
"""


def processes_of(session: int) -> list[int]:
    """Return the processes of a session: the engine, its language host and its plugins."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # proc(5): after the command come state, parent, process group and session.
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def kill_at(stack: Stack, point: Point) -> bool:
    """Run `pulumi up` and kill all of it at once at the point; return whether it still ran."""
    process = subprocess.Popen(
        ["pulumi", "--non-interactive", "up", "--yes", "--skip-preview", "-s", stack.name],
        cwd=stack.project,
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    for _ in range(point.lines):
        process.stdout.readline()
    with suppress(subprocess.TimeoutExpired):
        process.wait(point.seconds)
    interrupted = process.poll() is None
    while running := [*processes_of(process.pid), *forks(stack.environment)]:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
    process.stdout.close()
    process.wait()
    return interrupted


def recover(stack: Stack) -> None:
    """The commands of docs/recovery.md, and no look at the state."""
    settings = stack.settings_file.read_text()
    repaired = stack.operate("repair", "--stack", stack.name, "--yes", "--skip-preview")
    if "pulumi cancel" in repaired.output:
        assert repaired.code == 2
        stack.run("cancel", "--yes", stack.name).succeeded()
        repaired = stack.operate("repair", "--stack", stack.name, "--yes", "--skip-preview")
    repaired.succeeded()
    assert stack.settings_file.read_text() == settings


def assert_whole(stack: Stack) -> None:
    """Fail the test unless nothing is left to do, on the server as in the state."""
    stack.preview("--refresh", "--expect-no-changes").succeeded()


@pytest.mark.parametrize("number", range(len(POINTS)))
def test_an_up_killed_at_any_point_is_brought_to_its_end(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path, number: int
) -> None:
    first, second = POINTS[number]
    stack = new_stack(f"killed-{number}", **server_settings(minio))
    here = {"name": "here", "local": True, "credentialsDirectory": str(tmp_path / "credential")}
    stack.set(bucket=stack.name, builders=[here, {"name": "before", "local": True}])
    assert kill_at(stack, first)
    recover(stack)
    keys = stack.outputs()["publicKeys"]

    # The same again while a running stack changes: resources come, change and go.
    stack.set(priority=30, retentionDays=14, builders=[here, {"name": "after", "local": True}])
    assert kill_at(stack, second)
    recover(stack)
    assert_whole(stack)
    outputs = stack.outputs()
    assert outputs["publicKeys"] == keys
    assert set(outputs["builders"]) == {"here", "after"}


def test_a_state_file_whose_attributes_were_cut_off_is_readable_again(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="cut-off")
    stack.up().succeeded()
    state = Path(stack.environment["PULUMI_BACKEND_URL"].removeprefix("file://"))
    (attributes,) = state.rglob(f"stacks/**/{stack.name}.json.attrs")
    attributes.write_bytes(b"")
    assert "EOF" in stack.up().refused()
    recover(stack)
    assert_whole(stack)


def test_an_old_state_catches_up_with_what_was_deployed_since(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="old-state")
    stack.set(builders=[{"name": "before", "local": True}])
    stack.up().succeeded()
    backup = stack.export()
    key = stack.outputs()["signingKeyBackup"]
    stack.set(priority=30, retentionDays=14, builders=[{"name": "after", "local": True}])
    stack.up().succeeded()

    stack.run("stack", "import", "-s", stack.name, text=backup).succeeded()
    recover(stack)
    assert_whole(stack)
    assert stack.outputs()["signingKeyBackup"] == key
    assert set(stack.outputs()["builders"]) == {"after"}


def test_an_old_state_from_before_the_bucket_had_another_name_takes_over_the_one_of_now(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="before")
    stack.set(builders=[{"name": "here", "local": True}])
    stack.up().succeeded()
    backup = stack.export()
    key = stack.outputs()["signingKeyBackup"]
    stack.set(bucket="since")
    stack.up().succeeded()
    server = s3(minio, minio.root_user, minio.root_password)
    server.put_object("since", "nar/1", io.BytesIO(b"x"), 1)

    stack.run("stack", "import", "-s", stack.name, text=backup).succeeded()
    repair = ("repair", "--stack", stack.name, "--yes", "--skip-preview")
    assert "set adoptBucket to true to take it over" in stack.operate(*repair).refused()
    stack.set(adoptBucket=True)
    recover(stack)
    assert_whole(stack)
    stack.set(adoptBucket=None)
    assert_whole(stack)
    assert not server.bucket_exists("before")
    assert server.stat_object("since", "nar/1")
    assert stack.outputs()["signingKeyBackup"] == key

    # Nothing of the adoption is left that holds a name of its own.
    server.remove_object("since", "nar/1")
    stack.set(bucket="later")
    stack.up().succeeded()
    assert not server.bucket_exists("since")


def test_a_lost_state_is_made_again_from_the_settings_and_the_secrets_kept(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    settings = {
        **server_settings(minio),
        "bucket": "lost-state",
        "builders": [{"name": "here", "local": True}],
    }
    lost = new_stack("lost", **settings)
    lost.up().succeeded()
    kept = lost.outputs()
    access = kept["builders"]["here"]

    stack = new_stack("again", **settings)
    stack.set(
        adoptBucket=True,
        adoptedSigningKeys=kept["signingKeyBackup"],
        adoptedUserSecrets=f"{access['accessKeyId']}:{access['secretAccessKey']}",
    )
    stack.up().succeeded()
    assert_whole(stack)
    again = stack.outputs()
    assert again["publicKeys"] == kept["publicKeys"]
    assert again["builders"] == kept["builders"]
