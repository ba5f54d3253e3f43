"""Pins of the cache: renewed by pushes that have none of it, and believed no further."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from formats.narinfo import NarInfo
from formats.pin import MOST_TARGETS, format_pin, parse_pin, pin_key
from formats.push_status import STATUS_FOLDER
from formats.signing import SecretKey
from push.inventory import narinfo_key
from push.store import StorePath
from tests.unit.push.client import SIGNING_KEY
from tests.unit.push.paths import store_path
from tests.unit.push.s3_stand_in import Raw, Reply, Seen, StandIn, error, http_date
from tests.unit.push.test_pushes import ALL, LIBC, OTHER, SHELL, TOOL, TOP, Machine, nar_of
from tests.unit.push.test_pushes import machine as machine  # noqa: PLC0414

KEY = SecretKey.parse(SIGNING_KEY)


@pytest.fixture
def elsewhere(machine: Machine) -> Machine:
    """A machine that has `OTHER` alone, of a cache to which another has pushed and pinned `TOP`."""
    machine.has(*ALL, OTHER)
    machine.push(TOP).counts()
    machine.push(OTHER).counts()
    machine.nix.paths = {OTHER.path: OTHER}
    pin(machine, "release", TOP)
    machine.forget()
    machine.server.now += timedelta(days=1)
    machine.server.seen.clear()
    return machine


def pin(machine: Machine, name: str, *paths: StorePath) -> None:
    machine.server.put(pin_key(name), format_pin([path.path for path in paths]).encode())


def days(server: StandIn) -> dict[str, int]:
    """Return how many days old each object is."""
    return {key: (server.now - one.modified).days for key, one in server.objects.items()}


def contents(server: StandIn) -> dict[str, bytes]:
    """Return what each object holds, but for what pushes tell of themselves."""
    told = {key for key in server.objects if key.startswith(STATUS_FOLDER)}
    return {key: one.content for key, one in server.objects.items() if key not in told}


def keys_of(*paths: StorePath) -> set[str]:
    return {key for path in paths for key in (narinfo_key(path), nar_of(path))}


def test_what_a_pin_keeps_is_renewed_by_a_push_that_has_none_of_it(elsewhere: Machine) -> None:
    server = elsewhere.server
    before = contents(server)
    ran = elsewhere.push(OTHER)
    assert ran.counts() == (0, 1, 0, 1, 0)
    assert "push: pins: renewed 4 paths that this machine does not have\n" in ran.log
    old = {key for key, age in days(server).items() if age}
    assert old == {pin_key("release")}
    assert contents(server) == before
    written = [seen.key for seen in server.asked("PUT")]
    for path in ALL:
        needed = {f"{name[:32]}.narinfo" for name in path.references} | {nar_of(path)}
        for key in needed - {narinfo_key(path)}:
            assert written.index(key) < written.index(narinfo_key(path))


def test_what_was_renewed_today_is_walked_no_further_than_its_top(elsewhere: Machine) -> None:
    elsewhere.push(OTHER).counts()
    elsewhere.forget()
    elsewhere.server.seen.clear()
    ran = elsewhere.push(OTHER)
    assert "pins" not in ran.log
    keys = [seen.key for seen in elsewhere.server.asked("GET") if seen.key]
    assert sorted(keys) == sorted([pin_key("release"), narinfo_key(OTHER), narinfo_key(TOP)])


def test_where_the_bucket_never_forgets_nobody_looks_for_pins(elsewhere: Machine) -> None:
    elsewhere.push(OTHER, renew="no").counts()
    assert not any("pins" in seen.target for seen in elsewhere.server.seen)


def test_a_machine_that_has_a_pin_pushes_what_the_cache_lacks_of_it(elsewhere: Machine) -> None:
    server = elsewhere.server
    del server.objects[narinfo_key(LIBC)], server.objects[nar_of(TOOL)]
    ran = elsewhere.push(OTHER)
    assert "push: pins: release is incomplete: " in ran.log
    elsewhere.has(*ALL)
    # As a path of this machine's it exists; Nix of stone has it in no real store.
    mended = elsewhere.push(OTHER, TOP)
    assert mended.counts()[0] == 2
    assert "incomplete" not in mended.log
    assert keys_of(*ALL) <= server.objects.keys()


def test_a_pinned_path_that_exists_here_is_pushed_unasked(
    elsewhere: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = {path.path for path in ALL}
    monkeypatch.setattr("push.session.os.path.lexists", exists.__contains__)
    elsewhere.has(*ALL)
    del elsewhere.server.objects[narinfo_key(LIBC)]
    assert elsewhere.push(OTHER).counts() == (1, 4, 0, 4, 0)
    # It may be there and not valid: then it is renewed as anybody's.
    elsewhere.nix.paths = {OTHER.path: OTHER}
    elsewhere.server.now += timedelta(days=1)
    assert "pins: renewed 4 paths" in elsewhere.push(OTHER).log


@pytest.mark.parametrize("part", ["narinfo", "NAR", "size"])
def test_a_pin_that_lacks_something_is_told_and_the_rest_of_it_kept(
    elsewhere: Machine, part: str
) -> None:
    server = elsewhere.server
    if part == "narinfo":
        server.put(narinfo_key(TOOL), b"no narinfo\n", days_old=1)
        why = "its narinfo is broken, or no key of this cache has signed it"
    elif part == "NAR":
        del server.objects[nar_of(TOOL)]
        why = "its NAR is gone, or has another size"
    else:
        server.objects[nar_of(TOOL)].size += 1
        why = "its NAR is gone, or has another size"
    ran = elsewhere.push(OTHER)
    assert ran.counts()[0] == 0
    assert (
        f"push: pins: release is incomplete: {TOOL.path}: {why}; push it where it still is\n"
        in ran.log
    )
    assert {key for key in keys_of(LIBC, SHELL, TOP) if days(server)[key]} == set()


def test_a_nar_whose_size_is_not_told_is_renewed(elsewhere: Machine) -> None:
    """Proxies that compress, or send in chunks, leave it out."""
    server = elsewhere.server

    def without_size(seen: Seen) -> Reply | None:
        stored = server.objects.get(seen.key)
        if seen.method != "HEAD" or stored is None:
            return None
        date = http_date(stored.modified)
        return Reply(200, {"Content-Length": "", "ETag": stored.etag, "Last-Modified": date})

    server.script = without_size
    ran = elsewhere.push(OTHER)
    assert "push: pins: renewed 4 paths" in ran.log
    assert "incomplete" not in ran.log
    assert {key for key in keys_of(*ALL) if days(server)[key]} == set()


def test_a_pin_whose_top_is_gone_is_told(elsewhere: Machine) -> None:
    del elsewhere.server.objects[narinfo_key(TOP)]
    ran = elsewhere.push(OTHER)
    assert f"release is incomplete: {TOP.path}: the cache does not have it" in ran.log


def test_what_none_of_the_caches_keys_has_signed_is_not_renewed(elsewhere: Machine) -> None:
    """Whoever writes to the bucket may name anything in a pin."""
    server, mallory = elsewhere.server, SecretKey.generate(KEY.name)
    text = server.objects[narinfo_key(TOOL)].content.decode()
    narinfo = NarInfo.parse(text)
    forged = replace(narinfo, signatures=(mallory.sign(narinfo.fingerprint),))
    server.put(narinfo_key(TOOL), forged.format().encode(), days_old=1)
    ran = elsewhere.push(OTHER)
    assert f"release is incomplete: {TOOL.path}: its narinfo is broken, or no key" in ran.log
    assert days(server)[narinfo_key(TOOL)] == 1
    assert NarInfo.parse(server.objects[narinfo_key(TOOL)].content.decode()) == forged


def test_a_rotated_keys_signatures_count_while_clients_trust_it(elsewhere: Machine) -> None:
    new = SecretKey.generate("cache.test-2").to_nix()
    assert "incomplete" in elsewhere.push(OTHER, signing_key=new).log
    ran = elsewhere.push(OTHER, signing_key=new, trusted_key=str(KEY.public_key))
    assert "pins: renewed 4 paths" in ran.log
    told = "push: settings: the signing key cache.test-2 is newer than all of trusted-key; give"
    assert ran.log.startswith(told), "a list that a rotation has left behind stops nothing"


def test_one_object_that_is_refused_keeps_no_other_back(elsewhere: Machine) -> None:
    refused = narinfo_key(LIBC)

    def denied(seen: object) -> object:
        return error(403, "AccessDenied") if getattr(seen, "key", "") == refused else None

    elsewhere.server.script = denied  # type: ignore[assignment]
    ran = elsewhere.push(OTHER)
    assert ran.code == 1
    assert "push: so far: pushed 0 paths (0 B), reused 1, " in ran.log
    assert f"push: not renewed: {LIBC.path}\n" in ran.log
    assert f"push: renew: pin release: GET cache/{refused}: HTTP 403" in ran.log
    assert "incomplete" not in ran.log
    assert {key for key in keys_of(SHELL, TOOL) if days(elsewhere.server)[key]} == set()


READ, NAR, NARINFO = "GET", "nar", "narinfo"


def refuse(server: StandIn, path: StorePath, what: str) -> None:
    """Refuse to have one object read or copied."""

    def denied(seen: Seen) -> Reply | None:
        key = nar_of(path) if what == NAR else narinfo_key(path)
        method = "GET" if what == READ else "PUT"
        return error(403, "AccessDenied") if (seen.method, seen.key) == (method, key) else None

    server.script = denied


@pytest.mark.parametrize("what", [READ, NAR, NARINFO])
@pytest.mark.parametrize("path", [LIBC, SHELL], ids=["libc", "shell"])
def test_what_one_push_could_not_renew_the_next_one_of_the_day_does(
    elsewhere: Machine, what: str, path: StorePath
) -> None:
    server = elsewhere.server
    pin(elsewhere, "tool", TOOL)
    refuse(server, path, what)
    assert elsewhere.push(OTHER).code == 1
    assert elsewhere.push(OTHER).code == 1
    server.script = lambda _: None
    assert elsewhere.push(OTHER).code == 0
    assert {key for key in keys_of(*ALL) if days(server)[key]} == set()
    server.seen.clear()
    assert elsewhere.push(OTHER).code == 0
    assert narinfo_key(LIBC) not in {seen.key for seen in server.seen}


def test_what_a_push_could_not_push_keeps_the_top_of_a_pin_back(elsewhere: Machine) -> None:
    server = elsewhere.server
    elsewhere.has(LIBC)
    refuse(server, LIBC, NARINFO)
    assert elsewhere.push(LIBC).code == 1
    elsewhere.nix.paths = {OTHER.path: OTHER}
    server.script = lambda _: None
    assert elsewhere.push(OTHER).code == 0
    assert {key for key in keys_of(*ALL) if days(server)[key]} == set()


AT_MIDNIGHT = {
    "first read": ("GET", narinfo_key(TOP)),
    "a NAR": ("PUT", nar_of(TOOL)),
    "a reference": ("PUT", narinfo_key(LIBC)),
    "the top": ("PUT", narinfo_key(TOP)),
}


def strike_midnight(server: StandIn, method: str, key: str) -> None:
    """Have midnight go by as a request is answered."""
    server.now = server.now.replace(hour=23, minute=59, second=59)

    def strike(seen: Seen) -> None:
        if (seen.method, seen.key) == (method, key):
            server.script = lambda _: None
            server.now += timedelta(seconds=2)

    server.script = strike


def dates(server: StandIn, *paths: StorePath) -> set[date]:
    """Return on which days paths were written."""
    return {server.objects[key].modified.date() for key in keys_of(*paths)}


@pytest.mark.parametrize("when", AT_MIDNIGHT.values(), ids=AT_MIDNIGHT)
@pytest.mark.parametrize("own", [(), (LIBC,)], ids=["none", "libc"])
def test_a_pin_is_renewed_on_one_day_wherever_midnight_goes_by(
    elsewhere: Machine, when: tuple[str, str], own: tuple[StorePath, ...]
) -> None:
    server = elsewhere.server
    elsewhere.has(*own)
    strike_midnight(server, *when)
    assert elsewhere.push(OTHER, *own).code == 0
    assert dates(server, OTHER, *ALL) == {server.now.date()}


def test_midnight_in_a_walk_that_fails_leaves_the_top_to_the_next_push(elsewhere: Machine) -> None:
    server = elsewhere.server
    refuse(server, SHELL, NAR)
    refused = server.script
    strike_midnight(server, "PUT", narinfo_key(LIBC))
    midnight = server.script

    def both(seen: Seen) -> Reply | Raw | None:
        midnight(seen)
        server.script = both
        return refused(seen)

    server.script = both
    assert elsewhere.push(OTHER).code == 1
    server.script = lambda _: None
    assert elsewhere.push(OTHER).code == 0
    assert dates(server, *ALL) == {server.now.date()}


def test_a_clock_that_runs_away_costs_rounds_and_no_more(elsewhere: Machine) -> None:
    server = elsewhere.server

    def run(_: Seen) -> None:
        server.now += timedelta(days=1)

    server.script = run
    assert elsewhere.push(OTHER).code == 0
    assert len(server.seen) < 200


def test_what_is_never_renewed_does_not_cost_the_whole_pin(elsewhere: Machine) -> None:
    server = elsewhere.server
    refuse(server, LIBC, NAR)
    for _ in range(4):
        assert elsewhere.push(OTHER).code == 1
        assert days(server)[narinfo_key(TOP)] <= 1
        server.now += timedelta(days=1)


@pytest.mark.parametrize("days_old", [0, 1])
def test_two_narinfos_that_refer_to_each_other_are_told_and_keep_nothing_back(
    elsewhere: Machine, days_old: int
) -> None:
    """The key's own signatures, over builds that do not fit together: nobody can mend that."""
    server = elsewhere.server
    narinfo = NarInfo.parse(server.objects[narinfo_key(LIBC)].content.decode())
    circular = replace(narinfo, references=(TOOL.base_name,))
    signed = replace(circular, signatures=(KEY.sign(circular.fingerprint),))
    server.put(narinfo_key(LIBC), signed.format().encode(), days_old=days_old)
    ran = elsewhere.push(OTHER)
    assert ran.counts() == (0, 1, 0, 1, 0)
    first = min(LIBC.path, TOOL.path)
    why = "it and what it refers to refer to one another (and 1 more)"
    assert f"push: pins: release is incomplete: {first}: {why}; push it" in ran.log
    assert {key for key in keys_of(SHELL, TOOL, TOP) if days(server)[key]} == set()


