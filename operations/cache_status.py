"""What is known of a cache without reading it: from one listing, and from what pushes have told.

Pure. A listing tells when each object was written, by the server's clock, and so when it expires.
Whose closure it belongs to it does not tell; that builders say themselves, and it is shown as what
they say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

from components.retention import expires_at
from formats.error import FormatError
from formats.narinfo import is_nar_key
from formats.push_status import Lease, PushStatus, parse_status, status_key, user_of
from formats.s3 import ListedObject
from program.outputs.counted import counted

DAYS_AHEAD = 7
"""Days of which is told what expires on them, where entries live for so long."""

LARGEST_SHOWN = 10
"""How many of the largest NARs are told."""

ON_TIME = timedelta(hours=26)
"""How long a builder that pushes daily may take from the end of one push to that of the next: its
timer delays each by up to an hour (`nix/builder.nix`)."""

_NARINFO = ".narinfo"
_ONE_DAY, _TWO_DAYS = timedelta(days=1), timedelta(days=2)


@dataclass(frozen=True)
class Rules:
    """How long a cache keeps what nobody pushes any more."""

    retention_days: int | None
    """What the promise says; None is for ever."""
    rule_days: int | None
    """After how many days the bucket's rules take a narinfo."""
    grace_days: int
    """How many days more they leave a NAR."""
    at_midnight: bool
    """Whether the server rounds expiry up to midnight UTC."""

    def due(self, written: datetime, *, nar: bool = False) -> datetime | None:
        """Return when an object goes that was last written then; None where it never does."""
        if self.rule_days is None:
            return None
        days = self.rule_days + (self.grace_days if nar else 0)
        if self.at_midnight:
            return expires_at(written, days)
        return written + timedelta(days=days)


@dataclass(frozen=True)
class PinnedClosure:
    """What a pin keeps, as far as the cache has it."""

    name: str
    targets: tuple[str, ...] = ()
    """The store paths whose closures it keeps, the newest first."""
    paths: int = 0
    """Store paths of these closures that the cache has."""
    nar_bytes: int = 0
    """Bytes of their NARs, compressed."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """What is missing or broken, by store path, and why."""
    unreadable: str = ""
    """Why it is no pin that this program writes; empty where it is one."""

    @property
    def incomplete(self) -> bool:
        """Whether it cannot keep what it is to keep."""
        return bool(self.lost or self.unreadable)


@dataclass(frozen=True)
class Seen:
    """What was read of a cache."""

    objects: Sequence[ListedObject]
    """All of the bucket's."""
    statuses: Mapping[str, bytes]
    """What each builder's user has told, by the user's name."""
    pins: Sequence[PinnedClosure] = ()
    path_of: Mapping[str, str] = field(default_factory=dict)
    """The store path that a NAR is known to be, by the NAR's name: of pins alone."""
    declared: Mapping[str, datetime] = field(default_factory=dict)
    """Since when each builder's user is there, by the user's name, as far as that is known."""


@dataclass(frozen=True)
class BuilderState:
    """A builder's pushes, as it tells them."""

    name: str
    user: str
    last_push: datetime | None
    """When it last told of a push, by the server's clock; None where it never did."""
    status: PushStatus | None
    """What that push came to; None where it never told, or told something else."""
    lease: Lease | None
    """What the last push kept that kept all."""
    expires: datetime | None
    """When what that one kept begins to expire, if nothing pushes; None where nothing does."""
    overdue: bool
    """Whether no push has kept all for half of the retention, and for longer than `ON_TIME`; or
    what it tells cannot be read."""
    signed_by: str = ""
    """The name of the key that signs what it pushes."""
    not_renewed_since: datetime | None = None
    """When at the latest something of what it keeps was last written, where that was a day or more
    before the push that is to have kept all; None where that push may have renewed all."""

    @property
    def doubtful(self) -> bool:
        """Whether its last push left something out, or none is known."""
        return self.status is None or self.status.failures > 0


