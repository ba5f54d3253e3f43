"""The engine's environment in which it starts Python in the quick way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from toolbox.tools import CHECKOUT, DYNAMIC_PROVIDERS, LANGUAGE_HOST

MODULES = (
    "asyncssh", "grpc.aio", "minio", "nacl.signing", "pulumi.dynamic", "pulumi_command.remote",
    "pulumi_minio", "toolbox.plugins.command_provider", "toolbox.plugins.language_host",
    "toolbox.plugins.minio_provider", "toolbox.plugins.ssh_connection",
)  # fmt: skip
"""What is imported beforehand besides the program: what is installed, and the drop-in plugins."""

VIRTUALENV = "NIXCACHE_TESTS_VIRTUALENV"
"""Variable that names the virtual environment of the tests' stacks."""


SERVERS = 2
"""How many there are to fork from. Forks of one have one seed of hashes, and so the same order of
sets: what a command writes down in such an order is another order in about every other one."""

_SERVERS_FILE = "servers"


@contextmanager
def preloaded_python(directory: Path) -> Iterator[Path]:
    """Yield a virtual environment whose `bin/python` has imported `MODULES` when it starts.

    Args:
        directory: an empty directory for it.
    """
    client = Path(__file__).with_name("client.py")
    python = directory / "bin" / "python"
    python.parent.mkdir()
    with ExitStack() as running:
        # A socket's path has at most 107 characters, which pytest's own directories may exceed.
        address = f"{running.enter_context(tempfile.TemporaryDirectory())}/socket"
        script = f"exec '{sys.executable}' -IS '{client}' '{address}' {SERVERS} \"$@\""
        _write(python, f"#!/bin/sh\n{script}\n".encode())
        servers = [running.enter_context(_server(f"{address}-{n}")) for n in range(SERVERS)]
        (directory / _SERVERS_FILE).write_text(" ".join(map(str, servers)))
        yield directory


@contextmanager
def _server(address: str) -> Iterator[int]:
    command = [sys.executable, "-m", f"{__package__}.server", address, *MODULES]
    # Its standard input ends with this process, however that ends.
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield server.pid
        finally:
            server.stdin.close()
            # What asks one that has failed gets a real Python, and nobody would notice.
            assert server.wait() == 0


def forks(environment: Mapping[str, str]) -> list[int]:
    """Return the forks that run for an engine with this environment; none where it has none.

    They are in none of their clients' sessions, and end a moment after them.
    """
    virtualenv = environment.get(VIRTUALENV)
    if virtualenv is None:
        return []
    servers = Path(virtualenv, _SERVERS_FILE).read_text().split()
    return [
        int(pid)
        for server in servers
        for pid in Path("/proc", server, "task", server, "children").read_text().split()
    ]


def with_python(
    virtualenv: Path, environment: Mapping[str, str], directory: Path
) -> dict[str, str]:
    """Return the engine's environment where `virtualenv`'s Python runs drop-ins and programs.

    Args:
        virtualenv: what `preloaded_python` yields.
        environment: finds the engine, and plugins that are drop-ins; these are rewritten.
        directory: a directory, made here, for an engine with a language host of its own.
    """
    directory.mkdir()
    engine = Path(shutil.which("pulumi", path=environment["PATH"]) or "").parent
    try:
        os.link(engine / "pulumi", directory / "pulumi")
    except OSError:
        shutil.copy2(engine / "pulumi", directory / "pulumi")
    for script in (engine / LANGUAGE_HOST, engine / DYNAMIC_PROVIDERS):
        _write(directory / script.name, _run_by(virtualenv, script))
    for script in Path(environment["PULUMI_HOME"], "plugins").glob("*/pulumi-resource-*"):
        _write(script, _run_by(virtualenv, script))
    return {
        **environment,
        "PATH": f"{directory}{os.pathsep}{environment['PATH']}",
        VIRTUALENV: str(virtualenv),
    }


def with_python_of(
    engine: Mapping[str, str], environment: Mapping[str, str], directory: Path
) -> dict[str, str]:
    """Return another engine's environment with the same Python as `engine`, as `with_python`."""
    virtualenv = engine.get(VIRTUALENV)
    if virtualenv is None:
        return dict(environment)
    return with_python(Path(virtualenv), environment, directory)


def _run_by(virtualenv: Path, script: Path) -> bytes:
    # What is no drop-in, but a binary, does not have it.
    python = f"'{sys.executable}'".encode()
    return script.read_bytes().replace(python, f"'{virtualenv}/bin/python'".encode())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)
