"""A CI job's own files: what is somebody else's stays, and what cannot work is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from push.ci_job import main

CACHE = {"substituter": "https://s3/c", "publicKeys": ["c-1:k"], "push": {}, "builders": {}}
MARK = "# nix-binary-cache: begin\n"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "cache.json").write_text(json.dumps(CACHE))
    (tmp_path / "nix").mkdir()
    return {
        "NIX_BINARY_CACHE_CONFIGURATION": "cache.json",
        "GITHUB_WORKSPACE": str(tmp_path),
        "RUNNER_TEMP": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }


def test_what_is_not_ours_stays_also_behind_a_block_without_an_end(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "nix" / "nix.conf"
    for before in ("cores = 2\n", f"cores = 2\n{MARK}max-jobs = 3\n"):
        file.write_text(before)
        assert main(["start"], environment) == 0
        assert file.read_text().startswith(before)
        assert "extra-substituters = https://s3/c\n" in file.read_text()
        assert main(["finish"], environment) == 0
        assert file.read_text() == before


def test_a_file_that_cannot_be_changed_is_one_sentence(
    environment: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nix" / "nix.conf"
    file.write_bytes(b"\xff\n")
    assert main(["start"], environment) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "nix.conf' cannot be changed (it is no text in UTF-8); set XDG_CONFIG_HOME" in said
    assert file.read_bytes() == b"\xff\n"


@pytest.mark.parametrize("change", [{"publicKeys": "k"}, {"builders": {"ci": []}}, {"push": 3}])
def test_a_configuration_of_another_shape_is_one_sentence(
    environment: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, object],
) -> None:
    (tmp_path / "cache.json").write_text(json.dumps({**CACHE, **change}))
    assert main(["start"], environment) == 1
    assert "CONFIGURATION 'cache.json' cannot be read; name the file" in capfd.readouterr().err
    assert not (tmp_path / "nix" / "nix.conf").exists()
