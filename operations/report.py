"""Writes a report of a stack's cache: one HTML page that asks for nothing else.

It shows what make status shows, as a picture: what is how old, what expires when, and how the cache
has grown since former reports, whose figures the page keeps itself. With --publish, the cache's own
page for people shows three of its numbers. Exit code 0: it is written; 2: it could not be done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from components.retention import PAGE_KEY
from components.text_object import object_resource
from operations.cache_status import Status
from operations.command_line import CANNOT_RUN, DONE, Parser, run
from operations.deployed_stack import DeployedStack, read_deployed
from operations.output_file import write_whole
from operations.pulumi_cli import OperationError, on_terminal
from operations.report_page import (
    LARGEST_PAGE,
    Reported,
    figures_of,
    history_of,
    history_with,
    report_page,
)
from operations.status import status_of
from operations.undeployed import refuse_undeployed
from program.checks.recorded import OBJECT, Recorded
from program.outputs.counted import counted
from program.outputs.figures import VARIABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of the stack that the command line names; return the exit code."""
    parser = Parser("report", "[--output FILE] [--publish]", __doc__)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where it is written (build/report-NAME.html)"
    )
    parser.add_argument(
        "--publish", action="store_true", help="show three numbers on the cache's page for people"
    )
    chosen = parser.parse_args(arguments)
    return run(lambda: _report(chosen.stack, chosen.output, publish=chosen.publish))


def _report(name: str, output: Path | None, *, publish: bool) -> int:
    stack, state = read_deployed(name, whole=publish)
    page = _page(stack, state) if publish else []
    # A stack's full name has slashes.
    file = output or Path("build", f"report-{name.rpartition('/')[2]}.html")
    if output is None:
        with suppress(OSError):
            file.parent.mkdir(exist_ok=True)
    status = status_of(stack, state, "report")
    history = history_with(former(file, status), status)
    write_whole(file, report_page(status, history))
    found = ", ".join(
        (counted(len(status.findings), "finding"), counted(len(status.notices), "notice"))
    )
    print(f"{file}: {counted(status.entries, 'entry', 'entries')}, {found}")
    return _publish(name, page, status) if publish else DONE


def former(file: Path, status: Status) -> list[Reported]:
    """Return the figures that a report of the same cache at this place keeps of those before it."""
    try:
        # Of a terminal or a pipe, nobody would ever come to the end.
        if not file.is_file():
            return []
        with file.open(encoding="utf-8", errors="replace") as before:
            return history_of(before.read(LARGEST_PAGE), status)
    except OSError:
        return []


def check_page(stack: DeployedStack, state: Recorded) -> None:
    """Refuse to publish where no page shows it, or where settings would be in force by halves.

    The engine writes the page by the settings, and all of the stack's outputs.

    Args:
        stack: the stack, with all of its settings.
        state: its state, as the last deployment left it.

    Raises:
        OperationError: the cache is private, or its setting is off; or as `refuse_undeployed`.
    """
    if stack.settings.private:
        raise OperationError(f"stack {stack.name}: a private cache has no page for people")
    if not stack.settings.page_figures:
        raise OperationError(
            f"stack {stack.name}: its page shows no figures; set pageFigures to true"
        )
    refuse_undeployed(stack.name, stack.settings, state)


def _page(stack: DeployedStack, state: Recorded) -> list[str]:
    """Return the option that lets the page alone be written.

    Raises:
        OperationError: as `check_page`; or no deployment has put the page there, and without a
            target the engine would deploy everything.
    """
    check_page(stack, state)
    target = list(page_options(state, stack.settings.bucket))
    if not target:
        raise OperationError(
            f"stack {stack.name}: its cache has no page {PAGE_KEY} yet to show the figures; deploy "
            "it first"
        )
    return target


def _publish(name: str, target: Sequence[str], status: Status) -> int:
    """Let the engine write the page again, with these figures and nothing else."""
    os.environ[VARIABLE] = str(figures_of(status))
    try:
        code = on_terminal("up", "--yes", "--skip-preview", "--stack", name, *target)
    finally:
        del os.environ[VARIABLE]
    return DONE if code == 0 else CANNOT_RUN


def page_options(state: Recorded, bucket: str) -> Iterator[str]:
    """Yield the option of `pulumi up` that lets the page of a bucket alone be written."""
    # One under a former name gets the present one by a whole deployment only.
    name = f"::{object_resource(bucket, PAGE_KEY)}"
    for urn, resource in state.resources.items():
        if resource["type"] == OBJECT and urn.endswith(name):
            yield f"--target={urn}"


if __name__ == "__main__":
    sys.exit(main())
