"""Credential files on builders: where the settings want them, and where the state has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.builder_credentials import place_name
from program.checks.recorded import COMMANDS, Recorded
from program.settings.builders import BuilderSettings

CREDENTIALS = "nixcache:index:BuilderCredentials"
"""What the commands that place files are children of."""

_SSH_PORT = 22


@dataclass(frozen=True)
class Placed:
    """The files of one directory on one machine, as the state has them."""

    urn: str
    """Of the command that placed them."""
    type: str
    """The command's."""
    name: str
    """The command's."""
    host: str
    """What SSH connected to; empty for the machine that ran Pulumi."""
    directory: str
    """Where on it."""
    connection: Mapping[str, Any] = field(repr=False)
    """How SSH reached it: a secret, of which no more than the port is ever shown."""

    @property
    def where(self) -> str:
        """Directory and machine, in words."""
        port = f" port {self._port}" if self._port not in (None, _SSH_PORT) else ""
        return f"{self.directory} on {self.host}{port}"

    @property
    def _port(self) -> int | None:
        port = self.connection.get("port")
        return None if port is None else int(port)

    def has_key_of(self, builder: BuilderSettings) -> bool:
        """Return whether both are known to have the same host key."""
        known = self.connection.get("hostKey")
        return known is not None and known == builder.host_key

    def has_port_of(self, builder: BuilderSettings) -> bool:
        """Return whether nothing tells of another port."""
        return self._port in (None, builder.port)

    def is_another_machine(self, builder: BuilderSettings) -> bool:
        """Return whether a builder behind the same name may be another: by key, or else by port."""
        if None not in (self.connection.get("hostKey"), builder.host_key):
            return not self.has_key_of(builder)
        return not self.has_port_of(builder)


def places(builders: Sequence[BuilderSettings]) -> dict[str, str]:
    """Return where each builder's credential files lie, by its name: host and directory.

    Behind one name there may be several machines, told apart by their ports.
    """
    hosts = Counter((builder.host, builder.credentials_directory) for builder in builders)
    return {
        builder.name: place_name(
            builder.host,
            builder.port if hosts[builder.host, builder.credentials_directory] > 1 else None,
            builder.credentials_directory or "",
        )
        for builder in builders
    }


def in_state(recorded: Recorded) -> Iterator[Placed]:
    """Yield what the state has, by URN: the engine's order is none."""
    for urn, resource in sorted(recorded.resources.items()):
        _, _, own = urn.partition(f"::{CREDENTIALS}$")
        type_, _, name = own.partition("::")
        if type_ in COMMANDS:
            outputs = resource["outputs"]
            host, directory = outputs["triggers"]
            connection = outputs.get("connection") or {}
            yield Placed(urn, type_, name, str(host), str(directory), connection)


def kept(
    builders: Sequence[BuilderSettings], recorded: Recorded
) -> list[tuple[Placed, BuilderSettings]]:
    """Return what of the state stays some builder's, and whose.

    It is by the name that it has, or else by machine: the one with its host key, or at its port.
    What several could be is nobody's: its files are removed, and placed anew.
    """
    names = places(builders)
    free = {
        f"{names[builder.name]}-files": builder
        for builder in builders
        if builder.credentials_directory is not None
    }
    left = list(in_state(recorded))
    pairs = [(one, free.pop(one.name)) for one in list(left) if one.name in free]
    for alike in (Placed.has_key_of, Placed.has_port_of):
        taken = {one.urn for one, _ in pairs}
        left = [one for one in left if one.urn not in taken]
        found = list(_told_apart(left, list(free.values()), alike))
        pairs += found
        for _, builder in found:
            del free[f"{names[builder.name]}-files"]
    return pairs


def _told_apart(
    left: Sequence[Placed],
    builders: Sequence[BuilderSettings],
    alike: Callable[[Placed, BuilderSettings], bool],
) -> Iterator[tuple[Placed, BuilderSettings]]:
    """Yield whose each one is, where nobody else has a claim to it and it is the only such one."""
    claims = [
        (one, builder)
        for one in left
        for builder in builders
        if (one.host, one.directory) == (builder.host, builder.credentials_directory)
        and alike(one, builder)
    ]
    ones = Counter(one.urn for one, _ in claims)
    theirs = Counter(builder.name for _, builder in claims)
    for one, builder in claims:
        if ones[one.urn] == theirs[builder.name] == 1:
            yield one, builder


def stranded(
    builders: Sequence[BuilderSettings], recorded: Recorded
) -> Iterator[tuple[Placed, BuilderSettings]]:
    """Yield what stays on a machine that a deployment reaches no more, and whose it was.

    The engine knows the files by host and directory. Where another machine has the name it places
    them there, and what the one before has is nobody's to remove.
    """
    for one, builder in kept(builders, recorded):
        # Its key may be that of a builder under another name or port now, which gets its own there.
        reached = any(
            one.has_key_of(other) and one.directory == other.credentials_directory
            for other in builders
        )
        if one.is_another_machine(builder) and not reached:
            yield one, builder
