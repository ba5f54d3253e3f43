"""Copies paths of another binary cache into a stack's, verified and signed anew.

What is copied are store paths with all that they refer to, or narinfos' names, from a file, one a
line, or from standard input (-). Each narinfo must be signed by one of the given public keys; each
NAR is read whole, hashed against what was signed, compressed as the stack's are, and signed by all
of the stack's keys. What upstream caches sign is left to them, what the cache has already is
renewed. What is interrupted goes on where it was. Exit code 0: all is in the cache; 1: some of it
is not; 2: it could not be done.
"""

from __future__ import annotations

import base64
import hashlib
import lzma
import netrc
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast, final
from urllib.parse import urlsplit

import zstandard
from urllib3.exceptions import HTTPError

from formats.compression import COMPRESSIONS
from formats.error import FormatError
from formats.keys import PublicKey, shown_key
from formats.narinfo import NarInfo, narinfo_of
from formats.nix32 import nix32_encode
from formats.printable import printable
from formats.signing import SecretKey
from formats.store_path import STORE_DIR
from operations.command_line import DONE, FOUND, Parser, Progress, interruptible, run
from operations.deployed_stack import DeployedStack, read_stack
from operations.nar_measure import NarError, measure_nar
from operations.other_cache import (
    BREAKS_OFF,
    CONNECTIONS,
    WANTS_LOGIN,
    Offer,
    OtherCache,
    Walk,
    named,
)
from operations.pulumi_cli import OperationError, read_output
from operations.upstream import UpstreamCache, ask, upstream_caches
from program.push_settings import push_settings
from push.bucket import Bucket
from push.connection import Route
from push.failure import Failure, PushError
from push.inventory import narinfo_key, present_of
from push.pins import Pin, PinRenewal
from push.plan import WriteOrder
from push.progress import human
from push.publishing import today
from push.settings import PushSettings, format_settings, read
from push.store import references_first
from push.transfers import Loop, Transfers
from push.workspace import Workspace

_URL = re.compile(r"[!-~]+")
_WRITE_A_URL = "write the cache's URL, https://..."
_DOWNLOADS = 4
_LOOKS_AT_ONCE = 1_000
_SHOWN = 10
_SECONDS_OF_SILENCE = 30.0
_REMEDIES = {
    WANTS_LOGIN: 'name a file that has it with ARGS="--netrc-file FILE"',
    BREAKS_OFF: "see the other cache's log",
}


@dataclass
class Outcome:
    """What an import came to."""

    imported: int = 0
    bytes: int = 0
    """Of NARs, before compression."""
    held: int = 0
    """Paths that the cache had already."""
    left: int = 0
    """Paths that upstream caches have."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why paths are not in the cache, by store path."""
    blocked: int = 0
    """Paths that are not in the cache because of what they refer to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Import what the command line names; return the exit code."""
    parser = Parser(
        "import",
        "--from URL --keys KEY... [--paths FILE] [PATH...]",
        __doc__,
        module="import_cache",
    )
    parser.add_argument("--from", dest="url", required=True, metavar="URL", help="the other cache")
    parser.add_argument(
        "--keys", required=True, action="append", metavar="KEYS",
        help="its public keys, name:base64, apart by blanks",
    )  # fmt: skip
    parser.add_argument("--paths", metavar="FILE", help="what is copied, one a line; - reads them")
    parser.add_argument("--ca-file", metavar="FILE", help="the private CA of the other cache (PEM)")
    parser.add_argument("--netrc-file", metavar="FILE", help="logins, as Nix's netrc-file has them")
    parser.add_argument("path", nargs="*", metavar="PATH", help="what is copied besides")
    chosen = parser.parse_args(arguments)
    return run(
        lambda: _import(
            chosen.stack,
            read_url(chosen.url),
            _keys(" ".join(chosen.keys)),
            read_wanted(chosen.paths, chosen.path),
            chosen.ca_file,
            chosen.netrc_file,
        )
    )


