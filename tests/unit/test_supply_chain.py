"""What a deployment installs is what was looked at: each file by its hash, each with a licence."""

from __future__ import annotations

import re

from tests.unit.configuration import PROJECT_ROOT

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
