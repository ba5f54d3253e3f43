"""`python -m toolbox VERB`: what the Makefile's lines call."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from toolbox import debian_packages, dev_stack, throwaway_builder, tools
from toolbox.base_tree import SUITES, base_tree
from toolbox.errors import ToolboxError
from toolbox.progress import say

INTERRUPTED = 130
OPERATIONS = {
    "audit": "audit the dev stack's cache",
    "drift": "tell whether the dev stack is on the server as it was declared",
    "repair": "put back what differs on the dev stack's server",
    "push": "let the dev stack's builder push again now",
    "empty": "remove what the dev stack's bucket holds",
    "preview-markdown": "report in Markdown what the dev stack's next up would change",
}
"""Modules of `operations` and what they do."""


def take_tools() -> None:
    """Get every tool and say where it came from."""
    engine = tools.engine()
    dev_stack.tell([engine, tools.language_host(engine), tools.server(), tools.client()])
    dev_stack.tell(tools.install_plugins(Path(tools.CHECKOUT) / "build" / "pulumi"))


def prepare() -> None:
    """Get everything that the tests need, so that they wait for nothing."""
    take_tools()
    reason = throwaway_builder.available()
    if reason:
        say(f"no throwaway builder: {reason}")
        return
    debian_packages.install()
    debian_packages.install(debian_packages.FOR_TESTS)
    for suite in SUITES:
        base_tree(suite)


def main() -> int:
    """Run the verb; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m toolbox", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="bring up the dev stack on this machine")
    verbs.add_parser("down", help="stop its server and builder")
    verbs.add_parser("clean", help="stop them and remove .dev")
    verbs.add_parser("tools", help="get the tools and say where each came from")
    verbs.add_parser("prepare", help="get everything that the tests need")
    engine = verbs.add_parser("pulumi", help="run a command of the engine on the dev stack")
    engine.add_argument("arguments", help="the command with its arguments, as one text")
    for name, words in OPERATIONS.items():
        operation = verbs.add_parser(name, help=words)
        operation.add_argument("arguments", help="its arguments, as one text")
    chosen = parser.parse_args()
    try:
        match chosen.verb:
            case "up":
                dev_stack.up()
            case "down":
                dev_stack.down()
            case "clean":
                dev_stack.clean()
            case "tools":
                take_tools()
            case "prepare":
                prepare()
            case "pulumi":
                dev_stack.pulumi(shlex.split(chosen.arguments))
            case _:
                module = chosen.verb.replace("-", "_")
                return dev_stack.operate(module, shlex.split(chosen.arguments))
    except ToolboxError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("\ninterrupted; run the command again to go on")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
