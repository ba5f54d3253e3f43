"""What is drift, and what only a server's way to say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.access import read_policy
from components.retention import expiration_rules
from operations import drift
from operations.bucket import Bucket
from operations.deployed_stack import DeployedStack
from operations.drift import endangered, stumbled, without_wrappings
from program.checks import readable
from program.checks.bucket_settings import Lifecycle
from program.checks.recorded import BUCKET, LIFECYCLE, OBJECT, SERVER, STACK, Recorded
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


STACK_URN = "urn:pulumi:s::p::pulumi:pulumi:Stack::p-s"


def failing(urn: str) -> dict[str, Any]:
    """Return the report of a refresh that failed."""
    note = {"severity": "error", "urn": urn, "message": "error: bucket is too short"}
    return {"steps": [], "changeSummary": {"same": 1}, "diagnostics": [note]}


@pytest.mark.parametrize(
    ("urn", "of_a_resource"),
    [
        (URN, True),
        (STACK_URN, False),
        ("urn:pulumi:s::p::pulumi:providers:minio::minio", False),
        ("", False),
    ],
)
def test_a_refresh_that_the_program_ends_is_nothing_that_a_repair_puts_right(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    urn: str,
    of_a_resource: bool,
) -> None:
    assert stumbled(failing(urn)) is of_a_resource
    assert not stumbled(report(POLICY, OTHER))
    settings = parse(configuration())
    deployed_stack = DeployedStack("test", settings, settings.public_url, ())
    monkeypatch.setattr(drift, "read_deployed", lambda _: (deployed_stack, Recorded({})))
    monkeypatch.setattr(drift, "check_deployer", lambda _: None)
    monkeypatch.setattr(drift, "read_report", lambda *_: (failing(urn), False))
    monkeypatch.setattr(drift, "read_output", lambda *_: {})
    monkeypatch.setattr(readable, "finding", lambda _: None)
    assert drift.main(["--stack", "test"]) == (1 if of_a_resource else 2)
    said = capsys.readouterr()
    assert "error: bucket is too short" in said.out
    assert ("make repair STACK=test puts it right" in said.out) is of_a_resource
    assert ("it cannot be told what differs" in said.err) is not of_a_resource


@pytest.mark.parametrize("by_deployment", [True, False])
def test_a_push_of_the_deployment_is_advised_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_deployment: bool
) -> None:
    settings = parse(configuration())
    access = {"accessKeyId": "nix-cache-a", "secretAccessKey": "a secret"}
    builders = {"a": {**access, "lastPush": "pushed 1"} if by_deployment else access}
    state = Recorded({"urn:stack": {"type": STACK, "outputs": {"builders": builders}}})
    deployed_stack = DeployedStack("test", settings, settings.public_url, ())
    monkeypatch.setattr(drift, "read_deployed", lambda _: (deployed_stack, state))
    monkeypatch.setattr(drift, "check_deployer", lambda _: None)
    monkeypatch.setattr(drift, "read_report", lambda *_: ({"steps": []}, True))
    monkeypatch.setattr(drift, "read_output", lambda *_: {})
    monkeypatch.setattr(drift, "lost_closures", lambda _: ["a closure is lost"])
    assert drift.main(["--stack", "test"]) == 1
    said = capsys.readouterr().out
    assert "- a closure is lost\n" in said
    assert ("make push STACK=test pushes again" in said) is by_deployment
    assert ("the next push of one that has it" in said) is not by_deployment


def test_another_server_than_that_of_the_last_deployment_has_not_drifted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parse(configuration())
    before = {"minioServer": "before:9000", "minioSsl": "true"}
    state = {
        "urn:server": {"type": SERVER, "outputs": before},
        "urn:bucket": {"type": BUCKET, "outputs": {"bucket": "nix-cache"}},
    }
    deployed_stack = DeployedStack("test", settings, settings.public_url, ())
    monkeypatch.setattr(drift, "read_deployed", lambda _: (deployed_stack, Recorded(state)))
    assert drift.main(["--stack", "test"]) == 2
    said = capsys.readouterr()
    assert "the last deployment was to https://before:9000: nothing was compared" in said.err
    assert "repair" not in said.out + said.err
