"""Audits a stack's cache: what is signed, what is missing, what is damaged.

It changes nothing. Exit code 0: all is well; 1: there are findings; 2: the audit could not run.
"""

from __future__ import annotations

import argparse
import json
import re
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from urllib3.exceptions import HTTPError

from components.retention import expirations
from formats.printable import printable
from operations.bucket import Bucket, Credential
from operations.cache_audit import CONNECTIONS, Cache, Report, audit
from operations.cache_client import CacheClient
from operations.command_line import DONE, FOUND, Parser, Progress, run
from operations.deployed_stack import DeployedStack, read_deployed
from operations.output_file import STANDARD_OUTPUT, write_whole
from operations.pulumi_cli import OperationError
from operations.push import pushed_again, pushing
from operations.upstream import upstream_caches
from program.checks.recorded import Recorded
from program.checks.s3_client import unreachable
from program.checks.server_error import ServerError
from program.outputs.counted import counted

_SHOWN = 20
_PUSHED_AGAIN = ("closure-missing", "nar-missing", "nar-size", "reference-missing", "unsigned")
_WRONG = ("bad-signature", "content-type", "malformed", "misplaced", "nar-content", "unanswered")


def cache_of(stack: DeployedStack, state: Recorded) -> Cache:
    """Return the cache of a stack, read as its clients do.

    Args:
        stack: the stack.
        state: its state, which tells what expires since the last deployment.
    """
    settings = stack.settings
    deployer = Bucket(settings, Credential(settings.minio_user, settings.minio_password))
    if stack.reader is None:
        url = _public_url(stack.substituter)
    else:
        url = Bucket(settings, stack.reader).url
    return Cache(
        CacheClient(url, settings.ca_certificate_file, CONNECTIONS),
        deployer.objects,
        stack.public_keys,
        stack.closures,
        upstream_caches(settings.upstream_keys, CONNECTIONS),
        expirations(state.lifecycle_rules(settings.bucket)),
        state.objects(settings.bucket),
    )


def _public_url(substituter: str) -> Callable[[str, str], str]:
    # A narinfo's URL may have a query; whatever else stands in it must not break the request.
    return lambda _method, name: f"{substituter}/{quote(name, safe='/?=&%')}"


def summary(report: Report, *, by_deployment: bool = True) -> str:
    """Return the report for people: a few lines, and the first findings of each kind.

    Args:
        report: what was found.
        by_deployment: whether any builder pushes by the deployment.
    """
    lines = [
        f"{report.stack}: {report.substituter}",
        f"{counted(report.narinfos, 'narinfo')}, {counted(report.nars, 'NAR')} with "
        f"{counted(report.nar_bytes, 'byte')}, "
        f"{report.unused_nars:,} of them unused, {report.hashed:,} hashed",
        f"{counted(report.closures, 'closure')} pushed by this stack, "
        f"{counted(report.upstream, 'path')} left to other caches",
    ]
    if report.listings or report.logs:
        lines.append(
            f"{counted(report.listings, 'listing')} and {counted(report.logs, 'build log')}, "
            f"{report.unused_beside:,} of them of no narinfo"
        )
    if report.gone:
        lines.append(f"{counted(report.gone, 'narinfo')} went while the audit ran")
    for name, key in report.keys.items():
        trust = "trusted" if key.trusted else "not this stack's"
        unknown = f", {key.unknown:,} not verified" if key.unknown else ""
        lines.append(
            f"{name} ({trust}): {counted(key.verified, 'narinfo')} verified{unknown}, "
            f"{key.failed:,} bad; the only trusted key of {key.alone:,}"
        )
    shown: Counter[str] = Counter()
    for finding in report.findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= _SHOWN:
            lines.append(f"{finding.kind} {finding.object}: {finding.detail}")
    lines += [f"{kind}: {count:,} in all" for kind, count in shown.items() if count > _SHOWN]
    lines.append(f"{counted(len(report.findings), 'finding')} in {report.seconds:.1f} s")
    lines += remedies(report, by_deployment=by_deployment)
    # What stands in a narinfo is anybody's text.
    return "\n".join(map(printable, lines))


def remedies(report: Report, *, by_deployment: bool = True) -> Iterator[str]:
    """Yield what puts right what an audit found, a line each.

    Args:
        report: what it found.
        by_deployment: whether any builder pushes by the deployment.
    """
    found = {finding.kind for finding in report.findings}
    if found & {"cache-info", "unreadable"}:
        yield f"make repair STACK={report.stack} puts back what the program declares"
    if "unanswered" in found:
        yield "see the server's log first: an overload passes, damage on its disk does not"
    wrong = [finding for finding in report.findings if finding.kind in _WRONG][:_SHOWN]
    objects = {name for finding in wrong for name in (finding.object, finding.nar)}
    # Anybody who may write names objects, and a person copies the line.
    names = sorted(name for name in objects if re.fullmatch(r"[A-Za-z0-9./]+", name))
    if names:
        yield f'make empty STACK={report.stack} ARGS="{" ".join(names)}" removes what is wrong'
    if "content-type" in found:
        yield "who has opened in a browser what that runs clears the site's data; docs/security.md"
    if "foreign" in found:
        yield "move what is foreign to a bucket of its own: this one's lifecycle takes it"
    if found & {*_PUSHED_AGAIN, *_WRONG}:
        yield pushed_again(report.stack, by_deployment=by_deployment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit that the command line asks for; return the exit code."""
    parser = Parser("audit", "[--hash all|N] [--json FILE]", __doc__)
    parser.add_argument(
        "--hash", type=_sample, default=0, metavar="all|N", help="read NARs whole, all or N of them"
    )
    what = "write the report there too; - prints it in place of the text"
    parser.add_argument("--json", metavar="FILE", help=what)
    chosen = parser.parse_args(arguments)
    return run(lambda: _audit(chosen.stack, chosen.hash, chosen.json))


def _audit(stack: str, sample: int | None, file: str | None) -> int:
    deployed, state = read_deployed(stack)
    report = audited(deployed, state, sample)
    for_machines = json.dumps(asdict(report), indent=2)
    text = summary(report, by_deployment=bool(pushing(state)))
    print(for_machines if file == STANDARD_OUTPUT else text)
    # Afterwards: a file that cannot be written does not cost what took hours.
    if file not in (None, STANDARD_OUTPUT):
        write_whole(Path(file), f"{for_machines}\n")
    return FOUND if report.findings else DONE


def audited(stack: DeployedStack, state: Recorded, sample: int | None) -> Report:
    """Audit a stack's cache, and return the report.

    Args:
        stack: the stack.
        state: its state, as the last deployment left it.
        sample: how many NARs to read whole; None is all of them.

    Raises:
        OperationError: the server or the cache does not answer, or refuses the user; or the CA's
            file is damaged.
    """
    report = Report(stack.name, stack.substituter)
    try:
        audit(cache_of(stack, state), report, sample, Progress("audit"))
    except ServerError as error:
        raise OperationError(f"{error.setting}: {error}") from None
    except HTTPError as error:
        raise OperationError(f"{stack.substituter}: {unreachable(error)}") from None
    except ssl.SSLError:
        file = stack.settings.ca_certificate_file
        raise OperationError(
            f"caCertificateFile is {file}: holds a damaged certificate; name the CA's PEM file"
        ) from None
    return report


def _sample(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor a number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
