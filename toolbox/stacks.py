"""Where the engine runs for a stack: its directory, and the environment that finds its backend.

A stack of this machine's own server lies in `.dev/stacks`. Every other one is its owner's: it lies
in the checkout, and the engine, backend and passphrase are the owner's where there are any; else
the toolbox's engine, with `.dev/state` as backend.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from toolbox import tools
from toolbox.errors import ToolboxError
from toolbox.progress import say

DEV = "dev"
"""The stack that is meant where none is named."""

HOME = tools.CHECKOUT / ".dev"
MACHINE = HOME / "machine.json"
"""What this machine adds to the settings of its stacks, and the engine that runs them."""

COMMITTED = tools.CHECKOUT / f"Pulumi.{DEV}.yaml"
"""What the dev stack starts from; what a person sets takes its place."""

PROGRAM = ("__main__.py", "components", "formats", "program", "push", ".venv")
NAMESPACE = "nixcache"
NEEDED = ("endpoint", "minioUser", "minioPassword")
"""The settings without which no stack can be brought up; a person knows them."""

_STACK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_NEW_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
}


_NO_SUCH_STACK = "no stack named"
"""What the engine says of a stack that its backend has not (pulumi, `pkg/cmd/pulumi/stack`)."""

_OTHER_PASSPHRASE = "incorrect passphrase"
"""What the engine says of a file's salt that is not the passphrase's (pulumi, `pkg/secrets`)."""

_THERE_ALREADY = "already exists"
"""What the engine says of a new stack whose name its backend has (pulumi, `pkg/backend`)."""

_INTERRUPTED = b"confirmation cancelled"
"""What the engine says of a question that is answered with Ctrl-C (pulumi, `pkg/backend`)."""

_REMEMBERED = 1000


class _Errors(threading.Thread):
    """Passes on what the CLI writes to standard error.

    While it asks a question it reads the terminal itself, and Ctrl-C is a key as any other: no
    process hears an interruption, and the exit code is that of the answer no. It says it in words.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        """Begin with it."""
        super().__init__(daemon=True)
        self._pipe = pipe
        self._last = b""
        self.start()

    def run(self) -> None:
        """Pass on until there is no more."""
        while data := os.read(self._pipe.fileno(), 1 << 16):
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
            self._last = (self._last + data)[-_REMEMBERED:]

    def interrupted(self) -> bool:
        """Tell whether the CLI, which has ended, did so because a question was interrupted."""
        self.join(1)
        return _INTERRUPTED in self._last


