"""What the state tells of this stack."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from program.checks.recorded import OBJECT, Recorded

KEY = "_nixcache/push.pyz"


def state(**outputs: Any) -> Recorded:
    """Return a state with one object."""
    return Recorded({"urn": {"type": OBJECT, "outputs": {"objectName": KEY, **outputs}}})


def test_an_object_that_is_no_text_has_its_bytes() -> None:
    content = bytes(range(256))
    kept = state(contentBase64=base64.b64encode(content).decode())
    assert kept.binary_content(KEY) == content
    assert kept.binary_content("use.html") == b""


@pytest.mark.parametrize("recorded", [{}, {"contentBase64": None}, {"contentBase64": "eA=\n"}])
def test_an_object_without_readable_bytes_has_none(recorded: dict[str, Any]) -> None:
    assert state(**recorded).binary_content(KEY) == b""
