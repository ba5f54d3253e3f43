"""Reads a compressed NAR once, and says what it really is."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

import zstandard

from formats.nix32 import nix32_encode

_PIECE = 1 << 20

_MEBIBYTES = 128
"""Of memory that one NAR may take to be unpacked, since a file's head says how much it wants, up to
4 GiB. Nix's own want 65 at the most: of xz, level 9 (xz(1), "Preset"); of zstd, level 19 wants 8.
zstd has the same bound of its own (zstd.h, `ZSTD_WINDOWLOG_LIMIT_DEFAULT`); bzip2 and gzip have no
more than a few megabytes to ask for."""
_MEMORY = _MEBIBYTES << 20


class Readable(Protocol):
    """Anything whose bytes can be read piece by piece."""

    def read(self, amount: int, /) -> bytes:
        """Return at most `amount` bytes; none at the end."""


_READERS: Mapping[str, Callable[[BinaryIO], Readable]] = {
    "none": lambda stream: stream,
    "zstd": lambda stream: zstandard.ZstdDecompressor(max_window_size=_MEMORY).stream_reader(
        stream, read_across_frames=True
    ),
    "xz": lambda stream: _Pieces(_unpack_xz(stream)),
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


class _Pieces:
    """A stream of pieces, none of which is larger than `_PIECE`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, _: int, /) -> bytes:
        # An empty one would be the end.
        return next(filter(None, self._pieces), b"")


def _unpack_xz(stream: Readable) -> Iterator[bytes]:
    """Yield what an xz file holds: `lzma.LZMAFile` takes as much memory as the file wants.

    Raises:
        LZMAError: it is damaged, or wants too much.
        EOFError: it is cut off.
    """
    packed = stream.read(_PIECE)
    more = True
    while more:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY)
        while not unpacker.eof:
            if not packed and unpacker.needs_input:
                packed = stream.read(_PIECE)
                if not packed:
                    raise EOFError
            yield unpacker.decompress(packed, _PIECE)
            packed = b""
        # Another stream may follow, after zeros (The .xz File Format, 2.2).
        packed = unpacker.unused_data.lstrip(b"\0")
        while more and not packed:
            piece = stream.read(_PIECE)
            more, packed = bool(piece), piece.lstrip(b"\0")


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
        NarError: it is damaged, larger than `limit`, compressed in a way not known here, or takes
            more memory to be unpacked than Nix's own ever do.
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
        except _DAMAGE as error:
            # Both libraries' own words, and no class of its own.
            if isinstance(error, lzma.LZMAError | zstandard.ZstdError) and "emory" in str(error):
                damaged = NarError(f"it takes more than {_MEBIBYTES} MiB of memory to be unpacked")
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
