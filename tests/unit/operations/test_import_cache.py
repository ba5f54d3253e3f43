"""What an import takes of its command line and of another cache, and what it refuses."""

from __future__ import annotations

import hashlib
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import cast

import pytest
import urllib3
from urllib3.exceptions import HTTPError

from formats.narinfo import LARGEST_NARINFO, NarInfo, narinfo_of
from formats.nix32 import nix32_encode
from formats.signing import SecretKey, verified_by
from operations import import_cache, other_cache
from operations.import_cache import (
    _Import,
    _nothing,
    _push_settings,
    _Space,
    main,
    read_login,
    read_url,
    read_wanted,
)
from operations.other_cache import Offer, OtherCache, Walk, named
from operations.pulumi_cli import OperationError
from tests.unit.operations.test_audit import NOWHERE, stack
from tests.unit.push.client import SIGNING_KEY, settings_for
from tests.unit.push.paths import store_path
from tests.unit.push.s3_stand_in import BUCKET, Raw, Reply, Seen, StandIn, serving

KEY, UPSTREAM = SecretKey.generate("old-1"), SecretKey.generate("up-1")
LIBC = store_path("libc", 1000)
OTHER = store_path("other", 100)
TOP = store_path("top", 500, LIBC, itself=True)


def signed(narinfo: NarInfo, key: SecretKey = KEY) -> NarInfo:
    return replace(narinfo, signatures=(key.sign(narinfo.fingerprint),))


def offered(**changes: object) -> NarInfo:
    """Return what the cache says of `LIBC`."""
    return replace(signed(LIBC.narinfo("nar/libc.nar.xz", "xz")), **changes)  # type: ignore[arg-type]


class Files:
    """A cache's files, in the place of the client."""

    def __init__(self, files: Mapping[str, bytes | int]) -> None:
        self.files = files

    @contextmanager
    def open(self, name: str) -> Iterator[BytesIO]:
        answer = self.files.get(name, 404)
        response = BytesIO(b"" if isinstance(answer, int) else answer)
        response.status = answer if isinstance(answer, int) else 200  # type: ignore[attr-defined]
        yield response


def walk(
    *narinfos: NarInfo, wanted: str = TOP.path, files: Mapping[str, bytes | int] | None = None
) -> other_cache.Walk:
    """Walk through a cache that has these narinfos."""
    texts = {narinfo_of(one.store_path): one.format().encode() for one in narinfos}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other_cache, "CacheClient", lambda *_: Files({**texts, **(files or {})}))
        cache = OtherCache("https://x", [KEY.public_key], [UPSTREAM.public_key], None, {})
    return cache.walk([wanted], lambda _: None)


TOP_INFO = signed(TOP.narinfo("nar/top.nar.xz", "xz"))


def test_a_closure_is_found_and_only_what_is_signed_is_believed() -> None:
    foreign = SecretKey.generate("x-1").sign("something")
    told = replace(TOP_INFO, signatures=(foreign, *TOP_INFO.signatures), deriver=TOP.base_name)
    found = walk(told, offered(), wanted=narinfo_of(TOP.path))
    assert found.offers.keys() == {TOP.path, LIBC.path}
    assert found.offers[TOP.path].path == replace(TOP, signatures=TOP_INFO.signatures)
    assert (found.left, found.absent, found.refused) == (set(), {}, {})


def test_what_an_upstream_key_has_signed_is_left_to_it() -> None:
    found = walk(TOP_INFO, signed(offered(), UPSTREAM))
    assert (set(found.offers), found.left) == ({TOP.path}, {LIBC.path})


def test_what_the_cache_lacks_is_told_with_what_refers_to_it() -> None:
    assert walk(TOP_INFO).absent == {LIBC.path: TOP.path}


