"""What ends a push from outside leaves nothing behind, wherever it begins."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from components.push_program import bootstrap_text
from tests.unit.configuration import PROJECT_ROOT

LIMIT = "print(*resource.getrlimit(resource.RLIMIT_CORE))"

BEGINNINGS = {
    "push": f"from push.cli import main\nmain(['--config', '-'], lambda: {LIMIT} or '')",
    "bootstrap": (
        f"{bootstrap_text().partition('if __name__')[0]}\n"
        f"sys.stdin = type('In', (), {{'read': lambda _: {LIMIT} or ''}})()\n"
        "_codes = lambda *_: 1 / 0\n_run('sum', [])"
    ),
    "a CI job": (
        "from push.ci_job import main\n"
        f"main(['start'], type('Environment', (dict,), {{'get': lambda *_: {LIMIT} or ''}})())"
    ),
    "an operation": f"from operations.command_line import run\nrun(lambda: {LIMIT} or 0)",
}
"""Programs that tell the limit at the moment when they are first given something secret."""


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize(("given", "left"), [((1 << 30, resource.RLIM_INFINITY), 1), ((0, 0), 0)])
def test_what_is_told_a_secret_leaves_no_core(
    beginning: str, given: tuple[int, int], left: int
) -> None:
    """Less than any core has, and for Linux more than none: a program would collect that."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("this process may not raise its own limit")
    import_, _, program = BEGINNINGS[beginning].partition("\n")
    # What comes from the future has to be the first.
    script = f"{import_}\nimport resource, sys\n"
    script += f"resource.setrlimit(resource.RLIMIT_CORE, {given})\n{program}"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.splitlines()[:1] == [f"{left} {left}"], ran.stderr
