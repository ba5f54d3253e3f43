"""Audits a stack's cache: what is signed, what is missing, what is damaged.

Usage: `python -m operations.audit --stack NAME [--hash all|N] [--json FILE]`, in the project's
directory. Exit code 0: all is well; 1: there are findings; 2: the audit could not run.
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from urllib3.exceptions import HTTPError

from operations.bucket import Bucket, Credential
from operations.cache_audit import CONNECTIONS, Cache, Report, audit
from operations.cache_client import CacheClient
from operations.deployed_stack import DeployedStack, read_stack
from operations.pulumi_cli import OperationError
from operations.upstream import upstream_caches
from program.checks.s3_client import explain
from program.checks.server_error import ServerError

ALL_WELL, FINDINGS, CANNOT_RUN = range(3)
"""Exit codes."""

_SHOWN = 20
_SECONDS_BETWEEN_PROGRESS = 2.0


def cache_of(stack: DeployedStack) -> Cache:
    """Return the cache of a stack, read as its clients do."""
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
    )


def _public_url(substituter: str) -> Callable[[str, str], str]:
    # A narinfo's URL may have a query; whatever else stands in it must not break the request.
    return lambda _method, name: f"{substituter}/{quote(name, safe='/?=&%')}"


def summary(report: Report) -> str:
    """Return the report for people: a few lines, and the first findings of each kind."""
    lines = [
        f"{report.stack}: {report.substituter}",
        f"{report.narinfos:,} narinfos, {report.nars:,} NARs with {report.nar_bytes:,} bytes, "
        f"{report.unused_nars:,} of them unused, {report.hashed:,} hashed",
        f"{report.closures:,} closures pushed by this stack, {report.upstream:,} paths left to "
        "other caches",
    ]
    if report.gone:
        lines.append(f"{report.gone:,} narinfos went while the audit ran")
    for name, key in report.keys.items():
        trust = "trusted" if key.trusted else "not this stack's"
        unknown = f", {key.unknown:,} not verified" if key.unknown else ""
        lines.append(
            f"{name} ({trust}): {key.verified:,} narinfos verified{unknown}, "
            f"{key.failed:,} bad; the only trusted key of {key.alone:,}"
        )
    shown: Counter[str] = Counter()
    for finding in report.findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= _SHOWN:
            lines.append(f"{finding.kind} {finding.object}: {finding.detail}")
    lines += [f"{kind}: {count:,} in all" for kind, count in shown.items() if count > _SHOWN]
    lines.append(f"{len(report.findings):,} findings in {report.seconds:.1f} s")
    # What stands in a narinfo is anybody's text: it must not steer a terminal.
    return "\n".join(
        "".join(letter if letter.isprintable() else "?" for letter in line) for line in lines
    )


class _Progress:
    """Says on standard error how far the audit is, every now and then."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _SECONDS_BETWEEN_PROGRESS

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            print(f"audit: {text}", file=sys.stderr, flush=True)
            self._next = now + _SECONDS_BETWEEN_PROGRESS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m operations.audit", description=__doc__)
    parser.add_argument("--stack", required=True, metavar="NAME")
    parser.add_argument(
        "--hash", type=_sample, default=0, metavar="all|N", help="read NARs whole, all or N of them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    chosen = parser.parse_args(arguments)
    try:
        report = audited(read_stack(chosen.stack), chosen.hash)
        if chosen.json is not None:
            write(report, chosen.json)
    except OperationError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted")
    print(summary(report))
    return FINDINGS if report.findings else ALL_WELL


def audited(stack: DeployedStack, sample: int | None) -> Report:
    """Audit a stack's cache, and return the report.

    Args:
        stack: the stack.
        sample: how many NARs to read whole; None is all of them.

    Raises:
        OperationError: the server or the cache does not answer, or refuses the user; or the CA's
            file is damaged.
    """
    report = Report(stack.name, stack.substituter)
    try:
        audit(cache_of(stack), report, sample, _Progress())
    except ServerError as error:
        raise OperationError(f"{error.subject}: {error}") from None
    except HTTPError as error:
        raise OperationError(f"{stack.substituter}: {explain(error)}") from None
    except ssl.SSLError:
        file = stack.settings.ca_certificate_file
        raise OperationError(
            f"caCertificateFile is {file}: holds a damaged certificate; name the CA's PEM file"
        ) from None
    return report


def write(report: Report, file: Path) -> None:
    """Write a report as JSON.

    Raises:
        OperationError: the file cannot be written.
    """
    try:
        file.write_text(f"{json.dumps(asdict(report), indent=2)}\n", encoding="utf-8")
    except OSError as error:
        raise OperationError(f"{file} cannot be written: {error.strerror}") from None


def _sample(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor a number")
    return int(text)


def _refuse(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main())
