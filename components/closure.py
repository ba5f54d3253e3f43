"""Closure: the store paths that a builder's links point to, as a resource that a preview shows.

A dynamic provider. The state refers to its class by module and name, so both stay where they are
for as long as stacks exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
from pulumi.dynamic import (
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)


class ClosureProvider(ResourceProvider):
    """Keeps what is known of a builder's closures. Inputs and outputs: `links`, `store_paths`.

    `store_paths` is what the links point to now, or absent where the builder did not answer: then
    what the state has stands, and nothing seems to change.
    """

    def __init__(self) -> None:
        """Make the provider, without any state."""
        # Pickled into the state with the resource: it has nothing to remember.

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Fill in the store paths of a builder that did not answer."""
        if news.get("store_paths"):
            return CheckResult(news, [])
        same_links = olds.get("links") == news["links"]
        known = olds.get("store_paths") if same_links else None
        # A builder never asked before pushes what its links point to when it pushes.
        return CheckResult({**news, "store_paths": known or news["links"]}, [])

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Note the store paths."""
        return CreateResult(",".join(props["links"]), _noted(props))

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Tell whether anything points elsewhere now."""
        return DiffResult(changes=_noted(olds) != _noted(news))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Note the store paths."""
        return UpdateResult(_noted(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Return what was noted: builders are asked when the program runs."""
        return ReadResult(id_, props, inputs=_noted(props))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Forget it; what was pushed stays until it expires."""


def _noted(props: Mapping[str, Any]) -> dict[str, Any]:
    return {"links": props["links"], "store_paths": props["store_paths"]}


class Closure(Resource, module="nixcache", name="Closure"):
    """What a builder's links point to, as the state last knew or as it is now."""

    store_paths: pulumi.Output[list[str]]
    """Store paths; or the links themselves, where the builder has never answered."""

    def __init__(
        self,
        name: str,
        links: Sequence[str],
        store_paths: Sequence[str] | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare what a builder is to push.

        Args:
            name: the resource's name.
            links: store paths, or links to them, on the builder.
            store_paths: what was found for them; None where the builder did not answer.
            opts: resource options of the caller.
        """
        found = None if store_paths is None else list(store_paths)
        properties = {"links": list(links), "store_paths": found}
        super().__init__(ClosureProvider(), name, properties, opts)
