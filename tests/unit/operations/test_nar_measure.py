"""NARs that a cache serves: measured whole, or said to be none."""

from __future__ import annotations

import bz2
import gzip
import lzma
from io import BytesIO

import pytest
import zstandard

from operations.nar_measure import NarError, measure_nar

NAR = b"a nar " * 5000
PACKED = {
    "none": NAR,
    "zstd": zstandard.compress(NAR),
    "xz": lzma.compress(NAR),
    "bzip2": bz2.compress(NAR),
    "gzip": gzip.compress(NAR),
}


@pytest.mark.parametrize("compression", PACKED)
def test_a_nar_is_measured_however_it_is_compressed(compression: str) -> None:
    kept: list[bytes] = []
    measure = measure_nar(BytesIO(PACKED[compression]), compression, len(NAR), kept.append)
    assert (measure.nar_size, b"".join(kept)) == (len(NAR), NAR)
    assert measure.file_size == len(PACKED[compression])


@pytest.mark.parametrize("compression", [name for name in PACKED if name != "none"])
def test_one_that_is_damaged_anywhere_is_said_to_be_that(compression: str) -> None:
    packed = PACKED[compression]
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 0xFF
        for content in (bytes(damaged), packed[:place]):
            try:
                measure = measure_nar(BytesIO(content), compression, len(NAR))
            except NarError:
                continue
            # What the format does not check (a header's time) is found by the hash.
            assert measure.nar_size <= len(NAR)


def test_one_that_wants_more_memory_than_there_is_is_damaged() -> None:
    class Greedy(BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            raise MemoryError

    with pytest.raises(NarError, match="no whole xz file"):
        measure_nar(Greedy(), "xz", 10)


def test_one_that_grows_past_what_was_signed_is_not_read_on() -> None:
    bomb = zstandard.compress(bytes(50_000_000))
    kept: list[bytes] = []
    with pytest.raises(NarError, match="more than the 1000 bytes"):
        measure_nar(BytesIO(bomb), "zstd", 1000, kept.append)
    assert not kept
