"""Where two trees of property values differ, in the paths and words of the engine.

Source of fact: `sdk/go/common/resource/properties_diff.go` and `plugin/rpc.go` (detailed diffs) at
v3.259.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from toolbox.plugins.property_values import Properties

PLAIN_NAME = re.compile(r"[A-Za-z_$][\w$-]*\Z", re.ASCII)


def differences(old: Properties, new: Properties) -> dict[str, str]:
    """Property path → ADD, DELETE or UPDATE; objects and lists are compared member by member."""
    return dict(_between(old, new, ""))


def _between(old: Any, new: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old.keys() | new.keys()):
            yield from _member(old, new, name, name in old, name in new, _extended(path, name))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            yield from _member(
                old, new, index, index < len(old), index < len(new), f"{path}[{index}]"
            )
    elif old != new or type(old) is not type(new):
        yield path, "UPDATE"


def _member(
    old: Any, new: Any, key: Any, in_old: bool, in_new: bool, path: str
) -> Iterator[tuple[str, str]]:
    if in_old and in_new:
        yield from _between(old[key], new[key], path)
    else:
        yield path, "ADD" if in_new else "DELETE"


def _extended(path: str, name: str) -> str:
    if not PLAIN_NAME.match(name):
        return f"{path}[{json.dumps(name)}]"
    return f"{path}.{name}" if path else name
