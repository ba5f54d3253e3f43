"""What is asked of the server once there is a bucket, and before anything is put there.

Hooks ask it, since a destroy and a refresh run the program without putting anything there.
"""

from __future__ import annotations

import asyncio
import threading

import pulumi

from program.checks.deployment import as_setting_error, server_of
from program.checks.server_error import ServerError
from program.settings.stack import Settings

_NAME = "users let in"
"""What the engine calls the hook."""


def hook(settings: Settings) -> pulumi.ResourceHook | None:
    """Return what is to be asked before anything is put into the bucket; None where nothing is.

    It is asked once, however many resources it is put on, and refuses all of them by a
    `SettingError`.
    """
    if not settings.given_users:
        return None
    lock = threading.Lock()
    verdicts: list[Exception | None] = []

    def verdict() -> Exception | None:
        with lock:
            if not verdicts:
                verdicts.append(_verdict(settings))
        return verdicts[0]

    async def ask(_: pulumi.ResourceHookArgs) -> None:
        refusal = await asyncio.to_thread(verdict)
        if refusal is not None:
            raise refusal

    return pulumi.ResourceHook(_NAME, ask)


def _verdict(settings: Settings) -> Exception | None:
    # Imported here: a preview need not wait for the S3 client.
    from program.checks import given_users  # noqa: PLC0415

    try:
        given_users.check(settings, server_of(settings))
    except ServerError as error:
        return as_setting_error(settings, error)
    except pulumi.RunError as refusal:
        return refusal
    return None
