"""The audit, against a small cache on loopback that holds whatever a test puts there."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import random
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import zstandard
from urllib3.exceptions import HTTPError

from components.retention import expiration_rules
from formats.narinfo import LARGEST_NARINFO, NarInfo
from formats.nix32 import nix32_encode
from formats.signing import SecretKey
from operations.audit import remedies, summary
from operations.cache_audit import Cache, Finding, KeyCount, Report, audit
from operations.cache_client import CacheClient
from operations.upstream import Upstream, upstream_caches
from program.checks.bounded import LARGEST_ANSWER

OLD, NEW = SecretKey.generate("cache.test-1"), SecretKey.generate("cache.test-2")
STRANGER = SecretKey.generate("example.org-1")
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "zstd": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "gzip": gzip.compress,
}


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` as a narinfo has it."""
    return f"sha256:{nix32_encode(hashlib.sha256(data).digest())}"


@dataclass
class SmallCache:
    """A cache in memory, and where it is served."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    """What the deployer's listing has."""
    hidden: set[str] = field(default_factory=set)
    """Objects that clients are refused."""
    expired: set[str] = field(default_factory=set)
    """Objects that go once they have been listed."""
    cut: dict[str, int] = field(default_factory=dict)
    """Objects whose answer breaks off, after so many bytes."""
    failing: dict[str, int] = field(default_factory=dict)
    """Objects that the server cannot read, and the HTTP status that it says so with."""
    headless: set[str] = field(default_factory=set)
    """Of those, the ones of which it cannot even say how large they are."""
    types: dict[str, str] = field(default_factory=dict)
    """Objects that are served with a content type."""

    def add(
        self,
        *keys: SecretKey,
        compression: str = "zstd",
        nar: bytes | None = None,
        **changes: Any,
    ) -> tuple[str, NarInfo]:
        """Store a path signed by `keys`; return its narinfo and the name it is stored under."""
        nar = random.randbytes(3_000) if nar is None else nar
        stored = COMPRESSIONS[compression](nar)
        narinfo = NarInfo(
            store_path=f"/nix/store/{nix32_encode(random.randbytes(20))}-greeting",
            url=f"nar/{digest(stored).removeprefix('sha256:')}.nar.{compression}",
            compression=compression,
            nar_hash=digest(nar),
            nar_size=len(nar),
            file_hash=digest(stored),
            file_size=len(stored),
        )
        self.objects[narinfo.url] = stored
        signed = replace(narinfo, signatures=tuple(key.sign(narinfo.fingerprint) for key in keys))
        changed = replace(signed, **changes)
        name = f"{narinfo.store_path[11:43]}.narinfo"
        self.objects[name] = changed.format().encode()
        return name, narinfo

    def listing(self, prefix: str) -> Iterator[tuple[str, int]]:
        """List what the deployer sees; what has been listed once may expire."""
        for name, data in sorted(self.objects.items()):
            if name.startswith(prefix):
                yield name, len(data)
        for name in self.expired:
            self.objects.pop(name, None)

    def audit(
        self,
        *keys: SecretKey,
        sample: int | None = 0,
        closures: Mapping[str, Sequence[str]] = {},
        upstreams: Sequence[Upstream] = (),
        expiring: Collection[str] = (),
        own: Collection[str] = (),
    ) -> Report:
        """Audit it with the keys that clients trust."""
        client = CacheClient(lambda _, name: f"{self.url}/{name}", None, 2)
        public_keys = [key.public_key for key in keys or (OLD,)]
        report = Report("test", self.url)
        cache = Cache(client, self.listing, public_keys, closures, upstreams, expiring, own)
        audit(cache, report, sample, print)
        return report

    def findings(self, *keys: SecretKey, sample: int | None = 0) -> list[Finding]:
        """Return what an audit finds."""
        return self.audit(*keys, sample=sample).findings


