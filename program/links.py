"""What the links of builders point to now, so that a preview can show it.

They are followed on the builders before anything is declared, all builders side by side, by the
rule that the push has (`push.store.follow_link`). A builder that does not answer keeps the store
paths it had, and a warning says so.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from subprocess import DEVNULL

import pulumi

from formats.store_path import STORE_DIR, is_store_path
from program.connections import UnreachableError, logged_in
from program.settings.builders import BuilderSettings
from push.store import UnknownPathError, follow_link

PREVIEW_PATIENCE_SECONDS = 4.0
"""How long all builders together may take to answer a preview, which a person waits for."""
PATIENCE_SECONDS = 60.0
"""How long they may take in a deployment: what a builder does not tell is not pushed."""
MOST_CHARACTERS = 1 << 20
"""How much a builder may say, its greeting included."""

# What `push.store.follow_link` does, for POSIX shells: a builder may have no Python yet, and its
# login shell may be fish or csh.
_FOLLOW = """\
set -f
normal() {
    plain=
    IFS=/
    for part in $1; do
        case $part in
        '' | .) ;;
        ..) plain=${plain%/*} ;;
        *) plain=$plain/$part ;;
        esac
    done
    unset IFS
}
follow() {
    normal "$1"
    links=0
    until case $plain in "$store"/*) ;; *) false ;; esac; do
        rest=${plain#/}
        place=
        until [ -L "$place" ]; do
            [ -n "$rest" ] || return
            place=$place/${rest%%/*}
            case $rest in
            */*) rest=${rest#*/} ;;
            *) rest= ;;
            esac
        done
        links=$((links + 1))
        [ "$links" -le 64 ] && target=$(readlink "$place") || return
        case $target in
        /*) normal "$target/$rest" ;;
        *) normal "${place%/*}/$target/$rest" ;;
        esac
    done
}
answer() {
    follow "$1" || plain=
    printf '%s %s\\n' "$mark" "$plain"
}
echo
"""


class UnresolvedError(Exception):
    """A builder's links cannot be followed; the message says why, in half a sentence."""


def follow_links(
    builders: Sequence[BuilderSettings], store_dir: str = STORE_DIR, *, preview: bool = True
) -> dict[str, list[str] | None]:
    """Return the store paths that the closures and pins of builders with links are now, by name.

    A builder that cannot be asked has None, and one warning line. One that names store paths only
    has nothing to follow: it is left out, and needs no connection.

    Args:
        builders: the machines that push.
        store_dir: the store directory.
        preview: whether nothing will be pushed, so that it is not worth a long wait.
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
        patience = PREVIEW_PATIENCE_SECONDS if preview else PATIENCE_SECONDS
        answering = thread.submit(asyncio.run, _ask_all(asked, store_dir, patience))
        if not preview:
            wait([answering], PREVIEW_PATIENCE_SECONDS)
            if not answering.done():
                names = ", ".join(builder.name for builder in asked)
                # Printed, not logged: what is logged is sent when the program waits for nothing.
                print(f"waiting up to {patience:g} seconds for answers of {names}", flush=True)
        answers = answering.result()
    found: dict[str, list[str] | None] = {}
    for builder, answer in zip(asked, answers, strict=True):
        found[builder.name] = None if isinstance(answer, Exception) else answer
        if isinstance(answer, Exception):
            pulumi.log.warn(f"builder {builder.name}: {answer}; what it last pushed stands")
    return found


async def _ask_all(
    builders: Sequence[BuilderSettings], store_dir: str, patience: float
) -> list[list[str] | Exception]:
    return list(await asyncio.gather(*(_ask(builder, store_dir, patience) for builder in builders)))


async def _ask(builder: BuilderSettings, store_dir: str, patience: float) -> list[str] | Exception:
    try:
        if builder.local:
            return [follow_link(link, store_dir) for link in builder.pushed]
        return await asyncio.wait_for(_follow_over_ssh(builder, store_dir), patience)
    # An OSError too, since Python 3.11.
    except asyncio.TimeoutError:
        return UnresolvedError(f"{builder.host} did not answer within {patience:g} seconds")
    except (UnreachableError, UnresolvedError, UnknownPathError, OSError) as error:
        return error


async def _follow_over_ssh(builder: BuilderSettings, store_dir: str) -> list[str]:
    mark = secrets.token_hex(16)
    async with logged_in(builder) as connection:
        # Login shells greet, in any encoding, and agree on little more than these two words.
        shell = await connection.create_process("exec sh", errors="replace", stderr=DEVNULL)
        shell.stdin.write(script(builder.pushed, mark, store_dir))
        shell.stdin.write_eof()
        said = ""
        while more := await shell.stdout.read(MOST_CHARACTERS):
            said += more
            if len(said) > MOST_CHARACTERS:
                raise UnresolvedError(
                    f"{builder.host} said more than {MOST_CHARACTERS:,} characters, and was asked "
                    "for a line for each link; see what its shell prints as it starts"
                )
        await shell.wait_closed()
    targets = answers(said, mark)
    if len(targets) != len(builder.pushed):
        raise UnresolvedError(
            f"{builder.host} did not say what its links point to (its shell ended with "
            f"{shell.exit_status}); see that sh and readlink run there"
        )
    return [
        _store_path(link, target, store_dir)
        for link, target in zip(builder.pushed, targets, strict=True)
    ]


def script(links: Sequence[str], mark: str, store_dir: str = STORE_DIR) -> str:
    """Return a script for `sh` that follows links, and answers a line for each behind a mark.

    The mark is such that nothing else on standard output can be taken for an answer.
    """
    head = f"store={shlex.quote(store_dir)}\nmark={shlex.quote(mark)}\n"
    asked = "".join(f"answer {shlex.quote(link)}\n" for link in links)
    return f"{head}{_FOLLOW}{asked}exit 0\n"


def answers(output: str, mark: str) -> list[str]:
    """Return what such a script answered: where in the store each link leads, or nothing."""
    start = f"{mark} "
    return [line.removeprefix(start) for line in output.split("\n") if line.startswith(start)]


def _store_path(link: str, target: str, store_dir: str) -> str:
    """Return the store path that `target` is, or lies in; it is a builder's word."""
    name = target.removeprefix(f"{store_dir}/").partition("/")[0]
    path = f"{store_dir}/{name}"
    if not target.startswith(f"{store_dir}/") or not is_store_path(path, store_dir):
        raise UnresolvedError(f"{link!r} is neither a store path nor a link to one")
    return path
