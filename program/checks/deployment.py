"""What is asked of the state and of the server before a deployment, and after it.

An update asks before anything is declared, so that it changes all that it plans or nothing. A
preview changes nothing: it asks while the engine starts the providers, which takes longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pulumi
import pulumi_minio as minio

from components.retention import (
    ExpirationRule,
    difference,
    expiration_rules,
    expired_share,
    made_here,
    narinfo_days,
)
from program.checks import key_rotation, recorded, removal
from program.checks.server_error import ServerError
from program.outputs.machines import retention_in_words
from program.settings.reader import SettingError
from program.settings.stack import Settings

if TYPE_CHECKING:
    from program.checks.s3_client import Server

_CONFIRMED_ABOVE = 0.5


def server_of(settings: Settings) -> Server:
    """Return the server that a stack's settings name."""
    # Imported here: a preview need not wait for the S3 client before it declares anything.
    from program.checks.s3_client import Server  # noqa: PLC0415

    return Server(
        address=settings.endpoint.server,
        tls=settings.endpoint.tls,
        region=settings.region,
        user=settings.minio_user,
        password=settings.minio_password,
        ca_certificate_file=settings.ca_certificate_file,
    )


def begin(
    settings: Settings, declare_server: Callable[[Settings], minio.Provider]
) -> minio.Provider:
    """Declare the server, and refuse what cannot follow the last deployment.

    An update asks first, and the server too, so that it changes all that it plans or nothing. In a
    preview the state is read just when the engine begins to start the server's provider, and what
    is declared after it comes while the engine is busy; `check_lifecycle` asks the server.

    Args:
        settings: the stack's settings.
        declare_server: declares the server's provider.

    Raises:
        SettingError: of the signing keys, as `key_rotation.check`; or the server does not answer,
            refuses the user, or would expire more than half of its entries at once.
    """
    if pulumi.runtime.is_dry_run():
        server = declare_server(settings)
        key_rotation.check(settings, recorded.read())
        return server
    key_rotation.check(settings, recorded.read())
    _check_server(settings)
    return declare_server(settings)


def refusal_of_a_destroy(settings: Settings) -> str | None:
    """Return why a destroy of this stack would stop half-way, with the remedy, or None."""
    return removal.refusal(settings, server_of(settings), recorded.read())


def _check_server(settings: Settings) -> None:
    server = server_of(settings)
    try:
        rules = server.lifecycle(settings.bucket)
        _check_bucket(settings, server, exists=rules is not None)
        _check_shortened_retention(settings, server, rules)
    except ServerError as error:
        setting, value = {
            "user": ("minioUser", settings.minio_user),
            "password": ("minioPassword", None),
        }.get(error.subject, ("endpoint", str(settings.endpoint)))
        refusal = SettingError(setting, value, str(error))
        if error.reachable or not pulumi.runtime.is_dry_run():
            raise refusal from None
        pulumi.log.warn(f"{refusal}; this preview could not check the server")


def check_lifecycle(settings: Settings, applied: pulumi.Output[str]) -> pulumi.Output[str]:
    """Read the lifecycle back once it is applied, and say in words what is in force.

    The MinIO provider reports a lifecycle as updated even where the server refused it, and a
    retention that is not in force loses data or keeps it for ever. A preview says what will be in
    force, and is refused where an update would be. Where the server cannot be reached it only
    warns: a pull request's preview may run where the server cannot be seen.

    Args:
        settings: the stack's settings.
        applied: an output that is there when the lifecycle has been applied; its value is unused.

    Returns:
        One sentence. It fails with a `pulumi.RunError` where the server's rules are others, and in
        a preview as `begin` does in an update.
    """

    async def ask(_: str) -> str:
        await asyncio.to_thread(_check_server, settings)
        return retention_in_words(settings)

    def read_back(_: str) -> str:
        declared = expiration_rules(settings.retention_days, settings.grace_days)
        applied_rules = server_of(settings).lifecycle(settings.bucket) or ()
        found = difference(declared, applied_rules)
        if settings.retention_days is None and made_here(applied_rules):
            # The engine deletes last, when nothing of the program runs any more.
            pulumi.log.warn(
                f"expire is off: the lifecycle rules of bucket {settings.bucket} go at the end "
                "of this deployment; where the next one says so again, delete them by hand"
            )
        elif found is not None:
            raise pulumi.RunError(
                f"bucket {settings.bucket}: of the lifecycle rules in force, {found}; see that "
                "the deploying user may set the lifecycle, then run pulumi up --refresh"
            )
        return retention_in_words(settings)

    if pulumi.runtime.is_dry_run():
        # At once: by now the engine starts the providers, and the program has nothing else to do.
        return pulumi.Output.from_input("").apply(ask)
    return applied.apply(read_back)


def _check_bucket(settings: Settings, server: Server, *, exists: bool) -> None:
    """Refuse what the server would half-way: to create what is there, to delete what is full.

    Raises:
        SettingError: the bucket is there and not this stack's; or this stack's and gone; or another
            one is this stack's, and not empty.
        ServerError: no answer, or the server refuses the user.
    """
    known = recorded.read()
    if known.bucket == settings.bucket:
        if not exists:
            raise SettingError(
                "bucket",
                settings.bucket,
                "the server has it no longer, nor what it held; "
                f"make repair STACK={pulumi.get_stack()} makes it again, empty",
            )
        return
    kept = removal.not_empty(server, known)
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


def _check_shortened_retention(
    settings: Settings, server: Server, rules: Sequence[ExpirationRule] | None
) -> None:
    days = settings.retention_days
    if rules is None or days is None:
        return
    # A bucket without rules keeps its entries for ever.
    before = narinfo_days(rules)
    if before is not None and before <= days:
        return
    share = expired_share(server.narinfo_ages(settings.bucket), days, datetime.now(timezone.utc))
    if share == 0:
        return
    was = "no expiry" if before is None else f"{before} days"
    sentence = f"{share:.0%} of the cache's entries would expire at once (it was {was})"
    if share > _CONFIRMED_ABOVE and not settings.confirm_shorter_retention:
        raise SettingError(
            "retentionDays", days, f"{sentence}; set confirmShorterRetention to true to go on"
        )
    pulumi.log.warn(f"retentionDays is {days}: {sentence}")
