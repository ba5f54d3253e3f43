"""What the links of builders point to now, so that a preview can show it.

They are followed on the builders before anything is declared, all builders side by side. A builder
that does not answer keeps the store paths it had, and a warning says so.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pulumi

from formats.store_path import STORE_DIR, is_store_path
from program.connections import UnreachableError, logged_in
from program.settings.builders import BuilderSettings

PATIENCE_SECONDS = 4.0
"""How long all builders together may take to answer."""


class UnresolvedError(Exception):
    """A builder's links cannot be followed; the message says why, in half a sentence."""


def follow_links(
    builders: Sequence[BuilderSettings], store_dir: str = STORE_DIR
) -> dict[str, list[str] | None]:
    """Return the store paths that the closures and pins of builders with links are now, by name.

    A builder that cannot be asked has None, and one warning line. One that names store paths only
    has nothing to follow: it is left out, and needs no connection.
    """
    asked = [
        builder
        for builder in builders
        if not all(is_store_path(path, store_dir) for path in builder.pushed)
    ]
    if not asked:
        return {}
    # The program runs inside an event loop already: this one needs a thread of its own.
    with ThreadPoolExecutor(1) as thread:
        answers = thread.submit(asyncio.run, _ask_all(asked, store_dir)).result()
    found: dict[str, list[str] | None] = {}
    for builder, answer in zip(asked, answers, strict=True):
        found[builder.name] = None if isinstance(answer, Exception) else answer
        if isinstance(answer, Exception):
            pulumi.log.warn(f"builder {builder.name}: {answer}; what it last pushed stands")
    return found


async def _ask_all(
    builders: Sequence[BuilderSettings], store_dir: str = STORE_DIR
) -> list[list[str] | Exception]:
    return list(await asyncio.gather(*(_ask(builder, store_dir) for builder in builders)))


async def _ask(builder: BuilderSettings, store_dir: str) -> list[str] | Exception:
    try:
        if builder.local:
            targets = [_follow(closure) for closure in builder.pushed]
        else:
            targets = await asyncio.wait_for(_follow_over_ssh(builder), PATIENCE_SECONDS)
        return [_store_path(target, store_dir) for target in targets]
    except (UnreachableError, UnresolvedError) as error:
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
    async with logged_in(builder) as connection:
        command = shlex.join(["readlink", "-e", "--", *builder.pushed])
        done = await connection.run(command, check=False)
    targets = str(done.stdout or "").splitlines()
    if done.exit_status != 0 or len(targets) != len(builder.pushed):
        raise UnresolvedError(f"not all of {', '.join(builder.pushed)} are there")
    return targets
