"""Tells whether what a stack declared is still so on the server; it changes nothing.

Usage: `python -m operations.drift --stack NAME`, in the project's directory. Exit code 0: all is
as declared; 1: something differs; 2: it could not be told.

A refresh against a server that does not answer, or that refuses the user, takes buckets and
lifecycles for deleted. So both are asked first, with one request each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from operations.bucket import Bucket, Credential
from operations.cache_audit import narinfo_of
from operations.deployed_stack import DeployedStack, read_stack
from operations.preview_markdown import render
from operations.pulumi_cli import OperationError, read_output, read_report
from operations.upstream import ask, upstream_caches
from program.checks.deployment import server_of
from program.checks.server_error import ServerError

AS_DECLARED, DIFFERS, CANNOT_TELL = range(3)
"""Exit codes."""

_SETTINGS = {"user": "minioUser", "password": "minioPassword"}


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
            yield (
                f"builder {name}: the server refuses its user {user} the bucket; "
                'see "A builder\'s user" in docs/recovery.md'
            )


def lost_closures(stack: DeployedStack) -> Iterator[str]:
    """Yield a sentence for each closure that was pushed and that clients cannot get any more.

    What the paths of a closure refer to is the audit's to read.

    Raises:
        ServerError: the server does not answer, or refuses the user.
    """
    settings = stack.settings
    bucket = Bucket(settings, Credential(settings.minio_user, settings.minio_password))
    upstreams = upstream_caches(settings.upstream_keys, 1)
    for builder, paths in stack.closures.items():
        for path in paths:
            name = narinfo_of(path)
            if name in dict(bucket.objects(name)):
                continue
            answer = ask(upstreams, name)
            if answer.silent:
                yield (
                    f"builder {builder} pushed {path}, which the cache does not have; "
                    f"{' and '.join(answer.silent)} cannot be asked for it"
                )
            elif not answer.found:
                yield (
                    f"builder {builder} pushed {path}, which the cache does not have; "
                    f"make push STACK={stack.name} pushes it again"
                )


def refreshed(stack: str) -> tuple[bool, str]:
    """Refresh in preview; return whether anything differs, and the report of it as Markdown.

    Raises:
        OperationError: the engine printed no report.
    """
    report, succeeded = read_report("refresh", "--preview-only", "--run-program", "--stack", stack)
    changed = set(report.get("changeSummary") or {}) - {"same"}
    return bool(changed) or not succeeded, render(report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Look for drift in the stack that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m operations.drift", description=__doc__)
    parser.add_argument("--stack", required=True, metavar="NAME")
    name = parser.parse_args(arguments).stack
    try:
        stack = read_stack(name)
        check_deployer(stack)
        differs, report = refreshed(name)
        builders = read_output("stack", "output", "builders", "--show-secrets", "--stack", name)
        sentences = [*refused_builders(stack, builders), *lost_closures(stack)]
    except OperationError as error:
        return _cannot_tell(str(error))
    except ServerError as error:
        setting = _SETTINGS.get(error.subject, error.subject)
        if error.subject == "bucket":
            print(f"{setting}: {error}")
            return DIFFERS
        return _cannot_tell(f"{setting}: {error}; nothing was refreshed")
    print(report, end="")
    for sentence in sentences:
        print(f"- {sentence}")
    return DIFFERS if differs or sentences else AS_DECLARED


def _cannot_tell(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return CANNOT_TELL


if __name__ == "__main__":
    sys.exit(main())
