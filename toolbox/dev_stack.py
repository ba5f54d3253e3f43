"""The stack `dev` on this machine: a MinIO server, a builder and the program between them.

Everything it makes lies in `.dev` of the checkout. The program runs from `.dev/project`,
whose parts are links to the checkout's, so that the machine's own settings are written beside
them and the checkout stays as it was committed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from toolbox import throwaway_builder, tools
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer
from toolbox.progress import Progress, say
from toolbox.throwaway_builder import ThrowawayBuilder

HOME = tools.CHECKOUT / ".dev"
PROJECT = HOME / "project"
PROGRAM = ("Pulumi.yaml", "__main__.py", "components", "formats", "program", "push", ".venv")
NAMESPACE = "nixcache"
STACK = "dev"
SETTINGS = f"Pulumi.{STACK}.yaml"
BUILDER_NAME = "throwaway"
CLOSURE_PATHS = 60
CLOSURE_BYTES = 20_000_000
CLOSURE_SEED = 1


def up() -> None:
    """Bring everything up and print what a client needs; a second run changes nothing.

    Raises ToolboxError when a tool, the server or the builder cannot be had, or the engine
    reports a failure.
    """
    # Its state, keys and objects are the owner's alone.
    HOME.mkdir(mode=0o700, exist_ok=True)
    with _alone():
        engine = tools.engine()
        tell([engine, tools.language_host(engine), tools.server()])
        tell(tools.install_plugins(HOME / "pulumi"))
        server = _start_server()
        settings, private_key = _builder()
        _select_stack()
        _write_settings(_settings(server, settings))
        _set_secret("minioPassword", server.root_password)
        if private_key:
            _set_secret("sshPrivateKey", private_key)
        pulumi(["up", "--yes", "--skip-preview"])
        say("\nWhat a client pastes into its configuration.nix:\n")
        pulumi(["stack", "output", "nixosConfiguration"])
        say(
            f"\nThe cache answers at {server.endpoint}, its private CA is {server.ca_file}.\n"
            'See what a change would do with make pulumi ARGS="preview". '
            "make down stops the server and the builder, make clean removes all of it."
        )


def down() -> None:
    """Stop the server and the builder; data and state stay for the next `up`."""
    if HOME.exists():
        with _alone():
            _stop()
    say("The server and the builder are stopped.")


def clean() -> None:
    """Stop everything and remove `.dev`, the cached objects and the stack's state with it."""
    if not HOME.exists():
        say(f"There is no {HOME}: nothing to remove.")
        return
    with _alone():
        _stop()
        shutil.rmtree(HOME)
    say(f"Removed {HOME}: the stack's state, the MinIO server's data and the builder.")


def pulumi(arguments: Sequence[str]) -> None:
    """Run the engine's command on the dev stack, on this terminal.

    Raises:
        ToolboxError: there is no dev stack yet, or the command fails.
    """
    if not PROJECT.exists():
        raise ToolboxError("there is no dev stack yet; run make up first")
    process = subprocess.Popen(["pulumi", *arguments], cwd=PROJECT, env=_environment())
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # The terminal has sent it to the engine too, which ends in order; so do we.
            continue
    if code != 0:
        raise ToolboxError(f"pulumi {arguments[0]} failed with exit code {code}; see above")


def operate(module: str, arguments: Sequence[str]) -> int:
    """Run a module of `operations` on the dev stack, on this terminal; return its exit code.

    Raises:
        ToolboxError: there is no dev stack yet.
    """
    if not PROJECT.exists():
        raise ToolboxError("there is no dev stack yet; run make up first")
    command = [sys.executable, "-m", f"operations.{module}", "--stack", STACK, *arguments]
    environment = {**_environment(), "PYTHONPATH": str(tools.CHECKOUT)}
    return subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode


def tell(taken: Sequence[tools.Tool]) -> None:
    """Say which source each tool came from."""
    for tool in taken:
        say(f"{tool.name} {tool.version}: {tool.origin}")


