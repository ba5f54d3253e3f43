"""Garage, one node of it, with its S3 API and its web endpoint behind TLS."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from toolbox import crates
from toolbox.servers.s3_server import Credential, S3Server, first_json
from toolbox.servers.tls_front import tls_front, to_port

ROOT = "root-of-the-cache"
"""The name of the deploying user's key."""

CONFIGURATION = """\
metadata_dir = "{directory}/meta"
data_dir = "{directory}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"

[s3_api]
s3_region = "{region}"
api_bind_addr = "127.0.0.1:{s3}"

[s3_web]
bind_addr = "127.0.0.1:{web}"
root_domain = ".web.garage"
index = "index.html"

[admin]
api_bind_addr = "127.0.0.1:{admin}"
"""


@final
class Garage(S3Server):
    """A Garage server; its keys and buckets are made with `garage`."""

    title: ClassVar[str] = "Garage"
    version = crates.GARAGE.version
    region: ClassVar[str] = "garage"
    has_bucket_policies: ClassVar[bool] = False
    writers_may_delete: ClassVar[bool] = True
    makes_buckets_elsewhere: ClassVar[bool] = True

    def __init__(self, directory: Path) -> None:
        """Take a directory; nothing runs before `start`."""
        super().__init__(directory)
        self._web = 0
        self._rpc_secret = secrets.token_hex(32)
        self._keys: dict[str, str] = {}

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why this machine cannot build it, or None."""
        return crates.unavailable(crates.GARAGE)

    def _launch(self, ports: Sequence[int]) -> bool:
        rpc, s3, web, admin, *_ = ports
        self._fresh("meta")
        self._fresh("data")
        (self.directory / "garage.toml").write_text(
            CONFIGURATION.format(
                directory=self.directory, region=self.region, rpc=rpc, s3=s3, web=web, admin=admin
            )
        )
        command = [*self._command(), "server", "--single-node"]
        if not self._start(command, s3, rpc, env=self._environment()):
            return False
        root = self.make_user(ROOT)
        self.root_user, self.root_password = root.access_key_id, root.secret_access_key
        self._port = self._around.enter_context(tls_front(to_port(s3), self.authority))
        self._web = self._around.enter_context(tls_front(to_port(web), self.authority))
        return True

    def make_user(self, name: str) -> Credential:
        """Make an access key with `garage key create`, whose answer only JSON keeps in order."""
        made = first_json(self.garage("json-api", "CreateKey", json.dumps({"name": name})))
        credential = Credential(str(made["accessKeyId"]), str(made["secretAccessKey"]))
        self._keys[name] = credential.access_key_id
        return credential

    def let_write(self, user: str, bucket: str, policy: str) -> None:
        """Allow reading and writing, which includes deleting: there is no finer grain."""
        del policy
        self.garage("bucket", "allow", "--read", "--write", bucket, "--key", self._keys[user])

    def let_read(self, user: str, bucket: str, policy: str) -> None:
        """Allow reading, which includes listing."""
        del policy
        self.garage("bucket", "allow", "--read", bucket, "--key", self._keys[user])

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket with a global alias, owned by the deploying user."""
        self.garage("bucket", "create", bucket)
        self.garage("bucket", "allow", "--read", "--write", "--owner", bucket, "--key", ROOT)

    def open_to_everybody(self, bucket: str) -> str:
        """Serve a bucket as a website, by the name under which this machine is reached."""
        self.garage("bucket", "website", "--allow", bucket)
        self.garage("bucket", "alias", bucket, "localhost")
        return self.web_url

    @property
    def web_url(self) -> str:
        """Where the web endpoint answers, by the name that the certificate has."""
        return f"https://localhost:{self._web}"

    def garage(self, *arguments: str) -> str:
        """Run `garage` against the server; return what it printed."""
        return self._tool([*self._command(), *arguments], env=self._environment())

    def _command(self) -> list[str]:
        binary = crates.built(crates.GARAGE).path
        return [str(binary), "--config", str(self.directory / "garage.toml")]

    def _environment(self) -> dict[str, Any]:
        return {**os.environ, "GARAGE_RPC_SECRET": self._rpc_secret, "RUST_LOG": "garage=info"}
