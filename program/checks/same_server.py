"""Whether a stack's bucket, users and policies are those at the endpoint of its settings.

A state knows them by name, and on another server those names are somebody else's: the defaults are
the same for every cache.
"""

from __future__ import annotations

from components.retention import PAGE_KEY
from formats.keys import PublicKey
from formats.signing import verified_by
from program.checks import sampled
from program.checks.recorded import Recorded
from program.checks.s3_client import Server
from program.outputs.landing_page import LARGEST_PAGE
from program.settings.reader import SettingError
from program.settings.stack import Settings


def check(settings: Settings, server: Server, recorded: Recorded) -> None:
    """Refuse another server than that of the last deployment, unless the bucket is there, too.

    It is where its page names a key of this stack, or a key of this stack has signed what it holds.
    A bucket without either is taken for the stack's where `adoptBucket` says so.

    Raises:
        SettingError: it is another server, and the bucket there is not this stack's, or not told
            apart from somebody else's.
        ServerError: no answer, or the server refuses the user.
    """
    before, now = recorded.endpoint, str(settings.endpoint)
    if before in (None, now) or not recorded.has_names:
        return
    bucket = recorded.bucket
    if bucket is None:
        raise SettingError(
            "endpoint",
            now,
            f"this stack has made users or policies at {before}, and there may be others of their "
            "names here; name that server and destroy the stack first, or make a new one",
        )
    if bucket != settings.bucket:
        raise SettingError(
            "bucket",
            settings.bucket,
            f"endpoint is another one, too, and {now} may have a bucket {bucket} of somebody "
            f"else's, which would be deleted; move the bucket under its name, {bucket}, first, or "
            "make a new stack",
        )
    exists = server.lifecycle(bucket) is not None
    ours = _is_ours(server, recorded, bucket) if exists else None
    if ours or (ours is None and settings.adopt_bucket):
        return
    moved = ", or set adoptBucket to true if the bucket has moved there" if ours is None else ""
    raise SettingError(
        "endpoint",
        now,
        f"the bucket {bucket} there has nothing that this stack put into the one at {before}; "
        f"name that server, or make a new stack for another{moved}",
    )


def _is_ours(server: Server, recorded: Recorded, bucket: str) -> bool | None:
    """Return whether a bucket shows a key of this stack; None where it shows no key at all."""
    keys = {key.name: key for key in map(PublicKey.parse, recorded.signing_keys.values())}
    page = server.read(bucket, PAGE_KEY, LARGEST_PAGE)
    if page is not None:
        return any(str(key).encode() in page for key in keys.values())
    signed = [narinfo for narinfo in sampled.narinfos(server, bucket) if narinfo.signatures]
    if not signed:
        return None
    return any(verified_by(narinfo, keys) for narinfo in signed)
