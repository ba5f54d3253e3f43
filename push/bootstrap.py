"""Fetches the push from the cache that it is to push to, checks it, and becomes it.

A deployment sends a builder this, after the text of `formats/sigv4.py` and compressed, and keeps
the push, twenty times as long, in the bucket: the engine handles each byte that a command is given
dozens of times. Whoever may push might write there too, so what is fetched runs only if it is, by
its SHA-256, what the deployment uploaded. It stays in this user's cache directory, so the next push
fetches nothing, and so does what Python made of it, sealed with the secrets that a push is given:
nobody who has not got them can have written that, and a push with nothing new spends most of its
time otherwise on compiling the same text again.

It runs alone, before there is anything to import: standard library and `Signer` only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import marshal
import os
import resource
import signal
import sys
import time
from datetime import datetime, timezone
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import MAGIC_NUMBER, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse
    from urllib.request import Request

    from formats.sigv4 import Signer

KEY = "_nixcache/push.pyz"
"""Where the push lies in the bucket. No narinfo's name begins with a _, so no rule expires it."""

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10, 10, 10, 10)
"""Seconds between attempts: together longer than a server takes to start again."""

_LARGEST = 1 << 22
# For all attempts together, and their pauses: a server that drips is tried again for no longer.
_SECONDS = 300.0
_TRANSIENT = (408, 429, 500, 502, 503, 504)


class _FetchError(Exception):
    """The push cannot be fetched; the message says why and, after a semicolon, the remedy."""


def _setting(settings: str, name: str, default: str = "") -> str:
    values = [
        line.partition("=")[2] for line in settings.split("\n") if line.startswith(f"{name}=")
    ]
    return values[-1] if values else default


def _request(settings: str) -> Request:
    from urllib.request import Request  # noqa: PLC0415 (as in `_fetched`)

    endpoint = _setting(settings, "endpoint").rstrip("/")
    path = f"/{_setting(settings, 'bucket')}/{KEY}"
    if _setting(settings, "addressing") == "virtual":
        endpoint = endpoint.replace("://", f"://{_setting(settings, 'bucket')}.")
        path = f"/{KEY}"
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
    # Most pushes fetch nothing, and Nix starts before Python reads what the push needs of these.
    import ssl  # noqa: PLC0415
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import URLError  # noqa: PLC0415
    from urllib.request import (  # noqa: PLC0415
        HTTPHandler,
        HTTPSHandler,
        OpenerDirector,
        ProxyHandler,
    )

    encoded = _setting(settings, "ca-certificate")
    # Bundles have names and comments between certificates, in any language.
    trusted = base64.b64decode(encoded).decode("ascii", "ignore") if encoded else None
    context = ssl.create_default_context(cadata=trusted)
    # Nothing more: it follows no redirect, and takes no answer for an exception.
    opener = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(context=context)):
        opener.add_handler(handler)
    where = f"{_setting(settings, 'bucket')}/{KEY}"
    end = time.monotonic() + _SECONDS
    for pause in (*PAUSES, None):
        try:
            with _in_time(end), opener.open(_request(settings), timeout=30) as answer:
                status, body = answer.status, _body(answer)
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise _FetchError(
                    f"the server's certificate is not trusted ({reason.verify_message}); set "
                    "caCertificateFile to what signed the certificate of the server"
                ) from None
            told = (
                f"Failed to connect to the server: {str(reason)[:200]}; "
                "see that this machine reaches it at "
            )
            told += _setting(settings, "endpoint")
            again = True
        else:
            if status == 200:
                return body
            again = status in _TRANSIENT
            told = f"GET {where}: HTTP {status}{_code(body)}"
            if told.endswith("TimeTooSkewed"):
                told += "; set this machine's clock"
            elif again:
                told += "; see the server's log"
            else:
                told += "; run make repair STACK=NAME with the stack's name, which mends users, "
                told += "policies and objects"
        if pause is None or not again or pause >= end - time.monotonic():
            raise _FetchError(told)
        time.sleep(pause)
    raise AssertionError


