"""Has Nix compress and sign paths into directories that hold stubs for all that they refer to."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from formats.narinfo import NarInfo
from formats.store_path import STORE_DIR
from push.inventory import Present, bounded, signed_by, verify_key
from push.settings import PushSettings
from push.store import (
    MODIFIED,
    Nix,
    NixError,
    StorePath,
    error_in,
    modified,
    read_narinfo,
    write_narinfos,
)
from push.workspace import Workspace

_BLOCK = 1 << 20
_SECONDS_TO_END = 30.0


@dataclass(frozen=True)
class CompressedPath:
    """A path that Nix compressed and signed."""

    path: StorePath
    narinfo: NarInfo
    content: bytes
    """The narinfo as it is to be published, our signature last."""
    file: Path
    """The NAR."""
    size: int
    """Its bytes."""
    already_there: bool
    """Whether the bucket has this very file, written today."""


@dataclass
class Compressed:
    """What came of a batch."""

    done: list[CompressedPath] = field(default_factory=list)
    left: list[StorePath] = field(default_factory=list)
    """Paths that Nix did not get to, or failed at."""
    error: str = ""
    """What Nix said, where something is left."""

    @property
    def disk_is_full(self) -> bool:
        """Whether there was no space for it."""
        return "No space left" in self.error or "Disk quota" in self.error

    @property
    def path_is_gone(self) -> bool:
        """Whether the store lost a path meanwhile."""
        return any(
            words in self.error for words in ("is not valid", "is required, but", "No such file")
        )


class Staging:
    """Where batches are compressed."""

    def __init__(
        self, nix: Nix, workspace: Workspace, settings: PushSettings, key_file: Path
    ) -> None:
        """Prepare to compress; the key in `key_file` signs."""
        self._nix = nix
        self._directory = workspace.stage
        self.base = workspace.base
        """The directory that batches take space of."""
        self._settings = settings
        self._key_file = key_file
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._active = 0
        self._processes: set[subprocess.Popen[str]] = set()
        self._closed = False
        self._verified = False
        self._batches = 0

    def compress(
        self, batch: Sequence[StorePath], nars: Mapping[str, Present], today: str
    ) -> Compressed:
        """Compress and sign a batch; any thread may do it.

        Args:
            batch: paths, none twice.
            nars: NARs that the bucket has, by key.
            today: the day by the server's clock.
        """
        with self._ended:
            if self._closed:
                return Compressed(left=list(batch))
            self._active += 1
            self._batches += 1
            directory = self._directory / str(self._batches)
        try:
            return self._compress(directory, batch, nars, today)
        finally:
            with self._ended:
                self._active -= 1
                self._ended.notify_all()

    def _compress(
        self,
        directory: Path,
        batch: Sequence[StorePath],
        nars: Mapping[str, Present],
        today: str,
    ) -> Compressed:
        outcome = Compressed()
        try:
            self._prepare(directory, batch)
            for command in self._nix.copy_command(
                [one.path for one in batch], self._url(directory)
            ):
                code, told = self._run(command, directory)
                if code != 0:
                    outcome.error = error_in(told)
        except OSError as error:
            outcome.error = f"{error.strerror}: {directory.parent}"
        read = {path.path: self._read(directory, path, nars, today, outcome) for path in batch}
        sound = self._sound([path for path, done in read.items() if done], directory, outcome)
        for path in batch:
            done = read[path.path]
            if done is None or path.path not in sound:
                outcome.left.append(path)
            else:
                outcome.done.append(done)
        self._clear(directory, outcome.done)
        return outcome

    def _sound(self, paths: Sequence[str], directory: Path, outcome: Compressed) -> set[str]:
        """Return those of `paths` whose files are what the store says of them.

        They are read after they were copied: what was damaged by then was copied as it is.
        """
        sound = set(paths)
        try:
            for command in self._nix.verify_command(paths):
                code, told = self._run(command, directory)
                if code != 0:
                    sound -= (code == MODIFIED and modified(told)) or sound
                    outcome.error = outcome.error or error_in(told)
        except OSError as error:
            outcome.error = outcome.error or f"nix cannot be run ({error.strerror})"
            return set()
        return sound

    def _clear(self, directory: Path, done: Sequence[CompressedPath]) -> None:
        """Remove what Nix left of paths that it did not finish: they may have filled the disk."""
        shutil.rmtree(directory / "tmp", ignore_errors=True)
        wanted = {one.file for one in done}
        with contextlib.suppress(OSError):
            for file in (directory / "nar").iterdir():
                if file not in wanted:
                    file.unlink()

    def discard(self, compressed: CompressedPath) -> None:
        """Free the disk that a NAR takes."""
        with contextlib.suppress(OSError):
            compressed.file.unlink()

    def close(self) -> None:
        """Kill what still runs, and start nothing more."""
        with self._ended:
            self._closed = True
            for process in self._processes:
                process.kill()
            # Until then they write what is to be removed next.
            self._ended.wait_for(lambda: not self._active, _SECONDS_TO_END)

    def _prepare(self, directory: Path, batch: Sequence[StorePath]) -> None:
        directory.mkdir()
        directory.joinpath("tmp").mkdir()
        known = {path.base_name for path in batch}
        needed = {name for path in batch for name in path.references} - known
        # Nix insists that what a path refers to be there, and copies what is not.
        stubs = (
            NarInfo(f"{STORE_DIR}/{name}", "nar/stub", "none", f"sha256:{'0' * 52}", 1)
            for name in needed
        )
        write_narinfos(directory, stubs)

    def _url(self, directory: Path) -> str:
        settings = self._settings
        url = f"file://{directory}?compression={settings.compression}&secret-key={self._key_file}"
        level = settings.compression_level
        return f"{url}&compression-level={level}" if level else url

    def _run(self, command: Sequence[str], directory: Path) -> tuple[int, str]:
        """Run a command; return its exit code, and what Nix told."""
        private = str(directory / "tmp")
        with self._lock:
            if self._closed:
                return -1, ""
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=self._nix.environment(
                    TMPDIR=private, XDG_CACHE_HOME=private, NIX_CACHE_HOME=private
                ),
            )
            self._processes.add(process)
        _, told = process.communicate()
        with self._lock:
            self._processes.discard(process)
        return process.returncode, told

    def _read(
        self,
        directory: Path,
        path: StorePath,
        nars: Mapping[str, Present],
        today: str,
        outcome: Compressed,
    ) -> CompressedPath | None:
        """Return what Nix made of a path, None where it did not."""
        try:
            narinfo = read_narinfo(directory, path)
            file = directory / narinfo.url
            size = file.stat().st_size
        except (NixError, OSError) as error:
            outcome.error = outcome.error or str(error)
            return None
        signature = self._signature(path, narinfo)
        if signature is None:
            outcome.error = f"Nix did not sign {path.path}; check the signing key"
            return None
        if size != narinfo.file_size:
            outcome.error = f"Nix wrote {size} bytes of {path.path}, and said {narinfo.file_size}"
            return None
        there = nars.get(narinfo.url)
        try:
            same = (
                there is not None
                and there.size == size
                and there.day >= today
                and there.etag == _etag(file, there.etag or "", self._settings.part_size)
            )
        except OSError as error:
            outcome.error = f"{file.name} cannot be read ({error.strerror})"
            return None
        # The store's own signatures are as many, and as long, as whoever may add them likes.
        narinfo = bounded(path, narinfo, signature, self._settings.trusted_keys)
        content = narinfo.format().encode("ascii")
        return CompressedPath(path, narinfo, content, file, size, same)

    def _signature(self, path: StorePath, narinfo: NarInfo) -> str | None:
        """Return our key's signature of a narinfo, None where it has none.

        What Nix adds to the store's signatures is taken for ours once one was verified: both
        halves of the key belong together then. One under our name that the store had may be
        anybody's.
        """
        key = self._settings.public_key
        own = [one for one in narinfo.signatures if one.startswith(f"{key.name}:")]
        added = tuple(one for one in own if one not in path.signatures)
        if len(added) != 1:
            each = (one for one in own if signed_by(replace(narinfo, signatures=(one,)), key))
            return next(each, None)
        if not self._verified:
            verify_key(replace(narinfo, signatures=added), key)
            self._verified = True
        return added[0]


def _etag(file: Path, like: str, part_size: int) -> str:
    """Return the ETag that a file has in a bucket where ETags are MD5 sums, as they usually are.

    Source: Amazon S3 User Guide, "Checking object integrity".

    Args:
        file: the file.
        like: an ETag; where it has a hyphen, the object was written in parts.
        part_size: bytes of such a part.
    """
    sums: list[bytes] = []
    with file.open("rb") as content:
        while True:
            part, size = _md5(content, part_size if "-" in like else None)
            if not size and sums:
                break
            sums.append(part)
    if "-" not in like:
        return sums[0].hex()
    joined = hashlib.md5(b"".join(sums), usedforsecurity=False).hexdigest()
    return f"{joined}-{len(sums)}"


def _md5(content: BinaryIO, limit: int | None) -> tuple[bytes, int]:
    """Return the sum of the next `limit` bytes, or of all, and how many they are."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    while limit is None or size < limit:
        block = content.read(_BLOCK if limit is None else min(_BLOCK, limit - size))
        if not block:
            break
        digest.update(block)
        size += len(block)
    return digest.digest(), size
