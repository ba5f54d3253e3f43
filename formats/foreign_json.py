"""JSON that others wrote, such as a server's answer: bounded in how deep it goes.

Python ends in a RecursionError where JSON is nested some thousand times, in its parser or in
whatever walks through what that returns.
"""

from __future__ import annotations

import json
from typing import Any

from formats.error import FormatError

DEEPEST = 50
"""Levels of lists and objects within each other; a policy has six."""


def parse_foreign_json(text: str) -> Any:
    """Return what a JSON text (RFC 8259) says.

    Raises:
        FormatError: it is none, or nested deeper than `DEEPEST`.
    """
    too_deep = FormatError(f"it is nested more than {DEEPEST} levels deep")
    try:
        value = json.loads(text)
    except ValueError:
        raise FormatError("it is not JSON") from None
    except RecursionError:
        raise too_deep from None
    level, levels = [value], 0
    while outer := [one for one in level if isinstance(one, dict | list)]:
        levels += 1
        if levels > DEEPEST:
            raise too_deep
        level = [
            inner for one in outer for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return value
