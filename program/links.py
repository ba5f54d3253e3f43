"""What the links of builders point to now, so that a preview can show it.

They are followed on the builders before anything is declared, all builders side by side. A builder
that does not answer keeps the store paths it had, and a warning says so.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pulumi

from formats.store_path import is_store_path
from program.settings.builders import BuilderSettings
from program.settings.ssh import JumpHost

PATIENCE_SECONDS = 4.0
"""How long all builders together may take to answer."""


class UnresolvedError(Exception):
    """A builder's links cannot be followed; the message says why, in half a sentence."""


def has_links(builder: BuilderSettings, store_dir: str) -> bool:
    """Return whether a builder has to be asked what it is to push: store paths say it already."""
    return not all(is_store_path(closure, store_dir) for closure in builder.pushed)


def resolve(builders: Sequence[BuilderSettings], store_dir: str) -> dict[str, list[str]]:
    """Return the store paths that each builder's closures and pins are now, by its name.

    A builder that cannot be asked is left out, with one warning line. What is a store path
    already needs no connection.
    """
    answers: dict[str, list[str]] = {}
    asked = []
    for builder in builders:
        if has_links(builder, store_dir):
            asked.append(builder)
        else:
            answers[builder.name] = list(builder.pushed)
    if asked:
        # The program runs inside an event loop already: this one needs a thread of its own.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(asyncio.run, _ask_all(asked, store_dir)).result()
        for builder, answer in zip(asked, found, strict=True):
            if isinstance(answer, UnresolvedError):
                pulumi.log.warn(f"builder {builder.name}: {answer}; what it last pushed stands")
            else:
                answers[builder.name] = answer
    return answers


async def _ask_all(
    builders: Sequence[BuilderSettings], store_dir: str
) -> list[list[str] | UnresolvedError]:
    return list(await asyncio.gather(*(_ask(builder, store_dir) for builder in builders)))


async def _ask(builder: BuilderSettings, store_dir: str) -> list[str] | UnresolvedError:
    try:
        if builder.local:
            targets = [_follow(closure) for closure in builder.pushed]
        else:
            targets = await asyncio.wait_for(_follow_over_ssh(builder), PATIENCE_SECONDS)
        return [_store_path(target, store_dir) for target in targets]
    except UnresolvedError as error:
        return error
    except asyncio.TimeoutError:
        return UnresolvedError(f"{builder.host} did not answer within {PATIENCE_SECONDS:g} seconds")


def _follow(link: str) -> str:
    try:
        return str(Path(link).resolve(strict=True))
    except (OSError, RuntimeError):
        raise UnresolvedError(f"{link} is not there") from None


def _store_path(target: str, store_dir: str) -> str:
    """Return the store path that `target` is, or lies in."""
    name = target.removeprefix(f"{store_dir}/").partition("/")[0]
    path = f"{store_dir}/{name}"
    if not target.startswith(f"{store_dir}/") or not is_store_path(path, store_dir):
        raise UnresolvedError(f"{target[:200]!r} is outside {store_dir}")
    return path


async def _follow_over_ssh(builder: BuilderSettings) -> list[str]:
    # Imported here: a stack whose closures are store paths never waits for it.
    import asyncssh  # noqa: PLC0415

    async def connect(
        hop: BuilderSettings | JumpHost, tunnel: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        host_key = hop.host_key and asyncssh.import_public_key(hop.host_key)
        given = {} if key is None else {"client_keys": [key], "agent_path": None}
        return await asyncssh.connect(
            hop.host,
            hop.port,
            username=hop.user,
            known_hosts=host_key and ([host_key], [], []),
            tunnel=tunnel,
            config=None,
            **given,
        )

    try:
        key = builder.private_key and asyncssh.import_private_key(builder.private_key)
        async with AsyncExitStack() as connections:
            tunnel = None
            if builder.jump_host is not None:
                tunnel = await connections.enter_async_context(
                    await connect(builder.jump_host, None)
                )
            connection = await connections.enter_async_context(await connect(builder, tunnel))
            command = shlex.join(["readlink", "-e", "--", *builder.pushed])
            done = await connection.run(command, check=False)
    except (OSError, asyncssh.Error, asyncssh.KeyImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnresolvedError(f"{builder.host} cannot be asked ({reason[:200]})") from None
    targets = str(done.stdout or "").splitlines()
    if done.exit_status != 0 or len(targets) != len(builder.pushed):
        raise UnresolvedError(f"not all of {', '.join(builder.pushed)} are there")
    return targets
