"""From a stack's settings to its components: which setting becomes which argument."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pulumi
import pulumi_command as command
import pulumi_minio as minio

from components.access import (
    BuilderAccess,
    BuilderAccessArgs,
    Credential,
    ReaderAccess,
    ReaderAccessArgs,
    given_credential,
)
from components.binary_cache import BinaryCache, BinaryCacheArgs
from components.builder_credentials import BuilderCredentials, BuilderCredentialsArgs
from components.closure import Closure
from components.closure_push import BuilderPush, ClosurePush, ClosurePushArgs
from components.pins import Pins, PinsArgs, targets_now
from components.push_program import PROGRAM_KEY
from components.retention import PAGE_KEY
from components.signing_key import SigningKey
from formats.error import FormatError
from program import former_names, placed
from program.checks import recorded
from program.checks.deployment import Settled
from program.checks.key_rotation import SIGNED_BY
from program.connections import ssh_connection
from program.outputs import figures
from program.outputs.figures import Figures
from program.outputs.landing_page import landing_page
from program.outputs.machines import ClientConfiguration
from program.push_settings import push_settings
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings


def declare_signing_keys(keys: SigningKeys) -> list[SigningKey]:
    """Declare the keys, in the settings' order: the last one signs."""
    return [
        SigningKey(name, key_name=name, adopted_secret_key=keys.adopted.get(name))
        for name in keys.names
    ]


def declare_cache(
    settings: Settings,
    server: minio.Provider,
    client: pulumi.Output[ClientConfiguration],
    settled: Settled,
    before_pushes: pulumi.ResourceHook | None,
) -> BinaryCache:
    """Declare the cache, or import the bucket that is there; a public one has a page for people.

    Args:
        settings: the stack's settings.
        server: the provider for all of it.
        client: how clients reach and trust the cache.
        settled: what is known of the server.
        before_pushes: asked before anything is put into the bucket.
    """
    shown = _figures(settings)
    page = client.apply(lambda known: landing_page(known, settings.retention_days, shown))
    return BinaryCache(
        "cache",
        BinaryCacheArgs(
            bucket=settings.bucket,
            adopt=settled.adopt,
            protect=settings.protect,
            anonymous_download=not settings.private,
            bucket_policy=settings.bucket_policy,
            anonymous_listing=settings.anonymous_listing,
            retention_days=settings.rule_days,
            grace_days=settings.grace_days,
            want_mass_query=settings.want_mass_query,
            priority=settings.priority,
            landing_page=None if settings.private else page,
            versioned=settled.versioned,
            comparable_etags=settled.comparable_etags,
            before_first_object=before_pushes,
        ),
        pulumi.ResourceOptions(provider=server),
    )


def _figures(settings: Settings) -> Figures | None:
    """Return what the page shows of the cache.

    Raises:
        SettingError: the environment has something else than figures.
    """
    if settings.private or not settings.page_figures:
        return None
    try:
        state = recorded.read().of(settings.bucket)
        shown = state.content(PAGE_KEY) or state.content(former_names.PAGE_KEY)
        return figures.current(os.environ, shown)
    except FormatError as error:
        raise SettingError(
            "pageFigures", None, f"{error}, which {figures.VARIABLE} has; unset it"
        ) from None


@dataclass(frozen=True)
class DeclaredReaders:
    """Who reads a private cache."""

    guarded: Sequence[pulumi.Resource] = ()
    """What must outlive an unintended destroy."""
    credentials: Sequence[Credential] = ()
    """What they prove themselves by."""


def declare_readers(
    settings: Settings, server: minio.Provider, cache: BinaryCache
) -> DeclaredReaders:
    """Declare the user that reads a private cache, if it is ours to make; a public one has none."""
    if not settings.private:
        return DeclaredReaders()
    if settings.given_users:
        return DeclaredReaders(credentials=[_given(settings, settings.reader_user)])
    args = ReaderAccessArgs(
        bucket=settings.bucket,
        user=settings.reader_user,
        secret=settings.adopted_user_secrets.get(settings.reader_user),
        known_policies=recorded.read().policies,
        bucket_made=cache.made,
    )
    access = ReaderAccess("reader", args, pulumi.ResourceOptions(provider=server))
    return DeclaredReaders([access], [access.credential])


def _given(settings: Settings, user: str) -> Credential:
    return given_credential(user, settings.given_user_secrets[user])


@dataclass(frozen=True)
class DeclaredBuilders:
    """What was declared for the builders."""

    guarded: Sequence[pulumi.Resource]
    """What must outlive an unintended destroy. Pushes are not among it: deleting one runs nothing,
    and nothing else may wait for a builder."""
    outputs: dict[str, dict[str, pulumi.Output[Any]]]
    """By the builder's name: `accessKeyId`, `secretAccessKey`, `signingKey` and, where it has
    closures or pins, `lastPush` and `closures`, the store paths that it pushed."""

    @property
    def done(self) -> list[pulumi.Output[Any]]:
        """What is there once every builder has pushed."""
        return [outputs["lastPush"] for outputs in self.outputs.values() if "lastPush" in outputs]


