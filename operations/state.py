"""A stack's state, as the last deployment left it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from operations.pulumi_cli import OperationError, read_output, read_text
from program.checks.recorded import Recorded

_SIGNATURE = "4dabf18193072939515e22adb298388d"
"""The key that marks a value which is not what it looks like (pulumi, `resource.SigKey`)."""


@dataclass(frozen=True)
class Interrupted:
    """A resource that an interrupted `up` was making; whether it is there, no state tells."""

    urn: str
    type: str
    inputs: Mapping[str, Any] = field(repr=False)
    """What it was to be, with secrets in plain text."""


def read_state(stack: str) -> Recorded:
    """Return the resources of a stack's state, secrets in plain text.

    Raises:
        OperationError: there is no CLI or no such stack, or it has not been deployed.
    """
    recorded, _ = read_interrupted_state(stack)
    if recorded.bucket is None:
        raise OperationError(f"stack {stack} has no bucket yet; run make up STACK={stack}")
    return recorded


def read_interrupted_state(stack: str) -> tuple[Recorded, tuple[Interrupted, ...]]:
    """Return the resources of a state, and those that an interrupted `up` was making.

    Raises:
        OperationError: there is no CLI or no such stack.
    """
    exported = json.loads(read_text("stack", "export", "--show-secrets", "--stack", stack))
    deployment = exported.get("deployment") or {}
    recorded = Recorded(
        {
            resource["urn"]: {
                "type": resource["type"],
                "created": resource.get("created"),
                "outputs": _plain(resource.get("outputs") or {}),
            }
            for resource in deployment.get("resources") or ()
            if not resource.get("delete")
        }
    )
    # What was being changed, deleted or imported is there as the state has it, or as another has.
    making = (
        operation["resource"]
        for operation in deployment.get("pending_operations") or ()
        if operation["type"] == "creating"
    )
    return recorded, tuple(
        Interrupted(one["urn"], one["type"], _plain(one.get("inputs") or {})) for one in making
    )


def remove_empty_attributes() -> int:
    """Remove the `.attrs` files that were cut off beside a state in files; return how many.

    The engine needs none, and cannot read a state that has an empty one beside it
    (`gocloud.dev/blob/fileblob`).

    Raises:
        OperationError: there is no CLI, or one of them cannot be removed.
    """
    address = urlsplit(str(read_output("whoami", "--verbose").get("url", "")))
    if address.scheme != "file":
        return 0
    # `pulumi login --local` names the home directory: file://~.
    directory = Path(unquote(address.netloc + address.path)).expanduser()
    removed = 0
    for path in directory.glob(".pulumi/**/*.attrs"):
        # Another command's: it comes and goes with that, and may just be being written.
        if path.relative_to(directory).parts[:2] == (".pulumi", "locks"):
            continue
        try:
            if path.stat().st_size == 0:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OperationError(
                f"{error.filename} cannot be removed ({error.strerror}); remove it as its owner"
            ) from None
    return removed


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _SIGNATURE in value:
            return json.loads(value["plaintext"]) if "plaintext" in value else None
        return {name: _plain(element) for name, element in value.items()}
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return value
