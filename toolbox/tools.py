"""The programs around this one, each from the first source that has it.

In order: what is installed; the official download; a build from the pinned, checksummed Go
modules in toolbox/build; and, for the language host and the two provider plugins, which no
registry carries, the drop-ins of toolbox/plugins. Which one was taken is said on standard
error.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from toolbox import cache, progress
from toolbox.errors import ToolboxError
from toolbox.go_toolchain import BUILD, garbage_collection, go

CHECKOUT = Path(__file__).resolve().parent.parent

INSTALLED = "installed"
OFFICIAL = "official download"
BUILT = "built from Go modules"
DROP_IN = "drop-in"

LANGUAGE_HOST = "pulumi-language-python"
DYNAMIC_PROVIDERS = "pulumi-resource-pulumi-python"

EARLIER = "3.259.0"
"""An engine that stacks were deployed with before."""

PATIENCE = 8.0
"""Seconds in which the first byte of an official download must have arrived."""


@dataclass(frozen=True)
class Tool:
    """A program that is ready to run."""

    name: str
    path: Path
    version: str
    origin: str
    """`installed`, `official download`, `built from Go modules` or `drop-in`."""


@dataclass(frozen=True)
class Source:
    """A program that can be built from the Go modules in toolbox/build."""

    directory: str
    """Directory under toolbox/build with its go.mod and go.sum."""
    module: str
    """Module that carries the version."""
    package: str
    """Package to build."""
    binary: str
    """Name of the command."""
    version_variable: str = ""
    """Linker symbol that holds the version, if the program needs it set."""

    @property
    def files(self) -> list[Path]:
        """What pins the build."""
        return [BUILD / self.directory / name for name in ("go.mod", "go.sum")]

    @property
    def version(self) -> str:
        """The module's version in go.mod, without the leading v."""
        return module_version(self.files[0].read_text(), self.module)

    @property
    def linker_flags(self) -> str:
        """The `-ldflags` of the build."""
        stamp = f" -X {self.version_variable}=v{self.version}" if self.version_variable else ""
        return f"-s -w{stamp}"


ENGINE = Source(
    directory="engine",
    module="github.com/pulumi/pulumi/pkg/v3",
    package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
    binary="pulumi",
    version_variable="github.com/pulumi/pulumi/sdk/v3/go/common/version.Version",
)
SERVER = Source("server", "github.com/minio/minio", "github.com/minio/minio", "minio")
CLIENT = Source("client", "github.com/minio/mc", "github.com/minio/mc", "mc")
SEAWEEDFS = Source(
    directory="seaweedfs",
    module="github.com/seaweedfs/seaweedfs",
    package="github.com/seaweedfs/seaweedfs/weed",
    binary="weed",
)
VULNERABILITY_SCANNER = Source(
    directory="vulnerabilities",
    module="golang.org/x/vuln",
    package="golang.org/x/vuln/cmd/govulncheck",
    binary="govulncheck",
)
WORKFLOW_LINTER = Source(
    directory="workflows",
    module="github.com/rhysd/actionlint",
    package="github.com/rhysd/actionlint/cmd/actionlint",
    binary="actionlint",
)


@dataclass(frozen=True)
class Plugin:
    """A provider plugin the program uses."""

    name: str
    version: str
    drop_in: str
    """Module of the drop-in."""


PLUGINS = (
    Plugin("minio", "0.17.1", "toolbox.plugins.minio_provider"),
    Plugin("command", "1.2.1", "toolbox.plugins.command_provider"),
)

# What the official launcher does, in short: the engine passes the project's `virtualenv` option.
DYNAMIC_PROVIDERS_LAUNCHER = """\
#!/bin/sh
if [ -n "${PULUMI_RUNTIME_VIRTUALENV:-}" ]; then
    PULUMI_PYTHON_CMD=$PULUMI_RUNTIME_VIRTUALENV/bin/python
fi
exec "${PULUMI_PYTHON_CMD:-python3}" -u -m pulumi.dynamic "$@"
"""


def module_version(go_mod: str, module: str) -> str:
    """Return the version that a go.mod's text requires of `module`, without the leading v.

    Raises:
        ValueError: it requires no such module.
    """
    found = re.search(rf"^(?:require )?\s*{re.escape(module)} v(\S+)", go_mod, re.MULTILINE)
    if not found:
        raise ValueError(f"go.mod does not require {module}")
    return found[1]


