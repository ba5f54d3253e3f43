"""A provider plugin in a process of its own, spoken to as the engine does.

Source of fact: `sdk/proto/provider.proto` and what the engine 3.274.1 sends, observed with
`PULUMI_DEBUG_GRPC`: Handshake, which may be unimplemented, GetPluginInfo, CheckConfig, Configure,
then Check, Diff, Create, Read, Update and Delete with properties as protobuf structs, secrets and
unknowns among them.
"""

from __future__ import annotations

import os
import queue
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    provider_pb2,
    provider_pb2_grpc,
    resource_pb2_grpc,
    status_pb2,
)

from toolbox.plugins.plugin_server import CHANNEL_OPTIONS
from toolbox.plugins.property_values import (
    SIGNATURE,
    UNKNOWN,
    Properties,
    Secret,
    decode_properties,
    encode_properties,
    plain,
)

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where `python -m toolbox.plugins.…` works."""

CALL_LIMIT = 120.0
"""Seconds that one call may take before the test gives up on it."""


class RefusedError(Exception):
    """A call that the plugin answered with an error."""

    def __init__(self, error: grpc.RpcError) -> None:
        super().__init__(error.details())
        self.message: str = error.details() or ""
        self.status: str = error.code().name
        self.partial: tuple[str, Properties] | None = None
        """Id and outputs of a resource that was made all the same."""
        metadata: Any = error.trailing_metadata() or ()
        for key, value in metadata:
            if key == "grpc-status-details-bin":
                for detail in status_pb2.Status.FromString(value).details:
                    partial = provider_pb2.ErrorResourceInitFailed()
                    if detail.Unpack(partial):
                        self.partial = (partial.id, decode_properties(partial.properties))


class EngineInTest(engine_pb2_grpc.EngineServicer):
    """The engine's side: takes log lines."""

    def __init__(self, monitor: resource_pb2_grpc.ResourceMonitorServicer | None = None) -> None:
        """With `monitor` it takes resources too."""
        self.lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(8))
        engine_pb2_grpc.add_EngineServicer_to_server(self, self._server)
        if monitor:
            resource_pb2_grpc.add_ResourceMonitorServicer_to_server(monitor, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Log(self, request: Any, _context: grpc.ServicerContext) -> Empty:  # noqa: N802
        """Keep (severity, text)."""
        self.lines.put((engine_pb2.LogSeverity.Name(request.severity), request.message))
        return Empty()

    def taken(self) -> list[tuple[str, str]]:
        """The lines logged since the last call."""
        lines = []
        while not self.lines.empty():
            lines.append(self.lines.get())
        return lines

    def stop(self) -> None:
        """Answer no more."""
        self._server.stop(grace=None)


@dataclass
class Checked:
    """Answer to Check."""

    inputs: Properties
    failures: list[tuple[str, str]]
    """(property, reason)"""


@dataclass
class Difference:
    """Answer to Diff."""

    changes: str
    """DIFF_NONE, DIFF_SOME or DIFF_UNKNOWN"""
    replaces: list[str]
    delete_before_replace: bool
    details: dict[str, str] = field(default_factory=dict)
    """property path → ADD, DELETE_REPLACE, …"""


class PluginProcess:
    """One running provider plugin; a context manager that ends it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """`command` starts the plugin; `environment` is all that it sees of ours."""
        self.engine = EngineInTest()
        self._process = subprocess.Popen(
            [*command, self.engine.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=CHECKOUT,
            env=dict(os.environ if environment is None else environment),
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().decode().strip()
        if not port:
            raise AssertionError(f"{command[0]} printed no port")
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)
        self._stub = provider_pb2_grpc.ResourceProviderStub(self._channel)
        self._sees_secrets = True

    def __enter__(self) -> PluginProcess:  # noqa: PYI034 -- Self is newer than Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()
        end(self._process)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.engine.stop()

    def wait(self, seconds: float) -> int:
        """The exit code of a plugin that ends by itself."""
        return self._process.wait(seconds)

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=CALL_LIMIT)
        except grpc.RpcError as error:
            raise RefusedError(error) from None

    def version(self) -> str:
        """The plugin's own version."""
        return str(self._call("GetPluginInfo", Empty()).version)

    def configure(self, package: str, settings: Properties) -> Checked:
        """CheckConfig, and Configure where that found no failure."""
        urn = f"urn:pulumi:test::test::pulumi:providers:{package}::default"
        answer = self._call(
            "CheckConfig",
            provider_pb2.CheckRequest(urn=urn, news=encode_properties(settings), name="default"),
        )
        checked = _checked(answer)
        if not checked.failures:
            plain = {key: value for key, value in settings.items() if isinstance(value, str)}
            accepted = self._call(
                "Configure",
                provider_pb2.ConfigureRequest(
                    urn=urn,
                    id="0",
                    variables={f"{package}:config:{key}": plain[key] for key in plain},
                    args=answer.inputs,
                    acceptSecrets=True,
                    acceptResources=True,
                    sends_old_inputs=True,
                    sends_old_inputs_to_delete=True,
                ),
            )
            # To a plugin that says so, the engine sends secrets as if they were none.
            self._sees_secrets = accepted.acceptSecrets
        return checked

    def _sent(self, properties: Properties) -> Any:
        return encode_properties(properties if self._sees_secrets else plain(properties))

    def check(self, urn: str, news: Properties, olds: Properties | None = None) -> Checked:
        """Check inputs, against the stored inputs `olds` where the resource exists."""
        return _checked(
            self._call(
                "Check",
                provider_pb2.CheckRequest(
                    **_names(urn),
                    olds=self._sent(olds or {}),
                    news=self._sent(news),
                    randomSeed=b"\1" * 32,
                ),
            )
        )

    def diff(
        self, urn: str, id: str, state: Properties, old_inputs: Properties, news: Properties
    ) -> Difference:
        """Compare checked inputs with the stored state and inputs."""
        answer = self._call(
            "Diff",
            provider_pb2.DiffRequest(
                **_names(urn),
                id=id,
                olds=self._sent(state),
                old_inputs=self._sent(old_inputs),
                news=self._sent(news),
            ),
        )
        return Difference(
            changes=provider_pb2.DiffResponse.DiffChanges.Name(answer.changes),
            replaces=sorted(answer.replaces),
            delete_before_replace=answer.deleteBeforeReplace,
            details={
                path: provider_pb2.PropertyDiff.Kind.Name(detail.kind)
                for path, detail in sorted(answer.detailedDiff.items())
            },
        )

    def create(self, urn: str, inputs: Properties, preview: bool = False) -> tuple[str, Properties]:
        """Id and outputs of a new resource."""
        answer = self._call(
            "Create",
            provider_pb2.CreateRequest(
                **_names(urn), properties=self._sent(inputs), preview=preview
            ),
        )
        return answer.id, _received(answer.properties)

    def read(
        self, urn: str, id: str, state: Properties, inputs: Properties
    ) -> tuple[str, Properties, Properties]:
        """Id, outputs and inputs as they are now; id "" when the resource has gone."""
        answer = self._call(
            "Read",
            provider_pb2.ReadRequest(
                **_names(urn),
                id=id,
                properties=self._sent(state),
                inputs=self._sent(inputs),
            ),
        )
        return answer.id, _received(answer.properties), _received(answer.inputs)

    def update(
        self,
        urn: str,
        id: str,
        state: Properties,
        old_inputs: Properties,
        news: Properties,
        preview: bool = False,
    ) -> Properties:
        """Outputs after the change."""
        answer = self._call(
            "Update",
            provider_pb2.UpdateRequest(
                **_names(urn),
                id=id,
                olds=self._sent(state),
                old_inputs=self._sent(old_inputs),
                news=self._sent(news),
                preview=preview,
            ),
        )
        return _received(answer.properties)

    def delete(self, urn: str, id: str, state: Properties, inputs: Properties) -> None:
        """Delete the resource."""
        self._call(
            "Delete",
            provider_pb2.DeleteRequest(
                **_names(urn),
                id=id,
                properties=self._sent(state),
                old_inputs=self._sent(inputs),
            ),
        )

    def cancel(self) -> None:
        """Ask for an early end of what runs."""
        self._call("Cancel", Empty())


def end(process: subprocess.Popen[Any]) -> None:
    """End a plugin as the engine does; one that does not go is a fault."""
    process.terminate()
    try:
        process.wait(CALL_LIMIT)
    finally:
        process.kill()


OUTPUT_VALUE = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
"""Marks an output value, one more way to send an unknown secret."""


def _received(struct: Any) -> Properties:
    return {name: _simplified(value) for name, value in decode_properties(struct).items()}


def _simplified(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get(SIGNATURE) == OUTPUT_VALUE:
        simple = value.get("value", UNKNOWN)
        return Secret(simple) if value.get("secret") else simple
    return value


def _names(urn: str) -> dict[str, Any]:
    type_token, name = urn.split("::")[-2:]
    return {"urn": urn, "type": type_token, "name": name}


def _checked(answer: Any) -> Checked:
    return Checked(
        inputs=_received(answer.inputs),
        failures=sorted((failure.property, failure.reason) for failure in answer.failures),
    )
