"""What is drift, and what only a server's way to say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.access import read_policy
from components.retention import expiration_rules
from operations.bucket import Bucket
from operations.deployed_stack import DeployedStack
from operations.drift import endangered, without_wrappings
from program.checks.bucket_settings import Lifecycle
from program.checks.recorded import LIFECYCLE, OBJECT, Recorded
from program.checks.s3_client import Server
from program.settings.stack import parse
from tests.unit.configuration import configuration

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


def deployed(bucket: str, days: int | None, *objects: str) -> Recorded:
    """Return a state in which entries expire after so many days, or never."""
    rules = [] if days is None else expiration_rules(days, 1)
    declared = [{"filter": rule.prefix, "expiration": f"{rule.days}d"} for rule in rules]
    resources: dict[str, Any] = {
        f"urn:{name}": {"type": OBJECT, "outputs": {"bucketName": bucket, "objectName": name}}
        for name in objects
    }
    if days is not None:
        outputs = {"bucket": bucket, "rules": declared}
        resources["urn:rules"] = {"type": LIFECYCLE, "outputs": outputs}
    return Recorded(resources)


@pytest.mark.parametrize("setting", [{}, {"expire": False}])
def test_what_is_astray_is_told_by_the_rules_of_the_last_deployment(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, object]
) -> None:
    monkeypatch.setattr(Bucket, "objects", lambda _: iter([("logo.png", 1)]))
    lifecycle = Lifecycle(expiration_rules(7, 1, versioned=True), ())
    monkeypatch.setattr(Server, "lifecycle", lambda *_: lifecycle)
    settings = parse(configuration(**setting))
    stack = DeployedStack("test", settings, settings.public_url, ())
    assert list(endangered(stack, deployed(settings.bucket, None))) == []
    (sentence,) = endangered(stack, deployed(settings.bucket, 7))
    assert "no files of a cache: 1 (logo.png); move them" in sentence


def test_what_the_stack_itself_keeps_is_not_astray_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["index.html", "nix-cache-info"]
    monkeypatch.setattr(Bucket, "objects", lambda _: ((name, 1) for name in names))
    lifecycle = Lifecycle(expiration_rules(7, 1, versioned=True), ())
    monkeypatch.setattr(Server, "lifecycle", lambda *_: lifecycle)
    settings = parse(configuration())
    state = deployed(settings.bucket, 7, "index.html")
    stack = DeployedStack("test", settings, settings.public_url, ())
    assert list(endangered(stack, state)) == []
    names.append("logo.png")
    (sentence,) = endangered(stack, state)
    assert "no files of a cache: 1 (logo.png); move them" in sentence
