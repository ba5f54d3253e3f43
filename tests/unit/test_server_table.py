"""The table of docs/servers.md is what the tests on real servers expect."""

from __future__ import annotations

import json

from tests.unit.configuration import PROJECT_ROOT

EXPECTED = PROJECT_ROOT / "tests" / "system" / "servers" / "expected.json"


def table() -> str:
    """Return the table in Markdown: a need in each row, a server in each column."""
    servers = json.loads(EXPECTED.read_text(encoding="utf-8"))
    rows = [["need", *servers], ["---"] * (len(servers) + 1)]
    needs = next(iter(servers.values()))
    rows += [[need, *(results[need] for results in servers.values())] for need in needs]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_the_documents_table_has_what_servers_are_expected_to_answer() -> None:
    assert table() in (PROJECT_ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
