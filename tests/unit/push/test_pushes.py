"""Whole pushes in this process, with a server that says what a test wants and a Nix of stone."""

from __future__ import annotations

import base64
import bz2
import contextlib
import hashlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.narinfo import NarInfo, listing_of
from formats.nix32 import nix32_encode
from formats.signing import SecretKey, verified_by
from push import cli
from push.inventory import narinfo_key
from push.progress import say
from push.session import Session
from push.store import StorePath
from tests.unit.push.client import SIGNING_KEY
from tests.unit.push.paths import graphs, store_path
from tests.unit.push.s3_stand_in import (
    NOW,
    Raw,
    Reply,
    Script,
    Seen,
    StandIn,
    Stored,
    error,
    iso,
    listing,
    serving,
    xml,
)
from tests.unit.push.stone_nix import StoneNix
from toolbox.processes import wait_until

KEY = SecretKey.parse(SIGNING_KEY)
UPSTREAM = SecretKey.generate("cache.nixos.org-1")
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
SUMMARY = re.compile(
    r"(?P<verb>pushed|would push) (?P<pushed>\d+) paths \(.*\), reused (?P<reused>\d+), "
    r"skipped (?P<skipped>\d+) upstream \(.*\), renewed (?P<renewed>\d+), "
    r"repaired (?P<repaired>\d+), in \d+\.\d s\n"
)


@dataclass(frozen=True)
class Ran:
    """What a push came to."""

    code: int
    output: str
    log: str

    def counts(self) -> tuple[int, int, int, int, int]:
        """Return what was pushed, reused, skipped, renewed and repaired."""
        assert self.code == 0, self.log
        match = SUMMARY.fullmatch(self.output)
        assert match, self.output
        names = ("pushed", "reused", "skipped", "renewed", "repaired")
        return tuple(int(match[name]) for name in names)  # type: ignore[return-value]

    def refused(self) -> list[str]:
        """Return what was said."""
        assert self.code == 1, self.log
        assert self.output == ""
        return self.log.splitlines()


@dataclass
class Machine:
    """A builder: its store, and where its push pushes to."""

    server: StandIn
    home: Path
    capsys: pytest.CaptureFixture[str]
    nix: StoneNix = field(default_factory=StoneNix)

    def has(self, *paths: StorePath) -> None:
        """Put paths into the store."""
        self.nix.paths |= {path.path: path for path in paths}

    def breaks(self, path: StorePath, text: str) -> None:
        """Have Nix fail at a path."""
        self.nix.fails[path.path] = text

    def push(self, *given: str | StorePath, options: Sequence[str] = (), **changes: object) -> Ran:
        """Push as the command line does."""
        values = {
            "endpoint": self.server.url,
            "bucket": "cache",
            "access_key_id": "builder",
            "secret_access_key": "a secret",
            "signing_key": SIGNING_KEY,
            **changes,
        }
        config = self.home / "config"
        config.write_text(
            "".join(
                f"{name.replace('_', '-')}={one}\n"
                for name, value in values.items()
                for one in (value if isinstance(value, list) else [value])
            )
        )
        paths = [one.path if isinstance(one, StorePath) else one for one in given]
        code = cli.main(["--config", str(config), *options, *paths])
        said = self.capsys.readouterr()
        assert self.leftovers() == []
        return Ran(code, said.out, said.err)

    def leftovers(self) -> list[Path]:
        """Return what pushes left behind."""
        return [*(self.home / "tmp").iterdir(), *(self.home / "run").iterdir()]

    def forget(self) -> None:
        """Remove what this builder remembers of buckets."""
        for file in (self.home / "cache" / "nix-binary-cache").iterdir():
            file.unlink()


