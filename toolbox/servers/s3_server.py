"""What every S3 server of the tests is to them: where it answers, and whom its own tool lets in."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import urllib3
from minio import Minio
from minio.error import MinioException

from toolbox.certificates import make_authority
from toolbox.errors import ToolboxError
from toolbox.processes import Process, start, wait_for_listener, wait_until

ATTEMPTS = 3
"""How often ports are chosen anew, when another process takes one before it is bound."""

PATIENCE = 240.0
"""Seconds that a server may take to start: some are several daemons, on a machine that is busy."""


@dataclass(frozen=True)
class Credential:
    """What a user of a server proves itself by."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


class S3Server(ABC):
    """One server with its data, certificates and log in one directory.

    It listens on free ports of loopback, and ends with the process that started it.
    """

    title: ClassVar[str]
    """What people call it."""
    version: str
    region: ClassVar[str] = "us-east-1"
    """The region that its signatures must name."""
    has_bucket_policies: ClassVar[bool] = True
    """Whether a bucket's policy says who may read it."""
    writers_may_delete: ClassVar[bool] = False
    """Whether who may write may delete too, whatever one says."""
    expires_at_midnight: ClassVar[bool] = True
    """Whether an object's last day ends at midnight UTC, and not at the hour it was written."""
    makes_buckets_elsewhere: ClassVar[bool] = False
    """Whether a bucket must be made by the server's own tool, since only its maker sees others."""

    def __init__(self, directory: Path) -> None:
        """Take a directory; nothing runs before `start`."""
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.authority = make_authority(self.directory / "certificates")
        self.ca_file = self.authority.ca_file
        self.root_user = self.root_password = ""
        self._port = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: Process | None = None
        self._around = ExitStack()

    @classmethod
    @abstractmethod
    def unavailable(cls) -> str | None:
        """Return why this machine cannot have it, or None."""

    @abstractmethod
    def _launch(self, ports: Sequence[int]) -> bool:
        """Start it and wait until its own tool can be used; False if a port was taken."""

    @abstractmethod
    def make_user(self, name: str) -> Credential:
        """Make a user that may do nothing yet, by the server's own tool."""

    @abstractmethod
    def let_write(self, user: str, bucket: str, policy: str) -> None:
        """Let a user push to a bucket: what `policy`, in AWS's language, says, or its like."""

    @abstractmethod
    def let_read(self, user: str, bucket: str, policy: str) -> None:
        """Let a user read the objects of a bucket whose names it knows."""

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket for the deploying user, where the program cannot."""
        raise NotImplementedError

    def open_to_everybody(self, bucket: str) -> str:
        """Make a bucket readable by the server's own means, where policies cannot; the URL."""
        raise NotImplementedError

    @property
    def endpoint(self) -> str:
        """Where it answers S3, over TLS."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def log(self) -> Path:
        """What the server wrote."""
        return self.directory / "server.log"

    def client(self, credential: Credential | None = None) -> Minio:
        """Return an S3 client with a credential, the deploying user's if none is given."""
        who = credential or Credential(self.root_user, self.root_password)
        return Minio(
            self.endpoint.removeprefix("https://"),
            access_key=who.access_key_id,
            secret_key=who.secret_access_key,
            region=self.region,
            http_client=urllib3.PoolManager(ca_certs=str(self.ca_file), retries=False, maxsize=8),
        )

    def start(self) -> None:
        """Start the server and wait until it lets its deploying user list buckets.

        Raises:
            ToolboxError: it does not come up; the message has the log's last lines.
        """
        for _ in range(ATTEMPTS):
            try:
                # One listens before it has formatted its disk, and refuses everybody until then.
                if self._launch(free_ports(12)) and wait_until(self._answers, 60):
                    return
            except BaseException:
                self.stop()
                raise
            self.stop()
        raise ToolboxError(f"{self.title} did not start; see {self.log}\n  {self._tail()}")

    def stop(self) -> None:
        """Kill the server, and what is around it; without effect when it does not run."""
        if self._process is not None:
            self._process.kill()
        if self._popen is not None:
            self._popen.wait()
        self._popen = self._process = None
        self._around.close()

    def _start(
        self,
        command: Sequence[str],
        *ports: int,
        env: Mapping[str, str] | None = None,
    ) -> bool:
        """Start the server's process and wait until all ports listen; False if it ended."""
        popen, process = start(command, log=self.log, port=ports[0], detached=False, env=env)
        self._popen, self._process = popen, process
        return wait_for_listener(
            popen, lambda: all(map(_listens, ports)), self.log, self.title, PATIENCE
        )

    def _answers(self) -> bool:
        try:
            self.client().list_buckets()
        except (MinioException, urllib3.exceptions.HTTPError):
            return False
        return True

    def _tool(
        self, command: Sequence[str], text: str = "", env: Mapping[str, str] | None = None
    ) -> str:
        """Run the server's own tool; return what it printed.

        Raises:
            ToolboxError: it fails.
        """
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, env=env, timeout=120
        )
        if done.returncode != 0:
            raise ToolboxError(
                f"{self.title}: {' '.join(command)} failed with exit code {done.returncode}\n"
                f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.stdout

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n  ".join(lines[-8:])

    def _fresh(self, name: str) -> Path:
        """Return an empty directory below the server's."""
        directory = self.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory


Server = TypeVar("Server", bound=S3Server)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server inside the block."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def free_ports(count: int) -> list[int]:
    """Return TCP ports, all different, that were free on loopback a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def first_json(text: str) -> dict[str, Any]:
    """Return the JSON object that a tool printed among other lines."""
    begin = text.index("{")
    found, _ = json.JSONDecoder().raw_decode(text[begin:])
    return dict(found)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False
