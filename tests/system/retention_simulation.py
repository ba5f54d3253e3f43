"""Sixty days of pushes in a few minutes, with leases and with the recipe's single rule.

Two builders push closures that change daily; one of them stops. The cache itself keeps two pins:
one that no builder has in its store from the second day on, and one whose builder is gone.

Everything is real but the time: the server, the push script, `nix copy`, the store. A day passes by
writing every object of the bucket again with a time of last write that is a day earlier, and by
making what `nix copy` remembers a day older. MinIO counts expiry from the last write and evaluates
it when it lists or reads, so what it lists is what is stored: it deletes from its disk what a
listing finds expired.

The cache is read each morning, when a day's expiry has happened and no push has yet renewed or
repaired anything. Nothing that is whole in the morning was broken the evening before.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from components.retention import OWN_FOLDER, ExpirationRule, expiration_rules
from formats.narinfo import NarInfo
from formats.pin import format_pin, pin_key
from formats.signing import verified_by
from tests.system import midnight
from tests.system.cache_bucket import CacheBucket, OpenBucket
from tests.system.fault_proxy import fault_proxy
from toolbox.throwaway_builder import ThrowawayBuilder

RETENTION_DAYS = 7
GRACE_DAYS = 1
DAYS = 60
"""Days on which closures change."""
REST_DAYS = RETENTION_DAYS + GRACE_DAYS + 1
"""Days after them on which the last closure is pushed as it is: what nobody needs is gone then."""
STOPS_ON = 20
"""The day on which the second builder pushes no more."""
UNPINNED_ON = 30
"""The day on which the first builder's pin is removed."""
PULLED_EVERY = 10
"""Days between pulls of the oldest closure within the lease by a real Nix."""

FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class CachePin:
    """A closure that the cache keeps from the first day on."""

    builder: str
    """Who pushes it, as long as it is in that builder's store."""
    lost_on: int
    """The day from which on nobody has it but the cache."""
    until: int
    """The day on which the pin is removed."""


CACHE_PINS = {
    "release": CachePin(FIRST, lost_on=1, until=DAYS),
    "left-behind": CachePin(SECOND, lost_on=STOPS_ON, until=DAYS),
}
COUNTED_ON = 10
"""The day on which it is counted what each builder asks for."""
CONNECTIONS = 8
NIX_CACHE_INFO = "nix-cache-info"
ONE_DAY = timedelta(days=1)


# ------------------------------------------------------------------------------ what is pushed


@dataclass(frozen=True)
class Layer:
    """A package of a builder's closure: how often it changes, and what it refers to."""

    every: int
    """Days between its own changes; it also changes with whatever it refers to."""
    references: tuple[str, ...] = ()
    shared: bool = False
    """Whether both builders have the same."""


NEVER = 1_000
LAYERS: Mapping[str, Layer] = {
    "libc": Layer(NEVER, shared=True),
    "tls": Layer(20, ("libc",), shared=True),
    "shell": Layer(NEVER, ("libc",)),
    "python": Layer(NEVER, ("libc", "shell")),
    "fonts": Layer(NEVER),
    "kernel": Layer(13, ("shell",)),
    "nginx": Layer(7, ("tls",)),
    "editor": Layer(5, ("python",)),
    "website": Layer(3, ("python", "nginx")),
    "scripts": Layer(2, ("shell",)),
    "etc": Layer(1, ("fonts",)),
    "system": Layer(1, ("kernel", "nginx", "editor", "website", "scripts", "etc")),
}
"""What a machine is made of: below what never changes, on top what changes daily."""

PIN = "pin"


def name(builder: str, layer: str, day: int) -> str:
    """Return what a builder's layer is called on a day: a new name is a new store path."""
    if layer == PIN:
        return PIN
    owner = "both" if LAYERS[layer].shared else builder
    return f"{owner}_{layer}_{_changed(layer, min(day, DAYS - 1))}"


def _changed(layer: str, day: int) -> int:
    it = LAYERS[layer]
    return max([day - day % it.every, *(_changed(below, day) for below in it.references)])


def plan() -> dict[str, tuple[str, ...]]:
    """Return everything that is ever pushed, with what it refers to."""
    planned = {
        name(builder, layer, day): tuple(name(builder, below, day) for below in it.references)
        for builder in (FIRST, SECOND)
        for day in range(DAYS)
        for layer, it in LAYERS.items()
    }
    return {**planned, PIN: (name(FIRST, "libc", 0),)}


