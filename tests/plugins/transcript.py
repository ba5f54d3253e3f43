"""A plugin's answers as lines of text, so that two plugins can be compared line by line.

A line is a key (what was asked) and an answer; what differs from run to run (ports, random ids and
secrets, addresses) is replaced by a word, and so is what only its own kind of plugin needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.plugins.plugin_process import RefusedError
from toolbox.plugins.property_values import UNKNOWN, Secret

WORDS = [
    (
        re.compile(
            r"(ssh: handshake failed: )?(ssh: unable to authenticate|Permission denied)\b.*"
        ),
        "not let in",
    ),
    (
        re.compile(
            r"(ssh: handshake failed: )?(ssh: host key mismatch|Host key is not trusted\b.*)"
        ),
        "host key mismatch",
    ),
    (re.compile(r"(failed to parse host key): .*"), r"\1"),
]
"""Both languages' words for one reason → ours."""

Answer = TypeVar("Answer")

PRIVATE = ("__pulumi_raw_state_delta", "__pulumi-go-provider-version")
"""What the official plugins keep in a resource for themselves alone."""

RANDOM = [
    (re.compile(r"\b\d{18}[0-9a-f]{8}\b"), "UNIQUE"),
    (re.compile(r'"[\w-]{54}=="'), '"RANDOM-SECRET"'),
    (re.compile(r"\brow[0-9a-f]{8}\b"), "rowHEX"),
    (re.compile(r"\brow-[0-9a-f]{7}\b"), "row-HEX"),
    (re.compile(r"(contains an invalid JSON): .*?(\. Examine)"), r"\1\2"),
]


@dataclass
class Transcript:
    """Lines in the order they were recorded."""

    lines: dict[str, str] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Text of this run → the word that stands for it."""

    def ask(self, key: str, question: Callable[[], Answer]) -> Answer | None:
        """Record what `question` answers, or its error, under `key`; returns the answer or None."""
        assert key not in self.lines, f"{key} asked twice"
        answer = None
        try:
            answer = question()
            text = self._text(answer)
        except RefusedError as error:
            text = "error: " + self._text(self.plain_error(error.message))
            if error.partial:
                text += " kept: " + self._text(error.partial)
        self.lines[key] = text
        return answer

    def note(self, key: str, what: str, seen: list[Any]) -> None:
        """Add to the line `key` what was seen beside its answer."""
        if seen:
            self.lines[key] += f" {what}: {self._text(seen)}"

    def _text(self, answer: Any) -> str:
        text = json.dumps(_shown(answer), sort_keys=True, ensure_ascii=False)
        for found, word in self.hidden.items():
            text = text.replace(json.dumps(found)[1:-1], word)
        for pattern, word in RANDOM:
            text = pattern.sub(word, text)
        return text

    def plain_error(self, message: str) -> str:
        """The error without what wraps it, on one line."""
        message = re.sub(
            r"^(creating|updating|deleting|refreshing|importing) urn:\S+: ", "", message
        )
        if message.startswith("Resource provider reported that the resource did not exist"):
            return "the resource did not exist"
        message = re.sub(r"^\d+ errors? occurred:\n", "", message)
        message = re.sub(r":? %s(: %s)?", "", message)
        parts = [part.replace("[FATAL] ", "").strip() for part in message.split("\t* ")]
        message = " | ".join(part for part in parts if part).replace(": <nil>", "")
        for pattern, word in WORDS:
            message = pattern.sub(word, message)
        what = message.partition(": ")[0]
        return (
            f"{what}: unreachable"
            if re.search("connection refused|connect call failed", message, re.IGNORECASE)
            else message
        )

    def write(self, path: Path, about: Iterable[str]) -> None:
        """Store the lines, after `about` as comments."""
        head = "".join(f"# {line}\n" for line in about)
        path.write_text(head + "".join(f"{key} => {self.lines[key]}\n" for key in self.lines))

    @classmethod
    def stored(cls, path: Path) -> Transcript:
        """What `write` stored."""
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        return cls(dict(_split(lines)))


def _split(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, _, answer = line.partition(" => ")
        yield key, answer


def _shown(value: Any) -> Any:
    if value is UNKNOWN:
        return "<unknown>"
    if isinstance(value, Secret):
        return {"<secret>": _shown(value.value)}
    if isinstance(value, str) and value.startswith('{\n "Version"'):
        return _sorted_policy(value)
    if isinstance(value, Mapping):
        return {name: _shown(item) for name, item in value.items() if name not in PRIVATE}
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return _shown({name: getattr(value, name) for name in value.__dataclass_fields__})
    return value


def _sorted_policy(text: str) -> str:
    # The server writes sets in any order.
    policy = json.loads(text)
    for statement in policy["Statement"]:
        for name in ("Action", "Resource"):
            statement[name] = sorted(statement[name])
    return json.dumps(policy, indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class LineDifference:
    """One line on which two transcripts do not agree."""

    key: str
    official: str | None
    """None: the official plugin was not asked, or has no such line."""
    drop_in: str | None
    reason: str | None
    """Why it is meant so; None for a difference that is a bug."""


def compare(
    official: Transcript, drop_in: Transcript, deliberate: Mapping[str, str]
) -> list[LineDifference]:
    """Lines that differ; `deliberate` is a pattern of keys → the reason."""
    found = []
    for key in [*official.lines, *(drop_in.lines.keys() - official.lines.keys())]:
        theirs, ours = official.lines.get(key), drop_in.lines.get(key)
        if theirs != ours:
            reason = next(
                (why for pattern, why in deliberate.items() if re.fullmatch(pattern, key)), None
            )
            found.append(LineDifference(key, theirs, ours, reason))
    return found
