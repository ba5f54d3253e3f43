"""An SSH server on loopback that runs commands with /bin/sh, for the plugin `command`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from types import TracebackType
from typing import Any

import asyncssh

from toolbox.plugins.property_values import Properties, Secret


class _Door(asyncssh.SSHServer):
    def __init__(self, server: SshServer) -> None:
        self._server = server

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("root", self._server.password)

    def connection_requested(self, *_: Any) -> bool:
        # As a jump host.
        return True


class SshServer:
    """The server; a context manager. It ends with the process at the latest."""

    password = "a-password-for-ssh"

    def __init__(
        self, *, pass_environment: bool = True, host_key: str = "ssh-ed25519", ports: int = 1
    ) -> None:
        """`pass_environment` says whether commands see the variables that the client sends.

        `host_key` is the algorithm of the server's own key; `ports` says on how many it listens.
        """
        self._pass_environment = pass_environment
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._host_key = asyncssh.generate_private_key(host_key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[asyncssh.SSHAcceptor] = []
        self._children: set[asyncio.subprocess.Process] = set()
        self._wanted = ports
        self.ports: list[int] = []
        self.busy = threading.Event()
        """Set once a command has been started."""
        self.private_key = self._key.export_private_key().decode()
        """The client's key, in OpenSSH's format."""

    @property
    def host_key(self) -> str:
        """The server's public key, one line."""
        return self._host_key.export_public_key().decode().strip()

    def connection(self, **others: Any) -> Properties:
        """The argument `connection` for this server, with `others` in it."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "privateKey": Secret(self.private_key),
            "hostKey": self.host_key,
            "dialErrorLimit": 0,
            **others,
        }

    def __enter__(self) -> SshServer:  # noqa: PYI034 -- Self is newer than Python 3.10
        self._thread.start()
        for _ in range(self._wanted):
            listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
            self._servers.append(listening)
        self.ports = [listening.get_port() for listening in self._servers]
        return self

    @property
    def port(self) -> int:
        """The port that it listens on, the first of several."""
        return self.ports[0]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(
            lambda: _Door(self),
            "127.0.0.1",
            0,
            server_host_keys=[self._host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(
                self._key.export_public_key().decode()
            ),
            process_factory=self._run,
            encoding=None,
        )

    async def _close(self) -> None:
        for listening in self._servers:
            listening.close()
            await listening.wait_closed()
        for child in list(self._children):
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        given = dict(process.env) if self._pass_environment else {}
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            process.command or "",
            env={**os.environ, **given},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._children.add(child)
        self.busy.set()
        stdout, stderr = await child.communicate(await process.stdin.read())
        self._children.discard(child)
        process.stdout.write(stdout)
        process.stderr.write(stderr)
        if child.returncode is not None and child.returncode < 0:
            process.exit_with_signal("KILL")
        else:
            process.exit(child.returncode or 0)
