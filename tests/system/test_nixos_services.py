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
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

PUSH = "nix-binary-cache-push.service"
QUEUED = "nix-binary-cache-push-queue.service"
PROFILES = "/nix/var/nix/profiles"
GONE = f"/nix/store/{'0' * 32}-gone"


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
        for name, unit in machine.instantiate("builder", machine.settings, "systemd")[
            f"{kind}s"
        ].items()
    }
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
    machine.builder.run(f"ln -s {GONE} {QUEUE}/ && echo >{QUEUE}/file")
    began = time.monotonic()
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
