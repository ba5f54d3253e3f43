"""Built things, kept outside the checkout: one directory each, complete or absent.

A directory is made under a temporary name and renamed when it is whole, under a lock, so two
runs at once build a thing once and neither ever sees half of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toolbox.progress import say


def directory() -> Path:
    """Return the cache's directory: `NIXCACHE_CACHE`, or `nixcache-toolbox` in the XDG cache."""
    chosen = os.environ.get("NIXCACHE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nixcache-toolbox"


def checksum(parts: Iterable[bytes]) -> str:
    """Return the first 12 hexadecimal digits of a SHA-256 over `parts`, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:12]


def entry(name: str, make: Callable[[Path], None]) -> Path:
    """Return the directory `name` in the cache; when absent, `make` fills a new one.

    `make` receives an empty directory; if it raises, nothing is kept.
    """
    target = directory() / name
    if target.is_dir():
        return target
    directory().mkdir(parents=True, exist_ok=True)
    with _locked(directory() / f"{name}.lock"):
        if not target.is_dir():
            # Nobody else writes under this lock: a draft that is here was left by a killed run.
            for stale in directory().glob(f".{name}.*"):
                shutil.rmtree(stale)
            draft = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=directory()))
            try:
                make(draft)
                draft.chmod(0o755)
                draft.rename(target)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that makes {path.stem}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
