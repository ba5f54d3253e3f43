"""Connections: the same facts for what pulumi-command is given and for what is asked now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import asyncssh
import pulumi_command as command
import pytest

from program.connections import UnreachableError, hops, logged_in, ssh_connection
from program.settings.builders import BuilderSettings
from program.settings.stack import parse
from tests.unit.configuration import HOST_KEY, configuration

FAR = {"name": "far", "host": "far", "port": 2222, "user": "deploy", "hostKey": HOST_KEY}
BASTION = {"host": "bastion", "hostKey": HOST_KEY, "user": "jump"}


def builder(**settings: object) -> BuilderSettings:
    return parse(configuration(builders=[settings])).builders[0]


def test_a_connection_carries_the_host_keys_of_every_hop() -> None:
    connection = ssh_connection(builder(**FAR, jumpHost=BASTION))
    assert connection is not None
    assert (connection.host, connection.port, connection.user) == ("far", 2222, "deploy")
    assert connection.host_key == HOST_KEY
    assert isinstance(connection.proxy, command.remote.ProxyConnectionArgs)
    assert (connection.proxy.host, connection.proxy.host_key) == ("bastion", HOST_KEY)


def test_the_builder_is_the_last_hop_and_its_key_opens_every_one() -> None:
    way = hops(BuilderSettings(name="far", s3_user="far", closures=(), host="far", private_key="k"))
    assert [(hop.host, hop.private_key) for hop in way] == [("far", "k")]
    assert [hop.host for hop in hops(builder(**FAR, jumpHost=BASTION))] == ["bastion", "far"]


def test_this_machine_needs_no_connection() -> None:
    assert ssh_connection(builder(name="here", local=True)) is None


def test_a_hop_shows_no_key() -> None:
    far = BuilderSettings(name="far", s3_user="far", closures=(), host="far", private_key="k3y")
    assert "k3y" not in repr(hops(far))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("\x1b]0;owned\x07\x9b2Jbye\nmore", "?]0;owned??2Jbye"),
        ("x" * 10_000, "x" * 200),
        ("\n", ""),
        ("too many logins", "too many logins"),
    ],
    ids=["steers", "has no end", "says nothing", "says why"],
)
def test_a_peer_does_not_steer_the_terminal_before_it_has_shown_who_it_is(
    monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    @asynccontextmanager
    async def connect(*_: object, **__: object) -> AsyncIterator[None]:
        raise asyncssh.DisconnectError(2, said)
        yield

    async def asked() -> None:
        async with logged_in(builder(name="far", host="far", insecureHostKey=True)):
            pass

    monkeypatch.setattr(asyncssh, "connect", connect)
    # `asyncio.run` would take from this thread the loop that other tests use.
    loop = asyncio.new_event_loop()
    with closing(loop), pytest.raises(UnreachableError) as refused:
        loop.run_until_complete(asked())
    assert str(refused.value) == f"far cannot be asked ({told})"
