"""Drop-in for `pulumi-language-python` 3.259.0, the Python language host of the Pulumi engine.

It runs a program as the official one does, with pip and a virtualenv; other package managers, type
checkers, debuggers, policy packs, plugins written in Python and code generation are refused as
unimplemented. The program itself runs in a process of its own: see `program_runner`.

Source of fact: `sdk/proto/language.proto` and `sdk/python/cmd/pulumi-language-python` at v3.259.0.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

from toolbox.plugins.plugin_server import Engine, serve

VERSION = "v3.259.0"
PROGRAM_RUNNER = Path(__file__).with_name("program_runner.py")
SHOWN_TO_USER = 32
"""Exit code of a program whose error the user has already seen."""

LIST_PACKAGES = """
import importlib.metadata, json, pathlib
found = []
for package in importlib.metadata.distributions():
    # Searching the text of RECORD spares making paths of all its lines, on every run of the engine.
    listed = package.read_text("RECORD")
    files = package.files or () if listed is None or "pulumi-plugin.json" in listed else ()
    plugin = [file for file in files if file.name == "pulumi-plugin.json"]
    if plugin:
        about = json.loads(pathlib.Path(plugin[0].locate()).read_text())
        found.append((package.metadata["Name"], package.version, about))
print(json.dumps(found))
"""
"""Prints (name, version, contents of pulumi-plugin.json) of each installed package that has one."""


def interpreter(info: Any) -> str:
    """Return the Python that runs the program: its virtualenv's where there is one, else ours.

    `info` is the request's ProgramInfo; the option `virtualenv` is relative to the project's root.
    """
    virtualenv = dict(info.options).get("virtualenv")
    if virtualenv:
        python = Path(info.root_directory, str(virtualenv), "bin", "python")
        if python.is_file():
            return str(python)
    return sys.executable


def installed(info: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Return name, version and `pulumi-plugin.json` of what the program's Python has that has one.

    `info` is the request's ProgramInfo.
    """
    listing = subprocess.run(
        [interpreter(info), "-c", LIST_PACKAGES], check=True, stdout=subprocess.PIPE
    )
    return [(name, version, about) for name, version, about in json.loads(listing.stdout)]


def normal_name(name: str) -> str:
    """Return a package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Answers the engine's calls about programs in Python."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._programs: set[subprocess.Popen[bytes]] = set()

    def Handshake(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Agree: there is nothing to agree on."""
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Empty, context: grpc.ServicerContext) -> Any:
        """Return the version, which the engine shows."""
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetRequiredPackages(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Return the provider plugins that the installed packages speak to."""
        return language_pb2.GetRequiredPackagesResponse(
            packages=[
                plugin_pb2.PackageDependency(
                    name=about.get("name") or normal_name(name).removeprefix("pulumi-"),
                    kind="resource",
                    version="v" + (about.get("version") or version).removeprefix("v"),
                    server=about.get("server", ""),
                )
                for name, version, about in installed(request.info)
                if about.get("resource")
            ]
        )

    def GetProgramDependencies(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Return what pip has installed for the program."""
        listing = [interpreter(request.info), "-m", "pip", "list", "--format=json"]
        if not request.transitiveDependencies:
            listing.append("--not-required")
        packages = json.loads(subprocess.run(listing, check=True, stdout=subprocess.PIPE).stdout)
        return language_pb2.GetProgramDependenciesResponse(
            dependencies=[
                language_pb2.DependencyInfo(
                    name=normal_name(package["name"]), version=package["version"]
                )
                for package in packages
            ]
        )

    def About(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Which Python runs the program."""
        python = interpreter(request.info)
        version = subprocess.run(
            [python, "-c", "import platform; print(platform.python_version())"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return language_pb2.AboutResponse(executable=python, version=version.stdout.strip())

    def RuntimeOptionsPrompts(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Nothing to ask: pip is the only package manager here."""
        return language_pb2.RuntimeOptionsResponse()

    def InstallDependencies(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Make the virtualenv if it is missing and install `requirements.txt` into it."""
        info = request.info
        virtualenv = dict(info.options).get("virtualenv")
        commands = []
        if virtualenv and not Path(info.root_directory, str(virtualenv)).exists():
            target = Path(info.root_directory, str(virtualenv))
            commands.append([sys.executable, "-m", "venv", str(target)])
        if Path(info.program_directory, "requirements.txt").is_file():
            commands.append(["-m", "pip", "install", "-r", "requirements.txt"])
        for command in commands:
            if command[0] == "-m":
                command.insert(0, interpreter(info))
            with subprocess.Popen(
                command,
                cwd=info.program_directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    yield language_pb2.InstallDependenciesResponse(stdout=line)
            if process.returncode:
                context.abort(
                    grpc.StatusCode.UNKNOWN,
                    f"`{' '.join(command)}` exited with code {process.returncode}",
                )

    def Run(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Run the program to its end; its output is ours, which the engine shows.

        Configuration, secrets among it, goes through the environment as the SDK expects.
        """
        command = [
            interpreter(request.info),
            str(PROGRAM_RUNNER),
            f"--monitor={request.monitor_address}",
            f"--engine={self._engine.address}",
            f"--project={request.project}",
            f"--stack={request.stack}",
            f"--organization={request.organization}",
            f"--root-directory={request.info.root_directory}",
            f"--parallel={request.parallel}",
            *(["--dry-run"] if request.dryRun else []),
            request.info.entry_point,
            *request.args,
        ]
        environment = {
            **os.environ,
            "PULUMI_CONFIG": json.dumps(dict(request.config)),
            "PULUMI_CONFIG_SECRET_KEYS": json.dumps(list(request.configSecretKeys)),
        }
        program = subprocess.Popen(command, cwd=request.pwd or None, env=environment)
        self._programs.add(program)
        context.add_callback(lambda: program.send_signal(signal.SIGINT))
        code = program.wait()
        self._programs.discard(program)
        if code == 0:
            return language_pb2.RunResponse()
        if code == SHOWN_TO_USER:
            return language_pb2.RunResponse(bail=True)
        return language_pb2.RunResponse(error=f"program exited with non-zero exit code: {code}")

    def Cancel(self, request: Empty, context: grpc.ServicerContext) -> Empty:
        """Interrupt the programs that run, as the engine wants to end."""
        for program in list(self._programs):
            program.send_signal(signal.SIGINT)
        return Empty()

    def end(self) -> None:
        """Kill the programs that run: their engine has gone."""
        for program in list(self._programs):
            program.kill()


def main() -> None:
    """Serve the engine named by the last argument."""

    def register(server: grpc.Server, engine: Engine) -> Callable[[], None]:
        host = LanguageHost(engine)
        language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
        return host.end

    serve(register)


if __name__ == "__main__":
    main()
