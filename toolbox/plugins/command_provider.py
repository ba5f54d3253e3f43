"""Drop-in for the provider plugin `command` 1.2.1: `local.Command` and `remote.Command`.

Everything of these two but `assetPaths` and `archivePaths`. Source of fact: pulumi-command v1.2.1,
`provider/pkg/provider`, and its answers as recorded in `tests/plugins/data`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import secrets
import signal
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, Literal, Protocol, TypeVar

from toolbox.plugins.plugin_server import LAST_SECONDS, Engine
from toolbox.plugins.property_diff import differences
from toolbox.plugins.property_values import UNKNOWN, Properties, Secret, has_unknown, plain
from toolbox.plugins.resource_provider import (
    Difference,
    Failure,
    ResourceError,
    ResourceProvider,
    ResourceType,
    Subject,
    serve_provider,
    system_reason,
)

Result = TypeVar("Result")
Kind = Literal[
    "string",
    "bool",
    "float64",
    "int",
    "[]string",
    "[]interface {}",
    "map[string]string",
    "map[string]interface {}",
]
"""An argument's type, in the words of the official plugin's messages."""

COMMON: dict[str, Kind] = {
    "create": "string",
    "update": "string",
    "delete": "string",
    "triggers": "[]interface {}",
    "stdin": "string",
    "logging": "string",
    "environment": "map[string]string",
    "addPreviousOutputInEnv": "bool",
}
LOCAL: dict[str, Kind] = {**COMMON, "dir": "string", "interpreter": "[]string"}
REMOTE: dict[str, Kind] = {**COMMON, "connection": "map[string]interface {}"}
CONNECTION: dict[str, Kind] = {
    "host": "string",
    "user": "string",
    "port": "float64",
    "password": "string",
    "privateKey": "string",
    "privateKeyPassword": "string",
    "agentSocketPath": "string",
    "dialErrorLimit": "int",
    "perDialTimeout": "int",
    "hostKey": "string",
}
CONNECTION_DEFAULTS = {"user": "root", "port": 22, "dialErrorLimit": 10, "perDialTimeout": 15}
CONNECTION_SECRETS = ("password", "privateKey", "privateKeyPassword")

LOGGED = {
    None: ("stdout", "stderr"),
    "stdoutAndStderr": ("stdout", "stderr"),
    "stdout": ("stdout",),
    "stderr": ("stderr",),
    "none": (),
}
"""`logging` → which of a command's streams the user sees while it runs."""

PREVIOUS = {"stdout": "PULUMI_COMMAND_STDOUT", "stderr": "PULUMI_COMMAND_STDERR"}
"""Output → environment variable that hands it to the next run."""


class Reader(Protocol):
    """One stream of a running command, local or remote."""

    async def read(self, n: int) -> bytes:
        """At most `n` bytes, none at its end."""


class Writer(Protocol):
    """The standard input of a running command, local or remote."""

    def write(self, data: bytes) -> None:
        """Queue `data`."""

    def write_eof(self) -> None:
        """Say that there is no more."""

    async def drain(self) -> None:
        """Wait until the command keeps up."""


class Transcript:
    """What a command printed, its lines shown to the user as they come."""

    def __init__(self, subject: Subject, logging: str | None) -> None:
        self._subject = subject
        self._logged = LOGGED[logging]
        self._both = bytearray()
        self._outputs = {name: bytearray() for name in PREVIOUS}

    async def follow(self, name: str, stream: Reader) -> None:
        """Take the stream `name` to its end."""
        line = b""
        while data := await stream.read(1 << 16):
            self._both += data
            self._outputs[name] += data
            *whole, line = (line + data).split(b"\n")
            for text in whole:
                await self._show(name, text)
        if line:
            await self._show(name, line)

    async def _show(self, name: str, line: bytes) -> None:
        if name in self._logged:
            await asyncio.to_thread(
                self._subject.engine.log,
                line.decode(errors="replace"),
                urn=self._subject.urn,
                passing=True,
            )

    def failed(self, reason: str, command: str) -> ResourceError:
        """Return the error of a command that failed, with all it printed."""
        printed = self._both.decode(errors="replace")
        return ResourceError(
            f"{reason}: running {json.dumps(command, ensure_ascii=False)}:\n{printed}"
        )

    def result(self) -> dict[str, str]:
        """Return `stdout` and `stderr`, each without one final newline."""
        return {
            name: data.decode(errors="replace").removesuffix("\n")
            for name, data in self._outputs.items()
        }


