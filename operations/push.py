"""Lets a stack's builders push again now, although nothing about their pushes has changed.

All that push by a deployment, or the one of that name. Links are followed anew; everything else of
the stack stays as the last deployment left it. Prints each builder's summary. Exit code 0: pushed;
2: it could not be done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from operations.command_line import CANNOT_RUN, DONE, Parser, run
from operations.pulumi_cli import OperationError, on_terminal, read_output
from operations.state import read_state

_PUSH = "nixcache:index:ClosurePush"
_COMMANDS = ("command:remote:Command", "command:local:Command")
_CLOSURE = "pulumi-python:dynamic/nixcache:Closure"


def main(arguments: Sequence[str] | None = None) -> int:
    """Push from the stack that the command line names; return the exit code."""
    parser = Parser("push", "BUILDER", __doc__)
    parser.add_argument("builder", nargs="?", metavar="BUILDER", help="only this one")
    chosen = parser.parse_args(arguments)
    return run(lambda: _push(chosen.stack, chosen.builder))


def _push(stack: str, builder: str | None) -> int:
    state = read_state(stack)
    users = {
        access["accessKeyId"]: name for name, access in state.stack_output("builders", {}).items()
    }
    commands = {users[user]: urn for urn in state.resources for user in pushing(urn)}
    if builder is not None and builder not in commands:
        known = f"; there are {', '.join(sorted(commands))}" if commands else ""
        raise OperationError(f"no builder {builder} of stack {stack} pushes by a deployment{known}")
    if not commands:
        raise OperationError(
            f"no builder of stack {stack} pushes by a deployment; give one closures, or let it "
            "push by itself"
        )
    chosen = sorted(commands) if builder is None else [builder]
    targets = [f"--target-replace={commands[name]}" for name in chosen]
    targets += [
        f"--target={urn}"
        for urn, resource in state.resources.items()
        if resource["type"] == _CLOSURE and users.get(urn.rpartition("::")[2]) in chosen
    ]
    if on_terminal("up", "--yes", "--skip-preview", "--stack", stack, *targets) != 0:
        return CANNOT_RUN
    outputs = read_output("stack", "output", "builders", "--stack", stack)
    for name in chosen:
        print(f"{name}: {str(outputs[name]['lastPush']).strip()}")
    return DONE


def pushing(urn: str) -> Iterator[str]:
    """Yield the user that a resource pushes as, if it is any's push."""
    types, name = urn.split("::")[2], urn.rpartition("::")[2]
    if any(types.endswith(f"{_PUSH}${command}") for command in _COMMANDS):
        yield name.removesuffix("-push")


if __name__ == "__main__":
    sys.exit(main())
