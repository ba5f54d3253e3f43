"""What all unit tests share."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _server_of_any_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server's clock be what a test wants, whatever this machine's is."""
    monkeypatch.setattr("push.transfers.MOST_SKEW", timedelta.max)
