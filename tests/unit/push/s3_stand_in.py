"""An S3 server in this process: honest about what it has, or saying whatever a test wants."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from formats.push_status import STATUS_FOLDER

BUCKET = "cache"
NOW = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Seen:
    """One request as the server saw it."""

    method: str
    target: str
    """As it stood in the request's line."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """Empty where the server throws bodies away."""
    size: int
    """Bytes of the body."""
    connection: int
    """Which connection it came on."""

    @property
    def key(self) -> str:
        """The object's key; empty for the bucket."""
        return unquote(urlsplit(self.target).path).removeprefix(f"/{BUCKET}").removeprefix("/")

    @property
    def query(self) -> dict[str, str]:
        """The query's names and values."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Raw:
    """Bytes in place of an answer; the connection ends with them."""

    chunks: Iterable[bytes]


Script = Callable[[Seen], Reply | Raw | None]
"""What is answered; None lets the server answer as it is."""


@dataclass
class Stored:
    """An object."""

    content: bytes
    etag: str
    modified: datetime
    size: int


def http_date(when: datetime) -> str:
    """Return a time as HTTP has it."""
    return when.strftime("%a, %d %b %Y %H:%M:%S GMT")


class StandIn:
    """The server's state, and what it was asked."""

    def __init__(self, *, keep: bool = True) -> None:
        """Have an empty bucket; without `keep`, bodies are counted and thrown away."""
        self.url = ""
        self.port = 0
        self.now = NOW
        self.script: Script = lambda _: None
        self.seen: list[Seen] = []
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, tuple[str, datetime, dict[int, tuple[bytes, int]]]] = {}
        self.keep = keep
        self.lock = threading.Lock()

    def put(self, key: str, content: bytes, *, days_old: int = 0, size: int | None = None) -> None:
        """Write an object."""
        self.objects[key] = Stored(
            content,
            hashlib.md5(content).hexdigest(),
            self.now - timedelta(days=days_old),
            len(content) if size is None else size,
        )

    def asked(self, method: str) -> list[Seen]:
        """Return the requests of one method, but for those about the status that pushes leave."""
        return [one for one in self.seen if one.method == method and STATUS_FOLDER not in one.key]

    def answer(self, seen: Seen) -> Reply | Raw:
        """Return what is answered."""
        with self.lock:
            self.seen.append(seen)
        scripted = self.script(seen)
        if scripted is not None:
            return scripted
        with self.lock:
            return getattr(self, f"_{seen.method.lower()}")(seen)  # type: ignore[no-any-return]

    def _get(self, seen: Seen) -> Reply:
        if seen.key:
            stored = self.objects.get(seen.key)
            return NOT_FOUND if stored is None else Reply(200, _headers(stored), stored.content)
        if "uploads" in seen.query:
            uploads = "".join(
                f"<Upload><Key>{key}</Key><UploadId>{name}</UploadId>"
                f"<Initiated>{iso(begun)}</Initiated></Upload>"
                for name, (key, begun, _) in self.uploads.items()
            )
            return xml("ListMultipartUploadsResult", uploads)
        return self.page(seen.query)

    def page(self, query: Mapping[str, str]) -> Reply:
        """Return the page of a listing that a query asks for."""
        prefix, after = query.get("prefix", ""), query.get("start-after", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        if "delimiter" in query:
            keys = [key for key in keys if "/" not in key[len(prefix) :]]
        page = keys[: int(query["max-keys"])]
        return listing([(key, self.objects[key]) for key in page], truncated=len(page) < len(keys))

    def _head(self, seen: Seen) -> Reply:
        stored = self.objects.get(seen.key)
        if stored is None:
            return Reply(404)
        return Reply(200, {**_headers(stored), "Content-Length": str(stored.size)})

    def _put(self, seen: Seen) -> Reply:
        if "partNumber" in seen.query:
            return self._part(seen)
        source = _source(seen)
        if source is None:
            refused = self._unmet(seen)
            if refused is not None:
                return refused
            self.put(seen.key, seen.body, size=seen.size)
            return Reply(200, {"ETag": f'"{self.objects[seen.key].etag}"'})
        stored = self.objects.get(source)
        if stored is None:
            return NOT_FOUND
        if seen.headers.get("x-amz-copy-source-if-match", stored.etag) != stored.etag:
            return error(412, "PreconditionFailed")
        self.objects[seen.key] = Stored(stored.content, stored.etag, self.now, stored.size)
        time = f"<LastModified>{iso(self.now)}</LastModified>"
        return xml("CopyObjectResult", f"{time}<ETag>&quot;{stored.etag}&quot;</ETag>")

    def _unmet(self, seen: Seen) -> Reply | None:
        """Return what MinIO answers where a write's condition does not hold."""
        stored = self.objects.get(seen.key)
        wanted = seen.headers.get("if-match")
        if wanted is not None and stored is None:
            return NOT_FOUND
        etag = "" if stored is None else f'"{stored.etag}"'
        if wanted not in (None, etag) or (stored and seen.headers.get("if-none-match") == "*"):
            return replace(error(412, "PreconditionFailed"), headers={"ETag": etag})
        return None

    def _part(self, seen: Seen) -> Reply:
        if seen.query["uploadId"] not in self.uploads:
            return error(404, "NoSuchUpload")
        parts = self.uploads[seen.query["uploadId"]][2]
        number, content, size = int(seen.query["partNumber"]), seen.body, seen.size
        source = _source(seen)
        if source is not None:
            stored = self.objects.get(source)
            if stored is None:
                return NOT_FOUND
            first, last = map(int, re.findall("[0-9]+", seen.headers["x-amz-copy-source-range"]))
            content, size = stored.content[first : last + 1], last + 1 - first
        parts[number] = (content, size)
        etag = hashlib.md5(content).hexdigest()
        if source is not None:
            return xml("CopyPartResult", f"<ETag>&quot;{etag}&quot;</ETag>")
        return Reply(200, {"ETag": f'"{etag}"'})

    def _post(self, seen: Seen) -> Reply:
        if "uploads" in seen.query:
            name = f"upload-{len(self.uploads)}"
            self.uploads[name] = (seen.key, self.now, {})
            return xml("InitiateMultipartUploadResult", f"<UploadId>{name}</UploadId>")
        name = seen.query["uploadId"]
        if name not in self.uploads:
            return error(404, "NoSuchUpload")
        parts = self.uploads.pop(name)[2]
        ordered = [parts[number] for number in sorted(parts)]
        content = b"".join(part for part, _ in ordered)
        self.put(seen.key, content, size=sum(size for _, size in ordered))
        sums = b"".join(hashlib.md5(part).digest() for part, _ in ordered)
        etag = f"{hashlib.md5(sums).hexdigest()}-{len(ordered)}"
        self.objects[seen.key].etag = etag
        return xml("CompleteMultipartUploadResult", f"<ETag>&quot;{etag}&quot;</ETag>")

    def _delete(self, seen: Seen) -> Reply:
        return Reply(404 if self.uploads.pop(seen.query["uploadId"], None) is None else 204)


def _source(seen: Seen) -> str | None:
    """Return the key of what is copied, as S3 reads it: encoded, and with a version behind a ?."""
    source = seen.headers.get("x-amz-copy-source")
    return source and unquote(source.partition("?")[0]).removeprefix(f"/{BUCKET}/")


def xml(name: str, content: str, status: int = 200) -> Reply:
    """Return an answer of S3's."""
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{space}">{content}</{name}>'
    return Reply(status, {"Content-Type": "application/xml"}, text.encode())


def error(status: int, code: str, message: str = "") -> Reply:
    """Return a refusal of S3's."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, {}, text.encode())


NOT_FOUND = error(404, "NoSuchKey")


def listing(objects: Iterable[tuple[str, Stored]], *, truncated: bool) -> Reply:
    """Return a page of a listing."""
    entries = "".join(
        f"<Contents><Key>{quote(key)}</Key><LastModified>{iso(one.modified)}</LastModified>"
        f"<ETag>&quot;{one.etag}&quot;</ETag><Size>{one.size}</Size></Contents>"
        for key, one in objects
    )
    more = f"<IsTruncated>{str(truncated).lower()}</IsTruncated><EncodingType>url</EncodingType>"
    return xml("ListBucketResult", f"{more}{entries}")


def iso(when: datetime) -> str:
    """Return a time as S3's answers have it."""
    return when.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _headers(stored: Stored) -> dict[str, str]:
    return {"ETag": f'"{stored.etag}"', "Last-Modified": http_date(stored.modified)}


@contextmanager
def serving(stand_in: StandIn, family: socket.AddressFamily = socket.AF_INET) -> Iterator[StandIn]:
    """Answer for a stand-in on loopback."""
    numbers = iter(range(1, 1_000_000))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.number = next(numbers)

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = b""
            if stand_in.keep:
                body = self.rfile.read(size)
            else:
                left = size
                while left:
                    left -= len(self.rfile.read(min(left, 1 << 20)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.command, self.path, headers, body, size, self.number)
            reply = stand_in.answer(seen)
            if isinstance(reply, Raw):
                self.close_connection = True
                for chunk in reply.chunks:
                    self.wfile.write(chunk)
                return
            self.send_response_only(reply.status)
            headers = {"Date": http_date(stand_in.now), **reply.headers}
            headers.setdefault("Content-Length", str(len(reply.body)))
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "CONNECT"):
        setattr(Handler, f"do_{method}", Handler.answer)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = family
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            # Clients break connections; that is what many tests are about.
            pass

    with Server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), Handler) as server:
        host = "127.0.0.1" if family == socket.AF_INET else "[::1]"
        stand_in.port = server.server_port
        stand_in.url = f"http://{host}:{stand_in.port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()
