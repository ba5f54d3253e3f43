"""A loopback proxy before the S3 server, that fails requests as networks and servers do."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3

from toolbox.minio_server import MinioServer

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect", "date"})


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it, in the order of arrival."""

    number: int
    """Counts from 1."""
    method: str
    key: str
    """Path below the bucket, with its query."""
    copies: bool
    """Whether it makes the server copy an object."""
    path: str = ""
    """The whole path, with its query."""
    body: bytes = field(default=b"", repr=False)


Fault = Callable[[Request], int]
"""What happens to a request: one of the constants below, or an HTTP status to answer with."""

Change = Callable[[Request, bytes], bytes]
"""What becomes of the body of an answer."""

PASS = 0
RESET_BEFORE = -1
"""The connection breaks before the server has seen the request."""
RESET_AFTER = -2
"""The server has done it, but the connection breaks before the client learns of it."""
TRUNCATE = -3
"""The connection breaks in the middle of the answer, or before it where it has no body."""


@dataclass
class Traffic:
    """The proxy's URL, and what went through it."""

    url: str
    requests: list[Request] = field(default_factory=list)
    faults: int = 0
    ended: dict[int, int] = field(default_factory=dict)
    """For each request by its number, how many requests had come when it was answered well."""


def at_random(share: float, seed: int) -> Fault:
    """Fail a share of all requests, half of them with 5xx or 429, half with broken connections."""
    draw = random.Random(seed)

    def fault(_: Request) -> int:
        if draw.random() >= share:
            return PASS
        return draw.choice((500, 503, 502, 429, RESET_BEFORE, RESET_AFTER, TRUNCATE, RESET_AFTER))

    return fault


def until_asked_again(status: int) -> Fault:
    """Answer every request with an HTTP status until one is made for the second time.

    So no other gets through meanwhile, in whatever order they come.
    """
    seen: set[tuple[str, str]] = set()
    again = threading.Event()
    lock = threading.Lock()

    def fault(request: Request) -> int:
        what = (request.method, request.path)
        with lock:
            if what in seen:
                again.set()
            seen.add(what)
        return PASS if again.is_set() else status

    return fault


@contextmanager
def fault_proxy(
    server: MinioServer,
    fault: Fault = lambda _: PASS,
    *,
    retry_after: float | None = None,
    change: Change = lambda _, body: body,
) -> Iterator[Traffic]:
    """Run a proxy that treats each request as `fault` says, which may take its time.

    Answers that it makes up ask for `retry_after` seconds; `change` returns what becomes of the
    body of the server's own.
    """
    pool = urllib3.PoolManager(ca_certs=str(server.ca_file), retries=False, maxsize=32)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def pass_on(self) -> None:
            length = self.headers.get("Content-Length")
            body = self.rfile.read(int(length)) if length else None
            request = self.note(body or b"")
            what = fault(request)
            if what != PASS:
                with lock:
                    traffic.faults += 1
            if what == RESET_BEFORE:
                return self.reset()
            if what > 0:
                pause = {} if retry_after is None else {"Retry-After": str(retry_after)}
                return self.answer(what, pause, b"")
            try:
                answer = pool.request(
                    self.command,
                    server.endpoint + self.path,
                    body=body,
                    headers=dict(self.headers.items()),
                    decode_content=False,
                )
            except urllib3.exceptions.HTTPError:
                return self.reset()
            if what == RESET_AFTER:
                return self.reset()
            with lock:
                traffic.ended[request.number] = len(traffic.requests)
            headers, body = dict(answer.headers), change(request, answer.data)
            if len(body) != len(answer.data):
                headers["Content-Length"] = str(len(body))
            self.answer(answer.status, headers, body, truncate=what == TRUNCATE)
            return None

        def note(self, body: bytes) -> Request:
            with lock:
                request = Request(
                    len(traffic.requests) + 1,
                    self.command,
                    self.path.lstrip("/").partition("/")[2],
                    "x-amz-copy-source" in self.headers,
                    self.path,
                    body,
                )
                traffic.requests.append(request)
            return request

        def answer(
            self, status: int, headers: dict[str, str], body: bytes, *, truncate: bool = False
        ) -> None:
            self.send_response_only(status)
            headers = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}
            headers.setdefault("Content-Length", str(len(body)))
            headers["Date"] = self.date_time_string()
            for name, value in headers.items():
                self.send_header(name, value)
            if truncate and self.command == "GET":
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                return self.reset()
            if truncate:
                return self.reset()
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            return None

        def reset(self) -> None:
            # Without lingering, closing sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.pass_on)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def shutdown_request(self, request: object) -> None:
            # The default says goodbye first, which would make the reset an orderly end.
            self.close_request(request)  # type: ignore[arg-type]

        def handle_error(self, *_: object) -> None:
            # A client that was killed breaks its connections.
            pass

    proxy = Server(("127.0.0.1", 0), Handler)
    traffic = Traffic(f"http://127.0.0.1:{proxy.server_port}")
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield traffic
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
