"""What pins keep, read from the bucket as pushes read it.

Requests grow with what the pins keep, and not with the bucket: a narinfo that the listing lacks is
not asked for. What no key of the cache has signed is not walked through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from formats.error import FormatError
from formats.keys import PublicKey
from formats.narinfo import LARGEST_NARINFO, NarInfo, narinfo_of
from formats.pin import LARGEST_PIN, PIN_FOLDER, PIN_NAME, parse_pin
from formats.signing import verified_by
from formats.store_path import STORE_DIR
from operations.cache_status import PinnedClosure
from program.checks.server_error import ServerError
from push.inventory import parsed

Read = Callable[[str, int], bytes | None]
"""Returns an object of at most so many bytes, None where there is none.

Raises:
    ServerError: the server does not give it.
"""


def is_about_one_object(error: ServerError) -> bool:
    """Tell whether the server answers, lets the user ask, and cannot give what was asked for.

    A disk that is damaged in one place costs what lies there, and nothing beside it.
    """
    return error.reachable and error.subject == "endpoint"


@dataclass
class PinnedClosures:
    """The closures of all pins of a cache."""

    read: Read
    sizes: Mapping[str, int]
    """Bytes of each object of the bucket, by its name."""
    keys: Sequence[PublicKey]
    """The cache's keys."""
    threads: Executor
    path_of: dict[str, str] = field(default_factory=dict)
    """The store path that a NAR is, by the NAR's name."""
    _known: dict[str, NarInfo | str] = field(default_factory=dict)
    """What was read, by store path: releases share most of what they keep."""

    def all(self) -> list[PinnedClosure]:
        """Return what each pin keeps, by name."""
        names = [
            name.removeprefix(PIN_FOLDER) for name in self.sizes if name.startswith(PIN_FOLDER)
        ]
        return [self._closure(name) for name in sorted(names) if PIN_NAME.fullmatch(name)]

    def _closure(self, name: str) -> PinnedClosure:
        try:
            targets = parse_pin(self.read(f"{PIN_FOLDER}{name}", LARGEST_PIN) or b"")
        except FormatError as error:
            return PinnedClosure(name, unreadable=str(error))
        except ServerError as error:
            if not is_about_one_object(error):
                raise
            return PinnedClosure(name, unreadable=str(error))
        lost = {
            target: "the cache does not have it"
            for target in targets
            if narinfo_of(target) not in self.sizes
        }
        paths = nar_bytes = 0
        seen = set(targets)
        level = [target for target in targets if target not in lost]
        while level:
            below: list[str] = []
            for path, narinfo in zip(level, self.threads.map(self._narinfo, level), strict=True):
                if not isinstance(narinfo, NarInfo):
                    lost[path] = narinfo
                    continue
                size = self.sizes.get(narinfo.url)
                if size is None or size != narinfo.file_size:
                    lost[path] = "its NAR is gone, or has another size"
                paths, nar_bytes = paths + 1, nar_bytes + (size or 0)
                self.path_of[narinfo.url] = path
                for reference in narinfo.references:
                    needed = f"{STORE_DIR}/{reference}"
                    # What the bucket lacks may be an upstream cache's: the audit asks there.
                    if needed not in seen and narinfo_of(needed) in self.sizes:
                        seen.add(needed)
                        below.append(needed)
            level = below
        return PinnedClosure(name, targets, paths, nar_bytes, lost)

    def _narinfo(self, path: str) -> NarInfo | str:
        """Return a path's narinfo, or why it is none that a push would walk through."""
        if path not in self._known:
            self._known[path] = self._read_narinfo(path)
        return self._known[path]

    def _read_narinfo(self, path: str) -> NarInfo | str:
        try:
            content = self.read(narinfo_of(path), LARGEST_NARINFO) or b""
        except ServerError as error:
            if not is_about_one_object(error):
                raise
            return "its narinfo cannot be read"
        narinfo = parsed(path, content)
        if narinfo is None or not verified_by(narinfo, {key.name: key for key in self.keys}):
            return "its narinfo is broken, or no key of this cache has signed it"
        return narinfo
