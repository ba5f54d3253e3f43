"""MinIO, with users that are made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from toolbox import tools
from toolbox.minio_server import MinioServer
from toolbox.servers.madmin import AdminClient
from toolbox.servers.s3_server import Credential, S3Server


@final
class MinIO(S3Server):
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
