"""What actionlint and zizmor cannot know of the workflows: what has to come before a deployment."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from program.checks.key_rotation import SIGNED_BY
from tests.unit.configuration import PROJECT_ROOT

CHECKS = "./.github/workflows/check.yml"
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((PROJECT_ROOT / ".github" / "workflows").glob("*.yml"))
}


def before(jobs: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yield every job that has to succeed before the job `name` starts."""
    needs = jobs[name].get("needs", [])
    for needed in [needs] if isinstance(needs, str) else needs:
        yield jobs[needed]
        yield from before(jobs, needed)


def deployments() -> Iterator[tuple[str, str]]:
    """Yield workflow and name of each job that changes a stack."""
    for workflow, text in WORKFLOWS.items():
        for name, job in text["jobs"].items():
            if any(step.get("with", {}).get("command") == "up" for step in job.get("steps", [])):
                yield workflow, name


@pytest.mark.parametrize(("workflow", "name"), list(deployments()))
def test_nothing_is_deployed_before_its_commit_has_passed_the_checks(
    workflow: str, name: str
) -> None:
    jobs = WORKFLOWS[workflow]["jobs"]
    # A condition of its own would let the job start after checks that failed or were skipped.
    assert "if" not in jobs[name]
    assert [job for job in before(jobs, name) if job.get("uses") == CHECKS and "if" not in job]


def test_there_is_a_deployment() -> None:
    assert list(deployments()) == [("deploy.yml", "up")]


def test_what_may_be_deployed_is_tested_with_the_real_parts() -> None:
    # PyYAML reads the key `on` as true.
    assert WORKFLOWS["deploy.yml"][True] == {"push": {"branches": ["main"], "tags": ["v*"]}}
    checks = WORKFLOWS["check.yml"]["jobs"]
    assert checks["test"]["if"] == (
        "github.event_name == 'push' && "
        "(github.ref == 'refs/heads/main' || github.ref_type == 'tag')"
    )
    assert "if" not in checks["check"]


def test_the_action_has_the_inputs_that_its_page_lists() -> None:
    action = yaml.safe_load((PROJECT_ROOT / "action.yml").read_text(encoding="utf-8"))
    page = (PROJECT_ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    rows = []
    for name, given in action["inputs"].items():
        default = f"`{given['default']}`" if given["default"] else "none"
        rows.append(f"| `{name}` | {default} | {given['description']} |")
    assert (
        page.partition("| input | default | |\n")[2].partition("\n\n")[0].splitlines()[1:] == rows
    )


def test_the_page_hands_out_no_other_key_than_the_jobs_own() -> None:
    """Where builders have a key each, who has another's may sign for that one's clients."""
    page = (PROJECT_ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    console = page.partition("```console\n")[2].partition("```")[0]
    said = dict(
        line.removeprefix("$ pulumi stack output ").split(" ", 1) for line in console.splitlines()
    )
    assert SIGNED_BY in said["builders"]
    assert "of that name, and no other" in said["signingKeyBackup"]


def test_no_input_of_the_action_becomes_the_text_of_a_script() -> None:
    action = yaml.safe_load((PROJECT_ROOT / "action.yml").read_text(encoding="utf-8"))
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]


@pytest.mark.parametrize(
    ("pushed", "fail", "code"),
    [(0, "false", 0), (0, "true", 0), (1, "false", 0), (1, "true", 1), (1, "yes", 1), (0, "", 1)],
)
def test_a_job_fails_with_a_push_where_the_action_is_told_to_or_told_nonsense(
    tmp_path: Path, pushed: int, fail: str, code: int
) -> None:
    action = yaml.safe_load((PROJECT_ROOT / "action.yml").read_text(encoding="utf-8"))
    (step,) = [one for one in action["runs"]["steps"] if one["if"] == "inputs.do == 'finish'"]
    (tmp_path / "python3").write_text(f'#!/bin/sh\nprintf "<%s>" "$@"\nexit {pushed}\n')
    (tmp_path / "python3").chmod(0o755)
    paths = "\nresult\n  \n-x a*\n'$(id)\\\n\t blank \r\n\r\n"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PATHS": paths, "FAIL": fail},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.startswith("<-m><push.ci_job><finish><result><-x a*><'$(id)\\><blank>")
    assert done.stdout.count("<") == 7
    assert ("::error" in done.stdout) == (fail not in ("true", "false"))
    # What the bash of macOS does not know.
    assert "mapfile" not in step["run"]


@pytest.mark.parametrize(
    ("builder", "secrets", "warns"),
    [("ci", "", True), ("ci", "a secret", False), ("", "", False)],
)
def test_a_job_without_the_secrets_of_its_builder_is_warned_where_its_forge_shows_it(
    tmp_path: Path, builder: str, secrets: str, warns: bool
) -> None:
    action = yaml.safe_load((PROJECT_ROOT / "action.yml").read_text(encoding="utf-8"))
    (step,) = [one for one in action["runs"]["steps"] if one["if"] == "inputs.do == 'start'"]
    (tmp_path / "python3").write_text('#!/bin/sh\nprintf "<%s>" "$@"\nexit 3\n')
    (tmp_path / "python3").chmod(0o755)
    given = dict.fromkeys(step["env"], "")
    given |= {"NIX_BINARY_CACHE_BUILDER": builder, "NIX_BINARY_CACHE_SIGNING_KEY": secrets}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout.endswith("<-m><push.ci_job><start>")
    assert ("::warning title=Nix binary cache::no secrets" in done.stdout) == warns


def test_whatever_the_action_is_to_do_one_of_its_steps_runs() -> None:
    action = yaml.safe_load((PROJECT_ROOT / "action.yml").read_text(encoding="utf-8"))
    conditions = [step["if"] for step in action["runs"]["steps"]]
    assert conditions == [
        "inputs.do != 'start' && inputs.do != 'finish'",
        "inputs.do == 'start'",
        "inputs.do == 'finish'",
    ]
