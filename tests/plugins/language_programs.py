"""What a language host is asked: programs to run, and questions about them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import json_format, struct_pb2
from google.protobuf.empty_pb2 import Empty
from pulumi.runtime.proto import (
    language_pb2,
    language_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
)

from tests.plugins.plugin_process import CALL_LIMIT, CHECKOUT, EngineInTest, end
from tests.plugins.transcript import Transcript

SHOW_SETTINGS = """
import json, os, sys, pulumi
config = pulumi.Config("test")
print(json.dumps({
    "config": config.get("key"),
    "secret": config.get("hidden"),
    "is secret": pulumi.runtime.is_config_secret("test:hidden"),
    "project": pulumi.get_project(),
    "stack": pulumi.get_stack(),
    "organization": pulumi.get_organization(),
    "root": pulumi.runtime.get_root_directory(),
    "dry run": pulumi.runtime.is_dry_run(),
    "arguments": sys.argv,
    "directory": os.getcwd(),
    "name": __name__,
    "own modules first": sys.path[0] in (os.getcwd(), "."),
}))
"""
REGISTER = """
import pulumi
class Thing(pulumi.CustomResource):
    def __init__(self, name): super().__init__("test:index:Thing", name, {})
"""
PROGRAMS: Mapping[str, str] = {
    "that exports": 'import pulumi\nprint("said")\npulumi.export("a", 1)\n',
    "that writes to standard error": 'import sys\nprint("aside", file=sys.stderr)\n',
    "with settings": SHOW_SETTINGS,
    "that registers": REGISTER + 'Thing("good")\n',
    "whose resource is refused": REGISTER + 'Thing("bad")\n',
    "with an error of its own": 'import pulumi\nraise pulumi.RunError("told so")\n',
    "with an exception": 'def deep():\n    raise ValueError("boom")\n\n\ndeep()\n',
    "with an exception in an apply": (
        "import pulumi\n\n\ndef deep(_):\n    raise ValueError('boom')\n\n\n"
        "pulumi.export('a', pulumi.Output.from_input(1).apply(deep))\n"
    ),
    "with a syntax error": "x = (\n",
    "that lacks a module": "import no_module_of_that_name\n",
    "that exits": "import sys\nsys.exit(3)\n",
    "that exits with success": "import sys\nsys.exit(0)\n",
}


class _Monitor(resource_pb2_grpc.ResourceMonitorServicer):
    """The least of an engine that a program needs."""

    def __init__(self) -> None:
        self.registered: list[str] = []

    def SupportsFeature(self, _request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802
        return resource_pb2.SupportsFeatureResponse(hasSupport=True)

    def RegisterResource(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if request.name == "bad":
            context.abort(grpc.StatusCode.UNKNOWN, "the monitor refuses this one")
        self.registered.append(f"{request.type} {request.name}")
        urn = f"urn:pulumi:test::test::{request.type}::{request.name}"
        return resource_pb2.RegisterResourceResponse(urn=urn, id="1", object=request.object)

    def RegisterResourceOutputs(  # noqa: N802
        self, request: Any, _context: grpc.ServicerContext
    ) -> Empty:
        self.registered.append(f"outputs {sorted(request.outputs.fields)}")
        return Empty()

    def SignalAndWaitForShutdown(  # noqa: N802
        self, _request: Empty, _context: grpc.ServicerContext
    ) -> Empty:
        return Empty()


@dataclass
class LanguageProcess:
    """One running language host; a context manager that ends it."""

    command: Sequence[str]
    directory: Path
    """Where its output goes."""
    monitor: _Monitor = field(default_factory=_Monitor)

    def __enter__(self) -> LanguageProcess:  # noqa: PYI034 -- Self is newer than Python 3.10
        self.engine = EngineInTest(self.monitor)
        self._errors = (self.directory / "stderr").open("w+")
        self._process = subprocess.Popen(
            [*self.command, self.engine.address],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=CHECKOUT,
        )
        assert self._process.stdout
        port = self._process.stdout.readline().strip()
        assert port, f"{self.command[0]} printed no port"
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._follow, args=(self._process.stdout,))
        self._reader.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._stub = language_pb2_grpc.LanguageRuntimeStub(self._channel)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()
        end(self._process)
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()
        self.engine.stop()

    def call(self, method: str, request: Any) -> Any:
        """The answer to one call of the protocol."""
        return getattr(self._stub, method)(request, timeout=CALL_LIMIT)

    def printed(self) -> list[str]:
        """Lines on standard output and standard error since the last call."""
        with self._changed:
            lines, self._lines = self._lines, []
        self._errors.seek(0)
        lines += self._errors.read().splitlines()
        self._errors.seek(0)
        self._errors.truncate()
        return lines

    def next_line(self) -> str:
        """The next line that a program prints to standard output."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._lines, CALL_LIMIT)
            return self._lines.pop(0)

    def wait_for_line(self, wanted: str) -> None:
        """Return once a program has printed `wanted`."""
        with self._changed:
            assert self._changed.wait_for(lambda: wanted in self._lines, CALL_LIMIT)

    def _follow(self, stream: Any) -> None:
        for line in stream:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()