@dataclass(frozen=True)
class Day:
    """What was written, or expires, on one day."""

    day: date
    entries: int = 0
    nars: int = 0
    nar_bytes: int = 0


@dataclass(frozen=True)
class LargeNar:
    """One of the largest NARs."""

    name: str
    size: int
    written: datetime
    store_path: str | None
    """The store path that it is, where a pin keeps it."""


@dataclass(frozen=True)
class Status:
    """What is known of a cache at one time."""

    stack: str
    substituter: str
    at: datetime
    rules: Rules
    keys: tuple[str, ...]
    """Names of the keys that clients trust; the last one signs, but for builders with their own."""
    entries: int
    """Narinfos."""
    nars: int
    nar_bytes: int
    """Bytes of all NARs, compressed."""
    oldest: datetime | None
    """When the narinfo was written that was written first."""
    newest: datetime | None
    """When a narinfo was last written."""
    builders: tuple[BuilderState, ...]
    former: tuple[str, ...]
    """Users that are no builder's of this stack and have told of pushes, as long as what they
    pushed may be there."""
    pins: tuple[PinnedClosure, ...]
    written: tuple[Day, ...]
    """What was written on each day that anything was, the oldest first."""
    expiring: tuple[Day, ...]
    """What expires on each day from today on that anything does, if nothing pushes."""
    largest: tuple[LargeNar, ...]
    public_keys: tuple[str, ...] = ()
    """The keys that clients trust, whole: a cache keeps them where it gets another URL."""
    pending: Rules | None = None
    """What the settings say in place of `rules`, where no deployment has put that in force yet."""

    @property
    def findings(self) -> list[str]:
        """What somebody should see to before it is lost, a sentence each."""
        found = [self._told_of(builder) for builder in self.builders if builder.overdue]
        for pin in self.pins:
            if pin.unreadable:
                found.append(
                    f"pin {pin.name}: cannot be read: {pin.unreadable}; run pulumi up "
                    "--refresh --run-program to put it back"
                )
            elif pin.lost:
                path, why = next(iter(pin.lost.items()))
                more = f" (and {len(pin.lost) - 1} more)" if len(pin.lost) > 1 else ""
                found.append(f"pin {pin.name} is incomplete: {path}: {why}{more}")
        return found

    @property
    def notices(self) -> list[str]:
        """What is not as it should be and endangers nothing yet, a sentence each.

        An old lease may hold where a push left something out, a builder may have been declared just
        now, and where nothing expires none is ever overdue.
        """
        told = [self._told_of(builder) for builder in self.noticed]
        for builder, key, same_name in self.distrusted:
            signed = f"another key named {key} than clients trust"
            if not same_name:
                signed = f"{key}, which clients do not trust"
            told.append(
                f"builder {builder.name}: its last push signed with {signed}; give it "
                f"{builder.signed_by}"
            )
        return told if self.pending is None else [*told, self._undeployed(self.pending)]

    @property
    def noticed(self) -> list[BuilderState]:
        """The builders that `notices` are about, in their order."""
        return [one for one in self.builders if one.doubtful and not one.overdue]

    @property
    def distrusted(self) -> list[tuple[BuilderState, str, bool]]:
        """The builders whose last push signed with a key that clients do not trust.

        Each with the key's name, and whether they trust another of that name. A push that is told
        whom they trust does not begin; one of before, or with settings of its own, may not be.
        """
        trusted = {key.partition(":")[0] for key in self.public_keys}
        signed = [
            (builder, builder.status.signed_by)
            for builder in self.builders
            if builder.status is not None and builder.status.signed_by is not None
        ]
        return [
            (builder, name, name in trusted)
            for builder, key in signed
            for name in [key.partition(":")[0]]
            if trusted and key not in self.public_keys
        ]

    def _undeployed(self, meant: Rules) -> str:
        if self.rules.retention_days is None:
            holds = "nothing expires"
        elif meant.retention_days == self.rules.retention_days:
            holds = f"NARs outlive their entries by {counted(self.rules.grace_days, 'day')}"
        else:
            holds = f"entries live for {counted(self.rules.retention_days, 'day')}"
        return f"{changed_setting(meant, self.rules)} in the settings and not deployed; {holds}"

    def _told_of(self, builder: BuilderState) -> str:
        return f"builder {builder.name}: {self._why(builder)}"

    def _why(self, builder: BuilderState) -> str:
        if builder.last_push is None:
            return "it has told of no push yet"
        if builder.status is None:
            return "what it tells of its pushes cannot be read"
        if not builder.overdue:
            on = builder.last_push.strftime("%Y-%m-%d")
            return f"{builder.status.failures:,} not pushed by its last push, on {on}"
        if builder.lease is None:
            return "no push that kept all it has is known"
        age, lived = self.at - builder.lease.at, self.rules.retention_days or 0
        if builder.not_renewed_since is not None:
            age = self.at - builder.not_renewed_since
        count, in_hours = late_by(age)
        if not in_hours and count <= lived:
            late = f"{count} of the {lived} days that entries live"
        else:
            unit = "hours" if in_hours else "days"
            late = f"{count:,} {unit}; entries live for {counted(lived, 'day')}"
        if builder.not_renewed_since is None:
            return f"no push has kept all it has for {late}"
        return (
            f"its pushes have not renewed all it keeps for {late}; give it the present outputs, "
            "and let it push again"
        )

    def expiring_by(self, day: date) -> Day:
        """Return what expires until the end of a day."""
        due = [one for one in self.expiring if one.day <= day]
        return Day(
            day,
            sum(one.entries for one in due),
            sum(one.nars for one in due),
            sum(one.nar_bytes for one in due),
        )


