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
    mine = recorded.bucket == settings.bucket
    same_server.check(settings, server, recorded)
    if not settings.given_users:
        ownership.check_moved(settings, server, recorded)
    _check_bucket(settings, server, recorded, exists=lifecycle is not None)
    if settings.given_users:
        given_users.check_recorded(settings, recorded)
    else:
        ownership.check(settings, server, recorded)
    for sentence in pinned.absent(settings, None if lifecycle is None else server, recorded):
        pulumi.log.warn(sentence)
    if lifecycle is None:
        return Found()
    if not mine:
        adoption.check(settings, keys, server)
    if PAGE_KEY not in recorded.objects:
        adoption.check_page(settings, server)
    for sentence in pinned.left_behind(settings, keys, server, recorded):
        pulumi.log.warn(sentence)
    versioned = expiry.check_versions(settings, server)
    expiry.check(settings, server, lifecycle, recorded.objects)
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
    if recorded.bucket == settings.bucket:
        if not exists:
            raise SettingError(
                "bucket",
                settings.bucket,
                "the server has it no longer, nor what it held; "
                f"make repair STACK={pulumi.get_stack()} makes it again, empty",
            )
        return
    if recorded.bucket is not None and (settings.protect or recorded.protected):
        raise SettingError(
            "bucket",
            settings.bucket,
            f"this stack's bucket {recorded.bucket} is protected, and would be deleted; leave the "
            "setting as it was, or set protect to false and run pulumi up before the change",
        )
    kept = removal.not_empty(server, recorded)
    if kept is not None:
        raise SettingError(
            "bucket", settings.bucket, f"this stack's {kept}, or leave the setting as it was"
        )
    if exists and not settings.adopt_bucket:
        raise SettingError(
            "bucket",
            settings.bucket,
            "the server has a bucket of that name, which is not this stack's; set adoptBucket to "
            "true to take it over with all it holds, or take another name",
        )
