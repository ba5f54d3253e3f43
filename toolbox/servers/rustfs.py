"""RustFS, one node of it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

from toolbox import crates
from toolbox.servers.madmin import AdminClient
from toolbox.servers.s3_server import Credential, S3Server


@final
class RustFS(S3Server):
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

    def make_user(self, name: str) -> Credential:
        """Make a user with `mc admin user add`."""
        return self._mc().make_user(name)

    def let_write(self, user: str, bucket: str, policy: str) -> None:
        """Attach a policy with `mc admin policy`."""
        self._mc().attach(user, f"{bucket}-write", policy)

    def let_read(self, user: str, bucket: str, policy: str) -> None:
        """Attach a policy with `mc admin policy`."""
        self._mc().attach(user, f"{bucket}-read", policy)

    def _mc(self) -> AdminClient:
        root = Credential(self.root_user, self.root_password)
        return AdminClient(self.endpoint, root, self.ca_file, self.directory)
