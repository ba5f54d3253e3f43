"""Files that whoever reads them meanwhile finds as they were, or as they are to be."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def replace_whole(path: Path, text: str) -> None:
    """Write a file anew, whole or not at all, for those who may read the one before.

    Where there is none, everybody may.

    Args:
        path: the file itself, and no link to it.
        text: what it is to hold.

    Raises:
        OSError: it cannot be written; the one before is there as it was.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        if path.exists():
            shutil.copymode(path, name)
            if os.geteuid() == 0:
                # Root may have been given another user's home.
                owner = path.stat()
                os.chown(name, owner.st_uid, owner.st_gid)
        else:
            Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
