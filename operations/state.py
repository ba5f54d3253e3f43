"""A stack's state, as the last deployment left it."""

from __future__ import annotations

import json
from typing import Any

from operations.pulumi_cli import OperationError, read_text
from program.checks.recorded import Recorded

_SIGNATURE = "4dabf18193072939515e22adb298388d"
"""The key that marks a value which is not what it looks like (pulumi, `resource.SigKey`)."""


def read_state(stack: str) -> Recorded:
    """Return the resources of a stack's state, secrets in plain text.

    Raises:
        OperationError: there is no CLI or no such stack, or it has not been deployed.
    """
    exported = json.loads(read_text("stack", "export", "--show-secrets", "--stack", stack))
    recorded = Recorded(
        {
            resource["urn"]: {
                "type": resource["type"],
                "outputs": _plain(resource.get("outputs") or {}),
            }
            for resource in (exported.get("deployment") or {}).get("resources") or ()
            if not resource.get("delete")
        }
    )
    if recorded.bucket is None:
        raise OperationError(f"stack {stack} has no bucket yet; run pulumi up")
    return recorded


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _SIGNATURE in value:
            return json.loads(value["plaintext"]) if "plaintext" in value else None
        return {name: _plain(element) for name, element in value.items()}
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return value
