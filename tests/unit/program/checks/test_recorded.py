"""What the state tells of this stack."""

from __future__ import annotations

import base64
from typing import Any

import pulumi
import pytest

from program.checks.recorded import BUCKET, OBJECT, STACK, Recorded, without_unknowns

KEY = "_nixcache/push.pyz"


def state(**outputs: Any) -> Recorded:
    """Return a state with one object."""
    return Recorded({"urn": {"type": OBJECT, "outputs": {"objectName": KEY, **outputs}}})


def test_what_nobody_knows_of_a_stacks_outputs_is_left_out() -> None:
    unknown = pulumi.output.UNKNOWN
    outputs = {
        "publicKeys": ["a-1:x", unknown],
        "builders": {"two": {"accessKeyId": "two", "closures": unknown}},
        "retention": "For ever.",
        "readerCredentials": unknown,
    }
    urn = {"type": STACK, "outputs": outputs}
    other = {"type": BUCKET, "outputs": {"bucket": "nix-cache"}}
    known = without_unknowns({"urn": urn, "other": other})
    assert known["urn"]["outputs"] == {
        "builders": {"two": {"accessKeyId": "two"}},
        "retention": "For ever.",
    }
    assert known["other"] == other


def test_an_object_that_is_no_text_has_its_bytes() -> None:
    content = bytes(range(256))
    kept = state(contentBase64=base64.b64encode(content).decode())
    assert kept.binary_content(KEY) == content
    assert kept.binary_content("use.html") == b""


@pytest.mark.parametrize("recorded", [{}, {"contentBase64": None}, {"contentBase64": "eA=\n"}])
def test_an_object_without_readable_bytes_has_none(recorded: dict[str, Any]) -> None:
    assert state(**recorded).binary_content(KEY) == b""
