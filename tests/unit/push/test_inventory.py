"""What the bucket has: what is believed of a narinfo, a listing, a single answer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.compression import READABLE
from formats.keys import PublicKey
from formats.narinfo import NarInfo
from formats.nix32 import NIX32_ALPHABET, nix32_encode
from formats.signing import SecretKey
from push.failure import PushError
from push.inventory import (
    FirstLook,
    Held,
    Inventory,
    Look,
    Missing,
    Present,
    facts,
    largest_narinfo,
    narinfo_key,
    parsed,
    signed_anew,
    signed_by,
    verify_key,
)
from push.memory import Memory, RememberedNarInfo
from push.store import StorePath
from tests.unit.push.client import SIGNING_KEY, Client
from tests.unit.push.paths import store_path
from tests.unit.push.s3_stand_in import NOW, Raw, Reply, Script, Seen, StandIn, Stored, listing, xml

KEY = SecretKey.parse(SIGNING_KEY)
TODAY = "2026-11-26"
LIBRARY = store_path("library")
TOOL = store_path("tool", 2000, LIBRARY, itself=True)
CLOSURE = [LIBRARY, TOOL]


def narinfo_of(path: StorePath, *, key: SecretKey = KEY, **changes: object) -> NarInfo:
    """Return the narinfo that a push writes, changed, and signed after that."""
    digest = nix32_encode(hashlib.sha256(path.path.encode()).digest())
    made = path.narinfo(
        f"nar/{digest}.nar.zst", "zstd", file_hash=f"sha256:{digest}", file_size=100
    )
    changed = replace(made, **changes)  # type: ignore[arg-type]
    return replace(changed, signatures=(*changed.signatures, key.sign(changed.fingerprint)))


def content_of(narinfo: NarInfo) -> bytes:
    return narinfo.format().encode()


class Bench:
    """A look at a bucket of the stand-in."""

    def __init__(self, server: StandIn, client: Client, memory: Memory | None = None) -> None:
        self.server = server
        self.client = client
        self.memory = memory or Memory(None)
        self.keys = [KEY.public_key]

    def has(self, *narinfos: NarInfo, days_old: int = 0) -> None:
        """Put narinfos and their NARs into the bucket."""
        for narinfo in narinfos:
            key = f"{narinfo.store_path[11:43]}.narinfo"
            self.server.put(key, content_of(narinfo), days_old=days_old)
            self.server.put(narinfo.url, b"", days_old=days_old, size=narinfo.file_size)

    def look(self, closure: Sequence[StorePath] = CLOSURE) -> Inventory:
        """Look at the bucket as a session does."""
        look = Look(self.client.bucket, self.memory, self.keys, closure)
        narinfos, nars = FirstLook(self.client.bucket).listings()
        present, contents = look.present_narinfos(closure, narinfos)
        signatures = {path.path: KEY.sign(path.fingerprint) for path in closure}
        held, missing = look.judge(closure, present, contents, signatures)
        return look.locate_nars(held, missing, nars)


@pytest.fixture
def bench(server: StandIn, client: Client) -> Bench:
    """A look at an empty bucket."""
    return Bench(server, client)


def reasons(inventory: Inventory) -> dict[str, str]:
    return {one.path.path: one.reason for one in inventory.missing}


# Narinfos of a bucket.


def test_what_a_push_wrote_is_whole(bench: Bench) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    inventory = bench.look()
    assert inventory.missing == []
    assert [one.path for one in inventory.held] == CLOSURE
    for one in inventory.held:
        assert (one.ours, one.content, one.nar_day, one.narinfo_day) == (True, None, TODAY, TODAY)
        assert one.nar_size == 100
        assert one.narinfo_etag == bench.server.objects[narinfo_key(one.path)].etag
        assert set(one.needs) == set(one.path.references)
    assert inventory.nars.keys() == {one.nar for one in inventory.held}


def test_an_empty_bucket_lacks_everything(bench: Bench) -> None:
    assert reasons(bench.look()) == {path.path: "absent" for path in CLOSURE}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff",
        content_of(narinfo_of(LIBRARY))[:-1],
        content_of(narinfo_of(LIBRARY)).replace(b"\n", b"\r\n"),
        content_of(narinfo_of(LIBRARY)) + b"NarHash: sha256:" + b"1" * 52 + b"\n",
        content_of(narinfo_of(LIBRARY)) + b"URL:_nar/evil.nar\n",
        content_of(narinfo_of(LIBRARY)) + b"Sig: cache.test-1:!!!\n",
        content_of(narinfo_of(TOOL)),
        content_of(narinfo_of(LIBRARY, file_size=None)),
        content_of(narinfo_of(LIBRARY, url="nar/../x.nar.zst")),
        content_of(narinfo_of(LIBRARY, url="https://evil.example/x.nar.zst")),
        content_of(narinfo_of(LIBRARY, url="x.nar.zst")),
        content_of(narinfo_of(LIBRARY, url="nar/x.nar.xz")),
        content_of(narinfo_of(LIBRARY, url="nar/x.nar", compression="xz")),
        content_of(narinfo_of(LIBRARY, url="nar/x.nar.zst", compression="none")),
        content_of(narinfo_of(LIBRARY, content_address=f"fixed:r:sha256:{'1' * 52}")),
        content_of(narinfo_of(LIBRARY, content_address=f"text:sha256:{'1' * 52}")),
        content_of(
            narinfo_of(LIBRARY, nar_size=1001, content_address=f"fixed:r:sha256:{'1' * 52}")
        ),
        content_of(narinfo_of(LIBRARY, file_hash=f"sha256:{'1' * 52}")),
        *(
            content_of(narinfo_of(LIBRARY, compression=name))
            for name in sorted(READABLE - {"zstd"})
        ),
        content_of(narinfo_of(LIBRARY)).replace(b"Compression: zstd\n", b""),
        content_of(narinfo_of(LIBRARY)).replace(b"Compression: zstd\n", b"Compression: \n"),
        content_of(narinfo_of(LIBRARY, nar_size=1001, key=SecretKey.generate("cache.test-1"))),
        content_of(narinfo_of(LIBRARY, nar_size=1001, key=SecretKey.generate("other-1"))),
        content_of(narinfo_of(LIBRARY, references=(f"{'0' * 32}-gone",))),
        content_of(narinfo_of(LIBRARY, references=(TOOL.base_name,))),
    ],
)
def test_what_is_not_what_a_push_writes_is_broken(bench: Bench, content: bytes) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    bench.server.put(narinfo_key(LIBRARY), content)
    inventory = bench.look()
    assert reasons(inventory) == {LIBRARY.path: "broken"}
    assert [one.path for one in inventory.held] == [TOOL]


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"url": "nar/x.nar", "compression": "none"}, True),
        ({"url": "nar/x.nar.xz", "compression": "xz"}, True),
        ({"url": "nar/x.nar.bz2", "compression": "bzip2"}, True),
        ({"url": "nar/x.nar.br", "compression": "br"}, True),
        ({"url": "nar/x.nar.lz4", "compression": "lz4"}, True),
        ({"url": "nar/x.nar.lzip", "compression": "lzip"}, True),
        ({"url": "nar/x.nar", "compression": "gzip"}, True),
        ({"url": "nar/x.nar.gz", "compression": "gzip"}, True),
        ({"url": "nar/x.nar.lzo", "compression": "lzop"}, True),
        ({"url": "nar/x.nar.xz", "compression": "gzip"}, False),
        ({"url": "nar/x.nar.lz4", "compression": "br"}, False),
        ({"url": "nar/x.nar", "compression": "br"}, False),
        ({"url": "nar/x.nar", "compression": "bzip2"}, False),
        ({"url": "nar/x.y", "compression": "br"}, False),
        ({"url": f"nar/{'1' * 52}.nar.zst"}, False),
        ({"url": f"nar/{'1' * 52}.nar.zst", "file_hash": None}, True),
        ({"url": f"nar/{'0' * 64}.nar.zst", "file_hash": f"sha256:{'0' * 52}"}, True),
        ({"url": f"nar/{LIBRARY.nar_hash.removeprefix('sha256:')}.nar.zst"}, True),
        ({"store_path": TOOL.path}, False),
        ({"file_size": None}, False),
        ({"url": "nar/../x.nar.zst"}, False),
        ({"url": "nar/../x", "compression": "br"}, False),
        ({"url": "x.nar.zst"}, False),
        ({"url": "https://evil.example/nar/x.nar.zst"}, False),
        ({"url": "nar/x.nar.xz"}, False),
        ({"url": "nar/x.nar"}, False),
        ({"url": "nar/x.zst"}, False),
        ({"url": "nar/x.nar.zst", "compression": "none"}, False),
    ],
)
def test_a_narinfo_is_of_its_path_and_leads_to_a_nar_of_its_compression(
    changes: dict[str, Any], fits: bool
) -> None:
    """Whether there is such a NAR in the bucket is another question."""
    assert (parsed(LIBRARY.path, content_of(narinfo_of(LIBRARY, **changes))) is not None) is fits


def test_one_nar_of_two_paths_is_at_least_one_of_them_without(bench: Bench) -> None:
    """What is remembered counts as it counts for itself."""
    library, tool = narinfo_of(LIBRARY), narinfo_of(TOOL)
    bench.has(library, tool)
    bench.has(replace(library, url=tool.url, file_hash=tool.file_hash))
    assert reasons(bench.look()) == {path.path: "broken" for path in CLOSURE}
    bench.memory = remembering(TOOL)
    assert reasons(bench.look()) == {path.path: "broken" for path in CLOSURE}


def test_two_paths_of_one_content_have_one_nar(bench: Bench) -> None:
    twin = replace(store_path("twin"), nar_hash=LIBRARY.nar_hash)
    library = narinfo_of(LIBRARY)
    bench.has(library, narinfo_of(twin, url=library.url, file_hash=library.file_hash))
    assert bench.look([LIBRARY, twin]).missing == []


def test_a_content_address_may_be_left_out(bench: Bench) -> None:
    """What a client verifies then is the signature."""
    known = replace(LIBRARY, content_address=f"fixed:r:sha256:{'1' * 52}")
    bench.has(narinfo_of(LIBRARY))
    assert bench.look([known]).missing == []
    bench.has(narinfo_of(known))
    assert bench.look([known]).missing == []


def test_a_field_that_is_not_known_decides_nothing(bench: Bench) -> None:
    """A newer Nix may write one, and more than once."""
    bench.has(*map(narinfo_of, CLOSURE))
    content = content_of(narinfo_of(LIBRARY)) + b"Mood: fine\nMood: better\n"
    bench.server.put(narinfo_key(LIBRARY), content)
    inventory = bench.look()
    assert inventory.missing == []
    assert inventory.held[0].content is None


@pytest.mark.parametrize(
    "signatures",
    [
        (),
        ("other-1:" + KEY.sign("x").partition(":")[2],),
        (KEY.sign("another text"),),
        (KEY.sign("another text"), KEY.sign(LIBRARY.fingerprint)),
        (SecretKey.generate("cache.test-1").sign(LIBRARY.fingerprint),),
    ],
    ids=["none", "another name", "over something else", "a wrong one too", "another key"],
)
def test_a_narinfo_without_our_signature_alone_gets_it(
    bench: Bench, signatures: tuple[str, ...]
) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    changed = replace(narinfo_of(LIBRARY), signatures=signatures)
    bench.has(changed)
    inventory = bench.look()
    assert inventory.missing == []
    (content,) = [one.content for one in inventory.held if one.content is not None]
    new = NarInfo.parse(content.decode())
    kept = [one for one in signatures if one.startswith("other-1:")]
    assert list(new.signatures) == [*kept, KEY.sign(LIBRARY.fingerprint)]
    assert replace(new, signatures=()) == replace(changed, signatures=())


def test_a_signature_is_made_over_what_the_store_says() -> None:
    """Of the bucket's narinfo, only where the NAR lies is kept."""
    hostile = replace(
        narinfo_of(LIBRARY),
        deriver=f"{'1' * 32}-evil.drv",
        content_address=f"text:sha256:{'1' * 52}",
        signatures=tuple(f"k{number}-1:{'A' * 86}==" for number in range(40)),
    )
    new = NarInfo.parse(
        signed_anew(LIBRARY, hostile, KEY.sign(LIBRARY.fingerprint), [KEY.public_key]).decode()
    )
    assert (new.deriver, new.content_address) == (None, None)
    assert (new.url, new.file_size) == (hostile.url, 100)
    assert len(new.signatures) == 17
    assert new.signatures[-1] == KEY.sign(LIBRARY.fingerprint)
    assert new.fingerprint == LIBRARY.fingerprint


