"""Fetches the push from the cache that it is to push to, checks it, and becomes it.

A deployment sends a builder this, after the text of `formats/sigv4.py`, and keeps the push, twenty
times as long, in the bucket: the engine handles each byte that a command is given dozens of times.
Whoever may push might write there too, so what is fetched runs only if it is, by its SHA-256, what
the deployment uploaded. It stays in this user's cache directory, so the next push fetches nothing.

It runs alone, before there is anything to import: standard library and `Signer` only.
"""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

if TYPE_CHECKING:
    from formats.sigv4 import Signer

KEY = "_nixcache/push.pyz"
"""Where the push lies in the bucket. No narinfo's name begins with a _, so no rule expires it."""

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10, 10, 10, 10)
"""Seconds between attempts: together longer than a server takes to start again."""

_LARGEST = 1 << 22
_TRANSIENT = (408, 429, 500, 502, 503, 504)


class _FetchError(Exception):
    """The push cannot be fetched; the message says why and, after a semicolon, the remedy."""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _setting(settings: str, name: str, default: str = "") -> str:
    values = [
        line.partition("=")[2] for line in settings.split("\n") if line.startswith(f"{name}=")
    ]
    return values[-1] if values else default


def _request(settings: str) -> Request:
    endpoint = _setting(settings, "endpoint").rstrip("/")
    path = f"/{_setting(settings, 'bucket')}/{KEY}"
    signer = Signer(
        _setting(settings, "access-key-id"),
        _setting(settings, "secret-access-key"),
        _setting(settings, "region", "us-east-1"),
    )
    authority = endpoint.partition("://")[2]
    usual = {"https": ":443", "http": ":80"}.get(endpoint.partition("://")[0], "")
    host = authority.removesuffix(usual) if usual else authority
    headers = signer.signed("GET", host, path, (), {}, datetime.now(timezone.utc))
    return Request(endpoint + path, headers=headers)


def _fetched(settings: str) -> bytes:
    """Return what lies at `KEY`."""
    encoded = _setting(settings, "ca-certificate")
    trusted = base64.b64decode(encoded).decode() if encoded else None
    handler = HTTPSHandler(context=ssl.create_default_context(cadata=trusted))
    opener = build_opener(handler, _NoRedirects)
    where = f"{_setting(settings, 'bucket')}/{KEY}"
    for pause in (*PAUSES, None):
        try:
            with opener.open(_request(settings), timeout=30) as answer:
                return bytes(answer.read(_LARGEST))
        except HTTPError as error:
            told = f"GET {where}: HTTP {error.code}{_code(error.read(4096))}; run pulumi up "
            told += "--refresh, which mends users, policies and objects"
            again = error.code in _TRANSIENT
        except (URLError, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise _FetchError(
                    f"the server's certificate is not trusted ({reason.verify_message}); set "
                    "caCertificateFile to what signed the certificate of the server"
                ) from None
            told = (
                f"Failed to connect to the server: {reason}; see that this machine reaches it at "
            )
            told += _setting(settings, "endpoint")
            again = True
        if pause is None or not again:
            raise _FetchError(told)
        time.sleep(pause)
    raise AssertionError


def _code(body: bytes) -> str:
    code = body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode(errors="replace")
    return f" {code}" if code.isalnum() else ""


def _program(settings: str, sha256: str, directory: Path) -> Path:
    """Return the file that holds the push, fetched unless it is there already."""
    path = directory / f"push-{sha256}.pyz"
    if _sum(path) == sha256:
        return path
    content = _fetched(settings)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _FetchError(
            f"{_setting(settings, 'bucket')}/{KEY} is not what this deployment uploaded; run "
            "pulumi up --refresh to put it back"
        )
    descriptor, name = tempfile.mkstemp(dir=directory)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return Path(name).replace(path)


def _sum(path: Path) -> str:
    """Return the SHA-256 of a file of this user's own, or nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_uid != os.geteuid():
                return ""
            return hashlib.sha256(file.read(_LARGEST)).hexdigest()
    except OSError:
        return ""


def _cache_directory(otherwise: str) -> Path:
    """Return where the push is kept, or another directory where nothing can be kept."""
    base = os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '')}/.cache"
    directory = Path(base, "nix-binary-cache")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(otherwise)
    return directory if os.access(directory, os.W_OK) else Path(otherwise)


def _run(sha256: str, arguments: list[str]) -> int:
    """Become the push, and return its exit code."""
    settings = sys.stdin.read()
    with tempfile.TemporaryDirectory() as own:
        try:
            program = _program(settings, sha256, _cache_directory(own))
        except _FetchError as error:
            sys.stderr.write(f"push: fetch: {error}\n")
            return 1
        sys.path.insert(0, str(program))
        from push.cli import main  # noqa: PLC0415

        return main(arguments, lambda: settings)


if __name__ == "__main__":
    exit_code = _run(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    # Threads that still wait for an answer are not waited for.
    os._exit(exit_code)
