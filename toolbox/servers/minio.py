"""MinIO, with users that are made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from toolbox import tools
from toolbox.minio_server import MinioServer
from toolbox.servers.madmin import AdministeredServer


@final
class MinIO(AdministeredServer):
    """A MinIO server; its users are made with `mc admin`."""

    title: ClassVar[str] = "MinIO"
    version = tools.SERVER.version
    region: ClassVar[str] = "homelab-1"

    @classmethod
    def unavailable(cls) -> str | None:
        """None: Go builds it anywhere."""
        return None

    def _launch(self, ports: Sequence[int]) -> bool:
        del ports
        server = self._around.enter_context(MinioServer(self.directory, region=self.region))
        self._port = server.port
        self.root_user, self.root_password = server.root_user, server.root_password
        return True