def declare_builders(
    settings: Settings,
    followed: Mapping[str, Sequence[str] | None],
    server: minio.Provider,
    commands: command.Provider,
    cache: BinaryCache,
    signing_keys: Sequence[SigningKey],
    settled: Settled,
    before_pushes: pulumi.ResourceHook | None,
) -> DeclaredBuilders:
    """Declare the builders' access, and credentials and pushes where the settings want them.

    Args:
        settings: the stack's settings.
        followed: what the links among closures and pins point to, of each builder that has any;
            None where it did not answer.
        server: the provider for users and policy.
        commands: the provider for what runs on builders.
        cache: what they push to.
        signing_keys: the cache's keys, the last of which signs pushes unless a builder has its own.
        settled: what is known of the server.
        before_pushes: asked before anything is pushed, or placed on a builder.
    """
    guarded: list[pulumi.Resource] = []
    if settings.given_users:
        credentials = {
            builder.name: _given(settings, builder.s3_user) for builder in settings.builders
        }
    else:
        access = _declare_access(settings, server, cache)
        guarded.append(access)
        credentials = access.credentials
    outputs = {}
    pushes = {}
    places = placed.places(settings.builders)
    by_name = dict(zip(settled.signing_keys.names, signing_keys, strict=True))
    for builder in settings.builders:
        credential = credentials[builder.name]
        signed_by = builder.signing_key or settled.signing_keys.names[-1]
        signing_key = by_name[signed_by].secret_key
        connection = ssh_connection(builder)
        outputs[builder.name] = {
            "accessKeyId": credential.access_key_id,
            "secretAccessKey": credential.secret_access_key,
            SIGNED_BY: pulumi.Output.from_input(signed_by),
        }
        if builder.credentials_directory is not None:
            files = BuilderCredentialsArgs(
                directory=builder.credentials_directory,
                connection=connection,
                sudo=builder.sudo,
                secret_access_key=credential.secret_access_key,
                signing_key=signing_key,
                before_placing=before_pushes,
            )
            by_ours = pulumi.ResourceOptions(provider=commands)
            guarded.append(BuilderCredentials(places[builder.name], files, by_ours))
        if builder.pushed:
            closures: pulumi.Input[Sequence[str]] = list(builder.pushed)
            if builder.name in followed:
                closures = Closure(
                    builder.s3_user, builder.pushed, followed[builder.name]
                ).store_paths
            # By its user, as the server knows it: what only the settings call it may change.
            pushes[builder.s3_user] = BuilderPush(
                closures=closures,
                credential=credential,
                signing_key=signing_key,
                connection=connection,
            )
    if pushes:
        push = _declare_pushes(
            settings, pushes, [server, commands], cache, signing_keys, settled, before_pushes
        )
        for name, user in ((builder.name, builder.s3_user) for builder in settings.builders):
            if user in pushes:
                outputs[name]["lastPush"] = push.summaries[user]
                # Known once they have been pushed: of a push that fails, the last ones stay.
                outputs[name]["closures"] = pulumi.Output.all(
                    push.summaries[user], pushes[user].closures
                ).apply(lambda known: known[1])
    return DeclaredBuilders(guarded, outputs)


def declare_pins(
    settings: Settings,
    builders: DeclaredBuilders,
    server: minio.Provider,
    cache: BinaryCache,
    settled: Settled,
) -> dict[str, pulumi.Output[list[str]]]:
    """Declare the pins of the cache, and return what each keeps, by its name.

    One that follows a builder's link moves once that builder has pushed what it points to.
    """
    pushed = {builder.name: builder.pushed for builder in settings.builders}
    targets: dict[str, pulumi.Output[list[str]]] = {}
    state = recorded.read().of(settings.bucket)
    for pin in settings.pins:
        if pin.builder is None:
            targets[pin.name] = pulumi.Output.from_input([pin.path])
            continue
        closures = builders.outputs[pin.builder]["closures"]
        place = pushed[pin.builder].index(pin.path)
        before = settled.pins.get(pin.name, state.pinned(pin.name))
        targets[pin.name] = closures.apply(
            partial(_targets_now, place=place, before=before, keep_last=pin.keep_last)
        )
    if targets:
        args = PinsArgs(
            bucket_name=settings.bucket,
            bucket=cache.bucket,
            targets=targets,
            comparable_etags=settled.comparable_etags,
        )
        Pins("pins", args, pulumi.ResourceOptions(providers=[server]))
    return targets


def _targets_now(
    closures: Sequence[str], *, place: int, before: Sequence[str], keep_last: int
) -> list[str]:
    return targets_now(closures[place], before, keep_last)


def _declare_access(
    settings: Settings, server: minio.Provider, cache: BinaryCache
) -> BuilderAccess:
    return BuilderAccess(
        "builders",
        BuilderAccessArgs(
            bucket=settings.bucket,
            policy=settings.write_policy,
            users={builder.name: builder.s3_user for builder in settings.builders},
            secrets=settings.adopted_user_secrets,
            known_policies=recorded.read().policies,
            bucket_made=cache.made,
        ),
        pulumi.ResourceOptions(provider=server),
    )


def _declare_pushes(
    settings: Settings,
    pushes: Mapping[str, BuilderPush],
    providers: list[pulumi.ProviderResource],
    cache: BinaryCache,
    signing_keys: Sequence[SigningKey],
    settled: Settled,
    before_pushes: pulumi.ResourceHook | None,
) -> ClosurePush:
    return ClosurePush(
        "builders",
        ClosurePushArgs(
            builders=pushes,
            bucket_name=settings.bucket,
            bucket=cache.bucket,
            settings=push_settings(settings),
            trusted_keys=pulumi.Output.all(*(key.public_key for key in signing_keys)),
            ca_certificate=settings.ca_certificate,
            comparable_etags=settled.comparable_etags,
            uploaded=recorded.read().of(settings.bucket).binary_content(PROGRAM_KEY),
            before_pushing=before_pushes,
        ),
        pulumi.ResourceOptions(providers=providers),
    )
