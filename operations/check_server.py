"""Asks a stack's S3 server about each need of the cache, before the first deployment or any time.

One line for each need: whether it works, is refused or differs, what was answered and what that
means. Everything is asked in a bucket of its own, made with the deploying user's credential, and
removed; or in an empty one that --bucket names, which stays. Where that user may make none, it is
the stack's bucket, about objects only. With --policy it asks nothing, and prints what the users of
a stack with `users: given` have to be allowed. Exit code 0: every promise of the cache can be kept
with the stack's settings; 1: one cannot; 2: the server could not be asked.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from components.access import read_policy, write_policy
from formats.printable import printable
from operations.command_line import DONE, FOUND, Parser, interruptible, run
from operations.deployed_stack import read_settings
from operations.pulumi_cli import OperationError
from program.checks.bucket_settings import Lifecycle
from program.checks.deployment import server_of
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from program.checks.server_needs import REFUSED, WORKS, Probe, Result, conclusion
from program.settings.stack import Settings

_LONGEST_NAME = 63
_MAKE = "make a bucket"
_NEED, _VERDICT = 30, 9


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask the server of the stack that the command line names; return the exit code."""
    parser = Parser("check-server", "[--json] [--bucket NAME] [--policy]", __doc__)
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument(
        "--bucket", metavar="NAME", help="an empty bucket that was made for this, and stays"
    )
    parser.add_argument(
        "--policy", action="store_true", help="print what given users have to be allowed"
    )
    chosen = parser.parse_args(arguments)
    if chosen.policy:
        return run(lambda: _show_policies(chosen.stack))
    return run(lambda: _check(chosen.stack, chosen.bucket, as_json=chosen.json))


def _show_policies(stack: str) -> int:
    settings = read_settings(stack)
    policies = {"builders": json.loads(write_policy(settings.bucket, None))}
    if settings.private:
        policies["reader"] = json.loads(read_policy(settings.bucket, None))
    print(json.dumps(policies, indent=2))
    return DONE


def _check(stack: str, bucket: str | None, *, as_json: bool) -> int:
    settings = read_settings(stack)
    results = []
    try:
        with probing(settings, server_of(settings), bucket) as (probe, made):
            for result in (made, *probe.results()):
                results.append(result)
                if not as_json:
                    _show(result)
    except ServerError as error:
        raise OperationError(f"{error.setting}: {error}") from None
    kept = all(result.kept for result in results)
    if as_json:
        report = {
            "stack": stack,
            "endpoint": str(settings.endpoint),
            "kept": kept,
            "conclusion": conclusion(results),
            "needs": [dataclasses.asdict(result) for result in results],
        }
        print(json.dumps(report, indent=2))
    else:
        print(printable(f"{settings.endpoint}: {conclusion(results)}"))
    return DONE if kept else FOUND


def _show(result: Result) -> None:
    mark = " " if result.kept else "!"
    line = f"{mark} {result.need:{_NEED}} {result.verdict:{_VERDICT}} {result.answered}"
    # What a server answers is anybody's text.
    print(printable(line), flush=True)
    if result.means:
        print(f"  {'':{_NEED}} {'':{_VERDICT}} {result.means}", flush=True)


@contextmanager
def probing(
    settings: Settings, server: Server, lent: str | None = None
) -> Iterator[tuple[Probe, Result]]:
    """Make a bucket for a probe, and remove it in the end, also where somebody interrupts.

    Args:
        settings: the stack's settings.
        server: as the deploying user reaches it.
        lent: an empty bucket that somebody else has made for it, and that stays.

    Raises:
        ServerError: no answer, or the server refuses the user; the bucket lent is not empty.
    """
    exists = server.lifecycle(settings.bucket) is not None
    if lent is not None:
        _check_empty(server, lent)
    name = f"{settings.bucket[: _LONGEST_NAME - 15].rstrip('.-')}-check-{secrets.token_hex(4)}"
    probe = Probe(settings, server, lent or name, lent=lent is not None)
    with interruptible():
        try:
            answer = server.ask("PUT", name, body=_location(settings.region)) if not lent else None
            made = Result(_MAKE, WORKS, str(answer or "one was lent"))
            if answer is not None and not answer.done:
                probe = Probe(settings, server, settings.bucket, scratch=False)
                means = "rules and policies were not asked about"
                made = Result(_MAKE, REFUSED, str(answer), means)
                if not exists:
                    raise ServerError(
                        "user",
                        f"the server lets it make no bucket {name} ({answer}), and there is none "
                        "of the stack's to ask about; make an empty one, and name it: "
                        'ARGS="--bucket NAME"',
                    )
            yield probe, made
        finally:
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                probe.remove()
            finally:
                signal.signal(signal.SIGINT, before)


def _check_empty(server: Server, bucket: str) -> None:
    lifecycle = server.lifecycle(bucket)
    if lifecycle is None or lifecycle != Lifecycle() or next(server.contents(bucket), None):
        raise ServerError(
            "bucket", f"{bucket} is not there, or has objects or rules; name an empty one"
        )
    try:
        policy = server.access(bucket)
    except ServerError as error:
        # There are servers that know no policies.
        if not error.reachable:
            raise
        return
    if policy is not None:
        raise ServerError("bucket", f"{bucket} has a policy, which would be lost; name one without")


def _location(region: str) -> bytes:
    """Return the body of `CreateBucket`; AWS knows no constraint to us-east-1."""
    if region == "us-east-1":
        return b""
    return (
        f"<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint>"
        "</CreateBucketConfiguration>"
    ).encode()


if __name__ == "__main__":
    sys.exit(main())
