"""Pulumi's property values: from protobuf structs to plain Python and back.

A secret is a `Secret`, a value not known yet is `UNKNOWN`; the rest is None, bool, int or float,
str, list and dict. Assets, archives and resource references stay the dicts they travel as.

Source of fact: `sdk/go/common/resource/plugin/rpc.go` and `sdk/go/common/resource/sig/sig.go`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2

SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET_SIGNATURE = "1b47061264138c4ac30d75fd1eb44270"

UNKNOWN_STRING = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
UNKNOWN_STRINGS = {
    UNKNOWN_STRING,
    "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
    "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
    "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
    "030794c1-ac77-496b-92df-f27374a8bd58",
    "e48ece36-62e2-4504-bad9-02848725956a",
    "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
}
"""What stands for an unknown string, bool, number, array, asset, archive and object."""

Properties = dict[str, Any]
"""Property name → value, as this module decodes them."""


class Unknown:
    """The type of `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()
"""A value that only the update itself will bring to light."""


@dataclass(frozen=True)
class Secret:
    """A value that the engine encrypts and never shows."""

    value: Any

    def __repr__(self) -> str:
        return "Secret(…)"


def decode(value: Any) -> Any:
    """Return the Python value of one protobuf `Value`."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        fields = decode_properties(value.struct_value)
        if fields.get(SIGNATURE) == SECRET_SIGNATURE:
            return Secret(fields["value"])
        return fields
    if kind == "list_value":
        return [decode(item) for item in value.list_value.values]
    if kind == "string_value":
        return UNKNOWN if value.string_value in UNKNOWN_STRINGS else value.string_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    return value.bool_value if kind == "bool_value" else None


def decode_properties(struct: Any) -> Properties:
    """Return the Python values of a protobuf `Struct`."""
    return {name: decode(value) for name, value in struct.fields.items()}


def encode(value: Any) -> Any:
    """Return the protobuf `Value` of a Python value."""
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if value is UNKNOWN:
        return struct_pb2.Value(string_value=UNKNOWN_STRING)
    if isinstance(value, Secret):
        return encode({SIGNATURE: SECRET_SIGNATURE, "value": value.value})
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, (int, float)):
        return struct_pb2.Value(number_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, Mapping):
        return struct_pb2.Value(struct_value=encode_properties(value))
    return struct_pb2.Value(
        list_value=struct_pb2.ListValue(values=[encode(item) for item in value])
    )


def encode_properties(properties: Mapping[str, Any]) -> Any:
    """Return the protobuf `Struct` of Python values."""
    return struct_pb2.Struct(fields={name: encode(value) for name, value in properties.items()})


def plain(value: Any) -> Any:
    """`value` with every secret in it revealed."""
    if isinstance(value, Secret):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def has_unknown(value: Any) -> bool:
    """Whether `value` is unknown, or anything in it."""
    if isinstance(value, Secret):
        return has_unknown(value.value)
    if isinstance(value, Mapping):
        return any(has_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(has_unknown(item) for item in value)
    return value is UNKNOWN
