"""The S3 server as the deploying user sees it, asked before and after a deployment.

The providers find out resource by resource, half-way, whether the server answers and the user may
do what is declared; a refresh against a server that does not answer drops resources from the
state. One signed request tells it all beforehand.

The S3 client takes as long to import as everything else together, so `deployment` imports
this module only when it asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from minio import Minio
from minio.error import MinioException, S3Error
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from components.retention import ExpirationRule
from program.checks.server_error import ServerError

_TIMEOUT_SECONDS = 5.0
_FAILURES = (MinioException, HTTPError)


_REMEDIES = {
    "InvalidAccessKeyId": ("user", "the server knows no such user; check the name"),
    "SignatureDoesNotMatch": ("password", "the server refuses it; set it anew"),
    "AccessDenied": ("user", "the server denies this user what a deployment needs; see README"),
    "RequestTimeTooSkewed": ("endpoint", "the server's clock and this one differ; set them right"),
}


@dataclass(frozen=True)
class Server:
    """How the deploying user reaches the S3 server."""

    address: str
    """`host` or `host:port`."""
    tls: bool
    region: str
    user: str
    password: str = field(repr=False)
    ca_certificate_file: str | None

    def lifecycle(self, bucket: str) -> tuple[ExpirationRule, ...] | None:
        """Return the bucket's expiration rules, or None where there is no such bucket yet.

        One request: S3 `GetBucketLifecycleConfiguration`.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        try:
            configuration = self._client().get_bucket_lifecycle(bucket)
        except _FAILURES as error:
            explained = explain(error)
            if explained is None:
                return None
            raise explained from None
        rules = configuration.rules if configuration is not None else []
        return tuple(
            ExpirationRule(
                str(rule.rule_id),
                (rule.rule_filter.prefix if rule.rule_filter else None) or "",
                rule.expiration.days or 0,
            )
            for rule in rules
            if rule.expiration is not None and rule.status == "Enabled"
        )

    def narinfo_ages(self, bucket: str) -> Iterator[datetime]:
        """Yield when each narinfo was last pushed or renewed (S3 `ListObjectsV2`).

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        try:
            for entry in self._client().list_objects(bucket):
                if str(entry.object_name).endswith(".narinfo") and entry.last_modified:
                    yield entry.last_modified
        except _FAILURES as error:
            explained = explain(error)
            if explained is not None:
                raise explained from None

    def contents(self, bucket: str) -> Iterator[str]:
        """Yield the name of each object, of one that is there in several versions for each of them.

        One request for a thousand: S3 `ListObjectVersions`. A bucket that is not there is empty.

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        try:
            for entry in self._client().list_objects(bucket, recursive=True, include_version=True):
                yield str(entry.object_name)
        except _FAILURES as error:
            explained = explain(error)
            if explained is not None:
                raise explained from None

    def keeps_versions(self, bucket: str) -> bool:
        """Return whether the bucket keeps what is deleted (S3 `GetBucketVersioning`).

        Raises:
            ServerError: no answer, or the server refuses the user.
        """
        try:
            status = self._client().get_bucket_versioning(bucket).status
        except _FAILURES as error:
            explained = explain(error)
            if explained is not None:
                raise explained from None
            return False
        return status not in (None, "", "Off")

    def _client(self) -> Minio:
        return Minio(
            self.address,
            access_key=self.user,
            secret_key=self.password,
            secure=self.tls,
            region=self.region,
            http_client=PoolManager(
                timeout=_TIMEOUT_SECONDS,
                retries=False,
                cert_reqs="CERT_REQUIRED",
                ca_certs=self.ca_certificate_file,
            ),
        )


def explain(error: MinioException | HTTPError) -> ServerError | None:
    """Return what `error` means to a user, or None where the bucket is not made yet."""
    if not isinstance(error, S3Error):
        return ServerError("endpoint", _why_unreachable(str(error)), reachable=False)
    if error.code == "NoSuchBucket":
        return None
    unknown = ("endpoint", f"the server answers {error.code}; see its log")
    return ServerError(*_REMEDIES.get(str(error.code), unknown))


def _why_unreachable(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "the server's certificate is not trusted; "
            "set caCertificateFile to the CA that signed it"
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return "the server does not speak TLS there; check scheme and port"
    if "HTTPS server" in text:
        return "the server speaks TLS there; write https://"
    return "no S3 server answers there; start it, or check the address"
