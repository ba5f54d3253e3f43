"""What a deployment installs is what was looked at: each file by its hash, each with a licence."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.configuration import PROJECT_ROOT
from toolbox import crates, supply_chain, tools
from toolbox.errors import ToolboxError

PINNED = re.compile(r"(?m)^([a-z0-9-]+)==(\S+)")


def read(name: str) -> str:
    return (PROJECT_ROOT / name).read_text(encoding="utf-8")


def test_every_package_of_a_deployment_is_pinned_with_its_hashes() -> None:
    lock = read("requirements.lock")
    entries = re.split(r"(?m)^(?=[a-z0-9-]+==)", lock)[1:]
    assert entries
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
    asked = dict(PINNED.findall(read("requirements.txt")))
    locked = dict(PINNED.findall(lock))
    assert {name: locked.get(name) for name in asked} == asked
    assert "http" not in lock.replace("uv pip", "")


def test_workflows_and_readmes_install_by_hashes() -> None:
    for name in ("deploy", "drift", "preview"):
        text = read(f".github/workflows/{name}.yml")
        assert "--require-hashes --requirement requirements.lock" in text
        assert "requirements.txt" not in text
    for name in ("README.md", "README.zh.md"):
        assert "pip install --require-hashes -r requirements.lock" in read(name)


def test_every_package_of_a_deployment_has_its_licence_listed() -> None:
    rows = [line for line in read("docs/licences.md").splitlines() if line.startswith("| ")][2:]
    listed = {name for row in rows for name in re.findall(r"[a-z0-9-]+", row.split("|")[2])}
    assert {name for name, _ in PINNED.findall(read("requirements.lock"))} <= listed


BUILD = PROJECT_ROOT / "toolbox" / "build"
REQUIRED = re.compile(r"(?m)^\s+(\S+ v\S+)(?: // indirect)?$")
REPLACED = re.compile(r"(?m)^replace (\S+) => (\S+ v\S+)$")
FETCHES = re.compile(
    r"urlopen|urlretrieve|http\.client|\bcurl\b|\bwget\b|\"install\"|str\(go\(\)\)|\"mmdebstrap\"|"
    r"PulumiCommand\.install"
)
FETCHERS = {
    "base_tree.py": "Debian's archive, by apt's signatures",
    "crates.py": "crates.io, by SHA-256 and Cargo.lock",
    "debian_packages.py": "Debian's archive, by apt's signatures",
    "go_toolchain.py": "PyPI, by SHA-256",
    "official_engine.py": "its maker's installer",
    "python_packages.py": "PyPI, by version",
    "tools.py": "Go modules by go.sum, plugins by the engine",
}
"""What of the toolbox fetches anything, and how that is known for what it is."""


def test_everything_that_is_fetched_is_known_by_a_sum() -> None:
    recipes = {file.parent.name for file in BUILD.glob("*/go.mod")}
    sources = [one for one in vars(tools).values() if isinstance(one, tools.Source)]
    assert {source.directory for source in sources} == recipes
    for source in sources:
        required, sums = (file.read_text() for file in source.files)
        replaced = dict(REPLACED.findall(required))
        modules = REQUIRED.findall(required)
        assert modules
        for module in (replaced.get(one.split()[0], one) for one in modules):
            assert re.search(rf"(?m)^{re.escape(module)} h1:\S{{44}}$", sums), module
    go = (BUILD / "go" / "requirements.txt").read_text()
    assert go.count("==") == 1
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", go)) == 2
    for crate in (crates.GARAGE, crates.RUSTFS):
        assert re.fullmatch(r"[0-9a-f]{64}", crate.checksum)


def test_nothing_else_of_the_toolbox_fetches_anything() -> None:
    own_servers = {"minio_server.py", "minio_cluster.py"}
    found = {
        file.name
        for file in (PROJECT_ROOT / "toolbox").glob("*.py")
        if FETCHES.search(file.read_text(encoding="utf-8"))
    }
    assert found - own_servers == FETCHERS.keys()
    built = read("toolbox/tools.py").partition("def _built(")[2]
    assert '"GOFLAGS": "-mod=readonly"' in built
    assert "GOFLAGS" in built.partition("def _")[0]
    assert "--require-hashes" in read("toolbox/go_toolchain.py")
    assert "--locked" in read("toolbox/crates.py")


def test_the_list_has_every_package_and_module_with_its_sums() -> None:
    listed = json.loads(supply_chain.bill_of_materials())
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    known: dict[str, dict[str, Any]] = {one["bom-ref"]: one for one in listed["components"]}
    lock = read("requirements.lock")
    for name, version in PINNED.findall(lock):
        entry = known.pop(f"pypi/{name}@{version}")
        assert entry["purl"] == f"pkg:pypi/{name}@{version}"
        block = re.split(r"(?m)^(?=[a-z0-9-]+==)", lock.partition(f"\n{name}=={version} ")[2])[0]
        assert {one["content"] for one in entry["hashes"]} == set(
            re.findall(r"sha256:([0-9a-f]{64})", block)
        )
    for source in (tools.ENGINE, tools.SERVER):
        for module in REQUIRED.findall(source.files[0].read_text()):
            name, version = module.split()
            entry = known.pop(f"go/{source.directory}/{name}")
            assert entry["version"] == version
            assert {one["name"] for one in entry["properties"]} == {"go.sum", "built into"}
    assert known == {}


def test_what_could_not_be_found_out_is_named_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> tools.Tool:
        return tools.Tool(name, Path("/somewhere") / name, "1", "built")

    ran: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(Path(command[0]).name)
        return subprocess.CompletedProcess(command, int(command[-1].endswith("minio")))

    for name, tool in (("vulnerability_scanner", "govulncheck"), ("engine", "pulumi")):
        monkeypatch.setattr(tools, name, lambda tool=tool: found(tool))
    monkeypatch.setattr(tools, "server", lambda: found("minio"))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ToolboxError, match=r"something is known of minio, or it could not be"):
        supply_chain.look_for_vulnerabilities()
    assert ran == ["pip-audit", "govulncheck", "govulncheck"]