def read_url(text: str) -> str:
    """Return the URL of the other cache, below which its files are.

    Raises:
        OperationError: it is none, or has a login, which nobody is to read here or in a list of
            processes; the message does not show it.
    """
    # A password may have letters in it by which a URL is taken apart.
    if "@" in text:
        raise OperationError(
            "FROM has a login in it, which lists of processes and histories of shells show; write "
            "the URL without it, and the login to a file as for Nix's netrc-file: "
            'ARGS="--netrc-file FILE"'
        )
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise OperationError(f"FROM is {text[:200]!r}; {_WRITE_A_URL}") from None
    if parts.scheme == "s3":
        raise OperationError(
            f"FROM is the bucket {parts.netloc[:100]!r} over S3, which is not copied from; write "
            "the URL at which it is read over HTTP, https://server/bucket, and let anybody read it "
            "meanwhile if it is private"
        )
    if parts.query or parts.fragment:
        raise OperationError(
            "FROM has a ? or #; write the URL without what follows, which says nothing of where "
            "the cache is"
        )
    if parts.scheme not in ("https", "http") or not host or not _URL.fullmatch(text):
        raise OperationError(f"FROM is {text[:200]!r}; {_WRITE_A_URL}")
    return text.rstrip("/")


def read_login(file: str | None, url: str) -> dict[str, str]:
    """Return the headers by which a cache knows this user.

    Args:
        file: logins by host, as curl and Nix read them; None where anybody may read.
        url: of the cache.

    Raises:
        OperationError: the file cannot be read, or has no login for the host; or the login would
            travel in the clear. The message does not show it.
    """
    if file is None:
        return {}
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise OperationError(f"FROM is {url}, to which a login would go in the clear; use https://")
    try:
        found = netrc.netrc(file).authenticators(str(parts.hostname))
    except (OSError, ValueError, netrc.NetrcParseError):
        raise OperationError(
            f"--netrc-file is {file}, which cannot be read; write lines of the form machine "
            f"{parts.hostname} login USER password PASSWORD"
        ) from None
    if found is None:
        raise OperationError(f"{file} has no login for {parts.hostname}; add a line for it")
    user, _, password = found
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def _keys(text: str) -> list[PublicKey]:
    keys = []
    for word in text.split():
        try:
            keys.append(PublicKey.parse(word))
        except FormatError:
            raise OperationError(
                f"KEYS has {shown_key(word)!r}, which is no public key; write the whole key, "
                "name:base64, as the cache's clients trust it"
            ) from None
    if not keys:
        raise OperationError("KEYS is empty; write the other cache's public keys, name:base64")
    return keys


def read_wanted(file: str | None, paths: Sequence[str]) -> list[str]:
    """Return what is to be copied, each once: store paths, or names of narinfos.

    A narinfo's name is the last part of its URL, or of its place in a list of a bucket.

    Args:
        file: where they stand, a line each; `-` is standard input.
        paths: more of them.

    Raises:
        OperationError: the file cannot be read, a line is none, or there is nothing.
    """
    lines = list(paths)
    if file is not None:
        try:
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise OperationError(
                f"PATHS is {file}, which cannot be read; name a text file"
            ) from None
        lines += text.split()
    wanted = {}
    for line in lines:
        name = named(line)
        if name is None and line.endswith(".narinfo"):
            name = named(line.rpartition("/")[2])
        if name is None:
            raise OperationError(
                f"{line[:100]!r} is neither a store path nor a narinfo's name; write "
                "/nix/store/<hash>-<name> or <hash>.narinfo"
            )
        wanted[name] = True
    if not wanted:
        raise OperationError(
            "there is nothing to copy; name store paths, in a file with PATHS=FILE"
        )
    return list(wanted)


