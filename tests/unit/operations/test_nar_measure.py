"""NARs that a cache serves: measured whole, or said to be none."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
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


@pytest.mark.parametrize("streams", [1, 2])
def test_an_xz_file_that_wants_more_memory_than_nix_takes_to_write_one_is_not_read(
    streams: int,
) -> None:
    """Its header asks for a dictionary of four gigabytes, for a few hundred bytes."""
    greedy = bytearray(lzma.compress(NAR))
    size = (greedy[12] + 1) * 4
    # A block's header: its size, flags, and a filter with its properties (xz-file-format, 3.1).
    assert greedy[14:16] == b"\x21\x01"
    greedy[16] = 40
    checksum = zlib.crc32(greedy[12 : 12 + size - 4])
    greedy[12 + size - 4 : 12 + size] = checksum.to_bytes(4, "little")
    packed = PACKED["xz"] * (streams - 1) + bytes(greedy)
    with pytest.raises(NarError, match="takes more than 128 MiB of memory"):
        measure_nar(BytesIO(packed), "xz", len(NAR) * streams)


def test_a_zstd_file_that_wants_more_memory_than_that_is_not_read() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(NAR) + compressor.flush()
    with pytest.raises(NarError, match="takes more than 128 MiB of memory"):
        measure_nar(BytesIO(packed), "zstd", len(NAR))


def test_what_nix_writes_at_its_highest_levels_is_read() -> None:
    for compression, packed in {
        "xz": lzma.compress(NAR, preset=9),
        "zstd": zstandard.ZstdCompressor(19).compress(NAR),
    }.items():
        assert measure_nar(BytesIO(packed), compression, len(NAR)).nar_size == len(NAR)


@pytest.mark.parametrize("between", [b"", bytes(4), bytes(2 << 20)])
def test_an_xz_file_may_have_several_streams_with_zeros_between_them(between: bytes) -> None:
    packed = between.join([lzma.compress(NAR[:100]), lzma.compress(NAR[100:]), b""])
    assert measure_nar(BytesIO(packed), "xz", len(NAR)).nar_size == len(NAR)


@pytest.mark.parametrize("packed", [b"", PACKED["xz"] + b"x", PACKED["xz"][:-1]])
def test_an_xz_file_that_does_not_end_where_it_should_is_damaged(packed: bytes) -> None:
    with pytest.raises(NarError, match="no whole xz file"):
        measure_nar(BytesIO(packed), "xz", len(NAR))


def test_one_that_grows_past_what_was_signed_is_not_read_on() -> None:
    bomb = zstandard.compress(bytes(50_000_000))
    kept: list[bytes] = []
    with pytest.raises(NarError, match="more than the 1000 bytes"):
        measure_nar(BytesIO(bomb), "zstd", 1000, kept.append)
    assert not kept
