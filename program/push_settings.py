"""A stack's settings as the push has them: for deployments and for builders' own pushes alike."""

from __future__ import annotations

from collections.abc import Sequence

from program.settings.stack import Settings
from push.settings import YES_NO


def push_settings(settings: Settings) -> dict[str, str | int | Sequence[str]]:
    """Return what all builders of a stack push by, by the names that `push.settings` has.

    It holds no secret.
    """
    # Only where it is another than ever: what pushes are given is no reason to push again.
    unusual = {
        **({"addressing": "virtual"} if settings.virtual_hosts else {}),
        **({"logs": YES_NO[True]} if settings.logs else {}),
        **({"listings": YES_NO[True]} if settings.listings else {}),
    }
    return {
        **unusual,
        "endpoint": str(settings.endpoint),
        "region": settings.region,
        "bucket": settings.bucket,
        # Not how many days: builders need not be told that the number has changed.
        "renew": YES_NO[settings.retention_days is not None],
        "compression": settings.compression,
        "compression-level": settings.compression_level,
        "parallelism": settings.parallelism,
        "staging-limit": settings.staging_limit,
        "part-size": settings.part_size,
        "upstream-key": list(settings.upstream_keys),
    }
