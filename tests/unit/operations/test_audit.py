"""The audit as a command: whatever keeps it from running is named for what it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from operations import audit
from operations.audit import audited, cache_of
from operations.cache_audit import Finding, Report
from operations.deployed_stack import DeployedStack
from operations.pulumi_cli import OperationError
from program.checks.recorded import LIFECYCLE, STACK, Recorded
from program.settings.stack import parse
from tests.unit.configuration import configuration
from toolbox.certificates import make_authority

NOWHERE = "http://127.0.0.1:1"


def stack(**changes: object) -> DeployedStack:
    settings = parse(configuration(**{"endpoint": NOWHERE, **changes}))
    return DeployedStack("test", settings, settings.public_url, ())


def test_a_server_that_does_not_answer_is_told_as_such() -> None:
    with pytest.raises(OperationError, match=rf"{NOWHERE}/nix-cache: no S3 server answers there"):
        audited(stack(), Recorded({}), sample=0)


def test_a_damaged_ca_file_is_told_as_such_and_not_as_the_reports_file(tmp_path: Path) -> None:
    file = make_authority(tmp_path).ca_file
    damaged = stack(endpoint="https://127.0.0.1:1", caCertificateFile=str(file))
    file.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    with pytest.raises(OperationError, match=rf"caCertificateFile is {file}: holds a damaged"):
        audited(damaged, Recorded({}), sample=0)


def audited_as(monkeypatch: pytest.MonkeyPatch) -> Report:
    """Let every audit come to the report that is returned."""
    report = Report("test", NOWHERE)
    monkeypatch.setattr(audit, "read_deployed", lambda _: (stack(), Recorded({})))
    monkeypatch.setattr(audit, "audited", lambda *_: report)
    return report


def test_a_report_for_machines_is_printed_alone_in_place_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    report = audited_as(monkeypatch)
    assert audit.main(["--stack", "test", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == asdict(report)
    assert list(tmp_path.iterdir()) == []


def test_what_was_found_is_told_before_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = audited_as(monkeypatch)
    assert audit.main(["--stack", "test", "--json", str(tmp_path / "nowhere" / "report.json")]) == 2
    said = capsys.readouterr()
    assert said.out == f"{audit.summary(report)}\n"
    assert said.err.startswith(f"error: {tmp_path}/nowhere/report.json cannot be written: No such")


@pytest.mark.parametrize("by_deployment", [True, False])
def test_a_push_of_the_deployment_is_advised_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_deployment: bool
) -> None:
    report = audited_as(monkeypatch)
    report.findings.append(Finding("unsigned", f"{'a' * 32}.narinfo", "no trusted key signed it"))
    access = {"accessKeyId": "nix-cache-a", "secretAccessKey": "a secret"}
    builders = {"a": {**access, "lastPush": "pushed 1"} if by_deployment else access}
    state = Recorded({"urn:stack": {"type": STACK, "outputs": {"builders": builders}}})
    monkeypatch.setattr(audit, "read_deployed", lambda _: (stack(), state))
    assert audit.main(["--stack", "test"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "make push STACK=test pushes again what its builders have"
        if by_deployment
        else "no builder pushes by the deployment: the next push of one that has it, and signs "
        "with a trusted key, pushes it again"
    )


@pytest.mark.parametrize("setting", [{}, {"expire": False}])
def test_what_expires_is_what_the_last_deployment_lets_expire(setting: dict[str, object]) -> None:
    changed = stack(**setting)
    rules = [{"filter": "nar/", "expiration": "8d"}]
    outputs = {"bucket": changed.settings.bucket, "rules": rules}
    state = Recorded({"urn:rules": {"type": LIFECYCLE, "outputs": outputs}})
    assert list(cache_of(changed, state).expiring) == ["nar/"]
    assert list(cache_of(changed, Recorded({})).expiring) == []
