"""S3 requests as an attacker writes them: any path to the letter, any header, any user."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from urllib.parse import urlsplit

from formats.sigv4 import Signer, encoded_path, encoded_query
from toolbox.minio_server import MinioServer


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    body: bytes

    @property
    def code(self) -> str:
        """The server's word for a refusal; empty where there is none."""
        found = re.search(rb'<Code>(\w+)</Code>|"Code":\s*"(\w+)"', self.body)
        return (found[1] or found[2]).decode() if found else ""


@dataclass
class Requester:
    """Somebody who asks a server; one without a name signs nothing."""

    server: MinioServer
    user: str = ""
    secret: str = field(default="", repr=False)
    _connection: http.client.HTTPSConnection | None = None

    def ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] = {},
        body: bytes = b"",
    ) -> Answer:
        """Make one request; nothing of the path is put right on its way."""
        host = urlsplit(self.server.endpoint).netloc
        target = encoded_path(path) + (f"?{encoded_query(query)}" if query else "")
        if body:
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            headers = {"content-md5": base64.b64encode(digest).decode(), **headers}
        sent = {"host": host, **headers}
        if self.user:
            signer = Signer(self.user, self.secret, "us-east-1")
            sent = signer.signed(method, host, path, query, headers, datetime.now(timezone.utc))
        try:
            return self._exchange(host, method, target, body, sent)
        except (http.client.HTTPException, OSError):
            # A server that has refused a body before it read it hangs up.
            self.close()
            return self._exchange(host, method, target, body, sent)

    def _exchange(
        self, host: str, method: str, target: str, body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        if self._connection is None:
            context = ssl.create_default_context(cafile=str(self.server.ca_file))
            self._connection = http.client.HTTPSConnection(host, context=context, timeout=20)
        self._connection.request(method, target, body=body, headers=dict(headers))
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.read())

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
