"""What pushes tell of themselves: at each end, and at nobody's cost."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from formats.push_status import Lease, PushStatus, parse_status
from formats.signing import SecretKey
from push import VERSION
from push.status import started_by
from tests.unit.configuration import PROJECT_ROOT
from tests.unit.push.client import SIGNING_KEY
from tests.unit.push.paths import store_path
from tests.unit.push.s3_stand_in import NOW, Reply, StandIn, error
from tests.unit.push.test_pushes import Machine, only
from tests.unit.push.test_pushes import machine as machine  # noqa: PLC0414

KEY = "_nixcache/status/builder"
LEAF = store_path("leaf", size=300)
TOP = store_path("top", 500, LEAF)
OTHER = store_path("other", size=70)


@pytest.fixture
def builder(machine: Machine) -> Machine:
    machine.has(LEAF, TOP, OTHER)
    return machine


def left(server: StandIn) -> PushStatus:
    return parse_status(server.objects[KEY].content)


def test_a_push_tells_what_it_came_to(builder: Machine) -> None:
    builder.push(TOP).counts()
    first = left(builder.server)
    assert (first.own, first.own_bytes, first.pushed, first.pushed_bytes) == (2, 800, 2, 800)
    assert (first.nix, first.program, first.failures, first.kept_all) == (
        "2.34.8",
        VERSION,
        0,
        True,
    )
    builder.server.now += timedelta(days=1)
    builder.push(TOP).counts()
    second = left(builder.server)
    assert (second.own, second.pushed, second.renewed) == (2, 0, 2)
    told = builder.server.objects[KEY].content
    assert len(told) < 1000
    assert second.signed_by == str(SecretKey.parse(SIGNING_KEY).public_key)
    secret_half = SIGNING_KEY.partition(":")[2].encode()
    for secret in (b"a secret", *(secret_half[at : at + 10] for at in range(0, 80, 10))):
        assert secret not in told


def test_the_version_is_the_projects() -> None:
    declared = re.search(
        r'^version = "(.+)"$', (PROJECT_ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert declared is not None
    assert declared[1] == VERSION


def test_one_that_fails_tells_that_and_what_the_last_one_kept_that_did_not(
    builder: Machine,
) -> None:
    builder.push(TOP).counts()
    kept = Lease(NOW, 2, 800)
    builder.server.now += timedelta(days=1)
    for _ in range(2):
        assert builder.push(TOP, "/nix/store/none").code == 1
        told = left(builder.server)
        assert (told.failures, told.kept_all, told.before) == (1, False, kept)
    # One that nothing more could be done for: all narinfos are refused.
    builder.server.objects = {KEY: builder.server.objects[KEY]}
    builder.forget()
    refusal = error(403, "InvalidAccessKeyId")
    builder.server.script = only(lambda key: key.startswith("nar/"), refusal)
    assert builder.push(TOP).refused()
    told = left(builder.server)
    assert (told.failures, told.own, told.before) == (1, 0, kept)


def test_what_was_there_before_is_believed_only_where_it_is_a_status(builder: Machine) -> None:
    for content in (b"", b"x" * 10_000, b'{"before": {}}'):
        builder.server.put(KEY, content)
        assert builder.push(TOP, "/nix/store/none").code == 1
        assert left(builder.server).before is None


def test_a_queue_says_nothing_of_the_rest(builder: Machine, tmp_path: Path) -> None:
    builder.push(TOP).counts()
    queue = tmp_path / "queue"
    queue.mkdir()
    (queue / "other").symlink_to(OTHER.path)
    builder.push(options=["--queue", str(queue)]).counts()
    told = left(builder.server)
    assert (told.started_by, told.own, told.before) == ("queue", 1, Lease(NOW, 2, 800))
    # Nothing waits: nothing is told.
    builder.server.seen.clear()
    assert builder.push(options=["--queue", str(queue)]).code == 0
    assert builder.server.seen == []


def test_a_stream_of_paths_is_told_at_its_end_too(
    builder: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "lines"
    lines.write_text(f"{OTHER.path}\n{TOP.path}\n")
    with lines.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert builder.push(options=["--stdin"]).code == 0
    told = left(builder.server)
    assert (told.started_by, told.own, told.pushed) == ("stdin", 3, 3)


def test_a_dry_run_tells_nothing(builder: Machine) -> None:
    builder.push(TOP, options=["--dry-run"]).counts()
    assert builder.server.objects == {}


def test_where_it_may_not_be_written_one_line_says_so_and_the_push_has_succeeded(
    builder: Machine,
) -> None:
    builder.server.script = only(lambda key: key == KEY, error(403, "AccessDenied"))
    pushed = builder.push(TOP)
    assert pushed.counts() == (2, 0, 0, 0, 0)
    (line,) = [line for line in pushed.log.splitlines() if "status" in line]
    assert line == (
        "push: status: what this push came to is not told: the server does not let builder write "
        f"{KEY}; run pulumi up --refresh --run-program to give builders that right"
    )


def test_a_server_that_went_does_not_hold_it_up(
    builder: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("push.status._PATIENCE_SECONDS", 0.2)
    builder.server.script = only(lambda key: key == KEY, Reply(503))
    pushed = builder.push(TOP)
    assert pushed.counts() == (2, 0, 0, 0, 0)
    assert "the server did not answer in time" in pushed.log


def test_a_short_lived_credential_leaves_nothing_that_would_outlive_it(builder: Machine) -> None:
    builder.push(TOP, session_token="a-token").counts()
    assert KEY not in builder.server.objects


def test_a_user_whose_name_would_be_no_key_tells_nothing(builder: Machine) -> None:
    builder.push(TOP, access_key_id="a/../b").counts()
    assert not [key for key in builder.server.objects if key.startswith("_nixcache/")]


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, {}, "command"),
        ({"CI": "true", "INVOCATION_ID": "x"}, {}, "ci"),
        ({"INVOCATION_ID": "x"}, {}, "service"),
        ({"INVOCATION_ID": "x", "TRIGGER_UNIT": "a.timer", "TRIGGER_TIMER_REALTIME_USEC": "1"}, {},
         "timer"),
        ({"INVOCATION_ID": "x", "TRIGGER_PATH": "/nix"}, {}, "path"),
        ({"INVOCATION_ID": "x", "TRIGGER_PATH": "/nix"}, {"queue": True}, "queue"),
        ({}, {"stdin": True}, "stdin"),
        ({"CI": "true"}, {"deployed": True}, "deployment"),
    ],
)  # fmt: skip
def test_it_tells_what_started_it(
    environment: Mapping[str, str], flags: Mapping[str, bool], expected: str
) -> None:
    chosen = {"deployed": False, "queue": False, "stdin": False, **flags}
    assert started_by(environment, **chosen) == expected
