"""What a stack on this machine's server begins with, and what `make clean` leaves alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.unit.toolbox.conftest import SERVER
from toolbox import dev_stack, stacks
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer

STACK = "pulumi:pulumi:Stack"
BUCKET = "minio:index/s3Bucket:S3Bucket"


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been stopped; nothing runs."""
    calls: list[str] = []
    monkeypatch.setattr(dev_stack, "_stop", lambda: calls.append("all"))
    return calls


def state(checkout: Path, name: str, types: Sequence[str], *, pending: Sequence[str] = ()) -> Path:
    """Write the state of a stack as the engine does."""
    latest = {
        "resources": [{"type": kind} for kind in types],
        "pending_operations": [{"resource": {"type": kind}} for kind in pending],
    }
    file = checkout / ".dev" / "state" / ".pulumi" / "stacks" / "nixcache" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"version": 3, "checkpoint": {"latest": latest}}))
    file.with_name(f"{file.name}.bak").write_text("an earlier one")
    return file


def settings(checkout: Path, name: str, **values: str) -> None:
    """Write the settings of a stack on this machine's server."""
    file = checkout / ".dev" / "stacks" / name / f"Pulumi.{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    config = {f"nixcache:{setting}": value for setting, value in values.items()}
    file.write_text(yaml.safe_dump({"config": config}))


def kept(checkout: Path, stopped: list[str]) -> str:
    """Return what `make clean` is refused with, having stopped and removed nothing."""
    before = sorted((checkout / ".dev").rglob("*"))
    with pytest.raises(ToolboxError) as refused:
        dev_stack.clean()
    assert stopped == []
    assert {*before} <= {*(checkout / ".dev").rglob("*")}
    return str(refused.value)


def test_a_stack_on_another_server_keeps_its_state_and_keys(
    checkout: Path, stopped: list[str]
) -> None:
    state(checkout, "dev", [STACK, BUCKET])
    state(checkout, "lab", [STACK, BUCKET])
    assert kept(checkout, stopped) == (
        "stack lab has resources on another server, and state, signing keys and passphrase in "
        f"{checkout}/.dev; destroy first what nobody needs (make pulumi STACK=lab "
        'ARGS="destroy --run-program"), or move state and passphrase out of it as '
        "docs/environments.md says"
    )
    state(checkout, "cellar", [STACK, BUCKET])
    several = kept(checkout, stopped)
    assert several.startswith("stacks cellar and lab have resources on another server")
    assert "make pulumi STACK=NAME " in several


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("readable", [False, True])
def test_a_compressed_or_damaged_state_is_kept_too(
    checkout: Path, stopped: list[str], *, compressed: bool, readable: bool
) -> None:
    file = state(checkout, "lab", [BUCKET])
    content = file.read_bytes()[: None if readable else 20]
    if compressed:
        file.unlink()
        file.with_name("lab.json.gz").write_bytes(gzip.compress(content)[: None if readable else 9])
    else:
        file.write_bytes(content)
    assert "stack lab " in kept(checkout, stopped)


def test_what_was_being_made_counts_as_there(checkout: Path, stopped: list[str]) -> None:
    state(checkout, "lab", [STACK], pending=[BUCKET])
    assert "stack lab " in kept(checkout, stopped)


@pytest.mark.parametrize("name", ["dev", "staging"])
def test_a_stack_of_this_machine_that_was_pointed_at_another_server_is_kept(
    checkout: Path, stopped: list[str], name: str
) -> None:
    state(checkout, name, [STACK, BUCKET])
    settings(checkout, name, endpoint="https://s3.homelab.local")
    assert f"stack {name} " in kept(checkout, stopped)


def test_the_dev_stack_that_the_committed_file_points_at_another_server_is_kept(
    checkout: Path, stopped: list[str]
) -> None:
    state(checkout, "dev", [STACK, BUCKET])
    file = checkout / "Pulumi.dev.yaml"
    file.write_text("config: {nixcache:endpoint: 'https://s3.homelab.local'}")
    assert "stack dev " in kept(checkout, stopped)


def test_what_is_on_this_machines_server_or_nowhere_goes(
    checkout: Path, stopped: list[str]
) -> None:
    for name in ("dev", "staging"):
        state(checkout, name, [STACK, BUCKET])
    settings(checkout, "staging", endpoint=str(SERVER["endpoint"]))
    state(checkout, "destroyed", [])
    state(checkout, "failed", [STACK, "pulumi:providers:minio"])
    dev_stack.clean()
    assert stopped == ["all"]
    assert not (checkout / ".dev").exists()


def test_a_checkout_without_any_state_is_cleaned(checkout: Path, stopped: list[str]) -> None:
    dev_stack.clean()
    assert stopped == ["all"]
    assert not (checkout / ".dev").exists()


def test_a_new_stack_on_this_machines_server_has_its_password(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def quietly(_: stacks.Stack, *arguments: str, text: str = "") -> str:
        calls.append((*arguments, text))
        return ""

    monkeypatch.setattr(stacks.Stack, "quietly", quietly)
    made = dev_stack.make_stack("fresh")
    password = MinioServer(checkout / ".dev" / "minio").root_password
    assert calls[-1] == ("config", "set", "--secret", "nixcache:minioPassword", password)
    assert made.stack.own_server
    assert made.missing == []
