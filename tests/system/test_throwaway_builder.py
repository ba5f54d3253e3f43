"""The throwaway builder: a real Nix that leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toolbox import throwaway_builder
from toolbox.base_tree import SUITES
from toolbox.certificates import make_authority
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer
from toolbox.processes import recorded, wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        throwaway_builder.available() is not None, reason=str(throwaway_builder.available())
    ),
]

PARENT = """\
import pathlib, os, signal, sys
from toolbox.throwaway_builder import ThrowawayBuilder
ThrowawayBuilder(pathlib.Path(sys.argv[1])).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_suite_brings_its_nix_and_makes_the_same_closure(tmp_path: Path) -> None:
    made = set()
    for suite, version in SUITES.items():
        with ThrowawayBuilder(tmp_path / suite, suite=suite) as builder:
            assert f" {version}." in builder.run("nix --version").stdout
            top = builder.make_closure(60, 2_000_000, 1, "sample")
            builder.run(f"nix-store --query --requisites {top} | sort >paths")
            sizes = builder.run("xargs nix-store --query --size <paths").stdout.split()
            made.add((top, builder.run("xargs nix-store --query --hash <paths").stdout))
        assert len(sizes) == 60
        assert 2_000_000 < sum(map(int, sizes)) < 2_200_000
    assert len(made) == 1


def test_the_nix_that_is_named_is_laid_over_what_debian_brings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nix = tmp_path / "over" / "usr" / "bin" / "nix"
    nix.parent.mkdir(parents=True)
    nix.write_text("#!/bin/sh\necho this one\n")
    nix.chmod(0o755)
    monkeypatch.setenv("NIXCACHE_NIX", str(tmp_path / "over"))
    with ThrowawayBuilder(tmp_path / "named") as named:
        assert named.run("nix; nix-build").stdout == "this one\n" * 2
        named.run("rm /usr/bin/nix")
    assert nix.exists()
    with ThrowawayBuilder(tmp_path / "forky", suite="forky") as builder:
        assert f" {SUITES['forky']}." in builder.run("nix --version").stdout


def test_nothing_of_a_builder_is_left_when_its_process_is_killed(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", PARENT, str(tmp_path)], check=False, cwd=Path(__file__).parents[2]
    )
    process = recorded(tmp_path / "builder.json")
    assert process is not None
    assert wait_until(lambda: not process.alive(), 10)
    assert wait_until(lambda: not processes_that_mention(tmp_path), 10)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def processes_that_mention(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if str(directory) in path.read_text():
                found.append(path.parent.name)
        except OSError:
            # It ended meanwhile, or is a zombie, whose mounts are gone.
            continue
    return found


def test_a_detached_builder_is_found_again_and_its_disk_goes_with_it(tmp_path: Path) -> None:
    ThrowawayBuilder(tmp_path, detached=True).start()
    found = ThrowawayBuilder(tmp_path, detached=True)
    try:
        found.start()
        assert found.run("cat", input="through standard input").stdout == "through standard input"
        (found.root / "tmp" / "file").write_text("on the builder's disk")
        assert found.run("cat /tmp/file").stdout == "on the builder's disk"
    finally:
        found.stop()
    assert not (tmp_path / "disk").exists()
    with pytest.raises(ToolboxError, match="does not run"):
        found.run("true")


def test_a_failing_script_is_an_error_with_its_own_words(builder: ThrowawayBuilder) -> None:
    with pytest.raises(ToolboxError, match=r"(?s)exit code 7.*no such thing"):
        builder.run("echo no such thing >&2; exit 7")
    assert builder.run("exit 7", check=False).returncode == 7


def test_the_builder_trusts_an_authority_only_after_it_is_told(
    minio: MinioServer, tmp_path: Path
) -> None:
    with ThrowawayBuilder(tmp_path / "builder") as builder:
        probe = f"curl --silent --show-error --fail {minio.endpoint}/minio/health/live"
        builder.trust(make_authority(tmp_path / "other").ca_file)
        assert builder.run(probe, check=False).returncode == 60
        builder.trust(minio.ca_file)
        assert builder.run(probe).returncode == 0
