"""Users of servers with MinIO's admin API, made by a person with `mc admin`."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

from toolbox import tools
from toolbox.errors import ToolboxError
from toolbox.servers.s3_server import Credential, S3Server


class AdminClient:
    """Runs `mc` against a server with the credential of its root."""

    def __init__(self, endpoint: str, root: Credential, ca_file: Path, directory: Path) -> None:
        """Keep the client's configuration, and policies, in `directory`."""
        who = f"{root.access_key_id}:{root.secret_access_key}"
        self._directory = directory
        self._environment = {
            **os.environ,
            "MC_CONFIG_DIR": str(directory / "mc"),
            "MC_HOST_s3": endpoint.replace("https://", f"https://{who}@"),
            "SSL_CERT_FILE": str(ca_file),
        }

    def make_user(self, name: str) -> Credential:
        """Make a user, whose name is its access key."""
        secret = secrets.token_urlsafe(24)
        self._run("user", "add", "s3", text=f"{name}\n{secret}\n")
        return Credential(name, secret)

    def attach(self, user: str, name: str, policy: str) -> None:
        """Give a user a policy, in place of another of its name."""
        file = self._directory / "policy.json"
        file.write_text(policy)
        self._run("policy", "create", "s3", name, str(file))
        self._run("policy", "attach", "s3", name, "--user", user)

    def _run(self, *arguments: str, text: str = "") -> None:
        done = subprocess.run(
            [str(tools.client().path), "admin", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
        )
        if done.returncode != 0:
            words = " ".join(arguments[:4])
            raise ToolboxError(f"MinIO's client refused {words}: {done.stdout}{done.stderr}")


class AdministeredServer(S3Server):
    """A server whose users a person makes with `mc admin`."""

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
