"""TLS in front of a plain server: what goes in comes out, both ways, and nothing stays."""

from __future__ import annotations

import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3

from toolbox.certificates import make_authority
from toolbox.servers.tls_front import tls_front, to_port

LARGE = bytes(3_000_000)


class Handler(BaseHTTPRequestHandler):
    """Answers with as many bytes as it was sent."""

    def do_PUT(self) -> None:
        size = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(bytes(size))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_request_and_its_answer_pass_through(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with tls_front(to_port(server.server_port), authority) as port:
                pool = urllib3.PoolManager(ca_certs=str(authority.ca_file), retries=False)
                url = f"https://localhost:{port}/"
                assert pool.request("PUT", url, body=LARGE).data == LARGE
                context = ssl.create_default_context(cafile=str(authority.ca_file))
                with (
                    socket.create_connection(("127.0.0.1", port)) as plain,
                    context.wrap_socket(plain, server_hostname="localhost"),
                ):
                    pass
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", port))
        finally:
            server.shutdown()
            thread.join()