def signed_by_many(*signatures: str) -> NarInfo:
    return replace(narinfo_of(LIBRARY), signatures=signatures)


def test_signatures_by_the_caches_keys_are_kept_and_then_the_newest() -> None:
    """A retired key's stay for ever, and whoever may push may add any number."""
    caches = [SecretKey.generate(f"cache.test-{number}") for number in range(2, 5)]
    good = [key.sign(LIBRARY.fingerprint) for key in caches]
    forged = [key.sign("something else") for key in caches]
    others = [f"k{number}-1:{'A' * 86}==" for number in range(40)]
    there = signed_by_many(good[0], *forged, *others[:20], good[1], *others[20:])
    ours = KEY.sign(LIBRARY.fingerprint)
    keys = [*(key.public_key for key in caches), KEY.public_key]
    new = NarInfo.parse(signed_anew(LIBRARY, there, ours, keys).decode())
    assert list(new.signatures) == [good[0], good[1], *others[26:], ours]
    # Who trusts none of them has no reason to keep them.
    new = NarInfo.parse(signed_anew(LIBRARY, there, ours, keys[-1:]).decode())
    assert list(new.signatures) == [*others[24:], ours]


def test_so_many_keys_as_a_cache_has_do_not_take_turns() -> None:
    keys = [SecretKey.generate(f"s3.homelab.local-{number}") for number in range(30)]
    trusted = [key.public_key for key in keys]
    narinfo = signed_by_many()
    for key in [*keys, *keys[-2:]]:
        others = [one for one in trusted if one != key.public_key]
        signature = key.sign(LIBRARY.fingerprint)
        content = signed_anew(LIBRARY, narinfo, signature, [*others, key.public_key])
        narinfo = NarInfo.parse(content.decode())
    assert all(signed_by(narinfo, key) for key in trusted)
    assert len(narinfo.signatures) == 30


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9)), max_size=60))
def test_no_narinfo_is_written_that_a_push_would_not_read(names: list[tuple[int, int]]) -> None:
    signatures = [f"{'k' * length}{number}:{'A' * 86}==" for length, number in names]
    ours = KEY.sign(TOOL.fingerprint)
    narinfo = replace(narinfo_of(TOOL), signatures=tuple(signatures))
    content = signed_anew(TOOL, narinfo, ours, [KEY.public_key])
    assert len(content) <= largest_narinfo(TOOL)
    assert NarInfo.parse(content.decode()).signatures[-1] == ours


