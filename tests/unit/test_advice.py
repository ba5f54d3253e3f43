"""Nothing that a page or the program tells a person to type is left unexecuted.

The table, and most of what it names, is in `tests/system/test_documented_commands.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.system.test_documented_commands import COMMAND, EXECUTED, MENTIONED, read
from tests.unit.configuration import PROJECT_ROOT

SYSTEM = PROJECT_ROOT / "tests" / "system"
PAGES = ("docs/recovery.md", "docs/operations.md", "docs/environments.md")
ROOMS = ("components", "operations", "program", "push", "toolbox")


def documented() -> Iterator[str]:
    """Yield the commands of the pages: whole lines of consoles, and what stands in a sentence."""
    removal = read("README.md").partition("\n## Remove it\n")[2].partition("\n## ")[0]
    for text in (removal, *map(read, PAGES)):
        for console in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            for line in re.findall(r"^\$ (.+)$", console, re.MULTILINE):
                yield re.sub(r"\s+# .*", "", line)
        sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        yield from re.findall(r"`((?:make|mc|pulumi|\.venv/bin/python) [^`]+)`", sentences)


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a program but for docstrings, `…` where a value is put in."""
    passed_over = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            passed_over |= {id(part) for part in node.values}
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in passed_over
        ):
            yield node.value


def advice() -> Iterator[str]:
    """Yield the texts of the program that name a command."""
    for room in ROOMS:
        for file in (PROJECT_ROOT / room).rglob("*.py"):
            # What a drop-in says, the official plugin says.
            if "plugins" not in file.parts:
                yield from filter(COMMAND.search, texts_of(ast.parse(file.read_text())))


def as_pattern(text: str) -> str:
    """Return a pattern for a text in which `…` is anything."""
    return ".+".join(map(re.escape, re.split("…+", text)))


def texts_of_function(where: str) -> list[str]:
    """Return the texts of a system test, `file.py::name` or a name of the table's file."""
    file, _, name = where.rpartition("::")
    tree = ast.parse((SYSTEM / (file or "test_documented_commands.py")).read_text())
    (function,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return list(texts_of(function))


ROWS = {row: where for where, rows in EXECUTED.items() for row in rows}


def pages_commands() -> set[str]:
    return {re.sub(r"\b(NAMES|BACKUP)\b", "…", command) for command in documented()}


def sentences() -> set[str]:
    return {re.sub(r"=NAME\b", "=…", text) for text in advice()}


def test_every_command_of_the_pages_is_in_the_table() -> None:
    assert sorted(pages_commands() - {*ROWS, *MENTIONED}) == []


def test_every_sentence_of_advice_is_in_the_table() -> None:
    rows = sorted({*ROWS, *MENTIONED} - pages_commands(), key=len, reverse=True)

    def without_rows(sentence: str) -> str:
        for row in rows:
            sentence = sentence.replace(row, "")
        return sentence

    told = sorted(sentences())
    assert [sentence for sentence in told if COMMAND.search(without_rows(sentence))] == []


def test_nothing_is_in_the_table_that_nobody_is_told() -> None:
    told = "\n".join(sentences())
    assert [row for row in {*ROWS, *MENTIONED} - pages_commands() if row not in told] == []


@pytest.mark.parametrize("where", EXECUTED)
def test_a_row_of_the_table_is_executed_word_for_word(where: str) -> None:
    texts = texts_of_function(where)
    for row in EXECUTED[where]:
        commands = [row] if row in pages_commands() else COMMAND.findall(row)
        for command in commands:
            assert any(
                re.search(as_pattern(command), text) or re.search(as_pattern(text), command)
                for text in texts
                if text.strip("…")
            ), command
