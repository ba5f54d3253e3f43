"""The NixOS module's units under a real systemd: what starts them, with what, and how often."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from minio import Minio

from formats.signing import SecretKey
from tests.system.booted_systemd import LOG, Systemd, booted, unit_text
from tests.system.nixos_machine import (
    LINK,
    QUEUE,
    USER,
    PushingMachine,
    make_cache,
    narinfos,
)
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

PUSH = "nix-binary-cache-push.service"
QUEUED = "nix-binary-cache-push-queue.service"
PROFILES = "/nix/var/nix/profiles"
GONE = f"/nix/store/{'0' * 32}-gone"
GATE = "/srv/gate"
PLACES = {
    "/home": False,
    "/root": False,
    "/tmp": False,
    "/var/tmp": False,
    "/var/lib": True,
    "/nix/var/nix/gcroots": True,
    PROFILES: True,
}
"""Whether the module takes links there; `/run` is a systemd's own."""
ALERT = "alert@%n.service"
ALERTS = f"""\
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=append:{LOG}
ExecStart=/bin/sh -c 'echo alert: %i $MONITOR_SERVICE_RESULT'
"""


@pytest.fixture(scope="module")
def cache(minio: MinioServer) -> Minio:
    """Make a bucket that is a cache on the server; return a client of the server."""
    return make_cache(minio)


@pytest.fixture(scope="module")
def machine(equipped_builder: ThrowawayBuilder, minio: MinioServer) -> PushingMachine:
    """A machine with the module's package, hook, queue and secrets."""
    machine = PushingMachine(equipped_builder, minio, SecretKey.generate("cache.test-1"))
    machine.builder.run(
        f"ln -sfn {machine.build_with_hook('system')} {LINK}\n"
        "install -d -m 700 /var/lib/nix-binary-cache\n"
        "install -m 400 -t /var/lib/nix-binary-cache /run/credentials/*\n"
        "rm -r /run/credentials"
    )
    return machine


@pytest.fixture(scope="module")
def systemd(machine: PushingMachine) -> Iterator[Systemd]:
    """A systemd with the units of the module, which retry within seconds."""
    machine.write("/etc/systemd/system/alert@.service", ALERTS)
    changes = {
        "service": {
            "StandardOutput": f"append:{LOG}",
            "StandardError": f"append:{LOG}",
            "RestartSec": "2s",
            "RestartMaxDelaySec": "3s",
        },
        "path": {},
        "timer": {},
    }
    units = {
        f"{name}.{kind}": unit_text(kind, unit, **changes[kind])
        for kind in changes
        for name, unit in machine.instantiate(
            "builder", {**machine.settings, "onFailure": [ALERT]}, "systemd"
        )[f"{kind}s"].items()
    }
    look = {"ExecStart": f"/bin/ls -d {' '.join(f'{place}/seen' for place in PLACES)}"}
    push = machine.services["nix-binary-cache-push"]
    units["look.service"] = unit_text("service", push, **changes["service"], **look, Restart="no")
    units[PUSH] += f"ExecStartPost=/bin/sh -c '! test -p {GATE} || read line <{GATE}'\n"
    machine.builder.run(f"rm -f {QUEUE}/*")
    with booted(machine.builder, units) as systemd:
        yield systemd


def test_a_new_generation_is_pushed_with_the_secrets_that_only_the_service_sees(
    machine: PushingMachine, systemd: Systemd, cache: Minio
) -> None:
    system = machine.builder.run(f"readlink {LINK}").stdout.strip()
    assert not narinfos(cache, system)
    machine.builder.run(f"ln -s {system} {PROFILES}/system-1-link")
    assert wait_until(lambda: bool(narinfos(cache, system)), 30), systemd.log()
    assert systemd.reaches(PUSH, "dead")
    assert systemd.property(PUSH, "Result") == "success"
    as_user = f"setpriv --reuid={USER} --regid={USER} --clear-groups"
    for place in ("/var/lib/nix-binary-cache/signing-key", f"/run/credentials/{PUSH}/signing-key"):
        assert machine.builder.run(f"{as_user} cat {place}", check=False).returncode != 0


