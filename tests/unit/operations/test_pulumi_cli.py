"""The CLI as operations run it: what it answers, and every way in which it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from operations import audit, drift, preview_markdown
from operations.pulumi_cli import OperationError, read_output, read_report

CHECKOUT = Path(__file__).parents[3]
OPERATIONS = [audit.main, drift.main, preview_markdown.main]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a CLI that does as a shell script says in the place of Pulumi's."""

    def put(script: str) -> Path:
        command = tmp_path / "pulumi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PULUMI_COMMAND", str(command))
        return command

    return put


@pytest.mark.parametrize("operation", OPERATIONS)
def test_without_a_cli_every_operation_says_how_to_get_one(
    operation: Callable[[list[str]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("PULUMI_COMMAND", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert operation(["--stack", "homelab"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "error: there is no pulumi on PATH; install the Pulumi CLI, or name it in PULUMI_COMMAND\n"
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_cli_that_cannot_be_run_is_named(
    operation: Callable[[list[str]], int],
    cli: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = cli("")
    command.chmod(0o644)
    assert operation(["--stack", "homelab"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {command} cannot be run (Permission denied)")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_the_cli_refuses_is_told_in_its_words(
    operation: Callable[[list[str]], int],
    cli: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli('echo "error: the backend is on fire" >&2; exit 255')
    assert operation(["--stack", "homelab"]) == 2
    assert capsys.readouterr().err.endswith("failed: the backend is on fire\n")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stack_that_is_not_there_is_one_sentence(
    operation: Callable[[list[str]], int],
    cli: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli("echo \"error: no stack named 'nobody' found\" >&2; exit 255")
    assert operation(["--stack", "nobody"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no stack nobody; write the name of one that is there, or make it first: "
        "make stack NAME=nobody\n"
    )


def test_the_cli_is_asked_for_json_and_for_no_answer_of_a_person(
    cli: Callable[[str], Path],
) -> None:
    cli('printf \'["%s"]\' "$*"')
    (asked,) = read_output("config", "--stack", "a b")
    assert asked == "--non-interactive --color=never config --stack a b --json"


def test_a_preview_that_failed_half_way_is_still_a_report(cli: Callable[[str], Path]) -> None:
    steps: dict[str, list[object]] = {"steps": []}
    cli(f"echo '{json.dumps(steps)}'; exit 1")
    assert read_report("preview") == (steps, False)


@pytest.mark.parametrize("printed", ["", "[]", "{}", "Please choose a stack"])
def test_what_is_no_report_is_refused(printed: str, cli: Callable[[str], Path]) -> None:
    cli(f"echo '{printed}'; echo 'error: no backend' >&2; exit 1")
    with pytest.raises(OperationError, match=r"\Apulumi preview failed: no backend\Z"):
        read_report("preview")


def test_the_cli_comes_to_its_end_where_nobody_reads_what_it_says(
    cli: Callable[[str], Path], tmp_path: Path
) -> None:
    # As much as no pipe takes, on both; a shell that is ended by it does not come to the last line.
    lines = "i=0; while [ $i -lt 4000 ]; do echo a line of a deployment; echo and one >&2; "
    cli(f"{lines} i=$((i + 1)); done; touch {tmp_path}/ended")
    code = "import sys; from operations.pulumi_cli import on_terminal; sys.exit(on_terminal())"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as operation:
        assert operation.stderr is not None
        assert operation.stderr.readline()
        operation.stderr.close()
        operation.wait()
    assert (tmp_path / "ended").exists()
