"""A stand-in for the engine that remembers what a program registers with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pulumi
from pulumi.runtime import MockCallArgs, MockResourceArgs, Mocks

from program.checks.recorded import read as read_state

SECRET = "1b47061264138c4ac30d75fd1eb44270"
"""What marks a value as a secret on the way to the engine: the SDK's `_special_secret_sig`."""


def secret(value: str) -> dict[str, str]:
    """Return a value as the engine tells the SDK that it is secret (`_special_sig_key`)."""
    return {"4dabf18193072939515e22adb298388d": SECRET, "value": value}


@dataclass
class RecordingMocks(Mocks):
    """Stores (type, name, inputs) of every resource, in the order of registration."""

    resources: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        """Record a resource, and answer with its inputs and what a server would add."""
        self.resources.append((args.typ, args.name, args.inputs))
        computed: dict[str, dict[str, Any]] = {
            "minio:index/iamUser:IamUser": {"secret": secret("made-by-the-server")},
            "pulumi-python:dynamic/nixcache:SigningKey": {
                "public_key": f"{args.name}:public",
                "secret_key": secret(f"{args.name}:secret"),
            },
            "command:remote:Command": {"stdout": "pushed 1 path", "stderr": ""},
            "command:local:Command": {"stdout": "pushed 1 path", "stderr": ""},
        }
        return f"{args.name}-id", {**args.inputs, **computed.get(args.typ, {})}

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Answer the one call the program makes: this stack has no resources yet."""
        assert args.token == "pulumi:pulumi:readStackResourceOutputs", args.token
        return {"outputs": {}}, []

    def inputs(self, type_: str) -> dict[str, Any]:
        """Return the inputs of the one resource of a type."""
        (found,) = [inputs for typ, _, inputs in self.resources if typ == type_]
        return found

    def types(self) -> list[str]:
        """Return the types that were registered, components included."""
        return [typ for typ, _, _ in self.resources]


def use_recording_mocks(preview: bool = False) -> RecordingMocks:
    """Make fresh mocks the engine of the resources declared from now on."""
    mocks = RecordingMocks()
    read_state.cache_clear()
    pulumi.runtime.set_mocks(mocks, project="nixcache", stack="test", preview=preview)
    return mocks


def settled(declare: Callable[[], pulumi.Output[Any]]) -> None:
    """Run `declare` as a program, and wait until all it declares is registered."""
    run: Callable[[], None] = pulumi.runtime.test(declare)  # type: ignore[no-untyped-call]
    run()
