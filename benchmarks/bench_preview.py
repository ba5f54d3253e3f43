"""Times previews of a deployed stack with 1, 10 and 50 builders against an empty program's.

Both are Python programs on the same engine, language host and virtual environment. The empty one
declares the least that loads the same plugins: the server's, that of commands and that of dynamic
providers. A bare one, which loads none, is timed too. Every builder has an address, a credential
and a closure that it has pushed. In each round every program has its turn and is compared with the
empty one of the same round, because a machine's speed drifts from minute to minute. It writes
`build/bench-preview.json`: `ratio_1`, `ratio_10`, `ratio_50`, the medians of these, between
which quartiles they lie, and the seconds behind them.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.system.conftest import builder_settings, server_settings
from tests.system.stack import Stack
from toolbox import throwaway_builder, tools
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

COUNTS = (1, 10, 50)
ROUNDS = 15
PASSPHRASE = "a passphrase for measurements"
LIMIT = 1.3
"""Of the ratio, for ten builders."""
BARE_PROGRAM = "import pulumi\n"
EMPTY_PROGRAM = """\
import pulumi_command
import pulumi_minio
from components.closure import Closure

pulumi_minio.Provider("minio", minio_server="localhost", minio_user="user")
pulumi_command.Provider("command")
Closure("closure", ["/link"], ["/store-path"])
"""
RESULT = tools.CHECKOUT / "build" / "bench-preview.json"


def empty_stack(engine: Mapping[str, str], directory: Path, program: str) -> Stack:
    """Return a deployed stack of another program."""
    stack = Stack(engine, directory, "empty", PASSPHRASE)
    for name, text in {
        "Pulumi.yaml": "name: empty\nruntime:\n  name: python\n  options:\n    virtualenv: .venv\n",
        "__main__.py": program,
    }.items():
        (stack.project / name).unlink()
        (stack.project / name).write_text(text)
    stack.run("stack", "init", "empty").succeeded()
    stack.up().succeeded()
    return stack


def deployed_stack(
    engine: Mapping[str, str],
    directory: Path,
    server: MinioServer,
    machine: ThrowawayBuilder,
    builders: int,
) -> Stack:
    """Return a stack whose builders, all on one machine, have pushed what they are to push."""
    closure = machine.make_closure(1, 1_000, 1, "closure")
    stack = Stack(engine, directory, f"with-{builders}", PASSPHRASE)
    stack.set(server_settings(server), bucket=stack.name, upstreamKeys=[])
    stack.set(
        sshPrivateKey=machine.private_key,
        builders=[
            {**builder_settings(machine, closure), "name": f"builder-{number}"}
            for number in range(builders)
        ],
    )
    stack.up("--parallel", "4").succeeded()
    return stack


def seconds(stack: Stack) -> float:
    """Return how long a preview takes that finds nothing to do."""
    began = time.monotonic()
    stack.preview("--expect-no-changes").succeeded()
    return time.monotonic() - began


def main() -> int:
    """Measure, print, write the result; return 1 where ten builders take too long."""
    reason = throwaway_builder.available()
    if reason is not None:
        print(f"error: no builder to push from: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        tools.install_plugins(directory / "home")
        engine = tools.engine_environment(directory / "home")
        with (
            MinioServer(directory / "minio") as server,
            ThrowawayBuilder(directory / "builder") as machine,
        ):
            stacks: dict[int | str, Stack] = {
                "bare": empty_stack(engine, directory / "bare", BARE_PROGRAM),
                "empty": empty_stack(engine, directory / "empty", EMPTY_PROGRAM),
            }
            for count in COUNTS:
                print(f"deploying {count} builders", file=sys.stderr, flush=True)
                place = directory / str(count)
                stacks[count] = deployed_stack(engine, place, server, machine, count)
            times: dict[int | str, list[float]] = {name: [] for name in stacks}
            for number in range(ROUNDS):
                print(f"round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
                for name, stack in stacks.items():
                    times[name].append(seconds(stack))
    result: dict[str, Any] = {}
    for name, measured in times.items():
        ratios = [took / empty for took, empty in zip(measured, times["empty"], strict=True)]
        low, ratio, high = (round(quartile, 3) for quartile in statistics.quantiles(ratios))
        median = round(statistics.median(measured), 3)
        result[f"ratio_{name}"] = ratio
        result[f"quartiles_{name}"] = [low, high]
        result[f"seconds_{name}"] = median
        print(f"{name!s:>5} {median:5.2f} s, {ratio:.2f} times as long ({low:.2f} to {high:.2f})")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")
    missed = result["ratio_10"] > LIMIT
    print(
        f"ten builders are to take at most {LIMIT} times as long: {'missed' if missed else 'met'}"
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
