"""Imports modules once, and forks for each `client` that asks: `server SOCKET MODULE…`.

It ends, and whatever it forked with it, when its standard input does.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import marshal
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.system.preloaded_python.client import (
    DECLINED,
    FORWARDED,
    LENGTH_BYTES,
    TAKEN,
    surroundings,
)
from toolbox.die_with_parent import PR_SET_PDEATHSIG

Request = Mapping[str, Any]
"""What `client.request` says."""

ASKING_SECONDS = 10.0
"""How long a client may take to say what it wants: nobody else is served meanwhile."""

PROGRAM = ("components", "formats", "program", "push")
"""The packages that this checkout's program has, and every project of it."""

_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Forks:
    """The processes that were forked, and the connections that they end with."""

    def __init__(self, address: str) -> None:
        """Listen on the socket `address`."""
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(address)
        self._listening.listen(64)
        self._surroundings = surroundings()
        self._pid = os.getpid()
        # It ends with its standard input alone: a terminal's interruption reaches it, too.
        for number in _IGNORED:
            signal.signal(number, lambda *_: None)
        self._running: dict[int, socket.socket] = {}
        self._ended, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno())
        self._selector = selectors.DefaultSelector()
        for source in (self._listening, self._ended, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Fork for whoever asks; return what a fork is to be, and None in the server at its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    for pid in self._running:
                        self._kill(pid)
                    return None
                if key.fileobj is self._ended:
                    self._ended.recv(4096)
                    self._collect()
                elif key.fileobj is not self._listening:
                    if key.data in self._running:
                        self._forward(key.data)
                else:
                    request = self._fork(self._listening.accept()[0])
                    if request is not None:
                        return request

    def _fork(self, connection: socket.socket) -> Request | None:
        files: list[int] = []
        try:
            connection.settimeout(ASKING_SECONDS)
            length, files, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
            size = int.from_bytes(length, "big")
            with connection.makefile("rb") as stream:
                message = stream.read(size)
            # A client may have been killed while it asked.
            request: Request = marshal.loads(message) if message[size - 1 :] else {}
            if request.get("surroundings") != self._surroundings or len(files) != 3:
                self._answer(connection, DECLINED)
                connection.close()
                return None
            connection.settimeout(None)
            pid = os.fork()
            if pid == 0:
                self._leave()
                connection.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                return request
        except (OSError, ValueError, EOFError):
            if os.getpid() != self._pid:
                # A fork that cannot have what it was to have must not go on as another server.
                os._exit(1)
            # No more files or processes, say: a real Python may do without.
            self._answer(connection, DECLINED)
            connection.close()
            return None
        finally:
            for file in files:
                os.close(file)
        # Here too, since it may be killed before it comes to do so itself.
        with suppress(OSError):
            os.setpgid(pid, pid)
        self._running[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, pid)
        self._answer(connection, TAKEN)
        return None

    def _leave(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != self._pid:
            os._exit(1)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for connection in (self._listening, self._ended, self._wake, *self._running.values()):
            connection.close()

    def _answer(self, connection: socket.socket, answer: bytes) -> None:
        # A client that has been killed is told by the end of its connection.
        with suppress(OSError):
            connection.sendall(answer)

    def _forward(self, pid: int) -> None:
        try:
            number = self._running[pid].recv(1)
        except ConnectionError:
            # It was killed before it had read the answer.
            number = b""
        if number:
            with suppress(ProcessLookupError):
                os.kill(pid, number[0])
        else:
            self._kill(pid)
            self._forget(pid)

    def _kill(self, pid: int) -> None:
        # With what it started, as the engine kills a plugin's whole group.
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _forget(self, pid: int) -> None:
        self._selector.unregister(self._running[pid])
        self._running.pop(pid).close()

    def _collect(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self._running:
                    self._answer(self._running[pid], status.to_bytes(LENGTH_BYTES, "big"))
                    self._forget(pid)


class QuickEnd:
    """Ends a fork once all that was to be done at its end is done.

    Taking the modules apart that were imported would copy the memory which it shares, for nothing.
    """

    def __init__(self) -> None:
        """Come last at the end: made before anything else that has something to do then."""
        self.code: int | None = None
        atexit.register(self._end)

    def _end(self) -> None:
        if self.code is not None:
            for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
                # Closed, or another's, it has nothing that must be written.
                with suppress(Exception):
                    stream.flush()  # type: ignore[union-attr]
            os._exit(self.code)


def import_program() -> None:
    """Import all that the program may import."""
    for package in map(importlib.import_module, PROGRAM):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(".__main__"):
                importlib.import_module(found.name)


def forget_program(directory: str) -> None:
    """Forget what was imported of the program where a directory has a package of its own."""
    if any(_is_another(Path(directory, name), sys.modules[name]) for name in PROGRAM):
        for name in [name for name in sys.modules if name.partition(".")[0] in PROGRAM]:
            del sys.modules[name]


def _is_another(place: Path, package: types.ModuleType) -> bool:
    return place.exists() and not place.samefile(package.__path__[0])


def become(request: Request, path: list[str]) -> None:
    """Do in this process what a new one with the command line of `request` does.

    Args:
        request: what the client has said.
        path: where modules are found, without what a command line adds.

    Raises:
        SystemExit: what it did ended so, or something else that it did not catch.
    """
    for number in FORWARDED:
        as_usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else as_usual)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    forget_program(request["directory"])
    os.umask(request["umask"])
    arguments = list(request["arguments"])
    unbuffered = arguments[0] == "-u" or bool(os.environ.get("PYTHONUNBUFFERED"))
    if arguments[0] == "-u":
        arguments.pop(0)
    errors = sys.stdin.errors
    sys.stdin = open(0, closefd=False, errors=errors)  # noqa: SIM115 -- until the process ends
    sys.stdout, sys.stderr = _writer(1, unbuffered), _writer(2, unbuffered)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
    kind = arguments.pop(0)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if kind == "-m":
        sys.path.insert(0, request["directory"])
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    if kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[1:]]
        code = compile(arguments[0], "<string>", "exec")
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv = [kind, *arguments]
        main.__file__ = str(Path(kind).absolute())
        with io.open_code(kind) as script:
            code = compile(script.read(), kind, "exec")
    exec(code, main.__dict__)


def _writer(number: int, unbuffered: bool) -> io.TextIOWrapper:
    binary = open(number, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115 -- until the process ends
    standard = {1: sys.__stdout__, 2: sys.__stderr__}[number]
    assert standard is not None
    return io.TextIOWrapper(
        binary,
        encoding=standard.encoding,
        errors=standard.errors,
        line_buffering=number == 2 or binary.isatty(),
        write_through=unbuffered,
    )


def main(address: str, modules: list[str]) -> None:
    """Serve until standard input ends; return in each fork when it has done what it was to do."""
    end = QuickEnd()
    path = sys.path[1:]
    forks = Forks(address)
    for module in modules:
        importlib.import_module(module)
    import_program()
    # Shared with every fork for as long as nobody writes to it; none lasts until it needs a
    # collection.
    gc.freeze()
    gc.disable()
    print("ready", flush=True)
    request = forks.serve()
    if request is None:
        return
    try:
        become(request, path)
        end.code = 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            end.code = (ended.code or 0) & 0xFF
        raise


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
