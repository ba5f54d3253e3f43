"""The contract of each plugin: how its transcript is recorded, and where the official one lies."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.plugins import command_rows, language_programs, minio_rows
from tests.plugins.language_programs import LanguageProcess
from tests.plugins.plugin_process import PluginProcess
from tests.plugins.resource_rows import Interview, changed
from tests.plugins.ssh_server import SshServer
from tests.plugins.transcript import Transcript
from toolbox.minio_server import MinioServer

DATA = Path(__file__).with_name("data")
NOBODY_THERE = "127.0.0.1:1"

Command = Sequence[str]


@dataclass(frozen=True)
class Contract:
    """One plugin, official and drop-in."""

    name: str
    version: str
    executable: str
    """The official plugin's file."""
    modules: tuple[str, ...]
    """The drop-in's modules below `toolbox.plugins`; the first is run."""
    record: Callable[[Command], Transcript]

    @property
    def drop_in(self) -> Command:
        """Starts the drop-in."""
        return (sys.executable, "-m", f"toolbox.plugins.{self.modules[0]}")

    @property
    def transcript(self) -> Path:
        """The official plugin's answers, recorded."""
        return DATA / f"{self.name}-{self.version}.transcript"


def record_minio(command: Command) -> Transcript:
    """On a server of its own."""
    with tempfile.TemporaryDirectory() as directory, MinioServer(Path(directory)) as server:
        settings = minio_rows.settings(server)
        lines = Transcript(hidden={settings["minioServer"]: "SERVER"})
        rows = minio_rows.rows(server)
        with PluginProcess(command) as plugin:
            plugin.configure("minio", settings)
            for row in rows:
                Interview(row, plugin, lines).whole_life()
        with PluginProcess(command) as plugin:
            for label, others in minio_rows.SETTINGS.items():
                given = changed(settings, others)
                lines.ask(
                    f"settings: {label}",
                    lambda s=given: plugin.configure("minio", s).failures,  # type: ignore[misc]
                )
        user, password = minio_rows.OPERATOR
        for why, others in (
            ("permission denied", {"minioUser": user, "minioPassword": password}),
            ("wrong password", {"minioPassword": "a-wrong-password"}),
            ("server unreachable", {"minioServer": NOBODY_THERE}),
        ):
            with PluginProcess(command) as plugin:
                plugin.configure("minio", {**settings, **others})
                for row in rows:
                    Interview(row, plugin, lines).without_server(why)
    return lines


def record_command(command: Command) -> Transcript:
    """With an SSH server of its own."""
    environment = {key: text for key, text in os.environ.items() if key != "SSH_AUTH_SOCK"}
    with SshServer() as server, PluginProcess(command, environment) as plugin:
        lines = Transcript(
            hidden={
                server.private_key: "PRIVATE-KEY",
                server.host_key: "HOST-KEY",
                str(server.port): "PORT",
            }
        )
        plugin.configure("command", {"version": "1.2.1"})
        for row in [*command_rows.local_rows(), *command_rows.remote_rows(server)]:
            Interview(row, plugin, lines).whole_life()
    return lines


def record_language(command: Command) -> Transcript:
    """With programs in a directory of their own."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        lines = Transcript(hidden={str(directory): "DIRECTORY", sys.prefix: "VIRTUALENV"})
        with LanguageProcess(command, directory) as host:
            language_programs.record(host, directory, lines)
    return lines


SHARED = ("plugin_server",)
PROVIDER = (*SHARED, "resource_provider", "property_values", "property_diff")
CONTRACTS = (
    Contract(
        "language-python",
        "3.259.0",
        "pulumi-language-python",
        ("language_host", "program_runner", *SHARED),
        record_language,
    ),
    Contract(
        "minio",
        "0.17.1",
        "pulumi-resource-minio",
        ("minio_provider", "planned_state", "policy_equivalence", *PROVIDER),
        record_minio,
    ),
    Contract(
        "command",
        "1.2.1",
        "pulumi-resource-command",
        ("command_provider", "ssh_connection", *PROVIDER),
        record_command,
    ),
)