def test_what_another_of_the_caches_keys_has_signed_is_whole_and_left_as_it_is(
    bench: Bench,
) -> None:
    """Builds are not always reproducible, and builders may have keys of their own."""
    other = SecretKey.generate("cache.test-2")
    made: dict[str, Any] = {"nar_hash": f"sha256:{'1' * 52}", "references": (LIBRARY.base_name,)}
    bench.has(narinfo_of(LIBRARY), narinfo_of(TOOL, key=other, **made))
    assert reasons(bench.look()) == {TOOL.path: "broken"}
    bench.keys = [other.public_key, KEY.public_key]
    inventory = bench.look()
    assert inventory.missing == []
    (held,) = [one for one in inventory.held if not one.ours]
    assert (held.path, held.content, held.needs) == (TOOL, None, (LIBRARY.base_name,))
    bench.has(narinfo_of(TOOL, key=SecretKey.generate("cache.test-2"), **made))
    assert reasons(bench.look()) == {TOOL.path: "broken"}


def test_what_another_builder_with_the_same_key_made_is_whole(bench: Bench) -> None:
    bench.has(narinfo_of(LIBRARY))
    bench.has(narinfo_of(TOOL, nar_hash=f"sha256:{'1' * 52}", references=(LIBRARY.base_name,)))
    inventory = bench.look()
    assert inventory.missing == []
    assert {one.path: one.ours for one in inventory.held} == {LIBRARY: True, TOOL: False}
    (other,) = [one for one in inventory.held if not one.ours]
    assert other.needs == (LIBRARY.base_name,)
    assert other.content is None


