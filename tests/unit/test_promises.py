"""Every promise of docs/security.md is tried by a test that is there."""

from __future__ import annotations

import re
from functools import cache

from tests.unit.configuration import PROJECT_ROOT

TESTS = PROJECT_ROOT / "tests"


def promises() -> dict[str, list[str]]:
    """Return the tests that each promise names, as `module.test`."""
    text = (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = text.partition("\n## Promises\n")[2].partition("\n## ")[0].splitlines()
    table = [row.strip("| ").split(" | ") for row in rows if row.startswith("| ")]
    return {promise: re.findall(r"`([^`]+)`", named) for promise, named in table[2:]}


@cache
def known(module: str) -> frozenset[str]:
    """Return the names of the tests in the modules of a name."""
    texts = [file.read_text(encoding="utf-8") for file in TESTS.rglob(f"{module}.py")]
    return frozenset(re.findall(r"(?m)^def (test_\w+)\(", "".join(texts)))


def test_every_promise_names_tests_that_are_there() -> None:
    found = promises()
    assert len(found) > 15
    for promise, named in found.items():
        assert named, promise
        for name in named:
            module, _, test = name.partition(".")
            assert test in known(module), f"{promise} {name}"


def test_every_figure_of_the_promises_is_written_by_a_test_and_said() -> None:
    text = (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = text.partition("\n| figure | counts |")[2].partition("\n\n")[0]
    said = set(re.findall(r"(?m)^\| `(\w+)` \|", table))
    sources = [*TESTS.rglob("test_*.py"), *(PROJECT_ROOT / "benchmarks").glob("*.py")]
    written = set()
    for file in sources:
        source = file.read_text(encoding="utf-8")
        written |= set(re.findall(r"\brecord\(\"(\w+)\"", source))
        written |= {"attacks"} if re.search(r"(?m)^ +attack\(", source) else set()
        written |= {"load"} if re.search(r"(?m)^ +record_load\(", source) else set()
    assert written == said
