"""The engine's environment in which it starts Python in the quick way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from toolbox.tools import CHECKOUT, DYNAMIC_PROVIDERS, LANGUAGE_HOST

MODULES = (
    "grpc.aio", "minio", "nacl.signing", "pulumi.dynamic", "pulumi_command.remote", "pulumi_minio",
)  # fmt: skip
"""What is imported beforehand. All of it is installed: the project's own is each stack's."""

VIRTUALENV = "NIXCACHE_TESTS_VIRTUALENV"
"""Variable that names the virtual environment of the tests' stacks."""


@contextmanager
def preloaded_python(directory: Path) -> Iterator[Path]:
    """Yield a virtual environment whose `bin/python` has imported `MODULES` when it starts.

    Args:
        directory: an empty directory for it.
    """
    client = Path(__file__).with_name("client.py")
    python = directory / "bin" / "python"
    python.parent.mkdir()
    # A socket's path has at most 107 characters, which pytest's own directories may exceed.
    with tempfile.TemporaryDirectory() as private:
        address = Path(private) / "socket"
        script = f"#!/bin/sh\nexec '{sys.executable}' -IS '{client}' '{address}' \"$@\"\n"
        _write(python, script.encode())
        command = [sys.executable, "-m", f"{__package__}.server", str(address), *MODULES]
        # Its standard input ends with this process, however that ends.
        with subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            try:
                yield directory
            finally:
                server.stdin.close()


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
