"""Writes what is missing and renews what is old, all at the same time and in the one order."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from http import HTTPStatus
from pathlib import Path

from formats.narinfo import NarInfo
from formats.store_path import STORE_DIR
from push.bucket import EMPTY, Bucket, Place
from push.connection import Answer
from push.failure import Failure
from push.inventory import (
    Held,
    Inventory,
    Missing,
    Present,
    another_builders,
    day_of,
    facts,
    largest_narinfo,
    narinfo_key,
    parsed,
    present_of,
    says_the_same,
    signed_besides,
    signed_by,
)
from push.memory import Memory, RememberedNarInfo
from push.plan import WriteOrder, deal
from push.progress import Summary, human, say
from push.settings import PushSettings
from push.staging import Compressed, CompressedPath, Staging
from push.store import StorePath
from push.transfers import Loop, Transfers

_SECONDS_BETWEEN_PROGRESS = 1.0
_SECONDS_OF_SILENCE = 30.0
# As often another builder may have written a narinfo just before; then it is written over.
_MOST_MEETINGS = 16


class Publication:
    """One round of writes: the missing paths, and leases that began before today."""

    def __init__(
        self,
        settings: PushSettings,
        staging: Staging,
        transfers: Transfers,
        loop: Loop,
        bucket: Bucket,
        memory: Memory,
        inventory: Inventory,
    ) -> None:
        """Plan it; `inventory` is kept up to date with what was written."""
        self._settings = settings
        self._staging = staging
        self._transfers = transfers
        self._loop = loop
        self._bucket = bucket
        self._memory = memory
        self._inventory = inventory
        self._today = today(transfers)
        self._held = {one.path.path: one for one in inventory.held}
        self._paths = {path: one.path for path, one in self._held.items()}
        self._paths |= {one.path.path: one.path for one in inventory.missing}
        self._content: dict[str, bytes] = {}
        # What the narinfos of paths are to take the place of, and where that is to be read first.
        self._places: dict[str, Place | None] = {}
        self._unread: set[str] = set()
        self._meetings: Counter[str] = Counter()
        self._nar_of: dict[str, tuple[str, int]] = {}
        self._awaiting: dict[str, list[str]] = {}
        self._sending: dict[str, Path] = {}
        self._batches: list[list[StorePath]] = []
        self._alone: list[list[StorePath]] = []
        self._compressing = 0
        self._on_disk = 0
        self._landed = self._landed_bytes = 0
        self._total = self._total_bytes = 0
        self._said = time.monotonic()
        self._told = ""
        self._order = self._write_order()
        self.failures: dict[str, Failure] = {}
        """Why paths could not be written, by path."""
        self.pushed: set[str] = set()
        """Paths that were compressed and written."""
        self.repaired: set[str] = set()
        """Of those, the ones that the bucket had, but broken."""
        self.renewed: set[str] = set()
        """Paths whose lease began anew."""

    @property
    def blocked(self) -> dict[str, str]:
        """Paths that were not written because of one that they refer to, which is the value."""
        return self._order.blocked

    def nar_is_due(self, held: Held) -> bool:
        """Tell whether a NAR's lease is to be renewed."""
        return self._settings.renew and held.nar_day < self._today

    def narinfo_is_due(self, held: Held) -> bool:
        """Tell whether a narinfo is to be written again."""
        return held.content is not None or (self._settings.renew and held.narinfo_day < self._today)

    def _write_order(self) -> WriteOrder:
        needs = {
            one.path.path: [f"{STORE_DIR}/{name}" for name in one.needs]
            for one in self._inventory.held
        }
        needs |= {one.path.path: _references(one.path) for one in self._inventory.missing}
        pending = [one.path.path for one in self._inventory.missing]
        pending += [
            one.path.path
            for one in self._inventory.held
            if self.nar_is_due(one) or self.narinfo_is_due(one)
        ]
        return WriteOrder(needs, pending, self._inventory.lost)

    def run(self) -> None:
        """Write everything that can be written.

        Raises:
            PushError: nothing more can be done.
        """
        for one in self._inventory.missing:
            self._find_place(one)
            if one.reason != "absent":
                self.repaired.add(one.path.path)
        self._add([one.path for one in self._inventory.missing])
        for held in self._inventory.held:
            if held.path.path in self._order.unsettled:
                if held.content is not None:
                    self._content[held.path.path] = held.content
                    self._places[held.path.path] = _place(held.narinfo_etag)
                self._nar_of[held.path.path] = (held.nar, held.nar_size)
                self._renew_nar(held)
        self._start()
        self._loop.run(self._finished, self._tell, _SECONDS_OF_SILENCE)
        if self._total:
            self._tell()

    def _finished(self) -> bool:
        return (
            not self._order.unsettled
            and not self._compressing
            and not self._batches
            and not self._alone
            and not self._awaiting
        )

    # ------------------------------------------------------------------------------------ leases

    def _renew_nar(self, held: Held) -> None:
        path, key = held.path.path, held.nar
        if not self.nar_is_due(held):
            self._advance(self._order.nar_is_there(path))
            return
        if key in self._awaiting:
            self._awaiting[key].append(path)
            return
        self._awaiting[key] = [path]
        # An answer may come after midnight to what was done before.
        day = today(self._transfers)
        self._bucket.renew_nar(
            key,
            held.nar_size,
            lambda etag: self._nar_landed(key, Present(held.nar_size, etag, day)),
            lambda: self._nar_is_gone(key),
            # Not every server copies, and some lose patience: then the NAR is sent again.
            lambda _: self._nar_is_gone(key),
        )

    def _nar_landed(self, key: str, nar: Present) -> None:
        self._inventory.nars[key] = nar
        for path in self._awaiting.pop(key):
            held = self._held.get(path)
            if held is not None:
                held.nar_day = nar.day
                self.renewed.add(path)
            else:
                self._landed += 1
                self._landed_bytes += self._paths[path].nar_size
            self._advance(self._order.nar_is_there(path))
        if self._landed and time.monotonic() - self._said > _SECONDS_BETWEEN_PROGRESS:
            self._tell()

    def _nar_is_gone(self, key: str) -> None:
        self._inventory.nars.pop(key, None)
        self._again([self._paths[path] for path in self._awaiting.pop(key)])

    def _again(self, paths: Sequence[StorePath]) -> None:
        """Push paths that the bucket has not, or not so that they can be renewed, after all."""
        for path in paths:
            self._held.pop(path.path, None)
            self._content.pop(path.path, None)
            self._places.pop(path.path, None)
            # It may have signatures of others, too.
            self._unread.add(path.path)
            self.renewed.discard(path.path)
            self.repaired.add(path.path)
            # What was there may be another builder's, and refer to less.
            self._order.begin_anew(path.path, _references(path))
        self._add(paths)
        self._start()

    # ------------------------------------------------------------------------------------ staging

    def _add(self, paths: Sequence[StorePath]) -> None:
        limit = self._settings.staging_limit // (4 * self._settings.parallelism)
        self._batches += deal(paths, limit)
        self._total += len(paths)
        self._total_bytes += sum(path.nar_size for path in paths)

    def _start(self) -> None:
        """Compress as much as may run side by side, and lie on the disk."""
        while self._compressing < self._settings.parallelism:
            batch = self._next_batch()
            if batch is None:
                return
            needed = 2 * sum(path.nar_size for path in batch)
            alone = not self._on_disk and not self._compressing
            self._compressing += 1
            self._on_disk += needed
            threading.Thread(
                target=self._compress, args=(batch, needed, alone), daemon=True
            ).start()

    def _next_batch(self) -> list[StorePath] | None:
        while self._batches or self._alone:
            queue = self._batches or self._alone
            batch = [path for path in queue[0] if path.path in self._order.unsettled]
            if not batch:
                del queue[0]
                continue
            needed = 2 * sum(path.nar_size for path in batch)
            fits = queue is self._batches and (
                self._on_disk + needed <= self._settings.staging_limit
            )
            # What is too large for the disk, or found no space there, is staged alone.
            if not fits and (self._on_disk or self._compressing):
                return None
            del queue[0]
            return batch
        return None

    def _compress(self, batch: list[StorePath], reserved: int, alone: bool) -> None:
        outcome = self._staging.compress(batch, self._inventory.nars, self._today)
        self._loop.call(lambda: self._compressed(outcome, reserved, alone=alone))

    def _compressed(self, outcome: Compressed, reserved: int, *, alone: bool) -> None:
        self._compressing -= 1
        self._on_disk += sum(done.size for done in outcome.done) - reserved
        for done in outcome.done:
            self._upload(done)
        if outcome.left:
            self._retry(outcome, alone=alone)
        self._start()

    def _retry(self, outcome: Compressed, *, alone: bool) -> None:
        """Try what is left of a batch again in smaller ones, until it is clear which path fails."""
        left = outcome.left
        if len(left) == 1 and not outcome.done and (alone or not outcome.disk_is_full):
            self._fail(left[0].path, Failure("stage", self._why(outcome)))
            return
        if not outcome.done and len(left) > 1:
            half = len(left) // 2
            pieces = [left[:half], left[half:]]
        else:
            pieces = [left]
        if outcome.disk_is_full:
            self._alone += pieces
        else:
            self._batches[:0] = pieces

    def _why(self, outcome: Compressed) -> str:
        if outcome.disk_is_full:
            return (
                f"{outcome.error}; free space in {self._staging.base}, or set TMPDIR to a larger "
                "disk"
            )
        if outcome.path_is_gone:
            return (
                f"{outcome.error}; the path went away during the push: keep the closure alive by a "
                "link, and push again"
            )
        return f"{outcome.error}; see that the store is sound, and push again"

    # ------------------------------------------------------------------------------------ uploads

    def _upload(self, done: CompressedPath) -> None:
        path, key = done.path.path, done.narinfo.url
        self._content[path] = done.content
        self._nar_of[path] = (key, done.size)
        self.pushed.add(path)
        if key in self._awaiting:
            self._awaiting[key].append(path)
            # The file that is being sent may be the very same, of another path in the batch.
            self._on_disk -= done.size
            if self._sending.get(key) != done.file:
                self._staging.discard(done)
            return
        self._awaiting[key] = [path]
        there = self._inventory.nars.get(key)
        if done.already_there and there is not None:
            self._free(done)
            self._nar_landed(key, there)
            return
        day = today(self._transfers)
        self._sending[key] = done.file

        def landed(etag: str | None) -> None:
            self._free(done)
            self._nar_landed(key, Present(done.size, etag, day))
            self._start()

        def failed(failure: Failure) -> None:
            self._free(done)
            for waiting in self._awaiting.pop(key):
                self._fail(waiting, failure)
            self._start()

        self._bucket.put_nar(key, done.file, done.size, landed, failed)

    def _free(self, done: CompressedPath) -> None:
        self._sending.pop(done.narinfo.url, None)
        self._staging.discard(done)
        self._on_disk -= done.size

    # ----------------------------------------------------------------------------------- narinfos

    def _advance(self, ready: Sequence[str]) -> None:
        """Write narinfos that may be written, and go on with what needs nothing written."""
        pending = list(ready)
        while pending:
            path = pending.pop()
            held = self._held.get(path)
            if path in self._content:
                self._put_narinfo(path)
            elif held is not None and self.narinfo_is_due(held) and held.narinfo_etag is not None:
                self._renew_narinfo(held, held.narinfo_etag)
            elif held is not None and self.narinfo_is_due(held):
                self._again([held.path])
            else:
                pending += self._order.settle(path)

    def _find_place(self, missing: Missing) -> None:
        path = missing.path.path
        if missing.reason == "absent":
            self._places[path] = EMPTY
        elif missing.signed:
            self._unread.add(path)
        else:
            self._places[path] = _place(missing.narinfo_etag)

    def _put_narinfo(self, path: str) -> None:
        day, place = today(self._transfers), self._places.get(path)
        if path in self._unread:
            self._unread.remove(path)
            self._meet(path, day, place)
            return
        self._bucket.put_narinfo(
            narinfo_key(self._paths[path]),
            self._content[path],
            lambda etag: self._narinfo_written(path, etag, day),
            lambda failure: self._fail(path, failure),
            place,
            lambda: self._meet(path, day, place),
        )

    def _meet(self, path: str, day: str, place: Place | None) -> None:
        """See what is where a narinfo is to be written on a day, and took no other's place."""
        self._meetings[path] += 1
        self._bucket.read_again(
            narinfo_key(self._paths[path]),
            largest_narinfo(self._paths[path]),
            lambda answer: self._met(path, day, place, answer),
            lambda _: self._put_narinfo_over(path, None),
        )

    def _put_narinfo_over(self, path: str, place: Place | None) -> None:
        self._places[path] = place
        self._put_narinfo(path)

    def _met(self, path: str, day: str, before: Place | None, answer: Answer) -> None:
        """Write a narinfo besides what is there, unless nothing is left to be written."""
        store_path = self._paths[path]
        place = EMPTY if answer.status == HTTPStatus.NOT_FOUND else _place(answer.etag)
        if place == before or self._meetings[path] > _MOST_MEETINGS:
            # Not every server knows its own ETags again.
            place = None
        narinfo = parsed(path, answer.body)
        if narinfo is not None and narinfo.fingerprint == store_path.fingerprint:
            keys = self._settings.trusted_keys
            self._content[path] = signed_besides(store_path, self._content[path], narinfo, keys)
            if answer.body == self._content[path] and self._is_current(day_of(answer), day):
                self._narinfo_written(path, answer.etag, day)
                return
        elif (
            narinfo is not None
            and self._is_current(day_of(answer), day)
            and self._another_builders(store_path, narinfo)
        ):
            self._look_at_others(path, narinfo, day, place, answer.etag)
            return
        self._put_narinfo_over(path, place)

    def _is_current(self, written: str, day: str) -> bool:
        return written >= day or not self._settings.renew

    def _another_builders(self, path: StorePath, narinfo: NarInfo) -> bool:
        return another_builders(path, narinfo, self._settings.trusted_keys, self._inventory.order)

    def _look_at_others(
        self, path: str, narinfo: NarInfo, day: str, place: Place | None, etag: str | None
    ) -> None:
        """Leave another builder's narinfo where it is, if its NAR is there."""
        key, size = narinfo.url, narinfo.file_size or 0

        def looked(answer: Answer) -> None:
            nar = present_of({key: answer}).get(key)
            if nar is None or nar.size != size or not self._is_current(nar.day, day):
                self._put_narinfo_over(path, place)
                return
            self._inventory.nars[key] = nar
            self._nar_of[path] = (key, size)
            self._held[path] = Held(
                self._paths[path],
                key,
                size,
                nar.day,
                etag,
                day,
                needs=tuple(narinfo.references),
                ours=False,
            )
            # Of what was pushed, nothing is read.
            self.pushed.discard(path)
            self.repaired.discard(path)
            self._narinfo_written(path, etag, day)

        self._transfers.submit(
            self._bucket.look_at(key), looked, lambda _: self._put_narinfo_over(path, place)
        )

    def _renew_narinfo(self, held: Held, etag: str) -> None:
        day = today(self._transfers)

        def renewed(new: str | None) -> None:
            self.renewed.add(held.path.path)
            self._narinfo_written(held.path.path, new, day)

        self._bucket.renew_narinfo(
            narinfo_key(held.path),
            etag,
            renewed,
            lambda: self._look_again(held, etag, day),
            partial(self._not_renewed, held),
        )

    def _not_renewed(self, held: Held, failure: Failure) -> None:
        self._again([held.path])
        if failure.given_up:
            # What the server does not copy for a damage of it, it would not give either.
            self._unread.discard(held.path.path)

    def _look_again(self, held: Held, etag: str, day: str) -> None:
        """See whether another push has just written the narinfo that was due on a day."""
        self._bucket.read_again(
            narinfo_key(held.path),
            largest_narinfo(held.path),
            lambda answer: self._looked_again(held, etag, day, answer),
            partial(self._not_renewed, held),
        )

    def _looked_again(self, held: Held, etag: str, day: str, answer: Answer) -> None:
        path, narinfo = held.path.path, parsed(held.path.path, answer.body)
        if narinfo is None or narinfo.url != held.nar or not self._may_stay(held, narinfo):
            self._again([held.path])
        elif day_of(answer) >= day:
            self._narinfo_written(path, answer.etag, day)
        elif (
            answer.etag is not None
            and answer.etag != etag
            and self._meetings[path] < _MOST_MEETINGS
        ):
            self._meetings[path] += 1
            self._renew_narinfo(held, answer.etag)
        else:
            # It is what was to be copied, and nobody has written it: the server does not copy.
            self.renewed.add(path)
            self._content[path] = answer.body
            self._put_narinfo_over(path, None)

    def _may_stay(self, held: Held, narinfo: NarInfo) -> bool:
        """Tell whether a narinfo is still as good as the one that was looked at."""
        if not held.ours:
            return self._another_builders(held.path, narinfo)
        return says_the_same(narinfo, held.path) and signed_by(narinfo, self._settings.public_key)

    def _narinfo_written(self, path: str, etag: str | None, day: str) -> None:
        store_path = self._paths[path]
        nar, size = self._nar_of[path]
        held = self._held.get(path)
        if held is None:
            nar_day = self._inventory.nars[nar].day
            held = self._held[path] = Held(
                store_path, nar, size, nar_day, etag, day, needs=store_path.references
            )
        held.narinfo_etag, held.narinfo_day, held.content = etag, day, None
        self._content.pop(path, None)
        if etag is not None and held.ours:
            self._memory.narinfos[narinfo_key(store_path)] = RememberedNarInfo(
                etag, facts(store_path, self._settings.public_key), nar, size
            )
        self._advance(self._order.settle(path))

    # -------------------------------------------------------------------------------------- words

    def _fail(self, path: str, failure: Failure) -> None:
        self.failures[path] = failure
        self.pushed.discard(path)
        self._order.fail(path)

    def _tell(self) -> None:
        self._said = time.monotonic()
        if self._total:
            bytes_ = f"{human(self._landed_bytes)} of {human(self._total_bytes)}"
            line = f"upload: {self._landed} of {self._total} paths, {bytes_}"
        else:
            line = f"renew: {len(self._order.unsettled)} paths left"
        if line != self._told:
            say(line)
        self._told = line

    def result(self) -> Inventory:
        """Return what the bucket has now of the paths that it should have, whatever ended this."""
        not_there = self.failures.keys() | self.blocked.keys() | self._order.unsettled
        whole = [one for path, one in self._held.items() if path not in not_there]
        return Inventory(
            whole, [], self._inventory.nars, lost=self._order.lost, order=self._inventory.order
        )

    def count(self, summary: Summary) -> None:
        """Add what was done to a summary."""
        failed = self.failures.keys() | self.blocked.keys()
        pushed = self.pushed - failed
        summary.pushed += len(pushed)
        summary.pushed_bytes += sum(self._paths[path].nar_size for path in pushed)
        summary.renewed += len(self.renewed - self.pushed - failed)
        summary.repaired += len(self.repaired & pushed)


def _place(etag: str | None) -> Place | None:
    """Return the place of what has an ETag; None for whatever is there where it has none."""
    return None if etag is None else Place(etag)


def _references(path: StorePath) -> list[str]:
    return [f"{STORE_DIR}/{name}" for name in path.references]


def today(transfers: Transfers) -> str:
    """Return the day by the server's clock or, before it has told, by this machine's."""
    return transfers.day or datetime.now(timezone.utc).strftime("%Y-%m-%d")
