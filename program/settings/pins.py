"""What a stack says of closures that the cache itself keeps: the setting `pins`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from formats.pin import MOST_TARGETS, PIN_NAME
from formats.store_path import is_store_path
from program.settings.builders import BuilderSettings, check_pushed
from program.settings.reader import SettingError, SettingReader, first_duplicate


@dataclass(frozen=True, kw_only=True)
class PinSettings:
    """A closure that every push keeps alive: an element of the setting `pins`."""

    name: str
    path: str
    """A store path or, where a builder is named, what that builder pushes: a path or a link."""
    builder: str | None = None
    """The builder whose link it is; None where it is a store path of anybody's."""
    keep_last: int = 1
    """How many of a link's targets are kept: this one, and those before it."""


def read_pins(
    reader: SettingReader, builders: Sequence[BuilderSettings]
) -> tuple[tuple[PinSettings, ...], tuple[BuilderSettings, ...]]:
    """Return the pins, and the builders, each of which pushes what a pin follows on it.

    Raises:
        SettingError: a setting of a pin is missing, unknown or cannot be used.
    """
    pins = []
    for index, element in enumerate(reader.elements("pins")):
        path = f"pins[{index}]"
        if not isinstance(element, dict):
            raise SettingError(path, element, "write an object with a name, and path or link")
        pins.append(_pin(SettingReader(f"{path}.", dict(element)), builders))
    duplicate = first_duplicate(pin.name for pin in pins)
    if duplicate is not None:
        raise SettingError("pins[].name", duplicate, "two pins share it; give each its own")
    followed = {
        builder.name: [pin.path for pin in pins if pin.builder == builder.name]
        for builder in builders
    }
    return tuple(pins), tuple(
        replace(builder, pins=tuple(dict.fromkeys((*builder.pins, *followed[builder.name]))))
        for builder in builders
    )


def _pin(reader: SettingReader, builders: Sequence[BuilderSettings]) -> PinSettings:
    name = reader.text("name")
    if not PIN_NAME.fullmatch(name):
        raise SettingError(
            reader.full_name("name"),
            name,
            "write 1 to 63 lower-case letters, digits, dots, hyphens and underscores",
        )
    remedy = "a pin has a name and a path, or a name, a builder, a link and keepLast"
    if reader.has("path"):
        path = reader.text("path")
        if not is_store_path(path):
            raise SettingError(
                reader.full_name("path"), path, "write /nix/store/<hash>-<name> and no more"
            )
        reader.refuse_the_rest(remedy)
        return PinSettings(name=name, path=path)
    builder, link = reader.text("builder"), reader.text("link")
    if builder not in {one.name for one in builders}:
        raise SettingError(
            reader.full_name("builder"), builder, "no element of builders has that name"
        )
    check_pushed(reader.full_name("link"), link)
    keep_last = reader.integer("keepLast", range(1, MOST_TARGETS + 1), default=1)
    reader.refuse_the_rest(remedy)
    return PinSettings(name=name, path=link, builder=builder, keep_last=keep_last)
