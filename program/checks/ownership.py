"""What a server has already under the names that a deployment would use, and whose it is.

The provider puts a user over one of the same name, and its secret is another; it gives a policy
another text; and a destroy deletes both. So what the state does not know is refused, unless the
settings name it as adopted, or the server itself tells that it was made here: the policies of this
program are about the one bucket and name their users. That is so where a deployment was
interrupted before it could note down what it made, and where a state was lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pulumi

from components.access import concerns_only, same_policy, unwrapped, users_of
from formats.printable import listed
from program.checks.admin_client import Admin
from program.checks.leaving import left
from program.checks.recorded import BUILDERS, POLICY, READER, USER, Recorded
from program.checks.s3_client import Server
from program.checks.same_server import moved_from
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import Settings

_AT_ONCE = 8


def check(settings: Settings, server: Server, recorded: Recorded) -> None:
    """Refuse users and policies that are somebody else's.

    Raises:
        SettingError: one is there which this stack did not make and the settings do not adopt; or
            one that it made would change its role.
        ServerError: no answer, or the server refuses the deploying user.
    """
    _check_roles(settings, recorded)
    admin = Admin(server)
    admin.check()
    _check_forgotten(admin, recorded)
    policies = sorted(settings.policies - recorded.policies.keys())
    users = sorted((settings.users - recorded.users) | set(settings.adopted_user_secrets))
    if not policies and not users:
        return
    for policy in policies:
        _check_policy(settings, admin, policy, settings.users | recorded.users)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = threads.map(lambda user: _check_user(settings, admin, user), users)
        taken = [user for user, exists in zip(users, found, strict=True) if exists]
    _check_taken(settings, admin, taken)


def check_leaving(settings: Settings, server: Server, recorded: Recorded) -> None:
    """Refuse to delete a user that this stack has made or adopted and somebody else has a use for.

    Raises:
        SettingError: one that would go has a policy or a group that is not this stack's.
        ServerError: no answer, or the server refuses the deploying user.
    """
    leaving = recorded.users if settings.given_users else recorded.users - settings.users
    if leaving:
        setting, value = ("users", "given") if settings.given_users else ("builders", None)
        own = settings.policies | recorded.policies.keys()
        try:
            sentence = not_to_be_deleted(Admin(server), recorded, leaving, own)
        except ServerError as error:
            # Another server, whose users are given because it makes none: nothing there is deleted.
            if settings.given_users and error.subject == "users":
                return
            raise
        if sentence is not None:
            files = sorted(one.where for one in left(settings, recorded))
            stay = (
                f"; then remove {listed(files)} by hand, which has a signing key" if files else ""
            )
            raise SettingError(setting, value, f"{sentence}{stay}")


def not_to_be_deleted(
    admin: Admin, recorded: Recorded, users: Iterable[str], own: Collection[str]
) -> str | None:
    """Return why one of a state's users must not be deleted, with the remedy, or None.

    Raises:
        ServerError: no answer, or the server refuses the deploying user.
    """
    for user in sorted(users):
        rights = admin.rights_of(user)
        attached = not rights and user in recorded.attached_users
        if attached and admin.user_status(user) is None:
            # The provider fails at taking a policy from it, with half of all else done.
            return (
                f"the user {user} would be deleted, and is gone from the server; "
                f"make repair STACK={pulumi.get_stack()} puts it back first"
            )
        used = use_of_others(recorded, user, rights, own)
        if used is not None:
            return f"the user {user} would be deleted, and {used}"
    return None


def use_of_others(
    recorded: Recorded, user: str, rights: Collection[str], own: Collection[str]
) -> str | None:
    """Return what a user may do that is not this stack's doing, with the remedy, or None.

    Another stack may have adopted it since, or it was made by hand and adopted by this one: whoever
    else uses it must not lose it.

    Args:
        recorded: the state; it has the user.
        user: its name.
        rights: the policies and the groups that it has on the server.
        own: the policies of this stack.
    """
    others = sorted(set(rights) - set(own))
    if not others:
        return None
    remedies = [f"pulumi state delete '{_urn(recorded, user)}' --target-dependents --force"]
    # What the state forgets stays attached, and the server deletes no policy that somebody has.
    remedies += [
        f"mc admin policy detach ALIAS {policy} --user {user}"
        for policy in sorted(set(rights) & set(own))
    ]
    return (
        f"it has {listed(others)} on the server, which this stack did not give it; take that away "
        f"from it, or leave the user to others: {', and '.join(remedies)}"
    )


def _urn(recorded: Recorded, user: str) -> str:
    return next(
        urn
        for urn, resource in recorded.resources.items()
        if resource["type"] == USER and resource["outputs"]["name"] == user
    )


def check_moved(settings: Settings, server: Server, recorded: Recorded) -> None:
    """Refuse a server at another endpoint without the bucket, or with other users or policies.

    The engine would leave what the state has as it is, and say that all is done. Where the cache
    comes back to a server, what that has is of then: it lets in who has been shut out since.

    Raises:
        SettingError: one is not there, or is another.
        ServerError: no answer, or the server refuses the deploying user.
    """
    before = moved_from(settings, recorded)
    if before is None:
        return
    if settings.bucket in recorded.buckets and server.lifecycle(settings.bucket) is None:
        raise SettingError(
            "endpoint",
            str(settings.endpoint),
            f"there is no bucket {settings.bucket} there, and this stack was deployed to {before}; "
            f"name that server, or move the bucket first: make repair STACK={pulumi.get_stack()} "
            "would make an empty one",
        )
    admin = Admin(server)
    admin.check()
    wrong = next(_others_there(settings, admin, server, recorded), None)
    if wrong is not None:
        raise SettingError(
            "endpoint",
            str(settings.endpoint),
            f"the server there has the bucket, and {wrong}; "
            f"make repair STACK={pulumi.get_stack()} puts it right",
        )


def _others_there(
    settings: Settings, admin: Admin, server: Server, recorded: Recorded
) -> Iterator[str]:
    """Yield what of a state's policies and users another server lacks, or has as another."""
    for name, text in sorted(recorded.policies.items()):
        there = admin.policy(name)
        if there is None:
            yield f"not this stack's policy {name}"
        elif not same_policy(there, unwrapped(text)):
            yield f"another policy {name} than this stack's"
    for user in sorted(recorded.outputs(USER), key=lambda user: str(user["name"])):
        name = str(user["name"])
        if admin.user_status(name) is None:
            yield f"not this stack's user {name}"
        elif _answers(settings, server, name, str(user.get("secret"))):
            yield f"the user {name} by another secret than this stack's"


