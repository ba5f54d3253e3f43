"""Reads a whole cache back as its clients do, and proves what is signed.

The bucket is listed with the deploying user's credential, because clients cannot list it; every
file is then asked for as a client does. A client's rules are Nix's own (`src/libstore/nar-info.cc`,
`src/libstore/binary-cache-store.cc`).
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from components.retention import foreign_keys
from formats.error import FormatError
from formats.keys import PublicKey
from formats.narinfo import (
    LARGEST_NARINFO,
    LOG_FOLDER,
    NarInfo,
    is_nar_key,
    listing_of,
    log_of,
    narinfo_of,
)
from formats.nix32 import sha256_to_nix32
from formats.signing import verifies
from formats.store_path import STORE_DIR
from operations.cache_client import CACHE_INFO, GONE, OK, SERVER_ERROR, Answer, CacheClient
from operations.nar_measure import NarError, measure_nar
from operations.upstream import Answer as Elsewhere
from operations.upstream import Upstream, ask
from program.outputs.counted import counted

NIXOS_KEY = PublicKey.parse("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")
"""The key that every Nix trusts by default (Nix manual, `trusted-public-keys`)."""

CONNECTIONS = 8
_BATCH = 1_000
_NOT_WHOLE = "a client gets no whole answer"
_RUN_BY_BROWSERS = re.compile(
    r"(text|application)/(x-)?(java|ecma|j|live)script[0-9.]*|text/html|(text|application)/xml"
    r"|[^/]+/[^/]+\+xml|(unknown|application)/unknown|\*/\*|[^/]+"
)
"""What a browser takes for a script or a page, and what it guesses the type of (WHATWG, "MIME
Sniffing", 4.6 and 7)."""


@dataclass(frozen=True)
class Finding:
    """Something that a client would stumble over, or that nobody signed."""

    kind: str
    """`cache-info`, `unreadable` (clients may not), `unanswered` (the server itself cannot give the
    narinfo or its NAR), `malformed`, `misplaced`, `unsigned`, `bad-signature`, `nar-missing`,
    `nar-size`, `nar-content`, `content-type` (a browser would run the narinfo or its NAR),
    `reference-missing`, `closure-missing`, `foreign` or `upstream-silent`."""
    object: str
    """The object's name in the bucket; the name of its key where a cache does not answer."""
    detail: str
    """What is wrong, in words."""
    nar: str = ""
    """The NAR's name, where that is what is wrong: a signed narinfo says so, and none is right."""


@dataclass
class KeyCount:
    """What one key has signed. Counts are of narinfos."""

    trusted: bool
    """Whether the stack's clients are told to trust it."""
    verified: int = 0
    """Its signature is good."""
    alone: int = 0
    """Its signature is good, and the only one by a trusted key."""
    failed: int = 0
    """Its signature is not over this narinfo."""
    unknown: int = 0
    """Its signature cannot be verified, because its public key is not known here."""


@dataclass
class Report:
    """What an audit saw."""

    stack: str
    substituter: str
    narinfos: int = 0
    """Narinfos that the listing has."""
    nars: int = 0
    """NARs that the listing has."""
    nar_bytes: int = 0
    """Their size together, compressed."""
    unused_nars: int = 0
    """NARs that no narinfo names: they outlive their narinfos, or a push is under way."""
    listings: int = 0
    """Listings of NARs that the bucket has."""
    logs: int = 0
    """Build logs that the bucket has."""
    unused_beside: int = 0
    """Of those, the ones that belong to no narinfo: they go as they age."""
    gone: int = 0
    """Narinfos that expired or were deleted while the audit ran."""
    hashed: int = 0
    """NARs that were read whole."""
    closures: int = 0
    """Closures that the stack knows as pushed."""
    upstream: int = 0
    """Paths that are referred to, or were pushed, and that another cache has."""
    keys: dict[str, KeyCount] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Cache:
    """A cache as the audit reaches it."""

    client: CacheClient
    """Reads as clients do."""
    objects: Callable[[str], Iterable[tuple[str, int]]]
    """Lists name and size in bytes of the objects whose names begin with a prefix."""
    public_keys: Sequence[PublicKey]
    """The keys that clients are told to trust."""
    closures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Store paths that were pushed, and what they refer to with them, by the builder's name."""
    upstreams: Sequence[Upstream] = ()
    """The caches that clients have beside this one."""
    expiring: Collection[str] = ()
    """What the names of objects that expire begin with."""
    own: Collection[str] = ()
    """The objects that the stack itself keeps there."""


def audit(
    cache: Cache, report: Report, sample: int | None, progress: Callable[[str], None]
) -> None:
    """Fill `report` with what there is to say about `cache`.

    Args:
        cache: what is audited.
        report: filled in.
        sample: how many NARs to read whole and hash, chosen at random; None hashes all.
        progress: told now and then how far the audit is.

    Raises:
        HTTPError: the cache does not answer.
        ServerError: the bucket cannot be listed.
    """
    started = time.monotonic()
    report.keys = {key.name: KeyCount(trusted=True) for key in cache.public_keys}
    report.findings += _examine_cache_info(cache)
    sizes: dict[str, int] = {}
    for name, size in cache.objects(""):
        sizes[name] = size
        progress(f"{counted(len(sizes), 'object')} listed")
    # A stack that was deployed by a former version knows its page by another name.
    report.findings += [
        Finding("foreign", name, "no file of a cache, and it expires with it")
        for name in foreign_keys(sizes, cache.expiring)
        if name not in cache.own
    ]
    narinfos = [name for name in sizes if name.endswith(".narinfo") and "/" not in name]
    unused = {name for name in sizes if name.startswith("nar/")}
    report.narinfos, report.nars = len(narinfos), len(unused)
    report.nar_bytes = sum(sizes[name] for name in unused)
    listings = {name for name in sizes if name.endswith(".ls") and "/" not in name}
    logs = {name for name in sizes if name.startswith(LOG_FOLDER)}
    report.listings, report.logs = len(listings), len(logs)
    unlisted = listings - {listing_of(name.removesuffix(".narinfo")) for name in narinfos}
    hashed = set(narinfos)
    if sample is not None:
        hashed = set(random.sample(narinfos, min(sample, len(narinfos))))
    examine = _Examiner(cache, sizes, hashed)
    wanted = _Wanted(cache, sizes)
    right: set[str] = set()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for done, examined in enumerate(_in_batches(threads, examine, narinfos), 1):
            unused.discard(examined.nar)
            if examined.right:
                right.add(examined.nar)
            logs.discard(log_of(examined.deriver))
            wanted.refer(examined)
            _count(report, examined)
            found = counted(len(report.findings), "finding")
            progress(f"{done:,} of {len(narinfos):,} narinfos, {found}")
        wanted.settle(report, threads)
    # Anybody who may write can point to a good NAR, and say something else of it.
    report.findings = [
        replace(finding, nar="") if finding.nar in right else finding for finding in report.findings
    ]
    report.unused_nars = len(unused)
    report.unused_beside = len(unlisted) + len(logs)
    report.seconds = round(time.monotonic() - started, 3)


@dataclass
class _Examined:
    """What one narinfo and its NAR came to."""

    findings: list[Finding] = field(default_factory=list)
    nar: str = ""
    store_path: str = ""
    deriver: str = ""
    references: Sequence[str] = ()
    signatures: dict[str, bool | None] = field(default_factory=dict)
    """Whether a key's signature is good, by the key's name; None where that is unknown."""
    hashed: bool = False
    right: bool = False
    """Whether a trusted key has signed it, and nothing was found of its NAR."""
    gone: bool = False


class _Examiner:
    """Examines one narinfo at a time; threads share it."""

    def __init__(self, cache: Cache, sizes: Mapping[str, int], hashed: Collection[str]) -> None:
        self._cache = cache
        self._sizes = sizes
        self._hashed = hashed
        self._known = {key.name: key for key in (NIXOS_KEY, *cache.public_keys)}

    def __call__(self, name: str) -> _Examined:
        examined = _Examined()
        narinfo = self._read(name, examined)
        if narinfo is not None:
            examined.nar, examined.deriver = narinfo.url, narinfo.deriver or ""
            examined.store_path, examined.references = narinfo.store_path, narinfo.references
            findings = [*self._place(name, narinfo), *self._signatures(narinfo, examined)]
            of_the_nar = list(self._nar(narinfo, name in self._hashed, examined))
            examined.findings += [Finding(kind, name, detail) for kind, detail in findings]
            trusted = self._is_trusted(examined)
            # What is no NAR's name may be that of another narinfo, or of what the program keeps.
            nar = narinfo.url if is_nar_key(narinfo.url) else ""
            # What nobody has signed may be about a NAR whose narinfo is still to come.
            believed = nar if trusted else ""
            at_fault = {"content-type": nar, "nar-content": believed, "unanswered": believed}
            examined.findings += [
                Finding(kind, name, detail, at_fault.get(kind, "")) for kind, detail in of_the_nar
            ]
            examined.right = trusted and not of_the_nar
        return examined

    def _read(self, name: str, examined: _Examined) -> NarInfo | None:
        client = self._cache.client
        # What no client could take in is not read, and no answer of it breaks off.
        too_large = self._sizes[name] > LARGEST_NARINFO
        try:
            answer = client.look_at(name) if too_large else client.read(name)
        except HTTPError as error:
            _go_on(self._cache, error)
            examined.findings.append(Finding("unanswered", name, _NOT_WHOLE))
            return None
        if answer.status != OK:
            # Between the listing and now it may have expired, or somebody deleted it.
            examined.gone = answer.status == GONE and name not in dict(self._cache.objects(name))
            if not examined.gone:
                detail = f"a client gets HTTP status {answer.status}"
                kind = "unreadable" if answer.status < SERVER_ERROR else "unanswered"
                examined.findings.append(Finding(kind, name, detail))
            return None
        examined.findings += [
            Finding("content-type", name, detail) for detail in _what_browsers_run(answer)
        ]
        if too_large:
            detail = f"it has {counted(self._sizes[name], 'byte')}, more than any narinfo"
            examined.findings.append(Finding("malformed", name, detail))
            return None
        try:
            return NarInfo.parse(answer.body.decode())
        except ValueError as error:
            detail = str(error) if isinstance(error, FormatError) else "it is no UTF-8 text"
            examined.findings.append(Finding("malformed", name, detail))
            return None

    def _place(self, name: str, narinfo: NarInfo) -> Iterator[tuple[str, str]]:
        store_path = f"{STORE_DIR}/{name.removesuffix('.narinfo')}-"
        if not narinfo.store_path.startswith(store_path):
            yield "misplaced", f"it is about {narinfo.store_path}"

    def _signatures(self, narinfo: NarInfo, examined: _Examined) -> Iterator[tuple[str, str]]:
        fingerprint = narinfo.fingerprint
        for signature in narinfo.signatures:
            name = signature.partition(":")[0]
            key = self._known.get(name)
            good = None if key is None else verifies(key, fingerprint, signature)
            examined.signatures[name] = good or examined.signatures.get(name, good)
            if good is False:
                yield "bad-signature", f"the signature by {name} is over something else"
        if not self._is_trusted(examined):
            trusted = " or ".join(key.name for key in self._cache.public_keys)
            yield "unsigned", f"it has no good signature by {trusted}"

    def _is_trusted(self, examined: _Examined) -> bool:
        return any(examined.signatures.get(key.name) for key in self._cache.public_keys)

    def _nar(
        self, narinfo: NarInfo, hashed: bool, examined: _Examined
    ) -> Iterator[tuple[str, str]]:
        try:
            answer = self._cache.client.look_at(narinfo.url)
        except HTTPError as error:
            _go_on(self._cache, error)
            yield "unanswered", f"{narinfo.url}: {_NOT_WHOLE}"
            return
        if answer.status >= SERVER_ERROR:
            yield "unanswered", f"{narinfo.url}: a client gets HTTP status {answer.status}"
            return
        if answer.status != OK:
            listed = ", although the bucket has it" if narinfo.url in self._sizes else ""
            yield (
                "nar-missing",
                f"a client gets HTTP status {answer.status} for {narinfo.url}{listed}",
            )
            return
        for detail in _what_browsers_run(answer):
            yield "content-type", f"{narinfo.url}: {detail}"
        size = self._sizes.get(narinfo.url) if answer.size is None else answer.size
        if narinfo.file_size not in (None, size):
            yield "nar-size", f"{narinfo.url} has {size} bytes, not {narinfo.file_size}"
        elif hashed:
            examined.hashed = True
            for kind, reason in self._content(narinfo):
                yield kind, f"{narinfo.url}: {reason}"

    def _content(self, narinfo: NarInfo) -> Iterator[tuple[str, str]]:
        stream: BaseHTTPResponse | None = None
        try:
            with self._cache.client.open(narinfo.url) as stream:
                if stream.status != OK:
                    kind = "nar-content" if stream.status < SERVER_ERROR else "unanswered"
                    yield kind, f"a client gets HTTP status {stream.status}"
                    return
                nar = measure_nar(stream, narinfo.compression, narinfo.nar_size)
            expected = {
                "FileHash": (nar.file_hash, narinfo.file_hash),
                "NarHash": (nar.nar_hash, narinfo.nar_hash),
            }
            for field_, (measured, written) in expected.items():
                if written is not None and sha256_to_nix32(written) != measured:
                    yield "nar-content", f"its {field_} is {measured}"
            if nar.nar_size != narinfo.nar_size:
                reason = f"it holds {nar.nar_size} bytes, not the {narinfo.nar_size} of its NarSize"
                yield "nar-content", reason
        except (NarError, FormatError) as error:
            yield "nar-content", str(error)
        except HTTPError as error:
            _go_on(self._cache, error)
            if stream is None:
                yield "unanswered", _NOT_WHOLE
            else:
                yield "nar-content", f"it breaks off after {stream.tell()} bytes"


class _Wanted:
    """Store paths that clients come for, by what leads to them, and that the listing has not."""

    def __init__(self, cache: Cache, sizes: Mapping[str, int]) -> None:
        self._cache = cache
        self._sizes = sizes
        self._references: dict[str, tuple[str, int]] = {}
        """By the narinfo's name: a path that refers to it, and how many do."""

    def refer(self, examined: _Examined) -> None:
        """Note what a path refers to."""
        for reference in examined.references:
            name = narinfo_of(reference)
            if name not in self._sizes:
                first, count = self._references.get(name, (examined.store_path, 0))
                self._references[name] = first, count + 1

    def settle(self, report: Report, threads: ThreadPoolExecutor) -> None:
        """Look for what is wanted once more and elsewhere, and report what nobody has."""
        closures = [
            (narinfo_of(path), f"{whose} {path}")
            for whose, paths in self._cache.closures.items()
            for path in paths
        ]
        report.closures = len(closures)
        lost = [
            ("closure-missing", name, f"{why}, and the cache does not have it")
            for name, why in closures
            if name not in self._sizes
        ]
        lost += [
            ("reference-missing", name, f"no cache has it, and {self._referring(name)} to it")
            for name in self._references
        ]
        silent: Counter[str] = Counter()
        for (kind, name, detail), answer in zip(lost, threads.map(self._ask, lost), strict=True):
            if answer is None:
                continue
            report.upstream += answer.found
            silent.update(answer.silent)
            if not answer.found and not answer.silent:
                report.findings.append(Finding(kind, name, detail))
        report.findings += [
            Finding(
                "upstream-silent",
                upstream,
                f"it cannot be asked whether it has {count:,} paths that clients come for",
            )
            for upstream, count in silent.items()
        ]

    def _referring(self, name: str) -> str:
        first, count = self._references[name]
        others = f" and {count - 1:,} more" if count > 1 else ""
        return f"{first}{others} refer{'' if others else 's'}"

    def _ask(self, lost: tuple[str, str, str]) -> Elsewhere | None:
        """Return what other caches say, or None where this one has it meanwhile."""
        _, name, _ = lost
        # Pushed since the listing came to its name.
        if name in dict(self._cache.objects(name)):
            return None
        return ask(self._cache.upstreams, name)


def _examine_cache_info(cache: Cache) -> Iterator[Finding]:
    """Read what every client reads first (Nix, `src/libstore/binary-cache-store.cc`)."""
    try:
        answer = cache.client.read(CACHE_INFO)
    except HTTPError as error:
        _go_on(cache, error)
        yield Finding("cache-info", CACHE_INFO, _NOT_WHOLE)
        return
    if answer.status != OK:
        yield Finding("cache-info", CACHE_INFO, f"a client gets HTTP status {answer.status}")
    elif f"StoreDir: {STORE_DIR}".encode() not in answer.body.splitlines():
        yield Finding("cache-info", CACHE_INFO, f"its StoreDir is not {STORE_DIR}")


def _what_browsers_run(answer: Answer) -> Iterator[str]:
    """Yield in words that a browser would run a file: a page or a worker beside the cache's own."""
    types = (one.partition(";")[0].strip() for one in answer.content_type.lower().split(","))
    if any(map(_RUN_BY_BROWSERS.fullmatch, types)):
        yield f"a browser would run it: it is served as {answer.content_type}"


def _go_on(cache: Cache, error: HTTPError) -> None:
    """Take what one file came to for that file's damage, if the cache answers otherwise.

    A server that finds a damaged block has begun to answer by then, and can only hang up.

    Raises:
        HTTPError: the cache does not answer.
    """
    if not cache.client.answers():
        raise error


def _in_batches(
    threads: ThreadPoolExecutor, examine: _Examiner, names: Sequence[str]
) -> Iterator[_Examined]:
    # Batches bound what waits in memory; a million narinfos are too many for one map.
    for start in range(0, len(names), _BATCH):
        yield from threads.map(examine, names[start : start + _BATCH])


def _count(report: Report, examined: _Examined) -> None:
    report.findings += examined.findings
    report.gone += examined.gone
    report.hashed += examined.hashed
    good_and_trusted = []
    for name, good in examined.signatures.items():
        key = report.keys.setdefault(name, KeyCount(trusted=False))
        key.verified += good is True
        key.failed += good is False
        key.unknown += good is None
        if good and key.trusted:
            good_and_trusted.append(key)
    if len(good_and_trusted) == 1:
        good_and_trusted[0].alone += 1
