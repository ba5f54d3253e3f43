"""Lets a stack's builders push again now, although nothing about their pushes has changed.

All that push by a deployment, or the one of that name. On that one the files of its
`credentialsDirectory` are placed anew, too, as where it was installed anew; nothing else looks at
them. Links are followed anew; everything else of the stack stays as the last deployment left it:
while settings are not deployed that a push would put in force by halves, it is refused. Prints each
builder's summary. Exit code 0: pushed; 2: it could not be done.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from formats.printable import printable
from operations.command_line import CANNOT_RUN, DONE, Parser, run
from operations.deployed_stack import read_settings
from operations.pulumi_cli import OperationError, on_terminal, read_output
from operations.state import read_state
from operations.undeployed import refuse_undeployed
from program.checks.recorded import COMMANDS, Recorded

_PUSHES, _PLACINGS = (
    tuple(f"nixcache:index:{component}${command}" for command in COMMANDS)
    for component in ("ClosurePush", "BuilderCredentials")
)
_CLOSURE = "pulumi-python:dynamic/nixcache:Closure"


def main(arguments: Sequence[str] | None = None) -> int:
    """Push from the stack that the command line names; return the exit code."""
    parser = Parser("push", "BUILDER", __doc__)
    parser.add_argument("builder", nargs="?", metavar="BUILDER", help="only this one")
    chosen = parser.parse_args(arguments)
    return run(lambda: _push(chosen.stack, chosen.builder))


def _push(stack: str, builder: str | None) -> int:
    # The CLI takes a while to start, and is asked twice.
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read_settings, stack, whole=True)
        state = read_state(stack)
    builders = state.stack_output("builders")
    if builders is None:
        raise OperationError(
            f"no deployment of stack {stack} has come to its end, so it has no builders yet; "
            "run pulumi up, which pushes, too, or says what keeps it"
        )
    settings = reading.result()
    refuse_undeployed(stack, settings, state.of(settings.bucket))
    users = pushing(state)
    files = credential_files(state)
    if builder is not None and builder not in {*users, *files}:
        known = sorted({*users, *files})
        there_are = f"; there are {', '.join(known)}" if known else ""
        raise OperationError(
            f"no builder {builder} of stack {stack} pushes by a deployment or has a "
            f"credentialsDirectory{there_are}"
        )
    if builder is None and not users:
        raise OperationError(
            f"no builder of stack {stack} pushes by a deployment; give one closures, or let it "
            "push by itself"
        )
    chosen = sorted(users) if builder is None else [builder]
    targets = list(options(state.resources, [users[name] for name in chosen if name in users]))
    if builder in files:
        targets.append(f"--target-replace={files[builder]}")
    if on_terminal("up", "--yes", "--skip-preview", "--stack", stack, *targets) != 0:
        return CANNOT_RUN
    if builder in files:
        print(f"{builder}: its credential files are placed anew")
    outputs = read_output("stack", "output", "builders", "--stack", stack)
    for name in filter(users.__contains__, chosen):
        # What a builder printed.
        said = str(outputs[name]["lastPush"]).strip()
        print(f"{name}: " + "\n".join(printable(line) for line in said.splitlines()))
    return DONE


def pushing(state: Recorded) -> dict[str, str]:
    """Return the users of the builders that push by the deployment, by the builder's name."""
    return {
        name: str(access["accessKeyId"])
        for name, access in (state.stack_output("builders") or {}).items()
        if "lastPush" in access
    }


def pushed_again(stack: str, *, by_deployment: bool) -> str:
    """Return in one sentence what brings back to a cache what its builders still have.

    Args:
        stack: the stack's name.
        by_deployment: whether any builder pushes by the deployment.
    """
    if by_deployment:
        return f"make push STACK={stack} pushes again what its builders have"
    return (
        "no builder pushes by the deployment: the next push of one that has it, and signs with a "
        "trusted key, pushes it again"
    )


def credential_files(state: Recorded) -> dict[str, str]:
    """Return the URN of what places files on a builder, by the builder's name.

    They are named after where they lie; whose they are, the secret in them says.
    """
    by_secret = {
        str(access["secretAccessKey"]): name
        for name, access in state.stack_output("builders", {}).items()
    }
    placed = (
        (by_secret.get(str(state.resources[urn]["outputs"].get("stdin")).partition("\n")[0]), urn)
        for urn in placings(state.resources)
    )
    return {name: urn for name, urn in placed if name is not None}


def placings(urns: Iterable[str]) -> Iterator[str]:
    """Yield those of the URNs that are of what places credential files on a builder."""
    return (urn for urn in urns if urn.split("::")[2] in _PLACINGS)


def options(urns: Iterable[str], users: Collection[str]) -> Iterator[str]:
    """Yield the options of `pulumi up` that let the builders with these users push again.

    Args:
        urns: of the stack's resources.
        users: the builders' users, after which their pushes and closures are named.
    """
    for urn in urns:
        kind, name = urn.split("::")[2], urn.rpartition("::")[2]
        if kind in _PUSHES and name.removesuffix("-push") in users:
            yield f"--target-replace={urn}"
        elif kind == _CLOSURE and name in users:
            yield f"--target={urn}"


if __name__ == "__main__":
    sys.exit(main())
