"""The commands that `make` gives: what each takes, and what it does."""

from __future__ import annotations

import errno
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from toolbox import cache, debian_packages, dev_stack, stacks, throwaway_builder, tools
from toolbox.base_tree import DEFAULT_SUITE, EQUIPMENT, SUITES, base_tree
from toolbox.errors import ToolboxError
from toolbox.progress import NO_SPACE, say
from toolbox.servers import ceph_rgw
from toolbox.stacks import DEV, Stack

FAILED = 2

_ENOUGH = 1 << 20
"""Bytes; with fewer, nothing here gets far."""


@dataclass(frozen=True)
class Call:
    """What a person has given a command, as `make`'s variables."""

    verb: str
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def stack(self) -> str:
        """The stack's name; the dev stack's where none is named, whatever is selected."""
        return self.given.get("STACK") or DEV

    @property
    def arguments(self) -> list[str]:
        """The words of ARGS.

        Raises:
            ToolboxError: a quotation in it has no end.
        """
        text = self.given.get("ARGS", "")
        try:
            return shlex.split(text)
        except ValueError:
            raise ToolboxError(f"ARGS is {text!r}: a quotation in it has no end") from None


@dataclass(frozen=True)
class Command:
    """A command: the variables that it takes, and what it does."""

    run: Callable[[Call], int]
    variables: Sequence[str] = ()


def run(words: Sequence[str]) -> int:
    """Run the command that `words` name; return its exit code."""
    try:
        call = _call(words)
        return COMMANDS[call.verb].run(call)
    except ToolboxError as error:
        say(f"error: {_full() or error}")
    except OSError as error:
        say(f"error: {_full() or _reason(error)}")
    return FAILED


def _call(words: Sequence[str]) -> Call:
    verb, *pairs = words or [""]
    if verb not in COMMANDS:
        raise ToolboxError(f"there is no {verb or 'empty command'}; make lists what there is")
    allowed = COMMANDS[verb].variables
    given = {}
    for pair in (*_variables_of_make(), *pairs):
        name, _, value = pair.partition("=")
        if name not in (*allowed, *MAKES_OWN):
            takes = f"it takes {' and '.join(allowed)}" if allowed else "it takes none"
            raise ToolboxError(f"make {verb} has no variable {name}; {takes}")
        given[name] = value
    return Call(verb, given)


def _variables_of_make() -> list[str]:
    """Return the variables on make's command line; those of the environment are not meant."""
    # GNU make, "Communicating Options to a Sub-make": options, two hyphens, and the variables.
    _, _, overrides = f" {os.environ.get('MAKEFLAGS', '')}".partition(" -- ")
    # A blank or a backslash within a value has a backslash before it.
    words = re.findall(r"(?:\\.|[^\s\\])+", overrides)
    names = [word.partition("=")[0].rstrip(":?+!") for word in words]
    return [f"{name}={os.environ.get(name, '')}" for name in names]


def _full() -> str | None:
    """Return where there is no space, in one sentence: what fails there says anything else."""
    for directory in (stacks.HOME, cache.directory(), Path(os.environ.get("TMPDIR") or "/tmp")):
        if directory.exists() and shutil.disk_usage(directory).free < _ENOUGH:
            return f"{directory}: {NO_SPACE}"
    return None


def _reason(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}{NO_SPACE}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}this user may not write there; take a checkout of your own"
    return f"{where}{error.strerror or error}"


def _up(call: Call) -> int:
    if call.stack != DEV and not stacks.is_on_own_server(call.stack):
        return _engine(call, ["up"])
    say(f"stack {call.stack}, on this machine's server")
    stack = dev_stack.up(call.stack)
    dev_stack.tell_of_the_cache(stack)
    try:
        reach = dev_stack.reach_client()
    except ToolboxError as error:
        say(f"{error}; on a machine with Nix: make pull")
        return 0
    return _operate(stack, "pull", reach)


def _down(_: Call) -> int:
    dev_stack.down()
    return 0


def _clean(_: Call) -> int:
    dev_stack.clean()
    return 0


def _pulumi(call: Call) -> int:
    words = call.arguments
    if not words:
        raise ToolboxError('ARGS is missing; write make pulumi ARGS="preview"')
    if any(word.partition("=")[0] in ("--stack", "-s") for word in words):
        raise ToolboxError("ARGS names a stack; write it as STACK=NAME beside ARGS")
    if words[:2] == ["stack", "init"]:
        raise ToolboxError("a stack is made by make stack NAME=staging")
    return _engine(call, words)


def _engine(call: Call, words: Sequence[str]) -> int:
    stack = stacks.existing(call.stack)
    say(str(stack))
    code = stack.on_terminal(words)
    if code != 0:
        raise ToolboxError(f"pulumi {words[0]} failed with exit code {code}; see above")
    return 0


def _stack(call: Call) -> int:
    name, server = call.given.get("NAME", ""), call.given.get("SERVER", "")
    if not name:
        raise ToolboxError("NAME is missing; write make stack NAME=staging")
    if server not in ("", DEV):
        raise ToolboxError(
            f"SERVER is {server!r}; write {DEV} for this machine's server, or leave it out and "
            "set endpoint, minioUser and minioPassword"
        )
    made = dev_stack.make_stack(name) if server == DEV else stacks.create(name)
    file = made.stack.settings_file.name
    if made.names:
        own = [f"a {what} {own}" for what, own in made.names.items()]
        say(f"{made.stack}: {_listed(own)} of its own")
    if made.kept:
        say(f"{made.stack}: {file} keeps {_listed(made.kept)}")
    if made.missing:
        say(f"{file} wants {_listed(made.missing)}: see docs/settings.md")
    else:
        say(f"make up STACK={name} brings it up")
    return 0


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _shell(call: Call) -> int:
    return dev_stack.shell(call.stack)


