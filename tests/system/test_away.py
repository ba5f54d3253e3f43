"""Clients whose cache is away: builds of something new go on, on every Nix, after some seconds."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from program.outputs.machines import ClientConfiguration
from tests.system.cache_bucket import CacheBucket, trust
from tests.system.nixos_machine import nix_conf_lines
from toolbox import throwaway_builder
from toolbox.base_tree import suites
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

LONGEST = 60
"""Seconds by which a build must go on, on a machine that does other things too.

It takes 10 with the settings that clients are given, and 80 to 300 with Nix's own.
"""

# Ten derivations, one after the other: each asks the cache anew.
NEW = """
let
  made = number: derivation {{
    name = "{name}-${{toString number}}";
    builder = "/bin/sh";
    system = builtins.currentSystem;
    before = if number == 0 then "" else made (number - 1);
    args = [ "-c" "echo $before >$out" ];
  }};
in
made 9
"""

FLAKE = """
{{
  {nix_config}
  outputs = {{ self }}: {{ made = {expression}; }};
}}
"""

OLDEST = "bookworm"
"""Its Nix 2.8 ends builds where a cache has gone that it remembers, for a week, to have reached."""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, ThrowawayBuilder]]:
    """A client with each version of Nix, by the name of its suite."""
    reason = throwaway_builder.available()
    if reason is not None:
        pytest.skip(f"no clients with a real Nix: {reason}")
    with ExitStack() as stack:
        yield {
            suite: stack.enter_context(
                ThrowawayBuilder(tmp_path_factory.mktemp(suite), suite=suite)
            )
            for suite in suites()
        }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MinioServer]:
    """A server of this test's own, since it goes."""
    with MinioServer(tmp_path / "minio") as running:
        yield running


@contextmanager
def packets_dropped(port: int) -> Iterator[None]:
    """Let whatever is sent to a port vanish.

    A listener that never accepts: once its queue is full, the kernel drops what asks to connect
    (Linux, `tcp(7)`, tcp_abort_on_overflow), as a firewall that drops would.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        with socket.socket() as unanswered:
            unanswered.settimeout(0.5)
            assert unanswered.connect_ex(("127.0.0.1", port)) != 0, "it is not away"
        yield


@contextmanager
def nothing_listening(port: int) -> Iterator[None]:
    """Let whatever is sent to a port be refused."""
    with socket.socket() as unused:
        assert unused.connect_ex(("127.0.0.1", port)) != 0, "it is not away"
    yield


def clients_of(bucket: CacheBucket) -> ClientConfiguration:
    """Return what a stack with this bucket puts out for its clients."""
    url = f"{bucket.server.endpoint}/{bucket.name}"
    return ClientConfiguration(url, [str(bucket.public_key)], None)


def configure(client: ThrowawayBuilder, bucket: CacheBucket, nix_conf: str) -> None:
    """Give a client lines of nix.conf, and let it forget the caches of other tests."""
    trust(client, bucket.server)
    # Another test's cache is not to be asked besides.
    client.run(
        "cd /etc/nix; [ -e installed ] || cp nix.conf installed; cat installed - >nix.conf; "
        "rm -rf ~/.cache/nix",
        input=nix_conf,
    )


def nixos_settings(client: ThrowawayBuilder, module: str) -> str:
    """Return the lines of nix.conf that NixOS makes of a module's `nix.settings`."""
    evaluate = "nix-instantiate --eval --strict --json --expr"
    settings = client.run(f"{evaluate} {shlex.quote(f'({module}).nix.settings')}").stdout
    return nix_conf_lines(json.loads(settings))


def build(client: ThrowawayBuilder, name: str, options: str = "") -> tuple[float, str]:
    """Build something new; return its seconds, and what was said."""
    began = time.monotonic()
    done = try_to_build(client, name, options)
    assert done.returncode == 0, done.stderr[-2000:]
    return time.monotonic() - began, done.stderr


