"""SSH for the drop-in `command`: connections as `remote.Command` is told to make them.

Source of fact: pulumi-command v1.2.1, `provider/pkg/provider`, and its answers as recorded in
`tests/plugins/data`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import asyncssh

from toolbox.plugins.property_values import Properties
from toolbox.plugins.resource_provider import ResourceError, Subject, system_reason

FIRST_PAUSE, PAUSE_FACTOR, LONGEST_PAUSE = 0.1, 1.5, 5.0
"""Seconds between two attempts to connect, and how they grow."""


async def connect(
    subject: Subject, settings: Properties, open_until_done: AsyncExitStack
) -> asyncssh.SSHClientConnection:
    """Connect as `settings` say, through their proxy if they name one.

    Raises:
        ResourceError: one of the two does not answer, or does not let us in.
    """
    proxy = settings.get("proxy")
    if not proxy:
        return await _dial(subject, "Dial", settings, None, open_until_done)
    try:
        tunnel = await _dial(subject, "Dial proxy", proxy, None, open_until_done)
        return await _dial(subject, "Dial from proxy", settings, tunnel, open_until_done)
    except ResourceError as error:
        raise ResourceError(f"proxy: {error}") from None


async def _dial(
    subject: Subject,
    what: str,
    settings: Properties,
    tunnel: asyncssh.SSHClientConnection | None,
    open_until_done: AsyncExitStack,
) -> asyncssh.SSHClientConnection:
    checks: dict[str, Any] = {"known_hosts": None}
    try:
        if settings.get("hostKey") is not None:
            host_key = asyncssh.import_public_key(settings["hostKey"])
            # For an RSA key this is the algorithm with SHA-1 alone, which servers of today refuse:
            # so does the official plugin, and a user shall learn it here.
            algorithms = [host_key.get_algorithm()]
            checks = {"known_hosts": ([host_key], [], []), "server_host_key_algs": algorithms}
    except asyncssh.KeyImportError as error:
        raise ResourceError(f"failed to parse host key: {error}") from None
    keys = await _client_keys(settings, open_until_done)
    limit = settings["dialErrorLimit"]
    pause = FIRST_PAUSE
    failed = 0
    while True:
        try:
            return await open_until_done.enter_async_context(
                asyncssh.connect(
                    settings["host"],
                    int(settings["port"]),
                    tunnel=tunnel,
                    username=settings["user"],
                    password=settings.get("password"),
                    client_keys=keys or None,
                    **checks,
                    connect_timeout=settings["perDialTimeout"] or None,
                    config=None,
                    agent_path=None,
                    gss_host=None,
                )
            )
        except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
            if failed == limit:
                reason = system_reason(
                    error, f"dial tcp {settings['host']}:{settings['port']}: connect"
                )
                raise ResourceError(f"after {failed} failed attempts: {reason}") from None
            failed += 1
        attempt = f"{what} {failed}/{'inf' if limit < 0 else limit} failed: retrying"
        await asyncio.to_thread(subject.engine.log, attempt, urn=subject.urn, passing=True)
        await asyncio.sleep(pause)
        pause = min(pause * PAUSE_FACTOR, LONGEST_PAUSE)


async def _client_keys(settings: Properties, open_until_done: AsyncExitStack) -> list[Any]:
    keys: list[Any] = []
    if settings.get("privateKey") is not None:
        try:
            keys.append(
                asyncssh.import_private_key(
                    settings["privateKey"], settings.get("privateKeyPassword")
                )
            )
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise ResourceError(f"the connection's privateKey cannot be used: {error}") from None
    agent = settings.get("agentSocketPath") or os.environ.get("SSH_AUTH_SOCK")
    if agent:
        try:
            client = await open_until_done.enter_async_context(asyncssh.connect_agent(agent))
        except OSError as error:
            raise ResourceError(system_reason(error, f"dial unix {agent}: connect")) from None
        keys += await client.get_keys()
    return keys


async def accepted(
    subject: Subject,
    connection: asyncssh.SSHClientConnection,
    required: Mapping[str, str],
    previous: Mapping[str, str],
) -> dict[str, str]:
    """Return what of both the server lets a command see.

    The protocol's answer to an environment request is not in asyncssh's interface, so a shell is
    asked what it sees. An unaccepted variable of `previous` is a warning.

    Raises:
        ResourceError: a `required` variable is not accepted.
    """
    wanted = {**previous, **required}
    for name in wanted:
        if not name.isidentifier():
            raise ResourceError(f"could not set environment variable {name!r}: not a shell's name")
    if not wanted:
        return {}
    question = "printf '%s\\0' " + " ".join(f'"${{{name}}}"' for name in wanted)
    answer = await connection.run(question, env=wanted, stdin=asyncssh.DEVNULL, encoding=None)
    assert isinstance(answer.stdout, bytes)
    values = dict(zip(wanted, answer.stdout.split(b"\0"), strict=False))
    refused = [name for name in wanted if values.get(name) != wanted[name].encode()]
    for name in refused:
        advice = (
            f"Unable to set '{name}'. This only works if your SSH server is configured to accept"
            " these variables via AcceptEnv. Alternatively, if a Bash-like shell runs the command"
            " on the remote host, you could prefix the command itself with the variables in the"
            " form 'VAR=value command'"
        )
        level = "ERROR" if name in required else "WARNING"
        await asyncio.to_thread(subject.engine.log, advice, urn=subject.urn, level=level)
        if name in required:
            raise ResourceError(f'could not set environment variable "{name}": refused')
    return {name: wanted[name] for name in wanted if name not in refused}