def test_what_goes_while_it_is_renewed_is_not_called_renewed(elsewhere: Machine) -> None:
    at_copy(elsewhere.server, TOOL, lambda: elsewhere.server.objects.pop(narinfo_key(TOOL)))
    ran = elsewhere.push(OTHER)
    assert "push: pins: renewed 3 paths that this machine does not have\n" in ran.log
    assert f"release is incomplete: {TOOL.path}: the cache does not have it; push it" in ran.log


def at_copy(server: StandIn, path: StorePath, meddle: Callable[[], object]) -> None:
    """Have something happen just before a narinfo is copied."""

    def meddled(seen: Seen) -> None:
        if seen.key == narinfo_key(path) and "x-amz-copy-source" in seen.headers:
            server.script = lambda _: None
            meddle()

    server.script = meddled


def test_what_another_push_renews_meanwhile_is_not_called_renewed(elsewhere: Machine) -> None:
    server, key = elsewhere.server, narinfo_key(TOOL)
    content = server.objects[key].content + b"Mood: fine\n"
    at_copy(server, TOOL, lambda: server.put(key, content))
    ran = elsewhere.push(OTHER)
    assert ran.counts() == (0, 1, 0, 1, 0)
    assert "push: pins: renewed 3 paths that this machine does not have\n" in ran.log
    assert server.objects[key].content == content


