"""What every resource type is asked; the rows are in `minio_rows` and `command_rows`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.plugins.plugin_process import PluginProcess
from tests.plugins.transcript import Transcript
from toolbox.plugins.property_values import UNKNOWN, Properties

SHOWN = ("INFO", "WARNING")
"""Severities that are part of a contract; errors are the answers', debugging is private."""

Act = Callable[[], object]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Row:
    """One resource type, with what may happen to a resource of it."""

    token: str
    inputs: Properties
    """Of a resource as a program declares it. In the changes below, None leaves an input out."""
    changes: Mapping[str, Properties] = field(default_factory=dict)
    """Each property changed."""
    unknowns: tuple[str, ...] = ()
    """Inputs that a preview may not know yet."""
    refused: Mapping[str, Properties] = field(default_factory=dict)
    """Inputs of which only the check is of interest."""
    drifts: Mapping[str, Act] = field(default_factory=dict)
    """What others may do to it."""
    before: Act = lambda: None
    """Makes what the resource needs."""
    imports: tuple[str, ...] = ()
    """Ids to import while the resource exists."""
    failing: Mapping[str, tuple[Act, Properties]] = field(default_factory=dict)
    """Inputs whose creation fails, and what to do first."""
    label: str = ""
    """Tells rows of one type apart."""

    @property
    def name(self) -> str:
        """Its short name, for keys."""
        package, module, kind = self.token.split(":")
        name = f"{module}.{kind}" if package == "command" else kind
        return f"{name} {self.label}" if self.label else name

    @property
    def urn(self) -> str:
        """Of the resource that the row is about."""
        return f"urn:pulumi:test::test::{self.token}::row"


def changed(inputs: Properties, change: Properties) -> Properties:
    """`inputs` with `change`; None removes."""
    merged = {**inputs, **change}
    return {name: value for name, value in merged.items() if value is not None}


class Interview:
    """Asks one plugin about one row, and keeps what the resource has become."""

    def __init__(self, row: Row, plugin: PluginProcess, lines: Transcript) -> None:
        """`plugin` is configured; answers go to `lines`."""
        self.row = row
        self.plugin = plugin
        self.lines = lines
        self.id = ""
        self.state: Properties = {}
        self.inputs: Properties = {}

    def ask(self, key: str, method: Callable[..., Answer], *question: Any) -> Answer | None:
        """Record the answer to `method(urn, *question)` under the row's name and `key`."""
        key = f"{self.row.name}: {key}"
        answer = self.lines.ask(key, functools.partial(method, self.row.urn, *question))
        logged = self.plugin.engine.taken()
        self.lines.note(key, "log", sorted(line for line in logged if line[0] in SHOWN))
        return answer

    def whole_life(self) -> None:
        """All that the row asks, from creation to a deletion of what has gone already."""
        self.row.before()
        self.creation()
        for label, change in self.row.refused.items():
            self.ask(f"{label}: check", self.plugin.check, changed(self.row.inputs, change))
        for name in self.row.unknowns:
            self.unknown(name)
        for label, change in self.row.changes.items():
            self.change(label, change)
        for imported in self.row.imports:
            self.ask(f"import of {imported}", self.plugin.read, imported, {}, {})
        for label, drift in self.row.drifts.items():
            drift()
            self.drifted(label)
        self.ask("delete", self.plugin.delete, self.id, self.state, self.inputs)
        self.ask("read when gone", self.plugin.read, self.id, self.state, self.inputs)
        self.ask("delete when gone", self.plugin.delete, self.id, self.state, self.inputs)
        for label, (first, failing) in self.row.failing.items():
            first()
            checked = self.plugin.check(self.row.urn, changed(self.row.inputs, failing))
            self.ask(f"{label}: create", self.plugin.create, checked.inputs)

    def creation(self) -> None:
        """Check, create, and that nothing differs from what was created."""
        plugin = self.plugin
        checked = self.ask("check", plugin.check, self.row.inputs)
        assert checked
        self.inputs = checked.inputs
        self.ask("preview of create", plugin.create, self.inputs, True)
        made = self.ask("create", plugin.create, self.inputs)
        assert made, self.lines.lines[f"{self.row.name}: create"]
        self.id, self.state = made
        self.ask("diff", plugin.diff, self.id, self.state, self.inputs, self.inputs)
        read = self.ask("read", plugin.read, self.id, self.state, self.inputs)
        if read:
            self.state = read[1]
            self.ask("diff after read", plugin.diff, self.id, self.state, read[2], self.inputs)

    def unknown(self, name: str) -> None:
        """A preview in which the input `name` is not known yet."""
        plugin, key = self.plugin, f"{name} unknown"
        news = {**self.inputs, name: UNKNOWN}
        self.ask(f"{key}: check", plugin.check, news)
        self.ask(f"{key}: preview of create", plugin.create, news, True)
        diff = self.ask(f"{key}: diff", plugin.diff, self.id, self.state, self.inputs, news)
        if diff and not diff.replaces:
            question = (self.id, self.state, self.inputs, news, True)
            self.ask(f"{key}: preview of update", plugin.update, *question)

    def change(self, label: str, change: Properties) -> None:
        """A change of inputs, carried out unless it replaces, and its way back."""
        plugin = self.plugin
        wanted = changed(self.row.inputs, change)
        checked = self.ask(f"{label}: check", plugin.check, wanted, self.inputs)
        if not checked or checked.failures:
            return
        news = checked.inputs
        question = (self.id, self.state, self.inputs, news)
        diff = self.ask(f"{label}: diff", plugin.diff, *question)
        if not diff or diff.replaces or diff.changes == "DIFF_NONE":
            return
        self.ask(f"{label}: preview of update", plugin.update, *question, True)
        after = self.ask(f"{label}: update", plugin.update, *question)
        if after is None:
            return
        read = self.ask(f"{label}: read", plugin.read, self.id, after, news)
        self.state = read[1] if read and read[0] else after
        back = (self.id, self.state, news, self.inputs)
        self.state = self.ask(f"{label}: back", plugin.update, *back) or self.state

    def drifted(self, label: str) -> None:
        """A refresh after somebody else changed something, and the repair."""
        plugin = self.plugin
        read = self.ask(f"{label}: read", plugin.read, self.id, self.state, self.inputs)
        if not read or not read[0]:
            self.id, self.state = plugin.create(self.row.urn, self.inputs)
            return
        _, self.state, now = read
        question = (self.id, self.state, now, self.inputs)
        diff = self.ask(f"{label}: diff", plugin.diff, *question)
        if diff and diff.changes == "DIFF_SOME":
            self.state = self.ask(f"{label}: update", plugin.update, *question) or self.state

    def without_server(self, why: str) -> None:
        """What needs a server, asked of a plugin that has none or may do nothing there."""
        plugin = self.plugin
        inputs = plugin.check(self.row.urn, self.row.inputs).inputs
        _, planned = plugin.create(self.row.urn, inputs, True)
        self.id = self.row.imports[0]
        self.state = {
            **{name: "x" if value is UNKNOWN else value for name, value in planned.items()},
            "id": self.id,
        }
        self.ask(f"{why}: create", plugin.create, inputs)
        self.ask(f"{why}: read", plugin.read, self.id, self.state, inputs)
        self.ask(f"{why}: delete", plugin.delete, self.id, self.state, inputs)
