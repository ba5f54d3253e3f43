"""What a status asks of a server: one listing, and nothing of any entry."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from components.retention import expiration_rules
from formats.keys import PublicKey
from formats.pin import format_pin, pin_key
from formats.s3 import ListedObject
from formats.signing import SecretKey
from operations import status
from operations.output_file import write_whole
from operations.pulumi_cli import OperationError
from operations.report_page import report_page
from operations.status import signers, status_of
from operations.status_text import as_prometheus, screen
from program.checks.recorded import (
    COMMANDS,
    LIFECYCLE,
    RETENTION_OUTPUT,
    SIGNING_KEY,
    STACK,
    Recorded,
)
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from tests.unit.operations.test_audit import NOWHERE, stack
from tests.unit.push.s3_stand_in import BUCKET, Raw, Reply, StandIn, error, serving

CHECKOUT = Path(__file__).parents[3]
NOW = datetime.now(timezone.utc)
NO_STATE = Recorded({})


@dataclass
class FakeServer:
    """A server of ten thousand entries."""

    asked: list[str] = field(default_factory=list)

    def listing(self, bucket: str) -> Iterator[ListedObject]:
        self.asked.append(f"list {bucket}")
        keys = [f"{number:032}.narinfo" for number in range(10_000)]
        keys += ["_nixcache/status/one", "_nixcache/status/former", pin_key("live")]
        for key in keys:
            yield ListedObject(key, 100, "etag", NOW)

    def read(self, _: str, key: str, most: int) -> bytes | None:
        self.asked.append(f"read {key}")
        return format_pin([]).encode()[:most] if key == pin_key("live") else None


def test_ten_thousand_entries_are_one_listing_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = FakeServer()
    monkeypatch.setattr(status, "server_of", lambda _: server)
    key = PublicKey("cache.test-1", bytes(32))
    builders = {"a": "one", "b": "two"}
    found = status_of(replace(stack(), builders=builders, public_keys=(key,)), NO_STATE, "status")
    assert (found.entries, found.former) == (10_000, ("former",))
    assert (found.keys, found.public_keys) == (("cache.test-1",), (str(key),))
    assert sorted(server.asked) == sorted(
        ["list nix-cache", "read _nixcache/status/one", f"read {pin_key('live')}"]
    )


def deployed(retention_days: int | None, grace_days: int = 1) -> Recorded:
    """Return the state of a stack that was deployed with these settings."""
    words = "Entries never expire." if retention_days is None else "An entry expires."
    resources = {"urn:stack": {"type": STACK, "outputs": {RETENTION_OUTPUT: words}}}
    if retention_days is not None:
        rules = [
            {"id": rule.id, "filter": rule.prefix, "expiration": f"{rule.days}d"}
            for rule in expiration_rules(retention_days, grace_days)
        ]
        for bucket, of_it in (("another", []), ("nix-cache", rules)):
            outputs = {"bucket": bucket, "rules": of_it}
            resources[f"urn:{bucket}"] = {"type": LIFECYCLE, "outputs": outputs}
    return Recorded(resources)


@pytest.mark.parametrize(
    ("settings", "state", "days", "notice"),
    [
        ({}, deployed(7), 7, None),
        ({}, NO_STATE, 7, None),
        (
            {"retentionDays": 30},
            deployed(7),
            7,
            "retentionDays is 30 in the settings and not deployed; entries live for 7 days",
        ),
        (
            {"retentionDays": 3},
            deployed(1),
            1,
            "retentionDays is 3 in the settings and not deployed; entries live for 1 day",
        ),
        (
            {"expire": "false"},
            deployed(7),
            7,
            "expire is false in the settings and not deployed; entries live for 7 days",
        ),
        (
            {},
            deployed(None),
            None,
            "expire is true in the settings and not deployed; nothing expires",
        ),
        ({"expire": "false"}, deployed(None), None, None),
        (
            {"graceDays": 3},
            deployed(7, 2),
            7,
            "graceDays is 3 in the settings and not deployed; NARs outlive their entries by 2 days",
        ),
        ({"expiresAtMidnight": "false"}, deployed(8), 7, None),
        (
            {"expiresAtMidnight": "false", "retentionDays": 9},
            deployed(8),
            7,
            "retentionDays is 9 in the settings and not deployed; entries live for 7 days",
        ),
    ],
)
def test_what_expires_when_is_told_by_what_is_deployed_and_not_by_what_is_only_set(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    state: Recorded,
    days: int | None,
    notice: str | None,
) -> None:
    monkeypatch.setattr(status, "server_of", lambda _: FakeServer())
    found = status_of(stack(**settings), state, "status")
    assert found.rules.retention_days == days
    assert found.notices == ([] if notice is None else [notice])
    assert found.findings == []
    shown = screen(found)
    assert ("nothing, ever" in shown) is (days is None)
    assert notice is None or shown.endswith(f"\n- {notice}")
    seconds = "nix_binary_cache_retention_seconds"
    assert (f'{seconds}{{stack="test"}} {86_400 * (days or 0)}\n' in as_prometheus(found)) is (
        days is not None
    )
    page = report_page(found, [])
    assert (notice is not None) is ("尚未部署" in page)


def test_a_key_that_no_builder_has_been_given_yet_does_not_sign(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after the first step of a rotation, which makes the key and gives it to nobody."""
    monkeypatch.setattr(status, "server_of", lambda _: FakeServer())
    keys = [SecretKey.generate(f"cache.test-{number}") for number in (1, 2)]
    resources: list[tuple[str, dict[str, object]]] = [
        (SIGNING_KEY, {"key_name": key.name, "secret_key": key.to_nix()}) for key in keys
    ]
    builders = {
        name: {"accessKeyId": f"cache-{name}", "secretAccessKey": f"secret of {name}"}
        for name in ("pushed", "placed", "by-itself")
    }
    resources += [
        (STACK, {"builders": builders}),
        (COMMANDS[0], {"stdin": f"bucket x\nsecret of pushed\nsigning-key {keys[0].to_nix()}\n"}),
        (COMMANDS[1], {"stdin": f"secret of placed\n{keys[0].to_nix()}\n"}),
        (COMMANDS[1], {}),
    ]
    state = Recorded(
        {f"urn:{n}": {"type": type_, "outputs": of} for n, (type_, of) in enumerate(resources)}
    )
    assert signers(state) == {"pushed": "cache.test-1", "placed": "cache.test-1"}
    known = replace(
        stack(),
        public_keys=tuple(key.public_key for key in keys),
        builders={"pushed": "cache-pushed", "placed": "cache-placed"},
        signed_by={"pushed": "cache.test-2", "placed": "cache.test-2"},
    )
    told = screen(status_of(known, state, "status"))
    assert "cache.test-2 is trusted; cache.test-1 signs\n" in told