def test_what_changes_while_it_is_renewed_and_stays_old_fails_the_push(elsewhere: Machine) -> None:
    server, key = elsewhere.server, narinfo_key(TOOL)
    content = server.objects[key].content + b"Mood: fine\n"
    at_copy(server, TOOL, lambda: server.put(key, content, days_old=1))
    ran = elsewhere.push(OTHER)
    assert ran.code == 1
    assert f"push: renew: pin release: {key} has changed meanwhile; push again\n" in ran.log
    assert elsewhere.push(OTHER).code == 0
    assert {key for key in keys_of(*ALL) if days(server)[key]} == set()


def test_what_is_spoilt_while_it_is_renewed_is_told(elsewhere: Machine) -> None:
    at_copy(elsewhere.server, TOOL, lambda: elsewhere.server.put(narinfo_key(TOOL), b"spoilt"))
    ran = elsewhere.push(OTHER)
    assert f"release is incomplete: {TOOL.path}: its narinfo is broken, or no key" in ran.log


@pytest.mark.parametrize("status", [404, 412])
def test_a_server_that_does_not_know_its_own_etags_keeps_pins_all_the_same(
    elsewhere: Machine, status: int
) -> None:
    server = elsewhere.server
    before = contents(server)
    server.script = lambda seen: (
        error(status, "Refused") if "x-amz-copy-source-if-match" in seen.headers else None
    )
    assert "push: pins: renewed 4 paths" in elsewhere.push(OTHER).log
    assert {key for key in keys_of(*ALL) if days(server)[key]} == set()
    assert contents(server) == before


