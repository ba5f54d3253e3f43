"""The drop-ins' arguments against the official schemas; these are in `data/schemas.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.plugins.contract import DATA
from toolbox.plugins import command_provider, minio_provider
from toolbox.plugins.planned_state import Attribute

SCHEMAS: dict[str, Any] = json.loads((DATA / "schemas.json").read_text())
KINDS = {"string": "string", "boolean": "boolean", "number": "number", "integer": "number"}
KINDS |= {"object": "map", "array": "list"}
COMMANDS = {
    "command:local:Command": command_provider.LOCAL,
    "command:remote:Command": command_provider.REMOTE,
}
COMMAND_KINDS = {
    "string": "string",
    "boolean": "bool",
    "number": "float64",
    "integer": "int",
}
NOT_CARRIED = {"assetPaths", "archivePaths"}


@pytest.mark.parametrize("token", minio_provider.TYPES)
def test_a_minio_type_has_the_official_properties(token: str) -> None:
    official = SCHEMAS["resources"][token]
    _compare(minio_provider.TYPES[token].schema, official["inputs"], official["outputs"])


def _compare(
    schema: Mapping[str, Attribute], inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> None:
    assert schema.keys() == outputs.keys()
    assert {name for name in schema if not schema[name].output} == inputs.keys()
    for name, attribute in schema.items():
        official = inputs.get(name) or outputs[name]
        assert attribute.kind == KINDS[official["type"]], name
        assert attribute.replaces == official.get("replaces", False), name
        assert attribute.secret == official.get("secret", False), name
        if official.get("required") and not attribute.output:
            assert attribute.required, name
        if attribute.items:
            items = dict(official["items"])
            arguments = {key: items[key] for key in items if key != "status"}
            _compare(attribute.items, arguments, items)


@pytest.mark.parametrize("token", minio_provider.TYPES)
def test_a_minio_type_demands_no_more_than_a_name_beyond_the_official_schema(token: str) -> None:
    official = SCHEMAS["resources"][token]["inputs"]
    schema = minio_provider.TYPES[token].schema
    demanded = {name for name in schema if schema[name].required}
    assert demanded - {name for name in official if official[name].get("required")} <= {
        "bucket",
        "name",
    }


def test_the_minio_provider_has_the_official_settings_but_for_the_outdated_ones() -> None:
    outdated = {"minioAccessKey", "minioSecretKey", "minioApiVersion"}
    assert minio_provider.SETTINGS.keys() == set(SCHEMAS["minio settings"]) - outdated


@pytest.mark.parametrize("token", COMMANDS)
def test_a_command_has_the_official_arguments(token: str) -> None:
    official = SCHEMAS["resources"][token]["inputs"]
    arguments = COMMANDS[token]
    assert arguments.keys() == official.keys() - NOT_CARRIED
    for name, kind in arguments.items():
        expected = COMMAND_KINDS.get(official[name]["type"])
        assert expected in (kind, None), name
    replacing = {name for name in arguments if official[name].get("replaces")}
    assert replacing == {"triggers"}


@pytest.mark.parametrize("kind", ["Connection", "ProxyConnection"])
def test_a_connection_has_the_official_fields_defaults_and_secrets(kind: str) -> None:
    official = dict(SCHEMAS["command types"][kind])
    official.pop("proxy", None)
    assert official.keys() == command_provider.CONNECTION.keys()
    assert {
        name: official[name]["default"] for name in official if "default" in official[name]
    } == command_provider.CONNECTION_DEFAULTS
    assert set(command_provider.CONNECTION_SECRETS) == {
        name for name in official if official[name].get("secret")
    }
    for name, field_kind in command_provider.CONNECTION.items():
        assert field_kind == COMMAND_KINDS[official[name]["type"]], name


def test_a_remote_commands_connection_is_secret() -> None:
    inputs = SCHEMAS["resources"]["command:remote:Command"]["inputs"]
    assert {name for name in inputs if inputs[name].get("secret")} == {"connection"}


def test_logging_knows_the_official_words() -> None:
    assert {word for word in command_provider.LOGGED if word} == set(
        SCHEMAS["command types"]["Logging"]
    )
