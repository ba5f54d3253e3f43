"""The cache's bucket over S3, with one user's credential."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from formats.s3 import ListedVersion
from program.checks.bounded import BoundedConnections
from program.checks.deployment import server_of
from program.checks.s3_client import refusal, unreachable
from program.checks.server_error import ServerError
from program.settings.stack import Settings

_WHOLE_ANSWER_SECONDS = 120.0
_LIFE_OF_A_URL = timedelta(minutes=10)
_MOST_AT_ONCE = 1_000
"""Objects that one request removes (Amazon S3 API Reference, `DeleteObjects`)."""


@dataclass(frozen=True)
class Credential:
    """A user of the S3 server."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


@dataclass(frozen=True)
class Removal:
    """What one request to remove came to."""

    gone: int
    """How many versions of objects went."""
    refused: Mapping[str, str]
    """Why the server did not remove others, by the object's name."""


class Bucket:
    """What S3 itself tells a user about the bucket of a stack."""

    def __init__(self, settings: Settings, credential: Credential) -> None:
        """Connect to nothing yet."""
        self._name = settings.bucket
        self._listed = replace(
            server_of(settings),
            user=credential.access_key_id,
            password=credential.secret_access_key,
        )
        self._server = Minio(
            settings.endpoint.server,
            access_key=credential.access_key_id,
            secret_key=credential.secret_access_key,
            secure=settings.endpoint.tls,
            region=settings.region,
            http_client=BoundedConnections(
                _WHOLE_ANSWER_SECONDS,
                timeout=urllib3.Timeout(connect=5.0, read=60.0),
                retries=False,
                cert_reqs="CERT_REQUIRED",
                ca_certs=settings.ca_certificate_file,
            ),
        )
        if settings.virtual_hosts:
            self._server.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of every object whose name begins with `prefix`.

        Raises:
            ServerError: no answer, no such bucket, or the server refuses the user.
        """
        with self._named():
            for entry in self._listed.listing(self._name, prefix):
                yield entry.key, entry.size

    def make(self, region: str) -> None:
        """Make the bucket, which must not be there.

        Raises:
            ServerError: no answer, or the server refuses it.
        """
        try:
            self._server.make_bucket(self._name, region)
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            raise self._explained(error) from None

    def versions(self) -> Iterator[ListedVersion]:
        """Yield every version of every object; a bucket that keeps none has one of each.

        Raises:
            ServerError: no answer, no such bucket, or the server refuses the user.
        """
        with self._named():
            yield from self._listed.versions(self._name)

    def remove(self, versions: Iterable[ListedVersion]) -> Iterator[Removal]:
        """Remove versions of objects for good, a thousand in a request; say what each came to.

        What the server does not remove keeps no other from going. Names that a request for several
        does not carry as they are have a request each.

        Raises:
            ServerError: no answer, no such bucket, or the server refuses to remove anything. What
                was yielded before is gone.
        """
        left = iter(versions)
        while batch := list(islice(left, _MOST_AT_ONCE)):
            plain = [version for version in batch if _is_plain(version.key)]
            if plain:
                yield self._remove_at_once(plain)
            for version in batch:
                if not _is_plain(version.key):
                    yield self._remove_one(version)

    def _remove_at_once(self, versions: Sequence[ListedVersion]) -> Removal:
        wanted = [DeleteObject(version.key, version.id) for version in versions]
        try:
            errors = list(self._server.remove_objects(self._name, wanted))
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            raise self._explained(error) from None
        refused = {error.name or "an object": error.message or error.code for error in errors}
        return Removal(len(versions) - len(errors), refused)

    def _remove_one(self, version: ListedVersion) -> Removal:
        query = [] if version.id is None else [("versionId", version.id)]
        try:
            answer = self._listed.ask("DELETE", self._name, version.key, query)
        except ServerError as error:
            # A proxy that does not like the name may let others through.
            if not error.reachable:
                raise
            return Removal(0, {version.key: str(error)})
        code = answer.error.code
        if code == "NoSuchBucket":
            raise self._missing()
        if answer.done or code in ("NoSuchKey", "NoSuchVersion"):
            return Removal(1, {})
        return Removal(0, {version.key: answer.error.message or str(answer)})

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say which bucket there is none of."""
        try:
            yield
        except ServerError as error:
            raise (self._missing() if error.subject == "bucket" else error) from None

    def _explained(self, error: Exception) -> ServerError:
        if not isinstance(error, S3Error):
            return unreachable(error)
        return self._missing() if error.code == "NoSuchBucket" else refusal(str(error.code))

    def _missing(self) -> ServerError:
        return ServerError("bucket", f"there is no bucket {self._name}")

    def url(self, method: str, name: str) -> str:
        """Return a URL with which anyone may make one request as this user, for ten minutes."""
        return self._server.get_presigned_url(method, self._name, name, _LIFE_OF_A_URL)


def _is_plain(key: str) -> bool:
    """Tell whether a request for several objects, which is XML, carries a name as it is.

    XML cannot hold most control characters and reads a carriage return as a line feed: of two such
    names the other one would go. Blanks at the ends are what programs cut off.
    """
    return key.isprintable() and key == key.strip()