@pytest.fixture
def cache() -> Iterator[SmallCache]:
    """A cache with nothing in it but `nix-cache-info`."""
    small = SmallCache()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path[1:]
            data = small.objects.get(name)
            status = 404 if data is None else 403 if name in small.hidden else 200
            if self.command == "GET" or name in small.headless:
                status = small.failing.get(name, status)
            body = data if data is not None and status == 200 else b"no"
            self.send_response(status)
            if name in small.types:
                self.send_header("Content-Type", small.types[name])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: small.cut.get(name)])
                self.close_connection = name in small.cut

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    small.url = f"http://127.0.0.1:{server.server_port}"
    small.objects["nix-cache-info"] = b"StoreDir: /nix/store\nWantMassQuery: 1\n"
    try:
        yield small
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_sound_cache_has_no_findings(cache: SmallCache, compression: str) -> None:
    _, narinfo = cache.add(OLD, compression=compression)
    report = cache.audit(sample=None)
    assert report.findings == []
    assert (report.narinfos, report.nars, report.hashed) == (1, 1, 1)
    assert report.nar_bytes == narinfo.file_size
    assert report.unused_nars == 0


def test_an_empty_cache_has_no_findings(cache: SmallCache) -> None:
    assert cache.audit(sample=5).findings == []


def test_narinfos_are_counted_by_the_keys_that_sign_them(cache: SmallCache) -> None:
    cache.add(OLD)
    cache.add(OLD, NEW)
    cache.add(NEW, STRANGER)
    assert cache.audit(OLD, NEW).keys == {
        OLD.name: KeyCount(trusted=True, verified=2, alone=1),
        NEW.name: KeyCount(trusted=True, verified=2, alone=1),
        STRANGER.name: KeyCount(trusted=False, unknown=1),
    }


def test_every_signature_is_verified_also_beside_a_good_one(cache: SmallCache) -> None:
    name, narinfo = cache.add(OLD)
    forged = SecretKey.generate(NEW.name).sign(narinfo.fingerprint)
    signed = replace(narinfo, signatures=(OLD.sign(narinfo.fingerprint), forged))
    cache.objects[name] = signed.format().encode()
    report = cache.audit(OLD, NEW)
    assert [(found.kind, found.object) for found in report.findings] == [("bad-signature", name)]
    assert report.keys[NEW.name] == KeyCount(trusted=True, failed=1)


def test_the_signature_of_the_public_cache_is_verified_too(cache: SmallCache) -> None:
    name, narinfo = cache.add(OLD)
    forged = SecretKey.generate("cache.nixos.org-1").sign(narinfo.fingerprint)
    signed = replace(narinfo, signatures=(OLD.sign(narinfo.fingerprint), forged))
    cache.objects[name] = signed.format().encode()
    assert [found.kind for found in cache.findings()] == ["bad-signature"]


@pytest.mark.parametrize(
    "changes",
    [
        {"nar_size": 1},
        {"nar_hash": f"sha256:{nix32_encode(bytes(32))}"},
        {"references": (f"{nix32_encode(bytes(20))}-x",)},
    ],
    ids=lambda changes: str(next(iter(changes))),
)
def test_a_narinfo_that_was_changed_after_signing_is_found(
    cache: SmallCache, changes: dict[str, Any]
) -> None:
    cache.add(OLD, **changes)
    assert [found.kind for found in cache.findings()][:2] == ["bad-signature", "unsigned"]


def test_a_path_that_only_a_retired_key_signs_is_found(cache: SmallCache) -> None:
    name, _ = cache.add(OLD)
    (found,) = cache.findings(NEW)
    assert (found.kind, found.object) == ("unsigned", name)
    assert NEW.name in found.detail


def test_a_nar_that_is_gone_is_found(cache: SmallCache) -> None:
    name, narinfo = cache.add(OLD)
    del cache.objects[narinfo.url]
    (found,) = cache.findings()
    assert (found.kind, found.object) == ("nar-missing", name)
    assert narinfo.url in found.detail


def test_a_nar_that_clients_may_not_read_is_found(cache: SmallCache) -> None:
    _, narinfo = cache.add(OLD)
    cache.hidden.add(narinfo.url)
    (found,) = cache.findings()
    assert found.kind == "nar-missing"
    assert "403" in found.detail
    assert "although the bucket has it" in found.detail


