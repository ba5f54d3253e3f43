"""A few narinfos of a bucket, to see whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from formats.error import FormatError
from formats.narinfo import LARGEST_NARINFO, NarInfo
from program.checks.s3_client import Server

_SAMPLE = 64
_AT_ONCE = 8


def narinfos(server: Server, bucket: str) -> list[NarInfo]:
    """Return up to 64 of the narinfos that a bucket has; what is none is passed over.

    Raises:
        ServerError: no answer, or the server refuses the user.
    """
    names = (
        key for key, _ in server.objects(bucket) if key.endswith(".narinfo") and "/" not in key
    )
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        texts = threads.map(
            lambda name: server.read(bucket, name, LARGEST_NARINFO), islice(names, _SAMPLE)
        )
        return list(_parsed(texts))


def _parsed(texts: Iterable[bytes | None]) -> Iterator[NarInfo]:
    for text in texts:
        try:
            yield NarInfo.parse((text or b"").decode())
        except (FormatError, UnicodeDecodeError):
            continue
