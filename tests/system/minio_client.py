"""The real `mc`, as a person with the server's own password uses it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from toolbox import tools
from toolbox.minio_server import MinioServer


class MinioClient:
    """Runs `mc` against a server, which it knows as `s3`, and others by their names."""

    def __init__(self, server: MinioServer, directory: Path, **others: MinioServer) -> None:
        """Keep the client's configuration in `directory`."""
        servers = {"s3": server, **others}
        bundle = directory / "mc-trusts.pem"
        bundle.write_text("".join(one.ca_file.read_text() for one in servers.values()))
        self._environment = {
            **os.environ,
            "MC_CONFIG_DIR": str(directory),
            **{f"MC_HOST_{name}": _with_credential(one) for name, one in servers.items()},
            "SSL_CERT_FILE": str(bundle),
        }
        self._command = str(tools.client().path)

    def run(self, arguments: str, text: str = "") -> str:
        """Run `mc` with the words of `arguments`, `text` on its input; return what it prints."""
        return self._printed([self._command, *arguments.split()], f"mc {arguments}", text=text)

    def shell(self, script: str, directory: Path) -> str:
        """Run a script that types `mc` in a directory; return what it prints."""
        path = f"{Path(self._command).parent}:{os.environ['PATH']}"
        command = ["bash", "-eu", "-o", "pipefail", "-c", script]
        return self._printed(command, script, directory=directory, PATH=path)

    def _printed(
        self,
        command: Sequence[str],
        called: str,
        *,
        text: str = "",
        directory: Path | None = None,
        **environment: str,
    ) -> str:
        done = subprocess.run(
            command,
            env={**self._environment, **environment},
            cwd=directory,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{called}: {done.stdout}{done.stderr}"
        return done.stdout


def _with_credential(server: MinioServer) -> str:
    credential = f"{server.root_user}:{server.root_password}"
    return server.endpoint.replace("https://", f"https://{credential}@")