def evaluate(
    stack: str,
    substituter: str,
    keys: Sequence[str],
    builders: Mapping[str, str],
    signed_by: Mapping[str, str],
    rules: Rules,
    seen: Seen,
    now: datetime,
) -> Status:
    """Return what is known of a cache.

    Args:
        stack: the stack's name.
        substituter: the URL that clients read from.
        keys: the names of its keys, the last of which signs.
        builders: the user of each builder, by the builder's name.
        signed_by: the name of the key that signs what a builder pushes, by the builder's name; the
            last of `keys` signs for those that are not in it.
        rules: how long it keeps what nobody pushes.
        seen: what was read of it.
        now: the present time, in UTC.
    """
    narinfos = [one for one in seen.objects if _is_narinfo(one.key)]
    nars = [one for one in seen.objects if is_nar_key(one.key)]
    told = {
        user: one.last_modified for one in seen.objects if (user := user_of(one.key)) is not None
    }
    moments = sorted((one.last_modified for one in narinfos), reverse=True)
    return Status(
        stack=stack,
        substituter=substituter,
        at=now,
        rules=rules,
        keys=tuple(keys),
        entries=len(narinfos),
        nars=len(nars),
        nar_bytes=sum(one.size for one in nars),
        oldest=min(moments, default=None),
        newest=max(moments, default=None),
        builders=tuple(
            replace(
                _builder(name, user, told.get(user), seen, moments, rules, now),
                signed_by=signed_by.get(name) or next(reversed(keys), ""),
            )
            for name, user in builders.items()
        ),
        former=tuple(
            user
            for user, written in sorted(told.items())
            if user not in builders.values() and not _gone(rules.due(written, nar=True), now)
        ),
        pins=tuple(seen.pins),
        written=_days(
            ((one.last_modified.date(), one) for one in narinfos),
            ((one.last_modified.date(), one) for one in nars),
        ),
        expiring=_days(_due(narinfos, rules, now), _due(nars, rules, now, nar=True)),
        largest=tuple(
            LargeNar(one.key, one.size, one.last_modified, seen.path_of.get(one.key))
            for one in sorted(nars, key=lambda one: (-one.size, one.key))[:LARGEST_SHOWN]
        ),
    )


