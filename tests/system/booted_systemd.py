"""A real systemd that runs units on a throwaway builder, as a NixOS machine's does.

It is the first process of namespaces of its own, and has a `/run` and cgroups of its own over the
builder's files. The kernel's settings are the machine's, and not its to change; of what a system
starts, it starts the units alone. It ends with the builder at the latest.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

LOG = "/var/log/units.log"

# $1 what the cgroup is called.
BOOT = """\
mkdir -p /srv/cgroup
mount -t cgroup2 cgroup2 /srv/cgroup
mkdir "/srv/cgroup/$1"
echo $$ >"/srv/cgroup/$1/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --mount-proc --cgroup sh -euc '
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t sysfs -o ro sysfs /sys
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec env -i container=other PATH=/usr/sbin:/usr/bin \\
        /usr/lib/systemd/systemd --unit=tested.target --log-target=console'
"""

CLEAN = 'find "/srv/cgroup/$1" -depth -type d -exec rmdir {} + && umount /srv/cgroup'


class Systemd:
    """A running systemd."""

    def __init__(self, builder: ThrowawayBuilder, pid: str) -> None:
        self._builder = builder
        self._enter = f"nsenter --target {pid} --mount --pid --root --wd"

    def answers(self) -> bool:
        """Return whether it can be asked yet: it is a process before it listens."""
        asked = self._builder.run(f"{self._enter} systemctl show --property=Version", check=False)
        return asked.returncode == 0

    def control(self, *arguments: str) -> str:
        """Run systemctl, and return what it says."""
        return self._builder.run(f"{self._enter} systemctl {shlex.join(arguments)}").stdout.strip()

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.control("show", "--value", f"--property={name}", unit)

    def reaches(self, unit: str, state: str) -> bool:
        """Wait until a unit is in a state; return whether it got there."""
        return wait_until(lambda: self.property(unit, "SubState") == state, 30)

    def log(self) -> str:
        """Return what all units have written."""
        return self._builder.run(f"cat {LOG}").stdout


def unit_text(kind: str, unit: Mapping[str, Any], **changes: object) -> str:
    """Return a unit as NixOS writes it, with changes to its own section."""

    def lines(values: Mapping[str, object]) -> Iterator[str]:
        for name, value in values.items():
            for element in value if isinstance(value, list) else [value]:
                yield f"{name}={json.dumps(element) if isinstance(element, bool) else element}\n"

    header: dict[str, object] = {"Description": unit["description"], "After": unit.get("after", [])}
    if unit.get("onFailure"):
        header["OnFailure"] = unit["onFailure"]
    if "startLimitIntervalSec" in unit:
        header["StartLimitIntervalSec"] = unit["startLimitIntervalSec"]
    section = dict(unit[f"{kind}Config"])
    if kind == "service":
        environment = unit.get("environment", {})
        section["Environment"] = [f'"{name}={v}"' for name, v in environment.items()]
    section |= changes
    return "".join(["[Unit]\n", *lines(header), f"[{kind.title()}]\n", *lines(section)])


@contextmanager
def booted(builder: ThrowawayBuilder, units: Mapping[str, str]) -> Iterator[Systemd]:
    """Run units, given by name; those that are no services start, as NixOS starts them.

    Skips where this machine lets nobody but its own systemd have cgroups.
    """
    triggers = " ".join(name for name in units if not name.endswith(".service"))
    alone = "[Unit]\nDefaultDependencies=no\n"
    files = {f"{name}.d/alone.conf": alone for name in units} | dict(units)
    files["tested.target"] = f"{alone}Wants={triggers}\nAfter={triggers}\n"
    for name, text in files.items():
        path = builder.root / "etc/systemd/system" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    cgroup = f"nixcache-test-{builder.port}"
    boot = shlex.join(["setsid", "sh", "-euc", BOOT, "boot", cgroup])
    builder.run(f"touch {LOG}; {boot} >/var/log/systemd.log 2>&1 </dev/null &")
    processes = f"cat /srv/cgroup/{cgroup}/init.scope/cgroup.procs"
    found: list[str] = []

    def up() -> bool:
        found[:] = builder.run(processes, check=False).stdout.split()
        return bool(found)

    try:
        if not wait_until(up, 20):
            log = builder.run("cat /var/log/systemd.log").stdout
            if "cgroup" in log:
                pytest.skip(f"this machine lets nobody have cgroups: {log[-200:]}")
            pytest.fail(f"systemd did not start: {log}")
        systemd = Systemd(builder, found[0])
        assert wait_until(systemd.answers, 30)
        assert systemd.reaches("tested.target", "active")
        yield systemd
    finally:
        for pid in found[:1]:
            builder.run(f"kill -KILL {pid}", check=False)
        cleaned = shlex.join(["sh", "-euc", CLEAN, "clean", cgroup])
        wait_until(lambda: builder.run(cleaned, check=False).returncode == 0, 5)
