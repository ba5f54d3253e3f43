"""The directories of one push: NARs on their way on a disk, secrets in memory where it can be.

They go at every end of the push but SIGKILL. Whoever finds directories whose lock nobody holds
knows that their push is no more, and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from push.failure import PushError

_PREFIX = "nixcache-push."
_LOCK = "lock"
_DISK = "/var/tmp"
_UID_MAP, _OVERFLOW_UID = "/proc/self/uid_map", "/proc/sys/kernel/overflowuid"
# Nix's versions disagree on how a path with other characters stands in a store's URL.
_PLAIN = re.compile(r"/[A-Za-z0-9/._+-]*")
_SECONDS_TO_LOCK = 3600
# A small file takes a page, and its name another one.
_NARINFO_BYTES = 8192
_SPARE_FACTOR = 4


class Workspace:
    """A push's own directories, each readable by its owner alone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Make them, and remove what killed pushes of this user left.

        Args:
            environment: `TMPDIR` and `XDG_RUNTIME_DIR` say where. One in which somebody else can
                exchange what lies there is passed over: root may push with the environment of the
                user whom it was before, and Nix signs what it finds under a name.

        Raises:
            PushError: nothing can be written there, or somebody else can exchange it.
        """
        self._directories: list[Path] = []
        self._locks: list[int] = []
        self.base = _disk(environment.get("TMPDIR") or _DISK)
        memory = _memory(environment)
        place, remedy = self.base, "set TMPDIR to a directory with space for staging-limit"
        try:
            self.run = self.stage = self._plain(self._make(self.base))
            if memory is not None:
                place, remedy = memory, "free space there"
                self.run = self._plain(self._make(memory))
        except OSError as error:
            self.remove()
            raise PushError(
                "prepare", f"{place} takes no files ({error.strerror}); {remedy}"
            ) from None

    def _make(self, base: Path) -> Path:
        _remove_leftovers(base)
        while True:
            directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            self._directories.append(directory)
            # Under its name only when it is locked, or another push would take this one for dead.
            file = directory / f"{_LOCK}.new"
            # Another push has removed it while it was empty.
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
                break
        self._locks.append(lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        file.rename(directory / _LOCK)
        return directory

    def _plain(self, directory: Path) -> Path:
        """Return a path to `directory` that every Nix reads alike: itself, or a link to it."""
        if _PLAIN.fullmatch(str(directory)):
            return directory
        for base in map(_real, (_DISK, "/tmp", "/run")):
            if _others_exchange(base):
                continue
            with contextlib.suppress(OSError):
                link = self._make(base) / "link"
                link.symlink_to(directory)
                return link
        raise OSError(errno.EINVAL, "its name has characters that Nix does not take")

    def for_narinfos(self, name: str, count: int) -> Path:
        """Return a new directory for so many narinfos: in memory where that has much space left."""
        free = os.statvfs(self.run)
        spacious = free.f_bavail * free.f_frsize > _SPARE_FACTOR * count * _NARINFO_BYTES
        return (self.run if spacious else self.stage) / name

    def write_secret(self, name: str, text: str) -> Path:
        """Write a file that only this user can read, and return where.

        Raises:
            PushError: there is no space.
        """
        path = self.run / name
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise PushError(
                "prepare", f"{self.run.parent} takes no files ({error.strerror}); free space there"
            ) from None
        return path

    def remove(self) -> None:
        """Remove everything; without effect the second time."""
        while self._directories:
            with contextlib.suppress(OSError):
                _remove(self._directories.pop())
        while self._locks:
            os.close(self._locks.pop())


def _real(text: str) -> Path:
    """Return a path without links in it, whose parts are what `_others_exchange` looks at."""
    return Path(os.path.realpath(text))


def _disk(stated: str) -> Path:
    """Return the first directory for files on a disk in which nobody else can exchange them."""
    for base in map(_real, (stated, _DISK)):
        if not _others_exchange(base):
            return base
    raise PushError(
        "prepare",
        f"somebody else can exchange what is written to {stated}; set TMPDIR to a directory that "
        "root or this user alone may write to, as all that it lies in",
    )


def _memory(environment: Mapping[str, str]) -> Path | None:
    """Return a directory in memory that can be written to, None where there is none.

    What is mounted there by itself is a tmpfs on every Linux (`file-hierarchy(7)`); other systems
    have none.
    """
    root = Path("/").stat().st_dev
    for text in (environment.get("XDG_RUNTIME_DIR", ""), "/run", "/dev/shm"):
        if not text.startswith("/"):
            continue
        base = _real(text)
        with contextlib.suppress(OSError):
            in_memory = base.stat().st_dev != root and os.access(base, os.W_OK)
            if in_memory and not _others_exchange(base):
                return base
    return None


def _others_exchange(base: Path) -> bool:
    """Whether somebody else can put another directory, or a link, in the place of what lies there.

    So can whoever owns it or may write to it, but in a sticky one, where each may exchange only
    what is theirs. Whoever can exchange the directory itself can exchange what lies in it. One that
    is not there is nobody's: making something in it fails by itself.

    Args:
        base: a path without links, or a link has come into its place since.
    """
    trusted = {0, os.geteuid(), *_unknown_root()}
    for directory in (*reversed(base.parents), base):
        try:
            status = directory.lstat()
        except OSError:
            return False
        if stat.S_ISLNK(status.st_mode) or status.st_uid not in trusted:
            return True
        # A group of the same number is the user's own, with nobody else in it.
        own_group = status.st_gid == os.geteuid()
        others = stat.S_IWOTH | (0 if own_group else stat.S_IWGRP)
        if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
            return True
    return False


def _unknown_root() -> set[int]:
    """Return the user as whom root appears in a namespace that does not know it; else nobody.

    Source: `user_namespaces(7)`, "Unmapped user and group IDs".
    """
    try:
        unknown = int(Path(_OVERFLOW_UID).read_text(encoding="ascii"))
        rows = [line.split() for line in Path(_UID_MAP).read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return set()
    known = any(int(first) <= unknown < int(first) + int(count) for first, _, count in rows)
    return set() if known else {unknown}


def _remove_leftovers(base: Path) -> None:
    for directory in _leftovers(base):
        # Another push may remove it at the same time.
        with contextlib.suppress(OSError):
            _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a directory, its lock last: what a Nix that goes on still writes is found by it."""
    for entry in list(directory.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK:
            # A thread that has not ended yet may remove it at the same time.
            entry.unlink(missing_ok=True)
    if [entry.name for entry in directory.iterdir()] in ([_LOCK], []):
        shutil.rmtree(directory, ignore_errors=True)


def _leftovers(base: Path) -> Iterator[Path]:
    """Yield this user's directories of pushes that are no more."""
    for directory in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = directory.lstat()
            if directory.is_symlink() or status.st_uid != os.geteuid():
                continue
            try:
                lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                # A push was killed as it removed it, or another one will make itself another.
                with contextlib.suppress(OSError):
                    directory.rmdir()
                    continue
                # Another push may be about to lock it.
                if time.time() - status.st_mtime > _SECONDS_TO_LOCK:
                    yield directory
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield directory
            except BlockingIOError:
                continue
            finally:
                os.close(lock)
