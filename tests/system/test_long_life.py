"""A year of a cache: keys rotate, builders go, a state is lost, engine and server are others.

Everything is real but the time, which passes as `retention_simulation` says. Two builders push
once a week; between pushes days pass at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from components.retention import OWN_FOLDER
from formats.keys import PublicKey
from formats.signing import SecretKey
from tests.promises import record
from tests.system import midnight
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import OpenBucket
from tests.system.conftest import builder_settings, server_settings
from tests.system.minio_client import MinioClient
from tests.system.preloaded_python.environment import with_python_of
from tests.system.retention_simulation import (
    FIRST,
    GRACE_DAYS,
    RETENTION_DAYS,
    SECOND,
    STOPS_ON,
    Simulation,
    build,
    plan,
    pushes,
    references_of,
)
from tests.system.stack import Stack
from toolbox import tools
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

YEAR = 365
EVERY = RETENTION_DAYS
"""Days between pushes, as many as an entry lives."""
DAYS = range(0, YEAR, EVERY)
BUCKET = "year"
LASTING = ("nix-cache-info", "use.html")
LINK = "/nix/var/nix/gcroots/year"
OLD, NEW = "cache.test-1", "cache.test-2"

ROTATED, RETIRED, UNPINNED_HERE, LEFT, LOST, UNPINNED, UPGRADED, MOVED = (
    number * EVERY for number in (5, 8, 12, STOPS_ON, 30, 35, 40, 50)
)


def calendar(day: int) -> Mapping[str, Sequence[str]]:
    """Return what is pushed on a day of the year, the next of the days of sixty."""
    return pushes(day // EVERY) if day in DAYS else {}


class Deployment(OpenBucket):
    """The stack's bucket as the outputs tell of it now."""

    def __init__(self, stack: Stack, server: MinioServer) -> None:
        """Read the outputs."""
        outputs = stack.outputs()
        self.push_settings = outputs["nixos"]["push"]
        self.builders = outputs["builders"]
        self.keys = [PublicKey.parse(key) for key in outputs["publicKeys"]]
        last = SecretKey.parse(outputs["signingKeyBackup"].splitlines()[-1])
        user = self.builders[FIRST]
        super().__init__(server, BUCKET, user["accessKeyId"], user["secretAccessKey"], last)

    @property
    def trusted(self) -> Sequence[PublicKey]:
        """The keys that clients have."""
        return self.keys


class Year:
    """What happens to a stack in a year, and how its builders push meanwhile."""

    def __init__(
        self,
        engine: Mapping[str, str],
        directory: Path,
        servers: Sequence[MinioServer],
        machine: ThrowawayBuilder,
        pins: Mapping[str, str],
        paths: Mapping[str, str],
    ) -> None:
        """Bring the stack up on the first server, with an earlier engine if there is one."""
        self.directory = directory
        self.servers = list(servers)
        self._machine = machine
        self._pins = dict(pins)
        self._paths = paths
        # Of its own: stacks of one home share which one is selected.
        home = directory / "pulumi-home"
        tools.install_plugins(home)
        now = tools.engine_environment(home)
        self._now = self._before = with_python_of(engine, now, directory / "engine")
        earlier = tools.earlier_engine()
        if earlier is not None:
            before = tools.engine_environment(home, earlier.path)
            self._before = with_python_of(engine, before, directory / "earlier-engine")
        self.upgraded = earlier is not None
        self.happened = 0
        self._kept: dict[int, Sequence[str]] = {}
        self.stack = Stack(self._before, directory / "first", "year")
        self.stack.set(
            server_settings(servers[0]),
            bucket=BUCKET,
            upstreamKeys=[],
            sshPrivateKey=machine.private_key,
            pins=self._declared_pins(),
            builders=[{**self._builder(FIRST), "closures": [LINK]}, self._builder(SECOND)],
        )

    def _builder(self, name: str) -> dict[str, object]:
        return {**builder_settings(self._machine), "name": name}

    def _declared_pins(self) -> list[dict[str, str]]:
        return [{"name": name, "path": path} for name, path in self._pins.items()]

    def up(self, *arguments: str) -> None:
        """Deploy, and read what the builders are told."""
        self.stack.up(*arguments).succeeded()
        self.bucket = Deployment(self.stack, self.servers[0])

    def begin(self, day: int) -> None:
        """Give the machine its system of a day, and let happen what happens then."""
        # The engine deletes last: a pin that goes is renewed by that day's push once more.
        self._kept[day] = list(self._pins.values())
        system = self._paths[calendar(day)[FIRST][0]]
        self._machine.run(f"ln -sfn {system} {LINK}")
        happens: Callable[[], None] | None = {
            0: self.up,
            ROTATED: self._rotate,
            RETIRED: self._retire,
            UNPINNED_HERE: self._forget_on_the_builder,
            LEFT: self._retire_builder,
            LOST: self._lose_state,
            UNPINNED: self._unpin,
            UPGRADED: self._upgrade,
            MOVED: lambda: move(self),
        }.get(day)
        if happens is not None:
            happens()
            self.happened += 1

    def _rotate(self) -> None:
        self.stack.set(signingKeys=[OLD, NEW])
        self.up("--target", "**SigningKey**")
        self.up()

    def _retire(self) -> None:
        # The audit looks for what a deployment has pushed last, which was long ago.
        self.up()
        assert self.audit()["keys"][OLD]["alone"] == 0
        self.stack.set(signingKeys=[NEW])
        self.up()

    def _forget_on_the_builder(self) -> None:
        for name, path in self._pins.items():
            gone = f"nix-store --delete $(nix-store --query --requisites {path})"
            self._machine.run(f"rm /nix/var/nix/gcroots/{name} && {gone} && ! test -e {path}")

    def _retire_builder(self) -> None:
        assert len(self.users()) == 2
        self.stack.set(builders=[{**self._builder(FIRST), "closures": [LINK]}])
        self.up()
        assert self.users() == [self.bucket.builders[FIRST]["accessKeyId"]]

    def _lose_state(self) -> None:
        """As docs/operations.md says: settings, the backup of the keys, and the bucket."""
        kept = self.stack.outputs()
        lost = self.stack
        self.stack = Stack(self._before, self.directory / "again", "year")
        self.stack.settings_file.write_text(lost.settings_file.read_text())
        self.stack.set(
            minioPassword=self.servers[0].root_password,
            sshPrivateKey=self._machine.private_key,
            adoptedSigningKeys=kept["signingKeyBackup"],
            adoptBucket=True,
        )
        self.up()
        self.stack.set(adoptedSigningKeys=None, adoptBucket=None)
        assert self.stack.outputs()["publicKeys"] == kept["publicKeys"]

    def _unpin(self) -> None:
        del self._pins["left-behind"]
        self.stack.set(pins=self._declared_pins())
        self.up()

    def _upgrade(self) -> None:
        self.stack.environment.update(self._now)
        self.up()

    def push(self, builder: str, *paths: str) -> None:
        """Push as the builder's own timer does."""
        user = self.bucket.builders[builder]
        given = {name.replace("-", "_"): value for name, value in self.bucket.push_settings.items()}
        own = {**given, "access_key_id": user["accessKeyId"]}
        own["secret_access_key"] = user["secretAccessKey"]
        self.bucket.push(self._machine, *paths, **own).succeeded()

    def pinned(self, day: int) -> Sequence[str]:
        """Return what pins kept on a day on which somebody pushed."""
        return self._kept.get(day, [])

    def days_pass(self, days: int) -> None:
        """Nothing to do: a push remembers nothing."""

    def users(self) -> list[str]:
        """Return the server's users."""
        mc = MinioClient(self.servers[0], self.directory)
        listed = mc.run("admin user list s3 --json").splitlines()
        return sorted(json.loads(line)["accessKey"] for line in listed)

    def audit(self) -> dict[str, Any]:
        """Return what the audit reports; it finds nothing."""
        file = self.directory / "audit.json"
        done = self.stack.operate("audit", "--stack", "year", "--hash", "all", "--json", str(file))
        assert done.code == 0, done.output
        return dict(json.loads(file.read_text()))


