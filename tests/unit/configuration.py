"""A stack's configuration as Pulumi hands it to the program, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from program.settings.reader import SettingError
from program.settings.stack import parse

PROJECT_ROOT = Path(__file__).parents[2]
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleE"


def schema() -> dict[str, dict[str, Any]]:
    """Return the settings that `Pulumi.yaml` declares."""
    project = yaml.safe_load((PROJECT_ROOT / "Pulumi.yaml").read_text())
    return dict(project["config"])


def as_text(value: object) -> str:
    """Return a configuration value as the engine passes it: text, or JSON for lists."""
    return value if isinstance(value, str) else json.dumps(value)


def configuration(**changes: object) -> dict[str, str]:
    """Return a complete configuration: the schema's defaults, the required ones, `changes`.

    A change to None leaves the setting out.
    """
    values: dict[str, object] = {
        name: declared["default"] for name, declared in schema().items() if "default" in declared
    }
    values |= {
        "endpoint": "https://s3.homelab.local",
        "minioUser": "pulumi",
        "minioPassword": "correct horse battery staple",
    }
    values |= changes
    return {name: as_text(value) for name, value in values.items() if value is not None}


def stack_file(name: str) -> Mapping[str, object]:
    """Return the settings of a committed `Pulumi.<stack>.yaml`, without the project's name."""
    stack = yaml.safe_load((PROJECT_ROOT / f"Pulumi.{name}.yaml").read_text())
    return {key.partition(":")[2]: value for key, value in stack["config"].items()}


def refusal(**changes: object) -> str:
    """Return what a configuration with `changes` is refused with."""
    with pytest.raises(SettingError) as error:
        parse(configuration(**changes))
    return str(error.value)