@dataclass(frozen=True)
class Stack:
    """A stack, and how the engine is run on it."""

    name: str
    directory: Path
    """The project's directory: the engine's working directory."""
    environment: Mapping[str, str]
    own_server: bool
    """Whether its server and builder are this machine's."""

    def __str__(self) -> str:
        """Return what a person is told that a command acts on."""
        if self.own_server:
            return f"stack {self.name}, on this machine's server"
        return f"stack {self.name}"

    @property
    def settings_file(self) -> Path:
        """Where a person's settings of it are."""
        return _settings_file(self.directory, self.name)

    @property
    def settings(self) -> dict[str, Any]:
        """What a person has set of it, by the settings' bare names.

        Raises:
            ToolboxError: its file cannot be read.
        """
        return _settings(self.settings_file)

    def on_terminal(self, arguments: Sequence[str]) -> int:
        """Run the engine's command on this terminal, with its questions; return its exit code.

        Raises:
            KeyboardInterrupt: it was interrupted, and ended in order.
        """
        process = subprocess.Popen(
            ["pulumi", *arguments],
            cwd=self.directory,
            env={**self.environment},
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        errors = _Errors(process.stderr)
        interrupted = False
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                # The terminal has sent it to the engine too, which ends in order; so do we.
                interrupted = True
        if code < 0 and self.own_server:
            _remove_locks_of(process.pid)
        # Even where it succeeds: all of it is passed on by then.
        interrupted |= errors.interrupted()
        if interrupted and code != 0:
            raise KeyboardInterrupt
        return code

    def quietly(self, *arguments: str, text: str = "") -> str:
        """Run the engine's command without a terminal, and return what it prints.

        Raises:
            ToolboxError: it failed; the message is the engine's.
        """
        done = subprocess.run(
            ["pulumi", "--non-interactive", "--color=never", *arguments],
            cwd=self.directory,
            env={**self.environment},
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            reason = (errors or [f"exit code {done.returncode}"])[0].removeprefix("error: ")
            raise ToolboxError(f"pulumi {arguments[0]} failed: {reason}")
        return done.stdout


@dataclass(frozen=True)
class Made:
    """A stack that has just been made, and what its settings come to."""

    stack: Stack
    names: Mapping[str, str]
    """The names of its own that it was given, by what they are names of."""
    kept: Sequence[str]
    """The settings that its file had already."""
    missing: Sequence[str]
    """The settings that a person has to add before it can be brought up."""


def existing(name: str) -> Stack:
    """Return the stack of that name.

    Raises:
        ToolboxError: the name is none, or there is no such stack.
    """
    stack = named(name)
    if not stack.own_server and _is_missing(stack):
        # On a terminal the engine would offer another one in its place.
        raise ToolboxError(
            f"there is no stack {name}; write the name of one that is there, or make it first: "
            f"make stack NAME={name}"
        )
    return stack


def named(name: str) -> Stack:
    """Return the stack that a name means, whether the backend has it or not.

    Raises:
        ToolboxError: the name is none, or there is no dev stack.
    """
    if not _STACK_NAME.fullmatch(name):
        raise ToolboxError(f"STACK is {name!r}; write a stack's name, such as {DEV} or homelab")
    if is_on_own_server(name):
        return machine_stack(name)
    if name == DEV:
        raise ToolboxError("there is no dev stack yet; run make up first")
    return owners_stack(name)


def _is_missing(stack: Stack) -> bool:
    """Return whether the backend answers that it has no such stack."""
    try:
        stack.quietly("stack", "--stack", stack.name, "--show-name")
    except ToolboxError as error:
        # Whatever else keeps it from answering, the command itself says, or asks for.
        return _NO_SUCH_STACK in str(error)
    return False


def is_on_own_server(name: str) -> bool:
    """Return whether a stack of that name is on this machine's server."""
    return bool(_NEW_NAME.fullmatch(name)) and _settings_file(_directory(name), name).exists()


def machine_stack(name: str) -> Stack:
    """Return a stack on this machine's server, with the project's files as they are now.

    Raises:
        ToolboxError: a committed setting of it cannot be used, or an earlier version made `.dev`.
    """
    if (HOME / "project").exists():
        raise ToolboxError(f"an earlier version made {HOME}; make clean removes it")
    directory = _directory(name)
    directory.mkdir(parents=True, exist_ok=True)
    for part in PROGRAM:
        link = directory / part
        if not link.is_symlink():
            link.symlink_to(Path("../../..") / part)
    project = yaml.safe_load((tools.CHECKOUT / "Pulumi.yaml").read_text())
    committed = _committed() if name == DEV else {}
    project["config"] = with_defaults(project["config"], machine().get("settings", {}))
    project["config"] = with_defaults(project["config"], committed, COMMITTED.name)
    draft = directory / ".Pulumi.yaml"
    draft.write_text(yaml.safe_dump(project, sort_keys=False))
    draft.rename(directory / "Pulumi.yaml")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")},
        **_engine(HOME / "pulumi"),
        **_own_backend(),
        "PULUMI_STACK": name,
    }
    # The builder's key is a setting; an agent that does not answer would fail the connection.
    environment.pop("SSH_AUTH_SOCK", None)
    stack = Stack(name, directory, environment, own_server=True)
    _tell_of_two_values(stack, committed)
    return stack


def owners_stack(name: str) -> Stack:
    """Return a stack of the owner's, with the toolbox's engine and backend where there is none."""
    environment = dict(os.environ)
    if shutil.which("pulumi") is None:
        home = Path(os.environ.get("PULUMI_HOME") or HOME / "pulumi")
        HOME.mkdir(mode=0o700, exist_ok=True)
        if not (home / "plugins").exists():
            tools.install_plugins(home)
        environment |= _engine(home)
    if not _has_backend():
        environment |= _own_backend()
    return Stack(name, tools.CHECKOUT, {**environment, "PULUMI_STACK": name}, own_server=False)


def create(name: str, *, on_own_server: bool = False) -> Made:
    """Make a stack whose bucket and key have names of their own, where its file names none.

    Raises:
        ToolboxError: the name cannot be a bucket's, the stack is there already, with its file or
            without, or its file cannot be read or has another passphrase.
    """
    if not _NEW_NAME.fullmatch(name):
        raise ToolboxError(
            f"NAME is {name!r}; write 1 to 32 lower-case letters, digits and hyphens, "
            "such as staging"
        )
    if name == DEV:
        raise ToolboxError(f"NAME is {DEV!r}, which is the stack of make up; take another")
    if on_own_server and not is_on_own_server(DEV):
        raise ToolboxError("there is no dev server yet; run make up first")
    if is_on_own_server(name):
        raise ToolboxError(f"there is a stack {name} already")
    stack = machine_stack(name) if on_own_server else owners_stack(name)
    try:
        kept = stack.settings
        _initialize(stack)
        names = _name(stack, kept)
    except BaseException:
        if on_own_server:
            shutil.rmtree(stack.directory)
        raise
    missing = [] if on_own_server else [setting for setting in NEEDED if setting not in kept]
    return Made(stack, names, list(kept), missing)


def _initialize(stack: Stack) -> None:
    """Make a stack for the engine; what is selected stays so."""
    try:
        stack.quietly("stack", "init", "--no-select", stack.name)
    except ToolboxError as error:
        if _THERE_ALREADY in str(error) and not stack.settings_file.exists():
            raise _without_its_file(stack) from None
        if _OTHER_PASSPHRASE not in str(error):
            raise
        raise ToolboxError(
            f"{stack.settings_file.name} is encrypted with another passphrase; take encryptionsalt "
            "and every setting that is secure out of it, then make it: "
            f"make stack NAME={stack.name}, and set those anew"
        ) from None


def _without_its_file(stack: Stack) -> ToolboxError:
    """Return the refusal of a stack that the backend has, and whose settings are not here."""
    there = f"there is a stack {stack.name} already, without its {stack.settings_file.name}; "
    if stack.own_server:
        # No command means a stack of this machine's server whose file is gone.
        return ToolboxError(f"{there}put that back into {stack.directory}, or take another NAME")
    return ToolboxError(
        f'{there}make pulumi STACK={stack.name} ARGS="config refresh" writes it as it was last '
        f'deployed, and make pulumi STACK={stack.name} ARGS="stack rm" removes what never was'
    )


def _name(stack: Stack, kept: Mapping[str, Any]) -> dict[str, str]:
    """Give bucket and key of a new stack names of their own where they have none; return those."""
    names = {}
    bucket = f"nix-cache-{stack.name}"
    if "bucket" not in kept:
        stack.quietly("config", "set", "bucket", bucket)
        names["bucket"] = bucket
    if "signingKeys" not in kept:
        domains = kept.get("signingKeyDomains")
        if not domains:
            stack.quietly("config", "set", "--path", "signingKeyDomains[0]", bucket)
        # A key may be named after any domain of the list.
        domain = domains[0] if domains and isinstance(domains, list) else bucket
        names["key"] = f"{domain}-1"
        stack.quietly("config", "set", "--path", "signingKeys[0]", names["key"])
    return names


def with_defaults(
    schema: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any], source: str = ""
) -> dict[str, dict[str, Any]]:
    """Return a project's settings with `values` as their defaults.

    Args:
        schema: the `config` of `Pulumi.yaml`.
        values: by the setting's name.
        source: where they come from, for the message of a refusal.

    Raises:
        ToolboxError: a value is not of its setting's type.
    """
    settings = {name: dict(declared) for name, declared in schema.items()}
    for name, value in values.items():
        declared = settings.setdefault(name, {})
        kind = declared.get("type")
        # Python's booleans are integers too.
        if kind and (
            not isinstance(value, _TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))
        ):
            raise ToolboxError(f"{source}: {name} is {json.dumps(value)}; write one {kind}")
        declared["default" if kind else "value"] = value
    return settings


