"""A cache under load: 50 clients pull what 5 builders push meanwhile, and one client audits.

Real Nix on both sides, a real MinIO server over TLS, all on this machine. A pull takes a closure
that a push has reported as published, into an empty store that trusts the cache's key alone, and
verifies it: no pull may fail. It writes `load` to `build/promises.json`.

Usage: python -m benchmarks.bench_load [MINUTES]
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.bench_audit import BUCKET, STACK, make_stack
from tests.promises import record_load
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, trust
from toolbox import throwaway_builder
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

BUILDERS, CLIENTS, MINUTES = 5, 50, 10.0
PATHS, BYTES = 20, 1_000_000
"""Of each closure."""

PULL = """
set -eu
store=$(mktemp -d)
trap 'chmod -R u+w "$store"; rm -r "$store"' EXIT
export NIX_SSL_CERT_FILE=/etc/private-ca.pem XDG_CACHE_HOME=$store/cache
export NIX_CONFIG='experimental-features = nix-command
trusted-public-keys = {key}
substituters ='
nix copy --to $store --from {url} {path}
nix store verify --store $store --sigs-needed 1 --recursive {path}
test "$(nix path-info --store $store --recursive {path} | wc -l)" = {paths}
"""


@dataclass
class Load:
    """What everybody does, and how it went."""

    bucket: CacheBucket
    until: float
    published: list[str] = field(default_factory=list)
    pulls: int = 0
    audits: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def push(self, builder: ThrowawayBuilder, number: int) -> None:
        """Push closures that nobody has, one after the other."""
        made = 0
        while time.monotonic() < self.until:
            made += 1
            name = f"load-{number}-{made}"
            seed = number * 10_000 + made
            closure = builder.make_closure(PATHS, BYTES, seed=seed, name=name)
            pushed = self.bucket.push(builder, closure, renew="yes")
            with self.lock:
                if pushed.code == 0:
                    self.published.append(closure)
                else:
                    self.failures.append(f"push of {name}: {pushed.log[-500:]}")

    def pull(self, client: ThrowawayBuilder) -> None:
        """Pull closures that are published, whichever they are."""
        chance = random.Random()
        while time.monotonic() < self.until:
            with self.lock:
                closure = chance.choice(self.published)
            script = PULL.format(
                key=self.bucket.public_key,
                url=f"{self.bucket.server.endpoint}/{self.bucket.name}",
                path=closure,
                paths=PATHS,
            )
            done = client.run(script, check=False)
            with self.lock:
                self.pulls += 1
                if done.returncode != 0:
                    self.failures.append(f"pull of {closure}: {done.stderr[-500:]}")

    def audit(self, project: Path, environment: Mapping[str, str]) -> None:
        """Audit the cache, again and again."""
        command = [sys.executable, "-m", "operations.audit", "--stack", STACK]
        while time.monotonic() < self.until:
            done = subprocess.run(
                command, cwd=project, env=environment, capture_output=True, text=True, check=False
            )
            with self.lock:
                self.audits += 1
                if done.returncode != 0:
                    self.failures.append(f"audit: {done.stdout[-500:]}{done.stderr[-500:]}")

    def show(self) -> None:
        """Say how far it is, every half minute."""
        while time.monotonic() < self.until:
            time.sleep(min(30.0, max(0.0, self.until - time.monotonic())))
            with self.lock:
                print(
                    f"{len(self.published)} closures pushed, {self.pulls} pulled, "
                    f"{self.audits} audits, {len(self.failures)} failures",
                    file=sys.stderr,
                    flush=True,
                )


def run(minutes: float, scratch: Path) -> Load:
    """Let everybody work for so many minutes; return how it went."""
    with ExitStack() as stack:
        server = stack.enter_context(MinioServer(scratch / "minio"))
        builders = [
            stack.enter_context(ThrowawayBuilder(scratch / f"builder-{number}"))
            for number in range(BUILDERS)
        ]
        client = stack.enter_context(ThrowawayBuilder(scratch / "client"))
        bucket = CacheBucket(server, BUCKET)
        trust(client, server)
        environment = make_stack(server, bucket.key, scratch)
        load = Load(bucket, float("inf"))
        first = builders[0].make_closure(PATHS, BYTES, seed=0, name="load-first")
        bucket.push(builders[0], first, renew="yes").succeeded()
        load.published.append(first)
        load.until = time.monotonic() + minutes * 60
        tasks: list[Callable[[], None]] = [load.show]
        tasks += [partial(load.push, builder, number) for number, builder in enumerate(builders)]
        tasks += [partial(load.pull, client)] * CLIENTS
        tasks.append(partial(load.audit, scratch / "project", environment))
        threads = [threading.Thread(target=task) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load.failures += verify(bucket).problems
    return load


def main() -> int:
    """Run it, print and record the figures; return 1 where anything failed."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    reason = throwaway_builder.available()
    if reason is not None:
        print(f"error: no builders to push from: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        load = run(minutes, Path(scratch))
    figures = {
        "minutes": minutes,
        "clients": CLIENTS,
        "builders": BUILDERS,
        "pushes": len(load.published),
        "pulls": load.pulls,
        "audits": load.audits,
        "failures": len(load.failures),
    }
    record_load(figures)
    print(figures)
    for failure in load.failures[:10]:
        print(f"failed: {failure}", file=sys.stderr)
    return int(bool(load.failures))


if __name__ == "__main__":
    sys.exit(main())
