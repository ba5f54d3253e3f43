"""Several MinIO nodes with their drives on this machine, behind one address with TLS.

They are in a network namespace of their own, since MinIO takes no loopback addresses for several
nodes, and their ports are nobody else's there. In front is what a person has in front: something
that takes TLS connections, and gives each to the next node that answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import secrets
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import final

import urllib3

from toolbox import tools
from toolbox.certificates import make_authority
from toolbox.errors import ToolboxError
from toolbox.processes import Process, start, wait_until
from toolbox.servers.tls_front import Streams, tls_front

START_TIMEOUT = 240.0
"""Seconds in which all nodes must have found one another."""

CLONE_NEWNET = 0x40000000
PORT = 19100
"""The first node's port, less one: MinIO takes addresses of one port for one node here."""

NAMESPACE = """\
set -eu
ip link set lo up
for number in $(seq "$1"); do ip address add "10.77.0.$number/32" dev lo; done
exec sleep infinity
"""


@final
class MinioCluster:
    """Nodes that are numbered from 1, with two drives each, in one erasure set."""

    def __init__(self, directory: Path, nodes: int = 4, drives: int = 2) -> None:
        """Take a directory; nothing runs before `start`."""
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.root_user, self.root_password = "root-of-the-cache", secrets.token_urlsafe(30)
        self._authority = make_authority(self.directory / "certificates")
        self.ca_file = self._authority.ca_file
        self._addresses = [f"10.77.0.{number}" for number in range(1, nodes + 1)]
        self._drives = [
            f"http://{address}:{PORT + number}{self.directory}/drives/{number}-{drive}"
            for number, address in enumerate(self._addresses, 1)
            for drive in range(1, drives + 1)
        ]
        self._running: dict[int, tuple[subprocess.Popen[bytes], Process]] = {}
        self._namespace: tuple[subprocess.Popen[bytes], Process] | None = None
        self._around = ExitStack()
        self._turn = itertools.count()
        self._port = 0

    @property
    def endpoint(self) -> str:
        """Where the nodes are reached, over TLS."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def nodes(self) -> Sequence[int]:
        """The nodes' numbers."""
        return range(1, len(self._addresses) + 1)

    def __enter__(self) -> MinioCluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def start_node(self, number: int) -> None:
        """Start one node; it answers once enough others do."""
        (self.directory / "drives").mkdir(exist_ok=True)
        command = [
            "nsenter",
            f"--net=/proc/{self._holder().pid}/ns/net",
            str(tools.server().path),
            "server",
            "--quiet",
            f"--address={self._addresses[number - 1]}:{PORT + number}",
            *self._drives,
        ]
        self._running[number] = start(
            command,
            log=self.directory / f"node-{number}.log",
            port=PORT + number,
            detached=False,
            env={
                **os.environ,
                "MINIO_ROOT_USER": self.root_user,
                "MINIO_ROOT_PASSWORD": self.root_password,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
                # All drives are of one disk here, which is not what is tested.
                "MINIO_CI_CD": "1",
            },
        )

    def kill_node(self, number: int) -> None:
        """Kill one node at once, with its drives."""
        popen, process = self._running.pop(number)
        process.kill(signal.SIGKILL)
        popen.wait()

    def wait_until_writable(self) -> None:
        """Wait until each node says that it reaches drives enough to be written to.

        A node that has found the others says so while another still looks for them, and connections
        go to one after the other.

        Raises:
            ToolboxError: one does not say so in time.
        """
        pool = urllib3.PoolManager(ca_certs=str(self.ca_file), retries=False, timeout=10.0)
        url = f"{self.endpoint}/minio/health/cluster"
        each_to_the_next = {"Connection": "close"}

        def all_say_so() -> bool:
            try:
                return all(
                    pool.request("GET", url, headers=each_to_the_next).status == 200
                    for _ in self.nodes
                )
            except urllib3.exceptions.HTTPError:
                return False

        if not wait_until(all_say_so, START_TIMEOUT):
            raise ToolboxError(f"the MinIO nodes did not start; see {self.directory}/node-1.log")

    def _start(self) -> None:
        self._namespace = start(
            ["unshare", "--net", "sh", "-c", NAMESPACE, "nodes", str(len(self._addresses))],
            log=self.directory / "namespace.log",
            port=0,
            detached=False,
        )
        addressed = wait_until(
            lambda: self._addresses[-1] in self._inside("ip", "-4", "address", "show"), 60.0
        )
        if not addressed:
            raise ToolboxError("the nodes' network namespace was not made")
        for number in self.nodes:
            self.start_node(number)
        self._port = self._around.enter_context(
            tls_front(self._connect, self._authority, prepare=self._enter_namespace)
        )
        self.wait_until_writable()

    def _stop(self) -> None:
        self._around.close()
        for number in list(self._running):
            self.kill_node(number)
        if self._namespace is not None:
            popen, process = self._namespace
            process.kill()
            popen.wait()
            self._namespace = None

    def _holder(self) -> Process:
        assert self._namespace is not None
        return self._namespace[1]

    def _inside(self, *command: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self._holder().pid}/ns/net", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def _enter_namespace(self) -> None:
        """Let this thread's sockets be the namespace's; Python has a call for it from 3.12 on."""
        with Path(f"/proc/{self._holder().pid}/ns/net").open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    async def _connect(self) -> Streams:
        """Connect to the next node that takes connections."""
        first = next(self._turn)
        for offset in range(len(self._addresses)):
            index = (first + offset) % len(self._addresses)
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(self._addresses[index], PORT + index + 1)
        raise ConnectionRefusedError("no node answers")
