"""Times `make status` of 10,000 entries against `mc ls --recursive`, on a MinIO server on loopback.

Whole commands are timed, from their start to their exit codes, in turns: what the machine does
besides slows both. It writes `build/bench-status.json`: of each the median, the fastest and the
slowest of its runs.

Usage: python -m benchmarks.bench_status [ROUNDS]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.bench_audit import BUCKET, NARINFOS, STACK, fill, make_stack
from formats.signing import SecretKey
from tests.system.minio_client import MinioClient
from toolbox import tools
from toolbox.minio_server import MinioServer

ROUNDS = 5
LIMIT_SECONDS = 5.0
RESULT = tools.CHECKOUT / "build" / "bench-status.json"


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, the fastest and the slowest of runs."""
    return {
        "median_s": round(statistics.median(seconds), 2),
        "fastest_s": round(min(seconds), 2),
        "slowest_s": round(max(seconds), 2),
    }


def status(project: Path, environment: Mapping[str, str]) -> float:
    """Run `make status`'s module, check that it saw all, and return its seconds."""
    file = project / "status.json"
    command = [sys.executable, "-m", "operations.status", "--stack", STACK, "--json", str(file)]
    started = time.monotonic()
    subprocess.run(command, cwd=project, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    seen = json.loads(file.read_text())
    if (seen["entries"], seen["nars"]) != (NARINFOS, NARINFOS):
        raise AssertionError("the status does not count every entry")
    return seconds


def listing(client: MinioClient) -> float:
    """List the bucket with `mc`, check that it names all, and return its seconds."""
    started = time.monotonic()
    lines = client.run(f"ls --recursive s3/{BUCKET}").splitlines()
    seconds = time.monotonic() - started
    if len(lines) < 2 * NARINFOS:
        raise AssertionError("mc does not list every object")
    return seconds


def main() -> int:
    """Measure, write the figures down, and return 1 where the limit is not kept."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    key = SecretKey.generate("127.0.0.1-1")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        (directory / "minio").mkdir()
        with MinioServer(directory / "minio") as server:
            print(f"filling a cache with {NARINFOS:,} entries", file=sys.stderr)
            fill(server, key)
            environment = make_stack(server, key, directory)
            client = MinioClient(server, directory)
            runs: dict[str, list[float]] = {"status": [], "mc_ls_recursive": []}
            for _ in range(rounds):
                runs["status"].append(status(directory / "project", environment))
                runs["mc_ls_recursive"].append(listing(client))
    figures = {
        "entries": NARINFOS,
        "rounds": rounds,
        "cores": os.cpu_count(),
        **{name: spread(seconds) for name, seconds in runs.items()},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(f"{json.dumps(figures, indent=2)}\n")
    print(f"{figures}; the limit is {LIMIT_SECONDS:.0f} s")
    return 0 if statistics.median(runs["status"]) < LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
