"""Safeguard: a destroy of a protected stack is refused before anything is deleted."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi


class Safeguard(pulumi.ComponentResource):
    """Depends on everything, so it would be the first to go; protected, it stops a destroy there.

    Protecting the bucket alone lets a destroy delete users, keys and policies on the way to it.
    Nothing keeps a builder or a key from leaving the settings.
    """

    def __init__(self, name: str, *, protect: bool, guarded: Sequence[pulumi.Resource]) -> None:
        """Declare the safeguard; `guarded` is what must outlive an unintended destroy."""
        super().__init__(
            "nixcache:index:Safeguard",
            name,
            None,
            pulumi.ResourceOptions(protect=protect, depends_on=list(guarded)),
        )
        self.register_outputs({})
