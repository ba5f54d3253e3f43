"""Asks the S3 server, before anything is declared, whether a deployment can work at all.

The providers find out resource by resource, half-way; and a refresh against a server that does
not answer drops resources from the state. One signed request tells it all beforehand.
"""

from __future__ import annotations

import pulumi

from .settings import SettingError, Settings

_TIMEOUT_SECONDS = 5.0

_REMEDIES = {
    "InvalidAccessKeyId": ("minioUser", "the server knows no such user; check the name"),
    "SignatureDoesNotMatch": ("minioPassword", "the server refuses it for {user}; set it anew"),
    "AccessDenied": ("minioUser", "the user may not read the bucket's lifecycle; see README"),
    "RequestTimeTooSkewed": ("endpoint", "the server's clock and this one differ; set them right"),
}


class ServerUnreachable(SettingError):
    """Nothing that speaks S3 answers at the endpoint."""


def check_server(settings: Settings) -> None:
    """Make one signed request (S3 `GetBucketLifecycleConfiguration`) with the deploying user.

    Raises:
        ServerUnreachable: no answer, or not one of an S3 server.
        SettingError: the server refuses the user.
    """
    # Imported here: it takes as long as everything else this program imports.
    import urllib3
    from minio import Minio
    from minio.error import S3Error, ServerError

    client = Minio(
        settings.endpoint.server,
        access_key=settings.minio_user,
        secret_key=settings.minio_password,
        secure=settings.endpoint.tls,
        region=settings.region,
        http_client=urllib3.PoolManager(
            timeout=_TIMEOUT_SECONDS,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=settings.ca_certificate_file,
        ),
    )
    try:
        client.get_bucket_lifecycle(settings.bucket)
    except S3Error as error:
        if error.code == "NoSuchBucket":
            return
        setting, remedy = _REMEDIES.get(
            str(error.code), ("endpoint", f"the server answers {error.code}; see its log")
        )
        value = str(settings.endpoint) if setting == "endpoint" else None
        if setting == "minioUser":
            value = settings.minio_user
        raise SettingError(setting, value, remedy.format(user=settings.minio_user)) from None
    except (urllib3.exceptions.HTTPError, ServerError, ValueError) as error:
        raise ServerUnreachable("endpoint", str(settings.endpoint), _why(error)) from None


def warn_or_refuse(settings: Settings) -> None:
    """Check the server; where it cannot be reached, a preview warns and an update refuses.

    A pull request's preview may run where the server cannot be seen.

    Raises:
        SettingError: as `check_server`.
    """
    try:
        check_server(settings)
    except ServerUnreachable as error:
        if not pulumi.runtime.is_dry_run():
            raise
        pulumi.log.warn(f"{error} This preview could not check the server.")


def _why(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "the server's certificate is not trusted; set caCertificateFile to the CA that signed it"
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return "the server does not speak TLS there; check scheme and port"
    return "no S3 server answers there; start it, or check the address"