def test_two_narinfos_that_refer_to_each_other_are_not_both_believed(bench: Bench) -> None:
    """Whoever has two old ones of ours may put them back; no store has such a circle."""
    bench.has(
        narinfo_of(LIBRARY, nar_size=7, references=(TOOL.base_name,)),
        narinfo_of(TOOL, nar_size=7, references=(LIBRARY.base_name,)),
    )
    inventory = bench.look()
    assert reasons(inventory) == {LIBRARY.path: "broken"}


@pytest.mark.parametrize("size", [None, 99, 101])
def test_a_nar_that_is_gone_or_of_another_size_is_broken(bench: Bench, size: int | None) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    url = narinfo_of(TOOL).url
    if size is None:
        del bench.server.objects[url]
    else:
        bench.server.put(url, b"", size=size)
    assert reasons(bench.look()) == {TOOL.path: "broken"}


def test_how_old_a_nar_is_nobody_knows_before_it_is_located(bench: Bench) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    bench.memory = remembering(TOOL)
    look = Look(bench.client.bucket, bench.memory, bench.keys, CLOSURE)
    present, contents = look.present_narinfos(CLOSURE, FirstLook(bench.client.bucket).listings()[0])
    held, missing = look.judge(CLOSURE, present, contents, {})
    assert missing == []
    assert {one.path: one.nar_day for one in held} == {LIBRARY: "", TOOL: ""}


