"""Pins that live in the cache: closures that every push renews, also where it has none of them.

What a pin keeps is read from the bucket, so it is believed as little as anything there: a narinfo
is walked through and renewed, as it is, only if it is well-formed and a signature of this cache's
verifies. Nothing is signed anew, and nothing is given to Nix. What a writer of the bucket makes a
pin name costs requests, and no more.

Whatever renews the top of a pin has renewed all of the pin before it, on the same day, so a pin
whose top was written today is walked no further: of many builders, the first one of a day does the
work. Where something failed, the top is kept back, and the next push walks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

from formats.error import FormatError
from formats.keys import PublicKey
from formats.narinfo import LARGEST_NARINFO, NarInfo, narinfo_of
from formats.pin import LARGEST_PIN, PIN_FOLDER, PIN_NAME, parse_pin
from formats.s3 import Listing
from formats.store_path import STORE_DIR
from push.bucket import Bucket, Done, Failed, Listed
from push.connection import Answer
from push.failure import Failure
from push.inventory import day_of, parsed, present_of, signed_by
from push.plan import WriteOrder
from push.progress import say
from push.publishing import today
from push.transfers import Loop, Transfers

PINS = Listed(PIN_FOLDER, folders=False)
"""Where pins are listed."""

_SECONDS_OF_SILENCE = 60.0
# As many answers are in memory at a time: each may be as large as any narinfo.
_AT_ONCE = 256
_ROUNDS = 3
_ABSENT = "the cache does not have it"
_BROKEN = "its narinfo is broken, or no key of this cache has signed it"


@dataclass(frozen=True)
class Pin:
    """A pin of the cache's."""

    name: str
    targets: tuple[str, ...]
    """Store paths whose closures it keeps."""


@dataclass(frozen=True)
class _Entry:
    """A narinfo of the bucket that one of the cache's keys has signed."""

    narinfo: NarInfo
    content: bytes
    etag: str | None
    day: str
    """When it was last written, such as 2026-11-26."""

    @property
    def path(self) -> str:
        return self.narinfo.store_path

    @property
    def key(self) -> str:
        return narinfo_of(self.path)

    @property
    def references(self) -> list[str]:
        return [f"{STORE_DIR}/{name}" for name in self.narinfo.references]


def read_pins(bucket: Bucket, listing: Listing, failures: dict[str, Failure]) -> list[Pin]:
    """Return the pins that a listing names; one that cannot be read is told, and left out.

    Args:
        bucket: where they are.
        listing: of their folder.
        failures: why the server did not let one be read is added, by the pin.
    """
    names = [one.key[len(PIN_FOLDER) :] for one in listing.objects]
    names = [name for name in names if PIN_NAME.fullmatch(name)]
    if listing.truncated:
        say(f"pins: there are more than can be listed at once; only the first {len(names)} count")
    answers = bucket.attempt([bucket.read(f"{PIN_FOLDER}{name}", LARGEST_PIN) for name in names])
    pins = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, Failure):
            failures[f"pin {name}"] = Failure("renew", answer.what, answer.kind)
            continue
        try:
            pins.append(Pin(name, parse_pin(answer.body)))
        except FormatError as error:
            if answer.status != 404:
                say(
                    f"pins: {name} cannot be read: {error}; run pulumi up --refresh --run-program "
                    "to put it back"
                )
    return pins


