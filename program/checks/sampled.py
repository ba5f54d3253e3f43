"""A few narinfos of a bucket, to see whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import islice

from formats.error import FormatError
from formats.narinfo import LARGEST_NARINFO, NarInfo
from formats.nix32 import NIX32_ALPHABET
from program.checks.s3_client import Server

_SAMPLE = 64
_PAGE = 1_000
_AT_ONCE = 8
# A narinfo is named after a hash, so that as many are in one eighth of the alphabet as in another.
_PLACES = NIX32_ALPHABET[4::4]


def narinfos(server: Server, bucket: str) -> list[NarInfo]:
    """Return up to 64 of the narinfos that a bucket has; what is none is passed over.

    Half of them were written last, as those are that the newest key signed; the others are spread
    over all names. Of a bucket with more objects than a listing's page has, a page is looked at in
    each of eight places. A request for a page takes the place of one for a narinfo, so that none of
    it takes longer.

    Raises:
        ServerError: no answer, or the server refuses the user.
    """
    look = partial(_page, server, bucket)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        first = look("")
        places = [place for place in _PLACES if len(first) == _PAGE and place > max(first)]
        written = dict(first)
        for page in threads.map(look, places):
            written |= page
        names = _chosen(written, _SAMPLE - len(places))
        texts = threads.map(lambda name: server.read(bucket, name, LARGEST_NARINFO), names)
        return list(_parsed(texts))


def _page(server: Server, bucket: str, after: str) -> dict[str, datetime]:
    """Return when each of the objects behind a name was last written, of a thousand of them."""
    return dict(islice(server.objects(bucket, after), _PAGE))


def _chosen(written: Mapping[str, datetime], most: int) -> list[str]:
    names = sorted(key for key in written if key.endswith(".narinfo") and "/" not in key)
    if len(names) <= most:
        return names
    newest = sorted(names, key=lambda name: written[name], reverse=True)[: most // 2]
    others = sorted({*names} - {*newest})
    wanted = most - len(newest)
    return newest + [others[number * len(others) // wanted] for number in range(wanted)]


def _parsed(texts: Iterable[bytes | None]) -> Iterator[NarInfo]:
    for text in texts:
        try:
            yield NarInfo.parse((text or b"").decode())
        except (FormatError, UnicodeDecodeError):
            continue
