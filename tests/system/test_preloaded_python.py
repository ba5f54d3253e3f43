"""The Python that most tests give the engine does what the real one does, only sooner."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.conftest import StackFactory
from tests.system.preloaded_python.client import LENGTH_BYTES, request
from tests.system.preloaded_python.environment import (
    MODULES,
    SERVERS,
    VIRTUALENV,
    forks,
    preloaded_python,
)
from tests.system.preloaded_python.server import PROGRAM
from tests.system.stack import CHECKOUT
from toolbox.processes import started, wait_until

_WHAT_IT_IS = """
import os, sys
mask = os.umask(0)
print(__name__, sys.argv, sys.path[0], sys.executable, os.getcwd(), mask, sys.stdin.read())
print(os.environ["OF_THE_CALL"], sorted(os.environ.keys() - {"_", "OLDPWD", "PWD", "SHLVL"}))
print("to standard error", file=sys.stderr)
"""
_AT_ITS_END = """
import atexit, tempfile, threading, time
atexit.register(print, "at its end")
kept = tempfile.TemporaryDirectory(dir=".")
threading.Timer(0.1, print, ["a thread"]).start()
"""
_LEFT_BY_A_SIGNAL = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
_LOADED = f"import sys; print(set({MODULES!r}) <= sys.modules.keys())"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The quick Python."""
    with preloaded_python(tmp_path_factory.mktemp("preloaded")) as virtualenv:
        yield virtualenv / "bin" / "python"


def call(python: Path | str, directory: Path, *arguments: str) -> tuple[int, str, str]:
    """Return how a call ended, and what it wrote."""
    done = subprocess.run(
        [python, *arguments],
        cwd=directory,
        env={**os.environ, "OF_THE_CALL": "a value", "PYTHONPATH": str(directory)},
        input="to standard input",
        capture_output=True,
        text=True,
        umask=0o27,
        check=False,
    )
    # Only a real one has no frames of the server's in front of the program's.
    return done.returncode, done.stdout, done.stderr.rpartition("Traceback")[2][-40:]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-c", _WHAT_IT_IS, "one", "two words"), id="code"),
        pytest.param(("-u", "-c", _WHAT_IT_IS), id="unbuffered"),
        pytest.param(("-m", "of_the_test", "one"), id="module"),
        pytest.param(("of_the_test.py", "one"), id="file"),
        pytest.param(("-c", _AT_ITS_END), id="ends in order"),
        pytest.param(("-c", "import sys; sys.exit(7)"), id="code 7"),
        pytest.param(("-c", "import sys; sys.exit('in words')"), id="words"),
        pytest.param(("-c", "1/0"), id="exception"),
        pytest.param(("-c", _LEFT_BY_A_SIGNAL), id="signal"),
        pytest.param(("-c", "import no_such_module"), id="no such module"),
    ],
)
def test_it_does_what_the_real_one_does(
    python: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "of_the_test.py").write_text(_WHAT_IT_IS)
    assert call(python, tmp_path, *arguments) == call(sys.executable, tmp_path, *arguments)
    assert [file.name for file in tmp_path.iterdir() if file.name != "__pycache__"] == [
        "of_the_test.py"
    ]


def test_it_has_imported_what_takes_long(python: Path, tmp_path: Path) -> None:
    assert call(python, tmp_path, "-c", _LOADED)[1] == "True\n"


@pytest.mark.parametrize("own", ["formats", "push"])
def test_a_project_has_what_its_own_directory_has_of_the_program(
    python: Path, tmp_path: Path, own: str
) -> None:
    code = f"import formats.keys, {own}; print({own}.__file__, formats.keys.__file__)"
    for name in PROGRAM:
        (tmp_path / name).symlink_to(CHECKOUT / name)
    assert call(python, tmp_path, "-c", code)[1].count(str(CHECKOUT)) == 2
    (tmp_path / own).unlink()
    shutil.copytree(CHECKOUT / own, tmp_path / own)
    assert call(python, tmp_path, "-c", code) == call(sys.executable, tmp_path, "-c", code)


def test_what_has_no_order_has_another_one_in_some(python: Path, tmp_path: Path) -> None:
    first, *others = (call(python, tmp_path, "-c", "print(hash('a'))")[1] for _ in range(20))
    assert any(other != first for other in others)