def test_a_nar_of_another_size_is_found(cache: SmallCache) -> None:
    _, narinfo = cache.add(OLD)
    cache.objects[narinfo.url] += b"x"
    assert [found.kind for found in cache.findings()] == ["nar-size"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_nar_of_the_right_size_is_found_when_it_is_hashed(
    cache: SmallCache, compression: str
) -> None:
    _, narinfo = cache.add(OLD, compression=compression)
    stored = bytearray(cache.objects[narinfo.url])
    stored[len(stored) // 2] ^= 1
    cache.objects[narinfo.url] = bytes(stored)
    assert cache.findings() == []
    found = cache.findings(sample=None)
    assert found
    assert {finding.kind for finding in found} == {"nar-content"}


def test_another_nar_under_a_right_file_hash_is_found_when_it_is_hashed(cache: SmallCache) -> None:
    name, narinfo = cache.add(OLD)
    lie = replace(narinfo, nar_hash=digest(b"another"))
    signed = replace(lie, signatures=(OLD.sign(lie.fingerprint),))
    cache.objects[name] = signed.format().encode()
    (found,) = cache.findings(sample=1)
    assert (found.kind, narinfo.nar_hash in found.detail) == ("nar-content", True)


def test_a_nar_that_unpacks_to_more_than_it_says_is_not_read_on(cache: SmallCache) -> None:
    name, narinfo = cache.add(OLD, nar=bytes(50_000_000))
    small = replace(narinfo, nar_size=10)
    cache.objects[name] = (
        replace(small, signatures=(OLD.sign(small.fingerprint),)).format().encode()
    )
    (found,) = cache.findings(sample=None)
    assert "more than the 10 bytes" in found.detail


def test_a_compression_that_is_not_known_is_found_when_it_is_hashed(cache: SmallCache) -> None:
    cache.add(OLD, compression="none")
    name, _ = cache.add(OLD)
    cache.objects[name] = cache.objects[name].replace(b"Compression: zstd", b"Compression: lz4")
    (found,) = cache.findings(sample=None)
    assert "its compression is none of none, zstd, xz" in found.detail


def test_a_sample_is_as_large_as_asked_for(cache: SmallCache) -> None:
    for _ in range(4):
        cache.add(OLD)
    assert cache.audit(sample=3).hashed == 3
    assert cache.audit(sample=9).hashed == 4


def test_a_narinfo_that_clients_may_not_read_is_found(cache: SmallCache) -> None:
    name, _ = cache.add(OLD)
    cache.hidden.add(name)
    (found,) = cache.findings()
    assert (found.kind, found.object) == ("unreadable", name)


def test_a_narinfo_that_expires_meanwhile_is_no_finding(cache: SmallCache) -> None:
    name, _ = cache.add(OLD)
    cache.expired.add(name)
    report = cache.audit()
    assert (report.findings, report.gone) == ([], 1)


@pytest.mark.parametrize("text", [b"", b"hello", b"\xff\xfe", b"StorePath: x\nStorePath: x"])
def test_a_malformed_narinfo_is_found(cache: SmallCache, text: bytes) -> None:
    name, _ = cache.add(OLD)
    cache.objects[name] = text
    assert [(found.kind, found.object) for found in cache.findings()] == [("malformed", name)]


@pytest.mark.parametrize("size", [LARGEST_NARINFO + 1, LARGEST_ANSWER + 1])
def test_a_narinfo_that_is_too_large_is_malformed_and_not_the_servers_damage(
    cache: SmallCache, size: int
) -> None:
    name, _ = cache.add(OLD)
    cache.objects[name] = b"StorePath: ".ljust(size, b"A")
    cache.types[name] = "text/html"
    found = {finding.kind: finding.detail for finding in cache.findings()}
    assert found.keys() == {"content-type", "malformed"}
    assert found["malformed"] == f"it has {size:,} bytes, more than any narinfo"
    cache.hidden.add(name)
    assert [found.kind for found in cache.findings()] == ["unreadable"]


def test_a_narinfo_under_another_paths_name_is_found(cache: SmallCache) -> None:
    name, _ = cache.add(OLD)
    other, _ = cache.add(OLD)
    cache.objects[other] = cache.objects[name]
    assert [(found.kind, found.object) for found in cache.findings()] == [("misplaced", other)]


def test_an_unused_nar_is_counted_and_no_finding(cache: SmallCache) -> None:
    name, _ = cache.add(OLD)
    cache.add(OLD)
    del cache.objects[name]
    report = cache.audit()
    assert (report.findings, report.unused_nars) == ([], 1)


@pytest.mark.parametrize("content", [None, b"StoreDir: /gnu/store\n"])
def test_a_cache_that_clients_would_drop_is_found(cache: SmallCache, content: bytes | None) -> None:
    del cache.objects["nix-cache-info"]
    if content is not None:
        cache.objects["nix-cache-info"] = content
    assert [found.kind for found in cache.findings()] == ["cache-info"]


def test_a_cache_that_does_not_answer_cannot_be_audited(cache: SmallCache) -> None:
    cache.url = "http://127.0.0.1:1"
    with pytest.raises(HTTPError):
        cache.audit()


@dataclass(frozen=True)
class Neighbour:
    """Another cache, which has some narinfos; None does not answer."""

    narinfos: frozenset[str] | None
    name: str = "neighbour.test-1"

    def has(self, narinfo: str) -> bool | None:
        return None if self.narinfos is None else narinfo in self.narinfos


def store(cache: SmallCache, *references: NarInfo) -> tuple[str, NarInfo]:
    """Store a signed path that refers to itself and to others."""
    name, narinfo = cache.add(OLD)
    paths = [narinfo, *references]
    whole = replace(narinfo, references=tuple(path.store_path[11:] for path in paths))
    signed = replace(whole, signatures=(OLD.sign(whole.fingerprint),))
    cache.objects[name] = signed.format().encode()
    return name, signed


def test_a_path_that_is_referred_to_and_missing_is_found_once(cache: SmallCache) -> None:
    name, leaf = store(cache)
    _, first = store(cache, leaf)
    store(cache, leaf, first)
    assert cache.findings() == []
    del cache.objects[name]
    (found,) = cache.findings()
    assert (found.kind, found.object) == ("reference-missing", name)
    assert re.search(r"no cache has it, and /nix/store/\S+ and 1 more refer to it", found.detail)


def test_a_path_that_another_cache_has_is_not_missing(cache: SmallCache) -> None:
    name, leaf = store(cache)
    store(cache, leaf)
    del cache.objects[name]
    without, having = Neighbour(frozenset()), Neighbour(frozenset({name}))
    report = cache.audit(upstreams=[without, having])
    assert (report.findings, report.upstream) == ([], 1)
    (found,) = cache.audit(upstreams=[without]).findings
    assert found.kind == "reference-missing"


def test_a_cache_that_does_not_answer_is_a_finding_and_makes_nothing_missing(
    cache: SmallCache,
) -> None:
    name, leaf = store(cache)
    _, other = store(cache)
    store(cache, leaf, other)
    del cache.objects[name]
    silent, having = Neighbour(None), Neighbour(frozenset({name}), "second.test-1")
    (found,) = cache.audit(upstreams=[silent]).findings
    assert (found.kind, found.object) == ("upstream-silent", "neighbour.test-1")
    assert "cannot be asked whether it has 1 paths" in found.detail
    assert cache.audit(upstreams=[silent, having]).findings == []


def test_a_cache_is_asked_where_its_keys_name_says_and_given_up_when_it_is_silent() -> None:
    names = ("nowhere.invalid-1", "number", "me@nowhere.invalid-1", "nowhere.invalid/x-1")
    nowhere, *nameless = upstream_caches(
        [str(SecretKey.generate(name).public_key) for name in names], 1
    )
    assert [(one.client, one.has("x.narinfo")) for one in nameless] == [(None, None)] * 3
    assert nowhere.client is not None
    assert nowhere.has("x.narinfo") is None
    assert nowhere.client is None


def test_a_closure_that_was_pushed_and_is_not_there_is_found(cache: SmallCache) -> None:
    name, top = store(cache)
    closures = {"builder here pushed": [top.store_path]}
    report = cache.audit(closures=closures)
    assert (report.findings, report.closures) == ([], 1)
    cache.objects = {"nix-cache-info": cache.objects["nix-cache-info"]}
    (found,) = cache.audit(closures=closures).findings
    assert (found.kind, found.object) == ("closure-missing", name)
    assert f"builder here pushed {top.store_path}" in found.detail


def test_what_is_pushed_while_the_audit_runs_is_not_missing(cache: SmallCache) -> None:
    name, leaf = store(cache)
    store(cache, leaf)
    text = cache.objects.pop(name)
    listing = cache.listing

    def arriving(prefix: str) -> Iterator[tuple[str, int]]:
        yield from listing(prefix)
        cache.objects[name] = text

    cache.listing = arriving  # type: ignore[method-assign]
    assert cache.audit(closures={"builder here pushed": [leaf.store_path]}).findings == []


def test_a_nar_that_breaks_off_is_a_finding_and_the_audit_goes_on(cache: SmallCache) -> None:
    """A server that finds a damaged block has begun to answer, and can only hang up."""
    cache.add(OLD)
    name, narinfo = cache.add(OLD, compression="none")
    cache.cut[narinfo.url] = 1_000
    report = cache.audit(sample=None)
    detail = f"{narinfo.url}: it breaks off after 1000 bytes"
    assert report.findings == [Finding("nar-content", name, detail, narinfo.url)]
    assert (report.narinfos, report.hashed) == (2, 2)
    names = " ".join(sorted([name, narinfo.url]))
    assert f'make empty STACK=test ARGS="{names}" removes what is wrong' in remedies(report)


def test_a_narinfo_that_breaks_off_is_a_finding_and_the_audit_goes_on(cache: SmallCache) -> None:
    cache.add(OLD)
    name, _ = cache.add(OLD)
    cache.cut[name] = 100
    report = cache.audit(sample=None)
    assert report.findings == [Finding("unanswered", name, "a client gets no whole answer")]
    assert report.hashed == 1


def test_a_cache_info_that_breaks_off_is_a_finding_and_the_audit_goes_on(
    cache: SmallCache,
) -> None:
    cache.cut["nix-cache-info"] = 10
    assert [found.kind for found in cache.findings()] == ["cache-info"]


def test_what_the_server_itself_cannot_read_is_removed_and_no_deployments_to_put_back(
    cache: SmallCache,
) -> None:
    name, _ = cache.add(OLD)
    cache.failing[name] = 500
    report = cache.audit()
    assert report.findings == [Finding("unanswered", name, "a client gets HTTP status 500")]
    told = list(remedies(report))
    assert f'make empty STACK=test ARGS="{name}" removes what is wrong' in told
    assert "make push STACK=test pushes again what its builders have" in told
    assert not [line for line in told if "make repair" in line]


@pytest.mark.parametrize("headless", [False, True])
def test_an_error_in_the_place_of_a_nar_is_not_its_content_and_an_overload_may_pass(
    cache: SmallCache, headless: bool
) -> None:
    name, narinfo = cache.add(OLD)
    cache.failing[narinfo.url] = 503
    cache.headless |= {narinfo.url} if headless else set()
    detail = f"{narinfo.url}: a client gets HTTP status 503"
    report = cache.audit(sample=None)
    assert report.findings == [Finding("unanswered", name, detail, narinfo.url)]
    names = " ".join(sorted([name, narinfo.url]))
    assert list(remedies(report))[:2] == [
        "see the server's log first: an overload passes, damage on its disk does not",
        f'make empty STACK=test ARGS="{names}" removes what is wrong',
    ]


def test_a_nar_that_another_signed_narinfo_is_right_about_is_not_told_to_be_removed(
    cache: SmallCache,
) -> None:
    """What a narinfo says of where its NAR is, nobody has signed."""
    _, honest = cache.add(OLD)
    place: dict[str, Any] = {
        "url": honest.url,
        "file_hash": honest.file_hash,
        "file_size": honest.file_size,
    }
    unsigned, _ = cache.add(**place)
    elsewhere, _ = cache.add(OLD, **place)
    report = cache.audit(sample=None)
    found = {(one.kind, one.object, one.nar) for one in report.findings}
    assert found >= {("nar-content", unsigned, ""), ("nar-content", elsewhere, "")}
    told = "\n".join(remedies(report))
    assert honest.url not in told
    assert all(name in told for name in (unsigned, elsewhere))


def test_a_nar_that_signed_narinfos_share_and_that_is_damaged_is_removed(cache: SmallCache) -> None:
    content = random.randbytes(3_000)
    (first, narinfo), (second, _) = cache.add(OLD, nar=content), cache.add(OLD, nar=content)
    cache.objects[narinfo.url] = bytes(len(cache.objects[narinfo.url]))
    names = " ".join(sorted([first, second, narinfo.url]))
    told = list(remedies(cache.audit(sample=None)))
    assert f'make empty STACK=test ARGS="{names}" removes what is wrong' in told


def test_a_nar_whose_narinfo_is_still_to_come_is_not_told_to_be_removed(cache: SmallCache) -> None:
    coming, honest = cache.add(OLD)
    del cache.objects[coming]
    unsigned, _ = cache.add(url=honest.url, file_size=None)
    told = list(remedies(cache.audit(sample=None)))
    assert f'make empty STACK=test ARGS="{unsigned}" removes what is wrong' in told


def test_nothing_but_nars_is_told_to_be_removed_as_one(cache: SmallCache) -> None:
    cache.objects["use.html"] = b"the page"
    signed, _ = cache.add(OLD)
    names = [cache.add(OLD, url=url, file_size=None)[0] for url in ("use.html", signed)]
    told = list(remedies(cache.audit(sample=None)))
    assert f'make empty STACK=test ARGS="{" ".join(sorted(names))}" removes what is wrong' in told


@pytest.mark.parametrize(
    "content_type",
    [
        "text/javascript",
        "Application/X-JavaScript; charset=utf-8",
        "text/ecmascript",
        "text/html",
        "application/xhtml+xml",
        "image/svg+xml",
        "text/xml",
        # Browsers take the last of several, and guess where there is none that they know.
        "text/plain, text/html",
        "unknown/unknown",
        "narinfo",
    ],
)
def test_what_a_browser_would_run_is_found_and_removed(
    cache: SmallCache, content_type: str
) -> None:
    (name, narinfo), (worker, _) = cache.add(), cache.add(OLD)
    cache.objects["page.narinfo"] = b"self.addEventListener('fetch', () => {})"
    cache.types = dict.fromkeys((narinfo.url, worker, "page.narinfo"), content_type)
    report = cache.audit()
    detail = f"a browser would run it: it is served as {content_type}"
    assert [one for one in report.findings if one.kind == "content-type"] == [
        Finding("content-type", first, text, nar)
        for first, text, nar in sorted(
            [
                (name, f"{narinfo.url}: {detail}", narinfo.url),
                (worker, detail, ""),
                ("page.narinfo", detail, ""),
            ]
        )
    ]
    names = " ".join(sorted([name, narinfo.url, worker, "page.narinfo"]))
    told = list(remedies(report))
    assert f'make empty STACK=test ARGS="{names}" removes what is wrong' in told
    assert [line for line in told if "clears" in line]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/x-nix-narinfo",
        "application/x-nix-nar",
        "application/octet-stream",
        "binary/octet-stream",
        "text/plain; charset=utf-8",
        "application/x-xz",
        "application/zstd",
        "application/json",
    ],
)
def test_what_a_browser_saves_or_shows_as_text_is_no_finding(
    cache: SmallCache, content_type: str
) -> None:
    name, narinfo = cache.add(OLD)
    cache.types = dict.fromkeys((name, narinfo.url), content_type)
    assert cache.findings() == []