def _directory(name: str) -> Path:
    return HOME / "stacks" / name


def _settings_file(directory: Path, name: str) -> Path:
    return directory / f"Pulumi.{name}.yaml"


def _settings(file: Path) -> dict[str, Any]:
    """Return the settings of a stack's file by their bare names; none where there is no file."""
    if not file.exists():
        return {}
    try:
        config = (yaml.safe_load(file.read_text()) or {}).get("config") or {}
        # The engine takes one without a namespace for the project's, too.
        keys = [str(key).rpartition(":") for key in config]
        return {
            setting: value
            for (namespace, _, setting), value in zip(keys, config.values(), strict=True)
            if namespace in ("", NAMESPACE)
        }
    except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
        raise ToolboxError(f"{file.name} is no YAML with a config; mend it") from None


def machine() -> dict[str, Any]:
    """Return what the last `make up` noted of this machine; nothing before the first."""
    return dict(json.loads(MACHINE.read_text())) if MACHINE.exists() else {}


def note_machine(settings: Mapping[str, Any], engine: Path) -> None:
    """Note what this machine adds to its stacks' settings, and the engine that runs them."""
    draft = MACHINE.with_suffix(".new")
    draft.write_text(json.dumps({"settings": dict(settings), "engine": str(engine)}))
    draft.rename(MACHINE)