async def _feed(stream: Writer, data: bytes) -> None:
    try:
        stream.write(data)
        await stream.drain()
        stream.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        # A command may end without having read all of its input.
        return


class Tasks:
    """Runs coroutines for the plugin's threads, until the engine wants everything to end."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._running: set[asyncio.Task[Any]] = set()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Return its result.

        Raises:
            ResourceError: `cancel` came first.
        """
        try:
            return asyncio.run_coroutine_threadsafe(self._known(coroutine), self._loop).result()
        except concurrent.futures.CancelledError:
            raise ResourceError("the command was cancelled") from None

    async def _known(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.current_task()
        assert task
        self._running.add(task)
        try:
            return await coroutine
        finally:
            self._running.discard(task)

    def cancel(self) -> None:
        """Cancel what runs, and return when it has ended, at most `LAST_SECONDS` later.

        Whoever cancels may end this process next, and a coroutine that was only told to end would
        leave its command running.
        """
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()

    async def _end(self) -> None:
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=LAST_SECONDS)


class Command(ResourceType):
    """What local and remote commands have in common: when which of their scripts runs."""

    arguments: Mapping[str, Kind]
    owner: str
    """The arguments' name in messages."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    @abstractmethod
    async def run(
        self, subject: Subject, command: str, inputs: Properties, previous: Mapping[str, str]
    ) -> dict[str, str]:
        """Run `command` as `inputs` say; returns stdout and stderr.

        `previous` is an earlier run's output, as environment variables.
        """

    def check(self, subject: Subject, news: Properties) -> tuple[Properties, list[Failure]]:
        """Types and names of arguments."""
        inputs = {name: value for name, value in news.items() if value is not None}
        failures = type_failures(plain(inputs), self.arguments, self.owner)
        if inputs.get("logging") is not UNKNOWN and plain(inputs.get("logging")) not in LOGGED:
            failures.append(("logging", f"must be one of {', '.join(filter(None, LOGGED))}"))
        return inputs, failures

    def diff(self, state: Properties, old_inputs: Properties, news: Properties) -> Difference:
        """Compare inputs with inputs; a list of triggers that comes or goes replaces."""
        details = differences(old_inputs, news)
        if "triggers" in details:
            details["triggers"] += "_REPLACE"
        return Difference(details)

    def create(self, subject: Subject, inputs: Properties, preview: bool) -> tuple[str, Properties]:
        """Run `create` if there is one."""
        new_id = subject.name + secrets.token_hex(4)
        if preview:
            return new_id, {**inputs, **dict.fromkeys(PREVIOUS, UNKNOWN)}
        return new_id, {**inputs, **self._run(subject, ("create",), inputs, {})}

    def read(
        self, subject: Subject, id: str, state: Properties, inputs: Properties
    ) -> tuple[str, Properties, Properties] | None:
        """As it was: a command that has run cannot be looked at."""
        return id, state, inputs

    def update(
        self, subject: Subject, id: str, state: Properties, news: Properties, preview: bool
    ) -> Properties:
        """Run `update`, or `create` where there is none."""
        stored = {name: state.get(name, "") for name in PREVIOUS}
        if preview:
            unsure = has_unknown(news) or any(
                name in state and state[name] != news.get(name) for name in self.arguments
            )
            return {**news, **(dict.fromkeys(PREVIOUS, UNKNOWN) if unsure else stored)}
        return {**news, **self._run(subject, ("update", "create"), news, stored)}

    def delete(self, subject: Subject, id: str, state: Properties) -> None:
        """Run the stored `delete`, with the stored connection and environment."""
        self._run(subject, ("delete",), state, {name: state.get(name, "") for name in PREVIOUS})

    def _run(
        self, subject: Subject, which: tuple[str, ...], given: Properties, stored: Properties
    ) -> Properties:
        inputs = plain({name: given[name] for name in self.arguments if name in given})
        outputs = {"stdout": "", "stderr": "", **stored}
        command = next((inputs[name] for name in which if name in inputs), None)
        if command is None:
            return outputs
        previous = {}
        if inputs.get("addPreviousOutputInEnv", True):
            texts = plain(outputs)
            previous = {PREVIOUS[name]: texts[name] for name in PREVIOUS if texts[name]}
        return self._tasks.run(self.run(subject, command, inputs, previous))


class LocalCommand(Command):
    """`command:local:Command`: a process on this machine."""

    arguments = LOCAL
    owner = "local.CommandInputs"

    async def run(
        self, subject: Subject, command: str, inputs: Properties, previous: Mapping[str, str]
    ) -> dict[str, str]:
        """Run it with `interpreter`, else with /bin/sh -c."""
        transcript = Transcript(subject, inputs.get("logging"))
        data = inputs.get("stdin", "").encode()
        try:
            process = await asyncio.create_subprocess_exec(
                *(inputs.get("interpreter") or ("/bin/sh", "-c")),
                command,
                cwd=inputs.get("dir"),
                env={**os.environ, **inputs.get("environment", {}), **previous},
                stdin=asyncio.subprocess.PIPE if data else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            tried = "chdir" if error.filename == inputs.get("dir") else "fork/exec"
            raise transcript.failed(
                f"{tried} {system_reason(error, error.filename)}", command
            ) from None
        assert process.stdout
        assert process.stderr
        streams: list[Awaitable[None]] = [
            transcript.follow("stdout", process.stdout),
            transcript.follow("stderr", process.stderr),
        ]
        if process.stdin:
            streams.append(_feed(process.stdin, data))
        try:
            await asyncio.gather(*streams)
            code = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if code:
            how = f"signal: {_signal_words(-code)}" if code < 0 else f"exit status {code}"
            raise transcript.failed(how, command)
        return transcript.result()


def _signal_words(number: int) -> str:
    return (signal.strsignal(number) or f"signal {number}").lower()


class RemoteCommand(Command):
    """`command:remote:Command`: a process on another machine, over SSH."""

    arguments = REMOTE
    owner = "remote.CommandInputs"

    def check(self, subject: Subject, news: Properties) -> tuple[Properties, list[Failure]]:
        """Check the common arguments, and a connection, which is secret."""
        connection = news.get("connection")
        inputs, failures = super().check(
            subject, {name: value for name, value in news.items() if name != "connection"}
        )
        if connection is None:
            missing = f"Missing required field 'connection' on '{self.owner}'"
            return inputs, [*failures, ("connection", missing)]
        revealed = connection.value if isinstance(connection, Secret) else connection
        wrong = connection_failures(plain(revealed))
        failures += wrong
        if not failures:
            revealed = with_defaults(revealed)
        return {**inputs, "connection": Secret(revealed)}, failures

    async def run(
        self, subject: Subject, command: str, inputs: Properties, previous: Mapping[str, str]
    ) -> dict[str, str]:
        """Run it on a connection of its own."""
        # Imported here: asyncssh takes 0.2 s, and most runs of the engine run no remote command.
        from toolbox.plugins.ssh_connection import accepted, connect  # noqa: PLC0415

        transcript = Transcript(subject, inputs.get("logging"))
        async with AsyncExitStack() as open_until_done:
            connection = await connect(subject, inputs["connection"], open_until_done)
            environment = await accepted(
                subject, connection, inputs.get("environment", {}), previous
            )
            process = await connection.create_process(command, env=environment, encoding=None)
            await asyncio.gather(
                transcript.follow("stdout", process.stdout),
                transcript.follow("stderr", process.stderr),
                _feed(process.stdin, inputs.get("stdin", "").encode()),
            )
            await process.wait()
        if process.exit_signal:
            name, *_ = process.exit_signal
            number = getattr(signal, f"SIG{name}", 0)
            raise transcript.failed(
                f"Process exited with status {128 + number} from signal {name}", command
            )
        if process.exit_status is None:
            missing = "wait: remote command exited without exit status or exit signal"
            raise transcript.failed(missing, command)
        if process.exit_status:
            raise transcript.failed(f"Process exited with status {process.exit_status}", command)
        return transcript.result()


def type_failures(given: Properties, kinds: Mapping[str, Kind], owner: str) -> list[Failure]:
    """Arguments of `owner` that do not exist or have another type than `kinds` says."""
    failures = []
    for name, value in sorted(given.items()):
        if name not in kinds:
            failures.append((name, f"Unrecognized field '{name}' on '{owner}'"))
            continue
        members: list[tuple[str, Any, str]] = [(name, value, kinds[name])]
        if kinds[name] == "[]string" and isinstance(value, list):
            members = [(f"{name}[{index}]", item, "string") for index, item in enumerate(value)]
        elif kinds[name] == "map[string]string" and isinstance(value, Mapping):
            members = [(f"{name}[{key}] value", item, "string") for key, item in value.items()]
        for path, member, kind in members:
            got = _kind(member)
            if got not in (kind, None) and not (kind == "int" and isinstance(member, int)):
                reason = f"Field '{path}' on '{owner}' must be a '{kind}'; got '{got}' instead"
                failures.append((path, reason))
    return failures


def _kind(value: Any) -> str | None:
    if value is UNKNOWN:
        return None
    if isinstance(value, Mapping):
        return "map[string]interface {}"
    names = {bool: "bool", int: "float64", float: "float64", str: "string", list: "[]interface {}"}
    return names.get(type(value), "nil")


def connection_failures(connection: Any, *, proxy: bool = False) -> list[Failure]:
    """Return what is wrong with a plain `connection`, or with the `proxy` in one."""
    argument, kind = ("proxy", "ProxyConnection") if proxy else ("connection", "Connection")
    owner = "Connection" if proxy else "CommandInputs"
    if connection is UNKNOWN:
        return []
    if not isinstance(connection, Mapping):
        got = _kind(connection)
        wrong = (
            f"Field '{argument}' on 'remote.{owner}' must be a 'remote.{kind}'; got '{got}' instead"
        )
        return [(argument, wrong)]
    inner = None if proxy else connection.get("proxy")
    fields = {name: connection[name] for name in connection if name != "proxy" or proxy}
    failures = type_failures(fields, CONNECTION, f"remote.{kind}")
    if "host" not in fields:
        failures.append(("host", f"Missing required field 'host' on 'remote.{kind}'"))
    if inner is not None:
        failures += connection_failures(inner, proxy=True)
    if not failures:
        return []
    lines = "".join(f"\n\t{name}: {reason}" for name, reason in failures)
    decoding = f"An error occurred decoding '{owner}.{argument}': {len(failures)} failures decoding"
    return [(argument, f"{decoding}:{lines}")]


def with_defaults(connection: Any) -> Any:
    """Return `connection` and its proxy with their defaults, and their secrets marked secret."""
    if connection is UNKNOWN:
        return connection
    whole = {**CONNECTION_DEFAULTS, **connection}
    for name in CONNECTION_SECRETS:
        if name in whole and not isinstance(whole[name], Secret):
            whole[name] = Secret(whole[name])
    if whole.get("proxy") is not None:
        whole["proxy"] = with_defaults(whole["proxy"])
    return whole


class CommandProvider(ResourceProvider):
    """The plugin `command`."""

    version = "1.2.1"
    accept_secrets = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._tasks = Tasks()
        self.types = {
            "command:local:Command": LocalCommand(self._tasks),
            "command:remote:Command": RemoteCommand(self._tasks),
        }

    def cancel(self) -> None:
        """Kill the processes and close the connections."""
        self._tasks.cancel()


def main() -> None:
    """Serve the engine named by the last argument."""
    serve_provider(CommandProvider)


if __name__ == "__main__":
    main()
