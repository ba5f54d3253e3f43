"""The engine's protocol without the SDK that it comes with.

A plugin needs the messages and nothing else, and the engine starts four plugins for each command:
importing the whole SDK took a third of what each of them takes to start.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec


def import_protocol_alone() -> None:
    """Let `pulumi.runtime.proto` be imported, in this process, without running what is around it.

    Raises:
        ImportError: there is no SDK.
    """
    for name in ("pulumi", "pulumi.runtime"):
        spec = find_spec(name)
        if spec is None:
            raise ImportError(f"No module named {name}")
        sys.modules[name] = module_from_spec(spec)