def plugin_choice() -> str:
    """Return `official`, `drop-in` or, where either will do, the empty string.

    Raises:
        ToolboxError: the environment's `NIXCACHE_PLUGINS` is none of these.
    """
    choice = os.environ.get("NIXCACHE_PLUGINS", "")
    if choice not in ("", "official", DROP_IN):
        raise ToolboxError(
            f"NIXCACHE_PLUGINS is {choice!r}; write official or drop-in, or leave it unset"
        )
    return choice


def engine() -> Tool:
    """Return the Pulumi CLI and engine, with a Python language host beside it.

    Raises:
        ToolboxError: no source has it.
    """
    tool = _first(_installed_engine, _official_engine, lambda: _built(ENGINE, "the engine"))
    if plugin_choice() == DROP_IN or not _language_host_of(tool.path).exists():
        if plugin_choice() == "official":
            raise ToolboxError(
                f"NIXCACHE_PLUGINS is official, and {tool.path} has no {LANGUAGE_HOST} beside "
                "it or on PATH; install the official CLI or unset NIXCACHE_PLUGINS"
            )
        return Tool(tool.name, _with_drop_in_host(tool.path.resolve()), tool.version, tool.origin)
    return tool


def earlier_engine() -> Tool | None:
    """Return an engine that is older than the pinned one, None where none can be had.

    It is one that was built or downloaded here before the pinned one, or else an official download;
    only tests use it.
    """
    pinned, known = _release(ENGINE.version), {}
    for binary in cache.directory().glob("engine-*/bin/pulumi"):
        version = binary.parts[-3].split("-")[1]
        if _release(version) < pinned:
            known[_release(version)] = (version, binary)
    if not known:
        name = f"engine-{EARLIER}-official"
        try:
            found = cache.entry(name, lambda target: _download_engine(target, EARLIER))
        except ToolboxError:
            return None
        known[_release(EARLIER)] = (EARLIER, found / "bin" / "pulumi")
    version, binary = known[max(known)]
    if plugin_choice() == DROP_IN or not binary.with_name(LANGUAGE_HOST).exists():
        binary = _with_drop_in_host(binary)
    return Tool("pulumi", binary, version, INSTALLED)


def language_host(engine_tool: Tool) -> Tool:
    """Return the Python language host that `engine_tool` runs."""
    path = _language_host_of(engine_tool.path)
    origin = DROP_IN if _is_drop_in(path) else engine_tool.origin
    return Tool(LANGUAGE_HOST, path, engine_tool.version, origin)


def _language_host_of(engine_path: Path) -> Path:
    beside = engine_path.resolve().with_name(LANGUAGE_HOST)
    on_path = shutil.which(LANGUAGE_HOST)
    return Path(on_path) if on_path and not beside.exists() else beside


def server() -> Tool:
    """Return the MinIO server, which has no official binary any more."""
    return _first(
        lambda: _installed("minio", "minio version"), lambda: _built(SERVER, "the MinIO server")
    )


def client() -> Tool:
    """Return the MinIO client `mc`; only tests use it."""
    return _first(
        lambda: _installed("mc", "mc version"), lambda: _built(CLIENT, "the MinIO client")
    )


def seaweedfs() -> Tool:
    """Return SeaweedFS's one command `weed`; only tests use it."""
    return _built(SEAWEEDFS, "SeaweedFS")


def workflow_linter() -> Tool:
    """Return the linter of workflows; its PyPI package only downloads what is built here."""
    return _built(WORKFLOW_LINTER, "the workflow linter")


def vulnerability_scanner() -> Tool:
    """Return `govulncheck`, which asks Go's database about what a binary was built from."""
    return _built(VULNERABILITY_SCANNER, "the vulnerability scanner")


def engine_environment(pulumi_home: Path, binary: Path | None = None) -> dict[str, str]:
    """Return variables for a process that runs the engine with plugins from `pulumi_home`.

    Args:
        pulumi_home: the engine's own directory.
        binary: the engine; None looks for it.
    """
    directory = (binary or engine().path).parent
    return {
        "PATH": f"{directory}{os.pathsep}{os.environ.get('PATH', '')}",
        "PULUMI_HOME": str(pulumi_home),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_PYTHON_CMD": sys.executable,
    }


