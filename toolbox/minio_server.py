"""A MinIO server on loopback over TLS with a certificate from a private authority."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import final

from toolbox import tools
from toolbox.certificates import make_authority
from toolbox.errors import ToolboxError
from toolbox.processes import free_port, recorded, start, wait_for_listener

ATTEMPTS = 5
"""How many ports are tried when another process takes one between choosing and binding it."""


@final
class MinioServer:
    """One server with its data, certificates and log in one directory.

    As a context manager it runs inside the block. `start` after `stop` or `kill` brings
    the same data back on the same port. A detached server outlives the process, and a later
    `MinioServer` on the same directory finds it (`start` is then without effect) or, when
    it has ended, starts it on the port it had if that is free.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        detached: bool = False,
        region: str = "us-east-1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`port` 0 picks a free one; nothing runs before `start`.

        `environment` has further settings of MinIO's (`MINIO_IDENTITY_OPENID_…`).
        """
        self.directory = directory.resolve()
        self.root_user = "root-of-the-cache"
        self._detached = detached
        self._region = region
        self._environment = dict(environment or {})
        self._popen: subprocess.Popen[bytes] | None = None
        self._record = self.directory / "server.json"
        self._process = recorded(self._record)
        self._port = self._process.port if self._process else port
        authority = make_authority(self.directory / "certificates")
        self.ca_file = authority.ca_file
        shutil.copy(authority.server_certificate, authority.ca_file.with_name("public.crt"))
        shutil.copy(authority.server_key, authority.ca_file.with_name("private.key"))
        self.root_password = self._password()

    @property
    def port(self) -> int:
        """The port on loopback; 0 until the first `start`."""
        return self._port

    @property
    def endpoint(self) -> str:
        """The URL of the server, `https://127.0.0.1:PORT`."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self._process is not None and self._process.alive()

    @property
    def log(self) -> Path:
        """What the server wrote."""
        return self.directory / "server.log"

    def __enter__(self) -> MinioServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers as healthy.

        Raises:
            ToolboxError: it does not come up; the message has the log's last lines.
        """
        if self.running:
            return
        binary = tools.server().path
        wanted = [self._port] if self._port else []
        others = [] if wanted and not self._detached else [0] * ATTEMPTS
        for port in (number or free_port() for number in wanted + others):
            if self._start_on(binary, port):
                self._port = port
                return
        raise ToolboxError(
            f"the MinIO server did not start on port {self._port or 'any'} of 127.0.0.1; "
            f"free the port or see {self.log}"
        )

    def stop(self) -> None:
        """Stop the server in order; without effect when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server at once, as a power cut would."""
        self._end(signal.SIGKILL)

    def _start_on(self, binary: Path, port: int) -> bool:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        popen, process = start(
            [
                str(binary),
                "server",
                "--quiet",
                f"--certs-dir={self.ca_file.parent}",
                f"--address=127.0.0.1:{port}",
                str(data),
            ],
            log=self.log,
            port=port,
            detached=self._detached,
            env={
                **os.environ,
                "MINIO_ROOT_USER": self.root_user,
                "MINIO_ROOT_PASSWORD": self.root_password,
                "MINIO_REGION": self._region,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
                **self._environment,
            },
        )
        context = ssl.create_default_context(cafile=str(self.ca_file))
        try:
            up = wait_for_listener(
                popen, lambda: _healthy(port, context), self.log, "the MinIO server"
            )
        except BaseException:
            process.kill()
            raise
        if up:
            self._popen, self._process = popen, process
            process.write(self._record)
        return up

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.kill(number)
        if self._popen is not None:
            self._popen.wait()
        self._popen = None

    def _password(self) -> str:
        path = self.directory / "root-password"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(30))
        return path.read_text()


def _healthy(port: int, context: ssl.SSLContext) -> bool:
    # The cluster check answers 200 only when storage, bucket metadata and IAM are all ready;
    # "live" and "ready" answer before that. The private authority tells our server from
    # another one on the same port.
    url = f"https://127.0.0.1:{port}/minio/health/cluster"
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
