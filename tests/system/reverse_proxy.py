"""A loopback proxy in front of the server, as people have one: plain HTTP, and its own Host."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3

from toolbox.minio_server import MinioServer

HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "server"}

Lie = Callable[[str, str, Mapping[str, str]], tuple[int, bytes] | None]
"""Given method, target and headers of a request: the status and the body that are answered in the
server's place; None lets the server answer."""


Add = Callable[[str], Mapping[str, str]]
"""Given a request's target: headers that the answer gets besides."""


def nothing(_target: str) -> Mapping[str, str]:
    """Leave the answer's headers as they are."""
    return {}


def truth(_method: str, _target: str, _headers: Mapping[str, str]) -> None:
    """Let the server answer."""


@contextmanager
def reverse_proxy(
    server: MinioServer,
    *,
    host: str | None = None,
    address: str = "127.0.0.1",
    lie: Lie = truth,
    add: Add = nothing,
) -> Iterator[str]:
    """Run the proxy; the value is its URL.

    Args:
        server: what is behind it.
        host: what it puts in the place of a request's `Host`; None passes it on.
        address: where it listens.
        lie: what it answers by itself.
        add: headers that it adds to the server's answers.
    """
    pool = urllib3.PoolManager(ca_certs=str(server.ca_file), retries=False, maxsize=8)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            # Whichever case a client writes its names in.
            headers = {name.title(): value for name, value in self.headers.items()}
            if host is not None:
                headers["Host"] = host
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = lie(self.command, self.path, dict(self.headers.items()))
            if told is not None:
                self.send_response(told[0])
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(told[1])))
                self.end_headers()
                self.wfile.write(told[1])
                return
            answer = pool.request(
                self.command,
                server.endpoint + self.path,
                body=body,
                headers=headers,
                decode_content=False,
                redirect=False,
            )
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            for name, value in add(self.path).items():
                self.send_header(name, value)
            size = str(len(answer.data))
            if self.command == "HEAD":
                size = answer.headers.get("Content-Length", size)
            self.send_header("Content-Length", size)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.pass_on)
    with serving(Handler, address) as url:
        yield url


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1") -> Iterator[str]:
    """Serve HTTP on a free port; the value is the URL."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    with Server((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            name = f"[{address}]" if ":" in address else address
            yield f"http://{name}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
