"""The real parts: engine, server, builders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.cache_bucket import CacheBucket
from tests.system.preloaded_python.environment import preloaded_python, with_python
from tests.system.stack import Stack
from toolbox import throwaway_builder, tools
from toolbox.base_tree import EQUIPMENT
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment that finds the real engine and its plugins."""
    home = tmp_path_factory.mktemp("pulumi-home")
    host = tools.language_host(tools.engine())
    origins = {tool.origin for tool in (*tools.install_plugins(home), host)}
    environment = tools.engine_environment(home)
    if origins != {tools.DROP_IN}:
        yield environment
        return
    with preloaded_python(tmp_path_factory.mktemp("preloaded-python")) as virtualenv:
        yield with_python(virtualenv, environment, tmp_path_factory.mktemp("engine") / "bin")


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A running MinIO server of the module's own."""
    with MinioServer(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayBuilder]:
    """A running builder of the module's own, with Nix 2.34."""
    reason = throwaway_builder.available()
    if reason is not None:
        pytest.skip(f"no builder with a real Nix: {reason}")
    with ThrowawayBuilder(tmp_path_factory.mktemp("builder")) as machine:
        yield machine


@pytest.fixture(scope="module")
def equipped_builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayBuilder]:
    """A running builder of the module's own with what few builders have: systemd, odd shells."""
    reason = throwaway_builder.available()
    if reason is not None:
        pytest.skip(f"no builder with a real Nix: {reason}")
    with ThrowawayBuilder(tmp_path_factory.mktemp("equipped"), packages=EQUIPMENT) as machine:
        yield machine


@pytest.fixture(scope="module")
def second_builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayBuilder]:
    """Another machine with Nix, which has nothing of the first one's store."""
    reason = throwaway_builder.available()
    if reason is not None:
        pytest.skip(f"no client with a real Nix: {reason}")
    with ThrowawayBuilder(tmp_path_factory.mktemp("client")) as machine:
        yield machine


@pytest.fixture(scope="module")
def shared_bucket(minio: MinioServer) -> CacheBucket:
    """A cache's bucket of the module's own, for its builders to push to."""
    return CacheBucket(minio, "pushed")


@pytest.fixture
def bucket(shared_bucket: CacheBucket) -> Iterator[CacheBucket]:
    """The same with nothing but `nix-cache-info` in it."""
    yield shared_bucket
    shared_bucket.empty()


StackFactory = Callable[..., Stack]


@pytest.fixture
def new_stack(engine: Mapping[str, str], tmp_path: Path) -> StackFactory:
    """Make stacks of this project in directories of their own."""

    def make(name: str = "test", **settings: object) -> Stack:
        stack = Stack(engine, tmp_path / name, name)
        stack.set(settings)
        return stack

    return make


def server_settings(server: MinioServer) -> dict[str, object]:
    """Return the settings that point a stack at a server of the tests."""
    return {
        "endpoint": server.endpoint,
        "caCertificateFile": str(server.ca_file),
        "minioUser": server.root_user,
        "minioPassword": server.root_password,
        "signingKeys": ["cache.test-1"],
        "signingKeyDomains": ["cache.test"],
        "protect": False,
    }


def builder_settings(machine: ThrowawayBuilder, *closures: str) -> dict[str, object]:
    """Return the element of `builders` for a builder of the tests."""
    return {
        "name": "nixbuilder",
        "host": machine.host,
        "port": machine.port,
        "user": machine.user,
        "hostKey": machine.host_key,
        "closures": list(closures),
    }
