"""What a push tells that has kept all it has: a sample for tests."""

from __future__ import annotations

from formats.push_status import PushStatus

TOLD = PushStatus(
    started_by="timer",
    host="nixbuilder",
    own=12,
    own_bytes=3_400_000_000,
    pushed=2,
    pushed_bytes=40_000,
    renewed=10,
    repaired=0,
    failures=0,
    nix="2.34.8",
    program="0.1.0",
)
