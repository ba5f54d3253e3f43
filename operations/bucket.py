"""The cache's bucket over S3, with one user's credential."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import urllib3
from minio import Minio
from minio.error import MinioException

from program.checks.s3_client import explain
from program.checks.server_error import ServerError
from program.settings.stack import Settings

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
        self._server = Minio(
            settings.endpoint.server,
            access_key=credential.access_key_id,
            secret_key=credential.secret_access_key,
            secure=settings.endpoint.tls,
            region=settings.region,
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=5.0, read=60.0),
                retries=False,
                cert_reqs="CERT_REQUIRED",
                ca_certs=settings.ca_certificate_file,
            ),
        )

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of every object whose name begins with `prefix`.

        Raises:
            ServerError: no answer, no such bucket, or the server refuses the user.
        """
        try:
            for entry in self._server.list_objects(self._name, prefix=prefix, recursive=True):
                yield str(entry.object_name), entry.size or 0
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            missing = ServerError("bucket", f"there is no bucket {self._name}; run pulumi up")
            raise explain(error) or missing from None

    def url(self, method: str, name: str) -> str:
        """Return a URL with which anyone may make one request as this user, for ten minutes."""
        return self._server.get_presigned_url(method, self._name, name, _LIFE_OF_A_URL)
