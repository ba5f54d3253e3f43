"""The tables of settings against what the program reads, and the README against the Makefile."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest

from program.settings.stack import parse
from tests.unit.configuration import PROJECT_ROOT, configuration, refusal, schema

LANGUAGES = ("README.md", "README.zh.md")
SETTINGS = ("docs/settings.md", "docs/settings.zh.md")
READS = {"boolean", "has", "integer", "line", "take", "text", "texts"}
"""Methods that take a setting out of the reader in `setting_reader.py`."""


def table(page: str, first: str) -> dict[str, list[str]]:
    """Return the rows, by their first cell, of the table that has the row `first`."""
    tables: list[dict[str, list[str]]] = [{}]
    for line in (PROJECT_ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            tables[-1][cells[0].strip("`")] = cells[1:]
        elif tables[-1]:
            tables.append({})
    (found,) = [rows for rows in tables if first in rows]
    return found


def shown_type(declared: dict[str, object]) -> str:
    """Return a setting's type as the tables name it."""
    text = str(declared["type"])
    items = declared.get("items")
    if isinstance(items, dict):
        text += f" of {items['type']}s"
    return f"{text}, secret" if declared.get("secret") else text


def shown_default(declared: dict[str, object]) -> str:
    """Return a setting's default as the tables show it."""
    if "default" not in declared:
        return "required"
    value = declared["default"]
    if value in ("", []):
        return "empty"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


@pytest.mark.parametrize("page", SETTINGS)
def test_the_table_of_settings_is_the_schema(page: str) -> None:
    rows = table(page, "endpoint")
    assert list(rows) == list(schema())
    for name, declared in schema().items():
        assert rows[name][:2] == [shown_type(declared), shown_default(declared)], name
        assert rows[name][2]


def test_the_english_table_describes_a_setting_in_the_schemas_words() -> None:
    rows = table("docs/settings.md", "endpoint")
    for name, declared in schema().items():
        description = str(declared["description"]).replace("|", "\\|")
        assert rows[name][2] == description, f"| `{name}` | … | {description} |"


INTEGERS = [name for name, declared in schema().items() if declared["type"] == "integer"]


@pytest.mark.parametrize("setting", INTEGERS)
@pytest.mark.parametrize("page", SETTINGS)
def test_the_range_of_a_number_is_told_and_is_what_the_program_takes(
    page: str, setting: str
) -> None:
    described = table(page, "endpoint")[setting][2]
    found = re.findall(r"(?:`(zstd|xz)`(?: \w+)? )?(\d+) (?:to|至) (\d+)", described)
    assert found
    for compression, low, high in found:
        chosen = {"compression": compression} if compression else {}
        for taken in (int(low), int(high)):
            parse(configuration(**{setting: taken, **chosen}))
        for refused in (int(low) - 1, int(high) + 1):
            assert f"{low} to {high}" in refusal(**{setting: refused, **chosen})


def settings_of_a_builder() -> Iterator[str]:
    """Yield the names that the program takes out of an element of `builders`."""
    functions = {
        node.name: node
        for module in ("builders.py", "ssh.py")
        for node in ast.parse(
            (PROJECT_ROOT / "program" / "settings" / module).read_text("utf-8")
        ).body
        if isinstance(node, ast.FunctionDef)
    }
    for name, function in functions.items():
        if name == "read_builders" or "reader" not in [arg.arg for arg in function.args.args]:
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            arguments = [ast.unparse(argument) for argument in call.args]
            called = ast.unparse(call.func)
            if called.startswith("reader.") and called.partition(".")[2] in READS:
                literal = call.args[0]
            elif called in functions and arguments[:1] == ["reader"] and len(arguments) > 1:
                literal = call.args[1]
            else:
                continue
            if isinstance(literal, ast.Constant):
                yield str(literal.value)


@pytest.mark.parametrize("page", SETTINGS)
def test_the_table_of_a_builders_settings_is_what_the_program_reads(page: str) -> None:
    assert sorted(table(page, "hostKey")) == sorted(set(settings_of_a_builder()))


@pytest.mark.parametrize("readme", LANGUAGES)
def test_a_command_that_is_shown_exists(readme: str) -> None:
    text = (PROJECT_ROOT / readme).read_text(encoding="utf-8")
    makefile = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    shown = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"up", "test", "status"} <= shown <= targets