def try_to_build(
    client: ThrowawayBuilder, name: str, options: str = ""
) -> subprocess.CompletedProcess[str]:
    """Build something new, or not."""
    return in_time(client, f"nix-build --no-out-link {options} -", NEW.format(name=name))


def try_to_build_flake(
    client: ThrowawayBuilder, nix_config: str, name: str
) -> subprocess.CompletedProcess[str]:
    """Build something new that a flake with a `nixConfig` makes, or not."""
    expression = NEW.format(name=name)
    flake = FLAKE.format(nix_config=nix_config, expression=expression)
    client.run("mkdir -p /srv/flake; cat >/srv/flake/flake.nix", input=flake)
    nix = "nix --extra-experimental-features 'nix-command flakes'"
    accepted = "--accept-flake-config --impure --no-link"
    return in_time(client, f"{nix} build {accepted} path:/srv/flake#made")


def in_time(
    client: ThrowawayBuilder, command: str, expression: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command that builds; Nix 2.8 knows no setting for the private authority."""
    return client.run(
        f"export NIX_SSL_CERT_FILE=/etc/private-ca.pem; timeout --signal=KILL {LONGEST} {command}",
        input=expression,
        check=False,
    )


@pytest.mark.parametrize("away", [nothing_listening, packets_dropped])
def test_a_build_of_something_new_goes_on(
    clients: Mapping[str, ThrowawayBuilder],
    server: MinioServer,
    away: Callable[[int], AbstractContextManager[None]],
) -> None:
    kind = away.__name__
    bucket = CacheBucket(server, "away")
    for client in clients.values():
        configure(client, bucket, clients_of(bucket).nix_conf())
        assert "unable to download" not in build(client, f"there-{kind}")[1]
    port = server.port
    server.stop()

    def seconds(suite: str) -> float:
        client = clients[suite]
        if suite == OLDEST:
            if away is nothing_listening:
                assert "SubstituterDisabled" in try_to_build(client, f"crash-{kind}").stderr
            build(client, f"alone-{kind}", "--option substitute false")
            client.run("rm -r ~/.cache/nix")
        taken, said = build(client, f"away-{kind}")
        assert "unable to download" in said
        return taken

    with away(port), ThreadPoolExecutor() as pool:
        taken = dict(zip(clients, pool.map(seconds, clients), strict=True))
    print(f"{kind}: {taken} s")


def test_it_goes_on_with_the_settings_of_the_nixos_text(
    clients: Mapping[str, ThrowawayBuilder], server: MinioServer
) -> None:
    bucket = CacheBucket(server, "away")
    newer = [client for suite, client in clients.items() if suite != OLDEST]
    for client in newer:
        configure(client, bucket, nixos_settings(client, clients_of(bucket).nixos_configuration()))
        assert "unable to download" not in build(client, "there-nixos")[1]
    server.stop()
    with ThreadPoolExecutor() as pool:
        for _, said in pool.map(lambda client: build(client, "away-nixos"), newer):
            assert "unable to download" in said


def test_it_goes_on_in_a_flake_whose_nix_config_is_accepted(
    clients: Mapping[str, ThrowawayBuilder], server: MinioServer
) -> None:
    bucket = CacheBucket(server, "away")
    nix_config = clients_of(bucket).flake_nix_config()
    newer = [client for suite, client in clients.items() if suite != OLDEST]
    for client in newer:
        configure(client, bucket, "")
        there = try_to_build_flake(client, nix_config, "there-flake")
        assert there.returncode == 0, there.stderr[-2000:]
        assert "unable to download" not in there.stderr
    server.stop()
    with ThreadPoolExecutor() as pool:
        for away in pool.map(
            lambda client: try_to_build_flake(client, nix_config, "away-flake"), newer
        ):
            assert away.returncode == 0, away.stderr[-2000:]
            assert "unable to download" in away.stderr
