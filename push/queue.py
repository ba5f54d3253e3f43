"""The queue: links in a directory to what is to be pushed, left by `push.post_build_hook`."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from formats.printable import SHOWN, printable
from push.failure import Failure, PushError


class Queue:
    """What waits in a directory, oldest first."""

    def __init__(self, directory: Path) -> None:
        """Read the directory.

        Raises:
            PushError: it cannot be read.
        """
        self._directory = directory
        self._links: dict[str, list[Path]] = {}
        self.strange: dict[str, Failure] = {}
        """What is in the directory and no link, and that it cannot be pushed. It must be told: a
        push that ends well beside a queue that is not empty is started again at once, for ever."""
        try:
            found = sorted(self._entries())
        except OSError as error:
            raise self._unusable("read", error) from None
        for _, place, target in found:
            if target is None:
                self.strange[str(place)] = Failure(
                    "list",
                    f"'{printable(str(place), SHOWN)}' is no link; move it out of the queue",
                    "no link",
                )
            else:
                self._links.setdefault(target, []).append(place)

    @property
    def targets(self) -> list[str]:
        """What the links point to, each once."""
        return list(self._links)

    def remove(self, done: Iterable[str]) -> None:
        """Remove the links to what is in the bucket.

        Raises:
            PushError: one cannot be removed.
        """
        try:
            for target in done:
                for link in self._links[target]:
                    # It may be gone, or point elsewhere by now.
                    with contextlib.suppress(FileNotFoundError):
                        if str(self._directory / link.readlink()) == target:
                            link.unlink()
        except OSError as error:
            raise self._unusable("written to", error) from None

    def _entries(self) -> Iterator[tuple[int, Path, str | None]]:
        """Yield the age of what is in the directory, its place, and what it points to itself."""
        for place in self._directory.iterdir():
            # Another push may have taken it.
            with contextlib.suppress(FileNotFoundError):
                status = place.lstat()
                is_link = stat.S_ISLNK(status.st_mode)
                target = str(self._directory / place.readlink()) if is_link else None
                yield status.st_mtime_ns, place, target

    def _unusable(self, how: str, error: OSError) -> PushError:
        return PushError(
            "settings",
            f"--queue '{printable(str(self._directory), SHOWN)}' cannot be {how} "
            f"({error.strerror}); name a directory of this user's own",
        )
