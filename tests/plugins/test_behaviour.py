"""What a transcript cannot show: ends, cancellation, size, and the drop-ins' own ways."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pulumi.runtime.proto import language_pb2

from tests.plugins import minio_rows
from tests.plugins.contract import CONTRACTS
from tests.plugins.language_programs import (
    LanguageProcess,
    program_info,
    run_request,
    write_program,
)
from tests.plugins.plugin_process import CHECKOUT, PluginProcess, RefusedError
from tests.plugins.ssh_server import SshServer
from toolbox.minio_server import MinioServer
from toolbox.plugins.property_values import Properties
from toolbox.processes import started, wait_until

DROP_INS = {contract.name: contract.drop_in for contract in CONTRACTS}
WAITING = "sleep 1000 & echo $!; wait"
LOCAL = "urn:pulumi:test::test::command:local:Command::row"
REMOTE = "urn:pulumi:test::test::command:remote:Command::row"


@pytest.fixture
def command() -> Iterator[PluginProcess]:
    with PluginProcess(DROP_INS["command"]) as plugin:
        plugin.configure("command", {"version": "1.2.1"})
        yield plugin


@pytest.fixture
def language(tmp_path: Path) -> Iterator[LanguageProcess]:
    with LanguageProcess(DROP_INS["language-python"], tmp_path) as host:
        yield host


def run_locally(plugin: PluginProcess, inputs: Properties) -> Properties:
    return plugin.create(LOCAL, plugin.check(LOCAL, inputs).inputs)[1]


@pytest.mark.parametrize("name", DROP_INS)
def test_a_plugin_without_an_engine_says_what_it_is(name: str) -> None:
    alone = subprocess.run(
        DROP_INS[name], cwd=CHECKOUT, check=False, capture_output=True, text=True, timeout=60
    )
    assert alone.returncode == 1
    assert "the engine starts it" in alone.stderr
    assert "Traceback" not in alone.stderr


@pytest.mark.parametrize("name", ["minio", "command"])
def test_a_plugin_ends_when_its_engine_has_gone(name: str) -> None:
    with PluginProcess(DROP_INS[name]) as plugin:
        assert plugin.version()
        plugin.engine.stop()
        assert plugin.wait(30) == 0


def test_a_command_ends_with_its_plugins_engine() -> None:
    with PluginProcess(DROP_INS["command"]) as plugin, ThreadPoolExecutor() as threads:
        plugin.configure("command", {"version": "1.2.1"})
        running = threads.submit(run_locally, plugin, {"create": WAITING})
        _, pid = plugin.engine.lines.get(timeout=30)
        plugin.engine.stop()
        assert plugin.wait(30) == 0
        assert running.exception(30)
    assert wait_until(lambda: started(int(pid)) is None, 30)


def test_a_program_ends_with_its_hosts_engine(language: LanguageProcess, tmp_path: Path) -> None:
    waiting = "import os, threading; print(os.getpid(), flush=True); threading.Event().wait()"
    program = write_program(tmp_path, "waiting", {"__main__.py": waiting})
    with ThreadPoolExecutor() as threads:
        running = threads.submit(language.call, "Run", run_request(language, program))
        pid = int(language.next_line())
        language.engine.stop()
        assert running.result(30).error
    assert wait_until(lambda: started(pid) is None, 30)


def test_cancelling_ends_a_local_command(command: PluginProcess) -> None:
    with ThreadPoolExecutor() as threads:
        running = threads.submit(run_locally, command, {"create": WAITING})
        _, pid = command.engine.lines.get(timeout=30)
        assert started(int(pid))
        command.cancel()
        with pytest.raises(RefusedError, match="cancelled"):
            running.result(30)
    assert wait_until(lambda: started(int(pid)) is None, 30)


def test_cancelling_ends_a_remote_command(command: PluginProcess) -> None:
    with SshServer() as server, ThreadPoolExecutor() as threads:
        inputs = command.check(
            REMOTE,
            {"create": "sleep 1000", "connection": server.connection()},
        ).inputs
        running = threads.submit(command.create, REMOTE, inputs)
        server.busy.wait(30)
        command.cancel()
        with pytest.raises(RefusedError, match="cancelled"):
            running.result(30)


def test_a_line_longer_than_64_kibibytes_arrives_whole(command: PluginProcess) -> None:
    outputs = run_locally(
        command, {"create": "head -c 300000 /dev/zero | tr '\\0' x; echo; echo y"}
    )
    assert outputs["stdout"] == "x" * 300000 + "\ny"


def test_output_that_is_no_text_arrives_readable(command: PluginProcess) -> None:
    assert (
        run_locally(command, {"create": "printf 'a\\377b'"})["stdout"]
        == "a\N{REPLACEMENT CHARACTER}b"
    )


def test_a_command_need_not_read_its_input(command: PluginProcess) -> None:
    outputs = run_locally(command, {"create": "echo done", "stdin": "x" * 5_000_000})
    assert outputs["stdout"] == "done"


def test_many_commands_run_side_by_side(command: PluginProcess, tmp_path: Path) -> None:
    # Each waits until all have started.
    meet = f"touch {tmp_path}/$NAME; while [ $(ls {tmp_path} | wc -l) -lt 40 ]; do sleep 0.05; done"
    with ThreadPoolExecutor(40) as threads:
        for outputs in threads.map(
            lambda name: run_locally(command, {"create": meet, "environment": {"NAME": str(name)}}),
            range(40),
        ):
            assert outputs["stdout"] == ""


def test_an_environment_that_the_ssh_server_refuses_is_an_error(command: PluginProcess) -> None:
    with SshServer(pass_environment=False) as server:
        inputs: Properties = {
            "create": "echo ran",
            "connection": server.connection(),
            "environment": {"GREETING": "hello"},
        }
        with pytest.raises(RefusedError, match='could not set environment variable "GREETING"'):
            command.create(REMOTE, command.check(REMOTE, inputs).inputs)


def test_previous_output_that_the_ssh_server_refuses_is_a_warning(command: PluginProcess) -> None:
    with SshServer(pass_environment=False) as server:
        inputs = command.check(
            REMOTE,
            {
                "create": 'echo "ran after $PULUMI_COMMAND_STDOUT"',
                "connection": server.connection(),
            },
        ).inputs
        made, state = command.create(REMOTE, inputs)
        command.engine.taken()
        again = command.update(REMOTE, made, state, inputs, inputs)
        assert again["stdout"] == "ran after "
        warnings = [text for level, text in command.engine.taken() if level == "WARNING"]
        assert len(warnings) == 1
        assert "PULUMI_COMMAND_STDOUT" in warnings[0]


def test_a_variable_that_no_shell_can_name_is_an_error(command: PluginProcess) -> None:
    with SshServer() as server:
        inputs: Properties = {
            "create": "true",
            "connection": server.connection(),
            "environment": {"A-B": "x"},
        }
        with pytest.raises(RefusedError, match="A-B"):
            command.create(REMOTE, command.check(REMOTE, inputs).inputs)


def test_a_type_that_a_drop_in_does_not_carry_is_an_error(command: PluginProcess) -> None:
    urn = "urn:pulumi:test::test::command:remote:CopyToRemote::row"
    with pytest.raises(RefusedError, match=r"knows no command:remote:CopyToRemote, only .*Command"):
        command.check(urn, {})


@pytest.mark.system
def test_policies_attached_at_the_same_time_are_all_attached(tmp_path: Path) -> None:
    policies = ["readonly", "writeonly", "diagnostics", "readwrite"]
    user = "urn:pulumi:test::test::minio:index/iamUser:IamUser::row"
    urn = "urn:pulumi:test::test::minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment::row"
    with MinioServer(tmp_path) as server, PluginProcess(DROP_INS["minio"]) as plugin:
        plugin.configure("minio", minio_rows.settings(server))
        plugin.create(user, plugin.check(user, {"name": "somebody"}).inputs)
        together = threading.Barrier(len(policies))

        def attach(policy: str) -> tuple[str, Properties, Properties]:
            inputs: Properties = {"userName": "somebody", "policyName": policy}
            together.wait(30)
            return (*plugin.create(urn, inputs), inputs)

        with ThreadPoolExecutor(len(policies)) as threads:
            attached = list(threads.map(attach, policies))
        assert all(plugin.read(urn, *one)[0] for one in attached)


def test_a_program_without_a_virtualenv_runs_with_the_hosts_own_python(
    language: LanguageProcess, tmp_path: Path
) -> None:
    program = write_program(tmp_path, "plain", {"__main__.py": "import sys; print(sys.executable)"})
    request = run_request(language, program)
    request.info.options.update({"virtualenv": "no/such/virtualenv"})
    answer = language.call("Run", request)
    assert (answer.error, answer.bail) == ("", False)
    assert language.printed() == [sys.executable]


def test_a_programs_secrets_are_not_in_its_command_line(
    language: LanguageProcess, tmp_path: Path
) -> None:
    text = 'import pathlib; print(pathlib.Path("/proc/self/cmdline").read_text())'
    program = write_program(tmp_path, "looking", {"__main__.py": text})
    language.call("Run", run_request(language, program))
    (line,) = language.printed()
    assert "program_runner.py" in line
    assert "a secret" not in line


def test_dependencies_are_installed_into_the_programs_virtualenv(
    language: LanguageProcess, tmp_path: Path
) -> None:
    files = {"requirements.txt": "no-such-package-of-that-name ; python_version < '3'\n"}
    program = write_program(tmp_path, "program", files)
    info = program_info(program, virtualenv=str(tmp_path / "made"))
    answers = list(
        language.call("InstallDependencies", language_pb2.InstallDependenciesRequest(info=info))
    )
    assert b"Ignoring no-such-package-of-that-name" in b"".join(one.stdout for one in answers)
    assert (tmp_path / "made" / "bin" / "python").exists()