def test_a_nar_that_clients_are_refused_only_now_is_no_overload(cache: SmallCache) -> None:
    name, narinfo = cache.add(OLD)
    cache.failing[narinfo.url] = 403
    detail = f"{narinfo.url}: a client gets HTTP status 403"
    report = cache.audit(sample=None)
    assert report.findings == [Finding("nar-content", name, detail, narinfo.url)]
    assert not [line for line in remedies(report) if "overload" in line]


def test_what_the_stack_itself_keeps_is_not_foreign_whatever_its_name(cache: SmallCache) -> None:
    cache.objects |= {"index.html": b"the page", "logo.png": b"somebody else's"}
    prefixes = [rule.prefix for rule in expiration_rules(7, 1)]
    foreign = [one.object for one in cache.audit(expiring=prefixes).findings]
    assert foreign == ["index.html", "logo.png"]
    report = cache.audit(expiring=prefixes, own={"nix-cache-info", "index.html"})
    assert [(one.kind, one.object) for one in report.findings] == [("foreign", "logo.png")]


def test_a_summary_shows_the_first_findings_and_the_number_of_the_rest() -> None:
    report = Report("test", "https://cache.test")
    report.keys["cache.test-1"] = KeyCount(trusted=True, verified=1_234)
    report.findings = [Finding("unsigned", f"{n}.narinfo", "why") for n in range(30)]
    text = summary(report)
    assert "cache.test-1 (trusted): 1,234 narinfos verified" in text
    assert "unsigned 19.narinfo: why" in text
    assert "unsigned 20.narinfo" not in text
    assert "unsigned: 30 in all" in text
    assert "30 findings" in text


def test_a_summary_lets_no_narinfo_steer_the_terminal() -> None:
    report = Report("test", "https://cache.test")
    report.findings = [Finding("misplaced", "x.narinfo", "it is about \x1b]0;owned\x07")]
    assert "\x1b" not in summary(report)
