"""How NARs may be compressed: the one list of it (Nix, `src/libutil/compression.cc`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """One way to compress a NAR."""

    suffix: str
    """What the NAR's name ends with after `.nar`."""
    levels: range
    """Levels that may be asked for; 0 leaves it to Nix."""


COMPRESSIONS = {
    "zstd": Compression(".zst", range(20)),
    "xz": Compression(".xz", range(10)),
    "none": Compression("", range(1)),
}
"""By the name that Nix and narinfos have for it. The first is the default."""

SUFFIXES = {
    **{name: one.suffix for name, one in COMPRESSIONS.items()},
    "br": ".br",
    "bzip2": ".bz2",
    "lz4": ".lz4",
    "lzip": ".lzip",
}
"""What Nix has a NAR's name end with after `.nar`, for compressions that have a suffix of their own
(`src/libstore/binary-cache-store.cc`). For others it writes none."""

READABLE = frozenset(
    {
        *COMPRESSIONS,
        *("br", "bzip2", "compress", "grzip", "gzip", "lrzip", "lz4", "lzip", "lzma", "lzop"),
    }
)
"""What Nix can read. A narinfo with another name is corrupt to Nix since 2.35, before that its NAR.
"""
