"""How the official `minio` plugin turns inputs into a plan, and a plan into a difference.

That plugin bridges a Terraform provider, so its answers follow Terraform's rules for attributes
that are left out: one with a default gets it, a computed one keeps its stored value, any other is
removed, where a removed value that was already empty is no change. This module has these rules
and nothing of Terraform or MinIO.

Source of fact: the answers recorded in `tests/plugins/data`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from toolbox.plugins.property_diff import differences
from toolbox.plugins.property_values import UNKNOWN, Properties, Secret, has_unknown
from toolbox.plugins.resource_provider import Difference, Failure

Kind = Literal["string", "boolean", "number", "map", "list"]

EMPTY: dict[Kind, Any] = {"string": "", "boolean": False, "number": 0, "map": {}, "list": []}
TYPES: dict[Kind, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "number": (int, float),
    "map": (dict,),
    "list": (list,),
}


@dataclass(frozen=True)
class Attribute:
    """One property of a resource."""

    kind: Kind = "string"
    required: bool = False
    computed: bool = False
    """Left out, it is found out when the resource is made, and kept from then on."""
    output: bool = False
    """Never an argument."""
    replaces: bool = False
    """A change of it needs a new resource."""
    secret: bool = False
    """The engine encrypts it and never shows it."""
    terraform: str = ""
    """Its name in messages, where that is not its own name with underscores."""
    default: Any = None
    conflicts: tuple[str, ...] = ()
    """Arguments that must not be given beside it."""
    wrong: Callable[[Any], str | None] = lambda _: None
    """What is wrong with a value, or None."""
    same: Callable[[Any, Any], bool] = lambda old, new: bool(old == new)
    """Whether a stored value already does what a new one asks."""
    items: Schema | None = None
    """Attributes of a list's members."""


Schema = Mapping[str, Attribute]


def check(name: str, news: Properties, schema: Schema) -> tuple[Properties, list[Failure]]:
    """Return inputs with their defaults, and failures that name paths in the resource `name`."""
    reasons: list[tuple[str, str]] = []
    inputs = _checked(news, schema, name, "", reasons)
    return inputs, [("", f"{reason}. Examine values at '{path}'.") for path, reason in reasons]


def _checked(
    news: Properties, schema: Schema, path: str, inside: str, reasons: list[tuple[str, str]]
) -> Properties:
    given = {
        name: value
        for name, value in news.items()
        if value is not None and not name.startswith("__")
    }
    for name, value in given.items():
        attribute = schema.get(name)
        if attribute is None:
            reasons.append((f"{path}.{name}", "Invalid or unknown key"))
        elif attribute.output:
            reasons.append(
                (
                    f"{path}.{name}",
                    f"Value for unconfigurable attribute. Can't configure a value for "
                    f'"{_terraform_name(name, attribute)}": its value will be decided'
                    " automatically based on the result of applying this configuration.",
                )
            )
        elif value is not UNKNOWN:
            words = inside + _terraform_name(name, attribute)
            if type(value) not in TYPES[attribute.kind]:
                reasons.append((f"{path}.{name}", f"expected a {attribute.kind}"))
                continue
            reason = None if has_unknown(value) else attribute.wrong(value)
            if reason:
                reasons.append((f"{path}.{name}", reason))
            for other in attribute.conflicts:
                if other in given:
                    reasons.append(
                        (
                            f"{path}.{name}",
                            f'Conflicting configuration arguments. "{words}":'
                            f" conflicts with {_terraform_name(other, schema[other])}",
                        )
                    )
            if attribute.items is not None:
                given[name] = [
                    _checked(
                        item,
                        attribute.items,
                        f"{path}.{name}[{index}]",
                        f"{words}.{index}.",
                        reasons,
                    )
                    for index, item in enumerate(value)
                ]
    for name, attribute in schema.items():
        if attribute.required and name not in given:
            reasons.append(
                (
                    f"{path}.{name}",
                    "Missing required argument. The argument"
                    f' "{inside}{_terraform_name(name, attribute)}" is required, but no definition'
                    " was found.",
                )
            )
    defaults = [
        name for name, attribute in schema.items() if attribute.default and name not in given
    ]
    checked = {**given, **{name: schema[name].default for name in defaults}}
    return {**with_secrets(checked, schema), "__defaults": defaults}


