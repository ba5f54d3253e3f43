"""The figures of the promises in docs/security.md, in `build/promises.json`.

Tests run in several processes and one by one, so each part of a figure has a name, and a figure is
the sum of its parts.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "build" / "promises.json"


def record(figure: str, part: str, count: int, outcome: str = "") -> None:
    """Write down what was counted.

    Args:
        figure: what is counted, such as `attacks`.
        part: which of them, such as the attack.
        count: how many; it takes the place of the part's last one.
        outcome: what it came to, in words.
    """
    with _known() as known:
        parts = known.setdefault("parts", {}).setdefault(figure, {})
        parts[part] = {"count": count, **({"outcome": outcome} if outcome else {})}
        known[figure] = sum(one["count"] for one in parts.values())


def record_load(figures: Mapping[str, float]) -> None:
    """Write down what `benchmarks.bench_load` counted."""
    with _known() as known:
        known["load"] = dict(figures)


@contextmanager
def _known() -> Iterator[dict[str, Any]]:
    """Yield what is known, and write it down again."""
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known: dict[str, Any] = json.loads(file.read() or "{}")
        yield known
        file.truncate(0)
        file.write(json.dumps(known, indent=2, sort_keys=True) + "\n")


def attack(name: str, outcome: str) -> None:
    """Write down an attack that was made, and what it came to."""
    record("attacks", name, 1, outcome)
