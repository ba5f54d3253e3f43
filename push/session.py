"""One run: what is to be pushed is listed, looked for in the bucket, and written where it lacks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

from formats.printable import SHOWN, printable
from formats.push_status import PushStatus
from formats.s3 import Listing
from formats.store_path import STORE_DIR
from push import VERSION
from push.beside import Beside
from push.bucket import Bucket
from push.connection import Route
from push.failure import Failure, PushError
from push.inventory import (
    LOGS,
    FirstLook,
    Held,
    Inventory,
    Look,
    facts,
    list_logs,
    list_page,
    narinfo_key,
    parsed,
    says_the_same,
    verify_key,
)
from push.memory import Memory, RememberedNarInfo, digest
from push.pins import PINS, Pin, PinRenewal, read_pins, tell
from push.progress import Summary, say
from push.publishing import Publication, today
from push.settings import PushSettings
from push.staging import Staging
from push.status import StatusObject, host
from push.store import (
    Nix,
    NixError,
    StorePath,
    UnknownPathError,
    follow_link,
    references_first,
)
from push.transfers import Loop, Transfers
from push.workspace import Workspace

_ROUNDS = 3
# Of many lines in a row only some look through all of the bucket.
_SECONDS_PROVEN = 5.0

_T = TypeVar("_T")


@dataclass
class Outcome:
    """What a push came to."""

    summary: Summary
    unpushed: dict[str, Failure] = field(default_factory=dict)
    """What is not in the bucket, a path or what was given for one, and why."""
    blocked: dict[str, str] = field(default_factory=dict)
    """Paths that are not in the bucket because of one of the former, which is the value."""
    done: list[str] = field(default_factory=list)
    """What was given, of which the whole closure is in the bucket."""
    own: int = 0
    """Paths of the closures that no upstream cache signs."""
    own_bytes: int = 0
    """Bytes of their NARs, before compression."""

    def __add__(self, later: Outcome) -> Outcome:
        """Return what this push and a later one came to."""
        return Outcome(
            self.summary + later.summary,
            self.unpushed | later.unpushed,
            self.blocked | later.blocked,
            [*self.done, *later.done],
            self.own + later.own,
            self.own_bytes + later.own_bytes,
        )


@dataclass(frozen=True)
class _Closure:
    """What Nix says of all that is to be pushed."""

    targets: Mapping[str, str]
    """The store path of what was given."""
    paths: Sequence[StorePath]
    """All paths, references first."""


class Session:
    """Connections, directories and memory that pushes share."""

    def __init__(self, settings: PushSettings, environment: Mapping[str, str], nix: Nix) -> None:
        """Make the directories.

        Raises:
            PushError: there is no space, or a setting cannot be used.
        """
        self._settings = settings
        self._nix = nix
        route = Route(settings)
        self._workspace = Workspace(environment)
        try:
            self._key_file = self._workspace.write_secret("signing-key", settings.signing_key)
            self._loop = Loop()
            self._loop.watch_threads()
            self._transfers = Transfers(route, self._loop)
            self._bucket = Bucket(settings, self._transfers, self._loop)
            self._staging = Staging(self._nix, self._workspace, settings, self._key_file)
            self._memory = Memory.of(settings)
        except BaseException:
            # Whatever it is, the key does not stay.
            self._workspace.remove()
            raise
        self.done: list[str] = []
        """What was given to the last push, of which the whole closure is in the bucket, also where
        that push came to no end."""
        self._proven: dict[str, Held] = {}
        self._proven_on = ""
        self._proven_at = 0.0
        self._pins_on = ""

    def close(self) -> None:
        """Stop everything, and remove the directories; whatever is under way is lost."""
        with ExitStack() as last_first:
            last_first.callback(self._workspace.remove)
            last_first.callback(self._staging.close)
            last_first.callback(self._transfers.close)

    def look(self, given: Sequence[str]) -> tuple[Outcome, Inventory]:
        """Find out what a push would do, and do nothing.

        Raises:
            PushError: it could not be found out.
        """
        outcome = Outcome(Summary())
        # The server's answer comes while Nix is asked.
        first = FirstLook(self._bucket)
        closure = self._list(given, outcome)
        own = self._own(closure.paths, outcome.summary)
        inventory = self._inventory(own, closure.paths, first.listings())
        day = today(self._transfers)
        outcome.summary.pushed = len(inventory.missing)
        outcome.summary.pushed_bytes = sum(one.path.nar_size for one in inventory.missing)
        outcome.summary.repaired = sum(one.reason != "absent" for one in inventory.missing)
        outcome.summary.reused = len(own) - len(inventory.missing)
        if self._settings.renew:
            outcome.summary.renewed = sum(
                one.nar_day < day or one.narinfo_day < day for one in inventory.held
            )
        return outcome, inventory

    def push(self, given: Sequence[str]) -> Outcome:
        """Push the closures of what is given: store paths, or links to them.

        Raises:
            PushError: nothing more can be done.
        """
        outcome = Outcome(Summary())
        self.done = []
        # Standard input may name builds all day long: once a day is enough for pins.
        pinned = self._pins_are_due()
        # The server's answer comes while Nix is asked.
        logs = [LOGS] if self._settings.logs else []
        first = FirstLook(self._bucket, *logs, *([PINS] if pinned else []))
        closure = self._list(given, outcome)
        failures: dict[str, Failure] = {}
        # Which day it is, they tell: midnight may have gone by since the last answers.
        others = first.others()
        if not pinned and self._pins_are_due():
            others, pinned = [*others, list_page(self._bucket, PINS)], True
        pins = read_pins(self._bucket, others[-1], failures) if pinned else []
        closure = self._with_pins(closure, pins)
        own = self._own(closure.paths, outcome.summary)
        outcome.own, outcome.own_bytes = len(own), sum(path.nar_size for path in own)
        pages = first.listings()
        self._forget_proofs(own, pages)
        left = [path for path in own if path.path not in self._proven]
        inventory = self._inventory(left, closure.paths, pages) if left else None
        beside = Beside(
            self._settings, self._bucket, self._nix, self._workspace, today(self._transfers)
        )
        if inventory is not None:
            if logs:
                inventory.logs = list_logs(self._bucket, others[0], len(left))
            beside.publish(inventory)
        try:
            if inventory is not None:
                self._publish(inventory, outcome)
            if pins or len(left) < len(own):
                self._renew_after_midnight(own, outcome)
        except PushError:
            self.done = self._complete(closure, own)
            raise
        self._prove(closure, own, outcome)
        lost = {path.path for path in own} - self._proven.keys()
        # What could not be pushed may be there all the same, and is a pin's as any other's.
        known = {path.path for path in closure.paths} - lost
        failures |= self._renew_pins(
            pins, known, beside, lambda: self._renew_after_midnight(own, outcome)
        )
        beside.tell()
        outcome.summary.reused = (
            len(own)
            - outcome.summary.pushed
            - (len(outcome.unpushed.keys() & {path.path for path in own}) + len(outcome.blocked))
        )
        if failures:
            outcome.unpushed = failures | outcome.unpushed
            # The next push of this session tries again.
            self._pins_on = ""
        self._memory.save()
        return outcome

    def tell(self, started_by: str, outcome: Outcome | None) -> None:
        """Leave in the bucket what pushes came to, for people.

        Args:
            started_by: what started them, one of `formats.push_status.STARTED_BY`.
            outcome: what they came to; None where nothing more could be done.
        """
        if self._settings.session_token is not None:
            # A credential of an hour is no builder's: each would leave an object for ever.
            return
        if outcome is None and self._transfers.day is None:
            # The server has never answered, or this machine could not even ask.
            return
        told = outcome or Outcome(Summary(), unpushed={"": Failure("", "")})
        summary = told.summary
        status = PushStatus(
            started_by=started_by,
            host=host(),
            own=told.own,
            own_bytes=told.own_bytes,
            pushed=summary.pushed,
            pushed_bytes=summary.pushed_bytes,
            renewed=summary.renewed,
            repaired=summary.repaired,
            failures=len(told.unpushed) + len(told.blocked),
            nix=self._nix_version(),
            program=VERSION,
            signed_by=str(self._settings.public_key),
        )
        where = StatusObject(self._transfers, self._loop, self._settings.access_key_id)
        where.leave(status, quietly=outcome is None)

    def _nix_version(self) -> str:
        """Return the version of this machine's Nix, which is asked once for each."""
        try:
            identity = self._nix.identity
            if self._memory.nix is None or self._memory.nix[0] != identity:
                self._memory.nix = (identity, self._nix.version())
                self._memory.save()
        except (NixError, OSError):
            return ""
        return self._memory.nix[1]

    def _renew_pins(
        self,
        pins: Sequence[Pin],
        known: Collection[str],
        beside: Beside,
        at_midnight: Callable[[], None],
    ) -> Mapping[str, Failure]:
        """Renew what pins keep and this push has not: this machine may never have had it.

        Returns:
            what could not be renewed, and may be another time.
        """
        day = today(self._transfers)
        failures: Mapping[str, Failure] = {}
        if pins:
            renewal = PinRenewal(
                self._bucket,
                self._transfers,
                self._loop,
                keys=self._settings.trusted_keys,
                day=day,
                known=known,
            )
            renewal.run(pins, at_midnight)
            tell(renewal)
            beside.renew(renewal.due)
            failures = renewal.failures
        self._pins_on = day
        return failures

    def _pins_are_due(self) -> bool:
        return self._settings.renew and self._pins_on != today(self._transfers)

    def _forget_proofs(self, own: Sequence[StorePath], pages: tuple[Listing, Listing]) -> None:
        """Look again for what was found a while ago: standard input may stay open for weeks.

        Somebody may remove meanwhile what was found, and the next line's narinfo would refer to it.
        Where the first pages of listings, which are there anyway, say so of one path, no other is
        believed to be there either.
        """
        day, now = today(self._transfers), time.monotonic()
        proven = [self._proven[path.path] for path in own if path.path in self._proven]
        if (
            day != self._proven_on
            or now - self._proven_at > _SECONDS_PROVEN
            or (proven and not _still_there(proven, *pages))
        ):
            self._proven.clear()
            self._proven_on, self._proven_at = day, now

    # -------------------------------------------------------------------------------- what it is

    def _list(self, given: Sequence[str], outcome: Outcome) -> _Closure:
        """Ask Nix for the closures; what has none is a failure of its own."""
        targets: dict[str, str] = {}
        for link in dict.fromkeys(given):
            try:
                targets[link] = follow_link(link)
            except UnknownPathError as error:
                outcome.unpushed[link] = Failure("list", f"{error}; build it, or correct the path")
            except OSError as error:
                named = printable(link, SHOWN)
                what = f"'{named}' cannot be followed ({error.strerror}); correct the path"
                outcome.unpushed[link] = Failure("list", what)
        found, invalid = self._closures(list(dict.fromkeys(targets.values())))
        for link, path in list(targets.items()):
            if path in invalid:
                outcome.unpushed[link] = _not_here(invalid[path])
                del targets[link]
        return _Closure(targets, references_first(found))

    def _with_pins(self, closure: _Closure, pins: Sequence[Pin]) -> _Closure:
        """Return a closure with those of pins that this machine has: what they lack, it has."""
        known = {path.path: path for path in closure.paths}
        pinned = {target for pin in pins for target in pin.targets} - known.keys()
        here = sorted(path for path in pinned if os.path.lexists(path))
        found, _ = self._closures(here)
        return replace(closure, paths=references_first(known | found)) if found else closure

    def _closures(self, paths: Sequence[str]) -> tuple[dict[str, StorePath], dict[str, NixError]]:
        """Return all paths of closures, and which of `paths` have none; one bad costs no other."""
        if not paths:
            return {}, {}
        try:
            return {path.path: path for path in self._nix.closure(paths)}, {}
        except NixError as error:
            if len(paths) == 1:
                return {}, {paths[0]: error}
        half = len(paths) // 2
        found, invalid = self._closures(paths[:half])
        more_found, more_invalid = self._closures(paths[half:])
        return found | more_found, invalid | more_invalid

    def _own(self, paths: Sequence[StorePath], summary: Summary) -> list[StorePath]:
        """Return the paths that no upstream key has signed; a signature counts once verified."""
        keys = {key.name: key for key in self._settings.upstream_keys}
        claims: dict[str, str] = {}
        for path in paths:
            named = [one for one in path.signatures if one.partition(":")[0] in keys]
            if named:
                trusted = sorted(str(keys[one.partition(":")[0]]) for one in named)
                claims[path.path] = digest(path.fingerprint, *sorted(named), *trusted)
        new = [
            path
            for path in paths
            if path.path in claims and claims[path.path] not in self._memory.upstream
        ]
        verified: set[str] = set()
        if new:
            directory = self._workspace.for_narinfos("upstream", len(new))
            verified = self._asking_nix(
                "list", lambda: self._nix.verified(directory, new, list(keys.values()))
            )
            self._memory.upstream |= {claims[path] for path in verified}
        own = []
        for path in paths:
            claim = claims.get(path.path)
            if claim is None or (path.path not in verified and claim not in self._memory.upstream):
                own.append(path)
            else:
                summary.skipped += 1
                summary.skipped_bytes += path.nar_size
        return own

    def _inventory(
        self,
        own: Sequence[StorePath],
        closure: Sequence[StorePath],
        pages: tuple[Listing, Listing],
    ) -> Inventory:
        """Look what the bucket has of the own paths, of which there are the first pages."""
        key = self._settings.public_key
        look = Look(self._bucket, self._memory, self._settings.trusted_keys, closure)
        narinfos, nars = pages
        present, contents = look.present_narinfos(own, narinfos)
        alike = []
        for path in own:
            narinfo = parsed(path.path, contents.get(narinfo_key(path), b""))
            if narinfo is not None and says_the_same(narinfo, path):
                alike.append(path)
        signatures: dict[str, str] = {}
        if alike:
            directory = self._workspace.for_narinfos("signed", len(alike))
            signatures = self._asking_nix(
                "sign",
                lambda: self._nix.signatures(directory, alike, self._key_file, key.name),
            )
            first_one = alike[0].narinfo("", "", signatures=[signatures[alike[0].path]])
            verify_key(first_one, key)
        held, missing = look.judge(own, present, contents, signatures)
        for one in held:
            if one.ours and one.content is None and one.narinfo_etag is not None:
                self._memory.narinfos[narinfo_key(one.path)] = RememberedNarInfo(
                    one.narinfo_etag, facts(one.path, key), one.nar, one.nar_size
                )
        inventory = look.locate_nars(held, missing, nars)
        signed = sum(one.content is not None for one in inventory.held)
        if signed:
            say(f"sign: added {key.name} to {signed} paths")
        return inventory

    # ------------------------------------------------------------------------------ what is done

    def _publish(self, inventory: Inventory, outcome: Outcome) -> None:
        """Write what is missing or old; again where midnight has gone by meanwhile."""
        for _ in range(_ROUNDS):
            round_ = Publication(
                self._settings,
                self._staging,
                self._transfers,
                self._loop,
                self._bucket,
                self._memory,
                inventory,
            )
            began = today(self._transfers)
            try:
                round_.run()
            except PushError:
                # What is there is there, whatever ends the push.
                self._take(round_.result())
                raise
            round_.count(outcome.summary)
            outcome.unpushed |= round_.failures
            outcome.blocked |= round_.blocked
            inventory = round_.result()
            # What was written before midnight would expire a day before what refers to it.
            if not self._settings.renew or today(self._transfers) <= began:
                break
        self._take(inventory)
        self._loop.run(self._transfers.idle, lambda: None, 1.0)

    def _renew_after_midnight(self, own: Sequence[StorePath], outcome: Outcome) -> None:
        """Renew again what was proven before midnight, where what refers to it is renewed after."""
        if not self._settings.renew or today(self._transfers) <= self._proven_on:
            return
        self._publish(
            Inventory([self._proven[path.path] for path in own if path.path in self._proven]),
            outcome,
        )
        for path in outcome.unpushed.keys() | outcome.blocked.keys():
            self._proven.pop(path, None)

    def _take(self, inventory: Inventory) -> None:
        """Count what an inventory holds as proven."""
        self._proven |= {one.path.path: one for one in inventory.held}

    def _prove(self, closure: _Closure, own: Sequence[StorePath], outcome: Outcome) -> None:
        """Make sure that each own path was found whole or written, and note which targets are."""
        lost = {path.path for path in own} - self._proven.keys()
        for path in lost - outcome.unpushed.keys() - outcome.blocked.keys():
            outcome.unpushed[path] = Failure("publish", f"{path} was not written; push again")
        outcome.done = self.done = self._complete(closure, own)

    def _complete(self, closure: _Closure, own: Sequence[StorePath]) -> list[str]:
        """Return what was given of which each own path is proven."""
        known = {path.path for path in closure.paths}
        incomplete: set[str] = set()
        lost = {path.path for path in own} - self._proven.keys()
        for fact in closure.paths:
            needed = {
                path for path in (f"{STORE_DIR}/{n}" for n in fact.references) if path in known
            }
            if fact.path in lost or needed & incomplete:
                incomplete.add(fact.path)
        return [link for link, path in closure.targets.items() if path not in incomplete]

    def _asking_nix(self, step: str, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except NixError as error:
            raise PushError(step, f"{error}; see that Nix works on this machine") from None
        except OSError as error:
            raise PushError(
                step,
                f"{self._workspace.base} cannot be written to ({error.strerror}); free space "
                "there, or set TMPDIR to a larger disk",
            ) from None


def _still_there(proven: Sequence[Held], narinfos: Listing, nars: Listing) -> bool:
    """Tell whether first pages of listings have what was found, as far as they reach."""
    of_narinfos, of_nars = ({one.key: one for one in page.objects} for page in (narinfos, nars))
    for one in proven:
        key = narinfo_key(one.path)
        if _reaches(narinfos, key) and (
            key not in of_narinfos or one.narinfo_etag not in (None, of_narinfos[key].etag)
        ):
            return False
        if _reaches(nars, one.nar) and (
            one.nar not in of_nars or of_nars[one.nar].size != one.nar_size
        ):
            return False
    return True


def _reaches(page: Listing, key: str) -> bool:
    return not page.truncated or (page.last_key is not None and key <= page.last_key)


def _not_here(error: NixError) -> Failure:
    return Failure("list", f"{error}; build it, or copy it to this machine, and push again")
