"""What is asked of the state and of the server before a deployment, and after it.

An update asks before anything is declared, so that it changes all that it plans or nothing. A
preview changes nothing: it asks while the engine starts the providers, which takes longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pulumi
import pulumi_minio as minio

from components.retention import difference, expiration_rules, foreign_rules, made_here
from program.checks import expiry, key_rotation, leaving, recorded, removal
from program.checks.server_error import ServerError
from program.outputs.machines import retention_in_words
from program.server import declare_server
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings

if TYPE_CHECKING:
    from program.checks.s3_client import Server

COMPARABLE_ETAGS_OUTPUT = "comparableEtags"
"""The stack output that tells whether a refresh can see what others write over our objects."""


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
        virtual_hosts=settings.virtual_hosts,
    )


def as_setting_error(settings: Settings, error: ServerError) -> SettingError:
    """Return what is wrong with the server in the words of the settings that name it."""
    values = {
        "user": settings.minio_user,
        "password": None,
        "bucket": settings.bucket,
        "region": settings.region,
        "users": "minio",
    }
    if error.subject in values:
        return SettingError(error.setting, values[error.subject], str(error))
    return SettingError("endpoint", str(settings.endpoint), str(error))


@dataclass(frozen=True)
class Settled:
    """What the state and the server have settled before anything is declared."""

    signing_keys: SigningKeys
    versioned: bool
    """Whether the bucket keeps versions."""
    comparable_etags: bool
    """Whether the server's ETags tell what it has: those of encrypted objects do not."""
    adopt: str | None = None
    """The bucket that is there already, to be imported; None where there is none."""
    pins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What pins that keep several targets keep until now, the newest first, by their names; of a
    pin that is none of these the state alone knows."""
    asked: bool = False
    """Whether the server has been asked, and not the state alone."""


def begin(settings: Settings, declared: minio.Provider | None) -> tuple[minio.Provider, Settled]:
    """Declare the server, and settle what the last deployment and the server have a say in.

    An update asks first, so that it changes all that it plans or nothing. In a preview the server
    has been declared by then, and `conclude` asks it.

    Args:
        settings: the stack's settings.
        declared: the server's provider in a preview, as `declare_early` returns it.

    Raises:
        SettingError: of the signing keys, as `key_rotation.check`; the server does not answer or
            refuses the user; or what is there is not this stack's to take, change or expire.
    """
    preview = pulumi.runtime.is_dry_run()
    known = recorded.read().of(settings.bucket)
    keys = key_rotation.check(settings, known, partial(_known_to_clients, settings, known))
    settled = Settled(
        keys,
        versioned=known.expires_versions,
        comparable_etags=known.stack_output(COMPARABLE_ETAGS_OUTPUT, True),
    )
    # A preview has to know what it would import.
    if not preview or (settings.adopt_bucket and settings.bucket not in known.buckets):
        settled = _ask_server(settings, settled)
    trusted = [key.name for key in key_rotation.trusted_before(known)]
    if not preview:
        for sentence in leaving.sentences(settings, known, trusted, keys.names):
            pulumi.log.warn(sentence)
    told = (
        expiry.renewals_begin(settings, known),
        leaving.holders(settings, known, trusted, keys.names),
        *leaving.stranded(settings, known),
    )
    for sentence in filter(None, told):
        pulumi.log.warn(sentence)
    return declared or declare_server(settings), settled


def _known_to_clients(
    settings: Settings, known: recorded.Recorded, keys: SigningKeys
) -> frozenset[str]:
    """Return the adopted keys that the stack's bucket shows, which an older state has not.

    Raises:
        SettingError: the server does not answer, or refuses the user.
    """
    if known.bucket != settings.bucket or not keys.adopted:
        return frozenset()
    # Imported here: a preview need not wait for the S3 client before it declares anything.
    from program.checks import adoption  # noqa: PLC0415

    try:
        return adoption.known_to_clients(settings, keys, server_of(settings))
    except ServerError as error:
        raise as_setting_error(settings, error) from None


def refusal_of_a_destroy(settings: Settings) -> str | None:
    """Return why a destroy of this stack would stop half-way, with the remedy, or None."""
    return removal.refusal(settings, server_of(settings), recorded.read())


def conclude(
    settings: Settings,
    settled: Settled,
    applied: pulumi.Output[bool],
    access_applied: pulumi.Output[bool],
) -> pulumi.Output[str]:
    """Read lifecycle and bucket policy back once they are applied; say the retention in words.

    The MinIO provider reports a lifecycle as updated even where the server refused it, and a
    retention that is not in force loses data or keeps it for ever. A policy that a killed
    deployment has written is not in the state, and would stay. A preview says what will be in
    force, and is refused where an update would be. Where the server cannot be reached it only
    warns: a pull request's preview may run where the server cannot be seen. It only warns of
    another policy, too: `make repair`, which ends that, begins with one.

    Args:
        settings: the stack's settings.
        settled: what `begin` has settled.
        applied: whether the server has been told the lifecycle of these settings, once it has. A
            destroy or a refresh tells it nothing, so after an edit its rules are rightly others.
        access_applied: the same of the bucket's policy.

    Returns:
        One sentence. It fails with a `pulumi.RunError` where the server's rules are others, or who
        may read, and in a preview as `begin` does in an update.
    """

    async def ask(_: str) -> str:
        found = await asyncio.to_thread(_ask_server, settings, settled)
        if found.versioned and not settled.versioned:
            pulumi.log.info(
                f"bucket {settings.bucket} keeps versions: the deployment will also let those "
                "expire that others have followed"
            )
        for name, targets in found.pins.items():
            known = recorded.read().of(settings.bucket).pinned(name)
            more = ", ".join(path for path in targets if path not in known)
            if more:
                pulumi.log.info(
                    f"pin {name} has kept more than the state knows, and still may: {more}"
                )
        wrong = await asyncio.to_thread(_access_left, settings) if found.asked else None
        if wrong is not None:
            pulumi.log.warn(wrong)
        return retention_in_words(settings)

    def read_back(told: bool, told_access: bool) -> str:
        if told_access:
            _check_access(settings)
        if not told:
            # A destroy, a refresh, or a deployment of something else alone.
            before = recorded.read().stack_output(recorded.RETENTION_OUTPUT)
            return str(before or retention_in_words(settings))
        _check_in_force(settings, settled)
        return retention_in_words(settings)

    if not pulumi.runtime.is_dry_run():
        both = pulumi.Output.all(applied, access_applied)
        return both.apply(lambda told: read_back(*told))
    if settled.asked:
        return pulumi.Output.from_input(retention_in_words(settings))
    # At once: by now the engine starts the providers, and the program has nothing else to do.
    return pulumi.Output.from_input("").apply(ask)


def _ask_server(settings: Settings, settled: Settled) -> Settled:
    """Return what the server has settled too; what it had before where a preview cannot reach it.

    Raises:
        SettingError: as `begin`.
    """
    # Imported here: a preview need not wait for the S3 client before it declares anything.
    from program.checks import belongings  # noqa: PLC0415

    try:
        found = belongings.check(
            settings,
            settled.signing_keys,
            server_of(settings),
            recorded.read().of(settings.bucket),
        )
    except ServerError as error:
        refusal = as_setting_error(settings, error)
        if error.reachable or not pulumi.runtime.is_dry_run():
            raise refusal from None
        pulumi.log.warn(f"{refusal}; this preview could not check the server")
        return settled
    return replace(
        settled, adopt=found.adopt, versioned=found.versioned, pins=found.pins, asked=True
    )


def _access_left(settings: Settings) -> str | None:
    """Return what is wrong with who may read, of what a deployment would leave as it is."""
    # Imported here, as the S3 client: a preview need not wait for it.
    from program.checks import bucket_access  # noqa: PLC0415

    if not bucket_access.stays(settings, recorded.read().of(settings.bucket)):
        return None
    try:
        return bucket_access.finding(settings, server_of(settings).access(settings.bucket))
    except ServerError as error:
        return str(as_setting_error(settings, error))


def _check_access(settings: Settings) -> None:
    # Imported here, as the S3 client: a preview need not wait for it.
    from program.checks import bucket_access  # noqa: PLC0415

    try:
        wrong = bucket_access.finding(settings, server_of(settings).access(settings.bucket))
    except ServerError as error:
        raise as_setting_error(settings, error) from None
    if wrong is not None:
        raise pulumi.RunError(wrong)


def _check_in_force(settings: Settings, settled: Settled) -> None:
    declared = expiration_rules(
        settings.rule_days, settings.grace_days, versioned=settled.versioned
    )
    lifecycle = server_of(settings).lifecycle(settings.bucket)
    applied = lifecycle.rules if lifecycle is not None else ()
    if settings.retention_days is None:
        if made_here(applied):
            # Those of the state the engine deletes last, when nothing of the program runs any more:
            # `leaving` has said so.
            known = [one.get("bucket") for one in recorded.read().outputs(recorded.LIFECYCLE)]
            if settings.bucket not in known:
                pulumi.log.warn(
                    f"expire is off, and bucket {settings.bucket} has lifecycle rules of a cache "
                    "that are none of this stack's; entries expire until you delete them by hand"
                )
            return
        # What is about something else than the cache may stay.
        applied = tuple(set(applied) - set(foreign_rules(applied)))
    found = difference(declared, applied)
    if found is not None:
        raise pulumi.RunError(
            f"bucket {settings.bucket}: of the lifecycle rules in force, {found}; see that "
            "the deploying user may set the lifecycle, then run pulumi up --refresh --run-program"
        )
