"""In which order things are done: batches to compress, and narinfos to write. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from push.store import StorePath

_MOST_PATHS = 500
# Even a small path costs as much as so many bytes.
_BYTES_PER_PATH = 100_000
_SMALLEST_SHARE = 64_000_000


def deal(paths: Sequence[StorePath], limit: int) -> list[list[StorePath]]:
    """Deal paths into batches, each for one `nix copy`.

    Large paths go first, then the rest, references first, so that narinfos need not wait for later
    batches. Each batch takes a share of what is left: the first are large, as every `nix copy`
    costs its start, the last small, as little runs beside them. Neighbours often refer to one
    another, and of such Nix compresses only one at a time; so two batches are dealt at once, each
    path to the one that has less.

    Args:
        paths: what is to be compressed, references first.
        limit: bytes of NARs that one batch should not exceed, where more than one path is in it.
    """
    left = sum(map(_cost, paths))
    large = left / 8
    ordered = [path for path in paths if _cost(path) > large]
    ordered += [path for path in paths if _cost(path) <= large]
    dealt: list[list[StorePath]] = []
    pair = (_Batch(), _Batch())
    share = 0.0
    for path in ordered:
        one = min(pair, key=lambda batch: batch.cost)
        if one.cost >= share or len(one.paths) == _MOST_PATHS or one.exceeds(limit, path):
            dealt += [batch.paths for batch in pair if batch.paths]
            pair = (_Batch(), _Batch())
            one = pair[0]
            share = max(left / 3, _SMALLEST_SHARE)
        one.add(path)
        left -= _cost(path)
    return [*dealt, *(batch.paths for batch in pair if batch.paths)]


class _Batch:
    """A batch that is being dealt."""

    def __init__(self) -> None:
        self.paths: list[StorePath] = []
        self.cost = 0
        self._bytes = 0

    def exceeds(self, limit: int, path: StorePath) -> bool:
        return bool(self.paths) and self._bytes + path.nar_size > limit

    def add(self, path: StorePath) -> None:
        self.paths.append(path)
        self.cost += _cost(path)
        self._bytes += path.nar_size


def _cost(path: StorePath) -> int:
    return path.nar_size + _BYTES_PER_PATH


class WriteOrder:
    """Which narinfo may be written: after its NAR, and after those that it refers to.

    A path is settled once readers may find it: written in this push, or in the bucket before and in
    need of nothing. One that fails blocks whatever refers to it, directly or not.
    """

    def __init__(
        self,
        needs: Mapping[str, Collection[str]],
        pending: Iterable[str],
        lost: Mapping[str, str] | None = None,
    ) -> None:
        """Begin with `pending` unsettled.

        Args:
            needs: what each path refers to; what is no path of `pending` is settled.
            pending: the paths that something has to be done for.
            lost: paths that could not be written before, and which failed path is to blame. What
                is begun anew with a need of one is blocked.
        """
        self._waiting: dict[str, set[str]] = {}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        self._without_nar = set(pending)
        self.unsettled = set(self._without_nar)
        """Paths that are neither settled nor failed nor blocked."""
        self.blocked: dict[str, str] = {}
        """Paths that cannot be written, and which failed path is to blame."""
        self.lost = dict(lost or {})
        """Paths that failed or are blocked, also before, and which failed path is to blame."""
        for path in self.unsettled:
            self._wait_for(path, needs.get(path, ()))

    def _wait_for(self, path: str, needs: Collection[str]) -> None:
        before = self._waiting.get(path, set())
        waiting = {one for one in needs if one != path and one in self.unsettled}
        self._waiting[path] = waiting
        for one in before - waiting:
            self._dependents[one].remove(path)
        for one in waiting - before:
            self._dependents[one].append(path)

    def nar_is_there(self, path: str) -> list[str]:
        """Note that a path's NAR is there for the retention's time; return what may be written."""
        self._without_nar.discard(path)
        return self._ready([path])

    def begin_anew(self, path: str, needs: Collection[str]) -> None:
        """Note that a path's NAR is not there after all, and what its next narinfo refers to."""
        if path not in self.unsettled:
            return
        self._without_nar.add(path)
        self._wait_for(path, needs)
        cause = next((self.lost[one] for one in needs if one in self.lost), None)
        if cause is not None:
            self._block([path], cause)

    def settle(self, path: str) -> list[str]:
        """Note that readers may find a path; return what may be written now."""
        if path not in self.unsettled:
            return []
        self.unsettled.remove(path)
        for dependent in self._dependents[path]:
            self._waiting[dependent].discard(path)
        return self._ready(self._dependents[path])

    def fail(self, path: str) -> None:
        """Note that a path cannot be written, nor what refers to it."""
        if path not in self.unsettled:
            return
        self.unsettled.remove(path)
        self.lost[path] = path
        self._block(self._dependents[path], path)

    def _block(self, paths: Iterable[str], cause: str) -> None:
        left = deque(paths)
        while left:
            path = left.popleft()
            if path in self.unsettled:
                self.unsettled.remove(path)
                self.blocked[path] = self.lost[path] = cause
                left.extend(self._dependents[path])

    def _ready(self, paths: Iterable[str]) -> list[str]:
        return [
            path
            for path in paths
            if path in self.unsettled and path not in self._without_nar and not self._waiting[path]
        ]