def _check_roles(settings: Settings, recorded: Recorded) -> None:
    """Refuse to give a builder the reader's user, or the reader a builder's, in one deployment.

    The engine would put it over the one that is there, and then delete that one, by the same name.

    Raises:
        SettingError: a name goes from one role to the other.
    """
    pushing = {builder.s3_user for builder in settings.builders}
    for user in sorted(pushing & recorded.names_of(READER, USER)):
        setting, _ = settings.name_of_user(user)
        raise SettingError(
            setting,
            user,
            "it is the user of the cache's reader, whose secret all clients have; take another "
            "name, or deploy without this builder first",
        )
    if settings.write_policy in recorded.names_of(READER, POLICY):
        raise SettingError(
            "writePolicy",
            settings.write_policy,
            "it is the policy of the cache's reader; take another name, or deploy without the "
            "reader first",
        )
    if not settings.private:
        return
    for type_, whose in ((USER, "a builder's user"), (POLICY, "the builders' policy")):
        if settings.reader_user in recorded.names_of(BUILDERS, type_):
            raise SettingError(
                "access",
                "private",
                f"the cache's reader would have the name {settings.reader_user}, which is "
                f"{whose}; let that have another name, and deploy, first",
            )


def _check_forgotten(admin: Admin, recorded: Recorded) -> None:
    """Refuse where a refresh has forgotten a user that is gone, and not the policy that it had.

    The engine would make the user anew, and leave it without.

    Raises:
        SettingError: that is so.
        ServerError: no answer, or the server refuses the deploying user.
    """
    unknown = sorted(recorded.attached_users - recorded.users)
    forgotten = [user for user in unknown if admin.user_status(user) is None]
    if forgotten:
        raise SettingError(
            "builders",
            None,
            f"a refresh has forgotten {listed(forgotten)}, gone from the server, and not what it "
            f"was allowed; make repair STACK={pulumi.get_stack()} puts it right",
        )


