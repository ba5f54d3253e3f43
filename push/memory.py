"""What this builder remembers of a bucket, so that a push with nothing new reads next to nothing.

A remembered narinfo counts only while the bucket's ETag for its key is the same and the store says
of the path what it said then; a remembered verification only for the same text, signature and key.
So it can never be wrong about the bucket, and removing it costs one slow push. It is a file of this
user's own: one that others could write is not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats.narinfo import is_nar_key
from push.settings import PushSettings, cache_directory

_LARGEST = 1 << 26
_MOST_ENTRIES = 50_000


@dataclass(frozen=True)
class RememberedNarInfo:
    """A narinfo that was whole, with a good signature of ours, when it was read or written."""

    etag: str
    """The bucket's ETag for it."""
    facts: str
    """The digest of what the store said, and of the key that signed."""
    nar: str
    """The key of its NAR."""
    nar_size: int
    """Bytes of the compressed NAR."""


class Memory:
    """What is remembered of one bucket."""

    def __init__(self, path: Path | None) -> None:
        """Load what a file holds; whatever is wrong with it, nothing is remembered then."""
        self._path = path
        self.narinfos: dict[str, RememberedNarInfo] = {}
        self.upstream: set[str] = set()
        """Digests of signatures that were verified."""
        self.nix: tuple[str, str] | None = None
        """Which file this machine's Nix was, and what version."""
        loaded = _load(path) if path is not None else None
        if loaded is not None:
            self.narinfos, self.upstream, self.nix = loaded

    @classmethod
    def of(cls, settings: PushSettings) -> Memory:
        """Return what is remembered of the bucket that is pushed to."""
        directory = cache_directory()
        if directory is None:
            return cls(None)
        name = digest(settings.endpoint, settings.bucket)
        return cls(directory / f"bucket-{name}.json")

    def save(self) -> None:
        """Write it down, whole or not at all; that it cannot be written hurts nobody."""
        if self._path is None:
            return
        narinfos = dict(list(self.narinfos.items())[-_MOST_ENTRIES:])
        content = json.dumps(
            {
                "narinfos": {
                    key: [one.etag, one.facts, one.nar, one.nar_size]
                    for key, one in narinfos.items()
                },
                "upstream": sorted(self.upstream)[:_MOST_ENTRIES],
                **({} if self.nix is None else {"nix": list(self.nix)}),
            },
            separators=(",", ":"),
        )
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent)
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(content)
                Path(name).replace(self._path)
            except OSError:
                Path(name).unlink()


def digest(*texts: str) -> str:
    """Return a short digest of texts, none of which has a line break."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]


_Loaded = tuple[dict[str, RememberedNarInfo], set[str], tuple[str, str] | None]


def _load(path: Path) -> _Loaded | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            mine = status.st_uid == os.geteuid() and not status.st_mode & (
                stat.S_IWGRP | stat.S_IWOTH
            )
            if not mine or not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                return None
            content = json.loads(file.read(_LARGEST))
        nix = content.get("nix")
        return (
            _narinfos(content["narinfos"]),
            set(map(_text, content["upstream"])),
            None if nix is None else (_text(nix[0]), _text(nix[1])),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _narinfos(content: Mapping[str, Any]) -> dict[str, RememberedNarInfo]:
    narinfos = {}
    for key, (etag, facts, nar, size) in content.items():
        if type(size) is not int or size < 0 or not is_nar_key(_text(nar)):
            raise ValueError(key)
        narinfos[key] = RememberedNarInfo(_text(etag), _text(facts), nar, size)
    return narinfos


def _text(content: object) -> str:
    if not isinstance(content, str):
        raise TypeError
    return content
