"""What a server has already where a deployment would put something, and what would become of it.

It needs the S3 client, so `deployment` imports this module only when it asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pulumi

from components.retention import PAGE_KEY
from program.checks import adoption, expiry, given_users, ownership, pinned, removal, same_server
from program.checks.recorded import Recorded
from program.checks.s3_client import Server
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings


@dataclass(frozen=True)
class Found:
    """What a server has of a stack."""

    adopt: str | None = None
    """The bucket that is to be imported; None where there is none, or it is the stack's already."""
    versioned: bool = False
    """Whether the bucket keeps versions."""
    pins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What pins that keep several targets keep until now, the newest first, by their names."""


def check(settings: Settings, keys: SigningKeys, server: Server, recorded: Recorded) -> Found:
    """Refuse to take, change or expire what is not this stack's and the settings do not name.

    Raises:
        SettingError: there is something of the kind.
        ServerError: no answer, or the server refuses the user.
    """
    lifecycle = server.lifecycle(settings.bucket)
    mine = settings.bucket in recorded.buckets
    same_server.check(settings, server, recorded)
    if not settings.given_users:
        ownership.check_moved(settings, server, recorded)
    _check_bucket(settings, server, recorded, exists=lifecycle is not None)
    ownership.check_leaving(settings, server, recorded)
    if settings.given_users:
        given_users.check_recorded(settings, recorded)
    else:
        ownership.check(settings, server, recorded)
    for sentence in pinned.absent(settings, None if lifecycle is None else server, recorded):
        pulumi.log.warn(sentence)
    if lifecycle is None:
        return Found()
    if mine:
        adoption.check_new_keys(settings, keys, server, recorded)
    else:
        adoption.check(settings, keys, server, recorded)
    own = recorded.objects(settings.bucket)
    if PAGE_KEY not in own:
        adoption.check_page(settings, server)
    for sentence in pinned.left_behind(settings, keys, server, recorded):
        pulumi.log.warn(sentence)
    versioned = expiry.check_versions(settings, server)
    expiry.check(settings, server, lifecycle, own, adopted=not mine)
    if settings.given_users:
        given_users.look(settings, server)
    pins = pinned.targets_before(settings, server, recorded)
    return Found(None if mine else settings.bucket, versioned, pins)


def _check_bucket(settings: Settings, server: Server, recorded: Recorded, *, exists: bool) -> None:
    """Refuse what the server would half-way: to create what is there, to delete what is full.

    Raises:
        SettingError: the bucket is there and not this stack's; or this stack's and gone; or another
            one is this stack's, and protected or not empty.
        ServerError: no answer, or the server refuses the user.
    """
    mine = settings.bucket in recorded.buckets
    if mine and not exists:
        raise SettingError(
            "bucket",
            settings.bucket,
            "the server has it no longer, nor what it held; "
            f"make repair STACK={pulumi.get_stack()} makes it again, empty",
        )
    going = recorded.going(settings.bucket)
    # Both are in the state where a change of the setting has not come to its end.
    keep = "name that one again" if mine else "leave the setting as it was"
    if going and (settings.protect or recorded.protected):
        before = "" if mine else " before the change"
        raise SettingError(
            "bucket",
            settings.bucket,
            f"this stack's bucket {going[0]} is protected, and would be deleted; {keep}, or set "
            f"protect to false and run pulumi up{before}",
        )
    misnamed = recorded.misnamed(settings.bucket)
    if misnamed is not None:
        raise SettingError(
            "bucket",
            settings.bucket,
            f"what the state has of the bucket {misnamed} is called so there, since a version of "
            f"before; deploy it under the name {misnamed} first, or take another name",
        )
    kept = removal.not_empty(server, recorded, going)
    if kept is not None:
        raise SettingError("bucket", settings.bucket, f"this stack's {kept}, or {keep}")
    if exists and not settings.adopt_bucket and recorded.lacks_bucket_of_objects(settings.bucket):
        raise SettingError(
            "bucket",
            settings.bucket,
            "a refresh that the server did not answer has forgotten it, and what is in it not; "
            f"make repair STACK={pulumi.get_stack()} takes it back with all it holds",
        )
    if exists and not mine and not settings.adopt_bucket:
        raise SettingError(
            "bucket",
            settings.bucket,
            "the server has a bucket of that name, which is not this stack's; set adoptBucket to "
            "true to take it over with all it holds, or take another name",
        )