def install_plugins(pulumi_home: Path) -> list[Tool]:
    """Put the two provider plugins into `pulumi_home`: official where they can be had.

    First those that this user's own engine has installed, then the official download. A drop-in
    that is there from an earlier run gives way to the official plugin as soon as that can be
    had.

    Raises:
        ToolboxError: neither can be installed.
    """
    pulumi_home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **engine_environment(pulumi_home)}
    # Side by side, since each waits for the network.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda plugin: _plugin(plugin, pulumi_home, environment), PLUGINS))


def launcher(module: str) -> str:
    """Return a shell script that runs `module` of this checkout in this interpreter."""
    return (
        "#!/bin/sh\n"
        # Not by PYTHONPATH, which every command that a plugin runs would inherit.
        f"exec '{sys.executable}' -u -c 'import sys; sys.path.insert(0, \"{CHECKOUT}\"); "
        "from toolbox.plugins.protocol_alone import import_protocol_alone; "
        f'import_protocol_alone(); from {module} import main; main()\' "$@"\n'
    )


def _first(*sources: Callable[[], Tool | None]) -> Tool:
    for source in sources:
        tool = source()
        if tool is not None:
            return tool
    raise ToolboxError("no source has the tool")


def _installed(command: str, greeting: str) -> Tool | None:
    path = shutil.which(command)
    if path is None:
        return None
    # `mc` is also a file manager, so a name alone proves nothing.
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if not answer.stdout.startswith(greeting):
        return None
    return Tool(command, Path(path), answer.stdout.split()[2], INSTALLED)


def _installed_engine() -> Tool | None:
    path = shutil.which("pulumi")
    if path is None:
        return None
    answer = subprocess.run(
        [path, "version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"},
    )
    version = answer.stdout.strip().lstrip("v")
    if _release(version) < _release(ENGINE.version):
        _say_once(f"the installed engine {version} is older than {ENGINE.version}: not used")
        return None
    return Tool("pulumi", Path(path), version, INSTALLED)


@functools.cache
def _say_once(text: str) -> None:
    progress.say(text)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


@functools.cache
def _official_engine() -> Tool | None:
    name = f"engine-{ENGINE.version}-official"
    binary = cache.directory() / name / "bin" / "pulumi"
    official = Tool("pulumi", binary, ENGINE.version, OFFICIAL)
    if binary.exists():
        return official
    try:
        cache.entry(name, lambda target: _download_engine(target, ENGINE.version))
    except ToolboxError:
        if not _built_binary(ENGINE).exists():
            progress.say("the official engine cannot be downloaded here: building it instead")
        return None
    return official


def _download_engine(target: Path, version: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        progress.run(
            f"downloading the official engine {version}",
            [sys.executable, "-m", "toolbox.official_engine", str(target), version],
            log=Path(scratch) / "log",
            remedy="let this machine reach the vendor's download site",
            cwd=CHECKOUT,
            env={**os.environ, "TMPDIR": scratch},
            patience=(PATIENCE, [target, Path(scratch)]),
        )


def _built_binary(source: Source) -> Path:
    checksum = cache.checksum(
        [*(path.read_bytes() for path in source.files), source.linker_flags.encode()]
    )
    name = f"{source.directory}-{source.version}-{checksum}"
    return cache.directory() / name / "bin" / source.binary


def _built(source: Source, what: str) -> Tool:
    def build(target: Path) -> None:
        progress.run(
            f"building {what} {source.version} from Go modules",
            [
                str(go()),
                "build",
                "-v",
                "-trimpath",
                f"-ldflags={source.linker_flags}",
                f"-o={target / 'bin' / source.binary}",
                source.package,
            ],
            log=target / "build.log",
            remedy="let the Go module proxy be reached, or install the tool",
            cwd=BUILD / source.directory,
            env={
                # Before the environment: whoever has set them there means it.
                **garbage_collection(),
                **os.environ,
                "CGO_ENABLED": "0",
                "GOFLAGS": "-mod=readonly",
                "GOTOOLCHAIN": "local",
                "GOWORK": "off",
            },
        )
        if source is ENGINE:
            _write_script(target / "bin" / DYNAMIC_PROVIDERS, DYNAMIC_PROVIDERS_LAUNCHER)

    binary = _built_binary(source)
    cache.entry(binary.parent.parent.name, build)
    return Tool(source.binary, binary, source.version, BUILT)


def _with_drop_in_host(binary: Path) -> Path:
    """Return a directory in which the engine finds the drop-in language host beside it.

    The engine looks for it beside its own binary; one found on PATH brings a warning.
    """
    scripts = {
        LANGUAGE_HOST: launcher("toolbox.plugins.language_host"),
        DYNAMIC_PROVIDERS: DYNAMIC_PROVIDERS_LAUNCHER,
    }
    key = cache.checksum([str(binary).encode(), *(text.encode() for text in scripts.values())])
    home = CHECKOUT / "build" / f"engine-{key}"
    if not home.is_dir():
        home.parent.mkdir(exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".engine.", dir=home.parent))
        try:
            try:
                os.link(binary, draft / binary.name)
            except OSError:
                shutil.copy2(binary, draft / binary.name)
            for name, text in scripts.items():
                _write_script(draft / name, text)
            draft.rename(home)
        except FileExistsError:
            shutil.rmtree(draft)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            if not home.is_dir():
                raise
    return home / binary.name