@pytest.fixture
def machine(
    server: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Machine]:
    for name in ("bin", "tmp", "run", "cache"):
        (tmp_path / name).mkdir()
    nix = tmp_path / "bin" / "nix"
    nix.touch(0o755)
    monkeypatch.setenv("PATH", str(nix.parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("push.workspace._memory", lambda _: tmp_path / "run")
    machine = Machine(server, tmp_path, capsys)
    monkeypatch.setattr("push.store.subprocess", machine.nix)
    monkeypatch.setattr("push.staging.subprocess", machine.nix)
    yield machine
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


LIBC = store_path("libc", 3000)
SHELL = store_path("shell", 2000, LIBC, itself=True)
TOOL = store_path("tool", 1000, LIBC)
TOP = store_path("top", 500, SHELL, TOOL)
OTHER = store_path("other", 100)
ALL = [LIBC, SHELL, TOOL, TOP]


@pytest.fixture
def closure(machine: Machine) -> Machine:
    """A machine whose store has `TOP` and what it needs, and `OTHER`."""
    machine.has(*ALL, OTHER)
    return machine


def narinfos(server: StandIn) -> dict[str, NarInfo]:
    return {
        key: NarInfo.parse(one.content.decode())
        for key, one in server.objects.items()
        if key.endswith(".narinfo")
    }


def assert_whole(server: StandIn, *paths: StorePath) -> None:
    """Check that the bucket has just these paths, each complete."""
    found = narinfos(server)
    assert found.keys() == {narinfo_key(path) for path in paths}
    for narinfo in found.values():
        assert verified_by(narinfo, {KEY.name: KEY.public_key}) == (KEY.name,)
        assert server.objects[narinfo.url].size == narinfo.file_size
        assert {f"{name[:32]}.narinfo" for name in narinfo.references} <= found.keys()


def written(server: StandIn) -> list[str]:
    return [seen.key for seen in server.asked("PUT")]


def only(key: Callable[[str], bool], reply: Reply | Raw, *, method: str = "PUT") -> Script:
    """Answer requests for some keys so, and all else well."""
    return lambda seen: reply if seen.method == method and key(seen.key) else None


def nar_of(path: StorePath) -> str:
    """Return the key of the NAR that this Nix makes of a path."""
    digest = hashlib.sha256(path.path.encode() * 10).digest()
    return f"nar/{nix32_encode(digest)}.nar.zst"


# What goes well.


def test_a_push_writes_each_narinfo_after_what_it_needs(closure: Machine) -> None:
    server = closure.server
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert_whole(server, *ALL)
    order = {key: number for number, key in enumerate(written(server))}
    assert len(order) == 8
    for path in ALL:
        needed = {f"{name[:32]}.narinfo" for name in path.references} - {narinfo_key(path)}
        needed.add(nar_of(path))
        assert max(order[key] for key in needed) < order[narinfo_key(path)]


def test_with_nothing_new_a_push_costs_three_requests_side_by_side_and_its_status(
    closure: Machine,
) -> None:
    closure.push(TOP).counts()
    closure.server.seen.clear()
    closure.nix.asked.clear()
    assert closure.push(TOP).counts() == (0, 4, 0, 0, 0)
    *looks, told = closure.server.seen
    assert sorted(seen.query.get("prefix", "") for seen in looks) == ["", "_nixcache/pins/", "nar/"]
    assert (told.method, told.key) == ("PUT", "_nixcache/status/builder")
    assert "--version" not in " ".join(closure.nix.asked)
    closure.forget()
    assert closure.push(TOP).counts() == (0, 4, 0, 0, 0)
    assert_whole(closure.server, *ALL)


def test_a_push_that_is_over_leaves_no_connection_open(closure: Machine) -> None:
    before = set(threading.enumerate())
    closure.push(TOP).counts()
    for thread in set(threading.enumerate()) - before:
        # The server's own end when theirs are closed.
        thread.join(10)
        assert not thread.is_alive()


def test_leases_begin_anew_where_they_are_not_of_today(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    server.now += timedelta(days=1)
    server.seen.clear()
    assert closure.push(TOP).counts() == (0, 4, 0, 4, 0)
    assert {one.modified for one in server.objects.values()} == {server.now}
    assert all("x-amz-copy-source" in seen.headers for seen in server.asked("PUT"))
    assert closure.push(TOP, renew="no").counts() == (0, 4, 0, 0, 0)
    server.now += timedelta(days=1)
    server.seen.clear()
    assert closure.push(TOP, renew="no").counts() == (0, 4, 0, 0, 0)
    assert written(server) == []
    server.now -= timedelta(days=5)
    assert closure.push(TOP).counts() == (0, 4, 0, 0, 0)


def test_a_dry_run_says_what_a_push_would_do_and_does_nothing(closure: Machine) -> None:
    ran = closure.push(TOP, options=["--dry-run"])
    assert ran.counts() == (4, 0, 0, 0, 0)
    assert sorted(ran.log.splitlines()) == sorted(
        f"would push {path.path}, {path.nar_size} bytes, absent" for path in ALL
    )
    assert closure.server.objects == {}
    closure.push(TOP).counts()
    closure.server.now += timedelta(days=1)
    del closure.server.objects[nar_of(TOOL)]
    assert closure.push(TOP, options=["--dry-run"]).counts() == (1, 3, 0, 3, 1)


def test_what_is_signed_upstream_is_skipped_once_it_is_verified(machine: Machine) -> None:
    signed = replace(LIBC, signatures=(UPSTREAM.sign(LIBC.fingerprint),))
    forged = replace(SHELL, signatures=(SecretKey.generate(UPSTREAM.name).sign(SHELL.fingerprint),))
    addressed = replace(TOOL, content_address="text:sha256:" + "0" * 52)
    addressed = replace(addressed, signatures=(UPSTREAM.sign("something else"),))
    machine.has(signed, forged, addressed, TOP)
    key = str(UPSTREAM.public_key)
    assert machine.push(TOP, upstream_key=key).counts() == (3, 0, 1, 0, 0)
    assert narinfo_key(LIBC) not in machine.server.objects
    verifications = [line for line in machine.nix.asked if "--no-contents" in line]
    assert machine.push(TOP, upstream_key=key).counts() == (0, 3, 1, 0, 0)
    # What was verified is remembered; what was not is asked again.
    (first, second) = [line for line in machine.nix.asked if "--no-contents" in line]
    assert [first] == verifications
    assert LIBC.path in first
    assert LIBC.path not in second
    other = SecretKey.generate(UPSTREAM.name)
    assert machine.push(TOP, upstream_key=str(other.public_key)).counts() == (1, 3, 0, 0, 0)
    assert machine.push(TOP).counts() == (0, 4, 0, 0, 0)


def test_a_new_key_signs_what_is_there(closure: Machine) -> None:
    closure.push(TOP).counts()
    new = SecretKey.generate("cache.test-2")
    closure.server.seen.clear()
    ran = closure.push(TOP, signing_key=[SIGNING_KEY, new.to_nix()])
    assert ran.counts() == (0, 4, 0, 0, 0)
    assert "push: sign: added cache.test-2 to 4 paths" in ran.log
    assert all(key.endswith(".narinfo") for key in written(closure.server))
    keys = {key.name: key.public_key for key in (KEY, new)}
    for narinfo in narinfos(closure.server).values():
        assert set(verified_by(narinfo, keys)) == set(keys)
    assert "sign:" not in closure.push(TOP, signing_key=new.to_nix()).log


def test_another_key_of_the_same_name_replaces_what_the_first_one_signed(
    closure: Machine,
) -> None:
    closure.push(TOP).counts()
    new = SecretKey.generate(KEY.name)
    assert closure.push(TOP, signing_key=new.to_nix()).counts() == (0, 4, 0, 0, 0)
    for narinfo in narinfos(closure.server).values():
        assert verified_by(narinfo, {KEY.name: new.public_key}) == (KEY.name,)
        assert len(narinfo.signatures) == 1


def test_a_key_whose_halves_do_not_belong_together_signs_nothing(closure: Machine) -> None:
    """Nix would sign with it; nobody could verify that."""
    raw = SecretKey.generate("x-1").seed + KEY.public_key.data
    text = f"cache.test-1:{base64.b64encode(raw).decode()}"
    log = closure.push(TOP, signing_key=text).refused()
    assert log[-1].endswith("; set it to what nix key generate-secret wrote")
    assert narinfos(closure.server) == {}


def test_a_signature_that_is_none_is_published_by_nobody(machine: Machine) -> None:
    """Any user may have added one; clients could not read the narinfo."""
    bad = replace(OTHER, signatures=("cache.test-1:!!!", "cache.test-1:AAAA", "x"))
    good = UPSTREAM.sign(OTHER.fingerprint)
    wrong = SecretKey.generate("cache.test-1").sign(OTHER.fingerprint)
    machine.has(replace(bad, signatures=(*bad.signatures, good, wrong)))
    assert machine.push(OTHER).counts() == (1, 0, 0, 0, 0)
    (narinfo,) = narinfos(machine.server).values()
    # Ours alone is under our name.
    assert set(narinfo.signatures) == {good, KEY.sign(OTHER.fingerprint)}
    machine.forget()
    assert machine.push(OTHER).counts() == (0, 1, 0, 0, 0)
    (narinfo,) = narinfos(machine.server).values()
    assert set(narinfo.signatures) == {good, KEY.sign(OTHER.fingerprint)}


# What lies beside.


BUILT = [replace(path, deriver=f"{path.base_name}.drv") for path in ALL]
LISTING = b'{"root":{},"version":1}'
BOTH = {"logs": "yes", "listings": "yes"}


@pytest.fixture
def logging(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with logs of all that `TOP` needs but `LIBC`, and listings of all but `TOOL`."""
    logs = machine.home / "logs" / "drvs"
    logs.mkdir(parents=True)
    monkeypatch.setenv("NIX_LOG_DIR", str(logs.parent))
    machine.has(*BUILT)
    for path in BUILT[1:]:
        name = f"{path.base_name}.drv"
        (logs / name[:2]).mkdir(exist_ok=True)
        log = f"log of {name}".encode()
        (logs / name[:2] / f"{name[2:]}.bz2").write_bytes(bz2.compress(log))
        machine.nix.logs[name] = log
    monkeypatch.setattr(
        "push.beside.nar_listing", lambda path, _: None if path == TOOL.path else LISTING
    )
    return machine


def beside(server: StandIn) -> dict[str, bytes]:
    """Return listings and logs in the bucket."""
    return {
        key: one.content
        for key, one in server.objects.items()
        if key.endswith(".ls") or key.startswith("log/")
    }


@pytest.mark.parametrize("reply", [Reply(301), error(403, "SignatureDoesNotMatch")])
def test_no_refusal_of_what_is_optional_ends_a_push(logging: Machine, reply: Reply) -> None:
    def refuses(seen: Seen) -> Reply | None:
        is_optional = seen.key.startswith("log/") or seen.key.endswith(".ls")
        return reply if seen.method == "PUT" and is_optional else None

    logging.server.script = refuses
    assert logging.push(TOP, **BOTH).code == 0
    assert_whole(logging.server, LIBC, SHELL, TOOL, TOP)
    assert beside(logging.server) == {}


def test_listings_and_logs_are_written_before_their_narinfos(logging: Machine) -> None:
    server = logging.server
    assert logging.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert beside(server) == {}
    server.objects.clear()
    server.seen.clear()
    ran = logging.push(TOP, **BOTH)
    assert ran.counts() == (4, 0, 0, 0, 0)
    assert "push: beside: wrote 3 listings and 3 logs, renewed 0" in ran.log
    logs = {f"log/{path.base_name}.drv" for path in BUILT[1:]}
    listings = {listing_of(path.path) for path in (LIBC, SHELL, TOP)}
    assert beside(server).keys() == logs | listings
    assert server.objects[f"log/{TOP.base_name}.drv"].content == (
        f"log of {TOP.base_name}.drv".encode()
    )
    first = min(map(written(server).index, map(narinfo_key, ALL)))
    assert set(written(server)[:first]) >= logs | listings
    types = {seen.key: seen.headers["content-type"] for seen in server.asked("PUT")}
    assert {types[key] for key in listings} == {"application/json"}
    assert {types[key] for key in logs} == {"text/plain; charset=utf-8"}


def test_what_lies_beside_costs_one_listing_while_nothing_is_due(logging: Machine) -> None:
    logging.push(TOP, **BOTH).counts()
    logging.server.seen.clear()
    ran = logging.push(TOP, **BOTH)
    assert "beside" not in ran.log
    listed = sorted(seen.query.get("prefix", "") for seen in logging.server.asked("GET"))
    assert listed == ["", "_nixcache/pins/", "log/", "nar/"]


def test_what_lies_beside_is_renewed_with_the_narinfos_as_it_is(logging: Machine) -> None:
    server = logging.server
    logging.push(TOP, **BOTH).counts()
    before = beside(server)
    server.now += timedelta(days=1)
    encoded = f"log/{TOP.base_name}.drv"

    def compressed(seen: Seen) -> Reply | None:
        if seen.method != "HEAD" or seen.key != encoded:
            return None
        modified = {"Last-Modified": "Thu, 26 Nov 2026 12:00:00 GMT", "Content-Length": "9"}
        return Reply(200, {**modified, "Content-Encoding": "br"})

    server.script = compressed
    server.seen.clear()
    assert "wrote 0 listings and 0 logs, renewed 6" in logging.push(TOP, **BOTH).log
    assert beside(server) == before
    assert {one.modified for one in server.objects.values()} == {server.now}
    encodings = {seen.key: seen.headers.get("content-encoding") for seen in server.asked("PUT")}
    assert {key for key, encoding in encodings.items() if encoding} == {encoded}
    assert encodings[encoded] == "br"
    server.now += timedelta(days=1)
    server.seen.clear()
    logging.push(TOP, renew="no", **BOTH).counts()
    assert written(server) == []


def test_what_the_cache_has_without_them_gets_listings_and_logs(logging: Machine) -> None:
    logging.push(TOP).counts()
    ran = logging.push(TOP, **BOTH)
    assert ran.counts() == (0, 4, 0, 0, 0)
    assert "wrote 3 listings and 3 logs, renewed 0" in ran.log


def test_what_another_builder_made_is_not_listed_from_this_store(logging: Machine) -> None:
    server = logging.server
    logging.push(TOP).counts()
    theirs = replace(TOP, nar_hash=OTHER.nar_hash)
    made = theirs.narinfo(
        nar_of(TOP), "zstd", file_size=server.objects[nar_of(TOP)].size,
        signatures=[KEY.sign(theirs.fingerprint)],
    )  # fmt: skip
    server.put(narinfo_key(TOP), made.format().encode())
    assert logging.push(TOP, **BOTH).counts() == (0, 4, 0, 0, 0)
    assert listing_of(TOP.path) not in server.objects
    assert listing_of(LIBC.path) in server.objects


def test_a_bucket_that_is_not_listed_is_asked_for_what_is_due(
    logging: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a listing costs more than single questions."""
    monkeypatch.setattr("push.inventory.worth_listing", lambda *_: False)
    server = logging.server

    def cut_off(seen: Seen) -> Reply | None:
        if seen.query.get("list-type") is None or "pins" in seen.query.get("prefix", ""):
            return None
        zero = f"{seen.query.get('prefix', '')}{'0' * 52}"
        return listing([(zero, Stored(b"", "0" * 32, server.now, 0))], truncated=True)

    server.script = cut_off
    assert "wrote 3 listings and 3 logs, renewed 0" in logging.push(TOP, **BOTH).log
    server.seen.clear()
    assert "beside" not in logging.push(TOP, **BOTH).log
    asked = {seen.key for seen in server.seen}
    assert not [key for key in asked if key.endswith(".ls") or key.startswith("log/")]
    server.now += timedelta(days=1)
    server.seen.clear()
    logging.push(TOP, renew="no", **BOTH).counts()
    asked = {seen.key for seen in server.seen}
    assert not [key for key in asked if key.endswith(".ls") or key.startswith("log/")]
    assert "wrote 0 listings and 0 logs, renewed 6" in logging.push(TOP, **BOTH).log


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_push_does_not_fail_for_what_lies_beside(logging: Machine, status: int) -> None:
    refused = error(status, "AccessDenied" if status == 403 else "")
    logging.server.script = only(lambda key: "log/" in key or ".ls" in key, refused)
    ran = logging.push(TOP, **BOTH)
    assert ran.counts() == (4, 0, 0, 0, 0)
    assert_whole(logging.server, *ALL)
    assert re.search(
        r"push: beside: \d+ times not: .*; the paths are in the cache all the", ran.log
    )


@pytest.mark.parametrize(
    ("store", "here"),
    [
        ("daemon", True),
        ("local", True),
        ("unix://", True),
        ("local://", True),
        ("auto", True),
        ("auto", False),
        ("local?root=/srv/chroot", False),
        ("local://?root=/srv/chroot", False),
        ("/srv/chroot", False),
        ("unix:///srv/socket", False),
        ("ssh-ng://other", False),
    ],
)
def test_a_listing_is_made_only_where_nix_has_its_files_where_they_are_read(
    logging: Machine, monkeypatch: pytest.MonkeyPatch, store: str, here: bool
) -> None:
    """Another store of the machine can have other files of the same name and size."""
    state = logging.home / "state"
    monkeypatch.setenv("NIX_STATE_DIR", str(state))
    if here:
        state.mkdir()
    logging.nix.store = store
    ran = logging.push(TOP, **BOTH)
    assert ran.counts() == (4, 0, 0, 0, 0)
    keys = beside(logging.server).keys()
    assert (listing_of(TOP.path) in keys, f"log/{TOP.base_name}.drv" in keys) == (here, True)
    told = f"beside: 1 times not: no listings of what Nix has in '{store}', not in /nix/store; "
    assert (told in ran.log) == (not here)
    # Where there is nothing to be listed, nothing is asked.
    logging.nix.store = "daemon"
    logging.push(TOP, **BOTH)
    logging.nix.asked.clear()
    logging.push(TOP, **BOTH).counts()
    assert not [one for one in logging.nix.asked if "show-config" in one]


def test_a_log_that_goes_meanwhile_is_no_failure(logging: Machine) -> None:
    logging.nix.logs.clear()
    ran = logging.push(TOP, **BOTH)
    assert ran.counts() == (4, 0, 0, 0, 0)
    assert "build log for" in ran.log
    assert listing_of(TOP.path) in logging.server.objects


@pytest.mark.parametrize("content", [bz2.compress(bytes(70 << 20)), b"no bz2", b""])
def test_a_log_that_would_fill_the_disk_is_not_even_unpacked(
    logging: Machine, content: bytes
) -> None:
    """A build that prints one line for ever takes some bytes in the store."""
    name = f"{TOP.base_name}.drv"
    (place,) = logging.home.glob(f"logs/drvs/*/{name[2:]}.bz2")
    place.write_bytes(content)
    # Whoever copies it finds out.
    del logging.nix.logs[name]
    ran = logging.push(TOP, **BOTH)
    assert "wrote 3 listings and 2 logs, renewed 0" in ran.log
    assert "times not" not in ran.log
    assert f"log/{name}" not in beside(logging.server)


def test_pins_keep_what_lies_beside_what_they_keep(logging: Machine) -> None:
    server = logging.server
    logging.push(TOP, **BOTH).counts()
    server.put("_nixcache/pins/release", f"{TOP.path}\n".encode())
    logging.nix.paths.clear()
    logging.has(OTHER)
    logging.forget()
    server.now += timedelta(days=1)
    ran = logging.push(OTHER, **BOTH)
    assert "pins: renewed 4 paths" in ran.log
    assert "wrote 1 listings and 0 logs, renewed 6" in ran.log
    assert {one.modified for key, one in server.objects.items() if "/pins/" not in key} == {
        server.now
    }


# One bad path.


def test_a_path_that_nix_cannot_read_keeps_only_what_refers_to_it_back(closure: Machine) -> None:
    closure.breaks(TOOL, f"opening file '{TOOL.path}': Input/output error")
    log = closure.push(TOP, OTHER).refused()
    assert_whole(closure.server, LIBC, SHELL, OTHER)
    assert log[-4].startswith("push: so far: pushed 3 paths (5.1 kB), reused 0, ")
    assert log[-3:] == [
        f"push: not pushed: {TOOL.path}",
        "push: not published: 1 paths that refer to them",
        f"push: stage: opening file '{TOOL.path}': Input/output error; see that the store is "
        "sound, and push again",
    ]
    ran = closure.push(OTHER)
    assert ran.counts() == (0, 1, 0, 0, 0)


@pytest.mark.parametrize("damaged", [{TOOL}, {LIBC, TOOL}, {LIBC, SHELL, TOOL, TOP, OTHER}])
def test_a_path_whose_files_are_not_what_they_were_is_not_pushed(
    closure: Machine, damaged: set[StorePath]
) -> None:
    closure.nix.damaged = {path.path for path in damaged}
    log = closure.push(TOP, OTHER).refused()
    assert log[-1].endswith("; see that the store is sound, and push again")
    assert "was modified! expected hash" in log[-1]
    sound = {LIBC, SHELL, OTHER} - damaged
    assert_whole(closure.server, *(sound if LIBC in sound else sound - {SHELL}))
    closure.nix.damaged = set()
    assert closure.push(TOP, OTHER).code == 0
    assert_whole(closure.server, LIBC, SHELL, TOOL, TOP, OTHER)


def test_what_cannot_be_read_again_counts_as_damaged(closure: Machine) -> None:
    closure.nix.unreadable = "cannot connect to the daemon"
    assert closure.push(TOP).refused()[-1].startswith("push: stage: cannot connect to the daemon")
    assert_whole(closure.server)


def test_a_path_that_went_away_is_told_from_a_broken_store(closure: Machine) -> None:
    closure.breaks(TOP, f"path '{TOP.path}' is not valid")
    assert (
        closure.push(TOP)
        .refused()[-1]
        .endswith(
            "; the path went away during the push: keep the closure alive by a link, and push again"
        )
    )
    assert_whole(closure.server, LIBC, SHELL, TOOL)


def test_a_disk_that_is_too_small_for_one_path_is_named(closure: Machine) -> None:
    closure.breaks(SHELL, "writing to file: No space left on device")
    log = closure.push(TOP).refused()
    assert log[-1] == (
        "push: stage: writing to file: No space left on device; free space in "
        f"{closure.home}/tmp, or set TMPDIR to a larger disk"
    )
    assert_whole(closure.server, LIBC, TOOL)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(413), "takes no request of"),
        (error(400, "XMinioAdminBucketQuotaExceeded"), "raise the bucket's quota"),
        (Reply(403, {}, b"<html>"), "see that an S3 server answers at endpoint"),
    ],
)
def test_a_nar_that_the_server_refuses_keeps_nothing_else_back(
    closure: Machine, reply: Reply, why: str
) -> None:
    victim = nar_of(TOOL)
    closure.server.script = only(lambda key: key == victim, reply)
    log = closure.push(TOP, OTHER).refused()
    assert_whole(closure.server, LIBC, SHELL, OTHER)
    assert why in log[-1]
    assert victim in log[-1]
    assert f"push: not pushed: {TOOL.path}" in log
    closure.server.script = lambda _: None
    closure.server.seen.clear()
    assert closure.push(TOP, OTHER).counts() == (2, 3, 0, 0, 0)
    assert_whole(closure.server, *ALL, OTHER)


def test_a_narinfo_that_the_server_refuses_keeps_nothing_else_back(closure: Machine) -> None:
    victim = narinfo_key(TOOL)
    closure.server.script = only(lambda key: key == victim, error(400, "Bad"))
    log = closure.push(TOP, OTHER).refused()
    assert_whole(closure.server, LIBC, SHELL, OTHER)
    assert log[-1] == f"push: publish: PUT cache/{victim}: HTTP 400 Bad; see the server's log"


def test_dead_pins_keep_nothing_else_back(closure: Machine, tmp_path: Path) -> None:
    gone = store_path("gone")
    (tmp_path / "dangling").symlink_to("/nowhere")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "pin").symlink_to(TOP.path)
    given = ["/etc/hostname", str(tmp_path / "dangling"), str(tmp_path / "circle"), gone.path]
    log = closure.push(*given, str(tmp_path / "pin"), f"{OTHER.path}/bin/x").refused()
    assert_whole(closure.server, *ALL, OTHER)
    assert log[-5].startswith("push: so far: pushed 5 paths")
    assert [line.partition(" (")[0] for line in log[-4:]] == [
        "push: list: '/etc/hostname' is neither a store path nor a link to one; build it, or "
        "correct the path",
        f"push: list: '{tmp_path}/dangling' is neither a store path nor a link to one; build it, "
        "or correct the path",
        f"push: list: '{tmp_path}/circle' is neither a store path nor a link to one; build it, or "
        "correct the path",
        f"push: list: path '{gone.path}' is not valid; build it, or copy it to this machine, and "
        "push again",
    ]