@pytest.mark.parametrize(
    "around",
    [
        ("env", "TZ=Asia/Tokyo"),
        ("env", "LC_ALL=C"),
        ("prlimit", "--nofile=500"),
        ("sh", "-c", 'exec "$@" <&-', "sh"),
    ],
    ids=["time zone", "locale", "limit", "closed file"],
)
def test_where_a_fork_would_have_something_else_a_real_one_starts(
    python: Path, around: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [*around, python, "-c", _LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("ignoring", ["HUP", "INT QUIT", "TERM"])
def test_what_is_ignored_stays_ignored(python: Path, ignoring: str) -> None:
    code = "import signal; print([signal.getsignal(n) for n in (1, 2, 3, 13, 15, 17)])"
    script = f'trap \'\' {ignoring}; exec "$1" -c "$2"'
    quick, real = (
        subprocess.run(["sh", "-c", script, "sh", one, code], capture_output=True, check=True)
        for one in (python, sys.executable)
    )
    assert quick.stdout == real.stdout


@pytest.mark.parametrize(
    ("number", "ended"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 5)],
)
def test_a_signal_to_what_stands_in_for_it_ends_it(
    python: Path, number: signal.Signals, ended: int
) -> None:
    code = """
import os, sys, time
try:
    print(os.getpid(), flush=True)
    # One that comes just before Python sleeps is heard when it has slept.
    for _ in range(6000):
        time.sleep(0.1)
except KeyboardInterrupt:
    sys.exit(5)
"""
    # What a shell starts in the background ignores interruptions, and so would these tests.
    heeding = ["env", "--default-signal=INT", str(python), "-c", code]
    with subprocess.Popen(heeding, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fork = int(process.stdout.readline())
        assert fork != process.pid
        process.send_signal(number)
        assert process.wait(60) == ended
        assert wait_until(lambda: started(fork) is None, 20)


def test_one_that_is_killed_while_it_asks_harms_no_other(python: Path) -> None:
    waiting = "import sys; print('there', flush=True); sys.stdin.read(); sys.exit(7)"
    several = range(4 * SERVERS)
    with ExitStack() as running:
        others = [
            running.enter_context(
                subprocess.Popen(
                    [python, "-c", waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            for _ in several
        ]
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == b"there\n"
        address = python.read_text().split("'")[5]
        for server in range(SERVERS):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(f"{address}-{server}")
                message = request(["-c", "import time; time.sleep(600)"])
                length = len(message).to_bytes(LENGTH_BYTES, "big")
                socket.send_fds(asking, [length], [0, 1, 2])
                asking.sendall(message)
                # Its answer comes, and is not read.
                select.select([asking], [], [])
        for other in others:
            assert other.stdin is not None
            other.stdin.close()
            assert other.wait() == 7
    environment = {VIRTUALENV: str(python.parents[1])}
    assert wait_until(lambda: forks(environment) == [], 20)


@pytest.mark.parametrize("killed", ["tests", "server"])
def test_nothing_outlives_the_tests_however_they_end(tmp_path: Path, killed: str) -> None:
    tests = f"""
import subprocess, sys
from pathlib import Path
from tests.system.preloaded_python.environment import preloaded_python
with preloaded_python(Path({str(tmp_path)!r})) as virtualenv:
    code = "import os, time; print(os.getppid(), os.getpid(), flush=True); time.sleep(600)"
    subprocess.run([virtualenv / "bin" / "python", "-c", code])
"""
    with subprocess.Popen([sys.executable, "-c", tests], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        server, fork = map(int, process.stdout.readline().split())
        assert started(server)
        assert started(fork)
        os.kill(process.pid if killed == "tests" else server, signal.SIGKILL)
    assert wait_until(lambda: started(server) is None and started(fork) is None, 20)


def test_the_engines_program_is_such_a_fork(
    engine: Mapping[str, str], new_stack: StackFactory
) -> None:
    stack = new_stack("plain")
    runtime = "name: python\n  options:\n    virtualenv: .venv\n"
    project = f"name: nixcache\nruntime:\n  {runtime}"
    for name, text in (("Pulumi.yaml", project), ("__main__.py", _LOADED)):
        (stack.project / name).unlink()
        (stack.project / name).write_text(text)
    # Official plugins run programs by a real Python.
    assert str(VIRTUALENV in engine) in stack.preview().succeeded().output
