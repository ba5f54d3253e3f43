"""What every resource provider plugin does alike: the engine's calls, turned into plain Python.

`pulumi.provider.experimental` is not used because it hides the stored inputs from Diff and Delete,
cannot report a resource that was made but not finished, and answers errors with stack traces.

Source of fact: `sdk/proto/provider.proto` at v3.259.0.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.empty_pb2 import Empty
from pulumi.runtime.proto import (
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)

from toolbox.plugins.plugin_server import Engine, serve
from toolbox.plugins.property_values import Properties, decode_properties, encode_properties

Failure = tuple[str, str]
"""A property ("" for the whole resource) and what is wrong with it."""


class ResourceError(Exception):
    """An operation failed; its text is for the user."""


def system_reason(error: Exception, about: str) -> str:
    """Return what went wrong with `about`, in the words that the official plugins have for it."""
    # asyncio's own words for a refused connection hide the reason.
    number = getattr(error, "errno", None)
    return f"{about}: {os.strerror(number).lower()}" if number else str(error)


class UnfinishedError(ResourceError):
    """A resource exists but was not brought to what was asked: it belongs in the state."""

    def __init__(self, reason: str, id: str, outputs: Properties) -> None:
        super().__init__(reason)
        self.id = id
        self.outputs = outputs


@dataclass(frozen=True)
class Subject:
    """The resource that a call is about."""

    urn: str
    name: str
    """Its name in the program."""
    engine: Engine
    """Where its log lines go."""


@dataclass(frozen=True)
class Difference:
    """How new inputs differ from what is stored."""

    details: Mapping[str, str] = field(default_factory=dict)
    """property path → ADD, DELETE or UPDATE, or one of these with _REPLACE"""
    of_inputs: bool = False
    """Whether the comparison was with the stored inputs rather than the outputs."""
    delete_before_replace: bool = False


class ResourceType(ABC):
    """One type of resource. Properties are as `property_values` decodes them."""

    @abstractmethod
    def check(self, subject: Subject, news: Properties) -> tuple[Properties, list[Failure]]:
        """Return the inputs with defaults, and what is wrong with them."""

    @abstractmethod
    def diff(self, state: Properties, old_inputs: Properties, news: Properties) -> Difference:
        """Compare checked inputs with what is stored."""

    @abstractmethod
    def create(self, subject: Subject, inputs: Properties, preview: bool) -> tuple[str, Properties]:
        """Make it; returns id and outputs. A preview makes nothing and contacts nobody."""

    @abstractmethod
    def read(
        self, subject: Subject, id: str, state: Properties, inputs: Properties
    ) -> tuple[str, Properties, Properties] | None:
        """Id, outputs and inputs as they are now, or None when it has gone.

        On import `state` and `inputs` are empty and `id` is the user's.
        """

    @abstractmethod
    def update(
        self, subject: Subject, id: str, state: Properties, news: Properties, preview: bool
    ) -> Properties:
        """Change it; returns the outputs. A preview changes nothing and contacts nobody."""

    @abstractmethod
    def delete(self, subject: Subject, id: str, state: Properties) -> None:
        """Delete it. Already gone is success."""


Method = TypeVar("Method", bound=Callable[..., Any])


def _answering(method: Method) -> Method:
    """Turn a ResourceError into the gRPC status that the engine shows as one error."""

    @functools.wraps(method)
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except UnfinishedError as error:
            detail = any_pb2.Any()
            detail.Pack(
                provider_pb2.ErrorResourceInitFailed(
                    id=error.id,
                    properties=encode_properties(error.outputs),
                    reasons=[str(error)],
                )
            )
            status = status_pb2.Status(
                code=grpc.StatusCode.UNKNOWN.value[0], message=str(error), details=[detail]
            )
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
        except ResourceError as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))

    return answer  # type: ignore[return-value]


def _property(path: str) -> str:
    """Return the property that a path leads into."""
    return path.replace("[", ".").split(".")[0]


class ResourceProvider(provider_pb2_grpc.ResourceProviderServicer):
    """A provider plugin; a subclass names its version, its types and its configuration."""

    version: str
    accept_secrets: bool
    """Whether the plugin sees what is secret; if not, the engine itself marks outputs secret."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.types: Mapping[str, ResourceType] = {}
        """Type token → type, complete after `configure`."""

    def check_configuration(self, settings: Properties) -> list[Failure]:
        """Return what is wrong with the provider's own settings."""
        return [
            ("", f"unknown setting {name!r}")
            for name in settings
            if name != "version" and not name.startswith("__")
        ]

    def configure(self, settings: Properties) -> None:
        """Take the provider's own settings; nothing may be contacted."""

    def cancel(self) -> None:
        """Bring what runs to an early end."""

    def _type(self, request: Any) -> tuple[ResourceType, Subject]:
        token, name = request.urn.split("::")[-2:]
        # A component's child carries its parents' types before its own.
        token = token.split("$")[-1]
        if token not in self.types:
            raise ResourceError(
                f"the drop-in plugin knows no {token}, only {', '.join(sorted(self.types))};"
                " the official plugin does"
            )
        return self.types[token], Subject(request.urn, name, self._engine)

    def GetPluginInfo(self, request: Empty, context: grpc.ServicerContext) -> Any:
        """Return the version this stands in for."""
        return plugin_pb2.PluginInfo(version=self.version)

    @_answering
    def CheckConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Validate the provider's own settings."""
        failures = self.check_configuration(decode_properties(request.news))
        return provider_pb2.CheckResponse(inputs=request.news, failures=_failures(failures))

    @_answering
    def DiffConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Compare: changed settings never replace the provider, and so never its resources."""
        return _changes(request.old_inputs != request.news)

    @_answering
    def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Take the settings."""
        self.configure(decode_properties(request.args))
        return provider_pb2.ConfigureResponse(
            acceptSecrets=self.accept_secrets, supportsPreview=True
        )

    @_answering
    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Validate inputs."""
        resource, subject = self._type(request)
        inputs, failures = resource.check(subject, decode_properties(request.news))
        return provider_pb2.CheckResponse(
            inputs=encode_properties(inputs), failures=_failures(failures)
        )

    @_answering
    def Diff(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Say what changed."""
        resource, _ = self._type(request)
        state = decode_properties(request.olds)
        old_inputs = decode_properties(request.old_inputs)
        news = decode_properties(request.news)
        for name in request.ignoreChanges:
            if name in old_inputs:
                news[name] = old_inputs[name]
            else:
                news.pop(name, None)
        difference = resource.diff(state, old_inputs, news)
        # What is ignored is no difference, also where the server has it in other words.
        details = {
            path: kind
            for path, kind in difference.details.items()
            if _property(path) not in request.ignoreChanges
        }
        changed = sorted({_property(path) for path in details})
        replaces = sorted({_property(path) for path in details if "REPLACE" in details[path]})
        return _changes(
            bool(details),
            diffs=changed,
            replaces=replaces,
            deleteBeforeReplace=difference.delete_before_replace,
            hasDetailedDiff=True,
            detailedDiff={
                path: provider_pb2.PropertyDiff(
                    kind=provider_pb2.PropertyDiff.Kind.Value(kind),
                    inputDiff=difference.of_inputs,
                )
                for path, kind in details.items()
            },
        )

    @_answering
    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Make a resource."""
        resource, subject = self._type(request)
        new_id, outputs = resource.create(
            subject, decode_properties(request.properties), request.preview
        )
        return provider_pb2.CreateResponse(id=new_id, properties=encode_properties(outputs))

    @_answering
    def Read(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Look at a resource as it is now."""
        resource, subject = self._type(request)
        found = resource.read(
            subject,
            request.id,
            decode_properties(request.properties),
            decode_properties(request.inputs),
        )
        if found is None:
            return provider_pb2.ReadResponse()
        found_id, outputs, inputs = found
        return provider_pb2.ReadResponse(
            id=found_id, properties=encode_properties(outputs), inputs=encode_properties(inputs)
        )

    @_answering
    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Change a resource."""
        resource, subject = self._type(request)
        outputs = resource.update(
            subject,
            request.id,
            decode_properties(request.olds),
            decode_properties(request.news),
            request.preview,
        )
        return provider_pb2.UpdateResponse(properties=encode_properties(outputs))

    @_answering
    def Delete(self, request: Any, context: grpc.ServicerContext) -> Empty:
        """Delete a resource."""
        resource, subject = self._type(request)
        resource.delete(subject, request.id, decode_properties(request.properties))
        return Empty()

    def Cancel(self, request: Empty, context: grpc.ServicerContext) -> Empty:
        """End everything that runs: the engine wants to end."""
        self.cancel()
        return Empty()


def _changes(any_change: bool, **details: Any) -> Any:
    answers = provider_pb2.DiffResponse
    changes = answers.DIFF_SOME if any_change else answers.DIFF_NONE
    return answers(changes=changes, **details)


def _failures(failures: list[Failure]) -> list[Any]:
    return [
        provider_pb2.CheckFailure(property=property_name, reason=reason)
        for property_name, reason in failures
    ]


def serve_provider(provider: type[ResourceProvider]) -> None:
    """Be the plugin `provider` for the engine that started this process."""

    def register(server: grpc.Server, engine: Engine) -> Callable[[], None]:
        served = provider(engine)
        provider_pb2_grpc.add_ResourceProviderServicer_to_server(served, server)
        return served.cancel

    serve(register)
