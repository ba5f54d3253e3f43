"""A loopback proxy that signs S3 requests, for a Nix built without AWS support.

Debian's Nix sends its `s3://` requests unsigned. This adds the signature that a Nix with AWS
support would have made from `~/.aws/credentials`; the server, the user and the policy are real.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import urllib3
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3
from minio.time import utcnow

from toolbox.minio_server import MinioServer

PASSED_ON = ("Content-Type", "Content-Encoding", "Range")
"""Request headers that the server needs to see; the rest belongs to one hop or the signature."""


@contextmanager
def signing_proxy(server: MinioServer, user: str, secret: str) -> Iterator[str]:
    """Run the proxy for one S3 user; the value is its URL."""
    pool = urllib3.PoolManager(ca_certs=str(server.ca_file), retries=False)
    credentials = Credentials(user, secret)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(f"{server.endpoint}{self.path}")
            headers = {name: self.headers[name] for name in PASSED_ON if self.headers.get(name)}
            payload, now = "UNSIGNED-PAYLOAD", utcnow()
            headers |= {
                "Host": url.netloc,
                "x-amz-content-sha256": payload,
                "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
            }
            signed = sign_v4_s3(
                method=self.command,
                url=url,
                region="us-east-1",
                headers=headers,
                credentials=credentials,
                content_sha256=payload,
                date=now,
            )
            answer = pool.request(
                self.command,
                url.geturl(),
                body=body,
                headers={k: str(v) for k, v in signed.items()},
                decode_content=False,
            )
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Encoding", "ETag", "Last-Modified"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            length = answer.headers.get("Content-Length") or str(len(answer.data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.data)

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.pass_on)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
