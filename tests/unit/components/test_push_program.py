"""What travels to builders: one file, one bootstrap, one command line."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from components.push_program import (
    NEEDED,
    PROGRAM_KEY,
    archive,
    bare,
    bootstrap,
    bootstrap_text,
    push_command,
)
from components.retention import expiration_rules

CHECKOUT = Path(__file__).parents[3]


def run_on_a_builder(
    standard_input: bytes, *paths: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line as a builder's login shell would."""
    return subprocess.run(
        ["sh", "-c", push_command(paths, archive())],
        input=standard_input,
        capture_output=True,
        check=False,
        env=environment,
    )


def as_by_another_zlib(
    change: Mapping[str, bytes] = {}, comment: bytes = b"", method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """Return the push, with changes to its files, in other bytes than this machine makes."""
    with zipfile.ZipFile(io.BytesIO(archive())) as file:
        texts = {name: file.read(name) for name in file.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as written:
        written.comment = comment
        for name, text in {**texts, **change}.items():
            written.writestr(name, text)
    return buffer.getvalue()


def deflated(content: bytes) -> bytes:
    """Return a raw DEFLATE stream."""
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(content) + deflate.flush()


def sent(program: str) -> bytes:
    """Return standard input that begins with another program than the bootstrap."""
    text = base64.b64encode(deflated(program.encode())).decode()
    return f"{len(text)} {hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


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
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_DEFLATED}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}


def test_what_another_zlib_made_of_the_same_push_stays() -> None:
    uploaded = as_by_another_zlib()
    assert archive(uploaded) == uploaded != archive()


@pytest.mark.parametrize(
    "uploaded",
    [
        b"",
        b"x",
        archive()[:-1],
        archive()[:-100] + bytes(100),
        b"#!/bin/sh\n" + archive(),
        as_by_another_zlib({"push/cli.py": b"x"}),
        as_by_another_zlib({"push/more.py": b""}),
        as_by_another_zlib({"bomb": bytes(1 << 28)}),
        as_by_another_zlib(comment=bytes(60_000)),
        as_by_another_zlib(method=zipfile.ZIP_STORED),
        as_by_another_zlib(method=zipfile.ZIP_BZIP2),
    ],
    ids=["nothing", "broken", "cut off", "without its end", "with more before", "earlier",
         "with a file more", "with a bomb", "with a comment", "not compressed", "by bzip2"],
)  # fmt: skip
def test_what_is_not_this_push_and_nothing_else_does_not_stay(uploaded: bytes) -> None:
    assert archive(uploaded) == archive()


def test_whatever_is_broken_in_it_does_not_stay() -> None:
    draw, whole = random.Random(7), archive()
    for _ in range(100):
        broken = bytearray(whole)
        # Names, methods, sizes and places are in its last two thousand bytes.
        for place in draw.sample(range(len(whole) - 2000, len(whole)), 2):
            broken[place] = draw.randrange(256)
        kept = archive(bytes(broken))
        assert kept in (whole, bytes(broken))


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
    with zipfile.ZipFile(io.BytesIO(archive())) as file:
        travels = {name: file.read(name).decode() for name in file.namelist()}
    assert travels.pop("bootstrap") == bootstrap_text()
    travels["formats/sigv4.py"] = bare((CHECKOUT / "formats/sigv4.py").read_text())
    travels["push/bootstrap.py"] = bare((CHECKOUT / "push/bootstrap.py").read_text())
    for name, text in travels.items():
        path = CHECKOUT / ("push/__main__.py" if name == "__main__.py" else name)
        source = path.read_text(encoding="utf-8")
        assert code(text) == code(source), path
        assert text.count("\n") == source.count("\n"), path
        assert not [line for line in text.split("\n") if line.lstrip().startswith("#")], path
        assert not [words for words in told(text) if words], path


TEXTS_IN_CODE = '''\
"""What it is."""
QUERY = """
# no comment
"""
"""What a query is."""


class Gone(Exception):
    """Only told: "quoted", \\""" too."""


def ask(text: str = "#") -> str:
    # A comment.
    return f(
        # A comment, it says "no".
        text,
        """
# no comment either
""",
        "# nor this",
    )
'''


def test_a_text_within_code_is_no_docstring() -> None:
    text = bare(TEXTS_IN_CODE)
    assert code(text) == code(TEXTS_IN_CODE)
    assert not [words for words in told(text) if words]
    assert "A comment" not in text
    assert text.count("no comment") == 2


