"""The provider of what runs on builders, and when the engine is told of it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Any

import pulumi
import pytest
from pulumi.runtime.mocks import MockMonitor, MockResourceArgs
from pulumi.runtime.proto.resource_pb2 import ResourceInvokeResponse

from program import commands
from program.declaration import declare_signing_keys
from program.settings.signing_keys import SigningKeys
from tests.unit.recording_mocks import settled, use_recording_mocks


def declare_a_key() -> None:
    declare_signing_keys(SigningKeys(("cache.test-1",), {}))
    commands.let_providers_start()


@pytest.mark.parametrize("preview", [True, False])
@pytest.mark.parametrize(
    ("declare", "kind"),
    [(declare_a_key, "SigningKey"), (commands.declare_early, "pulumi:providers:command")],
)
def test_a_preview_sends_what_is_declared_before_it_goes_on_and_an_update_does_not(
    monkeypatch: pytest.MonkeyPatch, preview: bool, declare: Callable[[], object], kind: str
) -> None:
    mocks = use_recording_mocks(preview)
    arrived, sent = Event(), []
    register = mocks.new_resource

    def registered(args: MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        if kind in args.typ:
            arrived.set()
        return register(args)

    # An engine that answers once it has been told of it, or never will be.
    def answer(*_: object) -> ResourceInvokeResponse:
        arrived.wait(10)
        return ResourceInvokeResponse()

    monkeypatch.setattr(mocks, "new_resource", registered)
    monkeypatch.setattr(MockMonitor, "Invoke", answer)

    def program() -> pulumi.Output[None]:
        declare()
        sent.append(arrived.is_set())
        return pulumi.Output.from_input(None)

    settled(program)
    assert sent == [preview]


def test_an_update_declares_the_provider_once_all_is_asked() -> None:
    mocks = use_recording_mocks()
    settled(lambda: pulumi.Output.from_input(commands.declare_early()))
    assert mocks.types() == []