def _plugin(plugin: Plugin, home: Path, environment: dict[str, str]) -> Tool:
    binary = (
        home
        / "plugins"
        / f"resource-{plugin.name}-v{plugin.version}"
        / f"pulumi-resource-{plugin.name}"
    )
    choice = plugin_choice()
    official = Tool(binary.name, binary, plugin.version, OFFICIAL)
    drop_in = Tool(binary.name, binary, plugin.version, DROP_IN)
    present = binary.exists()
    if present and not _is_drop_in(binary) and choice != DROP_IN:
        return official
    if choice != DROP_IN:
        installed = _users_plugins() / binary.parent.name
        if (installed / binary.name).exists() and not _is_drop_in(installed / binary.name):
            shutil.rmtree(binary.parent, ignore_errors=True)
            shutil.copytree(installed, binary.parent)
            return Tool(binary.name, binary, plugin.version, INSTALLED)
        try:
            _download_plugin(plugin, binary.parent, environment)
            return official
        except ToolboxError:
            if choice == "official":
                raise
    if not present or binary.read_text() != launcher(plugin.drop_in):
        _install_drop_in(plugin, environment)
        if choice != DROP_IN:
            progress.say(
                f"the official plugin {plugin.name} {plugin.version} cannot be downloaded here: "
                "taking the drop-in"
            )
    return drop_in


def _users_plugins() -> Path:
    return Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi") / "plugins"


def _download_plugin(plugin: Plugin, target: Path, environment: dict[str, str]) -> None:
    # Into a home of its own: beside a drop-in of the same version the engine downloads nothing.
    with tempfile.TemporaryDirectory(dir=environment["PULUMI_HOME"]) as scratch:
        progress.run(
            f"downloading the official plugin {plugin.name} {plugin.version}",
            ["pulumi", "plugin", "install", "resource", plugin.name, plugin.version],
            log=Path(scratch) / "log",
            remedy="let this machine reach the vendor's download site",
            env={**environment, "PULUMI_HOME": f"{scratch}/home", "TMPDIR": scratch},
            patience=(PATIENCE, [Path(scratch)]),
        )
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (Path(scratch) / "home" / "plugins" / target.name).rename(target)


def _install_drop_in(plugin: Plugin, environment: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "plugin"
        source.mkdir()
        _write_script(source / f"pulumi-resource-{plugin.name}", launcher(plugin.drop_in))
        command = ["pulumi", "plugin", "install", "resource", plugin.name, plugin.version]
        done = subprocess.run(
            [*command, "--reinstall", "--file", str(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=environment,
        )
        if done.returncode != 0:
            raise ToolboxError(
                f"the drop-in plugin {plugin.name} cannot be installed into "
                f"{environment['PULUMI_HOME']}; remove that directory and try again\n{done.stdout}"
            )


def _is_drop_in(path: Path) -> bool:
    with path.open("rb") as script:
        return b"toolbox.plugins." in script.read(4096)


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
