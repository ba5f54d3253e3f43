"""Reads a binary cache over HTTP as a Nix client does: by name, without listing."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import urllib3
from urllib3.exceptions import HTTPError

from program.checks.bounded import BoundedConnections, in_time, retries

OK, GONE, SERVER_ERROR = 200, 404, 500
"""HTTP statuses; what is not below the last one is the server's own failure."""

CACHE_INFO = "nix-cache-info"
"""What every client reads first."""

_WHOLE_ANSWER_SECONDS = 60.0
_LONGEST_SIZE = 18
_SLOWEST = 100_000
"""Bytes a second that a file takes which is read piece by piece."""

_HEADERS = {"Accept-Encoding": "identity"}
"""A cache's files are read as they are stored, so that their sizes can be compared."""


@dataclass(frozen=True)
class Answer:
    """What the cache answered to one request."""

    status: int
    """The HTTP status; 200 is good."""
    size: int | None
    """The file's size in bytes (`Content-Length`), where the answer says it."""
    body: bytes = b""
    content_type: str = ""
    """`Content-Type`, where the answer says it."""


class CacheClient:
    """A client of one cache; many threads may share it.

    Methods raise `urllib3.exceptions.HTTPError` when the cache does not answer, or breaks off.
    """

    def __init__(
        self,
        url: Callable[[str, str], str],
        ca_certificate_file: str | None,
        connections: int,
        login: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: gives the URL for an HTTP method and a file's name; it holds a private cache's
                credential.
            ca_certificate_file: a private CA that is trusted besides the system's.
            connections: how many are kept open.
            login: headers by which this user is known; no other host is told them.
        """
        context = ssl.create_default_context()
        if ca_certificate_file is not None:
            context.load_verify_locations(ca_certificate_file)
        self._url = url
        self._headers = {**_HEADERS, **login}
        self._pool = BoundedConnections(
            _WHOLE_ANSWER_SECONDS,
            maxsize=connections,
            ssl_context=context,
            timeout=urllib3.Timeout(connect=5.0, read=60.0),
            retries=retries(
                3, backoff_factor=0.2, status_forcelist=[502, 503, 504], raise_on_status=False
            ),
        )

    def read(self, name: str) -> Answer:
        """Return the file `name` whole."""
        response = self._request("GET", name)
        return Answer(response.status, _size(response), response.data, _content_type(response))

    def look_at(self, name: str) -> Answer:
        """Return what the cache says of the file `name`, without its body."""
        response = self._request("HEAD", name)
        return Answer(response.status, _size(response), content_type=_content_type(response))

    def answers(self) -> bool:
        """Return whether the cache answers at all, whatever it says.

        One file that breaks off may be damaged, and then it is the file alone.
        """
        try:
            # Without a body: it may be damaged itself.
            self.look_at(CACHE_INFO)
        except HTTPError:
            return False
        return True

    @contextmanager
    def open(self, name: str) -> Iterator[urllib3.BaseHTTPResponse]:
        """Open the file `name` to be read piece by piece."""
        response = self._request("GET", name, preload_content=False)
        seconds = _WHOLE_ANSWER_SECONDS + (_size(response) or 0) / _SLOWEST
        seconds = min(seconds, threading.TIMEOUT_MAX)
        try:
            with in_time(response, seconds):
                yield response
        finally:
            response.close()

    def _request(
        self, method: str, name: str, *, preload_content: bool = True
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.request(
            method, self._url(method, name), headers=self._headers, preload_content=preload_content
        )


def _size(response: urllib3.BaseHTTPResponse) -> int | None:
    value = response.headers.get("Content-Length", "")
    # Longer ones are no sizes, and the longest no numbers to Python.
    return int(value) if value.isdecimal() and len(value) <= _LONGEST_SIZE else None


def _content_type(response: urllib3.BaseHTTPResponse) -> str:
    return str(response.headers.get("Content-Type", ""))
