"""Safeguard: a destroy that must not be is refused before anything is deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pulumi

CONDITION = "protect off, bucket empty"
"""What the engine calls the hook, and so what it shows where a destroy does not run the program."""


class RefusalError(Exception):
    """A destroy is refused; the message is one sentence with the remedy."""


class Safeguard(pulumi.ComponentResource):
    """Depends on everything, so it would be the first to go, and stops a destroy there.

    Protecting the bucket alone lets a destroy delete users, keys and policies on the way to it, and
    so does a bucket that is not empty, which no server deletes. A hook is asked in the preview
    already; the engine then wants `pulumi destroy --run-program`, and says so. Nothing keeps a
    builder or a key from leaving the settings.
    """

    def __init__(
        self,
        name: str,
        *,
        protect: bool,
        guarded: Sequence[pulumi.Resource],
        refusal: Callable[[], str | None],
    ) -> None:
        """Declare the safeguard.

        Args:
            name: the resource's name.
            protect: refuse also where the program cannot be asked.
            guarded: what must outlive an unintended destroy.
            refusal: asked before a destroy; returns why it must not be, and the remedy.
        """

        def ask(_: pulumi.ResourceHookArgs) -> None:
            reason = refusal()
            if reason is not None:
                raise RefusalError(reason)

        hook = pulumi.ResourceHook(CONDITION, ask, pulumi.ResourceHookOptions(on_dry_run=True))
        super().__init__(
            "nixcache:index:Safeguard",
            name,
            None,
            pulumi.ResourceOptions(
                protect=protect,
                depends_on=list(guarded),
                hooks=pulumi.ResourceHookBinding(before_delete=[hook]),
            ),
        )
        # It has no outputs, and registers none: where a refresh that runs the program finds one of
        # `guarded` gone, the engine (3.274) takes the safeguard for gone too, and stumbles over
        # outputs of what is not there.