def test_days_are_those_of_the_bucket(bench: Bench) -> None:
    bench.has(narinfo_of(LIBRARY), days_old=3)
    bench.has(narinfo_of(TOOL))
    bench.server.put(narinfo_key(TOOL), content_of(narinfo_of(TOOL)), days_old=1)
    days = {one.path.path: (one.nar_day, one.narinfo_day) for one in bench.look().held}
    assert days == {LIBRARY.path: ("2026-11-23",) * 2, TOOL.path: (TODAY, "2026-11-25")}


def test_a_narinfo_that_would_only_fill_memory_is_not_read(bench: Bench) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    limit = largest_narinfo(TOOL)
    padding = b"X: " + b"x" * (limit - len(content_of(narinfo_of(TOOL))) - 4) + b"\n"
    bench.server.put(narinfo_key(TOOL), content_of(narinfo_of(TOOL)) + padding)
    assert len(bench.server.objects[narinfo_key(TOOL)].content) == limit
    assert bench.look().missing == []
    bench.server.put(narinfo_key(TOOL), content_of(narinfo_of(TOOL)) + padding + b"Y: y\n")
    before = len(bench.server.seen)
    assert reasons(bench.look()) == {TOOL.path: "broken"}
    assert narinfo_key(TOOL) not in {seen.key for seen in bench.server.seen[before:]}


def test_there_is_room_for_every_narinfo_that_a_push_writes() -> None:
    """Of the same path, another builder's may refer to twice as much."""
    assert largest_narinfo(TOOL) == 8192 + 2 * len(f"{TOOL.base_name} {LIBRARY.base_name} ")
    many = [store_path(f"p{number}") for number in range(300)]
    path = store_path("top", 10**12, *many)
    others = tuple(f"{'k' * 40}-1:{'A' * 86}==" for _ in range(17))
    assert len(content_of(narinfo_of(path, signatures=others))) < largest_narinfo(path)


# Memory.


def remembering(path: StorePath, **changes: object) -> Memory:
    memory = Memory(None)
    narinfo = narinfo_of(path)
    memory.narinfos[narinfo_key(path)] = replace(
        RememberedNarInfo(
            hashlib.md5(content_of(narinfo)).hexdigest(),
            facts(path, KEY.public_key),
            narinfo.url,
            100,
        ),
        **changes,  # type: ignore[arg-type]
    )
    return memory


def test_a_remembered_narinfo_is_not_read(server: StandIn, client: Client) -> None:
    bench = Bench(server, client, remembering(TOOL))
    bench.has(*map(narinfo_of, CLOSURE))
    inventory = bench.look()
    assert inventory.missing == []
    assert narinfo_key(TOOL) not in {seen.key for seen in server.seen}
    assert narinfo_key(LIBRARY) in {seen.key for seen in server.seen}
    held = next(one for one in inventory.held if one.path == TOOL)
    etag = hashlib.md5(content_of(narinfo_of(TOOL))).hexdigest()
    assert held == Held(
        TOOL, narinfo_of(TOOL).url, 100, TODAY, etag, TODAY, None, TOOL.references, ours=True
    )


@pytest.mark.parametrize("change", [{"etag": "other"}, {"facts": "other"}])
def test_a_memory_of_something_else_counts_for_nothing(
    server: StandIn, client: Client, change: dict[str, str]
) -> None:
    bench = Bench(server, client, remembering(TOOL, **change))
    bench.has(*map(narinfo_of, CLOSURE))
    assert bench.look().missing == []
    assert narinfo_key(TOOL) in {seen.key for seen in server.seen}


