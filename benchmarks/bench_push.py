"""Times pushes against `nix copy`: real Nix, a real MinIO server over TLS, all on this machine.

Closures of 300 paths and 600 MB, of 3,000 small paths and of 949 with 120 MB are made, always the
same. In each round every way of pushing takes its turn, into an empty bucket where it is a fresh
push; medians are compared. The closure of 949 paths is pushed through a proxy that makes the server
20 and 55 ms away, and to one that allows 500 requests a second; and 300 paths are looked for in a
bucket of 200,000 objects. `nix copy` with zstd goes straight to S3, into a bucket that takes
unsigned writes, so that no proxy slows it; so does the recipe by hand, which signs and then copies
with Nix's default xz, once. Each run waits until the one before has left the machine at rest. Peak
memory is that of the largest process. It writes ``build/bench-push.json``.

Usage: python -m benchmarks.bench_push [ROUNDS]
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.distant_proxy import distant
from components.push_program import PROGRAM_KEY, archive, bootstrap, push_command
from formats.nix32 import nix32_encode
from formats.signing import SecretKey
from tests.system.cache_bucket import CacheBucket, trust
from tests.system.fault_proxy import PASS, Request, fault_proxy
from toolbox import throwaway_builder, tools
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

ROUNDS = 5
RESULT = tools.CHECKOUT / "build" / "bench-push.json"
NIX = "nix --extra-experimental-features nix-command"
UPSTREAM = "cache.nixos.org-1"
GOALS = {
    "full_vs_nix_zstd": 0.85,
    "full_vs_recipe": 1 / 45,
    "upstream90_vs_nix_zstd": 1 / 6,
    "noop_300_s": 0.2,
    "noop_3000_s": 0.8,
    "far_fresh_s": 6.0,
    "far_noop_s": 0.6,
    "peak_rss_mb": 120,
}
"""What is to be reached; at most."""


MEASURE = """
import os, sys, time
began = time.monotonic()
outputs = [(os.POSIX_SPAWN_DUP2, 2, 1)]
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=outputs)
_, status, usage = os.wait4(process, 0)
print(time.monotonic() - began, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command and prints its seconds and kilobytes.

A process of its own, because Linux counts the memory of whoever starts a command as the command's.
"""


def rest() -> None:
    """Wait until the machine is at rest, for at most 20 seconds.

    What the server and the kernel still write and delete would slow whatever runs next.
    """
    os.sync()
    for _ in range(80):
        before = _busy_ticks()
        # How busy a machine is shows only over a time.
        time.sleep(0.25)
        if _busy_ticks() - before <= 2:
            return


def _busy_ticks() -> int:
    # user nice system idle iowait irq softirq: see proc(5)
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    return sum(int(field) for index, field in enumerate(fields) if index not in (3, 4))


@dataclass(frozen=True)
class Run:
    """What one run of a command on the builder took."""

    seconds: float
    peak_mb: float
    """Resident memory of its largest process."""
    output: str


class Bench:
    """A server, a builder, and the ways to push from one to the other."""

    def __init__(self, server: MinioServer, builder: ThrowawayBuilder) -> None:
        """Make closures, keys and buckets."""
        self._builder = builder
        self.server = server
        self.port = int(server.endpoint.rpartition(":")[2])
        self._bucket = CacheBucket(server, "ours")
        self._unsigned = CacheBucket(server, "theirs")
        everybody = {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:*"]}
        statement = everybody | {"Resource": ["arn:aws:s3:::theirs", "arn:aws:s3:::theirs/*"]}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self._unsigned.client.set_bucket_policy("theirs", json.dumps(policy))
        trust(builder, server)
        self._place("key", self._bucket.key.to_nix())
        self.wide = builder.make_closure(300, 600_000_000, seed=1, name="c300")
        self.many = builder.make_closure(3000, 120_000_000, seed=2, name="c3000")
        self.some = builder.make_closure(949, 120_000_000, seed=3, name="c949")
        # What an upstream cache has is closed under references: the first nine tenths are.
        upstream = SecretKey.generate(UPSTREAM)
        self.upstream_key = str(upstream.public_key)
        self._place("upstream", upstream.to_nix())
        self.upstream = self.paths(self.wide)[:270]
        builder.run(f"{NIX} store sign -k /run/upstream {' '.join(self.upstream)}")
        self._changes = 0

    def paths(self, top: str) -> list[str]:
        """Return a closure's paths, references first."""
        return self._builder.run(f"nix-store --query --requisites {top}").stdout.split()

    def changed(self) -> str:
        """Return a closure that is the wide one and one new path."""
        self._changes += 1
        (self._builder.root / "run" / "changed.nix").write_text(
            f'derivation {{ name = "changed-{self._changes}"; builder = "/bin/sh"; '
            "system = builtins.currentSystem; "
            f'args = [ "-c" "echo ${{builtins.storePath {self.wide}}} >$out" ]; }}'
        )
        return self._builder.run("nix-build --no-out-link /run/changed.nix").stdout.strip()

    def empty(self) -> None:
        """Forget all pushes."""
        self._bucket.empty()
        self._bucket.put(PROGRAM_KEY, archive())
        self._unsigned.empty()

    def lose(self, paths: list[str]) -> None:
        """Remove the entries of some paths."""
        keys = [f"{path.removeprefix('/nix/store/')[:32]}.narinfo" for path in paths]
        texts = [self._bucket.get(key).decode() for key in keys]
        nars = [line[5:] for text in texts for line in text.splitlines() if line[:5] == "URL: "]
        self._bucket.remove(*keys, *nars)

    def push(self, top: str, upstream_key: str | None = None, endpoint: str | None = None) -> Run:
        """Push as `pulumi up` does, to the server or a proxy before it."""
        certificate = base64.b64encode(self.server.ca_file.read_bytes()).decode()
        changes: dict[str, str | None] = {
            "ca_certificate_file": None,
            "ca_certificate": certificate,
            **({} if endpoint is None else {"endpoint": endpoint}),
        }
        settings = self._bucket.settings(renew="yes", upstream_key=upstream_key, **changes)
        self._place("settings", bootstrap(archive()) + settings)
        return self._run(f"{push_command([top], archive())} </run/settings")

    def forget(self) -> None:
        """Remove what the builder remembers of the bucket."""
        self._builder.run("rm -rf ~/.cache/nix-binary-cache")

    def crowd(self, objects: int) -> None:
        """Put so many narinfos and NARs of others into the bucket, half of each.

        They are copies, on the server's disk, of one that it wrote: writing 200,000 takes minutes.
        """
        self._bucket.put("nar/one.nar.zst", b"x")
        store = self.server.directory / "data" / "ours"
        written = (store / "nar" / "one.nar.zst" / "xl.meta").read_bytes()
        for number in range(objects // 2):
            name = nix32_encode(hashlib.sha256(b"%d" % number).digest())
            for place_ in (store / f"{name[1:33]}.narinfo", store / "nar" / f"{name}.nar.zst"):
                place_.mkdir()
                (place_ / "xl.meta").write_bytes(written)

    def copy(self, top: str, endpoint: str | None = None) -> Run:
        """Push with `nix copy` and zstd."""
        return self._copy(top, "&compression=zstd&secret-key=/run/key", endpoint)

    def recipe(self, top: str) -> Run:
        """Push as the recipe by hand does."""
        signed = self._run(f"{NIX} store sign --recursive --key-file /run/key {top}")
        copied = self._copy(top, "")
        return Run(signed.seconds + copied.seconds, copied.peak_mb, "")

    def _copy(self, top: str, parameters: str, endpoint: str | None = None) -> Run:
        where = endpoint or self._bucket.server.endpoint
        url = f"s3://theirs?endpoint={where}&region=us-east-1{parameters}"
        # Without a cache of its own, Nix would believe what earlier runs found.
        return self._run(
            "export NIX_SSL_CERT_FILE=/etc/private-ca.pem XDG_CACHE_HOME=$(mktemp -d); "
            f"{NIX} copy --to '{url}' {top}"
        )

    def _run(self, script: str) -> Run:
        # Into the builder's namespaces rather than over SSH, so that the kernel tells the memory.
        pid = self._builder.root.parts[2]
        entered = ["nsenter", f"--target={pid}", "--mount", "--pid", "--root", "--wd=/"]
        environment = ["env", "-i", "PATH=/usr/bin:/bin", "HOME=/root"]
        rest()
        command = [*entered, *environment, "bash", "-c", script]
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.run(
                [sys.executable, "-IS", "-c", MEASURE, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                check=False,
            )
            output.seek(0)
            text = output.read()
        if process.returncode != 0:
            raise RuntimeError(f"{script} failed: {text[-2000:]}")
        seconds, kilobytes = map(float, process.stdout.split())
        return Run(seconds, kilobytes / 1024, text)

    def _place(self, name: str, text: str) -> None:
        (self._builder.root / "run" / name).write_text(text)


OURS_FRESH = "300 paths, 600 MB: ours"
COPY_FRESH = "300 paths, 600 MB: nix copy, zstd"
RECIPE = "300 paths, 600 MB: the recipe, xz"
UPSTREAM_90 = "300 paths, 270 upstream: ours"
NOOP_300 = "300 paths, nothing new: ours"
CHANGED = "301 paths, one new: ours"
OURS_MANY = "3,000 paths, 120 MB: ours"
COPY_MANY = "3,000 paths, 120 MB: nix copy, zstd"
NOOP_3000 = "3,000 paths, nothing new: ours"
SOME_MANY = "3,000 paths, 300 new: ours"
FAR = "949 paths, 120 MB, {} ms away: "
THROTTLED = "949 paths, 500 requests/s allowed: ours"
CROWDED = "300 paths in 200,000 objects: ours"
DISTANCES = (0, 20, 55)
"""Round trips, in milliseconds."""


def measure(bench: Bench, rounds: int) -> dict[str, list[Run]]:
    """Run every way of pushing `rounds` times, alternating; the recipe once."""
    runs: dict[str, list[Run]] = defaultdict(list)

    def timed(name: str, way: Callable[[], Run]) -> None:
        run = way()
        runs[name].append(run)
        print(f"  {name}: {run.seconds:.2f} s", file=sys.stderr, flush=True)

    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        bench.empty()
        timed(COPY_FRESH, lambda: bench.copy(bench.wide))
        timed(OURS_FRESH, lambda: bench.push(bench.wide))
        timed(NOOP_300, lambda: bench.push(bench.wide))
        timed(CHANGED, partial(bench.push, bench.changed()))
        bench.empty()
        timed(UPSTREAM_90, lambda: bench.push(bench.wide, bench.upstream_key))
        bench.empty()
        timed(COPY_MANY, lambda: bench.copy(bench.many))
        timed(OURS_MANY, lambda: bench.push(bench.many))
        timed(NOOP_3000, lambda: bench.push(bench.many))
        bench.lose(bench.paths(bench.many)[-300:])
        timed(SOME_MANY, lambda: bench.push(bench.many))
        for distance in DISTANCES:
            with distant("127.0.0.1", bench.port, distance / 1000) as port:
                _measure_far(bench, f"https://127.0.0.1:{port}", distance, timed)
                if distance == DISTANCES[-1] and not number:
                    # Once: it takes a minute and a half.
                    copy = partial(bench.copy, bench.some, f"https://127.0.0.1:{port}")
                    timed(f"{FAR.format(distance)}nix copy", copy)
        bench.empty()
        with throttled(bench.server, 500) as url:
            timed(THROTTLED, lambda: bench.push(bench.some, endpoint=url))
    bench.empty()
    timed(RECIPE, lambda: bench.recipe(bench.wide))
    bench.empty()
    bench.push(bench.wide)
    bench.crowd(200_000)
    for _ in range(rounds):
        timed(CROWDED, lambda: bench.push(bench.wide))
    return runs


def _measure_far(
    bench: Bench, url: str, distance: int, timed: Callable[[str, Callable[[], Run]], None]
) -> None:
    """Time pushes to a server that is some milliseconds away."""
    name = FAR.format(distance)
    bench.empty()
    timed(f"{name}ours", lambda: bench.push(bench.some, endpoint=url))
    timed(f"{name}nothing new: ours", lambda: bench.push(bench.some, endpoint=url))
    bench.lose(bench.paths(bench.some)[-1:])
    timed(f"{name}one new: ours", lambda: bench.push(bench.some, endpoint=url))


@contextmanager
def throttled(server: MinioServer, rate: int) -> Iterator[str]:
    """Run a proxy that answers 503 to what comes faster than `rate` a second; its URL."""
    began, allowed, lock = time.monotonic(), 0, threading.Lock()

    def too_fast(_: Request) -> int:
        nonlocal began, allowed
        with lock:
            now = time.monotonic()
            if now - began >= 1:
                began, allowed = now, 0
            allowed += 1
            return PASS if allowed <= rate else 503

    with fault_proxy(server, too_fast) as traffic:
        yield traffic.url


def main() -> int:
    """Measure, print a table, write the result; return 1 where a goal is missed."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    reason = throwaway_builder.available()
    if reason is not None:
        print(f"error: no builder to push from: {reason}", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as scratch,
        MinioServer(Path(scratch, "minio")) as server,
        ThrowawayBuilder(Path(scratch, "builder")) as builder,
    ):
        runs = measure(Bench(server, builder), rounds)
    medians = {name: statistics.median(run.seconds for run in all_) for name, all_ in runs.items()}
    ours = [run for name, all_ in runs.items() if name.endswith("ours") for run in all_]
    far_fresh = f"{FAR.format(DISTANCES[-1])}ours"
    result = {
        "full_vs_nix_zstd": medians[OURS_FRESH] / medians[COPY_FRESH],
        "full_vs_recipe": medians[OURS_FRESH] / medians[RECIPE],
        "upstream90_vs_nix_zstd": medians[UPSTREAM_90] / medians[COPY_FRESH],
        "noop_300_s": medians[NOOP_300],
        "noop_3000_s": medians[NOOP_3000],
        "one_changed_s": medians[CHANGED],
        "far_fresh_s": medians[far_fresh],
        "far_noop_s": medians[f"{FAR.format(DISTANCES[-1])}nothing new: ours"],
        "far_vs_nix_zstd": medians[far_fresh] / medians[f"{FAR.format(DISTANCES[-1])}nix copy"],
        "large_bucket_noop_s": medians[CROWDED],
        "peak_rss_mb": max(run.peak_mb for run in ours),
    }
    print(f"{'':44} {'median':>8} {'least':>8} {'most':>8} {'memory':>8} {'runs':>5}")
    for name, all_ in runs.items():
        seconds = [run.seconds for run in all_]
        print(
            f"{name:44} {medians[name]:6.2f} s {min(seconds):6.2f} s {max(seconds):6.2f} s "
            f"{max(run.peak_mb for run in all_):5.0f} MB {len(all_):5}"
        )
    for name, value in result.items():
        goal = GOALS.get(name)
        print(f"{name}: {value:.3g}" + (f" (goal: at most {goal:.3g})" if goal else ""))
    RESULT.parent.mkdir(exist_ok=True)
    rounded = {name: round(value, 4) for name, value in result.items()}
    RESULT.write_text(json.dumps({**rounded, "seconds": medians, "runs": rounds}, indent=2) + "\n")
    return 1 if any(result[name] > goal for name, goal in GOALS.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