def machine_settings(
    committed: Mapping[str, Any], server: Mapping[str, Any], builder: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the settings: the committed ones, the server's, and a builder if there is one."""
    settings = {**committed, **{f"{NAMESPACE}:{name}": value for name, value in server.items()}}
    if builder:
        settings[f"{NAMESPACE}:builders"] = [builder]
        # All of this stack's paths are its own: what a test builder makes has no upstream, and
        # a local Nix's paths would all be skipped.
        settings[f"{NAMESPACE}:upstreamKeys"] = []
    return settings


@contextmanager
def _alone() -> Iterator[None]:
    with (HOME / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolboxError(
                "another make up, down or clean runs in this checkout; wait for its end"
            ) from None
        yield


def _start_server() -> MinioServer:
    server = MinioServer(HOME / "minio", detached=True)
    if not server.running:
        with Progress("starting the MinIO server"):
            server.start()
    return server


def _builder() -> tuple[dict[str, Any] | None, str]:
    """Return the builder's settings, if this machine can have one, and its private key."""
    nix = shutil.which("nix")
    if nix:
        closure = _local_closure(nix)
        say(f"The local {nix} makes this machine the builder of {closure}.")
        return {"name": "local", "local": True, "closures": [closure]}, ""
    reason = throwaway_builder.available()
    if reason:
        say(
            f"No builder: there is no nix here, and {reason}. To add one, describe it under "
            f"{NAMESPACE}:builders in {SETTINGS} (name, host, hostKey, closures; see the README)."
        )
        return None, ""
    builder = ThrowawayBuilder(HOME / "builder", detached=True)
    if not builder.running:
        with Progress("starting a throwaway builder with a real Nix"):
            builder.start()
    closure = builder.make_closure(CLOSURE_PATHS, CLOSURE_BYTES, CLOSURE_SEED, "dev")
    return {
        "name": BUILDER_NAME,
        "host": builder.host,
        "port": builder.port,
        "user": builder.user,
        "hostKey": builder.host_key,
        "closures": [closure],
    }, builder.private_key


def _local_closure(nix: str) -> str:
    """Return a small store path: the local Nix, or a file where that lies outside the store."""
    binary = Path(nix).resolve()
    if binary.is_relative_to("/nix/store"):
        return str(Path(*binary.parts[:4]))
    added = subprocess.run(
        ["nix-store", "--add", str(tools.CHECKOUT / "Pulumi.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    if added.returncode != 0:
        raise ToolboxError(
            f"the local nix cannot add a file to its store: {added.stderr.strip()}; "
            "mend it, or take it off PATH"
        )
    return added.stdout.strip()


def _stop() -> None:
    MinioServer(HOME / "minio").stop()
    ThrowawayBuilder(HOME / "builder").stop()


def _environment() -> dict[str, str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")},
        **tools.engine_environment(HOME / "pulumi"),
        "PULUMI_BACKEND_URL": f"file://{HOME / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(HOME / "passphrase"),
    }
    # The builder's key is a setting; an agent that does not answer would fail the connection.
    environment.pop("SSH_AUTH_SOCK", None)
    return environment


def _select_stack() -> None:
    PROJECT.mkdir(exist_ok=True)
    (HOME / "state").mkdir(exist_ok=True)
    for part in PROGRAM:
        link = PROJECT / part
        if not link.is_symlink():
            link.symlink_to(Path("../..") / part)
    passphrase = HOME / "passphrase"
    if not passphrase.exists():
        passphrase.touch(mode=0o600)
        passphrase.write_text(secrets.token_urlsafe(30))
    _quietly("stack", "select", "--create", STACK)


def _settings(server: MinioServer, builder: Mapping[str, Any] | None) -> dict[str, Any]:
    committed = yaml.safe_load((tools.CHECKOUT / SETTINGS).read_text())["config"]
    return machine_settings(
        committed,
        {
            "endpoint": server.endpoint,
            "minioUser": server.root_user,
            "caCertificateFile": str(server.ca_file),
        },
        builder,
    )


def _write_settings(settings: dict[str, Any]) -> None:
    path = PROJECT / SETTINGS
    stack = yaml.safe_load(path.read_text()) if path.exists() else None
    path.write_text(yaml.safe_dump({**(stack or {}), "config": settings}))


def _set_secret(name: str, value: str) -> None:
    _quietly("config", "set", "--secret", f"{NAMESPACE}:{name}", text=value)


def _quietly(*arguments: str, text: str = "") -> None:
    done = subprocess.run(
        ["pulumi", "--non-interactive", *arguments],
        cwd=PROJECT,
        env=_environment(),
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolboxError(f"pulumi {' '.join(arguments)} failed:\n{done.stdout}")
