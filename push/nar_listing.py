"""Listings of NARs: what is in a store path, and where in its NAR, as JSON (`<hash>.ls`).

A listing is made from names and sizes alone; no file is read. Names are UTF-8, as JSON's are,
whatever this machine's locale says; what has others has no listing. A listing is right if it comes
to the NAR's size that the store knows, and where it does not, there is none.

Source: Nix, `src/libutil/nar-listing.cc` and `archive.cc`; Nix up to 2.34 writes the same with
`write-nar-listing`, and since 2.35 also an `executable` that is false. It fails at the whole path
where a name is not UTF-8.
"""

from __future__ import annotations

import json
import os
import stat

_MOST_FILES = 200_000
_MAGIC = "nix-archive-1"


def nar_listing(path: str, nar_size: int) -> bytes | None:
    """Return the listing of a store path, None where it has none that is sound.

    Args:
        path: the path, in this machine's file system: it is for the caller to know that Nix has
            its files there.
        nar_size: bytes of its NAR, as the store knows them.
    """
    walk = _Walk()
    try:
        root = walk.node(os.fsencode(path))
        if walk.offset != nar_size:
            return None
        text = json.dumps(
            {"root": root, "version": 1}, ensure_ascii=False, separators=(",", ":"), sort_keys=True
        )
        return text.encode()
    # The latter: a name that is no UTF-8, a size that is none, directories without end.
    except (OSError, ValueError, RecursionError):
        return None


class _Walk:
    """A walk through a store path in the order of its NAR."""

    def __init__(self) -> None:
        self.offset = _size_of(_MAGIC)
        """Bytes of the NAR so far."""
        self._files = 0

    def node(self, path: bytes) -> dict[str, object]:
        """Return what Nix says of a file or directory."""
        self._files += 1
        if self._files > _MOST_FILES:
            raise ValueError
        status = os.lstat(path)
        self._add("(", "type")
        if stat.S_ISLNK(status.st_mode):
            node = self._link(path)
        elif stat.S_ISDIR(status.st_mode):
            node = self._directory(path)
        elif stat.S_ISREG(status.st_mode):
            node = self._file(status)
        else:
            raise ValueError
        self._add(")")
        return node

    def _link(self, path: bytes) -> dict[str, object]:
        # As it is: `Path` would change what it says twice.
        target = os.readlink(path).decode()  # noqa: PTH115
        self._add("symlink", "target", target)
        return {"type": "symlink", "target": target}

    def _file(self, status: os.stat_result) -> dict[str, object]:
        executable = bool(status.st_mode & stat.S_IXUSR)
        self._add("regular", *(("executable", "") if executable else ()), "contents")
        self.offset += 8
        node: dict[str, object] = {"type": "regular", "size": status.st_size}
        node["narOffset"] = self.offset
        if executable:
            node["executable"] = True
        self.offset += _padded(status.st_size)
        return node

    def _directory(self, path: bytes) -> dict[str, object]:
        self._add("directory")
        entries = {}
        with os.scandir(path) as found:
            names = sorted(one.name for one in found)
        for name in names:
            text = name.decode()
            self._add("entry", "(", "name", text, "node")
            entries[text] = self.node(path + b"/" + name)
            self._add(")")
        return {"type": "directory", "entries": entries}

    def _add(self, *words: str) -> None:
        self.offset += sum(map(_size_of, words))


def _size_of(word: str) -> int:
    """Return the bytes that a word takes in a NAR: its length, itself, and zeros."""
    return 8 + _padded(len(word.encode()))


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8