@pytest.mark.parametrize(
    ("narinfo", "why"),
    [
        (offered(nar_size=7), "none of the given keys has signed it"),
        (offered(signatures=()), "bears signatures of nobody"),
        (signed(offered(), SecretKey.generate("old-1")), "bears signatures of old-1"),
        (offered(url="https://elsewhere/nar"), "nowhere below the cache's URL"),
        (offered(url="nar/../../x"), "nowhere below the cache's URL"),
        (offered(url="/etc/passwd"), "nowhere below the cache's URL"),
    ],
)
def test_what_cannot_be_believed_is_refused(narinfo: NarInfo, why: str) -> None:
    found = walk(TOP_INFO, narinfo)
    assert found.offers.keys() == {TOP.path}
    assert why in found.refused[LIBC.path]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff", "no ASCII text"),
        (b"StorePath: x\n", "malformed"),
        (b"x" * (LARGEST_NARINFO + 9), "too large"),
        (TOP_INFO.format().encode(), "about another path"),
    ],
)
def test_what_is_no_narinfo_of_the_path_is_refused(content: bytes, why: str) -> None:
    found = walk(TOP_INFO, files={narinfo_of(LIBC.path): content})
    assert why in found.refused[LIBC.path]


def test_a_narinfo_that_breaks_off_keeps_no_other_back() -> None:
    with serving(StandIn()) as server:
        for one in (TOP_INFO, offered()):
            server.put(narinfo_of(one.store_path), one.format().encode())
        broken = Raw([b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n", b"StorePath"])
        server.script = lambda one: broken if one.key == narinfo_of(LIBC.path) else None
        other = OtherCache(f"{server.url}/{BUCKET}", [KEY.public_key], [], None, {})
        found = other.walk([TOP.path], lambda _: None)
    assert found.offers.keys() == {TOP.path}
    assert found.refused == {LIBC.path: "its narinfo breaks off"}
    assert _nothing("https://old.example", found).endswith("off; see the other cache's log")


def test_paths_are_named_by_themselves_or_by_their_narinfos() -> None:
    digest = TOP.hash_part
    assert named(TOP.path) == TOP.path
    assert named(digest) == named(f"{digest}.narinfo") == f"{digest}.narinfo"
    for line in ("", "/etc/passwd", f"{TOP.path}/bin", f"nar/{digest}.nar", "../x.narinfo"):
        assert named(line) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--from", "old.example", "--keys", "k"], "FROM is 'old.example'; write the cache's URL"),
        (["--from", "https://x", "--keys", "old-1:secret"], "KEYS has 'old-1:...', which is no pu"),
        (["--from", "https://x", "--keys", " "], "KEYS is empty"),
        (["--from", "https://x", "--keys", str(KEY.public_key)], "there is nothing to copy"),
        (
            ["--from", "https://x", "--keys", str(KEY.public_key), "--paths", "/nowhere"],
            "PATHS is /nowhere, which cannot be read",
        ),
        (
            ["--from", "https://x", "--keys", str(KEY.public_key), "/etc"],
            "'/etc' is neither a store path nor a narinfo's name",
        ),
    ],
)
def test_a_command_line_that_cannot_work_is_refused_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--stack", "s", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert sentence in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://me:s3cr3t@old.example", "FROM has a login in it"),
        ("https://s3cr3t@old.example/cache", "--netrc-file"),
        ("me:s3cr3t@old.example", "FROM has a login in it"),
        ("https:me:s3cr3t@old.example", "FROM has a login in it"),
        ("https://me:1/s3cr3t@old.example", "FROM has a login in it"),
        ("https://me:a?s3cr3t#@old.example", "FROM has a login in it"),
        ("https://old.example?token=s3cr3t", "FROM has a ? or #"),
        ("https://old.example#s3cr3t", "FROM has a ? or #"),
        (
            "s3://old-cache?endpoint=https://s3.test&profile=s3cr3t",
            "FROM is the bucket 'old-cache'",
        ),
        ("https://", "write the cache's URL"),
        ("https://old.example:http", "write the cache's URL"),
        ("https://[old.example", "write the cache's URL"),
        ("https://old.example/a b", "write the cache's URL"),
        ("https://old.example\x1b[2J", "write the cache's URL"),
        ("file:///srv/cache", "write the cache's URL"),
        ("", "write the cache's URL"),
    ],
)
def test_a_url_that_cannot_be_or_holds_a_login_is_refused_and_no_secret_of_it_is_shown(
    url: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--from", url, "--keys", str(KEY.public_key), TOP.path]
    assert main(["--stack", "s", *command]) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert "s3cr3t" not in told.err + told.out
    assert told.err.removesuffix("\n").isprintable()


def test_a_url_that_names_a_cache_is_taken_without_its_last_slash() -> None:
    for url in ("https://old.example:8443/cache", "http://[::1]:80/a"):
        assert read_url(f"{url}/") == read_url(url) == url


def test_a_login_is_taken_from_a_file_as_nix_has_it(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine old.example password t0k:n\nmachine other login me password x\n")
    (login,) = read_login(str(file), "https://old.example/cache").values()
    assert b64decode(login.removeprefix("Basic ")) == b":t0k:n"
    assert read_login(None, "http://old.example") == {}


@pytest.mark.parametrize(
    ("text", "url", "sentence"),
    [
        (None, "https://old.example", "which cannot be read"),
        ("machine old.example s3cr3t", "https://old.example", "which cannot be read"),
        ("s3cr3t", "https://old.example", "which cannot be read"),
        ("machine else login a password s3cr3t", "https://old.example", "has no login for"),
        ("machine old.example password s3cr3t", "http://old.example", "in the clear"),
    ],
)
def test_a_login_that_is_none_or_would_be_overheard_is_refused_without_showing_it(
    text: str | None, url: str, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "netrc"
    if text is not None:
        file.write_text(text)
    with pytest.raises(OperationError, match=sentence) as told:
        read_login(str(file), url)
    assert "s3cr3t" not in str(told.value)


def test_a_login_reaches_the_cache_and_nobody_to_whom_it_points() -> None:
    with serving(StandIn()) as cache, serving(StandIn()) as elsewhere:
        cache.script = lambda _: Reply(302, {"Location": f"{elsewhere.url}/x"})
        elsewhere.script = lambda _: Reply(404)
        login = {"Authorization": "Basic eDp5"}
        other = OtherCache(cache.url, [KEY.public_key], [], None, login)
        assert other.walk([TOP.path], lambda _: None).absent == {TOP.path: ""}
    asked = [one.headers.get("authorization") for one in (*cache.seen, *elsewhere.seen)]
    assert asked == ["Basic eDp5", None]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_a_bucket_that_may_not_be_listed_refuses_is_not_there(status: int) -> None:
    found = walk(TOP_INFO, files={narinfo_of(LIBC.path): status})
    assert (found.absent, found.refused) == ({LIBC.path: TOP.path}, {})


def test_a_cache_that_does_not_answer_as_one_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_cache, "read_stack", lambda _: stack())
    monkeypatch.setattr(import_cache, "_push_settings", lambda _: (None, [KEY]))
    with serving(StandIn()) as server:
        server.script = lambda _: Reply(302, {"Location": "http://["})
        cases = {
            server.url: "(ProtocolError); see that FROM is its URL",
            server.url.replace("http:", "https:"): "it does not speak TLS there",
            NOWHERE: "(NewConnectionError); see that FROM is its URL",
        }
        for url, why in cases.items():
            given = ["--from", url, "--keys", str(KEY.public_key), TOP.path]
            assert main(["--stack", "s", *given]) == 2
            told = capsys.readouterr().err
            assert told.startswith(f"error: {url}: it does not ")
            assert why in told
            assert len(told.splitlines()) == 1


def test_a_cache_that_wants_a_login_is_told_with_the_remedy() -> None:
    found = walk(files={narinfo_of(TOP.path): 401})
    assert "--netrc-file" in _nothing("https://old.example", found)
    unsigned = walk(offered(signatures=()), wanted=LIBC.path)
    assert "see that KEYS" in _nothing("https://old.example", unsigned)


def test_standard_input_and_lines_of_a_file_name_paths_once(tmp_path: Path) -> None:
    file = tmp_path / "paths"
    file.write_text(f"{TOP.path}\n\n{LIBC.path}\n{TOP.path}\n")
    assert read_wanted(str(file), [TOP.path]) == [TOP.path, LIBC.path]


def test_narinfos_are_named_as_whatever_lists_a_bucket_names_them(tmp_path: Path) -> None:
    file = tmp_path / "paths"
    narinfo = narinfo_of(TOP.path)
    listed = (f"s3/old/{narinfo}", f"https://old.example/{narinfo}", f"./{narinfo}", LIBC.path)
    file.write_text("\n".join(listed))
    assert read_wanted(str(file), []) == [narinfo, LIBC.path]
    file.write_text("s3/old/nix-cache-info")
    with pytest.raises(OperationError, match="'s3/old/nix-cache-info' is neither a store path nor"):
        read_wanted(str(file), [])


def test_downloads_wait_for_the_disk_and_one_that_is_larger_than_it_goes_alone() -> None:
    space = _Space(10)
    assert space.take(50)
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(space.take(5)))
    thread.start()
    thread.join(0.05)
    assert not taken
    space.give(50)
    thread.join(10)
    assert taken == [True]
    waiting = threading.Thread(target=lambda: taken.append(space.take(6)))
    waiting.start()
    space.close()
    waiting.join(10)
    assert taken == [True, False]


class Nowhere:
    """Another cache, whose NARs cannot be had."""

    def open(self, _: Offer) -> AbstractContextManager[urllib3.BaseHTTPResponse]:
        raise HTTPError


@pytest.mark.parametrize(
    ("renew", "days_old"), [("yes", 0), ("yes", 3), ("no", 0), ("no", 3)]
)  # fmt: skip
@pytest.mark.parametrize("size", [None, 9])
def test_a_path_counts_as_there_only_with_its_nar(
    renew: str, days_old: int, size: int | None
) -> None:
    key = SecretKey.parse(SIGNING_KEY)
    urls = {one: f"nar/{one.nar_hash.removeprefix('sha256:')}.nar.zst" for one in (LIBC, OTHER)}
    found = Walk(offers={one.path: Offer(one, "nar/x.nar", "none") for one in urls})
    with serving(StandIn()) as server:
        for one, url in urls.items():
            narinfo = one.narinfo(url, "zstd", file_hash=one.nar_hash, file_size=10)
            content = signed(narinfo, key).format().encode()
            server.put(narinfo_of(one.path), content, days_old=days_old)
        server.put(urls[OTHER], b"x" * 10, days_old=days_old)
        if size is not None:
            server.put(urls[LIBC], b"x" * size, days_old=days_old)
        settings = settings_for(server.url, renew=renew)
        with _Import(settings, [key], cast(OtherCache, Nowhere()), lambda _: None) as it:
            outcome = it.run(found, [])
    assert outcome.held == 1
    assert outcome.problems == {LIBC.path: "its NAR cannot be had: the other cache does not answer"}


def test_a_nar_that_the_server_does_not_let_be_looked_at_is_told() -> None:
    key = SecretKey.parse(SIGNING_KEY)
    url = f"nar/{LIBC.nar_hash.removeprefix('sha256:')}.nar.zst"
    narinfo = LIBC.narinfo(url, "zstd", file_hash=LIBC.nar_hash, file_size=10)
    found = Walk(offers={LIBC.path: Offer(LIBC, "nar/x.nar", "none")})
    with serving(StandIn()) as server:
        server.put(narinfo_of(LIBC.path), signed(narinfo, key).format().encode())
        server.script = lambda one: Reply(403) if one.key == url else None
        settings = settings_for(server.url)
        with _Import(settings, [key], cast(OtherCache, Nowhere()), lambda _: None) as it:
            outcome = it.run(found, [])
    assert list(outcome.problems) == [LIBC.path]


class _Answer(BytesIO):
    status = 200


class OneNar:
    """Another cache, all of whose NARs are the same bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @contextmanager
    def open(self, _: Offer) -> Iterator[BytesIO]:
        yield _Answer(self.content)


def test_clients_of_each_of_the_stacks_keys_take_what_was_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the midst of a rotation some know the old one alone, and later some the new one alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    keys, content = [SecretKey.generate(f"cache.test-{number}") for number in (1, 2)], b"NAR"
    nar_hash = f"sha256:{nix32_encode(hashlib.sha256(content).digest())}"
    copied = replace(LIBC, nar_hash=nar_hash, nar_size=len(content))
    bears = [
        # What somebody called so of whom nothing is known.
        SecretKey.generate("cache.test-1").sign(copied.fingerprint),
        SecretKey.generate("cache.test-22").sign(copied.fingerprint),
    ]
    copied = replace(copied, signatures=tuple(bears))
    found = Walk(offers={copied.path: Offer(copied, "nar/x.nar", "none")})
    secrets = "\n".join(key.to_nix() for key in keys)
    outputs = {
        "builders": {"a": {"accessKeyId": "a", "secretAccessKey": "secret"}},
        "signingKeyBackup": secrets,
    }
    monkeypatch.setattr(import_cache, "read_output", lambda *_: outputs)
    of_stack = replace(stack(), public_keys=tuple(key.public_key for key in keys))
    signing = _push_settings(of_stack)[1]
    with serving(StandIn()) as server:
        settings = settings_for(server.url)
        with _Import(settings, signing, cast(OtherCache, OneNar(content)), lambda _: None) as it:
            assert it.run(found, []).imported == 1
        text = server.objects[narinfo_of(copied.path)].content.decode()
    narinfo = NarInfo.parse(text)
    assert verified_by(narinfo, {key.name: key.public_key for key in keys}) == (
        "cache.test-1",
        "cache.test-2",
    )
    assert narinfo.signatures[0] == bears[1]
    assert len(narinfo.signatures) == 3


def test_what_the_cache_had_is_renewed_again_where_midnight_goes_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    key, content = SecretKey.parse(SIGNING_KEY), b"NAR"
    nar_hash = f"sha256:{nix32_encode(hashlib.sha256(content).digest())}"
    top = replace(TOP, nar_hash=nar_hash, nar_size=len(content))
    url = f"nar/{LIBC.nar_hash.removeprefix('sha256:')}.nar.zst"
    narinfo = LIBC.narinfo(url, "zstd", file_hash=LIBC.nar_hash, file_size=10)
    found = Walk(offers={one.path: Offer(one, "nar/x.nar", "none") for one in (LIBC, top)})
    with serving(StandIn()) as server:
        server.now = server.now.replace(hour=23, minute=59, second=59)
        server.put(narinfo_of(LIBC.path), signed(narinfo, key).format().encode(), days_old=1)
        server.put(url, b"x" * 10, days_old=1)

        def strike(seen: Seen) -> None:
            if seen.method == "PUT" and seen.key == narinfo_of(top.path):
                server.now += timedelta(seconds=2)

        server.script = strike
        settings = settings_for(server.url)
        with _Import(settings, [key], cast(OtherCache, OneNar(content)), lambda _: None) as it:
            outcome = it.run(found, [])
        days = {
            server.objects[name].modified.date()
            for name in (narinfo_of(LIBC.path), narinfo_of(top.path), url)
        }
    assert (outcome.imported, outcome.held, outcome.problems) == (1, 1, {})
    assert days == {server.now.date()}
