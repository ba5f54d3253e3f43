"""In which order the tests run, what they do not wait for, and what they leave as it is."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

LONGEST = (
    "test_recovery", "test_retention", "test_push_faults", "test_documented_commands",
    "test_left_alone", "test_long_life", "test_first_hour", "test_settings_table", "test_servers",
    "test_four_nodes", "test_push_hostile", "test_status", "test_obstacles", "test_drift",
    "test_audit", "test_endpoints", "test_previews", "test_canaries",
)  # fmt: skip
"""Files of tests that take most. A file is one worker's: one that began last would be waited for
while the other workers have nothing to do."""


@pytest.fixture(autouse=True, scope="session")
def _limits_of_this_process() -> Iterator[None]:
    """Leave this process its limits: what it starts later begins with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "setrlimit", lambda *_: None)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, the longest of all at once, and the rest as it was found."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(Path(item.path).stem, len(places)))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lasts as long as the tests do."""
    gc.freeze()
