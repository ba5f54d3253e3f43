"""Whether two access policies say the same, whatever their order and spelling.

Source of fact: the rules of `awspolicyequivalence` as the official `minio` plugin uses it.
"""

from __future__ import annotations

import json
from typing import Any

SETS = ("Action", "NotAction", "Resource", "NotResource")


def equivalent(old: str, new: str) -> bool:
    """Whether the JSON policies `old` and `new` permit and deny the same.

    Statements and the members of sets may come in any order, and a set of one may stand alone.
    What is not a policy is equivalent to nothing.
    """
    try:
        return _normal(json.loads(old)) == _normal(json.loads(new))
    except (ValueError, AttributeError, TypeError):
        return False


def _normal(policy: dict[str, Any]) -> tuple[Any, ...]:
    statements = policy.get("Statement", [])
    if isinstance(statements, dict):
        statements = [statements]
    texts = sorted(json.dumps(_statement(statement), sort_keys=True) for statement in statements)
    return policy.get("Version"), policy.get("Id"), texts


def _statement(statement: dict[str, Any]) -> dict[str, Any]:
    normal = {name: value for name, value in statement.items() if value not in ("", [], {})}
    for name in SETS:
        if name in normal:
            normal[name] = _set(normal[name])
    for name in ("Principal", "NotPrincipal"):
        if isinstance(normal.get(name), dict):
            normal[name] = {key: _set(value) for key, value in normal[name].items()}
    if "Condition" in normal:
        normal["Condition"] = {
            operator: {key: _set(value) for key, value in keys.items()}
            for operator, keys in normal["Condition"].items()
        }
    return normal


def _set(value: Any) -> list[str]:
    return sorted(str(item) for item in (value if isinstance(value, list) else [value]))