def _engine(home: Path) -> dict[str, str]:
    """Return the environment that finds the engine, without a look for a newer one each time."""
    noted = Path(machine().get("engine", ""))
    return tools.engine_environment(home, noted if noted.is_file() else None)


def _committed() -> dict[str, Any]:
    """Return the settings that the checkout itself has for the dev stack, by their bare names."""
    if not COMMITTED.exists():
        return {}
    try:
        config = (yaml.safe_load(COMMITTED.read_text()) or {}).get("config") or {}
        keys = [str(key).partition(":") for key in config]
    except (yaml.YAMLError, AttributeError, TypeError):
        raise ToolboxError(f"{COMMITTED.name} is no YAML with a config; mend it") from None
    settings = {}
    for (namespace, _, setting), value in zip(keys, config.values(), strict=True):
        if namespace != NAMESPACE or not setting:
            raise ToolboxError(
                f"{COMMITTED.name}: {namespace} is none of this program's settings; write "
                f"{NAMESPACE}:NAME"
            )
        if isinstance(value, dict) and "secure" in value:
            raise ToolboxError(
                f"{COMMITTED.name}: {setting} is a secret, which only the stack itself can read; "
                f'take it out, then make pulumi ARGS="config set --secret {setting}"'
            )
        settings[setting] = value
    return settings


def _tell_of_two_values(stack: Stack, committed: Mapping[str, Any]) -> None:
    """Say which setting of the committed file another one takes the place of."""
    settings = stack.settings
    for name, value in committed.items():
        chosen = settings.get(name, value)
        if str(chosen).lower() != str(value).lower():
            say(
                f"{name} is {chosen} as you set it, not {value} as {COMMITTED.name} says; "
                f'make pulumi ARGS="config rm {name}" goes back to that'
            )


def elsewhere() -> list[str]:
    """Return the stacks whose state is in `.dev` and whose resources are on another server.

    A state that cannot be read counts as one with resources.

    Raises:
        ToolboxError: the settings of a stack of this machine cannot be used.
    """
    found = []
    for file in sorted((HOME / "state" / ".pulumi" / "stacks").rglob("*.json*")):
        name = re.sub(r"\.json(\.gz)?$", "", file.name)
        # Beside it are an earlier version of it and the attributes of both.
        if name != file.name and not _goes_with_the_server(name) and _has_resources(file):
            found.append(name)
    return found


def _goes_with_the_server(name: str) -> bool:
    """Return whether all of a stack's resources are on this machine's server."""
    if name != DEV and not is_on_own_server(name):
        return False
    chosen = _settings(_settings_file(_directory(name), name)).get("endpoint")
    if chosen is None and name == DEV:
        chosen = _committed().get("endpoint")
    return chosen in (None, machine().get("settings", {}).get("endpoint"))


def _has_resources(file: Path) -> bool:
    """Return whether a state has more than the engine's own: the stack itself, and providers.

    Source: pulumi, `sdk/go/common/apitype/core.go`.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        latest = json.loads(content)["checkpoint"].get("latest") or {}
        resources = [
            *(latest.get("resources") or []),
            # What was being made when the engine ended may be there.
            *(operation["resource"] for operation in latest.get("pending_operations") or []),
        ]
        return not all(
            re.match(r"pulumi:(pulumi:Stack$|providers:)", resource["type"])
            for resource in resources
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return True


def _remove_locks_of(pid: int) -> None:
    """Remove the locks of an engine that a signal ended before it listened to any.

    Source: pulumi, `pkg/backend/diy/lock.go`.
    """
    for lock in (HOME / "state" / ".pulumi" / "locks").rglob("*.json"):
        if json.loads(lock.read_text()).get("pid") == pid:
            lock.unlink()
            lock.with_name(f"{lock.name}.attrs").unlink(missing_ok=True)


def _own_backend() -> dict[str, str]:
    (HOME / "state").mkdir(mode=0o700, parents=True, exist_ok=True)
    passphrase = HOME / "passphrase"
    if not passphrase.exists():
        passphrase.touch(mode=0o600)
        passphrase.write_text(secrets.token_urlsafe(30))
    return {
        "PULUMI_BACKEND_URL": f"file://{HOME / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase),
    }


def _has_backend() -> bool:
    """Return whether this user has chosen a backend, by the environment or `pulumi login`."""
    if os.environ.get("PULUMI_BACKEND_URL"):
        return True
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    try:
        return bool(json.loads((home / "credentials.json").read_text()).get("current"))
    except (OSError, ValueError, AttributeError):
        return False
