"""Pins that live in a cache: objects of its bucket that name the closures it keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable

from formats.error import FormatError
from formats.store_path import is_store_path

PIN_FOLDER = "_nixcache/pins/"
"""Where pins lie in the bucket. No narinfo's name begins with a _, so no rule expires them."""

PIN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What a pin may be called."""

MOST_TARGETS = 100
"""Store paths that one pin may name."""

LARGEST_PIN = 1 << 16
"""Bytes of the largest pin that is read."""


def pin_key(name: str) -> str:
    """Return the key of the pin of that name."""
    return f"{PIN_FOLDER}{name}"


def format_pin(paths: Iterable[str]) -> str:
    """Return the content of a pin: store paths, one a line, the newest first; a blank line if none.

    An empty object would look like one that was too large to be read.
    """
    return "".join(f"{path}\n" for path in paths) or "\n"


def parse_pin(content: bytes) -> tuple[str, ...]:
    """Return the store paths that a pin names; none where its builder has never told.

    Raises:
        FormatError: it names too many, or something else.
    """
    try:
        lines = content.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise FormatError("a pin is no text of store paths") from None
    paths = [] if content == b"\n" else lines[:-1]
    if not content or lines[-1] or len(paths) > MOST_TARGETS:
        raise FormatError(f"a pin is at most {MOST_TARGETS} lines")
    if not all(map(is_store_path, paths)):
        raise FormatError("a pin's line is no store path")
    return tuple(paths)
