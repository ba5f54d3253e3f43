"""What lies beside narinfos and NARs, where it is asked for: listings of NARs, and build logs.

Clients find a path's listing by the path (nix-index does), and its log by the narinfo's `Deriver`
(`nix log`). They are written before the narinfo, and renewed on the same day. Nothing signed relies
on them, and no push fails for want of one: what cannot be had, or written, is told at the most.

What the bucket has of them is in the listings that a push reads anyway. Where the bucket is not
listed, because asking for single objects costs less, they are asked for on the day on which their
narinfo is due, and left alone for the rest of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from formats.error import FormatError
from formats.narinfo import NarInfo, listing_of, log_of
from formats.printable import SHOWN, printable
from formats.s3 import parse_copy
from formats.store_path import STORE_DIR, is_base_name
from push.bucket import LISTING_TYPE, LOG_TYPE, Bucket
from push.connection import Answer, FileSlice, Request
from push.failure import Failure
from push.inventory import Inventory, Present, day_of
from push.nar_listing import nar_listing
from push.progress import say
from push.settings import PushSettings
from push.store import Nix, NixError, StorePath
from push.workspace import Workspace

# As many are in memory, or on the disk, at a time.
_AT_ONCE = 128
# As the store has it, and as text. Most logs lie compressed in the store, to a tenth and less.
_LARGEST_STORED_LOG = 4 << 20
_LOG_BYTES_AT_ONCE = 64 << 20
_LARGEST_LISTING = 16 << 20

_T = TypeVar("_T")


class Beside:
    """Keeps listings and logs for what one push publishes and renews."""

    def __init__(
        self, settings: PushSettings, bucket: Bucket, nix: Nix, workspace: Workspace, today: str
    ) -> None:
        """Do nothing yet; `today` is the day by the server's clock."""
        self._settings = settings
        self._bucket = bucket
        self._nix = nix
        self._directory = workspace.stage / "logs"
        self._today = today
        self._failures: list[str] = []
        self._given_up = False
        self._store_is_here: bool | None = None
        self._listed: Mapping[str, Present] | None = None
        self._listed_logs: Mapping[str, Present] | None = None
        self.listings = 0
        """How many listings were written."""
        self.logs = 0
        """How many logs were written."""
        self.renewed = 0
        """How many of either were renewed."""

    def publish(self, inventory: Inventory) -> None:
        """Write what lies beside the paths that are published next, or are there, and renew it.

        Raises:
            PushError: nothing more can be done.
        """
        self._listed, self._listed_logs = inventory.root, inventory.logs
        missing = [one.path for one in inventory.missing]
        held = inventory.held
        due = {path.path for path in missing}
        if self._settings.renew:
            due |= {one.path.path for one in held if one.narinfo_day < self._today}
        if self._settings.listings:
            kept = {listing_of(one.path.path): one.path.path in due for one in held}
            absent = self._keep(kept, LISTING_TYPE, self._listed)
            # One who made something else of a path has listed that.
            ours = [one.path for one in held if one.ours]
            self._write_listings(
                [*missing, *(one for one in ours if listing_of(one.path) in absent)]
            )
        if self._settings.logs:
            logs: dict[str, bool] = {}
            for path in [*missing, *(one.path for one in held)]:
                key = _log_key(path.deriver)
                if key is not None:
                    logs[key] = logs.get(key, False) or path.path in due
            absent = self._keep(logs, LOG_TYPE, self._listed_logs)
            self._write_logs([key for key in logs if key in absent])

    def renew(self, narinfos: Iterable[NarInfo]) -> None:
        """Renew what lies beside paths that this machine may not have, and that are due.

        Raises:
            PushError: nothing more can be done.
        """
        due = list(narinfos)
        if self._settings.listings:
            listings = {listing_of(one.store_path): True for one in due}
            self._keep(listings, LISTING_TYPE, self._listed)
        if self._settings.logs:
            keys = filter(None, (_log_key(one.deriver) for one in due))
            self._keep(dict.fromkeys(keys, True), LOG_TYPE, self._listed_logs)

    def tell(self) -> None:
        """Say what was done, where anything was."""
        if self.listings or self.logs or self.renewed:
            say(
                f"beside: wrote {self.listings} listings and {self.logs} logs, "
                f"renewed {self.renewed}"
            )
        if self._failures:
            say(
                f"beside: {len(self._failures)} times not: {self._failures[0]}; "
                "the paths are in the cache all the same"
            )

    # ------------------------------------------------------------------------------------- leases

    def _keep(
        self, kept: Mapping[str, bool], content_type: str, listed: Mapping[str, Present] | None
    ) -> set[str]:
        """Renew what is there and old; return which keys the bucket lacks.

        Args:
            kept: keys, and whether their path is written or due today.
            content_type: of all of them.
            listed: what the bucket has, where that is known.
        """
        if listed is None:
            asked = [key for key, due in kept.items() if due]
            absent: set[str] = set()
        else:
            absent = {key for key in kept if key not in listed}
            asked = [
                key
                for key in kept
                if key not in absent and self._settings.renew and listed[key].day < self._today
            ]
        for keys in _portions(asked):
            seen = self._ask([self._bucket.look_beside(key) for key in keys])
            absent |= {key for key, answer in seen.items() if answer.status == 404}
            old = {
                key: answer
                for key, answer in seen.items()
                if key not in absent and self._settings.renew and day_of(answer) < self._today
            }
            copies = [
                self._bucket.renew_beside(key, content_type, answer) for key, answer in old.items()
            ]
            for key, answer in self._ask(copies).items():
                self.renewed += _copied(answer)
                if answer.status != 404 and not _copied(answer):
                    self._failures.append(f"the server did not copy {key}")
        return absent

    # -------------------------------------------------------------------------------- new content

    def _write_listings(self, paths: Sequence[StorePath]) -> None:
        requests: list[Request] = []
        size = 0
        for path in paths:
            content = nar_listing(path.path, path.nar_size)
            if content is not None and len(content) <= _LARGEST_LISTING:
                # Asked here, since some paths have no listing and would let each push ask.
                if not requests and not self._lists_what_nix_has():
                    return
                key = listing_of(path.path)
                requests.append(self._bucket.write_beside(key, LISTING_TYPE, content))
                size += len(content)
            if size > _LARGEST_LISTING or len(requests) == _AT_ONCE:
                self.listings += len(self._ask(requests))
                requests, size = [], 0
        self.listings += len(self._ask(requests))

    def _lists_what_nix_has(self) -> bool:
        """Whether the files that a listing is made of are those of the store that is pushed."""
        if self._store_is_here is not None:
            return self._store_is_here
        self._store_is_here = False
        try:
            elsewhere = self._nix.store_elsewhere()
        except (NixError, OSError) as error:
            self._failures.append(str(error))
            return False
        if elsewhere is not None:
            named = printable(elsewhere, SHOWN)
            self._failures.append(f"no listings of what Nix has in '{named}', not in {STORE_DIR}")
        self._store_is_here = elsewhere is None
        return self._store_is_here

    def _write_logs(self, keys: Sequence[str]) -> None:
        for names in self._portions_of_logs([key.rpartition("/")[2] for key in keys]):
            try:
                self._nix.copy_logs(self._directory, names)
            except (NixError, OSError) as error:
                # Those before it are there; one that went meanwhile is no failure of the push.
                self._failures.append(str(error))
            requests = []
            for name in names:
                file = self._directory / log_of(name)
                size = _size(file)
                if size is not None and size <= self._settings.part_size:
                    body = FileSlice(file, 0, size)
                    requests.append(self._bucket.write_beside(log_of(name), LOG_TYPE, body))
            self.logs += len(self._ask(requests))
            shutil.rmtree(self._directory, ignore_errors=True)

    def _portions_of_logs(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Yield names of derivations whose logs this machine has, few enough for its disk."""
        portion: list[str] = []
        left = _LOG_BYTES_AT_ONCE
        most = min(self._settings.part_size, _LOG_BYTES_AT_ONCE)
        for name in names:
            size = self._nix.log_size(name, _LARGEST_STORED_LOG, most)
            if size is None:
                continue
            if portion and (size > left or len(portion) == _AT_ONCE):
                yield portion
                portion, left = [], _LOG_BYTES_AT_ONCE
            portion.append(name)
            left -= size
        if portion:
            yield portion

    def _ask(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """Make requests; return the answers of those that got one, by key."""
        if self._given_up or not requests:
            return {}
        answers = self._bucket.attempt(requests)
        failed = [answer.what for answer in answers if isinstance(answer, Failure)]
        self._failures += failed
        # What nobody answers costs a minute and more each time.
        self._given_up = len(failed) == len(answers)
        return {
            request.key: answer
            for request, answer in zip(requests, answers, strict=True)
            if isinstance(answer, Answer)
        }


def _log_key(deriver: str | None) -> str | None:
    """Return the key of the log of a derivation; None where the name is that of none."""
    if deriver is None or not deriver.endswith(".drv") or not is_base_name(deriver):
        return None
    return log_of(deriver)


def _copied(answer: Answer) -> bool:
    try:
        parse_copy(answer.body)
    except FormatError:
        return False
    return True


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _portions(all_: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (all_[start : start + _AT_ONCE] for start in range(0, len(all_), _AT_ONCE))
