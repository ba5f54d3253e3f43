"""What Nix runs after each build: it queues what was built, for a push that builds do not wait for.

Nix waits for the hook, and a hook that fails ends the build. So it only leaves a link for each path
in a directory, which `--queue` empties later, and succeeds whatever happens. Where
`nix/builder.nix` has set it up, the directory lies below gcroots: what waits there is kept from the
garbage collector.

It runs by itself, with `formats` beside it and nothing else of the push.

Source: Nix manual, "post-build-hook".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from formats.store_path import STORE_DIR, is_store_path

QUEUE = Path("/nix/var/nix/gcroots/nix-binary-cache")
"""Where the links wait, on a machine that `nix/builder.nix` sets up."""


def enqueue(environment: Mapping[str, str], queue: Path) -> list[str]:
    """Leave a link to each path that was built; return a sentence for each that has none."""
    complaints = []
    for path in environment.get("OUT_PATHS", "").split():
        if not is_store_path(path):
            complaints.append(f"{path[:200]!a} is no store path, and not queued")
            continue
        link = queue / path.removeprefix(f"{STORE_DIR}/")
        try:
            link.symlink_to(path)
        except FileExistsError:
            # It waits already: a link's name says what it points to.
            continue
        except OSError as error:
            complaints.append(f"{path} is not queued in {queue} ({error.strerror})")
    return complaints


def main(queue: Path = QUEUE) -> NoReturn:
    """Queue what Nix says was built, and succeed."""
    try:
        for complaint in enqueue(os.environ, queue):
            sys.stderr.write(f"push: queue: {complaint}\n")
        sys.stderr.flush()
    except Exception as error:  # noqa: BLE001 (a build must not fail for its push)
        os.write(2, f"push: queue: {type(error).__name__}\n".encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
