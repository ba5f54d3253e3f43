"""What pins keep, walked through as far as it is signed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from formats.narinfo import NarInfo, narinfo_of
from formats.pin import format_pin, pin_key
from formats.signing import SecretKey
from operations.cache_status import PinnedClosure
from operations.pinned_closures import PinnedClosures
from program.checks.server_error import ServerError

KEY = SecretKey.generate("cache.test-1")
OTHER = SecretKey.generate("cache.test-1")


def path(number: int) -> str:
    return f"/nix/store/{number:032}-path"


@dataclass
class Bucket:
    """Objects, and what of them was read."""

    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    damage: Exception = field(default_factory=lambda: ServerError("endpoint", "it answers 500"))

    def has(self, number: int, *references: int, key: SecretKey = KEY) -> None:
        narinfo = NarInfo(
            store_path=path(number),
            url=f"nar/{number:052}.nar",
            compression="none",
            nar_hash=f"sha256:{number:052}",
            nar_size=100,
            file_hash=f"sha256:{number:052}",
            file_size=10,
            references=tuple(f"{one:032}-path" for one in references),
        )
        signed = replace(narinfo, signatures=(key.sign(narinfo.fingerprint),))
        self.objects[narinfo_of(path(number))] = signed.format().encode()
        self.objects[narinfo.url] = b"x" * 10

    def read(self, name: str, most: int) -> bytes | None:
        self.asked.append(name)
        if name in self.damaged:
            raise self.damage
        return self.objects.get(name, b"")[:most]

    def pins(self, **targets: Sequence[int]) -> list[PinnedClosure]:
        for name, numbers in targets.items():
            pin = format_pin([path(number) for number in numbers])
            self.objects[pin_key(name)] = pin.encode()
        sizes = {name: len(content) for name, content in self.objects.items()}
        with ThreadPoolExecutor(1) as threads:
            return PinnedClosures(self.read, sizes, [KEY.public_key], threads).all()


@pytest.fixture
def bucket() -> Bucket:
    bucket = Bucket()
    bucket.has(1)
    bucket.has(2, 1, 2, 9)
    bucket.has(3, 1, 2)
    bucket.has(4)
    return bucket


def test_a_whole_closure_is_counted_once_and_nothing_else_is_read(bucket: Bucket) -> None:
    pins = bucket.pins(live=[3])
    assert pins == [PinnedClosure("live", (path(3),), 3, 30, {})]
    assert not pins[0].incomplete
    # Neither the path that no pin keeps, nor the one that may be an upstream cache's.
    assert sorted(bucket.asked) == sorted(
        [pin_key("live"), *(narinfo_of(path(n)) for n in (1, 2, 3))]
    )


def test_what_several_pins_keep_is_read_once_for_all_of_them(bucket: Bucket) -> None:
    bucket.has(5, 3)
    pins = bucket.pins(a=[3], b=[3, 5], c=[2])
    assert [(pin.paths, pin.nar_bytes) for pin in pins] == [(3, 30), (4, 40), (2, 20)]
    read = [name for name in bucket.asked if name.endswith(".narinfo")]
    assert sorted(read) == sorted(narinfo_of(path(number)) for number in (1, 2, 3, 5))


@pytest.mark.parametrize(
    ("remove", "why"),
    [
        (narinfo_of(path(3)), "the cache does not have it"),
        (f"nar/{3:052}.nar", "its NAR is gone, or has another size"),
    ],
)
def test_what_is_gone_is_lost(bucket: Bucket, remove: str, why: str) -> None:
    del bucket.objects[remove]
    (pin,) = bucket.pins(live=[3])
    assert pin.lost == {path(3): why}


def test_what_no_key_has_signed_is_lost_and_leads_nowhere(bucket: Bucket) -> None:
    bucket.has(2, 4, key=OTHER)
    (pin,) = bucket.pins(live=[3])
    assert list(pin.lost) == [path(2)]
    assert narinfo_of(path(4)) not in bucket.asked
    bucket.objects[narinfo_of(path(3))] = bucket.objects[narinfo_of(path(1))]
    (pin,) = bucket.pins(live=[3])
    assert list(pin.lost) == [path(3)]


def test_a_pin_that_is_none_is_told(bucket: Bucket) -> None:
    bucket.objects[pin_key("odd")] = b"\xff"
    bucket.objects[pin_key("Not A Pin")] = b""
    odd, whole = sorted(bucket.pins(whole=[1]), key=lambda pin: pin.name)
    assert (odd.name, bool(odd.unreadable), odd.incomplete) == ("odd", True, True)
    assert (whole.name, whole.incomplete) == ("whole", False)


def test_what_the_server_cannot_give_is_lost_and_the_rest_is_shown(bucket: Bucket) -> None:
    bucket.damaged = {narinfo_of(path(1)), pin_key("odd")}
    live, odd = bucket.pins(live=[3, 4], odd=[4])
    assert live == PinnedClosure(
        "live", (path(3), path(4)), 3, 30, {path(1): "its narinfo cannot be read"}
    )
    assert odd == PinnedClosure("odd", unreadable="it answers 500")


@pytest.mark.parametrize("damaged", [narinfo_of(path(1)), pin_key("live")])
@pytest.mark.parametrize(
    "error",
    [ServerError("endpoint", "nobody answers", reachable=False), ServerError("user", "denied")],
)
def test_a_server_that_gives_nothing_at_all_ends_it(
    bucket: Bucket, damaged: str, error: ServerError
) -> None:
    bucket.damaged, bucket.damage = {damaged}, error
    with pytest.raises(ServerError, match=str(error)):
        bucket.pins(live=[3])