def is_told(statement: ast.stmt) -> bool:
    """Whether a statement is a text that nothing uses."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def bodies(tree: ast.AST) -> list[list[ast.stmt]]:
    """Return what modules, classes, functions and branches are made of."""
    found = [getattr(node, "body", None) for node in ast.walk(tree)]
    return [body for body in found if isinstance(body, list)]


def told(source: str) -> list[str]:
    """Return the docstrings of a module, those of its attributes too."""
    return [
        ast.literal_eval(statement.value)
        for body in bodies(ast.parse(source))
        for statement in body
        if is_told(statement) and isinstance(statement, ast.Expr)
    ]


def code(source: str) -> str:
    """Return all that a module says but its docstrings, with the line of each part."""
    tree = ast.parse(source)
    for body in bodies(tree):
        body[:] = [statement for statement in body if not is_told(statement)]
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return f"{ast.dump(tree)} {lines}"


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


@pytest.mark.parametrize("length", [0, 1, 3, 70, 80, 90])
def test_a_program_that_arrives_incomplete_is_not_run(length: int) -> None:
    done = run_on_a_builder(sent("print('begun')\nprint('ended')\n")[:length], "/link")
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr == b"push: fetch: what was sent was cut off; push again\n"


def test_the_command_line_means_the_same_to_every_login_shell() -> None:
    command = push_command(["/nix/store/a"], archive())
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
    head, _, text = bootstrap(archive()).partition("\n")
    size, checksum = head.split()
    assert len(text) == int(size) < 5_700
    assert hashlib.sha256(text.encode()).hexdigest() == checksum
    assert zlib.decompress(base64.b64decode(text), -15).decode() == bootstrap_text()
    compile(bootstrap_text(), "bootstrap", "exec")


def test_another_zlib_changes_the_bootstrap_no_more_than_the_archive() -> None:
    kept = archive(as_by_another_zlib())
    assert bootstrap(kept) != bootstrap(archive())
    text = bootstrap(kept).partition("\n")[2]
    assert zlib.decompress(base64.b64decode(text), -15).decode() == bootstrap_text()


def test_a_python_without_zlib_is_passed_over(tmp_path: Path) -> None:
    lacking, whole = tmp_path / "python3", tmp_path / "python3.11"
    run = "import sys; sys.modules['zlib'] = None; exec(sys.argv.pop(1))"
    lacking.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -IS -c "{run}" "$@"\n')
    lacking.chmod(0o755)
    whole.symlink_to(sys.executable)
    done = run_on_a_builder(sent(USES_ZLIB), "/link", environment=only(tmp_path))
    assert done.stdout == b"zlib\n", done.stderr


@pytest.mark.parametrize("lacking", NEEDED)
def test_a_python_without_all_that_the_push_needs_is_passed_over(
    tmp_path: Path, lacking: str
) -> None:
    minimal, whole = tmp_path / "python3", tmp_path / "python3.11"
    run = (
        "import sys; "
        "less = lambda one, find: type(one.__name__, (), dict(find_spec=lambda name, *a: "
        f"None if name == '{lacking}' else find(name, *a))); "
        "sys.meta_path[:] = [less(one, one.find_spec) for one in sys.meta_path]; "
        "exec(sys.argv.pop(1))"
    )
    minimal.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -IS -c "{run}" "$@"\n')
    minimal.chmod(0o755)
    program = "import sys; print(sys.meta_path[0])\n"
    environment = only(tmp_path)
    done = run_on_a_builder(sent(program), "/link", environment=environment)
    assert b"has no Python 3.10 or newer with zlib, ssl, xml and all" in done.stderr
    whole.symlink_to(sys.executable)
    done = run_on_a_builder(sent(program), "/link", environment=environment)
    assert done.stdout == b"<class '_frozen_importlib.BuiltinImporter'>\n", done.stderr


IN_EVERY_PYTHON = frozenset(
    {
        "__future__", "base64", "binascii", "collections", "contextlib", "datetime", "errno",
        "fcntl", "functools", "hashlib", "heapq", "importlib", "io", "ipaddress", "itertools",
        "marshal", "math", "os", "pathlib", "re", "select", "shutil", "signal", "socket", "stat",
        "subprocess", "sys", "tempfile", "textwrap", "threading", "time", "types", "typing",
        "urllib", "zipfile",
    }
)  # fmt: skip
"""Of what the push imports: what Debian's `python3-minimal` has (its list of files, 3.11)."""
DONE_WITHOUT = frozenset({"bz2"})
"""What the push does without where it is lacking."""


def test_whatever_the_push_imports_is_looked_for_where_a_python_may_lack_it() -> None:
    with zipfile.ZipFile(io.BytesIO(archive())) as file:
        texts = [file.read(name).decode() for name in file.namelist()]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    names = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    imported = {name.partition(".")[0] for name in names} - {"formats", "push", "zlib"}
    # Those of C that come with others, and are left out by themselves.
    assert imported == IN_EVERY_PYTHON | DONE_WITHOUT | set(NEEDED) - {"_ssl", "pyexpat"}


USES_ZLIB = "import zlib; print(zlib.__name__)\n"


def only(directory: Path) -> dict[str, str]:
    """Return an environment with no program but those of a directory and `sh`."""
    (directory / "sh").symlink_to("/bin/sh")
    return {"PATH": str(directory), "HOME": str(directory)}


def test_another_bootstrap_hidden_before_the_archives_own_does_not_stay() -> None:
    hidden = deflated(b"raise SystemExit('run by mistake')\n")
    with zipfile.ZipFile(io.BytesIO(archive())) as file:
        texts = {name: file.read(name) for name in file.namelist()}
    files = central = b""
    for name, text in texts.items():
        # Between a file's name and its bytes, where whoever reads the archive passes over it; and
        # as much more that another file says to have, so that the whole is as long as it should be.
        between = hidden if name == "bootstrap" else b""
        more = len(hidden) if name == "formats/__init__.py" else 0
        content, crc = deflated(text), zlib.crc32(text)
        sizes = (len(content), len(text), len(name), len(between))
        place = len(files)
        files += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, *sizes)
        files += name.encode() + between + content
        told = (len(content) + more, len(text), len(name), 0, 0, 0, 0, 0o644 << 16, place)
        central += struct.pack("<4s6H3I5H2I", b"PK\1\2", 788, 20, 0, 8, 0, 33, crc, *told)
        central += name.encode()
    count, end = len(texts), (len(central), len(files), 0)
    crafted = files + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, *end)
    with zipfile.ZipFile(io.BytesIO(crafted)) as file:
        expected = 22 + sum(
            76 + 2 * len(one.filename) + one.compress_size for one in file.infolist()
        )
    assert len(crafted) == expected
    assert archive(crafted) == archive()
