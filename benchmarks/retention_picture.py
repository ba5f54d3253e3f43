"""Draws docs/retention.svg from docs/retention.json, what the sixty simulated days came to.

    .venv/bin/python -m benchmarks.retention_picture

The data is the `build/retention.json` that tests/system/test_retention.py writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA, PICTURE = DOCS / "retention.json", DOCS / "retention.svg"

WIDTH, HEIGHT = 880, 484
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 74, 352
STRIPS = (384, 410)
STRIP_HEIGHT = 14

STYLE = """
  svg { --ink: #1b1f2a; --soft: #555d70; --grid: #d9dde7; --paper: #fbfbfd; --needed: #dfe8fb;
        --ours: #2f5bb7; --recipe: #b5480a; --whole: #a6d8b4; --broken: #e0564c }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e7eaf2; --soft: #a6aec2; --grid: #2a3142; --paper: #12151d; --needed: #1b2740;
          --ours: #94b4ff; --recipe: #f0924c; --whole: #2c6a41; --broken: #c2483f }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--ink) }
  .soft { fill: var(--soft); font-size: 12px }
  .title { font-size: 16px; font-weight: 600 }
  .grid { stroke: var(--grid) }
  .needed { fill: var(--needed) }
  .line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
  .ours { stroke: var(--ours) }
  .recipe { stroke: var(--recipe); stroke-dasharray: 6 3 }
  .name-ours { fill: var(--ours); font-weight: 600 }
  .name-recipe { fill: var(--recipe); font-weight: 600 }
  .event { stroke: var(--soft); stroke-dasharray: 2 3 }
  .whole { fill: var(--whole) }
  .broken { fill: var(--broken) }
"""


def draw(data: Mapping[str, Any]) -> str:
    """Return the picture as SVG: entries alive on each morning, and which mornings were broken.

    Args:
        data: what tests/system/retention_simulation.py reports.
    """
    return "\n".join(_elements(data)) + "\n"


def _elements(data: Mapping[str, Any]) -> Iterator[str]:
    mornings: Sequence[Mapping[str, int]] = data["mornings"]
    last = mornings[-1]["day"]
    highest = 10 * -(-max(max(m["needed"], m["ours"], m["recipe"]) for m in mornings) // 10)

    def x(day: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * day / (last + 1), 1)

    def y(entries: int) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * entries / highest, 1)

    def steps(series: str) -> str:
        return " ".join(
            f"L{x(m['day'])},{y(m[series])} L{x(m['day'] + 1)},{y(m[series])}" for m in mornings
        )

    ours, recipe = data["broken_days_ours"], data["broken_days_recipe"]
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title description">'
    )
    yield '<title id="title">Entries alive on each morning, with leases and with one rule</title>'
    yield (
        f'<desc id="description">With leases the cache holds exactly what was pushed within '
        f"{data['retention_days']} days, and {ours} of {data['days']} days are broken. With one "
        f"rule for the whole bucket it lacks part of it on {recipe}.</desc>"
    )
    yield f"<style>{STYLE}</style>"
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--paper)"/>'
    yield (
        f'<text class="title" x="{LEFT}" y="24">Entries alive on each morning, retention '
        f"{data['retention_days']} days</text>"
    )
    for entries in range(0, highest + 1, 10):
        yield f'<path class="grid" d="M{LEFT},{y(entries)}H{WIDTH - RIGHT}"/>'
        yield (
            f'<text class="soft" text-anchor="end" x="{LEFT - 8}" y="{y(entries) + 4}">'
            f"{entries}</text>"
        )
    yield f'<path class="needed" d="M{x(1)},{y(0)} {steps("needed")} L{x(last + 1)},{y(0)}Z"/>'
    for day, words in (
        (data["second_builder_stops_on"], "one builder stops"),
        (data["unpinned_on"], "pin removed"),
        (data["days"], "changes end"),
    ):
        yield f'<path class="event" d="M{x(day)},{TOP - 8}V{BOTTOM}"/>'
        yield f'<text class="soft" x="{x(day) + 4}" y="{TOP - 2}">{words}</text>'
    for series in ("recipe", "ours"):
        yield f'<path class="line {series}" d="M{steps(series)[1:]}"/>'
    yield f'<text class="name-ours" x="{LEFT}" y="46">leases: what is needed, and no more</text>'
    yield (
        f'<text class="name-recipe" x="{LEFT + 320}" y="46">'
        "one rule and nix copy (dashed): less than is needed</text>"
    )
    yield (
        f'<text class="soft" x="{x(12)}" y="{y(4)}">'
        "shaded: closures pushed within the retention</text>"
    )
    for top, series, words in zip(STRIPS, ("ours", "recipe"), ("leases", "one rule"), strict=True):
        for morning in mornings:
            kind = "broken" if morning[f"{series}_broken"] else "whole"
            yield (
                f'<rect class="{kind}" x="{x(morning["day"])}" y="{top}" '
                f'width="{round(x(1) - x(0) - 1, 1)}" height="{STRIP_HEIGHT}"/>'
            )
        yield f'<text class="soft" x="8" y="{top + 11}">{words}</text>'
    for day in range(0, last + 1, 10):
        yield f'<text class="soft" text-anchor="middle" x="{x(day)}" y="{BOTTOM + 18}">{day}</text>'
    for line, words in enumerate(
        (
            "Red: a closure pushed within the retention is not whole, a narinfo has no NAR, or",
            f"nix-cache-info is gone. {ours} of the {data['days']} days with leases, "
            f"{recipe} with one rule.",
        )
    ):
        yield f'<text class="soft" x="{LEFT}" y="{STRIPS[1] + 38 + 18 * line}">{words}</text>'
    yield "</svg>"


if __name__ == "__main__":
    PICTURE.write_text(draw(json.loads(DATA.read_text())), encoding="utf-8")