def test_of_many_failures_the_first_reasons_are_told(closure: Machine) -> None:
    gone = [store_path(f"gone{number}") for number in range(15)]
    log = closure.push(OTHER, *gone).refused()
    assert len(log) == 2 + 10 + 1
    assert log[-1] == "push: 5 more reasons; the first ones are above"
    closure.server.script = only(lambda key: key.startswith("nar/"), Reply(413))
    paths = [store_path(f"p{number}") for number in range(12)]
    closure.has(*paths)
    log = closure.push(*paths).refused()
    assert sum(line.startswith("push: not pushed: /nix/store/") for line in log) == 10
    assert "push: not pushed: 2 more paths" in log
    assert sum("takes no request" in line for line in log) == 1


# Leases that cannot be renewed by a copy.


@pytest.mark.parametrize(
    "reply",
    [
        error(501, "NotImplemented"),
        Reply(200),
        Reply(404),
        error(403, "AccessDenied"),
        Reply(413),
    ],
)
def test_a_nar_that_cannot_be_copied_is_sent_again(closure: Machine, reply: Reply) -> None:
    server = closure.server
    closure.push(TOP).counts()
    server.now += timedelta(days=1)
    victim = nar_of(LIBC)
    server.script = lambda seen: (
        reply if seen.key == victim and "x-amz-copy-source" in seen.headers else None
    )
    assert closure.push(TOP).counts() == (1, 3, 0, 3, 1)
    assert {one.modified for one in server.objects.values()} == {server.now}
    assert_whole(server, *ALL)


@pytest.mark.usefixtures("hasty")
def test_a_nar_that_cannot_be_copied_is_sent_again_also_where_nothing_else_is_due(
    closure: Machine,
) -> None:
    server = closure.server
    closure.push(OTHER).counts()
    server.now += timedelta(days=1)
    damaged = error(503, "SlowDownRead")
    server.script = lambda seen: (
        damaged if seen.key == nar_of(OTHER) and "x-amz-copy-source" in seen.headers else None
    )
    assert closure.push(OTHER).counts() == (1, 0, 0, 0, 1)
    assert {one.modified for one in server.objects.values()} == {server.now}


