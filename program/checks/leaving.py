"""What a deployment takes away, and what of that is still there if it fails on the way.

What lets anybody in is changed first, by updates that no push holds up: the bucket's policy, and
the builders' policy, which names them. The engine deletes last, and not at all where anything has
failed; the stack's outputs are written last too. What follows from that is told beforehand, with
the command that ends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from components.builder_credentials import FILES, OWNER
from formats.printable import listed
from program import placed
from program.checks.recorded import LIFECYCLE, Recorded
from program.placed import Placed
from program.settings.stack import Settings

_IN_SPITE = "where anything fails before, pulumi up --continue-on-error does the rest"


def sentences(
    settings: Settings, recorded: Recorded, trusted: Sequence[str], names: Sequence[str]
) -> Iterator[str]:
    """Yield what goes last, a sentence each.

    Args:
        settings: the stack's settings.
        recorded: its state.
        trusted: names of the keys that clients trust since the last deployment.
        names: names of the keys in this one.
    """
    keys = [name for name in trusted if name not in names]
    if keys and any(builder.pushed for builder in settings.builders):
        yield (
            f"the outputs tell clients to trust {', '.join(keys)} until this deployment is done; "
            f"{_IN_SPITE}"
        )
    users = sorted(recorded.users - settings.users)
    if users and (settings.given_users or settings.write_policy not in recorded.policies):
        yield f"{', '.join(users)} may push until the old policy goes, at the end; {_IN_SPITE}"
    for bucket in recorded.going(settings.bucket):
        yield (
            f"bucket {bucket} is deleted at the end; where anything is pushed to it until then, it "
            "stays, and the next preview says what to do"
        )
    if settings.retention_days is None and any(
        lifecycle.get("bucket") == settings.bucket for lifecycle in recorded.outputs(LIFECYCLE)
    ):
        yield (
            f"expire is off, and the lifecycle rules of bucket {settings.bucket} go at the end: "
            f"until then entries expire; {_IN_SPITE}"
        )
    for one in left(settings, recorded):
        yield (
            f"the files in {one.where} are removed at the end; if it never answers "
            f"again, forget them: pulumi state delete '{one.urn}' --target-dependents --force"
        )


def stranded(settings: Settings, recorded: Recorded) -> Iterator[str]:
    """Yield what stays on machines that other ones have taken the names of, a sentence each.

    Args:
        settings: the stack's settings.
        recorded: its state.
    """
    names = listed((*FILES, OWNER))
    for one, builder in placed.stranded(settings.builders, recorded):
        sign = "another port" if not one.has_port_of(builder) else "another host key"
        yield (
            f"builder {builder.name} has {sign} than when its files were placed in {one.where}: if "
            f"that was another machine, {names} stay there, also after a destroy; remove them by "
            "hand, or have them removed by an up without its credentialsDirectory before this one"
        )


def holders(
    settings: Settings, recorded: Recorded, trusted: Sequence[str], names: Sequence[str]
) -> str | None:
    """Return who may go on to sign with a key that goes, since no deployment hands them another.

    Which key a builder has that pushes by itself, and has no `credentialsDirectory`, nobody knows
    but whoever gave it.

    Args:
        settings: the stack's settings.
        recorded: its state.
        trusted: names of the keys that clients trust since the last deployment.
        names: names of the keys in this one.
    """
    gone = [name for name in trusted if name not in names]
    known = recorded.stack_output("builders") or {}
    by_hand = [
        builder.name
        for builder in settings.builders
        if not builder.pushed and builder.credentials_directory is None and builder.name in known
    ]
    if not gone or not by_hand:
        return None
    return (
        f"{', '.join(gone)} stops being trusted, and no deployment hands a key to {listed(by_hand)}"
        ": see that each, and each CI job, signs with one that stays, since clients refuse what "
        "only the other has signed"
    )


def left(settings: Settings, recorded: Recorded) -> Iterator[Placed]:
    """Yield what a deployment removes of the files on builders.

    To forget one wants `--force` where `protect` is on: the safeguard depends on them.
    """
    stay = {one.urn for one, _ in placed.kept(settings.builders, recorded)}
    for one in placed.in_state(recorded):
        if one.host and one.urn not in stay:
            yield one