def _check_policy(settings: Settings, admin: Admin, policy: str, own: frozenset[str]) -> None:
    """Refuse a policy that is somebody else's; `own` are this stack's users, past ones too.

    A deployment that was interrupted has left users without what it knows of their policy, and the
    settings may have given them up since.
    """
    text = admin.policy(policy)
    named = None if text is None else users_of(text, settings.bucket)
    if named is not None:
        others = sorted(named - own)
        _check_named(settings, policy, [one for one in others if admin.user_status(one)])
    if text is None or named is not None:
        return
    reason = "which this stack did not make"
    if settings.adopt_bucket and concerns_only(text, settings.bucket):
        others = sorted(admin.holders(policy) - own)
        if not others:
            return
        reason = f"and {listed(others)} have it too"
    setting = "writePolicy" if policy == settings.write_policy else "bucket"
    value = policy if setting == "writePolicy" else settings.bucket
    raise SettingError(
        setting,
        value,
        f"the server has a policy {policy} already, {reason}; write another name, or remove it",
    )


def _check_named(settings: Settings, policy: str, others: Sequence[str]) -> None:
    """Refuse to shut out users that a policy of the cache names and the settings do not."""
    if not others:
        return
    sentence = (
        f"the server has a policy {policy} already, of a stack with this bucket whose users "
        f"{listed(others)} would have no rights any more"
    )
    if not settings.confirm_shared_bucket:
        raise SettingError(
            "bucket",
            settings.bucket,
            f"{sentence}; destroy that stack, add them to builders, or set confirmSharedBucket to "
            "true to let them go",
        )
    pulumi.log.warn(f"bucket {settings.bucket}: {sentence}")


def _check_user(settings: Settings, admin: Admin, user: str) -> bool:
    """Return whether a user exists that the settings do not adopt."""
    secret = settings.adopted_user_secrets.get(user)
    exists = admin.user_status(user) is not None
    if secret is not None and _answers(settings, admin.server, user, secret):
        raise SettingError(
            "adoptedUserSecrets",
            None,
            f"the server knows {user} by another secret; give the one that its "
            f"{'clients use' if user == settings.reader_user else 'builder uses'}",
        )
    # Root and service accounts are no users, and yet somebody's.
    if not exists and _answers(settings, admin.server, user, secrets.token_urlsafe()):
        raise _refusal(settings, user, "which is its root user or a service account", adopt=False)
    return exists and secret is None


def _check_taken(settings: Settings, admin: Admin, users: Iterable[str]) -> None:
    ours: set[str] = set()
    for policy in settings.policies if users else ():
        ours |= users_of(admin.policy(policy) or "", settings.bucket) or frozenset()
    for user in users:
        if user not in ours:
            raise _refusal(settings, user, "which this stack did not make", adopt=True)
        pulumi.log.info(
            f"the server has a user {user} already, which a policy of this bucket's cache names: "
            "it gets another secret"
        )


def _answers(settings: Settings, server: Server, user: str, secret: str) -> bool:
    """Return whether S3 knows a user, and by another secret than this one."""
    try:
        replace(server, user=user, password=secret).lifecycle(settings.bucket)
    except ServerError as error:
        # Everything else is no answer about the secret: the user may not read the lifecycle.
        return error.subject == "password"
    return False


def _refusal(settings: Settings, user: str, reason: str, *, adopt: bool) -> SettingError:
    sentence = f"the server has a user {user} already, {reason}"
    remedy = "give its secret in adoptedUserSecrets, or " if adopt else ""
    for index, builder in enumerate(settings.builders):
        if builder.s3_user == user:
            return SettingError(
                f"builders[{index}].s3User", user, f"{sentence}; {remedy}take another name"
            )
    return SettingError(
        "bucket",
        settings.bucket,
        f"{sentence}, and it would be the cache's reader; {remedy}remove it",
    )
