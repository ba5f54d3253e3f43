"""What a builder remembers of a bucket, and whose file it believes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from push.memory import Memory, RememberedNarInfo, digest
from tests.unit.push.client import settings_for

ONE = RememberedNarInfo("etag", "facts", "nar/a.nar", 7)
CONTENT = {"narinfos": {"a.narinfo": ["etag", "facts", "nar/a.nar", 7]}, "upstream": ["b"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a memory is kept, with something in it."""
    path = tmp_path / "cache" / "bucket.json"
    memory = Memory(path)
    memory.narinfos["a.narinfo"] = ONE
    memory.upstream |= {"b"}
    memory.save()
    return path


def is_empty(memory: Memory) -> bool:
    return not memory.narinfos and not memory.upstream


def test_what_was_saved_is_remembered(file: Path) -> None:
    memory = Memory(file)
    assert memory.narinfos == {"a.narinfo": ONE}
    assert memory.upstream == {"b"}
    assert json.loads(file.read_text()) == CONTENT
    assert " " not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["bucket.json"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_can_write_is_not_believed(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert is_empty(Memory(file))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_is_another_users_is_not_believed(file: Path) -> None:
    os.chown(file, 65534, 65534)
    assert is_empty(Memory(file))


def test_what_lies_elsewhere_is_not_followed(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(file)
    assert is_empty(Memory(link))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe, 0o600)
    assert is_empty(Memory(pipe))
    assert is_empty(Memory(tmp_path))


def test_what_is_larger_than_any_is_not_read(file: Path) -> None:
    with file.open("r+b") as sparse:
        sparse.truncate((1 << 26) + 1)
    assert is_empty(Memory(file))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"narinfos": {}}',
        b'{"upstream": []}',
        b'{"narinfos": [], "upstream": []}',
        b'{"narinfos": null, "upstream": []}',
        b'{"narinfos": {}, "upstream": 7}',
        b'{"narinfos": {"a": []}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar"]}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar", "7"]}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar", 7.0]}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar", true]}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar", -1]}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar", 1, 2]}, "upstream": []}',
        b'{"narinfos": {"a": 7}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar", ' + b"9" * 5000 + b']}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "nar/n.nar", NaN]}, "upstream": []}',
        b'{"narinfos": {"a": [["e"], "f", "nar/n.nar", 1]}, "upstream": []}',
        b'{"narinfos": {"a": ["e", "f", "../n", 1]}, "upstream": []}',
        b"[" * 100_000,
    ],
)
def test_what_has_another_shape_is_not_believed(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert is_empty(Memory(file))


def test_a_pipe_is_not_believed_whatever_it_says(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe, 0o600)
    descriptor = os.open(pipe, os.O_RDWR)
    try:
        os.write(descriptor, json.dumps(CONTENT).encode())
        assert is_empty(Memory(pipe))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("spare", "believed"), [(0, True), (-1, False)])
def test_a_memory_of_just_the_largest_size_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, spare: int, believed: bool
) -> None:
    monkeypatch.setattr("push.memory._LARGEST", file.stat().st_size + spare)
    assert is_empty(Memory(file)) is not believed


def test_a_nar_of_no_bytes_can_be_remembered(file: Path) -> None:
    file.write_bytes(b'{"narinfos": {"a": ["e", "f", "nar/n.nar", 0]}, "upstream": []}')
    assert Memory(file).narinfos == {"a": RememberedNarInfo("e", "f", "nar/n.nar", 0)}


def test_a_memory_is_written_beside_the_one_that_it_replaces(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could not take that one's place at once, where TMPDIR is another file system."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    memory = Memory(file)
    memory.upstream.add("c")
    memory.save()
    assert Memory(file).upstream == {"b", "c"}


def test_a_memory_that_cannot_be_kept_hurts_nobody(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    Memory(blocked / "bucket.json").save()
    Memory(None).save()
    (tmp_path / "bucket.json").mkdir()
    Memory(tmp_path / "bucket.json").save()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bucket.json", "file"]


def test_the_newest_are_kept_where_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("push.memory._MOST_ENTRIES", 3)
    memory = Memory(tmp_path / "bucket.json")
    for number in range(5):
        memory.narinfos[str(number)] = ONE
        memory.upstream.add(str(number))
    memory.save()
    again = Memory(tmp_path / "bucket.json")
    assert list(again.narinfos) == ["2", "3", "4"]
    assert len(again.upstream) == 3


def test_each_bucket_of_each_server_has_a_memory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    buckets = [
        ("https://a.example", "one"),
        ("https://a.example", "two"),
        ("https://b.example", "one"),
        ("http://a.example", "one"),
    ]
    for endpoint, bucket in buckets:
        memory = Memory.of(settings_for(endpoint, bucket=bucket))
        assert is_empty(memory)
        memory.narinfos["x"] = ONE
        memory.save()
    assert len(list((tmp_path / "nix-binary-cache").iterdir())) == len(buckets)


def test_without_a_home_nothing_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("HOME", raising=False)
    memory = Memory.of(settings_for("https://a.example"))
    memory.narinfos["x"] = ONE
    memory.save()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    memory = Memory.of(settings_for("https://a.example"))
    memory.save()
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["nix-binary-cache"]


def test_a_digest_is_of_all_its_texts_and_of_their_order() -> None:
    digests = [digest("a", "b"), digest("b", "a"), digest("ab"), digest("a"), digest("a", "")]
    assert len(set(digests)) == len(digests)
    assert all(len(one) == 32 for one in digests)


def test_a_digest_stays_what_it_is_so_that_what_was_remembered_stays_good() -> None:
    assert digest("a", "b") == hashlib.sha256(b"a\nb").hexdigest()[:32]
