"""What Nix runs after each build: it queues what was built, for a push that builds do not wait for.

Nix waits for the hook, and a hook that fails ends the build. So it only leaves a link for each path
in a directory, which `--queue` empties later, and succeeds whatever happens. Where
`nix/builder.nix` has set it up, the directory lies below gcroots: what waits there is kept from the
garbage collector.

It runs by itself, with `formats` beside it and nothing else of the push.

Nix's daemon runs it as root, and a hook of a CI job may be run long after its job, when what lies
where the job's queue was is anybody's. So a queue is looked at before anything is written into it,
and what is written goes into the directory that was looked at, whatever its name leads to by then.

Source: Nix manual, "post-build-hook"; open(2), "O_NOFOLLOW"; symlinkat(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from formats.store_path import STORE_DIR, is_store_path

QUEUE = Path("/nix/var/nix/gcroots/nix-binary-cache")
"""Where the links wait, on a machine that `nix/builder.nix` sets up."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = 0o022


def enqueue(environment: Mapping[str, str], queue: Path, owner: int | None = None) -> list[str]:
    """Leave a link to each path that was built; return a sentence for each that has none.

    Args:
        environment: what Nix tells the hook.
        queue: a directory, itself and no link to it, that its owner alone can write to.
        owner: the user whose it has to be, as the directory that it lies in, of which the same
            holds; by default it is anybody's, and nobody but root decides what lies there.
    """
    complaints = []
    with contextlib.ExitStack() as opened:
        directory = None
        for path in environment.get("OUT_PATHS", "").split():
            if not is_store_path(path):
                complaints.append(f"{path[:200]!a} is no store path, and not queued")
                continue
            try:
                if directory is None:
                    directory = _open(queue, owner, opened)
                os.symlink(path, path.removeprefix(f"{STORE_DIR}/"), dir_fd=directory)
            except FileExistsError:
                # It waits already: a link's name says what it points to.
                continue
            except OSError as error:
                complaints.append(f"{path} is not queued in {queue} ({error.strerror})")
    return complaints


def _open(queue: Path, owner: int | None, opened: contextlib.ExitStack) -> int:
    if owner is None:
        return opened.enter_context(_directory(queue, None))
    place = opened.enter_context(_directory(queue.parent, owner))
    return opened.enter_context(_directory(queue.name, owner, place))


@contextlib.contextmanager
def _directory(name: Path | str, owner: int | None, within: int | None = None) -> Iterator[int]:
    """Open a directory, itself and no link to it, and give its descriptor.

    Raises:
        OSError: it cannot be opened, or is another user's, or others can write to it.
    """
    descriptor = os.open(name, _DIRECTORY, dir_fd=within)
    try:
        found = os.fstat(descriptor)
        if owner not in (None, found.st_uid):
            raise PermissionError(errno.EPERM, "it is another user's")
        if found.st_mode & _OTHERS_WRITE:
            raise PermissionError(errno.EPERM, "others can write to it")
        yield descriptor
    finally:
        os.close(descriptor)


def main(queue: Path = QUEUE, owner: int | None = None, code: int = 0) -> NoReturn:
    """Queue what Nix says was built, where `enqueue` may, and say what is not queued.

    Args:
        queue: as `enqueue` has it.
        owner: as `enqueue` has it.
        code: the exit code where something is not queued. Nix ends the build for any but 0.
    """
    complaints = []
    try:
        complaints = enqueue(os.environ, queue, owner)
        for complaint in complaints:
            sys.stderr.write(f"push: queue: {complaint}\n")
        sys.stderr.flush()
    except Exception as error:  # noqa: BLE001 (a build must not fail for its push)
        complaints.append(type(error).__name__)
        os.write(2, f"push: queue: {complaints[-1]}\n".encode())
    finally:
        os._exit(code if complaints else 0)


if __name__ == "__main__":
    main()
