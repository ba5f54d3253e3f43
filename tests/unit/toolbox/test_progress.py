"""Progress: long steps are told, short downloads are silent, failures say what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from toolbox import progress
from toolbox.errors import ToolboxError


def test_a_step_says_when_it_begins_how_long_it_takes_and_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    progress.run(
        "building it",
        ["sh", "-c", "echo one; echo two; sleep 2"],
        log=tmp_path / "log",
        remedy="try again",
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "building it …"
    assert any(re.fullmatch(r"building it … \d+ s \(2 steps\)", line) for line in lines)
    assert re.fullmatch(r"building it done in [2-9] s", lines[-1])


def test_a_failed_step_names_the_remedy_and_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ToolboxError, match=r"(?s)failed with exit code 3; try again.*no space"):
        progress.run(
            "building it",
            ["sh", "-c", "echo no space left >&2; exit 3"],
            log=tmp_path / "log",
            remedy="try again",
        )


def test_a_download_that_receives_nothing_is_given_up_without_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "received").mkdir()
    (tmp_path / "received" / "log").write_text("connecting")
    with pytest.raises(ToolboxError, match="received nothing"):
        progress.run(
            "downloading it",
            ["sleep", "600"],
            log=tmp_path / "log",
            remedy="try again",
            patience=(0.1, [tmp_path / "received"]),
        )
    assert capsys.readouterr().err == ""


def test_a_download_that_has_received_something_may_take_its_time(tmp_path: Path) -> None:
    progress.run(
        "downloading it",
        ["sh", "-c", f"head -c 9999 /dev/zero >{tmp_path}/part; sleep 1"],
        log=tmp_path / "log",
        remedy="try again",
        patience=(0.1, [tmp_path]),
    )
