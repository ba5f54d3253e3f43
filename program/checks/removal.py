"""What keeps a bucket, or a whole stack, from being deleted as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import pulumi

from program.checks.recorded import Recorded
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import Settings

if TYPE_CHECKING:
    from program.checks.s3_client import Server

_COUNTED = 1000
"""Objects that are counted; of more, this many are told."""


def refusal(settings: Settings, server: Server, recorded: Recorded) -> str | None:
    """Return why a destroy of this stack would stop half-way, with the remedy, or None."""
    if settings.protect:
        return "protect is on; pulumi config set protect false, pulumi up, and destroy it then"
    # Imported here: most deployments ask no server why a destroy would stop.
    from program.checks import ownership, same_server  # noqa: PLC0415
    from program.checks.admin_client import Admin  # noqa: PLC0415

    try:
        same_server.check(settings, server, recorded)
        # Those that go first, as `make empty` takes them.
        buckets = sorted(recorded.buckets, key=lambda name: name == settings.bucket)
        kept = not_empty(server, recorded, buckets)
        if kept is not None or not recorded.users:
            return kept
        return ownership.not_to_be_deleted(
            Admin(server), recorded, recorded.users, recorded.policies.keys()
        )
    except SettingError as error:
        return str(error)
    except ServerError as error:
        return f"{error.setting}: {error}; so what the bucket holds cannot be told"


def not_empty(server: Server, recorded: Recorded, buckets: Iterable[str]) -> str | None:
    """Return why the server would not delete some of this stack's buckets, or None.

    The first one that it would not is told, with the remedy.

    Raises:
        ServerError: no answer, or the server refuses the user.
    """
    reasons = (_not_empty(server, bucket, recorded.objects(bucket)) for bucket in buckets)
    return next(filter(None, reasons), None)


def _not_empty(server: Server, bucket: str, own: Collection[str]) -> str | None:
    names = server.contents(bucket)
    versions = server.keeps_versions(bucket)
    if not versions:
        # What the program itself keeps there goes before the bucket.
        names = (name for name in names if name not in own)
    count = sum(1 for _ in islice(names, _COUNTED))
    if count == 0:
        return None
    arguments = " ARGS=--all" if versions else ""
    return (
        f"bucket {bucket} holds {count:,}{' or more' if count == _COUNTED else ''} "
        f"{'versions of objects' if versions else 'objects of the cache'}, and no server deletes a "
        f"bucket that is not empty; make empty STACK={pulumi.get_stack()}{arguments} removes them"
    )
