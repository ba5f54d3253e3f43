"""Counts what pushes and pulls ask of a server, per path: the figures of docs/scale.md.

Real Nix, a real MinIO server, and a proxy between them that counts. It writes
``build/bench-requests.json``. Usage: python -m benchmarks.bench_requests
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.system.cache_bucket import CacheBucket, trust
from tests.system.fault_proxy import Request, fault_proxy
from toolbox import tools
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS, BYTES = 200, 40_000_000
RESULT = tools.CHECKOUT / "build" / "bench-requests.json"
LATER = """
import push.publishing, push.session
push.publishing.today = push.session.today = lambda _: "2999-01-01"
"""


def kind(request: Request) -> str:
    """Return what a request is, as clouds charge for it."""
    if request.method == "PUT":
        return "copy" if request.copies else "PUT"
    return "list" if "list-type" in request.key else request.method


def main() -> None:
    """Count, and write the result."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        MinioServer(Path(scratch) / "server") as server,
        ThrowawayBuilder(Path(scratch) / "builder") as builder,
        ThrowawayBuilder(Path(scratch) / "other") as other,
        # One for all: a push remembers what it has seen at an endpoint.
        fault_proxy(server) as traffic,
    ):
        bucket = CacheBucket(server, "requests")
        closure = builder.make_closure(PATHS, BYTES, seed=3, name="requests")
        other.make_closure(PATHS, BYTES, seed=3, name="requests")
        counted: dict[str, dict[str, int]] = {}

        def count(what: str, run: Callable[[str], object]) -> None:
            before = len(traffic.requests)
            run(traffic.url)
            counted[what] = dict(sorted(Counter(map(kind, traffic.requests[before:])).items()))

        def push(machine: ThrowawayBuilder, changed: str = "") -> Callable[[str], object]:
            return lambda url: bucket.push(
                machine, closure, endpoint=url, renew="yes", changed=changed
            ).succeeded()

        def pull(url: str) -> object:
            trust(other, server)
            return other.run(
                "store=$(mktemp -d); export XDG_CACHE_HOME=$store/cache "
                "NIX_CONFIG='experimental-features = nix-command\nsubstituters ='\n"
                f"nix copy --no-check-sigs --to $store --from {url}/{bucket.name} {closure}"
            )

        count("first push", push(builder))
        count("push with nothing new", push(builder))
        count("push with nothing new, another builder", push(other))
        count("first push of a later day", push(builder, LATER))
        count("pull into an empty store", pull)
        stored = [entry.size or 0 for entry in bucket.objects().values()]
        text = json.dumps(
            {"paths": PATHS, "objects": len(stored), "bytes": sum(stored), "requests": counted},
            indent=1,
        )
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(f"{text}\n")
        print(text)


if __name__ == "__main__":
    main()
