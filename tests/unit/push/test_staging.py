"""What comes of a batch: what Nix made, what it did not, and whether it is there already."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push import staging
from push.failure import Failure, PushError
from push.progress import Summary, human, say
from push.staging import Compressed

PART = 1000


def etag(file: Path, like: str) -> str:
    return staging._etag(file, like, PART)  # noqa: SLF001


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nar"
    path.write_bytes(bytes(range(256)) * 10)
    return path


def test_the_etag_of_an_object_written_at_once_is_its_sum(file: Path) -> None:
    assert etag(file, "x") == hashlib.md5(file.read_bytes()).hexdigest()


def test_the_etag_of_an_object_written_in_parts_is_of_the_sums_of_these(file: Path) -> None:
    content = file.read_bytes()
    sums = [hashlib.md5(content[start : start + PART]).digest() for start in (0, 1000, 2000)]
    assert etag(file, "x-3") == f"{hashlib.md5(b''.join(sums)).hexdigest()}-3"


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2000])
def test_the_last_part_may_be_of_any_size(tmp_path: Path, size: int) -> None:
    file = tmp_path / "nar"
    file.write_bytes(bytes(size))
    assert etag(file, "-").endswith(f"-{-(-size // PART)}")


def test_a_file_of_nothing_has_a_sum_too(tmp_path: Path) -> None:
    file = tmp_path / "nar"
    file.touch()
    assert etag(file, "x") == hashlib.md5().hexdigest()


@pytest.mark.parametrize(
    ("error", "full", "gone"),
    [
        ("", False, False),
        ("writing to file: No space left on device", True, False),
        ("Disk quota exceeded", True, False),
        ("path '/nix/store/x' is not valid", False, True),
        ("path '/nix/store/x' is required, but there is no substituter", False, True),
        ("opening file '/nix/store/x': No such file or directory", False, True),
        ("Input/output error", False, False),
    ],
)
def test_what_nix_says_tells_what_went_wrong(error: str, full: bool, gone: bool) -> None:
    outcome = Compressed(error=error)
    assert (outcome.disk_is_full, outcome.path_is_gone) == (full, gone)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1999, "1.9 kB"),
        (999_999, "999.9 kB"),
        (1_000_000, "1.0 MB"),
        (2_300_000_000, "2.3 GB"),
        (5_368_709_121, "5.3 GB"),
        (2**63, "9223372.0 TB"),
    ],
)
def test_sizes_are_told_in_words(size: int, text: str) -> None:
    assert human(size) == text


@given(st.integers(0, 10**18))
def test_a_size_is_never_told_larger_than_it_is(size: int) -> None:
    number, unit = human(size).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert int(number.replace(".", "")) * factor // (1 if unit == "B" else 10) <= size


def test_a_summary_is_one_line() -> None:
    summary = Summary(12, 48_100_000, 288, 1204, 3_900_000_000, 288, 1)
    assert summary.line("pushed", 1.49) == (
        "pushed 12 paths (48.1 MB), reused 288, skipped 1204 upstream (3.9 GB), renewed 288, "
        "repaired 1, in 1.4 s"
    )


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("list: x")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "push: list: x\n")


def test_failures_of_one_kind_are_one_cause() -> None:
    assert Failure("upload", "a", "413").cause == Failure("upload", "b", "413").cause
    assert Failure("upload", "a").cause != Failure("upload", "b").cause
    assert Failure("upload", "a").cause != Failure("stage", "a").cause
    assert str(Failure("upload", "a; b", "x")) == "upload: a; b"
    assert PushError("list", "x").failure == Failure("list", "x")
