"""Leases count days: what takes minutes must not begin on one and end on the next."""

from __future__ import annotations

import time

_DAY = 86_400
_SECONDS = 600.0


def wait_where_it_is_near() -> None:
    """Wait for midnight (UTC) where it would come within the ten minutes that a test may take."""
    left = _DAY - time.time() % _DAY
    if left < _SECONDS:
        time.sleep(left + 1)