class PinRenewal:
    """Renews what pins keep and this push does not."""

    def __init__(
        self,
        bucket: Bucket,
        transfers: Transfers,
        loop: Loop,
        *,
        keys: Sequence[PublicKey],
        day: str,
        known: Collection[str],
    ) -> None:
        """Prepare to renew.

        Args:
            bucket: where the pins are.
            transfers: what makes the requests.
            loop: what follows from their answers.
            keys: the cache's; the last one signs, and so has signed most.
            day: what was written on this day, such as 2026-11-26, is not due; empty where
                nothing is.
            known: store paths that this push takes care of, or an upstream cache.
        """
        self._bucket = bucket
        self._transfers = transfers
        self._loop = loop
        self._keys = list(reversed(keys))
        self._began = self._today = day
        self._again = False
        self._rounds_left = 0
        self._known = known
        self._order = WriteOrder({}, ())
        self._walked: dict[str, _Entry] = {}
        self._pin_of: dict[str, str] = {}
        self._tops: set[str] = set()
        # What was not renewed though it may be another time, and all that refers to it.
        self._doubtful: set[str] = set()
        self.renewed: set[str] = set()
        """Store paths whose lease began anew."""
        self.failures: dict[str, Failure] = {}
        """What the server did not let be renewed, by store path; another try may help."""
        self.not_due: list[NarInfo] = []
        """The narinfos that had been written today, and whose NARs nobody has looked at."""
        self.broken: dict[str, dict[str, str]] = {}
        """Of each pin that is incomplete, what it lacks and why, by store path."""

    @property
    def due(self) -> list[NarInfo]:
        """The narinfos that were walked through and had not been written today."""
        return [one.narinfo for one in self._walked.values() if self._is_due(one)]

    def _is_due(self, one: _Entry) -> bool:
        return one.day < self._today

    def run(self, pins: Sequence[Pin], at_midnight: Callable[[], None] = lambda: None) -> None:
        """Walk through the closures of pins, and renew what is due.

        Where midnight goes by meanwhile, all is walked through and renewed again: what was renewed
        before it would expire a day before what refers to it.

        Args:
            pins: of the cache.
            at_midnight: renews what is known, before that.

        Raises:
            PushError: nothing more can be done.
        """
        for self._rounds_left in reversed(range(_ROUNDS)):
            self._round(pins)
            if not self._midnight_has_gone_by() or not self._rounds_left:
                return
            at_midnight()
            self._today, self._again = today(self._transfers), True

    def _midnight_has_gone_by(self) -> bool:
        return self._today != "" and today(self._transfers) > self._today

    def _round(self, pins: Sequence[Pin]) -> None:
        for found in (self.failures, self.not_due, self.broken, self._walked, self._pin_of):
            found.clear()
        self._doubtful.clear()
        for pin in pins:
            for target in pin.targets:
                if target not in self._known:
                    self._pin_of.setdefault(target, pin.name)
        self._tops = set(self._pin_of)
        self._walk(list(self._pin_of))
        self._order = WriteOrder(
            {one.path: one.references for one in self._walked.values()}, self._walked
        )
        for one in list(self._walked.values()):
            # After midnight a narinfo of today may have a NAR of yesterday.
            if not self._is_due(one) and not self._again:
                self._advance(self._order.nar_is_there(one.path))
                continue
            self._transfers.submit(
                self._bucket.look_at(one.narinfo.url),
                partial(self._looked_at_nar, one),
                partial(self._failed, one),
            )
        self._wait()
        while self._order.unsettled:
            circular = self._circular()
            for path in circular:
                self._break(path, "it and what it refers to refer to one another")
            # The rest follows from any of them.
            self._advance(circular[:1])
            self._wait()

    def _wait(self) -> None:
        self._loop.run(
            lambda: not self._order.unsettled or self._transfers.idle(),
            lambda: say(f"pins: {len(self._order.unsettled)} paths left to renew"),
            _SECONDS_OF_SILENCE,
        )

    def _circular(self) -> list[str]:
        """Return paths that wait for one another, without those that only wait for them."""
        left = {
            path: [one for one in self._walked[path].references if one != path]
            for path in sorted(self._order.unsettled)
        }
        while True:
            needed = {reference for references in left.values() for reference in references}
            if left.keys() <= needed:
                return list(left)
            left = {path: references for path, references in left.items() if path in needed}

    # ----------------------------------------------------------------------------------- the walk

    def _walk(self, tops: Sequence[str]) -> None:
        level: Sequence[str] = tops
        first = True
        while level:
            below: dict[str, str] = {}
            for start in range(0, len(level), _AT_ONCE):
                below |= self._read(level[start : start + _AT_ONCE], first=first)
            self._pin_of |= below
            level, first = list(below), False

    def _read(self, paths: Sequence[str], *, first: bool) -> dict[str, str]:
        """Read narinfos; return what they refer to that nobody has looked at, and for which pin."""
        requests = [self._bucket.read(narinfo_of(path), LARGEST_NARINFO) for path in paths]
        below: dict[str, str] = {}
        for path, answer in zip(paths, self._bucket.attempt(requests), strict=True):
            if isinstance(answer, Failure):
                self._fail(path, answer)
            elif answer.status != 404:
                below |= self._take(path, answer)
            elif first:
                # Below the top it may be one that an upstream cache has: the audit asks there.
                self._break(path, _ABSENT)
        return below

    def _take(self, path: str, answer: Answer) -> Mapping[str, str]:
        """Take in a narinfo; return what it refers to that nobody has looked at, and for whom."""
        narinfo = self._believed(path, answer.body)
        if narinfo is None:
            self._break(path, _BROKEN)
            return {}
        entry = _Entry(narinfo, answer.body, answer.etag, day_of(answer))
        if not self._is_due(entry):
            self.not_due.append(narinfo)
            # Below an old top it may be of a push that failed further down.
            if path in self._tops and not self._again:
                return {}
        self._walked[path] = entry
        pin = self._pin_of[path]
        return {
            reference: pin
            for reference in entry.references
            if reference not in self._known and reference not in self._pin_of
        }

    def _believed(self, path: str, content: bytes) -> NarInfo | None:
        """Return a path's narinfo, None where it is none or a key of this cache has not signed."""
        narinfo = parsed(path, content)
        if narinfo is None or not any(signed_by(narinfo, key) for key in self._keys):
            return None
        return narinfo

    # --------------------------------------------------------------------------------- the leases

    def _looked_at_nar(self, one: _Entry, answer: Answer) -> None:
        key, size = one.narinfo.url, one.narinfo.file_size or 0
        nar = present_of({key: answer}).get(key)
        if nar is None or not nar.may_have(size):
            self._lost(one, "its NAR is gone, or has another size")
        elif nar.day >= self._today:
            self._advance(self._order.nar_is_there(one.path))
        else:
            self._bucket.renew_nar(
                key,
                size,
                lambda _: self._advance(self._order.nar_is_there(one.path)),
                lambda: self._lost(one, "its NAR is gone"),
                partial(self._failed, one),
            )

    def _advance(self, ready: Sequence[str]) -> None:
        """Renew narinfos whose turn it is, and go on with what needs nothing written."""
        pending = list(ready)
        while pending:
            one = self._walked[pending.pop()]
            if not self._doubtful.isdisjoint(one.references):
                self._doubtful.add(one.path)
            if self._is_due(one) and not self._is_kept_back(one):
                self._renew_narinfo(one)
            else:
                pending += self._order.settle(one.path)

    def _is_kept_back(self, one: _Entry) -> bool:
        """Tell whether the top of a pin is to stay old, so that the next push walks again.

        After a failure for a day and no longer: what a server never renews must not cost the whole
        pin. After midnight until the next round.
        """
        if one.path not in self._tops:
            return False
        if self._rounds_left and self._midnight_has_gone_by():
            return True
        if one.path not in self._doubtful:
            return False
        day_before = date.fromisoformat(self._began) - timedelta(days=1)
        return one.day >= day_before.isoformat()

    def _renew_narinfo(self, one: _Entry) -> None:
        def renewed(_: str | None) -> None:
            self.renewed.add(one.path)
            self._advance(self._order.settle(one.path))

        failed = partial(self._failed, one)
        if one.etag is None:
            self._bucket.put_narinfo(one.key, one.content, renewed, failed)
            return
        self._bucket.renew_narinfo(
            one.key, one.etag, renewed, lambda: self._look_again(one, renewed, failed), failed
        )

    def _look_again(self, one: _Entry, renewed: Done, failed: Failed) -> None:
        """See what is there in place of a narinfo that was to be renewed."""

        def looked(answer: Answer) -> None:
            if answer.status == 404:
                self._lost(one, _ABSENT)
            elif self._believed(one.path, answer.body) is None:
                self._lost(one, _BROKEN)
            elif day_of(answer) >= self._today:
                # Another push's doing counts as nothing of ours.
                self._advance(self._order.settle(one.path))
            elif answer.body == one.content:
                # Not every server knows its own ETags again.
                self._bucket.put_narinfo(one.key, one.content, renewed, failed)
            else:
                failed(Failure("renew", f"{one.key} has changed meanwhile; push again"))

        self._transfers.submit(self._bucket.read(one.key, LARGEST_NARINFO), looked, failed)

    def _failed(self, one: _Entry, failure: Failure) -> None:
        self._fail(one.path, failure)
        self._advance(self._order.settle(one.path))

    def _fail(self, path: str, failure: Failure) -> None:
        what = f"pin {self._pin_of[path]}: {failure.what}"
        self.failures[path] = Failure("renew", what, failure.kind)
        self._doubtful.add(path)

    def _lost(self, one: _Entry, why: str) -> None:
        """Note what cannot be renewed; what refers to it is renewed all the same, to be mended."""
        self._break(one.path, why)
        self._advance(self._order.settle(one.path))

    def _break(self, path: str, why: str) -> None:
        self.broken.setdefault(self._pin_of[path], {})[path] = why


def tell(renewal: PinRenewal) -> None:
    """Say what was renewed, and which pins are incomplete."""
    if renewal.renewed:
        say(f"pins: renewed {len(renewal.renewed)} paths that this machine does not have")
    for name, lost in renewal.broken.items():
        path, why = next(iter(lost.items()))
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        say(f"pins: {name} is incomplete: {path}: {why}{more}; push it where it still is")