def test_a_generation_that_is_made_while_a_push_runs_is_pushed_after_it(
    machine: PushingMachine, systemd: Systemd, cache: Minio
) -> None:
    """The gate holds the push once all is pushed: what it saw is old by then."""
    assert systemd.reaches(PUSH, "dead")
    first, second = (machine.builder.make_closure(1, 1_000, seed, f"g{seed}") for seed in (1, 2))
    machine.builder.run(f"mkfifo -m 666 {GATE} && ln -sfn {first} {LINK}")
    try:
        machine.builder.run(f"ln -s {first} {PROFILES}/system-2-link")
        assert systemd.reaches(PUSH, "start-post"), systemd.log()
        machine.builder.run(f"ln -sfn {second} {LINK} && ln -s {second} {PROFILES}/system-3-link")
        assert systemd.reaches("nix-binary-cache-new-generation.service", "dead")
        assert [bool(narinfos(cache, path)) for path in (first, second)] == [True, False]
    finally:
        machine.builder.run(f"mv {GATE} {GATE}.open && echo 1<>{GATE}.open")
    assert systemd.reaches(PUSH, "dead")
    assert wait_until(lambda: bool(narinfos(cache, second)), 30), systemd.log()


def test_a_push_that_fails_starts_what_is_to_tell(
    machine: PushingMachine, systemd: Systemd
) -> None:
    assert systemd.reaches(PUSH, "dead")
    told = systemd.log().count(f"alert: {PUSH} exit-code")
    machine.builder.run(f"ln -sfn {GONE} {LINK} && ln -sfn {GONE} {PROFILES}/system-4-link")
    assert wait_until(lambda: systemd.log().count(f"alert: {PUSH} exit-code") > told, 30), (
        systemd.log()
    )
    good = machine.build_with_hook("good")
    machine.builder.run(f"ln -sfn {good} {LINK}")
    assert systemd.reaches(PUSH, "dead")
    assert systemd.property(PUSH, "Result") == "success"


def test_the_units_see_what_the_module_takes(machine: PushingMachine, systemd: Systemd) -> None:
    for place, taken in PLACES.items():
        machine.builder.run(f"chmod a+x {place}; touch {place}/seen")
        settings = {**machine.settings, "paths": [f"{place}/seen"]}
        if taken:
            machine.instantiate("builder", settings, "systemd.paths")
        else:
            with pytest.raises(ToolboxError, match="the units see nothing in"):
                machine.instantiate("builder", settings, "systemd.paths")
    systemd.control("start", "--no-block", "look.service")
    assert systemd.reaches("look.service", "failed")
    seen = {place: f"\n{place}/seen\n" in f"\n{systemd.log()}" for place in PLACES}
    assert seen == PLACES
    machine.builder.run(f"rm {' '.join(f'{place}/seen' for place in PLACES)}")


def test_what_is_built_leaves_the_queue_by_itself(
    machine: PushingMachine, systemd: Systemd, cache: Minio
) -> None:
    built = machine.build_with_hook("queued")
    assert wait_until(lambda: machine.queue() == [], 30), systemd.log()
    assert len(narinfos(cache, built)) == 1


def test_an_entry_that_cannot_be_pushed_keeps_nothing_busy_and_holds_up_nothing(
    machine: PushingMachine, systemd: Systemd, cache: Minio
) -> None:
    assert systemd.reaches(QUEUED, "dead")
    already = systemd.log().count(GONE)
    began = time.monotonic()
    machine.builder.run(f"ln -s {GONE} {QUEUE}/ && echo >{QUEUE}/file")
    assert systemd.reaches(QUEUED, "auto-restart"), systemd.log()
    built = machine.build_with_hook("behind")
    assert wait_until(lambda: bool(narinfos(cache, built)), 30), systemd.log()
    assert systemd.reaches(QUEUED, "auto-restart")
    runs = int(systemd.property(QUEUED, "NRestarts")) + 1
    assert 2 <= runs <= 1 + (time.monotonic() - began) / 2, "it was not left in peace"
    assert systemd.log().count(f"'{QUEUE}/file' is no link") > already
    assert sorted(machine.builder.run(f"ls {QUEUE}").stdout.split()) == [GONE[11:], "file"]

    machine.builder.run(f"rm {QUEUE}/*")
    assert systemd.reaches(QUEUED, "dead"), systemd.log()
    assert systemd.property(QUEUED, "Result") == "success"
