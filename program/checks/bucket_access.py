"""Who may use a bucket without a credential, compared with what the settings say.

The state tells what a deployment has written, and no more: one that was killed as it wrote, and
whoever opens the bucket by hand, leave another policy there than the one in the state. The engine
then finds nothing to do.
"""

from __future__ import annotations

import pulumi

from components.access import same_policy
from components.binary_cache import anonymous_policy
from formats.foreign_json import parse_foreign_json
from formats.printable import listed
from program.checks.recorded import BUCKET_POLICY, Recorded
from program.settings.stack import Settings

_UNUSUAL = "something unusual"


def finding(settings: Settings, policy: str | None) -> str | None:
    """Return in one sentence how a bucket's policy is not the settings'; None if it is.

    A private cache may have any that lets nobody in.

    Args:
        settings: the stack's settings; `bucketPolicy` is on.
        policy: the bucket's policy as the server gave it; None where it has none.
    """
    allowed = _allowed(policy)
    if settings.private:
        if not allowed:
            return None
        wrong = f"access is private, and its policy lets anybody use {listed(allowed)}"
    elif same_policy(_declared(settings), policy or "{}"):
        return None
    else:
        has = f"allows everybody {listed(allowed)}" if allowed else "lets nobody in"
        wrong = f"access is public, and its policy is not the one declared: it {has}"
    return (
        f"bucket {settings.bucket}: {wrong}; make repair STACK={pulumi.get_stack()} puts it right"
    )


def stays(settings: Settings, recorded: Recorded) -> bool:
    """Return whether a deployment leaves the bucket's policy as the last one has declared it."""
    known = [str(one.get("policy")) for one in recorded.outputs(BUCKET_POLICY)]
    return (
        settings.bucket_policy
        and recorded.bucket == settings.bucket
        and any(same_policy(_declared(settings), policy) for policy in known)
    )


def _declared(settings: Settings) -> str:
    return anonymous_policy(settings.bucket, not settings.private, settings.anonymous_listing)


def _allowed(policy: str | None) -> list[str]:
    """Return what a policy lets anybody do; more than it does where it is an unusual one."""
    try:
        statements = parse_foreign_json(policy or "{}").get("Statement", ())
        actions = [
            statement.get("Action", _UNUSUAL)
            for statement in ([statements] if isinstance(statements, dict) else statements)
            if statement.get("Effect") != "Deny" and "*" in str(statement.get("Principal", "*"))
        ]
    except (ValueError, TypeError, AttributeError):
        return [_UNUSUAL]
    named = [[one] if isinstance(one, str) else one for one in actions]
    return sorted({str(action) for one in named for action in one})
