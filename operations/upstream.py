"""The caches that clients have beside this one, to which it leaves the paths they sign."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from urllib3.exceptions import HTTPError

from formats.error import FormatError
from formats.keys import KeyName
from operations.cache_client import OK, CacheClient


class Upstream(Protocol):
    """A cache that is asked for what this one has not."""

    @property
    def name(self) -> str:
        """What it is called in a report."""

    def has(self, narinfo: str) -> bool | None:
        """Return whether it has the narinfo of that name, or None where it does not say."""


@dataclass
class UpstreamCache:
    """A cache that is reached where the name of its key says: `cache.nixos.org-1`."""

    name: str
    """Its key's name."""
    client: CacheClient | None
    """What asks it; None once it has not answered, or where the key's name is no domain's."""

    def has(self, narinfo: str) -> bool | None:
        """Return whether it has the narinfo of that name, or None where it does not say."""
        client = self.client
        if client is None:
            return None
        try:
            return client.look_at(narinfo).status == OK
        except HTTPError:
            # Asked once: an audit does not wait for each of a thousand paths.
            self.client = None
            return None


def upstream_caches(key_names: Iterable[str], connections: int) -> list[UpstreamCache]:
    """Return the caches whose keys have these names (Nix manual: a key is named by its cache)."""
    return [UpstreamCache(name, _client(name, connections)) for name in key_names]


def _client(key_name: str, connections: int) -> CacheClient | None:
    try:
        domain = KeyName.parse(key_name).domain
    except FormatError:
        return None
    return CacheClient(lambda _, narinfo: f"https://{domain}/{narinfo}", None, connections)


@dataclass(frozen=True)
class Answer:
    """What the caches that clients have beside this one say of a path."""

    found: bool
    """One of them has it."""
    silent: tuple[str, ...]
    """Those that did not say, where none has it."""


def ask(upstreams: Iterable[Upstream], narinfo: str) -> Answer:
    """Ask one cache after the other for a narinfo, until one has it."""
    silent = []
    for upstream in upstreams:
        has = upstream.has(narinfo)
        if has:
            return Answer(True, ())
        if has is None:
            silent.append(upstream.name)
    return Answer(False, tuple(silent))
