"""Reads a compressed NAR once, and says what it really is."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

import zstandard

from formats.nix32 import nix32_encode

_PIECE = 1 << 20


class Readable(Protocol):
    """Anything whose bytes can be read piece by piece."""

    def read(self, amount: int, /) -> bytes:
        """Return at most `amount` bytes; none at the end."""


_READERS: Mapping[str, Callable[[BinaryIO], Readable]] = {
    "none": lambda stream: stream,
    "zstd": lambda stream: zstandard.ZstdDecompressor().stream_reader(
        stream, read_across_frames=True
    ),
    "xz": lzma.LZMAFile,
    "bzip2": bz2.BZ2File,
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream),
}
"""Compressions by the name that a narinfo gives them (Nix manual, "HTTP Binary Cache Store")."""

# One that wants gigabytes to be read is none that anybody could read; and a chunk of an answer may
# say that its size is below zero (ValueError).
_DAMAGE = (
    zstandard.ZstdError,
    lzma.LZMAError,
    zlib.error,
    OSError,
    EOFError,
    MemoryError,
    ValueError,
)


class NarError(ValueError):
    """A NAR that cannot be read to its end; the message says why."""


@dataclass(frozen=True)
class NarMeasure:
    """Digests (`sha256:` and nix32) and sizes in bytes, compressed and not."""

    file_hash: str
    file_size: int
    nar_hash: str
    nar_size: int


class _Measured:
    """Passes a stream on, and remembers its digest and size."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size = 0

    def read(self, amount: int = -1, /) -> bytes:
        piece = self._stream.read(_PIECE if amount < 0 else amount)
        self._digest.update(piece)
        self.size += len(piece)
        return piece

    def hash(self) -> str:
        return f"sha256:{nix32_encode(self._digest.digest())}"


def measure_nar(
    stream: Readable,
    compression: str,
    limit: int,
    keep: Callable[[bytes], object] = lambda _: None,
) -> NarMeasure:
    """Read `stream` to its end.

    Args:
        stream: the compressed NAR.
        compression: what the narinfo says it is compressed with.
        limit: the size in bytes that the narinfo gives the NAR; reading stops once it is passed.
        keep: is given each piece of the NAR.

    Raises:
        NarError: it is damaged, larger than `limit`, or compressed in a way not known here.
    """
    reader = _READERS.get(compression)
    if reader is None:
        raise NarError(f"its compression is none of {', '.join(_READERS)}")
    file = _Measured(stream)
    nar = _Measured(reader(cast(BinaryIO, file)))
    damaged = NarError(f"it is no whole {compression} file")
    while True:
        try:
            piece = nar.read(_PIECE)
        except _DAMAGE:
            raise damaged from None
        if nar.size > limit:
            raise NarError(f"it holds more than the {limit} bytes of its NarSize")
        if not piece:
            break
        keep(piece)
    try:
        while file.read(_PIECE):
            pass
    except _DAMAGE:
        raise damaged from None
    return NarMeasure(file.hash(), file.size, nar.hash(), nar.size)
