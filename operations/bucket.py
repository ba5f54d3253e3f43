"""The cache's bucket over S3, with one user's credential."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

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


@dataclass(frozen=True)
class Credential:
    """A user of the S3 server."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


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

    def remove(self, versions: Iterable[ListedVersion]) -> None:
        """Remove versions of objects for good, a thousand in a request.

        Raises:
            ServerError: no answer, no such bucket, or the server refuses to.
        """
        wanted = (DeleteObject(version.key, version.id) for version in versions)
        try:
            for refused in self._server.remove_objects(self._name, wanted):
                raise ServerError("bucket", f"{refused.name} cannot be removed: {refused.message}")
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            raise self._explained(error) from None

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