def test_a_narinfo_that_cannot_be_copied_is_written_anew(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    server.now += timedelta(days=1)
    victim = narinfo_key(LIBC)
    server.script = lambda seen: (
        error(501, "NotImplemented")
        if seen.key == victim and "x-amz-copy-source" in seen.headers
        else None
    )
    assert closure.push(TOP).counts() == (1, 3, 0, 3, 1)
    assert {one.modified for one in server.objects.values()} == {server.now}


@pytest.mark.parametrize("etag", ["", '"a b"'])
def test_a_server_without_sound_etags_is_pushed_to_all_the_same(
    closure: Machine, etag: str
) -> None:
    server = closure.server
    plain = StandIn.answer

    def without(seen: Seen) -> Reply | Raw | None:
        server.script = lambda _: None
        server.seen.pop()
        reply = plain(server, seen)
        server.script = without
        if isinstance(reply, Reply) and "ETag" in reply.headers:
            return replace(reply, headers={**reply.headers, "ETag": etag})
        return reply

    server.script = without
    lock = threading.Lock()
    original = server.answer

    def one_at_a_time(seen: Seen) -> Reply | Raw:
        with lock:
            return original(seen)

    server.answer = one_at_a_time  # type: ignore[method-assign]
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert_whole(server, *ALL)
    assert closure.push(TOP).counts() == (0, 4, 0, 0, 0)


def test_what_another_push_wrote_just_now_is_renewed(closure: Machine) -> None:
    """Its ETag is another one by then, and what it says is the same."""
    server = closure.server
    closure.push(TOP).counts()
    server.now += timedelta(days=1)
    victim = narinfo_key(LIBC)

    def meddle(seen: Seen) -> Reply | None:
        if seen.key == victim and "x-amz-copy-source" in seen.headers:
            server.script = lambda _: None
            content = server.objects[victim].content
            server.put(victim, content + b"Mood: fine\n")
        return None

    server.script = meddle
    assert closure.push(TOP).counts() == (0, 4, 0, 4, 0)
    assert b"Mood" in server.objects[victim].content
    server.now += timedelta(days=1)

    def spoil(seen: Seen) -> Reply | None:
        if seen.key == victim and "x-amz-copy-source" in seen.headers:
            server.script = lambda _: None
            server.put(victim, b"spoiled")
        return None

    server.script = spoil
    assert closure.push(TOP).counts() == (1, 3, 0, 3, 1)
    assert_whole(server, *ALL)


def test_what_another_push_wrote_yesterday_is_renewed_as_it_is(closure: Machine) -> None:
    """Between the look at it and midnight."""
    server = closure.server
    closure.push(TOP).counts()
    server.now += timedelta(days=1)
    victim = narinfo_key(LIBC)
    server.seen.clear()

    def meddle(seen: Seen) -> None:
        if seen.key == victim and "x-amz-copy-source" in seen.headers:
            server.script = lambda _: None
            server.put(victim, server.objects[victim].content + b"Mood: fine\n", days_old=1)

    server.script = meddle
    assert closure.push(TOP).counts() == (0, 4, 0, 4, 0)
    assert b"Mood" in server.objects[victim].content
    assert server.objects[victim].modified == server.now
    writes = [seen for seen in server.asked("PUT") if seen.key == victim]
    assert len(writes) == 2
    assert all("x-amz-copy-source-if-match" in seen.headers for seen in writes)


@pytest.mark.usefixtures("hasty")
def test_a_narinfo_that_is_damaged_is_written_over_unread(closure: Machine) -> None:
    """The server is as patient with it as with one that is busy: once is enough."""
    server = closure.server
    closure.push(TOP).counts()
    server.now += timedelta(days=1)
    server.seen.clear()
    damaged = error(503, "SlowDownRead")
    server.script = lambda seen: (
        damaged
        if seen.key == narinfo_key(TOP)
        and (seen.method == "GET" or "x-amz-copy-source" in seen.headers)
        else None
    )
    assert closure.push(TOP).counts() == (1, 3, 0, 3, 1)
    asked = [seen for seen in server.seen if seen.key == narinfo_key(TOP)]
    assert {seen.method for seen in asked} == {"PUT"}
    assert not {"if-match", "if-none-match"} & asked[-1].headers.keys()


def test_narinfos_that_the_server_never_finds_to_be_the_same_are_written_all_the_same(
    closure: Machine,
) -> None:
    """Nobody has written them, though 412 says that they are others by now."""
    server = closure.server
    closure.push(TOP).counts()
    before = {key: one.content for key, one in server.objects.items()}
    for renewed in (4, 0):
        server.now += timedelta(days=1 if renewed else 0)
        server.seen.clear()
        server.script = lambda seen: (
            error(412, "PreconditionFailed")
            if "x-amz-copy-source-if-match" in seen.headers
            else None
        )
        assert closure.push(TOP).counts() == (0, 4, 0, renewed, 0)
        assert {one.modified for one in server.objects.values()} == {server.now}
        assert len(written(server)) == (12 if renewed else 0)
    assert {key for key, one in server.objects.items() if one.content != before[key]} <= {
        "_nixcache/status/builder"
    }


@pytest.mark.parametrize("ending", [".narinfo", ".nar.zst"])
def test_what_a_copy_leaves_as_old_as_it_was_is_written_anew(closure: Machine, ending: str) -> None:
    server = closure.server
    closure.push(TOP).counts()
    server.now += timedelta(days=1)

    def keep(seen: Seen) -> Reply | None:
        if "x-amz-copy-source" not in seen.headers or not seen.key.endswith(ending):
            return None
        there = server.objects[seen.key]
        time = f"<LastModified>{iso(there.modified)}</LastModified>"
        return xml("CopyObjectResult", f"{time}<ETag>{there.etag}</ETag>")

    server.script = keep
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 4)
    assert {one.modified for one in server.objects.values()} == {server.now}
    assert_whole(server, *ALL)


def has_another_builders(
    machine: Machine, path: StorePath, *, days_old: int = 1, key: SecretKey = KEY
) -> None:
    """Put into the bucket what another builder has made of a path: it refers to nothing."""
    digest = "sha256:" + "1" * 52
    nar = f"nar/{'1' * 52}.nar.zst"
    narinfo = path.narinfo(nar, "zstd", file_hash=digest, file_size=9)
    narinfo = replace(narinfo, nar_hash=digest, references=())
    narinfo = replace(narinfo, signatures=(key.sign(narinfo.fingerprint),))
    machine.server.put(narinfo_key(path), narinfo.format().encode(), days_old=days_old)
    machine.server.put(nar, b"x" * 9, days_old=days_old)


@pytest.mark.parametrize("midnight", [False, True])
@pytest.mark.parametrize("lost", [nar_of(LIBC), narinfo_key(LIBC)])
@pytest.mark.parametrize(
    ("ending", "reply"),
    [
        (".nar.zst", error(501, "NotImplemented")),
        (".narinfo", error(501, "NotImplemented")),
        (".narinfo", error(412, "PreconditionFailed")),
    ],
)
def test_what_takes_another_builders_place_is_published_only_with_what_it_refers_to(
    machine: Machine, ending: str, reply: Reply, lost: str, *, midnight: bool
) -> None:
    """What was there refers to nothing, and cannot be renewed; what this store has, does."""
    server = machine.server
    machine.has(*ALL)
    server.now = server.now.replace(hour=23, minute=59)
    # After midnight a second round begins leases anew, and has nothing of what failed.
    has_another_builders(machine, SHELL, days_old=0 if midnight else 1)

    def script(seen: Seen) -> Reply | None:
        if midnight and seen.method == "PUT" and server.now.hour == 23:
            # With the first of them: a refusal's Date is not believed, and may come last.
            server.now += timedelta(minutes=5)
        if seen.method == "PUT" and seen.key == lost:
            return error(403, "AccessDenied")
        if "x-amz-copy-source" in seen.headers and seen.key.endswith(ending):
            if reply.status == 412:
                # By then it is of somebody whom nobody trusts.
                has_another_builders(machine, SHELL, key=UPSTREAM)
            return reply
        return None

    server.script = script
    ran = machine.push(TOP)
    assert ran.code == 1
    assert f"push: not pushed: {LIBC.path}\n" in ran.log
    assert "push: not published: 3 paths that refer to them" in ran.log
    for narinfo in narinfos(server).values():
        assert {f"{name[:32]}.narinfo" for name in narinfo.references} <= server.objects.keys()
    server.script = lambda _: None
    assert machine.push(TOP).code == 0
    assert narinfos(server).keys() == {narinfo_key(path) for path in ALL}


def test_midnight_during_a_push_begins_a_second_round(closure: Machine) -> None:
    server = closure.server
    late = datetime(2026, 11, 26, 23, 59, 59, tzinfo=NOW.tzinfo)
    server.now = late

    def strike(seen: Seen) -> None:
        if seen.key == narinfo_key(SHELL):
            server.now = late + timedelta(minutes=1)

    server.script = strike
    assert closure.push(TOP).counts()[0] == 4
    days = {key: one.modified.date() for key, one in server.objects.items()}
    assert set(days.values()) == {server.now.date()}


def test_a_clock_that_runs_away_costs_rounds_and_no_more(closure: Machine) -> None:
    server = closure.server

    def run(_: Seen) -> None:
        server.now += timedelta(days=1)

    server.script = run
    assert closure.push(TOP).code == 0
    assert len(server.seen) < 100


# What is there already.


