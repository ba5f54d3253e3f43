"""What fetches the push on a builder: whom it believes, and what it costs at most."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trustme

import push
from components.push_program import PROGRAM_KEY, archive, bootstrap_text
from tests.unit.push.s3_stand_in import Raw, Reply, Seen, StandIn, error

PROGRAM = b"a program"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The bootstrap's names, as they are where it runs; it waits for nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module = ModuleType("bootstrap")
    monkeypatch.setitem(sys.modules, "bootstrap", module)
    names = module.__dict__
    exec(compile(bootstrap_text(), "bootstrap", "exec"), names)
    names["PAUSES"] = (0.0,) * 3
    return names


Loaded = dict[str, Any]


def settings_of(server: StandIn, **more: str) -> str:
    values = {
        "endpoint": server.url,
        "bucket": "cache",
        "access-key-id": "builder",
        "secret-access-key": "a secret",
        **more,
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def fetched(loaded: Loaded, server: StandIn) -> bytes:
    return bytes(loaded["_fetched"](settings_of(server)))


def refused(loaded: Loaded, server: StandIn) -> str:
    with pytest.raises(loaded["_FetchError"]) as caught:
        fetched(loaded, server)
    return str(caught.value)


def test_what_lies_in_the_bucket_is_fetched_with_a_signature(
    loaded: Loaded, server: StandIn
) -> None:
    server.put(PROGRAM_KEY, PROGRAM)
    assert fetched(loaded, server) == PROGRAM
    (seen,) = server.seen
    assert seen.key == PROGRAM_KEY
    assert "Credential=builder/" in seen.headers["authorization"]
    assert seen.headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(loaded: Loaded, server: StandIn, status: int) -> None:
    server.put(PROGRAM_KEY, PROGRAM)
    replies = iter([Reply(status), Reply(status)])
    server.script = lambda _: next(replies, None)
    assert fetched(loaded, server) == PROGRAM
    server.script = lambda _: Reply(status)
    server.seen.clear()
    assert refused(loaded, server).endswith(f"HTTP {status}; see the server's log")
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(403, "AccessDenied"), "GET cache/_nixcache/push.pyz: HTTP 403 AccessDenied; run"),
        (
            error(403, "RequestTimeTooSkewed"),
            "HTTP 403 RequestTimeTooSkewed; set this machine's clock",
        ),
        (error(404, "NoSuchKey"), "HTTP 404 NoSuchKey; run make repair STACK=NAME"),
        (error(403, "A" * 64), f"HTTP 403 {'A' * 64}; run make repair STACK=NAME"),
        (error(403, "A" * 65), "HTTP 403; run make repair STACK=NAME"),
        (error(403, "\u05d0\u4e2d"), "HTTP 403; run make repair STACK=NAME"),
        (error(404, "<b>$(id)</b>"), "HTTP 404; run make repair STACK=NAME"),
        (Reply(302, {"Location": "/elsewhere"}), "HTTP 302; run make repair STACK=NAME"),
        (Reply(204), "HTTP 204; run make repair STACK=NAME"),
    ],
)
def test_a_refusal_is_said_and_no_redirect_followed(
    loaded: Loaded, server: StandIn, reply: Reply, said: str
) -> None:
    server.script = lambda _: reply
    assert said in refused(loaded, server)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho",
        b"HTTP/1.1 403 No\r\nContent-Length: 99\r\n\r\nshort",
    ],
)
def test_an_answer_that_is_cut_off_is_asked_for_again(
    loaded: Loaded, server: StandIn, answer: bytes
) -> None:
    server.put(PROGRAM_KEY, PROGRAM)
    replies = iter([Raw([answer])])
    server.script = lambda _: next(replies, None)
    assert fetched(loaded, server) == PROGRAM


def endless(head: bytes, block: bytes = bytes(1 << 16)) -> Callable[[Seen], Raw]:
    return lambda _: Raw(itertools.chain([head], itertools.repeat(block)))


@pytest.mark.parametrize(
    "answer",
    [
        endless(b"HTTP/1.1 200 OK\r\n\r\n"),
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"),
        endless(b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"),
    ],
    ids=["to the end", "a length", "a chunk of -1 bytes", "a refusal"],
)
def test_an_answer_that_does_not_end_is_given_up(
    loaded: Loaded, server: StandIn, answer: Callable[[Seen], Raw]
) -> None:
    server.script = answer
    assert refused(loaded, server).startswith("Failed to connect to the server: ")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 100 Continue\r\n",
    ],
    ids=["a length", "to the end", "a header", "one before it"],
)
def test_an_answer_that_drips_is_given_up(loaded: Loaded, server: StandIn, head: bytes) -> None:
    over = threading.Event()

    def drip() -> Iterator[bytes]:
        yield head
        until = time.monotonic() + 2
        while not over.wait(0.01) and time.monotonic() < until:
            yield b"x"

    server.script = lambda _: Raw(drip())
    loaded["_SECONDS"] = 0.1
    before = signal.getsignal(signal.SIGALRM)
    assert "the answer does not end" in refused(loaded, server)
    assert len(server.seen) == 1, "the time is that of all attempts together"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before
    over.set()


def test_all_attempts_together_end_in_time(
    loaded: Loaded, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    def answer(_: Seen) -> Reply:
        nonlocal now
        now += 80
        return Reply(503)

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setitem(loaded, "time", clock)
    loaded["PAUSES"] = (10.0,) * 14
    server.script = answer
    assert refused(loaded, server).endswith("HTTP 503; see the server's log")
    assert len(server.seen) == 4
    assert slept == [10.0] * 3
    server.script = lambda _: Reply(503)
    server.seen.clear()
    assert refused(loaded, server)
    assert len(server.seen) == 15, "a server that starts again is waited for"


def test_what_a_server_says_moves_no_terminal(
    loaded: Loaded,
    server: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda _: Raw([b"\x1b]0;owned\x07" + b"x" * 60_000 + b"\r\n"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(settings_of(server)))
    assert loaded["_run"]("0" * 64, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("push: fetch: Failed to connect to the server: ")
    assert line.endswith(f"; see that this machine reaches it at {server.url}")
    assert line.isprintable()
    assert len(line) < 400


def test_nobody_who_listens_is_named(loaded: Loaded, server: StandIn) -> None:
    server.url = "http://127.0.0.1:9"
    assert refused(loaded, server).endswith(
        "; see that this machine reaches it at http://127.0.0.1:9"
    )


def test_certificates_may_have_names_in_any_language(loaded: Loaded, server: StandIn) -> None:
    pem = "# F\u0151tan\u00fas\u00edtv\u00e1ny\n" + trustme.CA().cert_pem.bytes().decode()
    server.put(PROGRAM_KEY, PROGRAM)
    encoded = base64.b64encode(pem.encode()).decode()
    given = settings_of(server, **{"ca-certificate": encoded})
    assert loaded["_fetched"](given) == PROGRAM


# What is run.


def test_only_what_the_deployment_uploaded_is_run(loaded: Loaded, server: StandIn) -> None:
    server.put(PROGRAM_KEY, b"another program")
    sha256 = hashlib.sha256(PROGRAM).hexdigest()
    with pytest.raises(loaded["_FetchError"], match="is not what this deployment uploaded; run"):
        loaded["_program"](settings_of(server), sha256)
    server.put(PROGRAM_KEY, PROGRAM)
    assert loaded["_program"](settings_of(server), sha256) == PROGRAM
    server.objects.clear()
    assert loaded["_program"](settings_of(server), sha256) == PROGRAM


def test_what_was_kept_and_has_changed_is_fetched_anew(
    loaded: Loaded, server: StandIn, tmp_path: Path
) -> None:
    server.put(PROGRAM_KEY, PROGRAM)
    sha256 = hashlib.sha256(PROGRAM).hexdigest()
    for content in (b"evil", b"", PROGRAM + b"x"):
        loaded["_program"](settings_of(server), sha256)
        (kept,) = (tmp_path / "cache" / "nix-binary-cache").iterdir()
        kept.write_bytes(content)
        assert loaded["_program"](settings_of(server), sha256) == PROGRAM
        assert kept.read_bytes() == PROGRAM


def test_where_nothing_can_be_kept_it_runs_all_the_same(
    loaded: Loaded, server: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    server.put(PROGRAM_KEY, PROGRAM)
    sha256 = hashlib.sha256(PROGRAM).hexdigest()
    assert loaded["_program"](settings_of(server), sha256) == PROGRAM


def zipped(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive_:
        archive_.writestr("push/cli.py", text)
    return buffer.getvalue()


def run(loaded: Loaded, server: StandIn, program: bytes, **more: str) -> Any:
    """Return what the push's one file says, as a push with these secrets would run it."""
    given = settings_of(server, **{"signing-key": "cache-1:secret", **more})
    codes = loaded["_codes"](given, hashlib.sha256(program).hexdigest())
    names: dict[str, Any] = {}
    exec(codes["push/cli.py"], names)
    return names["said"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_could_not_be_kept_leaves_nothing(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fails(*_: object) -> None:
        raise failure

    monkeypatch.setattr(Path, "replace", fails)
    with contextlib.suppress(KeyboardInterrupt):
        loaded["_keep"](tmp_path / "push.pyz", PROGRAM)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("cache", "home"), [("here", ""), ("", ""), ("", "here"), ("here", "x")])
def test_nothing_is_kept_where_no_place_of_this_user_is_named(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", home)
    assert loaded["_kept"]("push.pyz") is None
    assert not list(tmp_path.iterdir())


def test_what_python_made_of_it_is_kept_and_believed_by_its_seal_alone(
    loaded: Loaded, server: StandIn, tmp_path: Path
) -> None:
    program, evil = zipped("said = 'honest'"), zipped("said = 'evil'")
    server.put(PROGRAM_KEY, program)
    assert run(loaded, server, program) == "honest"
    server.objects.clear()
    kept = tmp_path / "cache" / "nix-binary-cache"
    (archived,), (compiled,) = kept.glob("*.pyz"), kept.glob("*.code")
    archived.unlink()
    assert run(loaded, server, program) == "honest", "neither the bucket nor the archive is read"
    honest = compiled.read_bytes()

    server.put(PROGRAM_KEY, evil)
    assert run(loaded, server, evil, **{"signing-key": "cache-1:another"}) == "evil"
    server.put(PROGRAM_KEY, program)
    (other,) = set(kept.glob("*.code")) - {compiled}
    for forged in (other.read_bytes(), honest[:-1], b"", honest[:40], bytes(32) + honest[32:]):
        compiled.write_bytes(forged)
        assert run(loaded, server, program) == "honest"
        assert compiled.read_bytes() == honest


@pytest.mark.parametrize("name", ["secret-access-key", "signing-key"])
def test_without_a_secret_to_seal_it_with_no_code_is_kept(
    loaded: Loaded, server: StandIn, tmp_path: Path, name: str
) -> None:
    program = zipped("said = 'honest'")
    server.put(PROGRAM_KEY, program)
    assert run(loaded, server, program, **{name: ""}) == "honest"
    assert [path.suffix for path in (tmp_path / "cache/nix-binary-cache").iterdir()] == [".pyz"]


def test_another_secret_or_another_python_does_not_open_the_seal(
    loaded: Loaded, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = zipped("said = 'honest'")
    server.put(PROGRAM_KEY, program)
    assert run(loaded, server, program) == "honest"
    opened = pytest.MonkeyPatch()
    opened.setitem(loaded, "marshal", None)
    with pytest.raises(AttributeError):
        run(loaded, server, program)
    for change in ({"signing-key": "cache-1:another"}, {"secret-access-key": "another"}):
        opened.setitem(loaded, "marshal", SimpleNamespace(dumps=lambda _: b"anew"))
        assert run(loaded, server, program, **change) == "honest"
    opened.undo()
    assert run(loaded, server, program) == "honest"
    monkeypatch.setattr(sys, "version", "another")
    opened.setitem(loaded, "marshal", SimpleNamespace(dumps=lambda _: b"anew"))
    assert run(loaded, server, program) == "honest"


def test_a_bucket_may_stand_in_the_host_name(loaded: Loaded, server: StandIn) -> None:
    settings = settings_of(server, addressing="virtual", endpoint="https://s3.example:9000")
    request = loaded["_request"](settings)
    assert request.full_url == f"https://cache.s3.example:9000/{PROGRAM_KEY}"
    assert request.get_header("Host") == "cache.s3.example:9000"


def test_the_last_of_several_settings_counts(loaded: Loaded) -> None:
    setting = loaded["_setting"]
    assert setting("a=1\nb=2\na=3=4\n", "a") == "3=4"
    assert setting("aa=1\n#a=2\n", "a", "x") == "x"


def test_nix_is_asked_before_python_reads_what_the_network_needs() -> None:
    """Each takes as long as the other, and a push with nothing new takes little more."""
    read = (
        "import sys; sys.path.insert(0, sys.argv[1]); import push.cli, push.settings; "
        "print(*sorted({'http.client', 'push.session', 'ssl'} & set(sys.modules)))"
    )
    root = Path(push.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-IS", "-c", read, root], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_it_imports_from_what_was_checked(
    loaded: Loaded, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(PROGRAM_KEY, archive())
    codes = loaded["_codes"](settings_of(server), hashlib.sha256(archive()).hexdigest())
    finder = loaded["_Modules"](codes)
    assert finder.find_spec("push.cli") is not None
    assert finder.find_spec("push").submodule_search_locations is not None
    assert finder.find_spec("json") is None
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    for name in [name for name in sys.modules if name.split(".")[0] in ("push", "formats")]:
        monkeypatch.delitem(sys.modules, name)
    from push.cli import main  # noqa: PLC0415

    assert main.__code__.co_filename == "push/cli.py"


def test_what_is_kept_is_not_waited_for(loaded: Loaded, server: StandIn) -> None:
    server.put(PROGRAM_KEY, PROGRAM)
    digest = hashlib.sha256(PROGRAM).hexdigest()
    kept = loaded["_kept"](f"push-{digest}.pyz")
    os.mkfifo(kept)
    assert loaded["_program"](settings_of(server), digest) == PROGRAM
    assert kept.read_bytes() == PROGRAM
