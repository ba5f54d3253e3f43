"""The vault of the tests' stacks keeps their secrets as a passphrase does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.system.stack import Stack

pytestmark = pytest.mark.system

SECRET = "a-secret-that-nobody-reads"


@pytest.fixture(params=["a passphrase for tests", None], ids=["passphrase", "vault"])
def stack(engine: Mapping[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Stack:
    made = Stack(engine, tmp_path / "stack", passphrase=request.param)
    made.set(minioPassword=SECRET)
    return made


def test_a_secret_is_read_by_the_engine_and_in_no_file(stack: Stack) -> None:
    shown = stack.run("config", "--json", "--show-secrets", "-s", stack.name).succeeded().output
    assert json.loads(shown)["nixcache:minioPassword"] == {"value": SECRET, "secret": True}
    files = [file for file in stack.project.parent.rglob("*") if file.is_file()]
    assert stack.settings_file in files
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_what_another_key_has_encrypted_is_refused(stack: Stack) -> None:
    settings = yaml.safe_load(stack.settings_file.read_text())
    (key,) = {"encryptionsalt", "encryptedkey"} & settings.keys()
    other = Stack(
        stack.environment, stack.project.parent / "other", "other", passphrase="another passphrase"
    )
    others = yaml.safe_load(other.settings_file.read_text())
    settings[key] = others.get(key, "dmF1bHQ6djE6" + "A" * 80)
    stack.settings_file.write_text(yaml.safe_dump(settings))
    assert stack.run("config", "get", "minioPassword", "-s", stack.name).code != 0