def test_a_narinfo_that_is_replaced_once_it_is_listed_is_the_one_that_was_read(
    bench: Bench,
) -> None:
    """The ETag is that of the content: paired with another, memory would be wrong about it."""
    bench.has(*map(narinfo_of, CLOSURE), days_old=3)
    key, new = narinfo_key(TOOL), narinfo_of(TOOL, url="nar/x.nar.xz", compression="xz")

    def replaced(seen: Seen) -> None:
        if seen.method == "GET" and seen.key == key:
            bench.has(new)

    bench.server.script = replaced
    bench.server.put(new.url, b"", size=new.file_size)
    inventory = bench.look()
    assert inventory.missing == []
    held = {one.path: one for one in inventory.held}
    assert held[TOOL].nar == new.url
    assert held[TOOL].narinfo_etag == hashlib.md5(content_of(new)).hexdigest()
    assert (held[TOOL].narinfo_day, held[LIBRARY].narinfo_day) == (TODAY, "2026-11-23")


def test_a_narinfo_that_was_read_without_an_etag_is_not_remembered(bench: Bench) -> None:
    """What the listing says may be of another one."""
    bench.has(*map(narinfo_of, CLOSURE))
    content = content_of(narinfo_of(TOOL))
    bench.server.script = lambda seen: (
        Reply(200, {}, content) if seen.key == narinfo_key(TOOL) else None
    )
    held = {one.path: one for one in bench.look().held}
    assert held[TOOL].narinfo_etag is None
    assert held[LIBRARY].narinfo_etag is not None


def test_facts_are_of_what_is_signed_and_of_the_key() -> None:
    others = [
        facts(replace(TOOL, nar_size=1), KEY.public_key),
        facts(replace(TOOL, nar_hash=f"sha256:{'1' * 52}"), KEY.public_key),
        facts(replace(TOOL, references=()), KEY.public_key),
        facts(LIBRARY, KEY.public_key),
        facts(replace(TOOL, content_address=f"fixed:r:sha256:{'1' * 52}"), KEY.public_key),
        facts(TOOL, PublicKey("cache.test-2", KEY.public_key.data)),
        facts(TOOL, PublicKey("cache.test-1", bytes(32))),
    ]
    assert len({facts(TOOL, KEY.public_key), *others}) == 8
    assert facts(replace(TOOL, deriver="x"), KEY.public_key) == facts(TOOL, KEY.public_key)


# Signatures.


@pytest.mark.parametrize(
    ("signatures", "good"),
    [
        ((), False),
        ((KEY.sign(TOOL.fingerprint),), True),
        ((KEY.sign("x"), KEY.sign(TOOL.fingerprint)), True),
        ((KEY.sign("x"), KEY.sign("y"), KEY.sign(TOOL.fingerprint)), False),
        (("other-1:" + KEY.sign(TOOL.fingerprint).partition(":")[2],), False),
        (("cache.test-1:!!",), False),
        (("cache.test-1:AAAA",), False),
        ((KEY.sign(TOOL.fingerprint).replace("=", " ="),), False),
        (("cache.test-1:" + base64.b64encode(bytes(64)).decode(),), False),
    ],
)
def test_a_signature_is_verified_and_not_recognised(
    signatures: tuple[str, ...], good: bool
) -> None:
    narinfo = replace(narinfo_of(TOOL), signatures=signatures)
    assert signed_by(narinfo, KEY.public_key) is good
    assert signed_by(narinfo, KEY.public_key, 3) is (good or len(signatures) == 3)


def test_a_key_whose_halves_do_not_belong_together_is_found_by_what_it_signs() -> None:
    verify_key(narinfo_of(TOOL), KEY.public_key)
    with pytest.raises(PushError) as refused:
        verify_key(narinfo_of(TOOL), PublicKey(KEY.name, bytes(32)))
    assert str(refused.value) == (
        "sign: the two halves of the signing key do not belong together; set it to what nix key "
        "generate-secret wrote"
    )


@given(st.binary(max_size=300), st.integers(0, 500), st.integers(0, 20))
def test_no_change_of_a_narinfo_is_believed_to_say_something_else(
    inserted: bytes, start: int, removed: int
) -> None:
    content = content_of(narinfo_of(TOOL))
    narinfo = parsed(TOOL.path, content[:start] + inserted + content[start + removed :])
    if narinfo is None:
        return
    assert narinfo.store_path == TOOL.path
    if narinfo.fingerprint != TOOL.fingerprint:
        assert not signed_by(narinfo, KEY.public_key)


# Listings that lie.


def keys_of(count: int) -> Iterator[str]:
    for number in range(count):
        digest = hashlib.sha256(b"%d" % number).digest()
        yield f"nar/{nix32_encode(digest)}.nar.zst"


