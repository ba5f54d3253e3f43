"""An `up` that is killed at any point is brought to its end as docs/recovery.md says."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from program.checks.recorded import BUCKET, LIFECYCLE
from tests.plugins.ssh_server import SshServer
from tests.system.conftest import StackFactory, server_settings
from tests.system.fault_proxy import Request, fault_proxy
from tests.system.minio_client import MinioClient
from tests.system.preloaded_python.environment import forks
from tests.system.stack import Outcome, Stack
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


def start(stack: Stack) -> subprocess.Popen[bytes]:
    """Start `pulumi up`, in a session of its own."""
    return subprocess.Popen(
        ["pulumi", "--non-interactive", "up", "--yes", "--skip-preview", "-s", stack.name],
        cwd=stack.project,
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_at(stack: Stack, point: Point) -> bool:
    """Run `pulumi up` and kill all of it at once at the point; return whether it still ran."""
    process = start(stack)
    assert process.stdout is not None
    for _ in range(point.lines):
        process.stdout.readline()
    with suppress(subprocess.TimeoutExpired):
        process.wait(point.seconds)
    interrupted = process.poll() is None
    kill(stack, process)
    return interrupted


def kill(stack: Stack, process: subprocess.Popen[bytes]) -> None:
    """Kill a `pulumi up`, plugins and all."""
    while running := [*processes_of(process.pid), *forks(stack.environment)]:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


class Door:
    """Holds the answers to the requests that make a thing, once it is made."""

    def __init__(self) -> None:
        self.request = ""
        """Method and beginning of the path; empty where none is held."""
        self.made, self.open = Event(), Event()

    def hold(self, request: Request, body: bytes) -> bytes:
        if self.request and f"{request.method} {request.path}".startswith(self.request):
            self.made.set()
            self.open.wait(60)
        return body

    def kill_behind(self, stack: Stack, request: str) -> None:
        """Run `pulumi up` and kill it once the server has done what it asks and none has heard."""
        self.request = request
        self.made.clear()
        self.open.clear()
        process = start(stack)
        try:
            assert self.made.wait(60)
            wait_until_written(stack)
        finally:
            self.request = ""
            kill(stack, process)
            self.open.set()
        stack.run("cancel", "--yes", stack.name)
        assert being_made(stack)


@contextmanager
def behind_a_door(server: MinioServer) -> Iterator[tuple[Door, dict[str, object]]]:
    """Yield a door and the settings that lead through it to the server."""
    door = Door()
    with fault_proxy(server, change=door.hold) as proxy:
        try:
            settings = {**server_settings(server), "endpoint": proxy.url}
            yield door, {**settings, "caCertificateFile": None}
        finally:
            door.open.set()


def wait_until_written(stack: Stack) -> None:
    """Wait until an `up` that waits for one answer has written down all else that it did."""
    directory = Path(stack.environment["PULUMI_BACKEND_URL"].removeprefix("file://"))
    seen, since = "", time.monotonic()
    while time.monotonic() < since + 1:
        with suppress(FileNotFoundError):
            now = "".join(
                file.read_text() for file in directory.rglob(f"stacks/**/{stack.name}.json*")
            )
            if now != seen:
                seen, since = now, time.monotonic()
        time.sleep(0.05)


def being_made(stack: Stack) -> list[str]:
    """Return the names of what the state says is being made."""
    pending = json.loads(stack.export())["deployment"].get("pending_operations", [])
    return [operation["resource"]["urn"].rpartition("::")[2] for operation in pending]


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


def repair(stack: Stack, *arguments: str) -> Outcome:
    """Repair, and see that the settings are those of before, to the letter."""
    settings = stack.settings_file.read_bytes()
    repaired = stack.operate("repair", "--stack", stack.name, *arguments)
    assert stack.settings_file.read_bytes() == settings
    return repaired


def test_no_bucket_but_the_one_that_was_being_made_is_taken_over(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    client = MinioClient(minio, tmp_path)
    client.run("mb s3/theirs")
    with behind_a_door(minio) as (door, settings):
        stack = new_stack(**settings, bucket="mistyped")
        door.kill_behind(stack, "PUT /mistyped")
        stack.set(bucket="theirs")
        repaired = repair(stack, "--yes", "--skip-preview")
        assert "a bucket of that name, which is not this stack's" in repaired.refused()
        assert json.loads(client.run("anonymous get-json s3/theirs")) == {}
        assert client.run("--json ls s3/theirs") == ""

        stack.set(bucket="right")
        repaired = repair(stack, "--yes", "--skip-preview").succeeded()
        told = "where it is nobody's, mc rb s3/mistyped"
        assert (
            f"bucket mistyped may be left by an up that was interrupted, or somebody else's; {told}"
            in (repaired.output)
        )
        client.run("rb s3/mistyped")
        assert being_made(stack) == []
        assert_whole(stack)


def test_a_bucket_is_taken_over_by_a_later_repair_where_the_first_one_fails(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    with behind_a_door(minio) as (door, settings):
        stack = new_stack(**settings, bucket="twice")
        door.kill_behind(stack, "PUT /twice")
        # Nobody is there to say yes.
        assert "--yes" in repair(stack).refused()
        assert "which is not this stack's" in stack.up().refused()
        repair(stack, "--yes", "--skip-preview").succeeded()
        assert being_made(stack) == []
        assert_whole(stack)


def test_users_that_were_being_made_and_are_wanted_no_more_are_removed(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    client = MinioClient(minio, tmp_path)
    here, late = ({"name": name, "local": True} for name in ("here", "late"))
    with behind_a_door(minio) as (door, settings):
        stack = new_stack(**settings, bucket="orphans", builders=[here])
        stack.up().succeeded()
        for user, edit, undone in (
            ("orphans-late", {"builders": [here, late]}, {"builders": [here]}),
            ("orphans-reader", {"access": "private"}, {"access": "public"}),
        ):
            stack.set(edit)
            door.kill_behind(stack, f"PUT /minio/admin/v3/add-user?accessKey={user}")
            assert user in client.run("admin user list s3")
            stack.set(undone)
            told = repair(stack, "--yes", "--skip-preview").succeeded().output
            assert f"user {user} was left by an up that was interrupted: removed" in told
            assert user not in client.run("admin user list s3")
            assert being_made(stack) == []
            # It can be made again.
            stack.set(edit)
            stack.up().succeeded()
            stack.set(undone)
            stack.up().succeeded()
        stack.set(access="private")
        door.kill_behind(stack, "PUT /minio/admin/v3/add-canned-policy?name=orphans-reader")
        stack.set(access="public")
        told = repair(stack, "--yes", "--skip-preview").succeeded().output
        assert "policy orphans-reader was left by an up that was interrupted: removed" in told
        assert "orphans-reader" not in client.run("admin policy list s3")

        # Somebody has given them something meanwhile.
        stack.set(builders=[here, late])
        door.kill_behind(stack, "PUT /minio/admin/v3/add-user?accessKey=orphans-late")
        client.run("admin policy attach s3 readwrite --user orphans-late")
        stack.set(builders=[here])
        told = repair(stack, "--yes", "--skip-preview").succeeded().output
        advice = "where it is nobody's, mc admin user remove s3 orphans-late"
        assert advice in told
        client.run("admin user remove s3 orphans-late")
        stack.set(access="private")
        door.kill_behind(stack, "PUT /minio/admin/v3/add-canned-policy?name=orphans-reader")
        client.run("admin policy attach s3 orphans-reader --user orphans-here")
        stack.set(access="public")
        told = repair(stack, "--yes", "--skip-preview").succeeded().output
        advice = "where it is nobody's, mc admin policy remove s3 orphans-reader"
        assert advice in told
        client.run("admin policy detach s3 orphans-reader --user orphans-here")
        client.run("admin policy remove s3 orphans-reader")
        assert_whole(stack)


def test_a_first_up_that_failed_is_what_a_push_tells_to_run_again(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="first-failed")
    gone = f"/nix/store/{'0' * 32}-gone"
    stack.set(builders=[{"name": "here", "local": True, "closures": [gone]}])
    stack.up().refused()
    told = stack.operate("push", "--stack", stack.name)
    assert "run pulumi up, which pushes, too, or says what keeps it" in told.refused()
    stack.set(builders=[{"name": "here", "local": True}])
    stack.up().succeeded()
    assert_whole(stack)


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


def test_a_bucket_that_a_refresh_has_forgotten_is_taken_back_by_a_repair_alone(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="forgotten")
    stack.set(builders=[{"name": "here", "local": True}])
    stack.up().succeeded()
    server = s3(minio, minio.root_user, minio.root_password)
    server.put_object("forgotten", "nar/1", io.BytesIO(b"x"), 1)
    # What the official provider makes of a refresh that the server refuses.
    exported = json.loads(stack.export())
    forgotten = [
        one["urn"]
        for one in exported["deployment"]["resources"]
        if one["type"] in (BUCKET, LIFECYCLE)
    ]
    for one in exported["deployment"]["resources"]:
        depends = {*one.get("dependencies", ())} - {*forgotten}
        one["dependencies"] = sorted(depends)
        for name, urns in one.get("propertyDependencies", {}).items():
            one["propertyDependencies"][name] = [urn for urn in urns if urn not in forgotten]
    exported["deployment"]["resources"] = [
        one for one in exported["deployment"]["resources"] if one["urn"] not in forgotten
    ]
    stack.run("stack", "import", "-s", stack.name, text=json.dumps(exported)).succeeded()

    refused = stack.up().refused()
    assert "a refresh that the server did not answer has forgotten it" in refused
    assert "make repair STACK=test takes it back with all it holds" in refused
    recover(stack)
    assert_whole(stack)
    assert server.stat_object("forgotten", "nar/1")


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


def test_files_of_a_builder_are_placed_anew_where_they_are_gone_or_of_another_state(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    directory = tmp_path / "credential"
    here = {"name": "here", "local": True, "credentialsDirectory": str(directory)}
    stack = new_stack(**server_settings(minio), bucket="files", builders=[here])
    stack.up().succeeded()
    backup = stack.export()
    placed = {file.name: file.read_text() for file in directory.iterdir()}
    # The builder is installed anew.
    shutil.rmtree(directory)
    recover(stack)
    assert {file.name: file.read_text() for file in directory.iterdir()} == placed
    shutil.rmtree(directory)
    told = stack.operate("push", "--stack", stack.name, "here").succeeded().output
    assert "here: its credential files are placed anew" in told
    assert {file.name: file.read_text() for file in directory.iterdir()} == placed

    # Its user is made anew, and then an old state has the secret of before.
    stack.set(builders=[])
    stack.up().succeeded()
    stack.set(builders=[here])
    stack.up().succeeded()
    assert (directory / "secret-access-key").read_text() != placed["secret-access-key"]
    stack.run("stack", "import", "-s", stack.name, text=backup).succeeded()
    recover(stack)
    assert {file.name: file.read_text() for file in directory.iterdir()} == placed
    assert_whole(stack)


def test_a_builder_that_sleeps_keeps_nothing_else_from_being_put_right(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    client = MinioClient(minio, tmp_path)
    directory = tmp_path / "credentials" / "asleep"
    stack = new_stack(**server_settings(minio), bucket="asleep")
    with SshServer() as ssh:
        asleep = {"name": "asleep", "host": "127.0.0.1", "port": ssh.port, "hostKey": ssh.host_key}
        stack.set(sshPrivateKey=ssh.private_key)
        stack.set(builders=[{**asleep, "credentialsDirectory": str(directory)}])
        stack.up().succeeded()
    client.run("admin user remove s3 asleep-asleep")
    client.run("anonymous set none s3/asleep")
    repaired = repair(stack, "--yes", "--skip-preview")
    assert repaired.code == 2
    assert "make push STACK=test BUILDER=NAME places them" in repaired.output
    assert "asleep-asleep" in client.run("admin user list s3")
    assert_whole(stack)


def test_an_old_state_gets_the_keys_that_were_added_since_and_no_others(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="old-keys")
    stack.up().succeeded()
    backup = stack.export()
    names = ["cache.test-1", "cache.test-2"]
    stack.set(signingKeys=names)
    stack.up().succeeded()
    both = stack.outputs()
    stack.run("stack", "import", "-s", stack.name, text=backup).succeeded()
    repair = ("repair", "--stack", stack.name, "--yes", "--skip-preview")
    refused = stack.operate(*repair).refused()
    assert "the page of the bucket old-keys names another key of the name cache.test-2" in refused
    assert "give that key in adoptedSigningKeys, or write cache.test-3 in its" in refused
    stack.set(adoptedSigningKeys=both["signingKeyBackup"])
    stack.operate(*repair).succeeded()
    assert stack.outputs()["signingKeyBackup"] == both["signingKeyBackup"]

    # And where the older one has been retired meanwhile.
    stack.set(signingKeys=names[1:], adoptedSigningKeys=None)
    stack.up().succeeded()
    stack.run("stack", "import", "-s", stack.name, text=backup).succeeded()
    stack.set(adoptedSigningKeys=both["signingKeyBackup"].splitlines()[1])
    recover(stack)
    assert_whole(stack)
    assert stack.outputs()["publicKeys"] == both["publicKeys"][1:]


def test_a_lost_state_is_made_again_from_the_settings_and_the_secrets_kept(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    settings = {
        **server_settings(minio),
        "bucket": "lost-state",
        "access": "private",
        "builders": [{"name": "here", "local": True}],
    }
    lost = new_stack("lost", **settings)
    lost.up().succeeded()
    kept = lost.outputs()
    access = kept["builders"]["here"]
    reader = re.search(
        r"aws_access_key_id *= *(\S+)\naws_secret_access_key *= *(\S+)", kept["readerCredentials"]
    )
    assert reader

    stack = new_stack("again", **settings)
    stack.set(
        adoptBucket=True,
        adoptedSigningKeys=kept["signingKeyBackup"],
        adoptedUserSecrets=f"{access['accessKeyId']}:{access['secretAccessKey']}\n"
        f"{reader[1]}:{reader[2]}",
    )
    stack.up().succeeded()
    assert_whole(stack)
    again = stack.outputs()
    assert again["publicKeys"] == kept["publicKeys"]
    assert again["builders"] == kept["builders"]
    assert again["readerCredentials"] == kept["readerCredentials"]