def test_a_server_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object, __: str) -> Iterator[ListedObject]:
        raise ServerError("user", "the server denies it")
        yield

    monkeypatch.setattr(FakeServer, "listing", refused)
    monkeypatch.setattr(status, "server_of", lambda _: FakeServer())
    with pytest.raises(OperationError, match="minioUser: the server denies it"):
        status_of(stack(), NO_STATE, "status")


def test_a_server_that_is_silent_is_one_sentence() -> None:
    with pytest.raises(OperationError, match=r"endpoint: .*no S3 server answers"):
        status_of(stack(endpoint=NOWHERE), NO_STATE, "status")


@pytest.mark.parametrize(
    "answer",
    [
        error(503, "SlowDownRead"),
        Reply(503),
        Raw([b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n", b"version"]),
    ],
    ids=["refused", "as by a proxy", "breaks off"],
)
def test_what_the_server_cannot_give_is_told_beside_the_rest(
    monkeypatch: pytest.MonkeyPatch, answer: Reply | Raw
) -> None:
    path = f"/nix/store/{1:032}-path"
    damaged = {f"{1:032}.narinfo", "_nixcache/status/one", pin_key("odd")}
    with serving(StandIn()) as server:
        monkeypatch.setattr(status, "server_of", lambda _: reached(server))
        for key in damaged:
            server.put(key, b"x" * 700)
        server.put(pin_key("live"), format_pin([path]).encode())
        server.script = lambda one: answer if one.key in damaged else None
        found = status_of(replace(stack(bucket=BUCKET), builders={"a": "one"}), NO_STATE, "status")
        live, odd = found.pins
        assert live.lost == {path: "its narinfo cannot be read"}
        assert odd.unreadable.endswith("; see its log")
        assert found.builders[0].status is None


def test_a_server_that_stops_answering_meanwhile_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(StandIn()) as server:
        monkeypatch.setattr(status, "server_of", lambda _: reached(server))
        server.put(pin_key("live"), b"")
        server.script = lambda one: Raw([]) if one.key else None
        with pytest.raises(OperationError, match=r"endpoint: .*no S3 server answers"):
            status_of(stack(bucket=BUCKET), NO_STATE, "status")


def reached(server: StandIn) -> Server:
    return Server(f"127.0.0.1:{server.port}", False, "us-east-1", "pulumi", "password", None)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    write_whole(file, "one\n")
    write_whole(file, "two\n")
    assert file.read_text() == "two\n"
    assert file.stat().st_mode & 0o777 == 0o644
    (tmp_path / "directory").mkdir()
    with pytest.raises(OperationError, match="directory cannot be written"):
        write_whole(tmp_path / "directory", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "x.prom"]


def test_a_link_stays_one_and_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    """Replaced by a file, /dev/null and /dev/stdout would be gone for the whole machine."""
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "one\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "one\n"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(tmp_path / "pipe", "two\n")
        assert os.read(reader, 100) == b"two\n"
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OperationError, match="round cannot be written"):
        write_whole(tmp_path / "round", "x")


def test_whoever_may_read_a_file_may_read_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.touch(mode=0o600)
    write_whole(file, "of a private cache\n")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_stays_its_users_where_root_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.touch()
    whose = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(file, *whose)
    write_whole(file, "x")
    assert (file.stat().st_uid, file.stat().st_gid) == whose


def test_a_pipe_of_a_shell_is_written_to() -> None:
    script = "from pathlib import Path; from operations.output_file import write_whole; "
    script += "write_whole(Path('/dev/stdout'), 'told')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, check=False
    )
    assert (done.stdout, done.stderr) == (b"told", b"")


def test_an_interruption_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", "x")
    assert not list(tmp_path.iterdir())