def move(year: Year) -> None:
    """Move the bucket to the next server, as docs/operations.md says."""
    before, after = year.servers
    mc = MinioClient(before, year.directory, new=after)
    mc.run(f"mb new/{BUCKET}")
    mc.run(f"mirror s3/{BUCKET} new/{BUCKET}")
    before.stop()
    del year.servers[0]
    stack, there = year.stack, server_settings(after)
    stack.run("config", "set", "endpoint", after.endpoint).succeeded()
    stack.set({name: there[name] for name in ("caCertificateFile", "minioUser", "minioPassword")})
    refused = stack.up().refused()
    assert "has the bucket, and not this stack's policy year-write; make repair" in refused
    assert year.users() == []
    stack.operate("repair", "--stack", "year", "--yes", "--skip-preview").succeeded()
    year.up("--expect-no-changes")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[MinioServer]]:
    """Two servers; what is on the first moves to the second."""
    with MinioServer(tmp_path / "before") as before, MinioServer(tmp_path / "after") as after:
        yield [before, after]


def live(
    engine: Mapping[str, str],
    directory: Path,
    servers: Sequence[MinioServer],
    machine: ThrowawayBuilder,
) -> Simulation:
    """Let the year pass; return what was found each morning."""
    planned = plan()
    paths = build(machine, planned)
    pins = {
        pin: machine.make_closure(2, 2_000, seed, pin)
        for seed, pin in enumerate(("release", "left-behind"), 60)
    }
    kept = references_of(machine, pins.values())
    year = Year(engine, directory, servers, machine, pins, paths)
    found = Simulation(
        year,
        machine,
        {**planned, **kept},
        {**paths, **{path: path for path in kept}},
        calendar,
        DAYS,
        YEAR,
        lambda key: key not in LASTING and not key.startswith(OWN_FOLDER),
    )
    midnight.wait_where_it_is_near()
    found.run(pull=True)
    return found


def test_after_a_year_every_promise_holds(
    engine: Mapping[str, str],
    tmp_path: Path,
    servers: list[MinioServer],
    builder: ThrowawayBuilder,
) -> None:
    found = live(engine, tmp_path, servers, builder)
    year = found.way
    assert isinstance(year, Year)
    assert year.happened == 9
    assert {one.day: one.problems for one in found.mornings if one.problems} == {}
    # What moved was written anew, so what was about to expire did so later.
    moved = range(MOVED, MOVED + RETENTION_DAYS + GRACE_DAYS + EVERY)
    late = {one.day: one.overdue for one in found.mornings if one.overdue and one.day not in moved}
    assert late == {}
    assert found.mornings[-1].overdue == ()
    assert found.pulls > 0

    key = year.bucket.public_key
    assert key.name == NEW
    assert year.bucket.trusted == [key]
    assert verify(year.bucket).problems == []
    tops = [found.paths[top] for top in calendar(DAYS[-1])[FIRST]]
    for top in (*tops, year.pinned(DAYS[-1])[0]):
        assert year.bucket.pull(builder, top, keys=[key]) > 1
    year.up()
    year.audit()
    drift = year.stack.operate("drift", "--stack", "year")
    assert drift.code == 0, drift.output
    assert year.stack.changes() == {}
    print(f"{YEAR} days, {year.happened} events; an earlier engine was there: {year.upgraded}")
    record("days", "a stack's year", YEAR, f"whole, with {year.happened} events")