def stored(size: int = 100, etag: str = "etag") -> Stored:
    return Stored(b"", etag, NOW, size)


def lying(nars: Script) -> Script:
    """Answer the listings of NARs by a script, and all else well."""

    def script(seen: Seen) -> Reply | Raw | None:
        is_listing = "list-type" in seen.query and seen.query.get("prefix") == "nar/"
        return nars(seen) if is_listing else None

    return script


def test_a_large_bucket_is_listed_by_pages_side_by_side(bench: Bench) -> None:
    closure = [store_path(f"p{number}") for number in range(200)]
    bench.has(*map(narinfo_of, closure))
    for key in keys_of(3_500):
        bench.server.put(key, b"", size=1)
    inventory = bench.look(closure)
    assert len(inventory.held) == 200
    assert len(inventory.nars) == 3_700
    pages = [seen for seen in bench.server.seen if seen.query.get("prefix") == "nar/"]
    assert 4 <= len(pages) <= 9
    assert bench.server.asked("HEAD") == []


def test_of_a_larger_one_single_objects_are_asked_for(bench: Bench) -> None:
    """But for what the first page has."""
    bench.has(narinfo_of(LIBRARY, url="nar/0.nar.zst"), narinfo_of(TOOL))
    for key in keys_of(3_500):
        bench.server.put(key, b"", size=1)
    inventory = bench.look()
    assert inventory.missing == []
    assert {one.nar_day for one in inventory.held} == {TODAY}
    assert len([seen for seen in bench.server.seen if "list-type" in seen.query]) == 2
    assert [seen.key for seen in bench.server.asked("HEAD")] == [narinfo_of(TOOL).url]


def test_of_many_narinfos_those_remembered_are_only_looked_at(
    server: StandIn, client: Client
) -> None:
    memory = remembering(TOOL)
    memory.narinfos |= remembering(LIBRARY, etag="old").narinfos
    bench = Bench(server, client, memory)
    bench.has(*map(narinfo_of, CLOSURE))
    for number in range(3_500):
        digest = nix32_encode(hashlib.sha256(b"%d" % number).digest()[:20])
        server.put(f"{digest}.narinfo", b"x")
    absent = store_path("absent")
    gone = store_path("gone")
    memory.narinfos |= remembering(gone).narinfos
    unknown = store_path("unknown")
    bench.has(narinfo_of(unknown))
    inventory = bench.look([gone, absent, *CLOSURE, unknown])
    assert reasons(inventory) == {absent.path: "absent", gone.path: "absent"}
    assert {one.path for one in inventory.held} == {*CLOSURE, unknown}
    assert all(one.ours and one.content is None for one in inventory.held)
    asked = [(seen.method, seen.key) for seen in server.seen if seen.key.endswith(".narinfo")]
    assert sorted(asked) == sorted(
        [
            ("HEAD", narinfo_key(TOOL)),
            ("HEAD", narinfo_key(LIBRARY)),
            ("GET", narinfo_key(LIBRARY)),
            ("GET", narinfo_key(absent)),
            ("HEAD", narinfo_key(gone)),
            ("GET", narinfo_key(unknown)),
        ]
    )


@pytest.mark.parametrize(("closure", "last", "most"), [(200, "nar/17", 12), (2_000, "nar/0h", 132)])
def test_of_what_goes_on_for_longer_than_planned_single_objects_are_asked_for(
    bench: Bench, closure: int, last: str, most: int
) -> None:
    """Pages that cost twice as much as asking are enough, whether they would have ended or not."""
    paths = [store_path(f"p{number}") for number in range(closure)]
    bench.has(*map(narinfo_of, paths))

    def full(seen: Seen) -> Reply:
        after = seen.query.get("start-after")
        if after is not None:
            return listing([(f"{after}0", stored())], truncated=True)
        return listing([(last, stored())] * 1000, truncated=True)

    bench.server.script = lying(full)
    assert bench.look(paths).missing == []
    asked = [one for one in bench.server.seen if one.query.get("prefix") == "nar/"]
    assert 1 < len(asked) <= 1 + most
    assert len(bench.server.asked("HEAD")) == closure


def test_foreign_keys_at_the_root_end_no_push(bench: Bench) -> None:
    """They lie behind all narinfos, so that the first page tells nothing of how many there are."""
    paths = [store_path(f"p{number}") for number in range(100)]
    bench.has(*map(narinfo_of, paths))
    for number in range(9_000):
        bench.server.put(f"zzz{number:07}.csv", b"")
    inventory = bench.look(paths)
    assert inventory.missing == []
    assert inventory.root is None
    pages = [one for one in bench.server.seen if "list-type" in one.query]
    # Of NARs, one.
    assert len(pages) <= 8


