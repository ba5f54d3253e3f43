"""Files that whoever reads them meanwhile finds as they were, or as they are to be.

Root writes into directories of other users, too, who can put there what they like under any name.
So what is changed is what was opened, in the directory that was opened.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS = 0o777
_EVERYBODY_READS = 0o644


def replace_whole(path: Path, text: str, mode: int | None = None) -> None:
    """Write a file anew, whole or not at all, for those who may read the one before.

    Where there is none, everybody may.

    Args:
        path: the file itself, and no link to it.
        text: what it is to hold.
        mode: its mode; by default that of the one before.

    Raises:
        OSError: it cannot be written; the one before is there as it was.
    """
    directory = os.open(path.parent, _DIRECTORY)
    try:
        _replace(path.name, directory, text, mode)
    finally:
        os.close(directory)


def _replace(name: str, directory: int, text: str, mode: int | None) -> None:
    new = f".{name}.{secrets.token_hex(4)}"
    descriptor = os.open(new, _NEW, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            before = _file(name, directory)
            if before is not None and os.geteuid() == 0:
                # Root may have been given another user's home.
                os.fchown(descriptor, before.st_uid, before.st_gid)
            if mode is None:
                mode = _EVERYBODY_READS if before is None else before.st_mode & _PERMISSIONS
            os.fchmod(descriptor, mode)
        os.replace(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=directory)
        raise


def _file(name: str, directory: int) -> os.stat_result | None:
    """Return whose a file is, and its mode, or None where there is none.

    A link to one counts as none: whose it leads to is for whoever made it to say.
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None
