"""What is drift, and what only a server's way to say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.access import read_policy
from operations.drift import without_wrappings

POLICY = read_policy("nix-cache", "reader")
OTHER = read_policy("nix-cache", "somebody")
URN = "urn:pulumi:s::p::minio:index/iamPolicy:IamPolicy::nix-cache-write"


def report(before: str, after: str, urn: str = URN) -> dict[str, Any]:
    return {
        "steps": [
            {
                "op": "update",
                "urn": urn,
                "oldState": {"inputs": {"policy": before}},
                "newState": {"inputs": {"policy": after}},
            },
            {"op": "same", "urn": "urn:pulumi:s::p::pulumi:pulumi:Stack::p-s"},
        ],
        "changeSummary": {"update": 1, "same": 1},
    }


@pytest.mark.parametrize("name", ["policy", "Policy"])
def test_a_policy_that_is_only_wrapped_has_not_drifted(name: str) -> None:
    wrapped = json.dumps({"policy_name": "nix-cache-write", name: json.loads(POLICY)})
    seen = without_wrappings(report(POLICY, wrapped))
    assert seen["changeSummary"] == {"same": 2}
    assert [step["op"] for step in seen["steps"]] == ["same", "same"]


@pytest.mark.parametrize(
    ("after", "urn"),
    [
        (OTHER, URN),
        (json.dumps({"policy": json.loads(OTHER)}), URN),
        (json.dumps({"policy": json.loads(POLICY)}), URN.replace("iamPolicy:IamPolicy", "x:X")),
    ],
)
def test_any_other_difference_is_drift(after: str, urn: str) -> None:
    seen = without_wrappings(report(POLICY, after, urn))
    assert seen["changeSummary"] == {"update": 1, "same": 1}
    assert seen["steps"][0]["op"] == "update"
