"""A state outlives the Python that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import StackFactory, server_settings
from tests.system.python_versions import interpreter, virtual_environment
from tests.system.stack import Stack
from tests.system.test_keys import KEY_TYPE, backup
from toolbox.minio_server import MinioServer

pytestmark = pytest.mark.system

OLDER, NEWER = "3.11", "3.13"
"""The Pythons of Debian 12 and 13."""


@pytest.fixture(scope="module")
def environments() -> dict[str, Path]:
    """The program's virtual environment for both versions."""
    pythons = {version: interpreter(version) for version in (OLDER, NEWER)}
    missing = [version for version, python in pythons.items() if python is None]
    if missing:
        pytest.skip(f"there is no Python {' and no '.join(missing)} on PATH or in pyenv")
    return {
        version: virtual_environment(python, version)
        for version, python in pythons.items()
        if python is not None
    }


def run_with(stack: Stack, environment: Path) -> None:
    """Make `environment` the one that runs the stack's program and its dynamic providers."""
    link = stack.project / ".venv"
    link.unlink()
    link.symlink_to(environment)


@pytest.mark.parametrize(("made", "found"), [(OLDER, NEWER), (NEWER, OLDER)])
def test_a_key_made_under_one_python_is_refreshed_kept_and_destroyed_under_another(
    new_stack: StackFactory,
    minio: MinioServer,
    environments: dict[str, Path],
    made: str,
    found: str,
) -> None:
    stack = new_stack(**server_settings(minio), bucket=f"made-under-{made.replace('.', '-')}")
    run_with(stack, environments[made])
    stack.up().succeeded()
    key = backup(stack)

    run_with(stack, environments[found])
    stack.refresh().succeeded()
    assert stack.changes() == {}
    stack.up().succeeded()
    assert backup(stack) == key
    stack.destroy().succeeded()
    assert not [resource for resource in stack.resources() if resource["type"] == KEY_TYPE]
