"""What is asked of the server once there is a bucket, and before anything is put there.

Of a new bucket: the few needs that decide whether the server will do (`server_needs`). Of users
that were made elsewhere: whether it lets them in (`given_users`).

Hooks ask it, since a destroy and a refresh run the program without putting anything there.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor

import pulumi

from program.checks import recorded
from program.checks.deployment import Settled, as_setting_error, server_of
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import Settings

_NAME = "server and users will do"
"""What the engine calls the hook."""


def hook(settings: Settings, settled: Settled) -> pulumi.ResourceHook | None:
    """Return what is to be asked before anything is put into the bucket; None where nothing is.

    It is asked once, however many resources it is put on, and refuses all of them by a
    `SettingError`.

    Args:
        settings: the stack's settings.
        settled: what is known of the server. A bucket that is adopted is not tried: it may keep
            whatever is written to it.
    """
    new = settled.adopt is None and settings.bucket not in recorded.read().buckets
    if not settings.given_users and not new:
        return None
    # One of its own. The SDK's threads each wait for a resource, and the engine may have come to
    # the last that it deploys at once: where all of these wait for this, none would ever be free.
    thread = ThreadPoolExecutor(1, _NAME)
    # By which the SDK knows of the stack in that thread, too.
    context = contextvars.copy_context()
    verdicts: list[Exception | None] = []

    def verdict() -> Exception | None:
        if not verdicts:
            verdicts.append(_verdict(settings, new=new))
        return verdicts[0]

    async def ask(_: pulumi.ResourceHookArgs) -> None:
        refusal = await asyncio.get_running_loop().run_in_executor(thread, context.run, verdict)
        if refusal is not None:
            raise refusal

    return pulumi.ResourceHook(_NAME, ask)


def _verdict(settings: Settings, *, new: bool) -> Exception | None:
    # Imported here: a preview need not wait for the S3 client.
    from program.checks import given_users, server_needs  # noqa: PLC0415

    server = server_of(settings)
    try:
        if new:
            probe = server_needs.Probe(settings, server, settings.bucket, scratch=False)
            lacking = probe.deciding()
            if lacking is not None:
                return SettingError(
                    "endpoint",
                    str(settings.endpoint),
                    f"{lacking}; make check-server STACK={pulumi.get_stack()} asks it about all "
                    "there is",
                )
        if settings.given_users:
            given_users.check(settings, server)
    except ServerError as error:
        return as_setting_error(settings, error)
    except pulumi.RunError as refusal:
        return refusal
    return None
