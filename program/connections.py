"""How SSH reaches a builder: one set of facts for what is declared and for what is asked now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import pulumi_command as command

from formats.printable import printable
from program.settings.builders import BuilderSettings
from program.settings.ssh import JumpHost

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

_LONGEST_REASON = 200


class UnreachableError(Exception):
    """A builder cannot be asked; the message says why, in half a sentence."""


@dataclass(frozen=True, kw_only=True)
class Hop:
    """An SSH server to log in to: the builder's own, or one on the way to it."""

    host: str
    port: int
    user: str
    host_key: str | None
    """Its public key as `known_hosts` has it, without the host; None trusts any."""
    private_key: str | None = field(repr=False)
    """The text of the key to log in with; None asks the SSH agent."""


def hops(builder: BuilderSettings) -> list[Hop]:
    """Return what to log in to, one through the other: the builder itself is the last."""
    machines: list[JumpHost | BuilderSettings] = [builder]
    if builder.jump_host is not None:
        machines.insert(0, builder.jump_host)
    return [
        Hop(
            host=machine.host,
            port=machine.port,
            user=machine.user,
            host_key=machine.host_key,
            private_key=builder.private_key,
        )
        for machine in machines
    ]


def ssh_connection(builder: BuilderSettings) -> command.remote.ConnectionArgs | None:
    """Return how pulumi-command reaches a builder; None where it is this machine."""
    if builder.local:
        return None
    *way, own = hops(builder)
    # pulumi-command goes through one host at most, and so do the settings.
    proxy = command.remote.ProxyConnectionArgs(**asdict(way[0])) if way else None
    return command.remote.ConnectionArgs(**asdict(own), proxy=proxy)


@asynccontextmanager
async def logged_in(builder: BuilderSettings) -> AsyncIterator[SSHClientConnection]:
    """Log in to a builder now, and out at the end.

    Raises:
        UnreachableError: it does not answer, is not who it should be, does not let us in, or goes.
    """
    # Imported here: a stack whose closures are store paths never waits for it.
    import asyncssh  # noqa: PLC0415

    try:
        async with AsyncExitStack() as connections:
            connection = None
            for hop in hops(builder):
                host_key = hop.host_key and asyncssh.import_public_key(hop.host_key)
                key = hop.private_key and asyncssh.import_private_key(hop.private_key)
                connection = await connections.enter_async_context(
                    asyncssh.connect(
                        hop.host,
                        hop.port,
                        username=hop.user,
                        known_hosts=host_key and ([host_key], [], []),
                        tunnel=connection,
                        config=None,
                        **({"client_keys": [key], "agent_path": None} if key else {}),
                    )
                )
            assert connection is not None
            yield connection
    except (OSError, asyncssh.Error, asyncssh.KeyImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        # It may be the word of whoever answers, before it has shown who it is.
        raise UnreachableError(
            f"{builder.host} cannot be asked ({printable(reason, _LONGEST_REASON)})"
        ) from None