def pushes(day: int) -> dict[str, tuple[str, ...]]:
    """Return the tops of the closures that each builder pushes on a day, its pin included."""
    first = (name(FIRST, "system", day), *((PIN,) if day < UNPINNED_ON else ()))
    return {FIRST: first, **({SECOND: (name(SECOND, "system", day),)} if day < STOPS_ON else {})}


def closure(tops: Sequence[str], planned: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the names of all that `tops` consist of."""
    found: set[str] = set()
    waiting = list(tops)
    while waiting:
        top = waiting.pop()
        if top not in found:
            found.add(top)
            waiting += planned[top]
    return found


BUILD = r"""
PATH=/usr/bin:/bin
printf '%s' "$plan" | while read -r output references; do
    eval "path=\$$output"
    for reference in $references; do eval "echo \$$reference"; done >"$path"
    seq -f "$output %g" 400 >>"$path"
    echo "$output $path" >>"$out"
done
"""


def build(machine: ThrowawayBuilder, planned: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Build everything in the machine's store; return the store paths by name."""
    lines = "".join(" ".join((top, *below)) + "\n" for top, below in planned.items())
    outputs = " ".join(f'"{output}"' for output in ("out", *planned))
    expression = (
        'derivation { name = "simulated"; system = builtins.currentSystem; builder = "/bin/sh"; '
        f"args = [ \"-euc\" ''{BUILD}'' ]; "
        f"outputs = [ {outputs} ]; plan = ''{lines}''; }}"
    )
    script = "out=$(nix-build --out-link /nix/var/nix/gcroots/simulated -) && cat $out"
    built = machine.run(script, input=expression).stdout
    return dict(line.split(" ") for line in built.splitlines())


def references_of(machine: ThrowawayBuilder, tops: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the store paths of closures, with what each refers to besides itself."""
    script = (
        f"for path in $(nix-store --query --requisites {' '.join(tops)}); do "
        "echo $path $(nix-store --query --references $path); done"
    )
    found = {}
    for line in machine.run(script).stdout.splitlines():
        path, *references = line.split()
        found[path] = tuple(one for one in references if one != path)
    return found


# --------------------------------------------------------------------------- two ways to push


class Way(Protocol):
    """A way to keep a cache: a bucket with its lifecycle, and how builders push to it."""

    @property
    def bucket(self) -> OpenBucket:
        """The bucket, where it is now."""

    def push(self, builder: str, *paths: str) -> None:
        """Push closures as a builder."""

    def begin(self, day: int) -> None:
        """Do what is done on a day besides pushing."""

    def pinned(self, day: int) -> Sequence[str]:
        """Return the tops that the cache itself keeps on a day."""

    def days_pass(self, days: int) -> None:
        """Make whatever the builders remember so many days older."""


def set_lifecycle(server: Minio, bucket: str, rules: Sequence[ExpirationRule]) -> None:
    """Give a bucket expiration rules."""
    server.set_bucket_lifecycle(
        bucket,
        LifecycleConfig(
            [
                Rule(
                    ENABLED,
                    rule_filter=Filter(prefix=rule.prefix),
                    rule_id=rule.id,
                    expiration=Expiration(days=rule.days),
                )
                for rule in rules
            ]
        ),
    )


class Leases:
    """The project's own way: its rules, its push script."""

    def __init__(
        self, bucket: CacheBucket, machine: ThrowawayBuilder, pins: Mapping[str, str]
    ) -> None:
        self.bucket = bucket
        self.pins = pins
        self.asked: dict[str, set[str]] = {}
        """The keys that each builder asked for on the day on which that is counted."""
        self._machine = machine
        self._day = 0
        set_lifecycle(bucket.client, bucket.name, expiration_rules(RETENTION_DAYS, GRACE_DAYS))

    def begin(self, day: int) -> None:
        """Pin and unpin; take from the store what nobody has any more."""
        self._day = day
        for pin, path in self.pins.items():
            it = CACHE_PINS[pin]
            if day == 0:
                self.bucket.put(pin_key(pin), format_pin([path]).encode())
            if day == it.lost_on:
                gone = f"nix-store --delete $(nix-store --query --requisites {path})"
                self._machine.run(f"rm /nix/var/nix/gcroots/{pin} && {gone} && ! test -e {path}")
            if day == it.until:
                self.bucket.remove(pin_key(pin))

    def pinned(self, day: int) -> Sequence[str]:
        """Return the tops of the pins that there are on a day."""
        return [path for pin, path in self.pins.items() if day < CACHE_PINS[pin].until]

    def push(self, builder: str, *paths: str) -> None:
        """Push with the real script; both builders are one machine here, and it keeps nothing."""
        assert builder in (FIRST, SECOND)
        own = [
            path
            for pin, path in self.pins.items()
            if CACHE_PINS[pin].builder == builder and self._day < CACHE_PINS[pin].lost_on
        ]
        if self._day != COUNTED_ON:
            self.bucket.push(self._machine, *paths, *own, renew="yes").succeeded()
            return
        with fault_proxy(self.bucket.server) as proxy:
            self.bucket.push(
                self._machine, *paths, *own, renew="yes", endpoint=proxy.url
            ).succeeded()
        self.asked[builder] = {request.key.partition("?")[0] for request in proxy.requests}

    def days_pass(self, days: int) -> None:
        """Nothing to do: a push remembers nothing."""


class Recipe:
    """The recipe by hand: `mc ilm rule add --expire-days 7` and `nix copy`.

    Debian's Nix cannot sign S3 requests, so the bucket takes unsigned ones, over HTTPS. What Nix
    uploads, and what it believes that the bucket has, is the same code as for `s3://`
    (`src/libstore/binary-cache-store.cc`, `nar-info-disk-cache.cc`).
    """

    def __init__(self, bucket: CacheBucket, machine: ThrowawayBuilder) -> None:
        self.bucket = bucket
        self._machine = machine
        set_lifecycle(bucket.client, bucket.name, [ExpirationRule("expire", "", RETENTION_DAYS)])
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": ["*"]},
            "Action": ["s3:GetObject", "s3:PutObject"],
            "Resource": [f"arn:aws:s3:::{bucket.name}/*"],
        }
        anyone = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        bucket.client.set_bucket_policy(bucket.name, anyone)
        machine.run("cat >/srv/recipe-ca.pem", input=bucket.server.ca_file.read_text())
        machine.run("umask 077; cat >/srv/recipe-key", input=bucket.key.to_nix())

    def begin(self, day: int) -> None:
        """Do nothing else."""

    def pinned(self, _: int) -> Sequence[str]:
        """Return nothing: it has no pins but a builder's."""
        return []

    def push(self, builder: str, *paths: str) -> None:
        """Push with `nix copy`, which remembers in the builder's own home."""
        url = f"{self.bucket.server.endpoint}/{self.bucket.name}"
        self._machine.run(
            f"export XDG_CACHE_HOME=/srv/{builder} NIX_SSL_CERT_FILE=/srv/recipe-ca.pem; "
            "nix --extra-experimental-features nix-command copy "
            f"--to '{url}?compression=zstd&secret-key=/srv/recipe-key' {' '.join(paths)}"
        )

    def days_pass(self, days: int) -> None:
        """Age Nix's memory of the bucket: it lasts 30 days."""
        memories = list((self._machine.root / "srv").glob("*/nix/binary-cache-v*.sqlite"))
        assert memories
        for memory in memories:
            # SQLite cannot open a file behind another mount namespace's root: a copy it can.
            with tempfile.TemporaryDirectory() as here:
                copy = Path(here) / memory.name
                copy.write_bytes(memory.read_bytes())
                with closing(sqlite3.connect(copy)) as database, database:
                    for table in ("BinaryCaches", "NARs"):
                        older = days * 86400
                        database.execute(f"update {table} set timestamp = timestamp - {older}")
                memory.write_bytes(copy.read_bytes())


# ------------------------------------------------------------------------------ what is found


@dataclass(frozen=True)
class Morning:
    """What a reader found on one morning."""

    day: int
    needed: int
    """Entries of the closures that were pushed within the retention."""
    entries: int
    """Entries (narinfos) in the bucket."""
    live_bytes: int
    """Bytes of what those closures need: narinfos, NARs and `nix-cache-info`."""
    stored_bytes: int
    """Bytes of all that MinIO lists."""
    problems: tuple[str, ...]
    """What is broken, a sentence each."""
    overdue: tuple[str, ...]
    """Keys of objects that no closure pushed within retention and grace needs."""


@dataclass
class Simulation:
    """One bucket over the days."""

    way: Way
    machine: ThrowawayBuilder
    planned: Mapping[str, Sequence[str]]
    paths: Mapping[str, str]
    calendar: Callable[[int], Mapping[str, Sequence[str]]] = pushes
    """The tops of the closures that each builder pushes on a day; none on most others."""
    days: Sequence[int] = range(DAYS + REST_DAYS)
    """On which something happens: the nights between them pass at once."""
    until: int = DAYS + REST_DAYS
    """The morning on which all is over."""
    ages: Callable[[str], bool] = lambda _: True
    """Whether an object is made older; one that a deployment compares is another one then."""
    mornings: list[Morning] = field(default_factory=list)
    pulls: int = 0
    """Closures that a real Nix pulled and verified."""

    def __post_init__(self) -> None:
        self._contents: dict[str, tuple[str | None, bytes]] = {}
        self._narinfos: dict[str, NarInfo] = {}

    def run(self, *, pull: bool) -> None:
        """Let the days pass; `pull` has a real Nix pull now and then."""
        with ThreadPoolExecutor(CONNECTIONS) as self._threads:
            for number, day in enumerate(self.days, 1):
                self.way.begin(day)
                for builder, tops in self.calendar(day).items():
                    self.way.push(builder, *(self.paths[top] for top in tops))
                morning = self.days[number] if number < len(self.days) else self.until
                self._days_pass(morning - day)
                self.mornings.append(self._morning(morning))
                if pull and number % PULLED_EVERY == 0:
                    oldest = min(one for one in self.days if one >= morning - RETENTION_DAYS)
                    for tops in self.calendar(oldest).values():
                        self.way.bucket.pull(self.machine, self.paths[tops[0]])
                        self.pulls += 1

    def _days_pass(self, days: int) -> None:
        bucket = self.way.bucket
        self.way.days_pass(days)

        def age(key: str, etag: str | None, modified: datetime) -> None:
            if self._contents.get(key, (None,))[0] != etag:
                self._contents[key] = etag, bucket.get(key)
            bucket.put(key, self._contents[key][1], modified=modified - days * ONE_DAY)

        futures = [
            self._threads.submit(age, key, entry.etag, entry.last_modified)
            for key, entry in bucket.objects().items()
            if entry.last_modified is not None and self.ages(key)
        ]
        for future in futures:
            future.result()

    def _within(self, day: int, days: int) -> list[str]:
        """Return the tops of all closures that were pushed in so many days before a morning."""
        return [
            top
            for pushed in range(max(0, day - days), day)
            for tops in (*self.calendar(pushed).values(), self.way.pinned(pushed))
            for top in tops
        ]

    def _morning(self, day: int) -> Morning:
        bucket = self.way.bucket
        objects = bucket.objects()
        sizes = {key: entry.size or 0 for key, entry in objects.items()}
        readable = dict(self._threads.map(self._read, filter(_is_narinfo, objects)))
        self._narinfos |= {key: found for key, found in readable.items() if found is not None}
        tops = self._within(day, RETENTION_DAYS)
        needed = {self._key(path) for path in closure(tops, self.planned)}
        kept = {
            self._key(path)
            for path in closure(self._within(day, RETENTION_DAYS + GRACE_DAYS), self.planned)
        }
        live = {NIX_CACHE_INFO, *needed, *self._nars(needed)}
        allowed = {NIX_CACHE_INFO, "use.html", *needed, *self._nars(kept)}
        return Morning(
            day,
            needed=len(needed),
            entries=len(readable),
            live_bytes=sum(self._size(key, sizes) for key in live),
            stored_bytes=sum(sizes.values()),
            problems=tuple(self._problems(tops, readable)),
            overdue=tuple(
                sorted(key for key in objects.keys() - allowed if not key.startswith(OWN_FOLDER))
            ),
        )

    def _problems(
        self, tops: Sequence[str], readable: Mapping[str, NarInfo | None]
    ) -> Iterator[str]:
        """Yield what a reader stumbles over: by closure, by narinfo, and before it begins."""
        if self.way.bucket.ask("HEAD", NIX_CACHE_INFO).status != 200:
            yield f"no {NIX_CACHE_INFO}"
        for key, found in readable.items():
            if found is None:
                yield f"{key} has no NAR of its size"
        for top in dict.fromkeys(tops):
            absent = self._absent(self._key(top), readable)
            if absent:
                yield f"the closure of {top} lacks {len(absent)}, such as {min(absent)}"

    def _absent(self, top: str, readable: Mapping[str, NarInfo | None]) -> set[str]:
        """Walk from a narinfo along its references; return what cannot be read."""
        seen, absent, waiting = set(), set(), [top]
        while waiting:
            key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            narinfo = readable.get(key)
            if narinfo is None:
                absent.add(key)
            else:
                waiting += [f"{reference[:32]}.narinfo" for reference in narinfo.references]
        return absent

    def _read(self, key: str) -> tuple[str, NarInfo | None]:
        """Read a narinfo as a client does, and ask for its NAR; None where either is not whole."""
        answer = self.way.bucket.ask("GET", key)
        if answer.status != 200:
            return key, None
        narinfo = NarInfo.parse(answer.data.decode())
        trusted = {one.name: one for one in self.way.bucket.trusted}
        assert verified_by(narinfo, trusted), key
        nar = self.way.bucket.ask("HEAD", narinfo.url)
        whole = nar.status == 200 and int(nar.headers["Content-Length"]) == narinfo.file_size
        return key, narinfo if whole else None

    def _key(self, planned: str) -> str:
        return f"{Path(self.paths[planned]).name[:32]}.narinfo"

    def _nars(self, narinfos: set[str]) -> set[str]:
        return {self._narinfos[key].url for key in narinfos if key in self._narinfos}

    def _size(self, key: str, sizes: Mapping[str, int]) -> int:
        """Return an object's size, also of one that should be there and is not."""
        return sizes[key] if key in sizes else len(self._contents.get(key, (None, b""))[1])


def _is_narinfo(key: str) -> bool:
    return key.endswith(".narinfo")


# -------------------------------------------------------------------------------- the report


def simulate(
    machine: ThrowawayBuilder, leases: CacheBucket, recipe: CacheBucket
) -> tuple[Simulation, Simulation]:
    """Run both simulations side by side; return that of the leases and that of the recipe."""
    planned = plan()
    paths = build(machine, planned)
    pins = {
        pin: machine.make_closure(2, 2_000, seed, pin) for seed, pin in enumerate(CACHE_PINS, 60)
    }
    kept = references_of(machine, pins.values())
    ours = Simulation(
        Leases(leases, machine, pins),
        machine,
        {**planned, **kept},
        {**paths, **{path: path for path in kept}},
    )
    theirs = Simulation(Recipe(recipe, machine), machine, planned, paths)
    midnight.wait_where_it_is_near()
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(ours.run, pull=True), threads.submit(theirs.run, pull=False)]
        for simulation in running:
            simulation.result()
    return ours, theirs