def with_secrets(properties: Properties, schema: Schema) -> Properties:
    """`properties`, with those marked secret that the schema says are."""
    return {
        name: Secret(value) if name in schema and schema[name].secret else value
        for name, value in properties.items()
    }


def _terraform_name(name: str, attribute: Attribute) -> str:
    return attribute.terraform or re.sub(r"(?=[A-Z])", "_", name).lower()


def plan(state: Properties | None, inputs: Properties, schema: Schema) -> Properties:
    """All properties as they shall be; `state` is None for a resource yet to be made."""
    return {
        name: _planned(
            attribute, None if state is None else state.get(name), inputs.get(name), state is None
        )
        for name, attribute in schema.items()
    }


def _planned(attribute: Attribute, prior: Any, given: Any, new: bool) -> Any:
    if given is not None:
        if attribute.items is not None and isinstance(given, list):
            stored = prior if isinstance(prior, list) else []
            return [
                plan(
                    None if new else stored[index] if index < len(stored) else {},
                    item,
                    attribute.items,
                )
                for index, item in enumerate(given)
            ]
        if prior is not None and given is not UNKNOWN and attribute.same(prior, given):
            return prior
        return given
    if attribute.computed or attribute.output:
        return UNKNOWN if new else prior
    if attribute.default is not None:
        return attribute.default
    if prior is None or prior == EMPTY[attribute.kind]:
        return prior
    return {} if attribute.kind == "map" else None


def settle(state: Properties, planned: Properties, schema: Schema) -> Properties:
    """Return what is stored once `planned` is done: a removed value has become an empty one."""
    return {
        name: EMPTY[schema[name].kind] if value is None and state.get(name) is not None else value
        for name, value in planned.items()
    }


def diff(
    state: Properties, planned: Properties, schema: Schema, delete_before_replace: bool
) -> Difference:
    """How `planned` differs from `state`."""
    details = differences(_present(state, schema), _present(planned, schema))
    for path in details:
        top = re.split(r"[.\[]", path)[0]
        if schema[top].replaces:
            details[path] += "_REPLACE"
    replaced = any("REPLACE" in kind for kind in details.values())
    return Difference(details, delete_before_replace=delete_before_replace and replaced)


def _present(properties: Properties, schema: Schema) -> Properties:
    return {
        name: [_present(item, attribute.items) for item in properties[name]]
        if attribute.items is not None and isinstance(properties[name], list)
        else properties[name]
        for name, attribute in schema.items()
        if properties.get(name) is not None
    }


def inputs_now(old_inputs: Properties, outputs: Properties, schema: Schema) -> Properties:
    """Return inputs that would describe `outputs`: those of `old_inputs`, or all without any.

    All is what an import wants: arguments that are neither empty nor their default. A list's
    members beyond those of `old_inputs` are left to the comparison with the outputs.
    """
    if not old_inputs:
        found = {
            name: _imported(outputs.get(name), attribute)
            for name, attribute in schema.items()
            if not attribute.output and _worth_importing(outputs.get(name), attribute)
        }
        return {**with_secrets(found, schema), "__defaults": []}
    kept = {name: outputs.get(name) for name in old_inputs if not name.startswith("__")}
    for name, value in kept.items():
        items = schema[name].items
        if items is not None and isinstance(value, list):
            kept[name] = [
                inputs_now(old, new, items)
                for old, new in zip(old_inputs[name], value, strict=False)
            ]
    defaults = old_inputs.get("__defaults")
    kept = with_secrets(kept, schema)
    return {**kept, "__defaults": defaults} if defaults else kept


def _imported(value: Any, attribute: Attribute) -> Any:
    if attribute.items is None:
        return value
    return [inputs_now({}, item, attribute.items) for item in value]


def _worth_importing(value: Any, attribute: Attribute) -> bool:
    if attribute.default is not None:
        return bool(value != attribute.default)
    return value is not None and value != EMPTY[attribute.kind]
