"""Tells whether what a stack declared is still so on the server; it changes nothing.

A refresh against a server that does not answer, or that refuses the user, takes buckets and
lifecycles for deleted. So both are asked first, with one request each. Exit code 0: all is as
declared; 1: something differs; 2: it could not be told.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.access import same_policy, unwrapped
from components.retention import expirations, foreign_keys
from formats.narinfo import narinfo_of
from operations.bucket import Bucket, Credential
from operations.command_line import DONE, FOUND, Parser, run
from operations.deployed_stack import DeployedStack, read_deployed
from operations.preview_markdown import render
from operations.pulumi_cli import OperationError, read_output, read_report
from operations.push import pushed_again, pushing
from operations.upstream import ask, upstream_caches
from program.checks import readable, same_server
from program.checks.deployment import server_of
from program.checks.expiry import in_words
from program.checks.recorded import Recorded
from program.checks.server_error import ServerError

_IAM_POLICY = "minio:index/iamPolicy:IamPolicy::"


def check_deployer(stack: DeployedStack) -> None:
    """Ask the server, as the deploying user, what a refresh will ask it.

    Raises:
        ServerError: it does not answer, refuses the user, or has no such bucket.
    """
    settings = stack.settings
    server_of(settings).lifecycle(settings.bucket)
    credential = Credential(settings.minio_user, settings.minio_password)
    next(Bucket(settings, credential).objects("nix-cache-info"), None)


def refused_builders(stack: DeployedStack, builders: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each builder whose credential the server refuses.

    No provider sees a user that was disabled, nor a secret that was changed.

    Args:
        stack: the stack.
        builders: its output `builders`, with secrets.

    Raises:
        ServerError: the server does not answer.
    """
    for name, access in builders.items():
        user = access["accessKeyId"]
        bucket = Bucket(stack.settings, Credential(user, access["secretAccessKey"]))
        try:
            next(bucket.objects("nix-cache-info"), None)
        except ServerError as error:
            if not error.reachable:
                raise
            remedy = ""
            if stack.settings.given_users:
                remedy = "; give it its rights again, or give the secret that it has"
            yield f"builder {name}: the server refuses its user {user} the bucket{remedy}"


def lost_closures(stack: DeployedStack) -> Iterator[str]:
    """Yield a sentence for each closure that was pushed and that clients cannot get any more.

    What the paths of a closure refer to is the audit's to read.

    Raises:
        ServerError: the server does not answer, or refuses the user.
    """
    settings = stack.settings
    bucket = Bucket(settings, Credential(settings.minio_user, settings.minio_password))
    upstreams = upstream_caches(settings.upstream_keys, 1)
    for whose, paths in stack.closures.items():
        for path in paths:
            name = narinfo_of(path)
            if name in dict(bucket.objects(name)):
                continue
            answer = ask(upstreams, name)
            if answer.silent:
                yield (
                    f"{whose} {path}, which the cache does not have; "
                    f"{' and '.join(answer.silent)} cannot be asked for it"
                )
            elif not answer.found:
                yield f"{whose} {path}, which the cache does not have"


def endangered(stack: DeployedStack, state: Recorded) -> Iterator[str]:
    """Yield a sentence about what the bucket's lifecycle takes or keeps, and should not.

    It is the last deployment's: a setting that was changed since takes and keeps nothing.

    Raises:
        ServerError: the server does not answer, or refuses the user.
    """
    settings = stack.settings
    expiring = expirations(state.lifecycle_rules(settings.bucket))
    if not expiring:
        return
    bucket = Bucket(settings, Credential(settings.minio_user, settings.minio_password))
    names = foreign_keys((name for name, _ in bucket.objects()), expiring)
    # A stack that was deployed by a former version knows its page by another name.
    own = state.objects(settings.bucket)
    foreign = in_words(name for name in names if name not in own)
    if foreign is not None:
        yield (
            f"bucket {settings.bucket}: objects expire that are no files of a cache: {foreign}; "
            "move them to a bucket of their own"
        )
    server = server_of(settings)
    lifecycle = server.lifecycle(settings.bucket)
    let_go = lifecycle is None or any(rule.noncurrent_days for rule in lifecycle.rules)
    if not let_go and server.keeps_versions(settings.bucket):
        yield (
            f"bucket {settings.bucket} keeps versions, and no rule lets go those that others have "
            f"followed; make up STACK={stack.name} sets such rules"
        )


