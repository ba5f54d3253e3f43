"""What an interrupted `up` may have made, and the settings do not name any more.

No state has it, so no deployment removes it. A pending creation names it, and the server tells
whether anybody uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from components.access import same_policy
from operations.administration import Administration
from operations.state import Interrupted
from program.checks.deployment import server_of
from program.checks.recorded import BUCKET, COMMANDS, POLICY, USER, Recorded
from program.checks.server_error import ServerError
from program.settings.stack import Settings

_CREDENTIALS = "nixcache:index:BuilderCredentials$"


def clear_away(settings: Settings, state: Recorded, making: Sequence[Interrupted]) -> Iterator[str]:
    """Remove users and policies that are left over; yield a sentence for each.

    A bucket, files on a builder, and what may be somebody else's are left to a person, with a
    sentence too.

    Args:
        settings: the stack's settings, with its builders.
        state: the stack's state.
        making: what was being made.

    Raises:
        ServerError: the server does not answer, or refuses the deploying user.
    """
    # Elsewhere those names are somebody else's.
    if state.endpoint == str(settings.endpoint):
        yield from _users_and_policies(settings, state, making)
        yield from _buckets(settings, state, making)
    yield from _files(settings, state, making)


def all_made(settings: Settings, state: Recorded, making: Sequence[Interrupted]) -> bool:
    """Return whether the state has by now what was being made and the settings name.

    A preview makes nothing, and a deployment with targets not all.
    """
    users = frozenset() if settings.given_users else settings.users
    return (
        _names(making, BUCKET) & {settings.bucket} <= set(state.buckets)
        and _names(making, USER) & users <= state.users
        and _names(making, POLICY) & settings.policies <= state.policies.keys()
    )


def _users_and_policies(
    settings: Settings, state: Recorded, making: Sequence[Interrupted]
) -> Iterator[str]:
    texts = {str(one.inputs["name"]): str(one.inputs["policy"]) for one in _of(making, POLICY)}
    left_users = sorted(_names(making, USER) - settings.users - state.users)
    # One with a secret from the settings was somebody's before.
    adopted = {one.inputs["name"] for one in _of(making, USER) if one.inputs.get("secret")}
    left_policies = sorted(texts.keys() - settings.policies - state.policies.keys())
    if not left_users and not left_policies:
        return
    administration = Administration(server_of(settings))
    for user in left_users:
        if administration.user_status(user) is None:
            continue
        # It is given its policy once the state has it: one with rights is somebody's.
        if user not in adopted and not administration.rights_of(user):
            administration.remove_user(user)
            yield f"user {user} was left by an up that was interrupted: removed"
        else:
            yield (
                f"user {user} may be left by an up that was interrupted, or somebody else's; "
                f"where it is nobody's, mc admin user remove s3 {user}"
            )
    for policy in left_policies:
        text = administration.policy(policy)
        if text is None:
            continue
        if same_policy(text, texts[policy]) and not administration.holders(policy):
            administration.remove_policy(policy)
            yield f"policy {policy} was left by an up that was interrupted: removed"
        else:
            yield (
                f"policy {policy} may be left by an up that was interrupted, or somebody else's; "
                f"where it is nobody's, mc admin policy remove s3 {policy}"
            )


def _buckets(settings: Settings, state: Recorded, making: Sequence[Interrupted]) -> Iterator[str]:
    server = server_of(settings)
    for bucket in sorted(_names(making, BUCKET) - {settings.bucket, *state.buckets}):
        try:
            exists = server.lifecycle(bucket) is not None
        except ServerError as error:
            if not error.reachable:
                raise
            # It is there, and not for this user to see.
            exists = True
        if exists:
            yield (
                f"bucket {bucket} may be left by an up that was interrupted, or somebody else's; "
                f"where it is nobody's, mc rb s3/{bucket}"
            )


def _files(settings: Settings, state: Recorded, making: Sequence[Interrupted]) -> Iterator[str]:
    wanted = {(builder.host, builder.credentials_directory) for builder in settings.builders}
    for one in making:
        if one.type in COMMANDS and _CREDENTIALS in one.urn and one.urn not in state.resources:
            host, directory = one.inputs["triggers"]
            if (host, directory) not in wanted:
                yield (
                    f"{directory} on {host or 'this machine'} may hold a credential, left by an up "
                    "that was interrupted; remove it there"
                )


def _of(making: Sequence[Interrupted], type_: str) -> Iterator[Interrupted]:
    return (one for one in making if one.type == type_)


def _names(making: Sequence[Interrupted], type_: str) -> set[str]:
    """Return what the server would call the resources of a type that were being made."""
    return {str(one.inputs["bucket" if type_ == BUCKET else "name"]) for one in _of(making, type_)}
