"""A vault on a socket of its own, which keeps the key that a stack's secrets are encrypted with.

The engine takes a sixth of a second of processor time to make a key of a passphrase, in each of its
commands; a vault's transit engine tells it one. No registry carries such a server. This one knows
the two calls that the engine makes, one key, and no tokens: who may open the socket may ask.

Source: Vault's API, "Transit secrets engine", `encrypt` and `decrypt`.
"""

from __future__ import annotations

import atexit
import base64
import json
import shutil
import tempfile
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nacl.utils import random

PROVIDER = "hashivault://tests"
"""What the engine calls the vault's key, as `--secrets-provider`."""
_PREFIX = "vault:v1:"
_BOX = SecretBox(random(SecretBox.KEY_SIZE))


@cache
def address() -> str:
    """Return where this process's vault answers, as `VAULT_ADDR` has it; it ends with the process.

    It is a socket's path, so that an engine in a network namespace of its own reaches it too.
    """
    directory = Path(tempfile.mkdtemp(prefix="vault-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    server = _Server(str(directory / "socket"), _Transit)
    threading.Thread(target=server.serve_forever, name="vault", daemon=True).start()
    return f"unix://{server.server_address}"


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True


class _Transit(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        """Encrypt or decrypt what was sent."""
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            if self.path == "/v1/transit/encrypt/tests":
                ciphertext: bytes = _BOX.encrypt(base64.b64decode(sent["plaintext"]))
                found = {"ciphertext": _PREFIX + base64.b64encode(ciphertext).decode()}
            elif self.path == "/v1/transit/decrypt/tests":
                ciphertext = base64.b64decode(sent["ciphertext"].removeprefix(_PREFIX))
                found = {"plaintext": base64.b64encode(_BOX.decrypt(ciphertext)).decode()}
            else:
                self._answer(404, {"errors": []})
                return
        except CryptoError:
            self._answer(400, {"errors": ["cipher: message authentication failed"]})
            return
        self._answer(200, {"data": found})

    def _answer(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
