"""The stack `dev` on this machine: a MinIO server, a builder, a client, and the program between.

Everything it makes lies in `.dev` of the checkout. The program runs from `.dev/stacks/dev`, whose
parts are links to the checkout's. What belongs to the machine stands there as defaults of the
project's settings, so that the stack's own file holds what a person has set, and nothing else but
the server's password.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolbox import throwaway_builder, tools
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer
from toolbox.progress import Progress, say
from toolbox.stacks import (
    DEV,
    HOME,
    NAMESPACE,
    Made,
    Stack,
    create,
    elsewhere,
    existing,
    machine_stack,
    note_machine,
)
from toolbox.throwaway_builder import ThrowawayBuilder

BUILDER_NAME = "throwaway"
CLOSURE_PATHS = 60
CLOSURE_BYTES = 20_000_000
CLOSURE_SEED = 1


def up(name: str) -> Stack:
    """Bring a stack on this machine's server up; a second run changes nothing.

    Raises:
        ToolboxError: a tool, the server or the builder cannot be had, or the engine reports a
            failure.
        KeyboardInterrupt: it was interrupted.
    """
    # Its state, keys and objects are the owner's alone.
    HOME.mkdir(mode=0o700, exist_ok=True)
    with _alone():
        engine = tools.engine()
        tell([engine, tools.language_host(engine), tools.server()])
        tell(tools.install_plugins(HOME / "pulumi"))
        server = _start_server()
        note_machine(machine_settings(server, _builder()), engine.path)
        stack = machine_stack(name)
        stack.quietly("stack", "select", "--create", name)
        _set_password(stack, server.root_password)
        if stack.on_terminal(["up", "--yes", "--skip-preview"]) != 0:
            raise ToolboxError("pulumi up failed; see above")
    return stack


def make_stack(name: str) -> Made:
    """Make another stack on this machine's server, which knows all that it needs of it.

    Raises:
        ToolboxError: there is no such server, the name cannot be a bucket's, or the stack is there.
    """
    made = create(name, on_own_server=True)
    _set_password(made.stack, MinioServer(HOME / "minio", detached=True).root_password)
    return made


def tell_of_the_cache(stack: Stack) -> None:
    """Print what a client pastes, and say what one can do next."""
    say("\nWhat a client pastes into its configuration.nix:\n")
    print(stack.quietly("stack", "output", "nixosConfiguration").rstrip(), flush=True)
    address = stack.quietly("stack", "output", "substituter").strip()
    say(
        f"\nThe cache answers at {address}.\n"
        f'Change it: make pulumi ARGS="config set retentionDays 14", then make pulumi '
        "ARGS=preview, then make up. What you set stays.\n"
        "make shell is a client's terminal; make down stops server, builder and client, "
        "make clean removes all of it."
    )
    if stack.name != DEV:
        say(
            f"For this stack, up, pulumi and shell take STACK={stack.name}, as in make up "
            f"STACK={stack.name}; without it, dev is meant."
        )


def down() -> None:
    """Stop the server, the builder and the client; data and state stay for the next `up`."""
    if HOME.exists():
        with _alone():
            _stop()
    say("The server, the builder and the client are stopped.")


def clean() -> None:
    """Stop everything and remove `.dev`, the cached objects and the stacks' state with it.

    Raises:
        ToolboxError: a stack on another server would lose its state and its keys; nothing is done.
    """
    if not HOME.exists():
        say(f"There is no {HOME}: nothing to remove.")
        return
    with _alone():
        _keep_what_is_elsewhere()
        _stop()
        shutil.rmtree(HOME)
    say(f"Removed {HOME}: the stacks' state, the MinIO server's data and the machines.")


def client() -> ThrowawayBuilder:
    """Return a machine that has nothing of the builder's store, running.

    Raises:
        ToolboxError: this machine cannot have one.
    """
    reason = throwaway_builder.available()
    if reason:
        raise ToolboxError(f"there is no client: there is no nix on PATH here, and {reason}")
    machine = ThrowawayBuilder(HOME / "client", detached=True)
    if not machine.running:
        with _alone(), Progress("starting a client with a real Nix"):
            machine.start()
    return machine


def reach_client() -> list[str]:
    """Return the arguments with which `operations.pull` reaches a client.

    Raises:
        ToolboxError: this machine cannot have one.
    """
    return [] if shutil.which("nix") else ["--over", client().command]


def shell(name: str) -> int:
    """Open a terminal on a client of a stack's cache; return 0, whatever ended it.

    Raises:
        ToolboxError: this machine cannot have a client, or the cache is private.
    """
    stack = existing(name)
    address = stack.quietly("stack", "output", "substituter").strip()
    if address.startswith("s3:"):
        raise ToolboxError(
            f"the cache of stack {name} is private, and this client's Nix cannot sign requests; "
            "make pull reads it as its reader does"
        )
    machine = client()
    # Only this cache and its keys, whatever the machine has by itself.
    configuration = stack.quietly("stack", "output", "nixConf").replace("extra-", "")
    machine.trust(MinioServer(HOME / "minio", detached=True).ca_file)
    machine.run("cat >/root/nix.conf", input=configuration)
    say(
        f"A client whose Nix takes what {address} has, and nothing else: nix-store --realise PATH "
        "fetches a path, exit leaves."
    )
    machine.terminal("NIX_USER_CONF_FILES=/root/nix.conf exec bash -l")
    return 0


def tell(taken: Sequence[tools.Tool]) -> None:
    """Say which source each tool came from."""
    for tool in taken:
        say(f"{tool.name} {tool.version}: {tool.origin}")


def machine_settings(server: MinioServer, builder: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what this machine adds to the settings of its stacks: server, and builder if any."""
    settings: dict[str, Any] = {
        "endpoint": server.endpoint,
        "minioUser": server.root_user,
        "caCertificateFile": str(server.ca_file),
    }
    if builder:
        settings["builders"] = [builder]
        # All of this stack's paths are its own: what a test builder makes has no upstream, and
        # a local Nix's paths would all be skipped.
        settings["upstreamKeys"] = []
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


