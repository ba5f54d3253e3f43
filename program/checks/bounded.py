"""Connections on which no answer takes longer, or more memory, than was thought of beforehand.

urllib3's timeouts are for one read each: a server that sends a byte now and then keeps a deployment
waiting for ever. Here a request has so many seconds, retries and the answer's body included.
"""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, Retry
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ProtocolError
from urllib3.poolmanager import PoolManager, ProxyManager
from urllib3.util import make_headers, parse_url

LARGEST_ANSWER = 1 << 24
"""Bytes of the largest answer that is read whole: twice a page of a listing."""

_PIECE = 1 << 16
_LONGEST_PAUSE_SECONDS = 10
_MALFORMED = "the answer is malformed"
_asking = threading.local()


class _Watch:
    """Hangs up on whoever has not answered in time."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._connection: HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._hang_up)
        self._timer.daemon = True

    def __enter__(self) -> None:
        _asking.watch = self
        self._timer.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _asking.watch = None
        if self.over and (error is None or isinstance(error, HTTPError)):
            raise ProtocolError("the answer did not end in time")

    def follow(self, connection: HTTPConnection) -> None:
        """Watch the connection that is used from now on."""
        if self.over:
            raise ProtocolError("the answer did not end in time")
        self._connection = connection
        self._socket = connection.sock

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        self._connection = self._socket = None

    def _hang_up(self) -> None:
        self.over = True
        connected = self._connection.sock if self._connection is not None else None
        # Of an answer that ends with its connection, the connection has let go of the socket.
        sock = connected or self._socket
        if sock is not None:
            # Below TLS, of which another thread is just reading.
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Watched(HTTPConnection):
    """A connection that says when it is used."""

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Make a request, and be watched."""
        watch: _Watch | None = getattr(_asking, "watch", None)
        if watch is not None:
            watch.follow(self)
        super().request(*args, **kwargs)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        """Wait for an answer's head, and be watched."""
        watch: _Watch | None = getattr(_asking, "watch", None)
        if watch is not None:
            watch.follow(self)
        return super().getresponse()


class _WatchedTls(_Watched, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Watched


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTls


class BoundedConnections(PoolManager):
    """Connections on which an answer is bounded in time and, if it is read whole, in size."""

    def __init__(self, seconds: float, most: int = LARGEST_ANSWER, **kwargs: Any) -> None:
        """Connect to nothing yet.

        Args:
            seconds: how long a request may take with its retries and its answer. Of an answer that
                the caller reads in pieces, only the head is waited for.
            most: bytes of the largest answer that is read whole.
            **kwargs: as urllib3's `PoolManager` has them.
        """
        super().__init__(**kwargs)
        self.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        self._seconds = seconds
        self._most = most
        self._options = kwargs
        self._by_proxy: dict[str, ProxyManager] = {}

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **kwargs: Any
    ) -> BaseHTTPResponse:
        """Ask, and read the answer unless `preload_content` is off.

        Raises:
            HTTPError: there is none in time, or it is too large.
        """
        whole = kwargs.pop("preload_content", True)
        watch = _Watch(self._seconds)
        try:
            with watch:
                ask = super().urlopen if (proxy := proxy_of(url)) is None else self._by(proxy)
                answer = ask(method, url, redirect, preload_content=False, **kwargs)
                if not whole:
                    return answer
                body = self._body(answer)
        except HTTPError:
            raise
        # Some of what urllib3 is pointed to is no URL to Python.
        except ValueError:
            raise ProtocolError(_MALFORMED) from None
        finally:
            watch.end()
        return HTTPResponse(
            # Bytes without any would be no body at all.
            body=io.BytesIO(body),
            headers=answer.headers,
            status=answer.status,
            version=answer.version,
            reason=answer.reason or "",
            decode_content=False,
            retries=answer.retries if isinstance(answer.retries, Retry) else None,
            request_method=method,
            request_url=url,
        )

    def _by(self, proxy: str) -> Callable[..., BaseHTTPResponse]:
        """Return how a proxy is asked."""
        if proxy not in self._by_proxy:
            auth = parse_url(proxy).auth
            headers = make_headers(proxy_basic_auth=unquote(auth)) if auth else None
            manager = ProxyManager(proxy, proxy_headers=headers, **self._options)
            manager.pool_classes_by_scheme = self.pool_classes_by_scheme
            self._by_proxy[proxy] = manager
        return self._by_proxy[proxy].urlopen

    def _body(self, answer: BaseHTTPResponse) -> bytes:
        pieces: list[bytes] = []
        left = self._most
        while piece := read(answer, _PIECE):
            left -= len(piece)
            if left < 0:
                answer.close()
                raise ProtocolError("the answer is too large")
            pieces.append(piece)
        answer.release_conn()
        return b"".join(pieces)


def proxy_of(url: str) -> str | None:
    """Return the proxy by which the environment wants a URL asked for, None where by none.

    Pushes ask by it, and so does the provider: a check that did not would tell of another way.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    # Imported here: few have a proxy, and a preview would wait for it.
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    parts = parse_url(url)
    if parts.host is None or proxy_bypass(parts.host.strip("[]")):
        return None
    return getproxies().get(parts.scheme or "http")


def read(answer: BaseHTTPResponse, most: int) -> bytes:
    """Return the next bytes of an answer that is read in pieces, `most` at the most.

    Raises:
        HTTPError: it breaks off, or is malformed.
    """
    try:
        return answer.read(most)
    except HTTPError:
        raise
    # A chunk may say that its size is below zero.
    except ValueError:
        raise ProtocolError(_MALFORMED) from None


def retries(total: int, **more: Any) -> Retry:
    """Return how often is tried again, and waited no longer than that is worth.

    Left to itself, urllib3 waits for hours where a server asks for that (`Retry-After`).
    """
    return Retry(total, retry_after_max=_LONGEST_PAUSE_SECONDS, **more)


@contextmanager
def in_time(answer: BaseHTTPResponse, seconds: float) -> Iterator[None]:
    """Hang up on an answer that is read in pieces, and is not read within so many seconds.

    Raises:
        HTTPError: it did not end in time.
    """
    over = threading.Event()

    def hang_up() -> None:
        over.set()
        # It may just have been read to its end.
        with suppress(OSError, RuntimeError, ValueError):
            answer.shutdown()

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except HTTPError:
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise ProtocolError("the answer did not end in time")
