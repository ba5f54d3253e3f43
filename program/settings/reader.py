"""Reads settings one by one, so that each refusal names the setting, its value and the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import pulumi

from formats.printable import printable
from program.settings.redaction import sentence_without_secrets, without_secrets

_LONGEST_SHOWN = 200
"""Characters of a value, or of a setting's name, that a message shows."""


class SettingError(pulumi.RunError):
    """A setting that cannot be used: one sentence with the setting, its value and the remedy."""

    def __init__(self, setting: str, value: object, remedy: str) -> None:
        """Say what is wrong with a setting; a value of None is not shown, nor is a secret."""
        shown = "" if value is None else f" is {_shortened(json.dumps(without_secrets(value)))}"
        # What is unknown may have any name, and a remedy may have the words of a server.
        named, sentence = (
            printable(sentence_without_secrets(text, value)) for text in (setting, remedy)
        )
        super().__init__(f"{_shortened(named)}{shown}: {sentence}")


class SettingReader:
    """Takes values out of an object of settings, so that what is left over is unknown.

    Every method that returns a value raises `SettingError` where there is none, or one of another
    kind.
    """

    def __init__(self, path: str, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def take(self, name: str, default: Any = None) -> Any:
        """Return a value and count it as known; a missing one without default is refused."""
        value = self._values.pop(name, default)
        if value is None:
            raise SettingError(
                self.full_name(name),
                None,
                f"is missing; set it, or see {name} in docs/settings.md",
            )
        return value

    def full_name(self, name: str) -> str:
        """Return a setting's name with its path: `builders[0].host`."""
        return f"{self._path}{name}"

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text, which may be empty."""
        value = self.take(name, default)
        if not isinstance(value, str):
            raise SettingError(self.full_name(name), value, "write a text")
        return value

    def line(self, name: str, default: str | None = None) -> str:
        """Return a text that is neither empty nor longer than a line."""
        value = self.text(name, default)
        if not re.fullmatch(r"[!-~]+", value):
            raise SettingError(
                self.full_name(name), value, "write one word of ASCII characters without spaces"
            )
        return value

    def secret(self, name: str) -> str:
        """Return a text that no message may show."""
        value = self.take(name)
        if not isinstance(value, str) or not value or "\n" in value:
            raise SettingError(
                name, None, f"is empty or no single line; pulumi config set --secret {name}"
            )
        return value

    def boolean(self, name: str, default: bool | None = None) -> bool:
        """Return true or false."""
        value = self.take(name, default)
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if not isinstance(value, bool):
            raise SettingError(self.full_name(name), value, "write true or false")
        return value

    def integer(self, name: str, allowed: range, unit: str = "", default: int | None = None) -> int:
        """Return a whole number in `allowed`; `unit` is for the message of a refusal."""
        value = self.take(name, default)
        bounds = f"{allowed.start} to {allowed.stop - 1}{unit and ' '}{unit}"
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,30}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
            raise SettingError(self.full_name(name), value, f"write a whole number from {bounds}")
        return value

    def elements(self, name: str, default: list[Any] | None = None) -> list[Any]:
        """Return a list of anything."""
        value = self.take(name, default)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise SettingError(self.full_name(name), value, "write a list") from None
        if not isinstance(value, list):
            raise SettingError(self.full_name(name), value, "write a list")
        return value

    def texts(self, name: str, default: list[Any] | None = None) -> tuple[str, ...]:
        """Return a list of texts, none of them twice."""
        values = self.elements(name, default)
        for value in values:
            if not isinstance(value, str):
                raise SettingError(self.full_name(name), value, "write a list of texts")
        duplicate = first_duplicate(values)
        if duplicate is not None:
            raise SettingError(self.full_name(name), duplicate, "name it once only")
        return tuple(values)

    def has(self, name: str) -> bool:
        """Tell whether a setting is there and not yet taken."""
        return name in self._values

    def refuse_the_rest(self, remedy: str) -> None:
        """Refuse settings that nobody has taken: they are unknown.

        Raises:
            SettingError: there is one.
        """
        for name in self._values:
            raise SettingError(
                self.full_name(name), None, f"is no setting of this program; {remedy}"
            )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def first_duplicate(values: Iterable[str]) -> str | None:
    """Return the first value that is there a second time, or None."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
