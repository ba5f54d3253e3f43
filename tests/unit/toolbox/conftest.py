"""A checkout that the toolbox's tests may do anything to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolbox import dev_stack, stacks, tools

SERVER = {"endpoint": "https://127.0.0.1:9000", "minioUser": "root", "builders": [{"name": "a"}]}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a dev stack that has been brought up, and an engine that does nothing."""
    (tmp_path / "Pulumi.yaml").write_text((tools.CHECKOUT / "Pulumi.yaml").read_text())
    home = tmp_path / ".dev"
    (home / "stacks" / "dev").mkdir(parents=True)
    (home / "stacks" / "dev" / "Pulumi.dev.yaml").write_text("encryptionsalt: v1\n")
    engine = tmp_path / "pulumi"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    (home / "machine.json").write_text(json.dumps({"settings": SERVER, "engine": str(engine)}))
    monkeypatch.setattr(tools, "CHECKOUT", tmp_path)
    for module in (stacks, dev_stack):
        monkeypatch.setattr(module, "HOME", home)
    monkeypatch.setattr(stacks, "MACHINE", home / "machine.json")
    monkeypatch.setattr(stacks, "COMMITTED", tmp_path / "Pulumi.dev.yaml")
    return tmp_path
