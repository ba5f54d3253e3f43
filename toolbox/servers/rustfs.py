"""RustFS, one node of it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

from toolbox import crates
from toolbox.servers.madmin import AdministeredServer


@final
class RustFS(AdministeredServer):
    """A RustFS server, which has MinIO's admin API; its users are made with `mc admin`."""

    title: ClassVar[str] = "RustFS"
    version = crates.RUSTFS.version

    def __init__(self, directory: Path) -> None:
        """Take a directory; nothing runs before `start`."""
        super().__init__(directory)
        self.root_user = "deployer"
        self.root_password = secrets.token_urlsafe(30)

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why this machine cannot build it, or None."""
        return crates.unavailable(crates.RUSTFS)

    def _launch(self, ports: Sequence[int]) -> bool:
        self._port = ports[0]
        tls = self._fresh("tls")
        shutil.copy(self.authority.server_certificate, tls / "rustfs_cert.pem")
        shutil.copy(self.authority.server_key, tls / "rustfs_key.pem")
        return self._start(
            [str(crates.built(crates.RUSTFS).path), "server", str(self._fresh("data"))],
            self._port,
            env={
                **os.environ,
                "RUSTFS_ADDRESS": f"127.0.0.1:{self._port}",
                "RUSTFS_ACCESS_KEY": self.root_user,
                "RUSTFS_SECRET_KEY": self.root_password,
                "RUSTFS_CONSOLE_ENABLE": "false",
                "RUSTFS_TLS_PATH": str(tls),
                "RUSTFS_OBS_LOGGER_LEVEL": "warn",
            },
        )
