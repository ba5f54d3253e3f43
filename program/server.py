"""The S3 server, as the engine's provider reaches it; nothing here waits for the other modules."""

from __future__ import annotations

import pulumi
import pulumi_minio as minio

from program.checks import recorded
from program.settings.stack import Settings


def declare_server(settings: Settings) -> minio.Provider:
    """Declare the provider that reaches the S3 server as the deploying user."""
    return minio.Provider(
        "minio",
        minio_server=settings.endpoint.server,
        minio_ssl=settings.endpoint.tls,
        minio_region=settings.region,
        minio_user=settings.minio_user,
        minio_password=pulumi.Output.secret(settings.minio_password),
        minio_cacert_file=settings.ca_certificate_file,
    )


def declare_early(settings: Settings) -> minio.Provider | None:
    """In a preview, declare the provider, so that it starts while the rest is imported.

    The SDK sends what is declared when the program waits for an answer: the state is read, which
    is needed anyway. An update declares nothing before all is asked, so that it changes all that
    it plans or nothing.

    Returns:
        The provider; None in an update.
    """
    if not pulumi.runtime.is_dry_run():
        return None
    server = declare_server(settings)
    recorded.read()
    return server