def _import(
    name: str,
    url: str,
    keys: Sequence[PublicKey],
    wanted: Sequence[str],
    ca_file: str | None,
    netrc_file: str | None,
) -> int:
    began = time.monotonic()
    login = read_login(netrc_file, url)
    stack = read_stack(name)
    upstream = [PublicKey.parse(key) for key in stack.settings.upstream_keys]
    settings, signing = _push_settings(stack)
    progress = Progress("import")
    try:
        other = OtherCache(url, keys, upstream, ca_file, login)
        walk = other.walk(wanted, progress)
    except HTTPError as error:
        raise OperationError(f"{url}: {_why_silent(error)}") from None
    except OSError as error:
        raise OperationError(f"{ca_file} cannot be read as CA certificates ({error})") from None
    if not walk.offers and not walk.left:
        raise OperationError(_nothing(url, walk))
    upstreams = upstream_caches(stack.settings.upstream_keys, CONNECTIONS)
    try:
        with interruptible(), _Import(settings, signing, other, progress) as it:
            outcome = it.run(walk, upstreams)
    except PushError as error:
        raise OperationError(str(error)) from None
    except OSError as error:
        raise OperationError(
            f"{error.filename or 'the disk'} cannot be written to ({error.strerror}); free space, "
            "or set TMPDIR to a larger disk"
        ) from None
    return _tell(outcome, time.monotonic() - began)


def _nothing(url: str, walk: Walk) -> str:
    """Return why nothing at all can be copied."""
    for what, why in walk.refused.items():
        remedy = _REMEDIES.get(why, "see that KEYS are its keys")
        return f"{url} has nothing that can be copied: {what}: {why}; {remedy}"
    return f"{url} has none of what is to be copied, such as {next(iter(walk.absent))}"


