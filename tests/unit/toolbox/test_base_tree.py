"""Which Nix the throwaway builders have."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolbox.base_tree import NAMED, SUITES, named_nix, suites
from toolbox.errors import ToolboxError


def test_a_nix_that_the_environment_names_is_one_more_and_that_of_every_builder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NIXCACHE_NIX", raising=False)
    assert (named_nix(), suites()) == (None, tuple(SUITES))
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/nix").symlink_to("/nix/store/only-there/bin/nix")
    monkeypatch.setenv("NIXCACHE_NIX", str(tmp_path))
    assert (named_nix(), suites()) == (tmp_path, (*SUITES, NAMED))


@pytest.mark.parametrize("named", ["usr", "/etc/hostname", "/nonexistent"])
def test_a_directory_without_a_nix_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIXCACHE_NIX", named)
    with pytest.raises(ToolboxError, match=f"NIXCACHE_NIX is '{named}', .* or leave it unset"):
        named_nix()
