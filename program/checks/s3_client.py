"""The S3 server as the deploying user sees it, asked before and after a deployment.

The providers find out resource by resource, half-way, whether the server answers and the user may
do what is declared; a refresh against a server that does not answer drops resources from the
state. One signed request tells it all beforehand.

Everything is asked as a push asks it: MinIO's SDK takes 0.15 s to import and every preview would
wait for it. Even so `deployment` imports this module only when it asks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import formatdate
from functools import cached_property
from typing import Any, TypeVar

from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.exceptions import HTTPError, ProxyError, ProxySchemeUnknown

from components.retention import ExpirationRule
from formats.error import FormatError
from formats.s3 import (
    LARGEST_ANSWER,
    ErrorAnswer,
    ListedObject,
    ListedVersion,
    parse_error,
    parse_etag,
    parse_listing,
    parse_versions,
)
from formats.sigv4 import Signer, encoded_path, encoded_query
from program.checks.bounded import BoundedConnections, in_time, read
from program.checks.bucket_settings import (
    Lifecycle,
    lifecycle,
    parse_lifecycle,
    parse_object_lock,
    parse_versioning,
)
from program.checks.server_error import ServerError

_TIMEOUT_SECONDS = 5.0
_WHOLE_ANSWER_SECONDS = 30.0
_OK, _FORBIDDEN, _NOT_FOUND = 200, 403, 404
_NOBODY_BEHIND = (502, 503, 504)
_MOST_PAGES = 20_000
"""Pages of a listing, a thousand keys each: ten times what a cache of a million entries has."""
_PLAIN_TO_TLS = b"HTTPS server"
"""What a server says that speaks TLS, to a request without (Go, `net/http/server.go`)."""

Parsed = TypeVar("Parsed")
Said = TypeVar("Said", bytes, str)
_REMEDIES = {
    "AuthorizationHeaderMalformed": (
        "region",
        "the server is in another one; set it to the server's, which is garage on a Garage",
    ),
    "InvalidAccessKeyId": ("user", "the server knows no such user; check the name"),
    "SignatureDoesNotMatch": ("password", "the server refuses it; set it anew"),
    "AccessDenied": (
        "user",
        "the server denies this user what a deployment needs; docs/security.md lists it",
    ),
    "RequestTimeTooSkewed": ("endpoint", "the server's clock and this one differ; set them right"),
}


class _NoBucketError(ServerError):
    """The bucket is not made yet."""

    def __init__(self) -> None:
        super().__init__("bucket", "the server has none of that name")


class _Connections(BoundedConnections):
    """Connections to an S3 server, on which a web page is no answer."""

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **kwargs: Any
    ) -> BaseHTTPResponse:
        """Ask, and look who answers."""
        answer = super().urlopen(method, url, redirect, **kwargs)
        is_page = "html" in answer.headers.get("Content-Type", "").lower()
        # An object may be a page; then the answer says that S3 gave it.
        if is_page and "x-amz-request-id" not in answer.headers:
            raise ServerError(
                "endpoint",
                f"a web page answers there (HTTP status {answer.status}), and no S3 server; "
                "check the port, which is not the console's, and what a proxy passes on",
            )
        return answer


@dataclass(frozen=True)
class Answer:
    """What the server answered to one request."""

    status: int
    headers: Mapping[str, str]
    """By name, in any case."""
    body: bytes

    @property
    def done(self) -> bool:
        """Whether the server did what it was asked."""
        return 200 <= self.status < 300

    @property
    def error(self) -> ErrorAnswer:
        """Why the server refused."""
        return parse_error(self.body)

    def __str__(self) -> str:
        """Return the status and the server's word for a refusal."""
        code = "" if self.done else self.error.code
        return f"HTTP {self.status}{code and ' '}{code}"


