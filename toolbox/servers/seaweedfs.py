"""SeaweedFS, all of it in one process, as `weed mini` runs it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

from toolbox import tools
from toolbox.errors import ToolboxError
from toolbox.servers.s3_server import Credential, S3Server, first_json


@final
class SeaweedFS(S3Server):
    """A SeaweedFS server; its users are made in `weed shell`."""

    title: ClassVar[str] = "SeaweedFS"
    version = tools.SEAWEEDFS.version
    expires_at_midnight: ClassVar[bool] = False

    def __init__(self, directory: Path) -> None:
        """Take a directory; nothing runs before `start`."""
        super().__init__(directory)
        self.root_user = "deployer"
        self.root_password = secrets.token_urlsafe(30)
        self._masters = self._filer = ""

    @classmethod
    def unavailable(cls) -> str | None:
        """None: Go builds it anywhere."""
        return None

    def _launch(self, ports: Sequence[int]) -> bool:
        master, master_grpc, filer, filer_grpc, volume, volume_grpc, s3, s3_grpc, *rest = ports
        plain, admin, admin_grpc, _ = rest
        self._masters, self._filer = (
            f"127.0.0.1:{master}.{master_grpc}",
            f"127.0.0.1:{filer}.{filer_grpc}",
        )
        self._port = s3
        self._around.callback(_remove_sockets, ports)
        data = self._fresh("data")
        options = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.telemetry": "false",
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "filer.localSocket": self.directory / "filer.sock",
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.preStopSeconds": 0,
            "s3.port": plain,
            "s3.port.https": s3,
            "s3.port.grpc": s3_grpc,
            "s3.localSocket": self.directory / "s3.sock",
            "s3.cert.file": self.authority.server_certificate,
            "s3.key.file": self.authority.server_key,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "webdav": "false",
            "admin.port": admin,
            "admin.port.grpc": admin_grpc,
            "admin.port.legacy": 0,
        }
        return self._start(
            [
                str(tools.seaweedfs().path),
                "-logtostderr=true",
                "mini",
                *(f"-{name}={value}" for name, value in options.items()),
            ],
            s3,
            env={
                **os.environ,
                "AWS_ACCESS_KEY_ID": self.root_user,
                "AWS_SECRET_ACCESS_KEY": self.root_password,
            },
        )

    def make_user(self, name: str) -> Credential:
        """Make a user with `s3.user.create`."""
        secret = secrets.token_urlsafe(30)
        made = first_json(
            self.shell(f"s3.user.create -name {name} -access_key {name} -secret_key {secret}")
        )
        return Credential(str(made["access_key"]), secret)

    def let_write(self, user: str, bucket: str, policy: str) -> None:
        """Attach a managed policy."""
        self._attach(user, f"{bucket}-write", policy)

    def let_read(self, user: str, bucket: str, policy: str) -> None:
        """Attach a managed policy."""
        self._attach(user, f"{bucket}-read", policy)

    def expire_now(self) -> None:
        """Let the worker that expires objects run once, instead of once a day."""
        self.shell(f"s3.lifecycle.run-shard -shards 0-15 -s3 127.0.0.1:{self._port}")

    def shell(self, line: str) -> str:
        """Run a line of `weed shell`; return what it printed.

        Raises:
            ToolboxError: it says that it failed.
        """
        command = [
            str(tools.seaweedfs().path),
            "shell",
            f"-master={self._masters}",
            f"-filer={self._filer}",
        ]
        printed = self._tool(command, f"{line}\nexit\n")
        # It ends well whatever a line came to.
        if "error:" in printed:
            raise ToolboxError(f"SeaweedFS: {line.partition(' -secret_key')[0]}: {printed}")
        return printed

    def _attach(self, user: str, name: str, policy: str) -> None:
        file = self.directory / "policy.json"
        file.write_text(policy)
        self.shell(f"s3.policy -put -name={name} -file={file}")
        self.shell(f"s3.policy.attach -policy {name} -user {user}")


def _remove_sockets(ports: Sequence[int]) -> None:
    """Remove the sockets that it makes beside its ports, always in the same place."""
    for port in ports:
        for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            socket.unlink(missing_ok=True)
