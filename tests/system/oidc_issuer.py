"""A small issuer of identity tokens on loopback, as a forge has one for its jobs.

Source: OpenID Connect Discovery 1.0; RFC 7515 to 7519 (JWS, JWK, JWT).
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

CLIENT = "nix-cache"
"""Whom its tokens are for."""


class Issuer:
    """Signs tokens, and says with which key."""

    def __init__(self) -> None:
        """Make the key."""
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.url = ""

    def token(self, subject: str, seconds: int = 300, audience: str = CLIENT) -> str:
        """Return a token that says who a job is."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": subject,
            "aud": audience,
            "iat": now,
            "exp": now + seconds,
        }
        head = _encoded(json.dumps({"alg": "RS256", "typ": "JWT", "kid": "1"}).encode())
        body = f"{head}.{_encoded(json.dumps(claims).encode())}"
        signature = self._key.sign(body.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{body}.{_encoded(signature)}"

    def documents(self) -> dict[str, object]:
        """Return what it answers, by path."""
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "kid": "1",
            "use": "sig",
            "alg": "RS256",
            "n": _encoded(numbers.n.to_bytes(256, "big")),
            "e": _encoded(numbers.e.to_bytes(3, "big")),
        }
        return {
            "/.well-known/openid-configuration": {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
                "authorization_endpoint": f"{self.url}/none",
                "token_endpoint": f"{self.url}/none",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            },
            "/keys": {"keys": [key]},
            f"/token?of=a-job&audience={CLIENT}": {"count": 1, "value": self.token("a job")},
        }


@contextmanager
def issuer() -> Iterator[Issuer]:
    """Run an issuer."""
    made = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = made.documents().get(self.path)
            body = json.dumps(document).encode()
            self.send_response(404 if document is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
