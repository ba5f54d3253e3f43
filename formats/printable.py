"""Text of others, such as a server's answer, as a message may show it."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 200
"""How many characters of what somebody gave a message repeats."""


def printable(text: str, longest: int | None = None) -> str:
    """Return a text that does not steer a terminal: `?` stands for what cannot be printed.

    Args:
        text: anybody's.
        longest: how many of its characters are shown; None is all.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text[:longest])


def listed(words: Sequence[str], most: int = 10, longest: int = 80) -> str:
    """Return words of others in one line, the first `most` of them, and how many more there are."""
    shown = ", ".join(printable(word, longest) for word in words[:most])
    rest = len(words) - most
    return f"{shown} and {rest} more" if rest > 0 else shown