def report(ours: Simulation, recipe: Simulation) -> dict[str, object]:
    """Return what is kept of both simulations: the figures, and what the picture is drawn from."""
    last = ours.mornings[-1]
    return {
        "days": DAYS,
        "rest_days": REST_DAYS,
        "retention_days": RETENTION_DAYS,
        "grace_days": GRACE_DAYS,
        "second_builder_stops_on": STOPS_ON,
        "unpinned_on": UNPINNED_ON,
        "broken_days_ours": broken_days(ours),
        "broken_days_recipe": broken_days(recipe),
        "live_bytes_end": last.live_bytes,
        "stored_bytes_end": last.stored_bytes,
        "closures_pulled_by_nix": ours.pulls,
        "mornings": [
            {
                "day": mine.day,
                "needed": mine.needed,
                "ours": mine.entries,
                "recipe": theirs.entries,
                "ours_broken": bool(mine.problems),
                "recipe_broken": bool(theirs.problems),
            }
            for mine, theirs in zip(ours.mornings, recipe.mornings, strict=True)
        ],
    }


def broken_days(simulation: Simulation) -> int:
    """Return on how many of the DAYS something was broken."""
    return sum(bool(morning.problems) for morning in simulation.mornings[:DAYS])


def write_report(figures: Mapping[str, object], file: Path) -> None:
    """Write the report as JSON, and its figures to standard error."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(figures, indent=1) + "\n")
    shown = {name: value for name, value in figures.items() if name != "mornings"}
    print(f"retention: {json.dumps(shown)}", file=sys.stderr)