def test_a_nar_of_today_is_not_sent_twice(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    for path in ALL:
        del server.objects[narinfo_key(path)]
    server.seen.clear()
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert all(key.endswith(".narinfo") for key in written(server))


@pytest.mark.parametrize("days_old", [0, 1])
def test_a_nar_that_is_damaged_or_old_is_sent_again(closure: Machine, days_old: int) -> None:
    server = closure.server
    closure.push(TOP).counts()
    content = server.objects[nar_of(LIBC)].content
    damaged = bytes(len(content)) if not days_old else content
    server.put(nar_of(LIBC), damaged, days_old=days_old)
    del server.objects[narinfo_key(LIBC)]
    assert closure.push(TOP).counts()[0] == 1
    assert server.objects[nar_of(LIBC)].content == content
    assert server.objects[nar_of(LIBC)].modified == server.now


def test_two_paths_with_the_same_nar_share_it(machine: Machine) -> None:
    one = store_path("one")
    other = replace(store_path("twin"), nar_hash=one.nar_hash)
    machine.has(one, other)
    machine.nix.contents[other.path] = one.path
    assert machine.push(one, other).counts() == (2, 0, 0, 0, 0)
    assert_whole(machine.server, one, other)
    assert len([key for key in machine.server.objects if key.startswith("nar/")]) == 1
    machine.server.now += timedelta(days=1)
    machine.server.seen.clear()
    assert machine.push(one, other).counts() == (0, 2, 0, 2, 0)
    assert len([key for key in written(machine.server) if key.startswith("nar/")]) == 1


def test_twins_of_one_batch_are_sent_once_and_in_parts(machine: Machine) -> None:
    """Their file in the staging directory is one, and is opened again for each part."""
    twins = [store_path(f"twin{number}") for number in range(12)]
    machine.has(*twins)
    machine.nix.contents |= {path.path: "the same " * 600_000 for path in twins}
    assert machine.push(*twins, part_size=5_242_880).counts() == (12, 0, 0, 0, 0)
    assert_whole(machine.server, *twins)
    begun = [seen for seen in machine.server.asked("POST") if "uploads" in seen.query]
    assert len(begun) <= 2


# Other builders, at the same time.

SECOND, THIRD = SecretKey.generate("cache.test-2"), SecretKey.generate("cache.test-3")
TRUSTED = [str(key.public_key) for key in (KEY, SECOND, THIRD)]


def signers(server: StandIn) -> set[tuple[str, ...]]:
    """Return which keys have signed narinfos of the bucket, of all that there are."""
    keys = {key.name: key.public_key for key in (KEY, SECOND, THIRD)}
    return {tuple(sorted(verified_by(one, keys))) for one in narinfos(server).values()}


class Other:
    """Another builder, which writes each narinfo just before this one does."""

    def __init__(self, server: StandIn, *keys: SecretKey, paths: Sequence[StorePath] = ALL) -> None:
        """Have a key for each time that it writes one."""
        self.server = server
        self.keys = {narinfo_key(path): list(keys) for path in paths}
        self.paths = {narinfo_key(path): path for path in paths}

    def __call__(self, seen: Seen) -> None:
        """Write what a request is to write."""
        if seen.method == "PUT" and self.keys.get(seen.key):
            self.write(seen.key, self.keys[seen.key].pop(0))

    def write(self, key: str, signs: SecretKey) -> None:
        """Add a signature to what is there, or to what is made of the path."""
        path = self.paths[key]
        there = self.server.objects.get(key)
        if there is None:
            digest = nix32_encode(hashlib.sha256(path.path.encode() * 10).digest())
            made = path.narinfo(
                nar_of(path), "zstd", file_hash=f"sha256:{digest}", file_size=len(path.path) * 10
            )
        else:
            made = NarInfo.parse(there.content.decode())
        signatures = (*made.signatures, signs.sign(path.fingerprint))
        self.server.put(key, replace(made, signatures=signatures).format().encode())


def test_a_narinfo_is_written_once_where_nobody_else_writes(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    assert [seen.key for seen in server.asked("GET") if seen.key.endswith(".narinfo")] == []
    writes = [seen for seen in server.asked("PUT") if seen.key.endswith(".narinfo")]
    assert [seen.headers["if-none-match"] for seen in writes] == ["*"] * 4
    before = {key: f'"{one.etag}"' for key, one in server.objects.items()}
    server.seen.clear()
    closure.push(TOP, signing_key=SECOND.to_nix(), trusted_key=TRUSTED).counts()
    asked = [seen for seen in server.seen if seen.key.endswith(".narinfo")]
    assert [seen.method for seen in asked] == ["GET"] * 4 + ["PUT"] * 4
    assert {seen.key: seen.headers["if-match"] for seen in asked[4:]} == {
        narinfo_key(path): before[narinfo_key(path)] for path in ALL
    }


@pytest.mark.parametrize("others", [(SECOND,), (SECOND, THIRD)])
def test_builders_that_push_the_same_at_once_sign_it_both(
    closure: Machine, others: tuple[SecretKey, ...]
) -> None:
    server = closure.server
    server.script = Other(server, *others)
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert_whole(server, *ALL)
    assert signers(server) == {(KEY.name, *(key.name for key in others))}
    server.seen.clear()
    # What is remembered is what is there.
    assert closure.push(TOP).counts() == (0, 4, 0, 0, 0)
    assert [seen for seen in server.seen if seen.key.endswith(".narinfo")] == []


def test_builders_that_sign_what_is_there_at_once_sign_it_both(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    server.script = Other(server, THIRD)
    ran = closure.push(TOP, signing_key=SECOND.to_nix(), trusted_key=TRUSTED)
    assert ran.counts() == (0, 4, 0, 0, 0)
    assert signers(server) == {(KEY.name, SECOND.name, THIRD.name)}


def test_what_another_builder_with_the_same_key_has_just_written_stays(closure: Machine) -> None:
    server = closure.server
    server.script = Other(server, KEY)
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    writes = [key for key in written(server) if key.endswith(".narinfo")]
    assert sorted(writes) == sorted(map(narinfo_key, ALL))
    assert_whole(server, *ALL)


def test_what_is_mended_keeps_the_signatures_of_others(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    closure.push(TOP, signing_key=SECOND.to_nix(), trusted_key=TRUSTED).counts()
    del server.objects[nar_of(LIBC)]
    assert closure.push(TOP, trusted_key=TRUSTED).counts() == (1, 3, 0, 0, 1)
    assert signers(server) == {(KEY.name, SECOND.name)}
    for ending in (".nar.zst", ".narinfo"):
        server.now += timedelta(days=1)
        server.script = lambda seen, end=ending: (  # type: ignore[misc]
            error(501, "NotImplemented")
            if "x-amz-copy-source" in seen.headers and seen.key.endswith(end)
            else None
        )
        assert closure.push(TOP, trusted_key=TRUSTED).counts() == (4, 0, 0, 0, 4)
        assert signers(server) == {(KEY.name, SECOND.name)}


def test_what_is_broken_is_written_over_whatever_it_says(closure: Machine) -> None:
    """Another builder may mend it at the same time."""
    server = closure.server
    closure.push(TOP).counts()
    server.put(narinfo_key(LIBC), b"broken")
    other = Other(server, SECOND, paths=[LIBC])

    def mend(seen: Seen) -> None:
        if seen.method == "PUT" and seen.key in other.keys and other.keys[seen.key]:
            del server.objects[seen.key]
            other(seen)

    server.script = mend
    assert closure.push(TOP).counts() == (1, 3, 0, 0, 1)
    assert_whole(server, *ALL)
    assert (KEY.name, SECOND.name) in signers(server)


@pytest.mark.parametrize("known", [True, False], ids=["a key of the cache's", "a stranger's"])
@pytest.mark.parametrize("nar", [True, False], ids=["with its NAR", "without"])
def test_what_another_builder_has_just_made_otherwise_is_judged_as_at_the_first_look(
    closure: Machine, *, nar: bool, known: bool
) -> None:
    server = closure.server
    signs = SECOND if known else SecretKey.generate(SECOND.name)

    def write(seen: Seen) -> None:
        if seen.method == "PUT" and seen.key == narinfo_key(TOOL):
            server.script = lambda _: None
            has_another_builders(closure, TOOL, days_old=0, key=signs)
            if not nar:
                del server.objects[f"nar/{'1' * 52}.nar.zst"]

    server.script = write
    stays = nar and known
    ran = closure.push(TOP, trusted_key=TRUSTED)
    assert ran.counts() == ((3, 1, 0, 0, 0) if stays else (4, 0, 0, 0, 0))
    (narinfo,) = [one for one in narinfos(server).values() if one.store_path == TOOL.path]
    assert (narinfo.nar_hash != TOOL.nar_hash) is stays
    assert closure.push(TOP, trusted_key=TRUSTED).counts() == (0, 4, 0, 0, 0)


@pytest.mark.parametrize(
    "reply",
    [
        error(501, "NotImplemented"),
        error(400, "InvalidArgument"),
        error(403, "AccessDenied"),
        error(412, "PreconditionFailed"),
        error(409, "ConditionalRequestConflict"),
    ],
)
def test_a_server_that_knows_no_conditions_is_written_to_without(
    closure: Machine, reply: Reply
) -> None:
    server = closure.server
    server.script = lambda seen: (
        reply
        if seen.method == "PUT" and {"if-match", "if-none-match"} & seen.headers.keys()
        else None
    )
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert_whole(server, *ALL)
    ran = closure.push(TOP, signing_key=SECOND.to_nix(), trusted_key=TRUSTED)
    assert ran.counts() == (0, 4, 0, 0, 0)
    assert signers(server) == {(KEY.name, SECOND.name)}


def test_a_server_whose_conditions_never_hold_costs_requests_and_no_more(
    closure: Machine,
) -> None:
    server = closure.server
    numbers = iter(range(1_000_000))

    def never(seen: Seen) -> Reply | None:
        if seen.method == "PUT" and {"if-match", "if-none-match"} & seen.headers.keys():
            return error(412, "PreconditionFailed")
        if seen.method == "GET" and seen.key in server.objects:
            content = server.objects[seen.key].content
            return Reply(200, {"ETag": f'"{next(numbers)}"'}, content)
        return None

    server.script = never
    closure.push(TOP).counts()
    closure.push(TOP, signing_key=SECOND.to_nix(), trusted_key=TRUSTED).counts()
    assert signers(server) == {(KEY.name, SECOND.name)}
    assert len(server.seen) < 300


def test_a_write_whose_answer_was_lost_is_known_again(closure: Machine) -> None:
    server = closure.server
    lost = {narinfo_key(path) for path in ALL}

    def lose(seen: Seen) -> Reply | None:
        if seen.method == "PUT" and seen.key in lost:
            lost.remove(seen.key)
            server.put(seen.key, seen.body)
            return Reply(500)
        return None

    server.script = lose
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert_whole(server, *ALL)
    assert closure.push(TOP).counts() == (0, 4, 0, 0, 0)


# Signatures of others.


def test_what_another_of_the_caches_keys_has_signed_is_not_pushed_again(closure: Machine) -> None:
    """Two builders, each with a key, would replace each other's work for ever."""
    server = closure.server
    has_another_builders(closure, TOOL, days_old=1, key=SECOND)
    before = server.objects[narinfo_key(TOOL)].content
    assert closure.push(TOP, trusted_key=TRUSTED).counts() == (3, 1, 0, 1, 0)
    there = server.objects[narinfo_key(TOOL)]
    assert (there.content, there.modified) == (before, server.now)
    server.seen.clear()
    assert closure.push(TOP, trusted_key=TRUSTED).counts() == (0, 4, 0, 0, 0)
    assert set(written(server)) <= {"_nixcache/status/builder"}
    # Who does not trust that key has nothing of it.
    assert closure.push(TOP).counts() == (1, 3, 0, 0, 1)


def test_what_another_of_the_caches_keys_has_signed_is_renewed_as_it_is(closure: Machine) -> None:
    """Also where another builder has just renewed it, and its ETag is another one."""
    server = closure.server
    has_another_builders(closure, TOOL, days_old=1, key=SECOND)
    before = server.objects[narinfo_key(TOOL)].content
    closure.push(TOP, trusted_key=TRUSTED).counts()
    server.now += timedelta(days=1)

    def meddle(seen: Seen) -> None:
        if seen.key == narinfo_key(TOOL) and "x-amz-copy-source" in seen.headers:
            server.script = lambda _: None
            server.put(seen.key, before)
            server.objects[seen.key].etag = "renewed"

    server.script = meddle
    assert closure.push(TOP, trusted_key=TRUSTED).counts() == (0, 4, 0, 4, 0)
    assert server.objects[narinfo_key(TOOL)].content == before


def test_of_many_signatures_so_many_are_published_as_are_read_again(machine: Machine) -> None:
    """Any user may have added any to this machine's store, of any length."""
    many = [SecretKey.generate(f"other.example.org-{n}").sign(OTHER.fingerprint) for n in range(90)]
    long = [f"{'k' * 4000}{n}:{many[0].partition(':')[2]}" for n in range(3)]
    machine.has(replace(OTHER, signatures=(*long, SECOND.sign(OTHER.fingerprint), *many)))
    assert machine.push(OTHER, trusted_key=TRUSTED).counts() == (1, 0, 0, 0, 0)
    machine.forget()
    assert machine.push(OTHER, trusted_key=TRUSTED).counts() == (0, 1, 0, 0, 0)
    (narinfo,) = narinfos(machine.server).values()
    assert signers(machine.server) == {(KEY.name, SECOND.name)}
    assert len(narinfo.signatures) <= 18


# Signature laundering.


def test_what_a_writer_of_the_bucket_says_is_never_signed(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    key = narinfo_key(LIBC)
    honest = server.objects[key].content.decode()
    unsigned = re.sub(r"(?m)^Sig: .*\n", "", honest)
    evil = f"{unsigned}NarHash:_sha256:{'1' * 52}\nNarSize:_77\nURL:_nar/evil.nar\n"
    server.put(key, evil.encode())
    closure.forget()
    assert closure.push(TOP).counts() == (1, 3, 0, 0, 1)
    assert server.objects[key].content.decode() == honest


UNREADABLE: dict[str, Reply | Raw] = {
    "damaged": error(503, "SlowDownRead"),
    "broken": Reply(500),
    "refused": Reply(403, {}, b"<html>"),
    "cut off": Raw([b"HTTP/1.1 200 OK\r\nContent-Le"]),
}


def unlisted(server: StandIn, then: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have listings cost more than single questions; all else is answered by `then`."""
    monkeypatch.setattr("push.inventory.worth_listing", lambda *_: False)

    def script(seen: Seen) -> Reply | Raw | None:
        prefix = seen.query.get("prefix", "")
        if "list-type" not in seen.query or "pins" in prefix:
            return then(seen)
        zero = f"{prefix}{'0' * 52}"
        return listing([(zero, Stored(b"", "0" * 32, server.now, 0))], truncated=True)

    server.script = script


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("reply", UNREADABLE.values(), ids=UNREADABLE)
def test_a_narinfo_that_cannot_be_read_is_written_anew(
    closure: Machine, monkeypatch: pytest.MonkeyPatch, reply: Reply | Raw, listed: bool
) -> None:
    server = closure.server
    closure.push(TOP, OTHER).counts()
    closure.forget()
    new = store_path("new")
    closure.has(new)
    victim = narinfo_key(TOOL)
    server.seen.clear()
    broken = only(lambda key: key == victim, reply, method="GET")
    if listed:
        server.script = broken
    else:
        unlisted(server, broken, monkeypatch)
    ran = closure.push(TOP, OTHER, new)
    assert ran.counts() == (2, 4, 0, 0, 1)
    assert "push: list: an object cannot be read, so broken: GET cache/" in ran.log
    assert {victim, narinfo_key(new), nar_of(new)} <= set(written(server))
    server.script = lambda _: None
    assert_whole(server, *ALL, OTHER, new)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("reply", UNREADABLE.values(), ids=UNREADABLE)
def test_what_the_server_does_not_tell_of_single_objects_is_written_anew(
    closure: Machine, monkeypatch: pytest.MonkeyPatch, reply: Reply | Raw
) -> None:
    """Of narinfos that are remembered, and of NARs, it is asked for no content."""
    server = closure.server
    closure.push(TOP, OTHER).counts()
    server.seen.clear()
    victims = {narinfo_key(TOOL), nar_of(LIBC)}
    unlisted(server, only(victims.__contains__, reply, method="HEAD"), monkeypatch)
    assert closure.push(TOP, OTHER).counts() == (2, 3, 0, 0, 2)
    assert victims <= set(written(server))
    assert_whole(server, *ALL, OTHER)


def test_a_server_that_refuses_every_object_ends_the_push(closure: Machine) -> None:
    closure.push(TOP).counts()
    closure.forget()
    server = closure.server
    server.seen.clear()
    refused = Reply(403, {}, b"<html>blocked</html>")
    server.script = only(lambda key: key.endswith(".narinfo"), refused, method="GET")
    (line,) = closure.push(TOP).refused()
    assert line.endswith(f"HTTP 403; see that an S3 server answers at endpoint {server.url}")
    assert written(server) == []


def test_an_evil_url_costs_nothing_but_an_upload(closure: Machine) -> None:
    server = closure.server
    closure.push(TOP).counts()
    key = narinfo_key(LIBC)
    honest = server.objects[key].content.decode()
    for url in ("nar/../../other/x.nar.zst", "//evil.example/x.nar.zst", "nar/%2e%2e/x.nar.zst"):
        server.put(key, re.sub(r"(?m)^URL: .*$", f"URL: {url}", honest).encode())
        closure.forget()
        assert closure.push(TOP).counts() == (1, 3, 0, 0, 1)
        assert server.objects[key].content.decode() == honest
    assert all(seen.key.count("..") == 0 for seen in server.seen)


# Standard input, and the queue.


def test_each_line_is_acknowledged_once_its_closure_is_there(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = store_path("gone")
    reader, writer = os.pipe()
    with os.fdopen(reader) as standard_input, os.fdopen(writer, "wb", buffering=0) as given:
        monkeypatch.setattr(sys, "stdin", standard_input)
        given.write(f"{OTHER.path}\n{gone.path}\n \n{LIBC.path}/bin\nx\x1b".encode())
        given.close()
        ran = closure.push(options=["--stdin"])
    assert ran.code == 1
    assert ran.output.splitlines() == [OTHER.path, f"{LIBC.path}/bin"]
    assert "is not valid" in ran.log
    assert "\x1b" not in ran.log
    assert_whole(closure.server, OTHER, LIBC)


def test_lines_are_acknowledged_while_more_may_come(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    done = threading.Event()

    class Output(io.BytesIO):
        def flush(self) -> None:
            if self.getvalue().endswith(b"\n"):
                done.set()

    def feed() -> None:
        with os.fdopen(writer, "wb", buffering=0) as given:
            given.write(f"{OTHER.path}\n".encode())
            assert done.wait(60)
            server_had = set(closure.server.objects)
            given.write(f"{OTHER.path}\n{TOP.path}".encode())
            assert narinfo_key(OTHER) in server_had

    with os.fdopen(reader) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        output = Output()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output))
        thread = threading.Thread(target=feed)
        thread.start()
        assert closure.push(options=["--stdin"]).code == 0
        thread.join()
        assert output.getvalue().decode().splitlines() == [OTHER.path] * 2 + [TOP.path]
    assert_whole(closure.server, *ALL, OTHER)


@pytest.mark.parametrize("name", ["r→sult".encode(), b"r\xffsult", b"\xc3\xa0", b"\x1b[31m"])
def test_a_line_is_written_again_with_its_bytes_whatever_the_locale(
    closure: Machine, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    line = os.fsencode(closure.home) + b"/" + name
    os.symlink(OTHER.path, line)  # noqa: PTH211 (`Path` takes no bytes)
    reader, writer = os.pipe()
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="iso-8859-1"))
    with os.fdopen(reader) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        with os.fdopen(writer, "wb") as given:
            given.write(line + b"\nx\0y\n")
        ran = closure.push(options=["--stdin"])
    assert ran.code == 1
    assert ran.log.splitlines() == [
        "push: upload: 1 of 1 paths, 100 B of 100 B",
        "push: list: 'x?y' is neither a store path nor a link to one; build it, or correct the "
        "path",
    ]
    assert output.getvalue() == line + b"\n"


def test_a_line_that_comes_several_times_is_written_as_often(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [OTHER.path, LIBC.path, OTHER.path, store_path("gone").path, OTHER.path]
    reader, writer = os.pipe()
    with os.fdopen(reader) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        with os.fdopen(writer, "w") as given:
            given.write("\n".join(lines))
        ran = closure.push(options=["--stdin"])
    assert ran.output.splitlines() == [line for line in lines if "gone" not in line]
    assert ran.code == 1


@pytest.mark.parametrize("blank", [" ", "\t", "\r"])
def test_a_blank_at_the_end_of_a_line_is_part_of_it(
    closure: Machine, monkeypatch: pytest.MonkeyPatch, blank: str
) -> None:
    """As a file's name can have it: the one without it is another one."""
    link = f"{closure.home}/result"
    Path(link).symlink_to(OTHER.path)
    Path(link + blank).symlink_to(LIBC.path)
    given = f"{link}{blank}\n{OTHER.path}{blank}\n \t\r\n".encode()
    reader, writer = os.pipe()
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output))
    with os.fdopen(reader) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        with os.fdopen(writer, "wb") as writes:
            writes.write(given)
        ran = closure.push(options=["--stdin"])
    assert ran.code == 1
    assert "is neither a store path nor a link to one" in ran.log
    assert output.getvalue() == f"{link}{blank}\n".encode()
    assert narinfo_key(LIBC) in closure.server.objects
    assert narinfo_key(OTHER) not in closure.server.objects


def test_standard_input_that_does_not_wait_by_itself_is_waited_for(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    read, taken = os.read, [1]
    ready, waits = select.select, threading.Semaphore(0)

    def awaited(descriptors: list[int], *others: Any) -> object:
        if descriptors == [reader] and others[-1] is None:
            waits.release()
        return ready(descriptors, *others)

    monkeypatch.setattr(select, "select", awaited)

    def another_was_there_before(descriptor: int, size: int) -> bytes:
        if descriptor == reader and taken:
            taken.clear()
            raise BlockingIOError
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", another_was_there_before)

    def feed() -> None:
        with os.fdopen(writer, "w") as given:
            for path in (OTHER, LIBC):
                assert waits.acquire(timeout=60)
                given.write(f"{path.path}\n")
                given.flush()

    with os.fdopen(reader) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        thread = threading.Thread(target=feed)
        thread.start()
        ran = closure.push(options=["--stdin"])
        thread.join()
    assert (ran.code, ran.output.splitlines()) == (0, [OTHER.path, LIBC.path])


def pages_of_one(server: StandIn) -> Script:
    """Have a server list one object in a page, so that the first page reaches nothing else."""

    def script(seen: Seen) -> Reply | Raw | None:
        if "list-type" not in seen.query:
            return None
        return server.page({**seen.query, "max-keys": "1"})

    for key in ("0.narinfo", "nar/0", "z.narinfo", "nar/z"):
        server.put(key, b"another's")
    return script


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_a_line_is_believed_to_be_there_for_seconds_and_no_longer_than_the_first_page_has_it(
    closure: Machine, monkeypatch: pytest.MonkeyPatch, shown: bool, passed: bool
) -> None:
    """A hook may hold standard input open for weeks, and somebody removes things meanwhile."""
    server = closure.server
    if not shown:
        server.script = pages_of_one(server)
    if passed:
        monkeypatch.setattr("push.session._SECONDS_PROVEN", -1.0)
    again: list[bool] = []

    def lines() -> Iterator[list[str]]:
        yield [OTHER.path]
        key = narinfo_key(OTHER)
        nar = NarInfo.parse(server.objects[key].content.decode()).url
        for removed in (key, nar):
            del server.objects[removed]
        yield [OTHER.path]
        again.append(key in server.objects and nar in server.objects)

    monkeypatch.setattr("push.modes._lines", lines)
    ran = closure.push(options=["--stdin"])
    assert ran.output.splitlines() == [OTHER.path, OTHER.path]
    assert again == [shown or passed]


@pytest.mark.parametrize("gone", ["narinfo", "nar", "changed", "size"])
def test_what_a_line_refers_to_is_written_again_where_it_was_removed(
    closure: Machine, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    server = closure.server

    def lines() -> Iterator[list[str]]:
        yield [TOOL.path]
        key = narinfo_key(LIBC)
        nar = narinfos(server)[key].url
        if gone in ("narinfo", "nar"):
            del server.objects[key if gone == "narinfo" else nar]
        else:
            server.put(key if gone == "changed" else nar, b"another's")
        yield [TOP.path]

    monkeypatch.setattr("push.modes._lines", lines)
    assert closure.push(options=["--stdin"]).output.splitlines() == [TOOL.path, TOP.path]
    there = narinfos(server)
    assert there.keys() == {narinfo_key(path) for path in ALL}
    assert all(server.objects[one.url].size == one.file_size for one in there.values())


def test_a_line_of_what_has_just_been_proven_asks_for_two_pages_and_nothing_else(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = closure.server
    before: list[int] = []

    def lines() -> Iterator[list[str]]:
        yield [TOP.path]
        before.append(len(server.seen))
        yield [TOP.path]
        before.append(len(server.seen))

    monkeypatch.setattr("push.modes._lines", lines)
    closure.push(options=["--stdin"])
    about_status = sum("_nixcache" in seen.key for seen in server.seen[before[0] : before[1]])
    assert before[1] - before[0] - about_status == 2


def test_leases_of_a_line_begin_anew_on_another_day(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = closure.server
    pushes: list[set[str]] = []

    def lines() -> Iterator[list[str]]:
        yield [OTHER.path]
        server.objects.clear()
        server.now += timedelta(days=1)
        yield [LIBC.path]
        yield [OTHER.path]
        pushes.append(set(server.objects))

    monkeypatch.setattr("push.modes._lines", lines)
    assert closure.push(options=["--stdin"]).output.splitlines() == [
        OTHER.path,
        LIBC.path,
        OTHER.path,
    ]
    assert narinfo_key(OTHER) in pushes[0]


def test_a_line_just_after_midnight_begins_leases_anew(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which day it is, the server tells with its first answer to this line, not to the last one."""
    server = closure.server
    closure.push(TOP).counts()
    server.put("_nixcache/pins/release", f"{TOP.path}\n".encode())
    closure.nix.paths.clear()
    closure.has(OTHER)
    listed = threading.Event()
    as_usual = Session._list  # noqa: SLF001

    def nix_is_faster(*given: Any) -> object:
        found = as_usual(*given)
        listed.set()
        return found

    def script(seen: Seen) -> None:
        if "list-type" in seen.query:
            listed.wait(60)

    renewed: list[set[datetime]] = []

    def lines() -> Iterator[list[str]]:
        yield [OTHER.path]
        server.now += timedelta(days=1)
        listed.clear()
        yield [OTHER.path]
        renewed.append(
            {one.modified for key, one in server.objects.items() if "_nixcache/" not in key}
        )

    monkeypatch.setattr(Session, "_list", nix_is_faster)
    monkeypatch.setattr("push.modes._lines", lines)
    server.script = script
    ran = closure.push(options=["--stdin"])
    assert ran.output.splitlines() == [OTHER.path] * 2
    assert renewed == [{server.now}]


def test_a_queue_loses_just_what_is_in_the_bucket(closure: Machine, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    gone = store_path("gone")
    for name, target in {
        "top": TOP.path,
        "again": TOP.path,
        "libc": LIBC.path,
        "gone": gone.path,
        "outside": "/etc/hostname",
    }.items():
        (queue / name).symlink_to(target)
    (queue / "file").touch()
    closure.breaks(TOOL, "opening file: Input/output error")
    closure.push(options=["--queue", str(queue)]).refused()
    assert {link.name for link in queue.iterdir()} == {"top", "again", "gone", "outside", "file"}
    assert_whole(closure.server, LIBC, SHELL)
    closure.nix.fails.clear()
    closure.has(gone)
    for name in ("outside", "file"):
        (queue / name).unlink()
    assert closure.push(options=["--queue", str(queue)]).counts()[0] == 3
    assert list(queue.iterdir()) == []
    assert closure.push(options=["--queue", str(queue)]) == Ran(0, "", "")


@pytest.fixture
def queued(closure: Machine) -> Path:
    """A queue with `TOP`, which is in the bucket, and `OTHER`, which is not."""
    closure.push(TOP).counts()
    queue = closure.home / "queue"
    queue.mkdir()
    (queue / "top").symlink_to(TOP.path)
    (queue / "other").symlink_to(OTHER.path)
    return queue


@pytest.mark.usefixtures("hasty")
def test_a_narinfo_that_cannot_be_written_keeps_only_its_own_path_in_the_queue(
    closure: Machine, queued: Path
) -> None:
    closure.server.script = only(lambda key: key == narinfo_key(OTHER), Reply(500))
    log = closure.push(options=["--queue", str(queued)]).refused()
    assert log[-1] == (
        f"push: publish: PUT cache/{narinfo_key(OTHER)}: the server answers HTTP 500; the server "
        "answers other requests, so see its log"
    )
    assert [link.name for link in queued.iterdir()] == ["other"]


@pytest.mark.usefixtures("hasty")
def test_a_pin_that_cannot_be_read_keeps_nothing_in_the_queue(
    closure: Machine, queued: Path
) -> None:
    gone = store_path("gone")
    closure.server.put("_nixcache/pins/release", f"{gone.path}\n".encode())
    damaged = error(503, "SlowDownRead")
    closure.server.script = only(lambda key: key == narinfo_key(gone), damaged, method="GET")
    log = closure.push(options=["--queue", str(queued)]).refused()
    assert f"push: not renewed: {gone.path}" in log
    assert list(queued.iterdir()) == []


@pytest.mark.usefixtures("hasty")
def test_a_server_that_goes_keeps_only_in_the_queue_what_is_not_in_the_bucket(
    closure: Machine, queued: Path
) -> None:
    later = store_path("later", 100, OTHER)
    closure.has(later)
    (queued / "later").symlink_to(later.path)
    gone = threading.Event()

    def script(seen: Seen) -> Reply | None:
        if gone.is_set():
            return Reply(503)
        if seen.method == "PUT" and seen.key == narinfo_key(OTHER):
            # Nothing else is under way, which the server's end would end the push with.
            assert wait_until(lambda: nar_of(later) in closure.server.objects, 60)
            gone.set()
        return None

    closure.server.script = script
    log = closure.push(options=["--queue", str(queued)]).refused()
    assert log[-1].endswith(
        f"see that the server runs and that endpoint {closure.server.url} is right"
    )
    assert [link.name for link in queued.iterdir()] == ["later"]


def test_a_link_that_was_replaced_meanwhile_stays_in_the_queue(
    closure: Machine, tmp_path: Path
) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    (queue / "result").symlink_to(OTHER.path)

    def replaced(seen: Seen) -> None:
        if seen.method == "PUT" and (queue / "result").readlink() != Path(TOP.path):
            (queue / "result").unlink()
            (queue / "result").symlink_to(TOP.path)

    closure.server.script = replaced
    assert closure.push(options=["--queue", str(queue)]).counts()[0] == 1
    assert (queue / "result").readlink() == Path(TOP.path)


# The command line.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no settings; give --config FILE"),
        (["--config"], "--config needs a value; see --help"),
        (["--queue"], "--queue needs a value; see --help"),
        (["--config", "/nowhere"], "--config '/nowhere' cannot be read; name a readable file"),
        (["--config", "/dev/urandom\x00"], "cannot be read; name a readable file"),
        (["--frob"], "unknown option '--frob'; see --help"),
        (["--dry-run", "--stdin"], "exclude one another; give one of them"),
        (["--dry-run", "--queue", "/x"], "exclude one another; give one of them"),
        (["--stdin", "/x"], "--stdin takes what is to be pushed from standard input; give no path"),
        (["--queue", "/x", "/y"], "--queue takes what is to be pushed from its directory; give"),
        (["--stdin", "--config", "-"], "--stdin takes paths from standard input; give --config a"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    machine: Machine, arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 1
    said = machine.capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("push: settings: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize("option", ["--stdin", "--queue"])
def test_paths_among_the_settings_are_refused_where_others_are_pushed(
    closure: Machine, tmp_path: Path, option: str
) -> None:
    options = [option, str(tmp_path)] if option == "--queue" else [option]
    (line,) = closure.push(options=options, path=[OTHER.path]).refused()
    assert line.startswith(f"push: settings: {option} takes what is to be pushed from ")
    assert line.endswith("; leave path out of the settings")


def test_nothing_to_push_is_refused(machine: Machine) -> None:
    assert machine.push().refused() == [
        "push: settings: nothing to push; give a store path, or a link to one"
    ]


def full_disk(encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO("/dev/full", "w")), encoding=encoding, line_buffering=True
    )


def drop(stream: io.TextIOWrapper) -> None:
    """Close a stream with what it could not write."""
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_result_that_cannot_be_written_is_one_sentence_and_no_defect(
    closure: Machine, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    full = full_disk()
    monkeypatch.setattr(sys, "stdout", full)
    ran = closure.push(OTHER, options=options)
    drop(full)
    assert ran.code == 1
    assert ran.log.splitlines()[-1] == (
        "push: output: standard output cannot be written to (No space left on device); send it "
        "where it can"
    )
    assert "defect" not in ran.log
    if not options:
        assert_whole(closure.server, OTHER)
        status = closure.server.objects["_nixcache/status/builder"].content
        assert json.loads(status)["failures"] == 0


def test_progress_that_cannot_be_written_keeps_nothing_from_being_pushed(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = full_disk()
    monkeypatch.setattr(sys, "stderr", full)
    assert closure.push(OTHER).counts() == (1, 0, 0, 0, 0)
    drop(full)


def test_standard_error_that_is_closed_keeps_nothing_from_being_pushed(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert closure.push(OTHER).counts() == (1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">&-", 0, ""),
        (
            ">/dev/full",
            1,
            "push: output: standard output cannot be written to (No space left on device); send it "
            "where it can\n",
        ),
    ],
)
def test_a_program_ends_in_order_wherever_its_output_goes(where: str, code: int, said: str) -> None:
    ran = subprocess.run(
        ["sh", "-c", f'"$0" -m push --help {where}', sys.executable],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (code, said)
    assert ran.stdout.isascii()
    assert bool(ran.stdout) == (where == "")


def test_no_connection_is_given_the_number_of_a_stream_that_was_closed() -> None:
    program = (
        "import os, sys; from push.progress import open_streams; open_streams(); "
        "files = sys.stdin, sys.stdout, sys.stderr; "
        "[one.fileno() for one in files]; os._exit(os.open('/', os.O_RDONLY) < 3)"
    )
    ran = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, program],
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert ran.returncode == 0


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "\u202e", "x" * 100_000 + "\x1b[31m"])
def test_nothing_that_is_given_moves_a_terminal(closure: Machine, name: str) -> None:
    """A branch's name is a path's on a forge, and its log is shown in colours."""
    queue = closure.home / name[:50]
    queue.mkdir()
    (queue / f"{name[-50:]}").touch()
    (closure.home / "file").touch()
    runs = [
        closure.push(f"{closure.home}/file/{name}"),
        closure.push(f"{closure.home}/{name}"),
        closure.push(f"{closure.home}/file/x", options=["--config", name]),
        closure.push(options=["--queue", str(queue)]),
        closure.push(options=["--queue", f"{queue}/{name}"]),
        closure.push(options=[f"--{name}"]),
    ]
    for ran in runs:
        (line,) = ran.refused()
        assert line.isprintable()
        assert len(line) < 600


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\u202eb", "\udcff", "x" * 1_000_000])
def test_whatever_is_said_is_a_line_that_a_terminal_can_have(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(text)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert len(line) <= 4000


def test_help_is_told_without_settings(machine: Machine) -> None:
    assert cli.main(["--help"]) == 0
    assert machine.capsys.readouterr().out.startswith("Usage: nix-binary-cache-push [--config")


def test_settings_come_from_standard_input(
    closure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Input:
        buffer = io.BytesIO(b"endpoint=\xff")

    monkeypatch.setattr(sys, "stdin", Input())
    assert cli.main(["--config", "-", OTHER.path]) == 1
    assert closure.capsys.readouterr().err == (
        "push: settings: standard input is no text in UTF-8; see --help\n"
    )
    assert cli.main(["--config", "-", OTHER.path], lambda: "endpoint=x") == 1
    assert "endpoint 'x' is not valid" in closure.capsys.readouterr().err


def test_a_queue_that_is_no_directory_is_refused(closure: Machine) -> None:
    (line,) = closure.push(options=["--queue", "/etc/hostname"]).refused()
    assert line.startswith("push: settings: --queue '/etc/hostname' cannot be read (Not a dir")


# The server.


@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_away_ends_the_push_with_its_address(machine: Machine) -> None:
    machine.has(OTHER)
    with serving(StandIn()) as other:
        endpoint = other.url
    (line,) = machine.push(OTHER, endpoint=endpoint).refused()
    assert line.startswith("push: list: Failed to connect to 127.0.0.1 port ")
    assert line.endswith(f"; see that the server runs and that endpoint {endpoint} is right")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(4))
def test_a_server_that_fails_at_random_is_overcome(closure: Machine, seed: int) -> None:
    count = 0
    lock = threading.Lock()

    def script(seen: Seen) -> Reply | Raw | None:
        nonlocal count
        with lock:
            count += 1
            byte = hashlib.sha256(f"{seed} {count}".encode()).digest()[0]
        del seen
        if byte < 40:
            return Raw([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"])
        return Reply((500, 503, 429, 408)[byte % 4]) if byte < 100 else None

    closure.server.script = script
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    closure.server.script = lambda _: None
    assert_whole(closure.server, *ALL)


def test_a_server_that_says_yes_to_everything_gets_no_success(closure: Machine) -> None:
    closure.server.script = lambda _: Reply(200)
    (line,) = closure.push(TOP).refused()
    assert line.startswith("push: list: the server's listing cannot be read")


@pytest.mark.parametrize("lost", [nar_of(LIBC), narinfo_key(LIBC)])
def test_what_a_firewall_keeps_back_with_a_page_is_not_pushed(closure: Machine, lost: str) -> None:
    server = closure.server
    page = Reply(200, {}, b"<html>Blocked by policy</html>")
    server.script = only(lambda key: key == lost, page)
    ran = closure.push(TOP)
    assert ran.code == 1
    assert f"push: not pushed: {LIBC.path}\n" in ran.log
    assert f"said that {lost} was written (HTTP 200), and it is not there as it was" in ran.log
    assert narinfos(server) == {}
    server.script = lambda _: None
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert_whole(server, *ALL)


def test_a_server_that_forgets_everything_is_found_out_by_the_next_push(
    closure: Machine,
) -> None:
    closure.push(TOP).counts()
    closure.server.objects.clear()
    assert closure.push(TOP).counts() == (4, 0, 0, 0, 0)
    assert_whole(closure.server, *ALL)


# Graphs at random.


indices = st.sets(st.integers(0, 11), max_size=3)


@given(
    paths=graphs(),
    compressing=indices,
    nars=indices,
    narinfo_writes=indices,
    spoiled=indices,
    days=st.sampled_from([0, 1]),
)
@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_of_any_closure_exactly_what_depends_on_a_failure_is_kept_back(
    machine: Machine,
    paths: list[StorePath],
    compressing: set[int],
    nars: set[int],
    narinfo_writes: set[int],
    spoiled: set[int],
    days: int,
) -> None:
    def chosen(numbers: set[int]) -> list[StorePath]:
        return [path for number, path in enumerate(paths) if number in numbers]

    server = machine.server
    server.objects.clear()
    server.script = lambda _: None
    machine.nix.fails.clear()
    paths = [replace(path, nar_size=1000) for path in paths]
    machine.has(*paths)
    assert machine.push(*paths).code == 0
    server.now += timedelta(days=days)
    for path in chosen(spoiled):
        server.put(narinfo_key(path), b"spoiled", days_old=1)
        del server.objects[nar_of(path)]
    for path in chosen(compressing):
        machine.breaks(path, "opening file: Input/output error")
    refused = {nar_of(path) for path in chosen(nars)}
    refused |= {narinfo_key(path) for path in chosen(narinfo_writes)}
    complaints = watch(server, refused)
    ran = machine.push(*paths)
    assert complaints == []
    # A lease that no copy renews is renewed by pushing again, and fails only if that fails.
    due = set(chosen(spoiled)) if not days else set(paths)
    bad = (set(chosen(compressing)) & set(chosen(spoiled))) | set(chosen(nars))
    bad |= set(chosen(narinfo_writes))
    bad &= due
    kept_back = set(bad)
    for path in paths:
        needs = {one for one in paths if one.base_name in path.references and one != path}
        if path in due and needs & kept_back:
            kept_back.add(path)
    assert ran.code == (1 if bad else 0), ran.log
    today = server.now.date()
    for path in paths:
        stored = server.objects.get(narinfo_key(path))
        is_good = (
            stored is not None and stored.content != b"spoiled" and stored.modified.date() == today
        )
        assert is_good == (path not in kept_back), path


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_as_the_last_thing_is_done_leaves_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    machine.has(LIBC)
    ignored: list[int] = []
    as_usual = signal.signal

    def late(one: int, handler: signal.Handlers) -> object:
        if handler is signal.SIG_IGN:
            ignored.append(one)
            if len(ignored) == 1:
                signal.raise_signal(number)
        return as_usual(one, handler)

    monkeypatch.setattr("push.cli.signal.signal", late)
    assert machine.push(LIBC).code == 128 + number
    assert len(ignored) > 1


def test_what_whoever_starts_it_ignores_is_ignored(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def goes_on(*_: object) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    machine.has(LIBC)
    monkeypatch.setattr("push.modes.push_once", goes_on)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert machine.push(LIBC).code == 0
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert machine.push(LIBC).code == 128 + signal.SIGHUP


def test_what_breaks_over_a_signal_ends_as_the_signal_does(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("release unlocked lock")

    machine.has(LIBC)
    monkeypatch.setattr("push.modes.push_once", breaks)
    ran = machine.push(LIBC)
    assert (ran.code, ran.log) == (128 + signal.SIGTERM, "")


def test_a_signal_while_a_failure_is_told_ends_as_any_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("push.cli.say", lambda _: signal.raise_signal(signal.SIGTERM))
    assert machine.push().code == 128 + signal.SIGTERM


def watch(server: StandIn, refused: set[str]) -> list[str]:
    """Refuse to write some keys; return complaints about narinfos that are written too early."""
    complaints: list[str] = []

    def script(seen: Seen) -> Reply | None:
        if seen.method != "PUT":
            return None
        if seen.key in refused:
            return error(400, "Refused")
        if seen.key.endswith(".narinfo"):
            content = seen.body or server.objects[seen.key].content
            narinfo = NarInfo.parse(content.decode())
            needed = {f"{name[:32]}.narinfo" for name in narinfo.references} - {seen.key}
            for key in (narinfo.url, *needed):
                there = server.objects.get(key)
                if there is None or there.content == b"spoiled":
                    complaints.append(f"{seen.key} before {key}")
                elif there.modified.date() < server.now.date():
                    complaints.append(f"{seen.key} will outlive {key}")
        return None

    server.script = script
    return complaints
