"""Background processes: tied to this one, or detached and found again by a record on disk."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolbox.errors import ToolboxError

START_TIMEOUT = 60.0
"""Seconds a server has to answer after its start."""


@dataclass(frozen=True)
class Process:
    """A running process, told from a later one of the same number by when it started."""

    pid: int
    started: int
    """Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, see proc(5)."""
    port: int
    """The TCP port on loopback it listens on."""

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return started(self.pid) == self.started

    def write(self, path: Path) -> None:
        """Record it in `path` for a later run."""
        path.write_text(json.dumps(asdict(self)))

    def kill(self, number: signal.Signals = signal.SIGKILL, timeout: float = 20.0) -> None:
        """Signal it and wait until it is gone; SIGKILL when `timeout` seconds have passed."""
        if not self.alive():
            return
        try:
            os.kill(self.pid, number)
            wait_until(lambda: not self.alive(), timeout)
            if self.alive():
                os.kill(self.pid, signal.SIGKILL)
                wait_until(lambda: not self.alive(), timeout)
        except ProcessLookupError:
            return


def recorded(path: Path) -> Process | None:
    """Return the process recorded in `path`, which may have ended since; None without a record."""
    try:
        return Process(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def started(pid: int) -> int | None:
    """Return when the process `pid` started, or None if there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def start(
    command: Sequence[str],
    *,
    log: Path,
    port: int,
    detached: bool,
    env: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[bytes], Process]:
    """Start `command` in a session of its own with its output appended to `log`.

    Unless `detached`, the kernel kills it when the calling thread's process goes.
    """
    if not detached:
        launcher = Path(__file__).with_name("die_with_parent.py")
        command = [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), *command]
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
        )
    return popen, Process(popen.pid, started(popen.pid) or 0, port)


def free_port() -> int:
    """Return a TCP port that was free on loopback a moment ago; it may be taken by now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll `condition` until it holds; False when `timeout` seconds passed first."""
    deadline = time.monotonic() + timeout
    pause = 0.005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return True


def wait_for_listener(
    popen: subprocess.Popen[bytes],
    ready: Callable[[], bool],
    log: Path,
    what: str,
    timeout: float = START_TIMEOUT,
) -> bool:
    """Wait until `ready`; False if the process ended first (the port may have been taken).

    Raises:
        ToolboxError: neither happens in `timeout` seconds; the message has the log's last lines.
    """
    if not wait_until(lambda: popen.poll() is not None or ready(), timeout):
        popen.kill()
        popen.wait()
        tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-8:])
        raise ToolboxError(f"{what} did not answer in {timeout:.0f} s; see {log}\n  {tail}")
    return popen.poll() is None