def _builder() -> dict[str, Any] | None:
    """Return the builder's settings, if this machine can have one."""
    nix = shutil.which("nix")
    if nix:
        closure = _local_closure(nix)
        say(f"The local {nix} makes this machine the builder of {closure}.")
        return {"name": "local", "local": True, "closures": [closure]}
    reason = throwaway_builder.available()
    if reason:
        say(
            f"No builder: there is no nix here, and {reason}. To add one, set builders (name, "
            "host, hostKey, closures; see docs/settings.md)."
        )
        return None
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
        "privateKeyFile": str(builder.private_key_file),
        "closures": [closure],
    }


def _local_closure(nix: str) -> str:
    """Return a small store path of the local Nix: itself, or a file where it lies outside."""
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


def _set_password(stack: Stack, password: str) -> None:
    """Let the stack know the server's password, unless a person has set one."""
    if "minioPassword" not in stack.settings:
        stack.quietly("config", "set", "--secret", f"{NAMESPACE}:minioPassword", text=password)


def _keep_what_is_elsewhere() -> None:
    """Refuse where resources on a server that stays would be left without state and keys."""
    names = elsewhere()
    if not names:
        return
    several = len(names) > 1
    which = "NAME" if several else names[0]
    raise ToolboxError(
        f"{'stacks' if several else 'stack'} {' and '.join(names)} "
        f"{'have' if several else 'has'} resources on another server, and state, signing keys and "
        f"passphrase in {HOME}; destroy first what nobody needs (make pulumi "
        f'STACK={which} ARGS="destroy --run-program"), or move state and passphrase out of it as '
        "docs/environments.md says"
    )


def _stop() -> None:
    MinioServer(HOME / "minio").stop()
    for machine in ("builder", "client"):
        ThrowawayBuilder(HOME / machine).stop()
