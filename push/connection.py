"""One connection to the S3 server, kept open: signed requests, bounded answers."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import math
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from formats.error import FormatError
from formats.http_date import parse_http_date
from formats.s3 import LARGEST_ANSWER, parse_etag
from formats.sigv4 import encoded_path, encoded_query
from push.failure import PushError
from push.settings import PushSettings

_CONNECT_SECONDS = 15.0
_SILENCE_SECONDS = 120.0
# An answer that drips is given up, too: so many seconds, and those that a slow line takes.
_ANSWER_SECONDS = 300.0
_BYTES_PER_SECOND = 20_000
_LARGEST_ANSWER_IN_ALL = LARGEST_ANSWER + (1 << 20)
_BLOCK = 1 << 18
_REFUSED_BY_PROXY = re.compile(r"Tunnel connection failed: (4(?!08|29)[0-9]{2})")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


@dataclass(frozen=True)
class FileSlice:
    """Bytes of a file, as a request's body."""

    path: Path
    start: int
    size: int


@dataclass(frozen=True)
class Request:
    """What is asked of the server."""

    step: str
    """What the push is doing, for messages."""
    method: str
    key: str
    """The object's key; empty for the bucket itself."""
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileSlice = b""
    expected: frozenset[int] = frozenset()
    """Statuses besides 2xx that are an answer, and no failure."""
    largest: int = LARGEST_ANSWER
    """Bytes of the largest body that is read; a larger one counts as an empty one."""
    optional: bool = False
    """Whether the push goes on without it, whatever becomes of it."""

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return self.body.size if isinstance(self.body, FileSlice) else len(self.body)


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    date: datetime | None
    """The server's clock; None where it says nothing sound."""

    @property
    def etag(self) -> str | None:
        """The object's ETag; None where the answer has none that is sound."""
        try:
            return parse_etag(self.headers.get("etag", ""))
        except FormatError:
            return None


class TransientError(Exception):
    """The request may succeed when it is made again: the message says what happened."""


class BodyError(Exception):
    """The file that is to be sent cannot be read: the message says what happened."""