@pytest.mark.parametrize("back", ["nar/1", "nar/0", "a", ""])
def test_a_listing_that_does_not_go_on_ends_the_push(bench: Bench, back: str) -> None:
    paths = [store_path(f"p{number}") for number in range(200)]
    bench.has(*map(narinfo_of, paths))

    def script(seen: Seen) -> Reply:
        last = back if "start-after" in seen.query else "nar/1"
        return listing([(last, stored())] * 1000, truncated=True)

    bench.server.script = lying(script)
    with pytest.raises(
        PushError, match=r"^list: the server's listing does not go on; see the server's log$"
    ):
        bench.look(paths)


def test_a_page_that_says_it_is_not_the_last_and_has_nothing_is_the_last(bench: Bench) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    bench.server.script = lying(lambda _: listing([], truncated=True))
    assert reasons(bench.look()) == {path.path: "broken" for path in CLOSURE}


@pytest.mark.parametrize("truncated", [False, True])
def test_later_pages_that_lack_what_they_should_have_cost_an_upload(
    bench: Bench, truncated: bool
) -> None:
    paths = [store_path(f"p{number}") for number in range(200)]
    bench.has(*map(narinfo_of, paths))

    def script(seen: Seen) -> Reply:
        if "start-after" in seen.query:
            return listing([], truncated=truncated)
        return listing([("nar/1", stored())] * 1000, truncated=True)

    bench.server.script = lying(script)
    assert set(reasons(bench.look(paths)).values()) == {"broken"}


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200),
        Reply(200, {}, b"<html></html>"),
        Reply(200, {}, b"x" * (9 << 20)),
        xml("Error", "<Code>AccessDenied</Code>"),
        Reply(200, {}, b'<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult>&a;</ListBucketResult>'),
    ],
)
def test_what_is_no_listing_ends_the_push(bench: Bench, reply: Reply) -> None:
    bench.server.script = lying(lambda _: reply)
    with pytest.raises(
        PushError,
        match=r"^list: the server's listing cannot be read: an answer .*; see that an S3 server "
        r"answers at endpoint$",
    ):
        bench.look()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "101"},
        {"Content-Length": ""},
        {"Content-Length": "100", "Last-Modified": "yesterday"},
        {"Content-Length": "100", "ETag": "a b"},
    ],
)
def test_an_answer_for_one_nar_that_lies_costs_no_more_than_writes(
    bench: Bench, headers: Mapping[str, str]
) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    bench.server.script = lambda seen: (
        Reply(200, headers)
        if seen.method == "HEAD"
        else listing([("nar/0", stored())], truncated=True)
        if seen.query.get("prefix") == "nar/"
        else None
    )
    inventory = bench.look()
    if headers["Content-Length"] != "100":
        assert set(reasons(inventory).values()) == {"broken"}
    else:
        assert inventory.missing == []
        assert all(one.nar_day < TODAY for one in inventory.held)


def test_a_narinfo_that_goes_while_it_is_looked_at_is_absent(bench: Bench) -> None:
    bench.has(*map(narinfo_of, CLOSURE))
    bench.server.script = lambda seen: (
        Reply(404) if seen.key == narinfo_key(TOOL) and seen.method == "GET" else None
    )
    assert reasons(bench.look()) == {TOOL.path: "absent"}


@given(st.text(NIX32_ALPHABET, min_size=1, max_size=3), st.integers(-(10**20), 10**20))
def test_a_listed_size_decides_nothing_but_whether_it_is_the_same(name: str, size: int) -> None:
    """What reaches a comparison is a number, and no larger than any object's."""
    from formats.s3 import parse_listing  # noqa: PLC0415

    one = Stored(b"", "etag", NOW - timedelta(days=1), size)
    page = parse_listing(listing([(f"nar/{name}", one)], truncated=False).body)
    assert [entry.size for entry in page.objects] == ([size] if 0 <= size < 10**18 else [])


def test_held_and_missing_are_plain_data() -> None:
    held = Held(TOOL, "nar/x.nar", 1, "", None, "")
    assert (held.ours, held.needs, held.content) == (True, (), None)
    assert Missing(TOOL, "absent") == Missing(TOOL, "absent")
    assert Present(1, None, "") == Present(1, None, "")
