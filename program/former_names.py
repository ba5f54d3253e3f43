"""What resources were called before they were named after what they are.

Users, policies and attachments were named after the builders of the settings, and so were what
builders push and the files they are given; the bucket and what is of it had the same names whatever
the bucket. A state that has such names is taken over as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pulumi

from components.text_object import object_resource
from program import placed
from program.checks.recorded import (
    ATTACHMENT,
    BUCKET,
    BUCKET_POLICY,
    COMMANDS,
    LIFECYCLE,
    OBJECT,
    Recorded,
)
from program.settings.builders import BuilderSettings

PAGE_KEY = "index.html"
"""What the page for people was called in the bucket, too."""

_USER = "minio:index/iamUser:IamUser"
_POLICY = "minio:index/iamPolicy:IamPolicy"
_ACCESS = "nixcache:index:BuilderAccess"
_CLOSURE = "pulumi-python:dynamic/nixcache:Closure"


def find(recorded: Recorded, builders: Sequence[BuilderSettings]) -> dict[tuple[str, str], str]:
    """Return the former names of what the state has under one, by type and present name.

    Args:
        recorded: the state.
        builders: those of the settings, which say what files on them are called now.
    """
    resources = [
        _Resource(urn, resource["outputs"]) for urn, resource in sorted(recorded.resources.items())
    ]
    users = {
        found.name.removesuffix("-user"): str(found.outputs["name"])
        for found in resources
        if (found.type, found.parents) == (_USER, _ACCESS) and found.name != found.outputs["name"]
    }
    renamed = [one for found in resources for one in _renamed(found, users)]
    return {
        (type_, present): former
        for type_, present, former in (*renamed, *_files(recorded, builders))
        if present != former
    }


def use(former: Mapping[tuple[str, str], str]) -> None:
    """Let resources be found in a state that has them under other names.

    Args:
        former: what `find` returned.
    """
    if not former:
        return

    def aliased(
        args: pulumi.ResourceTransformationArgs,
    ) -> pulumi.ResourceTransformationResult | None:
        name = former.get((args.type_, args.name))
        if name is None:
            return None
        alias = pulumi.ResourceOptions(aliases=[pulumi.Alias(name=name)])
        return pulumi.ResourceTransformationResult(
            args.props, pulumi.ResourceOptions.merge(args.opts, alias)
        )

    pulumi.runtime.register_stack_transformation(aliased)


class _Resource:
    """A resource of the state."""

    def __init__(self, urn: str, outputs: Mapping[str, Any]) -> None:
        _, _, types, self.name = urn.split("::", 3)
        self.parents, _, self.type = types.rpartition("$")
        self.outputs = outputs


def _renamed(found: _Resource, users: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield type, present and former name of what a resource of the state is, or belongs to."""
    type_, name, outputs = found.type, found.name, found.outputs
    if type_ in (_USER, _POLICY):
        yield type_, outputs["name"], name
    elif type_ in (BUCKET, BUCKET_POLICY, LIFECYCLE):
        yield type_, outputs["bucket"], name
    elif type_ == OBJECT:
        yield type_, object_resource(outputs["bucketName"], outputs["objectName"]), name
    elif type_ == ATTACHMENT:
        yield type_, f"{outputs['userName']}/{outputs['policyName']}", name
    elif type_ == _CLOSURE:
        yield type_, users.get(name, name), name
    elif type_ in COMMANDS and name.endswith("-command"):
        yield type_, f"{users.get(name.removesuffix('-command'), '')}-push", name


def _files(
    recorded: Recorded, builders: Sequence[BuilderSettings]
) -> Iterator[tuple[str, str, str]]:
    """Yield the same of files on builders, for each that stays somebody's."""
    places = placed.places(builders)
    for one, builder in placed.kept(builders, recorded):
        place = places[builder.name]
        yield one.type, f"{place}-files", one.name
        yield placed.CREDENTIALS, place, one.name.removesuffix("-files")
