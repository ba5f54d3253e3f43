"""A server in this process, and clients of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.unit.push.client import Client
from tests.unit.push.s3_stand_in import StandIn, serving

PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take proxies out of the environment, and put the thread's hook back afterwards."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


@pytest.fixture(autouse=True)
def _signals_as_a_terminal_has_them() -> Iterator[None]:
    """Ignore none of what ends a push: who runs the tests may, and their workers do."""
    before = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no time between attempts: the pauses are not what is tested."""
    monkeypatch.setattr("push.transfers._LONGEST_PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A server with an empty bucket."""
    with serving(StandIn()) as stand_in:
        yield stand_in


Clients = Callable[..., Client]


@pytest.fixture
def client_of() -> Iterator[Clients]:
    """Make clients that end with the test."""
    made: list[Client] = []

    def make(endpoint: str, **changes: object) -> Client:
        made.append(Client(endpoint, **changes))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(server: StandIn, client_of: Clients) -> Client:
    """A client of the server."""
    return client_of(server.url)
