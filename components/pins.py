"""Pins: closures that the cache keeps, whoever has them, as objects of its bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi

from components.text_object import declare_text_object
from formats.pin import format_pin, pin_key
from formats.store_path import is_store_path


@dataclass(frozen=True, kw_only=True)
class PinsArgs:
    """What is kept, and where."""

    bucket_name: str
    """The name of the cache's bucket, which the pins' resources are named after."""
    bucket: pulumi.Input[str]
    """The same, once the bucket is there."""
    targets: Mapping[str, pulumi.Input[Sequence[str]]]
    """The store paths whose closures are kept, the newest first, by the pin's name."""
    comparable_etags: bool = True
    """Find, by its ETag, what others write over a pin; not where the server encrypts."""


class Pins(pulumi.ComponentResource):
    """An object for each pin, which every push reads: it renews what the pin keeps.

    Deleting one lets its closure age from its last push.
    """

    def __init__(
        self, name: str, args: PinsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the pins; their resources are named after the bucket and their keys there."""
        super().__init__("nixcache:index:Pins", name, None, opts)
        for pin, targets in args.targets.items():
            declare_text_object(
                args.bucket_name,
                pin_key(pin),
                bucket=args.bucket,
                content_type="text/plain; charset=us-ascii",
                content=pulumi.Output.from_input(targets).apply(format_pin),
                comparable=args.comparable_etags,
                opts=pulumi.ResourceOptions(parent=self),
            )
        self.register_outputs({})


def targets_now(store_path: str, before: Sequence[str], keep_last: int) -> list[str]:
    """Return what a pin keeps once its link points to `store_path`, the newest first.

    Args:
        store_path: what the link points to; a link where nobody has ever known.
        before: what the pin kept until now.
        keep_last: how many it may keep.
    """
    now = [store_path] if is_store_path(store_path) else []
    return [*now, *(path for path in before if path not in now)][:keep_last]
