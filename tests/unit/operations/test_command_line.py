"""How every operation ends, whatever it says and whoever reads that."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from operations.command_line import CANNOT_RUN, INTERRUPTED, UNHEARD, interruptible, run
from operations.pulumi_cli import OperationError
from tests.unit.configuration import PROJECT_ROOT

TALKS = """\
import sys
from operations.command_line import run
sys.exit(run(lambda: print("x" * int(sys.argv[1])) or 0))
"""


GOES = """\
import signal, sys, time
from operations.command_line import run

class Going:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def operation():
    going = [Going()]
    del going[0]
    for _ in range(600):
        time.sleep(0.1)
    return 0

sys.exit(run(operation))
"""


def test_an_interruption_that_comes_while_an_object_goes_is_heard() -> None:
    command = ["env", "--default-signal=INT", sys.executable, "-c", GOES]
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (
        INTERRUPTED,
        "\ninterrupted; run the command again to go on\n",
    )


def talking(letters: int, output: int) -> tuple[int, str]:
    command = [sys.executable, "-c", TALKS, str(letters)]
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, stdout=output, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("letters", [1, 1_000_000])
def test_a_reader_that_has_gone_ends_an_operation_without_a_word(letters: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert talking(letters, writer) == (UNHEARD, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("letters", [1, 1_000_000])
def test_what_cannot_be_written_to_a_full_disk_is_one_sentence(letters: int) -> None:
    with Path("/dev/full").open("wb") as full:
        code, told = talking(letters, full.fileno())
    assert code == CANNOT_RUN
    assert told == "error: what it says cannot be written: No space left on device\n"


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_nobodys_and_no_files(tmp_path: Path, closing: str) -> None:
    code = (
        "import sys; from pathlib import Path; from operations.command_line import run\n"
        "def operation():\n"
        f"    with Path({str(tmp_path / 'file')!r}).open('w') as file:\n"
        "        print('to nobody', sys.stdin.readline()); print('either', file=sys.stderr)\n"
        "        return 7 if file.fileno() > 2 else 8\n"
        "sys.exit(run(operation))"
    )
    script = f'exec "$0" -c "$1" {closing}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, code],
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 7
    assert (tmp_path / "file").read_text() == ""


def test_no_text_of_others_in_a_refusal_steers_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> int:
        raise OperationError("a\x1b[2Jb\rc")

    assert run(refuse) == CANNOT_RUN
    assert capsys.readouterr().err == "error: a?[2Jb?c\n"


def test_a_damaged_authority_is_not_told_as_what_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")

    def trust() -> int:
        ssl.create_default_context().load_verify_locations(file)
        return 0

    assert run(trust) == CANNOT_RUN
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: caCertificateFile: [A-Z_]+; name the CA's PEM file\n", told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_from_outside_is_an_interruption_unless_it_is_ignored(
    number: signal.Signals,
) -> None:
    # Where all of it runs under nohup, one of them is ignored already.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), number)
        signal.signal(number, signal.SIG_IGN)
        with interruptible():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