def _pull(call: Call) -> int:
    words = call.arguments
    stack = _told(call)
    return _operate(
        stack, "pull", words if "--help" in words else [*dev_stack.reach_client(), *words]
    )


def _operation(call: Call) -> int:
    arguments = call.arguments
    if call.verb == "push" and "BUILDER" in call.given:
        arguments.append(call.given["BUILDER"])
    stack = None if "--help" in arguments else _told(call)
    return _operate(stack, call.verb, arguments)


def _import(call: Call) -> int:
    arguments = call.arguments
    for name in ("FROM", "KEYS"):
        if call.given.get(name):
            arguments += [f"--{name.lower()}", call.given[name]]
    if call.given.get("PATHS"):
        arguments += ["--paths", call.given["PATHS"]]
    stack = None if "--help" in arguments else _told(call)
    return _operate(stack, "import_cache", arguments)


def _told(call: Call) -> Stack:
    """Return the stack that an operation is told, which says itself where there is none."""
    stack = stacks.named(call.stack)
    say(str(stack))
    return stack


_FILE_OPTIONS = ("--ca-file", "--json", "--netrc-file", "--output", "--paths", "--prometheus")


def _from_here(words: Sequence[str]) -> list[str]:
    """Return an operation's arguments with the files in them found from the stack's directory.

    It runs there, and who calls it means files where the call is made.
    """
    found: list[str] = []
    before = ""
    for word in words:
        name, equals, file = word.partition("=")
        if before in _FILE_OPTIONS:
            found.append(_absolute(word))
        elif equals and name in _FILE_OPTIONS:
            found.append(f"{name}={_absolute(file)}")
        else:
            found.append(word)
        before = word
    return found


def _place_of_a_report(name: str, words: Sequence[str]) -> list[str]:
    """Return the option with which a report without a place of its own lies where it is asked for.

    In the stack's directory nobody would look for it.
    """
    if any(word.partition("=")[0] in ("--output", "--help", "-h") for word in words):
        return []
    with suppress(OSError):
        Path("build").mkdir(exist_ok=True)
    # A stack's full name has slashes.
    return ["--output", f"build/report-{name.rpartition('/')[2]}.html"]


def _absolute(file: str) -> str:
    return file if file in ("", "-") else str(Path(file).absolute())


def _operate(stack: Stack | None, operation: str, arguments: Sequence[str]) -> int:
    """Run a module of `operations` on a stack, on this terminal; return its exit code."""
    module = f"operations.{operation.replace('-', '_')}"
    words = list(arguments)
    if stack is not None:
        if operation == "report":
            words += _place_of_a_report(stack.name, words)
        words = ["--stack", stack.name, *_from_here(words)]
        os.environ.clear()
        os.environ.update(stack.environment)
        os.chdir(stack.directory)
    sys.argv = [module, *words]
    try:
        # In this process: an interruption finds one that is ready for it.
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    return 0


def _tools(_: Call) -> int:
    engine = tools.engine()
    dev_stack.tell([engine, tools.language_host(engine), tools.server(), tools.client()])
    dev_stack.tell(tools.install_plugins(Path(tools.CHECKOUT) / "build" / "pulumi"))
    return 0


def _workflow_linter(_: Call) -> int:
    """Print where the linter of workflows is."""
    print(tools.workflow_linter().path)
    return 0


def _sbom(_: Call) -> int:
    from toolbox import supply_chain  # noqa: PLC0415 (no other command needs its library)

    print(supply_chain.bill_of_materials())
    return 0


def _vulnerabilities(_: Call) -> int:
    from toolbox import supply_chain  # noqa: PLC0415

    supply_chain.look_for_vulnerabilities()
    return 0


def _prepare(call: Call) -> int:
    """Get everything that the tests need, so that they wait for nothing."""
    _tools(call)
    dev_stack.tell([tools.seaweedfs()])
    reason = throwaway_builder.available()
    if reason:
        say(f"no throwaway builder: {reason}")
        return 0
    debian_packages.install()
    debian_packages.install(debian_packages.FOR_TESTS)
    for suite in SUITES:
        base_tree(suite)
    base_tree(DEFAULT_SUITE, EQUIPMENT)
    ceph_rgw.tree()
    return 0


MAKES_OWN = ("PYTHON", "VENV")
"""Variables of the Makefile itself."""

COMMANDS = {
    "up": Command(_up, ["STACK"]),
    "down": Command(_down),
    "clean": Command(_clean),
    "pulumi": Command(_pulumi, ["STACK", "ARGS"]),
    "stack": Command(_stack, ["NAME", "SERVER"]),
    "push": Command(_operation, ["STACK", "BUILDER", "ARGS"]),
    "pull": Command(_pull, ["STACK", "ARGS"]),
    "shell": Command(_shell, ["STACK"]),
    "status": Command(_operation, ["STACK", "ARGS"]),
    "report": Command(_operation, ["STACK", "ARGS"]),
    "audit": Command(_operation, ["STACK", "ARGS"]),
    "drift": Command(_operation, ["STACK", "ARGS"]),
    "repair": Command(_operation, ["STACK", "ARGS"]),
    "empty": Command(_operation, ["STACK", "ARGS"]),
    "check-server": Command(_operation, ["STACK", "ARGS"]),
    "import": Command(_import, ["STACK", "FROM", "KEYS", "PATHS", "ARGS"]),
    "preview-markdown": Command(_operation, ["STACK", "ARGS"]),
    "tools": Command(_tools),
    "workflow-linter": Command(_workflow_linter),
    "sbom": Command(_sbom),
    "vulnerabilities": Command(_vulnerabilities),
    "prepare": Command(_prepare),
}