@dataclass(frozen=True)
class Server:
    """How a user, the deploying one as a rule, reaches the S3 server."""

    address: str
    """`host` or `host:port`."""
    tls: bool
    region: str
    user: str
    password: str = field(repr=False)
    ca_certificate_file: str | None
    virtual_hosts: bool = False
    """Whether the bucket stands in the host name, and not in the path."""

    def ask(
        self,
        method: str,
        bucket: str,
        key: str = "",
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        *,
        anonymous: bool = False,
    ) -> Answer:
        """Make one request as a push makes it, and return the answer, whatever it is.

        Args:
            method: the HTTP method.
            bucket: the bucket.
            key: an object's key; empty for the bucket itself.
            query: names and values.
            headers: besides those that sign it.
            body: what is sent.
            anonymous: whether nobody signs it.

        Raises:
            ServerError: no answer.
        """
        answer = self._send(method, bucket, key, query, headers, body, anonymous=anonymous)
        return Answer(answer.status, answer.headers, answer.data)

    def _send(
        self,
        method: str,
        bucket: str,
        key: str = "",
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        *,
        anonymous: bool = False,
        whole: bool = True,
    ) -> BaseHTTPResponse:
        """Make one request, and read its answer if `whole`.

        Raises:
            ServerError: no answer.
        """
        scheme, usual = ("https", ":443") if self.tls else ("http", ":80")
        host, path = self.address.removesuffix(usual), f"/{bucket}/{key}"
        if self.virtual_hosts:
            host, path = f"{bucket}.{host}", f"/{key}"
        url = f"{scheme}://{host}{encoded_path(path)}"
        if query:
            url += f"?{encoded_query(query)}"
        if not anonymous:
            signer = Signer(self.user, self.password, self.region)
            now = datetime.now(timezone.utc)
            headers = signer.signed(method, host, path, query, headers, now)
        try:
            return self.connections.request(
                method, url, body=body, headers=dict(headers), preload_content=whole
            )
        except HTTPError as error:
            raise unreachable(error) from None

    def lifecycle(self, bucket: str) -> Lifecycle | None:
        """Return the bucket's lifecycle, or None where there is no such bucket yet.

        One request: S3 `GetBucketLifecycleConfiguration`.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        try:
            found = self._setting(
                bucket, "lifecycle", parse_lifecycle, "NoSuchLifecycleConfiguration"
            )
        except _NoBucketError:
            return None
        return found or Lifecycle()

    def access(self, bucket: str) -> str | None:
        """Return the bucket's policy as JSON, or None where it has none.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        return self._setting(bucket, "policy", _text, "NoSuchBucketPolicy")

    def set_lifecycle(self, bucket: str, rules: Iterable[ExpirationRule]) -> None:
        """Give the bucket these rules, instead of any others.

        Raises:
            ServerError: no answer, or the server refuses the user, or the rules.
        """
        self._set(bucket, "lifecycle", lifecycle(rules))

    def set_access(self, bucket: str, policy: str) -> None:
        """Give the bucket this policy, instead of any other.

        Raises:
            ServerError: no answer, or the server refuses the user, or the policy.
        """
        self._set(bucket, "policy", policy.encode())

    def etag(self, bucket: str, key: str) -> str | None:
        """Return an object's ETag, or None where there is no such object.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        answer = self.ask("HEAD", bucket, key)
        if answer.status == _NOT_FOUND:
            return None
        if not answer.done:
            # The answer to a HEAD has no body that says why.
            raise refusal("AccessDenied") if answer.status == _FORBIDDEN else _why(answer)
        return _understood(parse_etag, answer.headers.get("ETag", ""))

    def keeps_versions(self, bucket: str) -> bool:
        """Return whether a bucket keeps, or has kept, what is written again or deleted.

        One request: S3 `GetBucketVersioning`.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        try:
            return bool(self._setting(bucket, "versioning", parse_versioning))
        except _NoBucketError:
            return False

    def locks_objects(self, bucket: str) -> bool:
        """Return whether whatever is written to a bucket that keeps versions cannot be deleted.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        absent = "ObjectLockConfigurationNotFoundError"
        return bool(self._setting(bucket, "object-lock", parse_object_lock, absent))

    def replicates(self, bucket: str) -> bool:
        """Return whether what is written to a bucket that keeps versions is copied to another.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        absent = "ReplicationConfigurationNotFoundError"
        return self._setting(bucket, "replication", bytes, absent) is not None

    def objects(self, bucket: str, after: str = "") -> Iterator[tuple[str, datetime]]:
        """Yield each object's key, and when it was last written (S3 `ListObjectsV2`).

        Args:
            bucket: the bucket.
            after: what the keys come after, in the order of their bytes.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        for entry in self.listing(bucket, after=after):
            yield entry.key, entry.last_modified

    def listing(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        """Yield what a listing says of each object whose key begins with `prefix`.

        Read strictly, as pushes read it, and several times faster than by the S3 client.

        Args:
            bucket: the bucket.
            prefix: what the keys begin with.
            after: what they come after, in the order of their bytes.

        Raises:
            ServerError: no answer, no such bucket, or the server refuses the user.
        """
        for _ in range(_MOST_PAGES):
            query = [("list-type", "2"), ("encoding-type", "url"), ("max-keys", "1000")]
            query += [("prefix", prefix)] if prefix else []
            query += [("start-after", after)] if after else []
            answer = self.ask("GET", bucket, "", query)
            if not answer.done:
                raise _why(answer)
            try:
                page = parse_listing(answer.body)
            except FormatError as error:
                raise ServerError("endpoint", f"{error}; see what answers there") from None
            yield from page.objects
            if not page.truncated:
                return
            if page.last_key is None or page.last_key <= after:
                raise _goes_nowhere()
            after = page.last_key
        raise _without_end()

    def contents(self, bucket: str) -> Iterator[str]:
        """Yield the name of each object, of one that is there in several versions for each of them.

        One request for a thousand: S3 `ListObjectVersions`, or `ListObjectsV2` on a server that
        knows no versions (Garage). A bucket that is not there is empty.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        try:
            for version in self.versions(bucket):
                yield version.key
        except _NoBucketError:
            return

    def versions(self, bucket: str) -> Iterator[ListedVersion]:
        """Yield every version of every object; where none are kept, each object.

        Read as strictly as `listing`.

        Raises:
            ServerError: no answer, no such bucket, or the server refuses the user.
        """
        key = version = ""
        # The ids of a key's versions are in no order that could be seen to go on.
        seen = {""}
        for _ in range(_MOST_PAGES):
            query = [("versions", ""), ("encoding-type", "url"), ("max-keys", "1000")]
            query += [("key-marker", key), ("version-id-marker", version)] if key else []
            answer = self.ask("GET", bucket, "", query)
            if not answer.done:
                code = answer.error.code
                if code in ("NotImplemented", "MethodNotAllowed") and not key:
                    for one in self.listing(bucket):
                        yield ListedVersion(one.key, None, one.size, current=True)
                    return
                raise _why(answer)
            try:
                page = parse_versions(answer.body)
            except FormatError as error:
                raise ServerError("endpoint", f"{error}; see what answers there") from None
            yield from page.versions
            if not page.truncated:
                return
            if page.next_key != key:
                seen.clear()
            if not page.versions or page.next_key < key or page.next_id in seen:
                raise _goes_nowhere()
            key, version = page.next_key, page.next_id
            seen.add(version)
        raise _without_end()

    def read(self, bucket: str, key: str, most: int) -> bytes | None:
        """Return an object of at most `most` bytes; None where there is none, or a larger one.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        answer = self._send("GET", bucket, key, whole=False)
        try:
            with in_time(answer, _WHOLE_ANSWER_SECONDS):
                if answer.status == _OK:
                    content = read(answer, most + 1)
                    return content if len(content) <= most else None
                body = read(answer, LARGEST_ANSWER)
        except HTTPError as error:
            raise unreachable(error) from None
        finally:
            answer.close()
            answer.release_conn()
        self._check(bucket, Answer(answer.status, answer.headers, body), "NoSuchKey")
        return None

    def _setting(
        self, bucket: str, name: str, parse: Callable[[bytes], Parsed], absent: str = ""
    ) -> Parsed | None:
        """Return what is set on a bucket, or None where the server answers `absent`.

        Raises:
            ServerError: no answer, or the server refuses the user.
            _NoBucketError: there is no such bucket.
        """
        answer = self.ask("GET", bucket, "", [(name, "")])
        if self._check(bucket, answer, absent):
            return _understood(parse, answer.body)
        return None

    def _set(self, bucket: str, name: str, document: bytes) -> None:
        """Set something on a bucket.

        Raises:
            ServerError: no answer, or the server refuses the user, or the document.
        """
        # S3 wants the sum of what changes a bucket.
        digest = hashlib.md5(document, usedforsecurity=False).digest()
        headers = {"content-md5": base64.b64encode(digest).decode()}
        self._check(bucket, self.ask("PUT", bucket, "", [(name, "")], headers, document))

    def _check(self, bucket: str, answer: Answer, absent: str = "") -> bool:
        """Return whether the server did what it was asked, and has not answered `absent`.

        Raises:
            ServerError: it refused.
        """
        if answer.done:
            return True
        code = answer.error.code
        if absent and code == absent:
            return False
        if (
            code == "SignatureDoesNotMatch"
            and not self.virtual_hosts
            and self._refuses_only_the_host(bucket)
        ):
            raise ServerError(
                "endpoint",
                "a proxy there changes the Host header, which requests are signed with; let "
                "it pass as it comes (nginx: proxy_set_header Host $http_host)",
            )
        raise _why(answer)

    @cached_property
    def connections(self) -> PoolManager:
        """The connections to it, kept open."""
        return _Connections(
            _WHOLE_ANSWER_SECONDS,
            timeout=_TIMEOUT_SECONDS,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=self.ca_certificate_file,
            maxsize=8,
        )

    def _refuses_only_the_host(self, bucket: str) -> bool:
        """Tell whether the server takes the password where a request's host is not signed.

        That is so in version 2 of AWS's signatures, which MinIO still reads (Amazon S3 Developer
        Guide, "Signing and authenticating REST requests").
        """
        date = formatdate(usegmt=True)
        text = f"GET\n\n\n{date}\n/{bucket}?lifecycle"
        digest = hmac.digest(self.password.encode(), text.encode(), "sha1")
        try:
            answer = self.connections.request(
                "GET",
                f"{'https' if self.tls else 'http'}://{self.address}/{bucket}?lifecycle",
                headers={
                    "Date": date,
                    "Authorization": f"AWS {self.user}:{base64.b64encode(digest).decode()}",
                },
            )
        except HTTPError:
            return False
        absent = (b"<Code>NoSuchLifecycleConfiguration</Code>", b"<Code>NoSuchBucket</Code>")
        return answer.status == 200 or any(code in answer.data for code in absent)


def unreachable(error: Exception) -> ServerError:
    """Return what it means to a user that no answer came."""
    if isinstance(error, (ProxyError, ProxySchemeUnknown)):
        return ServerError(
            "endpoint",
            "the environment's proxy passes no request on to it; mend the proxy, or name the host "
            "in no_proxy",
            reachable=False,
        )
    return ServerError("endpoint", _why_unreachable(str(error)), reachable=False)


def _goes_nowhere() -> ServerError:
    return ServerError("endpoint", "its listing does not go on; see the server's log")


def _without_end() -> ServerError:
    return ServerError(
        "endpoint",
        f"its listing has more than {_MOST_PAGES:,} pages, as of no cache; see what answers there",
    )


def _understood(parse: Callable[[Said], Parsed], said: Said) -> Parsed:
    try:
        return parse(said)
    except FormatError as error:
        raise ServerError(
            "endpoint", f"what answers there is not understood ({error}); see its log"
        ) from None


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise FormatError("an answer is no UTF-8") from None


def _why(answer: Answer) -> ServerError:
    """Return what a refusal means to a user."""
    code = answer.error.code
    if code:
        return refusal(code)
    if _PLAIN_TO_TLS in answer.body:
        return ServerError(
            "endpoint", "the server speaks TLS there; write https://", reachable=False
        )
    if answer.status in _NOBODY_BEHIND:
        return ServerError(
            "endpoint",
            f"a proxy answers there (HTTP status {answer.status}), and no S3 server behind it; "
            "start that, or see where the proxy looks for it",
            reachable=False,
        )
    return refusal(f"HTTP status {answer.status}")


def refusal(code: str) -> ServerError:
    """Return what a server's word for a refusal means to a user."""
    if code == "NoSuchBucket":
        return _NoBucketError()
    unknown = ("endpoint", f"the server answers {code}; see its log")
    return ServerError(*_REMEDIES.get(code, unknown))


def _why_unreachable(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "the server's certificate is not trusted; "
            "set caCertificateFile to the CA that signed it"
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return "the server does not speak TLS there; check scheme and port"
    return "no S3 server answers there; start it, or check the address"