def _why_silent(error: HTTPError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return 'its certificate is not trusted; name what signed it with ARGS="--ca-file FILE"'
    if "WRONG_VERSION_NUMBER" in str(error) or "record layer failure" in str(error):
        return "it does not speak TLS there; check scheme and port"
    reason = type(getattr(error, "reason", None) or error).__name__
    return f"it does not answer as a cache does ({reason}); see that FROM is its URL"


def _push_settings(stack: DeployedStack) -> tuple[PushSettings, list[SecretKey]]:
    """Return how a push of a builder of the stack would be done, and the keys that sign.

    All of them: which are known to which client nobody knows in the midst of a rotation.
    """
    outputs = read_output("stack", "output", "--show-secrets", "--stack", stack.name)
    builders = outputs.get("builders")
    if not builders:
        raise OperationError(
            f"stack {stack.name} has no builder whose user could write; give it one, and deploy "
            "that"
        )
    access = next(iter(builders.values()))
    secrets = str(outputs["signingKeyBackup"]).split()
    certificate = stack.settings.ca_certificate
    values = {
        **push_settings(stack.settings),
        "access-key-id": str(access["accessKeyId"]),
        "secret-access-key": str(access["secretAccessKey"]),
        "signing-key": secrets[-1],
        "trusted-key": [str(key) for key in stack.public_keys],
        "ca-certificate": certificate and base64.b64encode(certificate.encode()).decode(),
    }
    try:
        return read(format_settings(values).split("\n")), [SecretKey.parse(one) for one in secrets]
    except (PushError, FormatError) as error:
        raise OperationError(f"stack {stack.name}: {error}") from None


@final
class _Import:
    """Copies what a walk has found: downloads by threads, and the rest as a push does it."""

    def __init__(
        self,
        settings: PushSettings,
        keys: Sequence[SecretKey],
        other: OtherCache,
        progress: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._other = other
        self._progress = progress
        self._loop = Loop()
        self._loop.watch_threads()
        self._transfers = Transfers(Route(settings), self._loop)
        self._bucket = Bucket(settings, self._transfers, self._loop)
        self._space = _Space(settings.staging_limit)
        self._stopped = threading.Event()
        self._order = WriteOrder({}, ())
        self._contents: dict[str, bytes] = {}
        self._working = 0
        self._offers: Mapping[str, Offer] = {}
        self._bytes = 0
        self._outcome = Outcome()
        # A push's: what one that was killed has left goes as well.
        self._workspace = Workspace(os.environ)

    def __enter__(self) -> _Import:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with ExitStack() as last_first:
            last_first.callback(self._workspace.remove)
            last_first.callback(self._transfers.close)
            last_first.callback(self._space.close)

    def run(self, walk: Walk, upstreams: Sequence[UpstreamCache]) -> Outcome:
        """Copy what is missing.

        Raises:
            PushError: nothing more can be done.
        """
        outcome = self._outcome
        outcome.left = len(walk.left)
        missing = self._missing(walk, upstreams)
        began = today(self._transfers)
        self._offers = {path: offer for path, offer in walk.offers.items() if path in missing}
        self._bytes = sum(offer.path.nar_size for offer in self._offers.values())
        outcome.held = len(walk.offers) - len(self._offers)
        outcome.problems |= walk.refused
        # What is not believed is in the cache already where somebody has pushed it.
        broken = missing - self._offers.keys()
        self._order = WriteOrder(
            {
                path: [f"{STORE_DIR}/{name}" for name in offer.path.references]
                for path, offer in self._offers.items()
            },
            [*self._offers, *broken],
        )
        for path in broken:
            self._order.fail(path)
        ordered = references_first({path: one.path for path, one in self._offers.items()})
        tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
        for one in ordered:
            tasks.put(one.path)
        self._working = _DOWNLOADS
        for _ in range(_DOWNLOADS):
            threading.Thread(target=self._download_all, args=(tasks,), daemon=True).start()
        self._loop.run(self._finished, self._show, _SECONDS_OF_SILENCE)
        for path in self._order.unsettled:
            outcome.problems[path] = "it and what it refers to refer to one another"
        outcome.blocked = len(self._order.blocked)
        if today(self._transfers) > began:
            # What the cache had would expire before what refers to it and was copied since.
            self._renew(walk, list(walk.offers))
        return outcome

    def _missing(self, walk: Walk, upstreams: Sequence[UpstreamCache]) -> set[str]:
        """Return the store paths that neither the cache nor an upstream one has.

        What the cache has is renewed: it is to live as long as what refers to it.
        """
        # The server's clock decides which day it is.
        self._bucket.gather([self._bucket.look_at("nix-cache-info")])
        asked = [
            path
            for path in (*walk.offers, *walk.absent, *walk.refused)
            if path.startswith(f"{STORE_DIR}/")
        ]
        renewal = self._renew(walk, asked)
        lost = set(asked) & renewal.broken.get("import", {}).keys()
        lost |= self._without_nar(renewal.not_due)
        elsewhere = set(self._elsewhere(walk, sorted(lost & walk.absent.keys()), upstreams))
        self._outcome.left += len(elsewhere)
        for path in walk.refused.keys() - lost:
            # Somebody has pushed it: what the other cache says of it does not matter.
            if path in asked:
                del walk.refused[path]
        for name in walk.absent.keys() - set(asked):
            self._outcome.problems[name] = "the other cache does not have it"
        return lost - elsewhere

    def _renew(self, walk: Walk, paths: Sequence[str]) -> PinRenewal:
        """Renew what the cache has of store paths, and note what it does not let be renewed."""
        renewal = PinRenewal(
            self._bucket,
            self._transfers,
            self._loop,
            keys=self._settings.trusted_keys,
            # Nothing is due where nothing expires.
            day=today(self._transfers) if self._settings.renew else "",
            known=walk.left,
        )
        renewal.run([Pin("import", tuple(paths))])
        for path, failure in renewal.failures.items():
            self._outcome.problems[path] = failure.what
        return renewal

    def _without_nar(self, narinfos: Sequence[NarInfo]) -> set[str]:
        """Return the store paths of which the cache has the narinfo, and not the NAR."""
        lost = set()
        for start in range(0, len(narinfos), _LOOKS_AT_ONCE):
            some = narinfos[start : start + _LOOKS_AT_ONCE]
            self._progress(f"{start:,} of {len(narinfos):,} NARs looked at")
            answers = self._bucket.attempt([self._bucket.look_at(one.url) for one in some])
            for narinfo, answer in zip(some, answers, strict=True):
                if isinstance(answer, Failure):
                    self._outcome.problems[narinfo.store_path] = answer.what
                    continue
                nar = present_of({narinfo.url: answer}).get(narinfo.url)
                if nar is None or not nar.may_have(narinfo.file_size):
                    lost.add(narinfo.store_path)
        return lost

    def _elsewhere(
        self, walk: Walk, absent: Sequence[str], upstreams: Sequence[UpstreamCache]
    ) -> Iterator[str]:
        """Yield those of the paths that an upstream cache has; note those that nobody has."""
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            answers = threads.map(lambda path: ask(upstreams, narinfo_of(path)), absent)
            for path, answer in zip(absent, answers, strict=True):
                if answer.found:
                    yield path
                    continue
                whose = f", and {walk.absent[path]} refers to it" if walk.absent[path] else ""
                silent = f"; {' and '.join(answer.silent)} cannot be asked" if answer.silent else ""
                self._outcome.problems[path] = f"the other cache does not have it{whose}{silent}"

    # -------------------------------------------------------------------------------- the threads

    def _download_all(self, tasks: queue.SimpleQueue[str]) -> None:
        """Download what is still wanted, one after the other."""
        while not self._stopped.is_set():
            try:
                path = tasks.get_nowait()
            except queue.Empty:
                break
            # What refers to something that failed is not wanted any more.
            if path in self._order.unsettled and self._space.take(self._offers[path].path.nar_size):
                self._loop.call(self._downloaded(path, self._offers[path]))
        self._loop.call(self._worker_ended)

    def _downloaded(self, path: str, offer: Offer) -> Callable[[], None]:
        """Download a NAR, and return what follows from it."""
        file = self._workspace.stage / offer.path.hash_part
        try:
            packed = self._pack(offer, file)
        except (NarError, HTTPError) as error:
            why = str(error) if isinstance(error, NarError) else "the other cache does not answer"
            return partial(self._failed, path, file, f"its NAR cannot be had: {why}")
        except OSError as error:
            return partial(self._failed, path, file, f"{file}: {error.strerror}; free space there")
        return partial(self._upload, path, offer, file, packed)

    def _pack(self, offer: Offer, file: Path) -> _Packed:
        """Write a NAR to a file as the stack's are compressed, if it is what was signed."""
        with self._other.open(offer) as response, file.open("wb") as target:
            if response.status != 200:
                raise NarError(f"it is answered with HTTP status {response.status}")
            packed = _Packed(target)
            writer = _writer(packed, self._settings)

            def keep(piece: bytes) -> None:
                if self._stopped.is_set():
                    raise NarError("interrupted")
                writer.write(piece)

            # The limit bounds what is read of a NAR that does not end, and written of it.
            measure = measure_nar(response, offer.compression, offer.path.nar_size, keep)
            writer.close()
        if (measure.nar_hash, measure.nar_size) != (offer.path.nar_hash, offer.path.nar_size):
            raise NarError("it is not what was signed")
        return packed

    # -------------------------------------------------------------------------------- the writing

    def _upload(self, path: str, offer: Offer, file: Path, packed: _Packed) -> None:
        compression = self._settings.compression
        digest = packed.hash()
        key = f"nar/{digest}.nar{COMPRESSIONS[compression].suffix}"
        own = {one.name for one in self._keys}
        made = offer.path.narinfo(
            key,
            compression,
            file_hash=f"sha256:{digest}",
            file_size=packed.size,
            # Clients that trust the other cache's key take it by that one, too.
            signatures=[
                *(one for one in offer.path.signatures if one.partition(":")[0] not in own),
                *(one.sign(offer.path.fingerprint) for one in self._keys),
            ],
        )
        self._contents[path] = made.format().encode("ascii")

        def landed(_: str | None) -> None:
            self._free(path, file)
            self._publish(self._order.nar_is_there(path))

        self._bucket.put_nar(
            key, file, packed.size, landed, lambda failure: self._failed(path, file, failure.what)
        )

    def _publish(self, ready: Sequence[str]) -> None:
        for path in ready:
            self._bucket.put_narinfo(
                narinfo_key(self._offers[path].path),
                self._contents.pop(path),
                partial(self._published, path),
                partial(self._not_published, path),
            )

    def _published(self, path: str, _: str | None) -> None:
        self._outcome.imported += 1
        self._outcome.bytes += self._offers[path].path.nar_size
        self._show()
        self._publish(self._order.settle(path))

    def _not_published(self, path: str, failure: Failure) -> None:
        self._fail(path, failure.what)

    def _failed(self, path: str, file: Path, why: str) -> None:
        self._free(path, file)
        self._fail(path, why)

    def _fail(self, path: str, why: str) -> None:
        self._outcome.problems[path] = why
        self._order.fail(path)

    def _free(self, path: str, file: Path) -> None:
        file.unlink(missing_ok=True)
        self._space.give(self._offers[path].path.nar_size)

    def _worker_ended(self) -> None:
        self._working -= 1

    def _finished(self) -> bool:
        return not self._working and self._transfers.idle()

    def _show(self) -> None:
        self._progress(
            f"{self._outcome.imported:,} of {len(self._offers):,} paths, "
            f"{human(self._outcome.bytes)} of {human(self._bytes)}"
        )


class _Packed:
    """A file that is written: its digest and size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, piece: bytes) -> int:
        self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)
        return len(piece)

    def close(self) -> None:
        """Leave the file to whoever opened it."""

    def hash(self) -> str:
        """Return its SHA-256 in nix32."""
        return nix32_encode(self._digest.digest())


class _Writer(Protocol):
    """What compresses what is written to it."""

    def write(self, piece: bytes, /) -> object:
        """Take in a piece."""

    def close(self) -> object:
        """Write what is left."""


def _writer(packed: _Packed, settings: PushSettings) -> _Writer:
    """Return what writes a NAR to a file as the stack's are compressed."""
    target, level = cast(IO[bytes], packed), settings.compression_level
    if settings.compression == "zstd":
        return zstandard.ZstdCompressor(level or 3).stream_writer(target, closefd=False)
    if settings.compression == "xz":
        return lzma.LZMAFile(target, "w", preset=level or None)
    return packed


class _Space:
    """Bytes of the disk that may be taken; what is larger than all of it is let in alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._closed = False
        self._condition = threading.Condition()

    def take(self, size: int) -> bool:
        """Wait for so many bytes; return whether they are there, and not all is over."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._closed or not self._taken or self._taken + size <= self._limit
            )
            self._taken += size
            return not self._closed

    def give(self, size: int) -> None:
        """Give them back."""
        with self._condition:
            self._taken -= size
            self._condition.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


def _tell(outcome: Outcome, seconds: float) -> int:
    """Say what an import came to; return the exit code."""
    for path, why in list(outcome.problems.items())[:_SHOWN]:
        # What a cache says is anybody's text.
        print(printable(f"not copied: {path}: {why}"), file=sys.stderr)
    if len(outcome.problems) > _SHOWN:
        print(f"not copied: {len(outcome.problems) - _SHOWN:,} more", file=sys.stderr)
    if outcome.blocked:
        print(f"not copied: {outcome.blocked:,} that refer to them", file=sys.stderr)
    print(
        f"copied {outcome.imported:,} paths ({human(outcome.bytes)}), had {outcome.held:,}, left "
        f"{outcome.left:,} to upstream caches, in {seconds:.1f} s"
    )
    return FOUND if outcome.problems else DONE


if __name__ == "__main__":
    sys.exit(main())