def late_by(age: timedelta) -> tuple[int, bool]:
    """Return an age in days, or in hours where it is of less than two days; and whether it is."""
    in_hours = age < _TWO_DAYS
    return (int(age / timedelta(hours=1)) if in_hours else age.days), in_hours


def changed_setting(meant: Rules, in_force: Rules) -> str:
    """Return in words the setting by which two rules differ, as it is set now.

    Args:
        meant: what the settings say.
        in_force: what the last deployment has set.
    """
    if meant.retention_days == in_force.retention_days:
        return f"graceDays is {meant.grace_days}"
    if meant.retention_days is None:
        return "expire is false"
    if in_force.retention_days is None:
        return "expire is true"
    return f"retentionDays is {meant.retention_days}"


def asked_for(objects: Iterable[ListedObject], users: Iterable[str]) -> dict[str, str]:
    """Return the names of the objects in which users tell of their pushes, by the user's name."""
    there = {one.key for one in objects}
    keys = {user: status_key(user) for user in users}
    return {user: key for user, key in keys.items() if key is not None and key in there}


def _is_narinfo(name: str) -> bool:
    return name.endswith(_NARINFO) and "/" not in name


def _builder(
    name: str,
    user: str,
    written: datetime | None,
    seen: Seen,
    moments: Sequence[datetime],
    rules: Rules,
    now: datetime,
) -> BuilderState:
    """Return what is known of a builder; `moments` are those of all entries, the newest first."""
    status, content = None, seen.statuses.get(user)
    if written is not None and content is not None:
        try:
            status = parse_status(content)
        except FormatError:
            status = None
    lease = status.lease(written) if status is not None and written is not None else None
    # What a builder tells of a push before is its own word: it cannot have been later than this.
    if lease is not None and written is not None and lease.at > written:
        lease = None
    since, kept_since = None, None
    if lease is not None:
        since = kept_since = lease.at
        # A push that renews nothing tells nothing else. As many entries as it keeps were written
        # when the oldest of so many of the newest was, at the latest.
        if lease.own and moments:
            kept_since = min(lease.at, moments[min(lease.own, len(moments)) - 1])
        # One that renews what was not written on its day leaves nothing that is older.
        if lease.at - kept_since > _ONE_DAY:
            since = kept_since
    elif status is not None and not status.failures:
        # It has only ever pushed what it built: that it does so is all there is to expect.
        since = written
    elif status is not None or written is None:
        # It has never kept all, so nothing of it can be late before it could have.
        since = seen.declared.get(user)
    overdue = False
    if rules.retention_days is not None:
        # One that has told nothing may have been declared just now, where nobody knows.
        overdue = written is not None
        if since is not None:
            overdue = now - since > max(timedelta(days=rules.retention_days / 2), ON_TIME)
    return BuilderState(
        name,
        user,
        written,
        status,
        lease,
        None if kept_since is None else rules.due(kept_since),
        overdue,
        not_renewed_since=since if lease is not None and since != lease.at else None,
    )


def _gone(due: datetime | None, now: datetime) -> bool:
    return due is not None and due <= now


def _due(
    objects: Iterable[ListedObject], rules: Rules, now: datetime, *, nar: bool = False
) -> Iterable[tuple[date, ListedObject]]:
    """Yield objects with the day on which they go; what a server has not removed yet goes today."""
    for one in objects:
        due = rules.due(one.last_modified, nar=nar)
        if due is not None:
            yield max(due, now).date(), one


def _days(
    narinfos: Iterable[tuple[date, ListedObject]], nars: Iterable[tuple[date, ListedObject]]
) -> tuple[Day, ...]:
    entries: Counter[date] = Counter(day for day, _ in narinfos)
    files: Counter[date] = Counter()
    sizes: Counter[date] = Counter()
    for day, one in nars:
        files[day] += 1
        sizes[day] += one.size
    days = sorted(entries.keys() | files.keys())
    return tuple(Day(day, entries[day], files[day], sizes[day]) for day in days)
