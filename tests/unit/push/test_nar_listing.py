"""Listings of NARs against what Nix 2.34 wrote, and where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from push import nar_listing as module
from push.nar_listing import nar_listing

NIX = (
    '{"root":{"entries":{".h":{"entries":{},"type":"directory"},'
    '"b8":{"narOffset":400,"size":8,"type":"regular"},'
    '"b9":{"narOffset":592,"size":9,"type":"regular"},'
    '"bin":{"entries":{"x":{"executable":true,"narOffset":960,"size":2,"type":"regular"}},'
    '"type":"directory"},"d\x7fl":{"narOffset":1184,"size":1,"type":"regular"},'
    '"empty":{"entries":{},"type":"directory"},"link":{"target":"bin/x","type":"symlink"},'
    '"zero":{"narOffset":1736,"size":0,"type":"regular"},'
    '"ü\\"q":{"narOffset":1920,"size":3,"type":"regular"}},"type":"directory"},"version":1}'
)
SIZE = 1976


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What Nix listed so."""
    path = tmp_path / "thing"
    for name in ("bin", "empty", ".h"):
        (path / name).mkdir(parents=True)
    for name, text in {
        "bin/x": "a\n",
        "b8": "12345678",
        "b9": "123456789",
        "zero": "",
        'ü"q': "ü\n",
        "d\x7fl": "\x7f",
    }.items():
        (path / name).write_text(text)
    (path / "bin/x").chmod(0o755)
    (path / "link").symlink_to("bin/x")
    return path


def test_a_listing_is_what_nix_writes(made: Path) -> None:
    assert nar_listing(str(made), SIZE) == NIX.encode()


def test_names_are_read_alike_in_every_locale(made: Path) -> None:
    program = (
        "import sys; from push.nar_listing import nar_listing; "
        "sys.stdout.buffer.write(nar_listing(sys.argv[1], int(sys.argv[2])) or b'none')"
    )
    environment = {
        # Python would take UTF-8 all the same.
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONPATH": str(Path(module.__file__).parents[1]),
    }
    listed = subprocess.run(
        [sys.executable, "-c", program, made, str(SIZE)],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert listed.stdout == NIX.encode()


def test_a_file_and_a_link_can_be_store_paths(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    link.symlink_to("/nowhere//at all")
    assert nar_listing(str(file), 120) == (
        b'{"root":{"narOffset":96,"size":1,"type":"regular"},"version":1}'
    )
    assert nar_listing(str(link), 128) == (
        b'{"root":{"target":"/nowhere//at all","type":"symlink"},"version":1}'
    )


def test_what_does_not_come_to_the_nars_size_is_not_listed(made: Path) -> None:
    assert nar_listing(str(made), SIZE + 8) is None
    (made / "b8").write_text("123456789")
    assert nar_listing(str(made), SIZE) is None


def test_what_cannot_be_listed_has_no_listing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nar_listing(str(tmp_path / "gone"), SIZE) is None
    monkeypatch.setattr(module, "_MOST_FILES", 5)
    assert nar_listing(str(made), SIZE) is None
    monkeypatch.undo()
    os.mkfifo(made / "pipe")
    assert nar_listing(str(made), SIZE) is None


def test_a_name_that_is_no_text_has_no_listing(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.mkdir()
    Path(os.fsdecode(os.fsencode(path) + b"/\xff")).touch()
    # As large as with a name of one letter that is text.
    size = 24 + 16 + 16 + 24 + (16 * 3 + 16 + 16) + (16 + 16 + 16 + 16 + 8 + 16) + 16 + 16
    assert nar_listing(str(path), size) is None
    Path(os.fsdecode(os.fsencode(path) + b"/\xff")).rename(path / "x")
    assert nar_listing(str(path), size) is not None
