"""What a push says: progress on standard error, one line for the whole on standard output."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields


def say(line: str) -> None:
    """Write a line to standard error.

    Raises:
        BrokenPipeError: nobody listens any more.
    """
    sys.stderr.write(f"push: {line}\n")
    sys.stderr.flush()


def human(size: int) -> str:
    """Return a number of bytes as something like 12.3 MB."""
    if size < 1000:
        return f"{size} B"
    value, units = size, ["kB", "MB", "GB", "TB"]
    while value >= 1_000_000 and len(units) > 1:
        value //= 1000
        units.pop(0)
    return f"{value // 1000}.{value % 1000 // 100} {units[0]}"


@dataclass
class Summary:
    """What a push came to, in paths of the closure and bytes of NARs before compression."""

    pushed: int = 0
    pushed_bytes: int = 0
    reused: int = 0
    skipped: int = 0
    skipped_bytes: int = 0
    renewed: int = 0
    repaired: int = 0

    def __add__(self, later: Summary) -> Summary:
        """Return what this push and a later one came to."""
        return Summary(
            **{one.name: getattr(self, one.name) + getattr(later, one.name) for one in fields(self)}
        )

    def line(self, verb: str, seconds: float) -> str:
        """Return the one line, such as `pushed 12 paths (48.1 MB), reused 288, …`."""
        return (
            f"{verb} {self.pushed} paths ({human(self.pushed_bytes)}), reused {self.reused}, "
            f"skipped {self.skipped} upstream ({human(self.skipped_bytes)}), "
            f"renewed {self.renewed}, repaired {self.repaired}, in {int(seconds * 10) / 10:.1f} s"
        )