def test_pins_beyond_a_page_are_told(elsewhere: Machine) -> None:
    for number in range(1000):
        pin(elsewhere, f"p{number:04}", OTHER)
    ran = elsewhere.push(OTHER)
    assert "push: pins: there are more than can be listed at once; only the first 1000" in ran.log


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"/nix/store/x\n", b"\xff\n", b"/etc/passwd\n", b"a" * 70_000]
)
def test_a_pin_that_is_none_is_told_and_holds_up_nothing(
    elsewhere: Machine, content: bytes
) -> None:
    elsewhere.server.put(pin_key("evil"), content)
    elsewhere.server.put(pin_key("Not a name"), content)
    pin(elsewhere, "nobody-has-told")
    ran = elsewhere.push(OTHER)
    assert "push: pins: evil cannot be read: " in ran.log
    assert "Not a name" not in ran.log
    assert "nobody" not in ran.log
    assert "pins: renewed 4 paths" in ran.log


def test_a_pin_is_store_paths_one_a_line() -> None:
    paths = [TOP.path, OTHER.path]
    assert parse_pin(format_pin(paths).encode()) == tuple(paths)
    assert parse_pin(format_pin([]).encode()) == ()
    many = [store_path(f"p{number}", 1).path for number in range(MOST_TARGETS)]
    assert parse_pin(format_pin(many).encode()) == tuple(many)


def test_a_day_of_builds_looks_for_pins_once(
    elsewhere: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    lines.write_text(f"{OTHER.path}\n")
    with lines.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        ran = elsewhere.push(options=["--stdin"])
    assert ran.output == f"{OTHER.path}\n"
    assert "pins: renewed 4 paths" in ran.log