@contextlib.contextmanager
def _in_time(end: float) -> Iterator[None]:
    """Give up an answer that has not ended by then, its head included.

    Each byte is waited for anew, so no other limit ends one that drips.
    """

    def late(*_: object) -> None:
        raise OSError("the answer does not end")

    before = signal.signal(signal.SIGALRM, late)
    # A time that is over would be none at all.
    signal.setitimer(signal.ITIMER_REAL, max(0.1, end - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _body(answer: HTTPResponse) -> bytes:
    """Return an answer's body, if it comes whole and within bounds."""
    size, content = answer.length, b""
    while size is None or len(content) < size:
        block = answer.read1(1 << 16)
        if not block:
            break
        content += block
        if len(content) > _LARGEST:
            raise OSError("the answer does not end")
    if size is not None and len(content) < size:
        raise OSError("the connection broke before the answer was whole")
    return content


def _code(body: bytes) -> str:
    """Return what a refusal calls itself, after a blank; nothing where that is no code of S3's."""
    code = body.partition(b"<Code>")[2].partition(b"</Code>")[0]
    # Of bytes, only those of ASCII are letters and digits.
    return f" {code.decode()}" if code.isalnum() and not code[64:] else ""


def _program(settings: str, sha256: str) -> bytes:
    """Return the push, fetched unless it is kept already."""
    path = _kept(f"push-{sha256}.pyz")
    content = _content(path)
    if hashlib.sha256(content).hexdigest() == sha256:
        return content
    content = _fetched(settings)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _FetchError(
            f"{_setting(settings, 'bucket')}/{KEY} is not what this deployment uploaded; run "
            "pulumi up --refresh --run-program to put it back"
        )
    _keep(path, content)
    return content


def _codes(settings: str, sha256: str) -> dict[str, CodeType]:
    """Return the push's files, compiled unless that is kept already."""
    secrets = [_setting(settings, name) for name in ("secret-access-key", "signing-key")]
    key = "\n".join(secrets).encode() if all(secrets) else None
    # Another Python has other code.
    about = f"{sha256} {sys.version} ".encode() + MAGIC_NUMBER
    path = None if key is None else _kept(f"push-{sha256}-{sys.implementation.cache_tag}.code")
    kept = _content(path)
    if key and hmac.compare_digest(kept[:32], hmac.digest(key, about + kept[32:], "sha256")):
        codes: dict[str, CodeType] = marshal.loads(kept[32:])
        return codes
    import zipfile  # noqa: PLC0415 (most pushes need none)

    with zipfile.ZipFile(io.BytesIO(_program(settings, sha256))) as archive:
        codes = {
            name: compile(archive.read(name), name, "exec", dont_inherit=True)
            for name in archive.namelist()
            if name.endswith(".py")
        }
    if key:
        content = marshal.dumps(codes)
        _keep(path, hmac.digest(key, about + content, "sha256") + content)
    return codes


def _kept(name: str) -> Path | None:
    """Return where a file is kept, None where nothing can be."""
    base = os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '')}/.cache"
    directory = Path(base, "nix-binary-cache")
    if base == "/.cache" or base[0] != "/":
        return None
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return directory / name


def _content(path: Path | None) -> bytes:
    try:
        # Without waiting, were it a FIFO.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags), "rb") if path else io.BytesIO() as file:
            return file.read(_LARGEST) or b""
    except OSError:
        return b""


def _keep(path: Path | None, content: bytes) -> None:
    """Write a file whole, or not at all."""
    if path is None:
        return
    import tempfile  # noqa: PLC0415 (as in `_fetched`)

    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


class _Modules(MetaPathFinder, Loader):
    """Imports code that was checked: a file could be another one by then."""

    def __init__(self, codes: dict[str, CodeType]) -> None:
        self._codes = codes

    def _file(self, name: str) -> str:
        path = name.replace(".", "/")
        return next(
            (one for one in (f"{path}.py", f"{path}/__init__.py") if one in self._codes), ""
        )

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        file = self._file(name)
        if not file:
            return None
        return spec_from_loader(name, self, is_package=file.endswith("__init__.py"))

    def exec_module(self, module: ModuleType) -> None:
        exec(self._codes[self._file(module.__name__)], module.__dict__)


def _run(sha256: str, arguments: list[str]) -> int:
    """Become the push, and return its exit code."""
    # As `push.signals.leave_no_core`, which is not here yet, and before anything secret is.
    with contextlib.suppress(OSError, ValueError):
        most = int(resource.getrlimit(resource.RLIMIT_CORE)[1] != 0)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    settings = sys.stdin.read()
    try:
        codes = _codes(settings, sha256)
    except _FetchError as error:
        told = "".join(one if one.isprintable() else "?" for one in str(error))
        sys.stderr.write(f"push: fetch: {told}\n")
        return 1
    except Exception as error:  # noqa: BLE001 (what it says may be secret)
        sys.stderr.write(f"push: fetch: defect: {type(error).__name__}; report this line\n")
        return 1
    sys.meta_path.insert(0, _Modules(codes))
    from push.cli import main  # noqa: PLC0415

    return main(arguments, lambda: settings)


if __name__ == "__main__":
    # Threads that still wait for an answer are not waited for.
    os._exit(_run(sys.argv[1], sys.argv[2:]))
