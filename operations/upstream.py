"""The caches that clients have beside this one, to which it leaves the paths they sign."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from urllib3.exceptions import HTTPError

from formats.error import FormatError
from formats.keys import KeyName, PublicKey, is_key_domain
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


def upstream_caches(keys: Iterable[str], connections: int) -> list[UpstreamCache]:
    """Return the caches that have these public keys, `name:base64`."""
    return [
        UpstreamCache(PublicKey.parse(key).name, _client(substituter(key), connections))
        for key in keys
    ]


def substituter(key: str) -> str | None:
    """Return where a cache answers by its public key, or None where the name does not tell.

    Source: Nix manual, `nix key generate-secret`: a key is named after its cache's domain.
    """
    try:
        name = KeyName.parse(PublicKey.parse(key).name)
    except FormatError:
        return None
    # Any other name may be somebody's, or say nothing of where.
    return f"https://{name.domain}" if name.has_number and is_key_domain(name.domain) else None


def _client(url: str | None, connections: int) -> CacheClient | None:
    if url is None:
        return None
    return CacheClient(lambda _, narinfo: f"{url}/{narinfo}", None, connections)


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
