"""What travels to builders: one file, one bootstrap, one command line."""

from __future__ import annotations

import ast
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from components.push_program import PROGRAM_KEY, archive, bare, bootstrap, push_command
from components.retention import expiration_rules

CHECKOUT = Path(__file__).parents[3]


def run_on_a_builder(
    standard_input: bytes, *paths: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line as a builder's login shell would."""
    return subprocess.run(
        ["sh", "-c", push_command(paths)],
        input=standard_input,
        capture_output=True,
        check=False,
        env=environment,
    )


def sent(program: str) -> bytes:
    """Return standard input that begins with another program than the bootstrap."""
    return f"{len(program)} {hashlib.sha256(program.encode()).hexdigest()}\n{program}".encode()


def test_the_archive_is_the_same_bytes_wherever_it_is_made(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; time.tzset(); os.umask(0o077);"
        "from components.push_program import archive; sys.stdout.buffer.write(archive())"
    )
    made = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=CHECKOUT,
        env={"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)},
    )
    assert made.stdout == archive()
    with zipfile.ZipFile(io.BytesIO(archive())) as file:
        entries = file.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}


def test_the_archive_runs_and_holds_nothing_that_wants_a_library(tmp_path: Path) -> None:
    program = tmp_path / "push.pyz"
    program.write_bytes(archive())
    done = subprocess.run(
        [sys.executable, "-I", "-S", program, "--help"], capture_output=True, check=True, text=True
    )
    assert done.stdout.startswith("Usage: nix-binary-cache-push")
    with zipfile.ZipFile(program) as file:
        assert not [name for name in file.namelist() if b"nacl" in file.read(name)]


def test_what_travels_says_the_same_without_comments_and_docstrings() -> None:
    for path in sorted(CHECKOUT.glob("push/*.py")):
        source = path.read_text(encoding="utf-8")
        text = bare(source)
        assert text.count("\n") == source.count("\n"), path
        assert statements(text) == statements(source), path
        assert len(text) < len(source), path


def statements(source: str) -> list[tuple[str, int]]:
    """Return the kind and line of every statement but docstrings and what stands for one."""
    return [
        (type(node).__name__, node.lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]


def test_no_lifecycle_rule_takes_the_push_away() -> None:
    rules = expiration_rules(7, 1)
    assert rules
    assert not [rule for rule in rules if PROGRAM_KEY.startswith(rule.prefix)]


def test_paths_arrive_as_words_and_the_settings_behind_the_program() -> None:
    link = "/nix/var/nix/profiles/per-user/o'neill/my profile"
    program = "import sys; print(sys.argv[1:]); print(sys.stdin.read())\n"
    done = run_on_a_builder(sent(program) + b"bucket=nix-cache\n", link)
    checksum = hashlib.sha256(archive()).hexdigest()
    assert done.stdout.decode().splitlines() == [
        str([checksum, "--config", "-", link]),
        "bucket=nix-cache",
        "",
    ]


@pytest.mark.parametrize("length", [0, 3, 70, 80, 90])
def test_a_program_that_arrives_incomplete_is_not_run(length: int) -> None:
    done = run_on_a_builder(sent("print('begun')\nprint('ended')\n")[:length], "/link")
    assert done.returncode != 0
    assert done.stdout == b""


def test_the_command_line_means_the_same_to_every_login_shell() -> None:
    command = push_command(["/nix/store/a"])
    assert not set(command) & set("!\\\n")
    # Two texts in quotation marks, and nothing within them that ends or changes one.
    assert command.count("'") == 4


def test_the_environments_python_settings_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "hashlib.py").write_text("raise SystemExit('hijacked')\n")
    program = "import sys; print(sys.flags.isolated)\n"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    done = run_on_a_builder(sent(program), "/link", environment=environment)
    assert done.stdout == b"1\n", done.stderr


def test_the_bootstrap_is_short_and_whole() -> None:
    head, _, text = bootstrap().partition("\n")
    size, checksum = head.split()
    assert len(text) == int(size) < 11_000
    assert hashlib.sha256(text.encode()).hexdigest() == checksum
    compile(text, "bootstrap", "exec")