class _Incoming(io.RawIOBase):
    """What comes in for one answer, and not more than any answer has.

    `http.client` alone reads on and on where a chunk says that its size is -1.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._raw = connected.makefile("rb", buffering=0)
        self._left = _LARGEST_ANSWER_IN_ALL
        self.ended = False
        """Whether the other side has hung up."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self._left:
            raise http.client.HTTPException("the server's answer does not end")
        count = self._raw.readinto(memoryview(buffer)[: self._left])
        self._left -= count or 0
        self.ended = count == 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    """An answer of which no byte is read but through `_Incoming`."""

    def __init__(self, connected: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(connected, *arguments, **named)
        self.fp.close()
        self._incoming = _Incoming(connected)
        self.fp = io.BufferedReader(self._incoming)

    def begin(self) -> None:
        super().begin()
        # For `http.client`, headers that are cut off are all there is.
        if self._incoming.ended:
            raise http.client.IncompleteRead(b"")


@dataclass(frozen=True)
class _Proxy:
    """A proxy that the environment names."""

    host: str
    port: int
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> _Proxy:
        """Read `http://user:password@host:port`, or less of it."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host = None
        if not host or parts.scheme != "http":
            raise PushError(
                "settings", "the environment's proxy is not http://host:port; set it to that"
            )
        headers = {}
        if parts.username is not None:
            credential = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            encoded = base64.b64encode(credential.encode()).decode()
            headers["Proxy-Authorization"] = f"Basic {encoded}"
        return cls(host, port, headers)


class Route:
    """How connections reach the server: proxies, certificates, and who signs."""

    def __init__(self, settings: PushSettings) -> None:
        """Read the environment's proxies and load the certificates.

        Raises:
            PushError: the certificates or the proxy cannot be used.
        """
        self.settings = settings
        self.signer = settings.signer
        self.context = _tls_context(settings) if settings.scheme == "https" else None
        self.proxy = self._proxy()
        self.round_trip = 0.0
        """Seconds that the fastest connection took to open: about one round trip."""

    def _proxy(self) -> _Proxy | None:
        settings = self.settings
        url = None if proxy_bypass(settings.host) else getproxies().get(settings.scheme)
        return _Proxy.parse(url) if url else None

    def note_round_trip(self, seconds: float) -> None:
        """Remember the fastest opening of a connection."""
        self.round_trip = min(self.round_trip or seconds, seconds)


class Connection:
    """A connection that opens when it is needed, and again when it has broken."""

    def __init__(self, route: Route) -> None:
        """Connect to nothing yet."""
        self._route = route
        self._http: http.client.HTTPConnection | None = None
        # Of an answer that ends with its connection, `http.client` lets go of the socket while the
        # answer is still read.
        self._socket: socket.socket | None = None
        self._deadline = math.inf
        self._late = False

    def give_up_late(self, now: float) -> None:
        """Break a request that takes too long; any thread may do it, with the monotonic clock."""
        if now <= self._deadline:
            return
        opened = self._http
        # Each is read once: the thread whose request it is may put them away meanwhile.
        connected = (opened.sock if opened is not None else None) or self._socket
        if connected is not None:
            self._late = True
            # Below TLS, of which that thread is just reading.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._http is not None:
            self._http.close()
        self._http = self._socket = None

    def exchange(self, request: Request) -> Answer:
        """Make one request.

        Raises:
            TransientError: no whole answer came.
            BodyError: the file that is sent cannot be read.
            PushError: no answer that could be believed can come: the server's certificate is not
                trusted, or it does not speak the endpoint's scheme.
        """
        seconds = _ANSWER_SECONDS + request.size / _BYTES_PER_SECOND
        self._deadline, self._late = time.monotonic() + seconds, False
        try:
            answer = self._exchange(self._open(), request)
            if self._late:
                # One that ends with its connection seems whole where that was broken.
                raise http.client.IncompleteRead(b"")
            return answer
        except BodyError:
            self.close()
            raise
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise PushError(
                request.step,
                f"the server's certificate is not trusted ({error.verify_message}); "
                "set ca-certificate to what signed the certificate of the server",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            refused = _REFUSED_BY_PROXY.match(str(error))
            if refused is not None:
                raise PushError(
                    request.step,
                    f"the environment's proxy does not connect to {self._route.settings.host} "
                    f"(HTTP {refused[1]}); correct https_proxy, or name the host in no_proxy",
                ) from None
            if isinstance(error, ssl.SSLError) and error.reason in (
                "WRONG_VERSION_NUMBER",
                "RECORD_LAYER_FAILURE",
            ):
                raise PushError(
                    request.step,
                    "the server does not speak TLS there; check scheme and port of endpoint "
                    f"{self._route.settings.endpoint}",
                ) from None
            raise TransientError(_why(error)) from None
        finally:
            self._deadline = math.inf

    def _open(self) -> http.client.HTTPConnection:
        if self._http is not None:
            return self._http
        route = self._route
        settings = route.settings
        host, port = settings.host, settings.port
        if route.proxy is not None:
            host, port = route.proxy.host, route.proxy.port
        opened: http.client.HTTPConnection
        if route.context is not None:
            opened = http.client.HTTPSConnection(
                host, port, timeout=_CONNECT_SECONDS, context=route.context, blocksize=_BLOCK
            )
            if route.proxy is not None:
                opened.set_tunnel(settings.host, settings.port, dict(route.proxy.headers))
        else:
            opened = http.client.HTTPConnection(
                host, port, timeout=_CONNECT_SECONDS, blocksize=_BLOCK
            )
        opened.response_class = _BoundedResponse
        # Here already, because a proxy may drip too.
        self._http = opened
        began = time.monotonic()
        try:
            opened.connect()
        except (TimeoutError, ConnectionError, socket.gaierror) as error:
            if isinstance(error, ssl.SSLError):
                raise
            self.close()
            raise TransientError(
                f"Failed to connect to {host} port {port}: {_why(error)}"
            ) from None
        # Opening takes one round trip without TLS, and two with it.
        route.note_round_trip((time.monotonic() - began) / (1 if route.context is None else 2))
        self._socket = opened.sock
        opened.sock.settimeout(_SILENCE_SECONDS)
        return opened

    def _exchange(self, connection: http.client.HTTPConnection, request: Request) -> Answer:
        settings = self._route.settings
        path = settings.path(request.key)
        headers = self._route.signer.signed(
            request.method,
            settings.authority,
            path,
            request.query,
            request.headers,
            datetime.now(timezone.utc),
        )
        target = encoded_path(path)
        if request.query:
            target += f"?{encoded_query(request.query)}"
        if self._route.proxy is not None and self._route.context is None:
            target = f"{settings.endpoint}{target}"
            headers |= self._route.proxy.headers
        interrupted: OSError | None = None
        try:
            self._send(connection, request, target, headers)
        except (ConnectionError, ssl.SSLError) as error:
            # A server may refuse before it has taken all, and hang up: it has told why.
            interrupted = error
        response = connection.getresponse()
        if interrupted is not None and response.status < 400:
            raise interrupted
        body = self._body(response, request, whole=interrupted is None)
        if response.will_close or interrupted is not None:
            self.close()
        answered = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, answered, body, _date(answered.get("date", "")))

    def _body(self, response: http.client.HTTPResponse, request: Request, *, whole: bool) -> bytes:
        """Return an answer's body, which must be `whole`; nothing where it is too large."""
        try:
            # Also where there is none, so that the connection is free again.
            body = response.read(request.largest + 1)
        except (OSError, http.client.HTTPException):
            if whole:
                raise
            return b""
        if len(body) > request.largest:
            # The rest may be endless: nobody waits for it.
            self.close()
            return b""
        if whole and request.method != "HEAD" and response.length:
            raise http.client.IncompleteRead(body, response.length)
        return body

    def _send(
        self,
        connection: http.client.HTTPConnection,
        request: Request,
        target: str,
        headers: Mapping[str, str],
    ) -> None:
        connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        body, size = request.body, request.size
        if size or request.method in ("PUT", "POST"):
            connection.putheader("content-length", str(size))
        if isinstance(body, bytes):
            connection.endheaders(body or None)
            return
        connection.endheaders()
        for block in _blocks(body):
            connection.send(block)


def _blocks(body: FileSlice) -> Iterator[bytes]:
    """Yield the bytes of a slice.

    Raises:
        BodyError: the file cannot be read, or is shorter than it was.
    """
    why = "is shorter than it was"
    left = body.size
    try:
        with body.path.open("rb", buffering=0) as file:
            file.seek(body.start)
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    break
                left -= len(block)
                yield block
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    if left:
        raise BodyError(f"{body.path.name} {why}; see that the disk is sound")


def _tls_context(settings: PushSettings) -> ssl.SSLContext:
    """Return what verifies the server: the certificates given, or else what Nix itself would take.

    Source: Nix manual, `ssl-cert-file`, for the two variables.
    """
    try:
        if settings.ca_certificate is not None:
            # Bundles have names and comments between certificates, in any language.
            certificates = _CERTIFICATE.findall(settings.ca_certificate)
            if not certificates:
                raise ValueError
            return ssl.create_default_context(cadata="\n".join(certificates))
        return ssl.create_default_context()
    except (ssl.SSLError, ValueError):
        raise PushError(
            "settings", "ca-certificate holds no certificate; give the whole PEM file"
        ) from None


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "the connection broke before the answer was whole"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else " " for letter in text[:200])


def _date(text: str) -> datetime | None:
    try:
        return parse_http_date(text)
    except FormatError:
        return None


def clock_skew(answer: Answer) -> timedelta | None:
    """Return how far this machine's clock is ahead of the server's, None where it is not known."""
    return None if answer.date is None else datetime.now(timezone.utc) - answer.date