def record(host: LanguageProcess, directory: Path, lines: Transcript) -> None:
    """Run all programs in `directory` and ask all questions."""
    for label, text in PROGRAMS.items():
        _run(host, lines, directory, label, {"__main__.py": text})
    _run(host, lines, directory, "that is one file", {"program.py": SHOW_SETTINGS}, "program.py")
    _run(host, lines, directory, "without a main file", {"other.py": ""})
    lines.ask("program that is cancelled", lambda: _cancelled(host, directory))
    host.printed()
    info = program_info(directory)
    lines.ask("plugin's version", lambda: _plain(host.call("GetPluginInfo", Empty())))
    about = language_pb2.AboutRequest(info=info)
    lines.ask("about", lambda: _plain(host.call("About", about)))
    for label, transitive in (("all", True), ("direct", False)):
        dependencies = language_pb2.GetProgramDependenciesRequest(
            info=info, transitiveDependencies=transitive
        )
        lines.ask(
            f"{label} dependencies",
            lambda d=dependencies: _of_pulumi(  # type: ignore[misc]
                host.call("GetProgramDependencies", d).dependencies
            ),
        )
    required = language_pb2.GetRequiredPackagesRequest(info=info)
    lines.ask(
        "required packages",
        lambda: _of_pulumi(host.call("GetRequiredPackages", required).packages),
    )
    prompts = language_pb2.RuntimeOptionsRequest(info=info)
    lines.ask("prompts", lambda: _plain(host.call("RuntimeOptionsPrompts", prompts)))


def program_info(directory: Path, entry_point: str = ".", virtualenv: str = sys.prefix) -> Any:
    """Where a program lies and which virtualenv it has."""
    options = struct_pb2.Struct()
    options.update({"virtualenv": virtualenv})
    return language_pb2.ProgramInfo(
        root_directory=str(directory),
        program_directory=str(directory),
        entry_point=entry_point,
        options=options,
    )


def run_request(host: LanguageProcess, program: Path, entry_point: str = ".") -> Any:
    """Asks `host` to run `program` with the settings that `SHOW_SETTINGS` shows."""
    return language_pb2.RunRequest(
        project="test-project",
        stack="test-stack",
        organization="test-organization",
        pwd=str(program),
        config={"test:key": "value", "test:hidden": "a secret"},
        configSecretKeys=["test:hidden"],
        dryRun=True,
        parallel=4,
        monitor_address=host.engine.address,
        args=["one", "two"],
        info=program_info(program, entry_point),
    )


def write_program(directory: Path, label: str, files: Mapping[str, str]) -> Path:
    """A new program of `files` in a directory of its own."""
    program = directory / label.replace(" ", "-")
    program.mkdir()
    for name, text in files.items():
        (program / name).write_text(text)
    return program


def _run(
    host: LanguageProcess,
    lines: Transcript,
    directory: Path,
    label: str,
    files: Mapping[str, str],
    entry_point: str = ".",
) -> None:
    program = write_program(directory, label, files)
    key = f"program {label}"

    def run() -> Any:
        return _plain(host.call("Run", run_request(host, program, entry_point)))

    answer = lines.ask(key, run)
    logged = [line for line in host.engine.taken() if line[0] != "DEBUG"]
    lines.note(key, "log", [(level, own_frames(text, program)) for level, text in logged])
    lines.note(key, "output", [own_frames(line, program) for line in host.printed()])
    # A program that fails may end before or after its registrations arrive.
    lines.note(key, "registered", [] if answer else sorted(host.monitor.registered))
    host.monitor.registered.clear()


def own_frames(text: str, program: Path) -> str:
    """A traceback with the frames of `program` alone; any other text as it is."""
    if "Traceback (most recent call last)" not in text:
        return text
    kept, own = [], True
    # Python 3.10 names a program by the path it was given.
    for line in text.replace("/./", "/").splitlines():
        if line.startswith('  File "'):
            own = f'"{program}' in line
        elif not line.startswith("    "):
            own = True
        # Python 3.11 and later point at the part of a line that failed.
        if own and line.strip(" ^~"):
            kept.append(line)
    return "\n".join(kept)


def _cancelled(host: LanguageProcess, directory: Path) -> Any:
    waiting = 'import threading\nprint("waiting", flush=True)\nthreading.Event().wait()\n'
    program = write_program(directory, "cancelled", {"__main__.py": waiting})
    answers: list[Any] = []
    request = run_request(host, program)
    running = threading.Thread(target=lambda: answers.append(host.call("Run", request)))
    running.start()
    host.wait_for_line("waiting")
    host.call("Cancel", Empty())
    running.join(CALL_LIMIT)
    return bool(answers and (answers[0].error or answers[0].bail))


def _plain(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _of_pulumi(packages: Any) -> list[str]:
    # The rest of what is installed, and which version of it, is no matter of the host's.
    wanted = {"pulumi", "pulumi-minio", "pulumi-command", "minio", "command"}
    found = [json.dumps(_plain(package)) for package in packages if package.name in wanted]
    return sorted(re.sub(r"\d+(\.\d+)+", "N", package) for package in found)