def unfinished(stack: DeployedStack, state: Recorded) -> Iterator[str]:
    """Yield a sentence for each bucket that a change of the setting has not come to delete yet."""
    for bucket in state.going(stack.settings.bucket):
        yield (
            f"bucket {bucket} is still there beside {stack.settings.bucket}, and goes with the "
            "next deployment"
        )


def refreshed(stack: str) -> tuple[bool, str]:
    """Refresh in preview; return whether anything differs, and the report of it as Markdown.

    Raises:
        OperationError: the engine printed no report, or one of a program that refused to run,
            which has been printed.
    """
    report, succeeded = read_report("refresh", "--preview-only", "--run-program", "--stack", stack)
    report = without_wrappings(report)
    if not succeeded and not stumbled(report):
        print(render(report), end="", flush=True)
        raise OperationError("the refresh failed, as told above, so it cannot be told what differs")
    changed = set(report.get("changeSummary") or {}) - {"same"}
    return bool(changed) or not succeeded, render(report)


def stumbled(report: Mapping[str, Any]) -> bool:
    """Return whether a refresh failed at a resource, as at a policy that is gone.

    An error of the program, whose settings or whose server will not do, is the stack's.
    """
    return any(
        note.get("severity") == "error"
        and not _type_of(note.get("urn")).startswith(("pulumi:pulumi:", "pulumi:providers:"))
        for note in report.get("diagnostics") or ()
        if note.get("urn")
    )


def _type_of(urn: object) -> str:
    _, _, types = str(urn).rpartition("::")[0].rpartition("::")
    return types.rpartition("$")[2]


def without_wrappings(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a refresh's report in which a policy that a server wraps is the policy.

    RustFS gives a policy back in an object that says what else it knows of it.
    """
    steps = list(report["steps"])
    summary = dict(report.get("changeSummary") or {})
    for index, step in enumerate(steps):
        before, after = (
            str(((step.get(state) or {}).get("inputs") or {}).get("policy"))
            for state in ("oldState", "newState")
        )
        wrapped = unwrapped(after) != after and same_policy(before, unwrapped(after))
        if _IAM_POLICY in str(step.get("urn")) and wrapped:
            steps[index] = {**step, "op": "same"}
            summary["same"] = summary.get("same", 0) + 1
            summary[step["op"]] = summary.get(step["op"], 1) - 1
    return {**report, "steps": steps, "changeSummary": {k: n for k, n in summary.items() if n}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Look for drift in the stack that the command line names; return the exit code."""
    chosen = Parser("drift", "", __doc__).parse_args(arguments)
    return run(lambda: _drift(chosen.stack))


def _drift(name: str) -> int:
    repair = f"make repair STACK={name} puts it right"
    stack, state = read_deployed(name)
    before = same_server.moved_from(stack.settings, state)
    if before is not None and state.has_names:
        # What is not there may well be where it was.
        raise OperationError(
            f"endpoint is {stack.settings.endpoint}, and the last deployment was to {before}: "
            f"nothing was compared; name that server, or deploy to this one first"
        )
    try:
        check_deployer(stack)
        differs, report = refreshed(name)
        builders = read_output("stack", "output", "builders", "--show-secrets", "--stack", name)
        refused = list(refused_builders(stack, builders))
        lost = list(lost_closures(stack))
        astray = [*endangered(stack, state), *unfinished(stack, state)]
        shut = None if stack.settings.bucket_policy else readable.finding(stack.settings)
    except ServerError as error:
        if error.subject == "bucket":
            print(f"- bucket: {error}\n{repair}, with an empty one")
            return FOUND
        raise OperationError(f"{error.setting}: {error}; nothing was refreshed") from None
    print(report, end="")
    for sentence in filter(None, (*refused, *lost, *astray, shut)):
        print(f"- {sentence}")
    if differs or (refused and not stack.settings.given_users):
        print(repair)
    if lost:
        print(pushed_again(name, by_deployment=bool(pushing(state))))
    return FOUND if differs or refused or lost or astray or shut else DONE


if __name__ == "__main__":
    sys.exit(main())
