"""What a repair does with a state that an interruption left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from operations import repair, state
from operations.pulumi_cli import OperationError
from program.checks.recorded import BUCKET, Recorded

Said = list[tuple[str, ...]]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Repair a stack whose bucket was being made; return what the CLI was told of its settings."""

    def run(*, up: int = 0, refused: bool = False, before: str | None = None) -> Said:
        told: Said = []

        def read_text(*arguments: str) -> str:
            if arguments[0] == "refresh" and refused:
                raise OperationError("locked")
            if arguments[0] == "config":
                told.append(arguments[1:-2])
            return ""

        config = {} if before is None else {"nixcache:adoptBucket": {"value": before}}
        monkeypatch.setattr(repair, "remove_empty_attributes", lambda: 0)
        monkeypatch.setattr(repair, "read_settings", lambda _: SimpleNamespace(bucket="b"))
        monkeypatch.setattr(repair, "replace", lambda settings, **_: settings)
        found = (Recorded({}), frozenset({BUCKET}))
        monkeypatch.setattr(repair, "read_interrupted_state", lambda _: found)
        monkeypatch.setattr(repair, "put_back", lambda *_: iter(()))
        monkeypatch.setattr(repair, "read_output", lambda *_: config)
        monkeypatch.setattr(repair, "read_text", read_text)
        monkeypatch.setattr(repair, "on_terminal", lambda *_: up)
        code = repair.main(["--stack", "test"])
        assert code == (2 if up or refused else 0)
        return told

    return run


SET = ("set", "nixcache:adoptBucket", "true")


def test_a_bucket_that_was_being_made_is_taken_over_for_that_one_deployment(
    interrupted: Callable[..., Said],
) -> None:
    assert interrupted() == [SET, ("rm", "nixcache:adoptBucket")]
    assert interrupted(before="false") == [SET, ("set", "nixcache:adoptBucket", "false")]


def test_where_the_state_is_locked_the_setting_is_as_before(
    interrupted: Callable[..., Said],
) -> None:
    assert interrupted(refused=True) == [SET, ("rm", "nixcache:adoptBucket")]


def test_where_the_deployment_does_not_come_about_the_bucket_can_still_be_taken_over(
    interrupted: Callable[..., Said],
) -> None:
    """What was interrupted is cleared from the state by then."""
    assert interrupted(up=255) == [SET]


@pytest.mark.parametrize("backend", ["file://~", "file://{home}", "https://api.example"])
def test_attributes_that_were_cut_off_are_found_where_the_state_is(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    stacks = tmp_path / ".pulumi" / "stacks"
    stacks.mkdir(parents=True)
    (stacks / "cut.json.attrs").touch()
    (stacks / "whole.json.attrs").write_text("{}")
    # It has gone by the time it is looked at.
    (stacks / "gone.json.attrs").symlink_to("nowhere")
    lock = tmp_path / ".pulumi" / "locks" / "cut.json.attrs"
    lock.parent.mkdir()
    lock.touch()
    url = backend.format(home=tmp_path)
    monkeypatch.setattr(state, "read_output", lambda *_: {"url": url})
    assert state.remove_empty_attributes() == int(backend.startswith("file:"))
    assert lock.exists()
    left = {file.name for file in stacks.iterdir()} - {"gone.json.attrs"}
    assert left == {"whole.json.attrs"} | ({"cut.json.attrs"} if backend[:5] == "https" else set())


def test_a_project_may_be_called_as_the_directory_of_locks_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / ".pulumi" / "stacks" / "locks" / "dev.json.attrs"
    cut.parent.mkdir(parents=True)
    cut.touch()
    monkeypatch.setattr(state, "read_output", lambda *_: {"url": f"file://{tmp_path}"})
    assert state.remove_empty_attributes() == 1
    assert not cut.exists()
