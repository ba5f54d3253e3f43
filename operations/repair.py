"""Puts right a stack whose server is no longer as declared, or whose `up` was interrupted.

What a refresh stumbles over or cannot see is put back as the state has it: a bucket that is gone,
policies that are gone, users that are gone or disabled or have another secret. What an interrupted
`up` has made and the settings do not name is removed or told. Each is one line. Then `pulumi up
--refresh --run-program` previews the rest, asks, and does it; ARGS go to that command. It takes
over the bucket that the interrupted `up` was about to make, if it is there. Last, the credential
files on builders are placed anew. What was pushed to a bucket that is gone has to be pushed again.
Exit code 0: all is as declared; 2: it is not.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from components.access import concerns_only, same_policy, unwrapped
from operations.administration import Administration
from operations.bucket import Bucket, Credential
from operations.command_line import CANNOT_RUN, DONE, Parser, run
from operations.deployed_stack import read_settings
from operations.left_over import all_made, clear_away
from operations.pulumi_cli import OperationError, on_terminal, read_text
from operations.push import placings
from operations.state import Interrupted, read_interrupted_state, remove_empty_attributes
from program.checks import ownership, same_server
from program.checks.deployment import server_of
from program.checks.recorded import BUCKET, POLICY, STACK, USER, Recorded
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import ADOPTED_BUCKET, Settings

_SECRET_BYTES = 24
"""Of the secret of a user that stands in: MinIO takes 8 to 40 characters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Repair the stack that the command line names; return the exit code."""
    parser = Parser("repair", "OPTIONS OF pulumi up", __doc__)
    chosen, rest = parser.parse_known_args(arguments)
    return run(lambda: _repair(chosen.stack, rest))


def _repair(stack: str, arguments: Sequence[str]) -> int:
    if remove_empty_attributes():
        print("files beside the state were cut off: removed, as the engine needs none", flush=True)
    settings = read_settings(stack)
    found, making = read_interrupted_state(stack)
    state = found.of(settings.bucket)
    try:
        for sentence in put_back(replace(settings, bucket=state.bucket or settings.bucket), state):
            print(sentence, flush=True)
        wanted = read_settings(stack, whole=True) if making else settings
        for sentence in clear_away(wanted, state, making):
            print(sentence, flush=True)
    except (ServerError, SettingError) as error:
        subject = f"{error.setting}: " if isinstance(error, ServerError) else ""
        raise OperationError(f"{subject}{error}; nothing was refreshed") from None
    if making:
        print(
            "an up was interrupted: what it was about to do is done anew, and the engine warns of "
            "it until then",
            flush=True,
        )
    with (
        _adopting(bucket_to_adopt(wanted, state, making)),
        _stood_in(stack, settings, state),
    ):
        up = on_terminal("up", "--refresh", "--run-program", "--stack", stack, *arguments)
    if up != 0:
        return CANNOT_RUN
    now, _ = read_interrupted_state(stack)
    # Not before: until all is made, only this in the state says that it is the stack's.
    if making and all_made(wanted, now, making):
        root = next(urn for urn, one in now.resources.items() if one["type"] == STACK)
        clear = ("--skip-preview", "--clear-pending-creates", "--stack", stack)
        # The deployment has just refreshed all else.
        read_text("refresh", "--yes", f"--target={root}", *clear)
    return _place_anew(stack, now)


def _place_anew(stack: str, state: Recorded) -> int:
    """Place the credential files on builders anew, as nothing has looked at them.

    After all else: a builder that does not answer keeps nothing else from being put right.
    """
    targets = [f"--target-replace={urn}" for urn in placings(state.resources)]
    if not targets:
        return DONE
    print("the credential files on builders are placed anew", flush=True)
    # Without --continue-on-error: with it the engine (3.274) waits without end for a replacement
    # whose first step, the removal, has failed.
    if on_terminal("up", "--yes", "--skip-preview", "--stack", stack, *targets) == 0:
        return DONE
    print(
        "all else is put right; once a builder whose files could not be placed answers, "
        f"make push STACK={stack} BUILDER=NAME places them"
    )
    return CANNOT_RUN


def bucket_to_adopt(
    settings: Settings, state: Recorded, making: Iterable[Interrupted]
) -> str | None:
    """Return the bucket of the settings if it is this stack's, and not in its state.

    That is one that the interrupted `up` was making, or whose objects the state has: a refresh with
    a credential that the server did not take has forgotten the bucket itself, and not those. A
    bucket of another name, or of that name on another server, is somebody else's.
    """
    names = {one.inputs["bucket"] for one in making if one.type == BUCKET}
    known = settings.bucket in names or state.lacks_bucket_of_objects(settings.bucket)
    there = state.endpoint == str(settings.endpoint)
    return settings.bucket if there and known else None


@contextmanager
def _adopting(bucket: str | None) -> Iterator[None]:
    """Let one deployment adopt a bucket.

    Not by its setting: that would be left behind where this is killed, and adopt the next bucket.
    """
    if bucket is None:
        yield
        return
    os.environ[ADOPTED_BUCKET] = bucket
    try:
        yield
    finally:
        del os.environ[ADOPTED_BUCKET]


@contextmanager
def _stood_in(stack: str, settings: Settings, state: Recorded) -> Iterator[None]:
    """Let a refresh get past the policies of users that a refresh before has forgotten.

    The provider fails at what was given to a user that is gone, so there is one meanwhile. The
    deployment makes it its own, or it goes again.

    Raises:
        OperationError: the server does not answer, or refuses the deploying user.
    """
    forgotten = sorted(state.attached_users - state.users)
    administration = Administration(server_of(settings))
    made: list[str] = []
    try:
        try:
            for user in forgotten:
                if administration.user_status(user) is None:
                    administration.put_user(user, secrets.token_urlsafe(_SECRET_BYTES))
                    made.append(user)
                    print(f"user {user} was gone: made again, with another secret", flush=True)
            yield
        finally:
            if made:
                now, _ = read_interrupted_state(stack)
                for user in sorted({*made} - now.users):
                    administration.remove_user(user)
    except ServerError as error:
        raise OperationError(f"{error.setting}: {error}") from None


def put_back(settings: Settings, state: Recorded) -> Iterator[str]:
    """Put back what a refresh cannot, and yield a sentence for each.

    Raises:
        ServerError: the server does not answer, or refuses the deploying user.
        SettingError: it is another one than that of the last deployment, and the bucket has not
            moved there: its users would be taken for this stack's.
    """
    same_server.check(settings, server_of(settings), state)
    deployer = Credential(settings.minio_user, settings.minio_password)
    # Asked in any case: a refresh of a server that does not answer forgets what is there.
    # One that is to go, too: the engine stumbles over it, and deletes it then.
    for bucket in state.buckets or (settings.bucket,):
        gone = server_of(settings).lifecycle(bucket) is None
        if gone and bucket in state.buckets:
            Bucket(replace(settings, bucket=bucket), deployer).make(settings.region)
            yield f"bucket {bucket} was gone: made again, empty"
    users, policies = list(state.outputs(USER)), list(state.outputs(POLICY))
    if not users and not policies:
        return
    administration = Administration(server_of(settings))
    moved = state.endpoint not in (None, str(settings.endpoint))
    for policy in policies:
        name, text = str(policy["name"]), unwrapped(policy["policy"])
        there = administration.policy(name)
        if there is None:
            administration.put_policy(name, text)
            yield f"policy {name} was gone: made again"
        # Of the same server a refresh finds it. One that the cache has come back to has it of then,
        # with the builders of then, and the deployment would not begin.
        elif moved and not same_policy(there, text):
            _refuse_anothers_policy(settings, name, there)
            administration.put_policy(name, text)
            yield f"policy {name} was another one there: put back"
    own = {str(policy["name"]) for policy in policies}
    for user in users:
        name, secret = str(user["name"]), str(user["secret"])
        enabled = administration.user_status(name) == "enabled"
        if enabled and _accepted(settings, Credential(name, secret)):
            continue
        rights = administration.rights_of(name)
        if not rights & own:
            _refuse_anothers(state, name, rights, own)
        administration.put_user(name, secret)
        if not enabled:
            yield f"user {name} was gone or disabled: put back with the secret it had"
        else:
            yield f"user {name} had another secret: put back the one it had"


def _refuse_anothers(
    state: Recorded, user: str, rights: Collection[str], own: Collection[str]
) -> None:
    """Refuse to put this stack's secret over a user that has none of its policies, and others.

    It was given up here and made elsewhere, and an older state knows it still.

    Raises:
        SettingError: it is such a user.
    """
    used = ownership.use_of_others(state, user, rights, own)
    if used is not None:
        raise SettingError(
            "builders", None, f"the secret of user {user} would be put back, and {used}"
        )


def _refuse_anothers_policy(settings: Settings, name: str, there: str) -> None:
    if not concerns_only(there, settings.bucket):
        raise SettingError(
            "endpoint",
            str(settings.endpoint),
            f"the server there has a policy {name} that this stack did not make; remove it there, "
            "or name another server",
        )


def _accepted(settings: Settings, credential: Credential) -> bool:
    """Return whether the server takes a user's secret, whatever the user may do."""
    try:
        next(Bucket(settings, credential).objects("nix-cache-info"), None)
    except ServerError as error:
        if not error.reachable:
            raise
        return error.subject != "password"
    return True


if __name__ == "__main__":
    sys.exit(main())
