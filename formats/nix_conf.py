"""What every text that names a cache to Nix says besides (Nix manual, `nix.conf`)."""

from __future__ import annotations

import json
from collections.abc import Mapping

PATIENCE: Mapping[str, bool | int] = {
    "fallback": True,
    "connect-timeout": 3,
    "download-attempts": 3,
}
"""How long Nix waits for a cache that is away: attempts, and seconds for each to connect.

`nix/substituter.nix` has the same. Without `fallback` Nix fails builds as long as a cache that it
knows does not answer.
"""


def patience(line: str) -> str:
    """Return a line for each of `PATIENCE`.

    Args:
        line: how the text sets something: `{name}` and `{value}` stand for both. `nix.conf` and the
            language write values alike.
    """
    return "".join(
        line.format(name=name, value=json.dumps(value)) + "\n" for name, value in PATIENCE.items()
    )
