"""Another binary cache, read as its clients do, and believed as far as given public keys go.

Its narinfos are read by the one strict parser. What one says of a path counts if a given key has
signed it; what no signature covers, such as the deriver, does not count at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import urllib3
from urllib3.exceptions import HTTPError

from formats.error import FormatError
from formats.keys import PublicKey
from formats.narinfo import LARGEST_NARINFO, NarInfo, narinfo_of
from formats.nix32 import NIX32_ALPHABET, sha256_to_nix32
from formats.signing import verified_by, verifies
from formats.store_path import STORE_DIR, is_store_path
from operations.cache_client import OK, CacheClient
from program.checks.bounded import read
from push.store import StorePath

CONNECTIONS = 8

_ABSENT = (403, 404, 410)
"""What is answered where there is nothing; 403 by a bucket that may not be listed, as to Nix."""
_UNAUTHORIZED = 401

WANTS_LOGIN = "the other cache wants a login, or another one"
"""Why what it says of a path is not believed, where it says nothing without a login."""

BREAKS_OFF = "its narinfo breaks off"
"""Why what it says of a path is not believed, where it does not say it to the end."""

_NARINFO = re.compile(rf"([{NIX32_ALPHABET}]{{32}})(?:\.narinfo)?")
# As others write it: `nar/<hash>.nar.xz`, `nar/<hash>.nar?hash=<hash>`; below the cache's own URL.
_FILE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+=-]*(?:/[0-9A-Za-z][0-9A-Za-z._+=-]*)*(?:\?[!-~]*)?")


@dataclass(frozen=True)
class Offer:
    """A path that the other cache has, signed by a given key."""

    path: StorePath
    """What the signature is over, and the signatures that verify."""
    file: str
    """Where its NAR is, below the cache's URL."""
    compression: str


@dataclass
class Walk:
    """What the other cache has of closures."""

    offers: dict[str, Offer] = field(default_factory=dict)
    """By store path."""
    left: set[str] = field(default_factory=set)
    """Store paths that an upstream key has signed."""
    absent: dict[str, str] = field(default_factory=dict)
    """Store paths that it does not have, each with one that refers to it."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why what it says of a path is not believed, by what was asked for."""


def named(line: str) -> str | None:
    """Return what a line names: a store path, or a narinfo's name; None where it is neither."""
    if is_store_path(line):
        return line
    match = _NARINFO.fullmatch(line)
    return match and f"{match[1]}.narinfo"


class OtherCache:
    """The cache that is copied from."""

    def __init__(
        self,
        url: str,
        keys: Iterable[PublicKey],
        upstream_keys: Iterable[PublicKey],
        ca_certificate_file: str | None,
        login: Mapping[str, str],
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: where it answers; it holds no secret.
            keys: what they have signed is believed.
            upstream_keys: what they have signed is left to the caches that have it.
            ca_certificate_file: a private CA that is trusted besides the system's.
            login: headers by which it knows this user; empty where anybody may read.
        """
        self._keys = {key.name: key for key in keys}
        self._upstream_keys = {key.name: key for key in upstream_keys}
        self._client = CacheClient(
            lambda _, name: f"{url}/{name}", ca_certificate_file, CONNECTIONS, login
        )

    def open(self, offer: Offer) -> AbstractContextManager[urllib3.BaseHTTPResponse]:
        """Open the NAR of a path.

        Raises:
            HTTPError: the cache does not answer.
        """
        return self._client.open(offer.file)

    def walk(self, wanted: Sequence[str], progress: Callable[[str], None]) -> Walk:
        """Find closures.

        Args:
            wanted: store paths, or names of narinfos.
            progress: told how far it is.

        Raises:
            HTTPError: the cache does not answer.
        """
        walk = Walk()
        asked = dict.fromkeys(wanted, "")
        level = list(asked)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            while level:
                below: dict[str, str] = {}
                for name, answer in zip(level, threads.map(self._ask, level), strict=True):
                    below |= self._take(walk, name, asked[name], answer)
                    progress(f"{len(walk.offers):,} paths found")
                level = [name for name in below if name not in asked]
                asked |= {name: below[name] for name in level}
        return walk

    def _ask(self, name: str) -> tuple[int, bytes] | None:
        """Return status and body of the answer for a narinfo, None where it breaks off."""
        try:
            with self._client.open(narinfo_of(name.removesuffix(".narinfo"))) as response:
                # A larger one is refused by its parser.
                return response.status, read(response, LARGEST_NARINFO + 1)
        except HTTPError:
            # One of thousands may be damaged, and then it is that one alone.
            if not self._client.answers():
                raise
            return None

    def _take(
        self, walk: Walk, name: str, referrer: str, answer: tuple[int, bytes] | None
    ) -> Mapping[str, str]:
        """Take in an answer; return what the path refers to, each with the path."""
        if answer is None:
            walk.refused[name] = BREAKS_OFF
            return {}
        status, body = answer
        if status in _ABSENT:
            walk.absent[name] = referrer
            return {}
        if status == _UNAUTHORIZED:
            walk.refused[name] = WANTS_LOGIN
            return {}
        if status != OK:
            walk.refused[name] = f"its narinfo is answered with HTTP status {status}"
            return {}
        try:
            narinfo = NarInfo.parse(body.decode("ascii"))
        except ValueError as error:
            reason = str(error) if isinstance(error, FormatError) else "it is no ASCII text"
            walk.refused[name] = f"its narinfo is malformed: {reason}"
            return {}
        path = narinfo.store_path
        if name not in (path, narinfo_of(path)):
            walk.refused[name] = "its narinfo is about another path"
        elif verified_by(narinfo, self._upstream_keys):
            walk.left.add(path)
        elif not verified_by(narinfo, self._keys):
            names = dict.fromkeys(one.partition(":")[0] for one in narinfo.signatures)
            walk.refused[name] = (
                "none of the given keys has signed it (it bears signatures of "
                f"{', '.join(names) or 'nobody'})"
            )
        elif _FILE.fullmatch(narinfo.url) is None:
            walk.refused[name] = "its NAR is nowhere below the cache's URL"
        else:
            walk.offers[path] = Offer(self._believed(narinfo), narinfo.url, narinfo.compression)
            references = (f"{STORE_DIR}/{one}" for one in narinfo.references)
            return {one: path for one in references if one != path}
        return {}

    def _believed(self, narinfo: NarInfo) -> StorePath:
        text = narinfo.fingerprint
        good = (
            one
            for one in dict.fromkeys(narinfo.signatures)
            for key in [self._keys.get(one.partition(":")[0])]
            if key is not None and verifies(key, text, one)
        )
        return StorePath(
            path=narinfo.store_path,
            nar_hash=sha256_to_nix32(narinfo.nar_hash),
            nar_size=narinfo.nar_size,
            references=tuple(sorted(set(narinfo.references))),
            deriver=None,
            signatures=tuple(good),
            content_address=None,
        )
