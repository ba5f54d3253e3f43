"""Stands in for a process that a `server` forks: `client.py SOCKET NUMBER COMMAND…`.

SOCKET-N is the Nth of NUMBER servers' sockets, of which it takes one or the other.
COMMAND is what Python is given: `[-u] (-c CODE | -m MODULE | FILE) [ARGUMENT…]`. Run without
site-packages, and with what is built into Python alone: `signal` and `socket` import `enum`, which
takes as long as everything else here.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # no stub; the names are signal's
import marshal
import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
LENGTH_BYTES = 8
TAKEN, DECLINED = b"+", b"-"
"""What the server answers to a request."""

_OF_A_PROCESS = ("Uid:", "Gid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:")
_LINKS = ("root", "ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/user", "ns/uts")
_READ_AT_ITS_START = (
    "GRPC_", "LANG", "LC_", "LD_", "MALLOC_", "PROTOCOL_BUFFERS_", "PULUMI_ENABLE_", "PYTHON",
    "TEMP", "TMP", "TZ",
)  # fmt: skip
"""By Python, or by what is imported beforehand. Where the engine wants to be told of spans is not
among it, which is somewhere else for each of its commands: no test looks at what they took."""
_GIVEN_TO_A_FORK = "PYTHONPATH"


def surroundings() -> str:
    """Return what a process has from the one that started it and a fork cannot be given.

    Source of fact: proc(5); what Python reads at its start: its documentation, "Command line and
    environment".
    """
    with open("/proc/self/status") as status:
        lines = [line for line in status if line.startswith(_OF_A_PROCESS)]
    with open("/proc/self/limits") as limits:
        lines += limits
    lines += [os.readlink(f"/proc/self/{link}") for link in _LINKS]
    lines += sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith(_READ_AT_ITS_START) and name != _GIVEN_TO_A_FORK
    )
    return "\n".join(lines)


def ignored() -> list[int]:
    """Return which of `FORWARDED` this process ignores, from the one that started it."""
    with open("/proc/self/status") as status:
        (mask,) = (int(line.split()[1], 16) for line in status if line.startswith("SigIgn:"))
    return [int(number) for number in FORWARDED if mask >> (number - 1) & 1]


def understood(arguments: list[str]) -> bool:
    """Return whether the server knows how to do what these arguments say."""
    rest = arguments[1:] if arguments[:1] == ["-u"] else arguments
    return len(rest) > 1 if rest[:1] in (["-c"], ["-m"]) else "".join(rest[:1]).endswith(".py")


def request(arguments: list[str]) -> bytes:
    """Return what the server is asked for: everything that a fork can be given but its files."""
    mask = os.umask(0)
    os.umask(mask)
    return marshal.dumps(
        {
            "arguments": arguments,
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "umask": mask,
            "ignored": ignored(),
            "surroundings": surroundings(),
        }
    )


def fork_of(address: str, arguments: list[str]) -> socket | None:
    """Return the connection that lasts as long as the fork does; None where there can be none."""
    connection = socket(AF_UNIX)
    # One of the standard files that is closed is none that could be given.
    if connection.fileno() <= 2 or not understood(arguments):
        return None
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    try:
        connection.connect(address)
        message = request(arguments)
        length = len(message).to_bytes(LENGTH_BYTES, "big")
        connection.sendmsg([length], [(SOL_SOCKET, SCM_RIGHTS, files)])
        connection.sendall(message)
        return connection if connection.recv(1) == TAKEN else None
    except OSError:
        return None


def tell(connection: socket, number: int) -> None:
    """Let the fork have a signal, unless it has ended: how, lies in the connection."""
    try:  # noqa: SIM105 -- contextlib takes a moment to import
        connection.sendall(bytes([number]))
    except OSError:
        pass


def main(address: str, arguments: list[str]) -> None:
    """Stand in for the fork until it ends, and end as it did."""
    # What comes before the fork is there waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    connection = fork_of(address, arguments)
    if connection is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in FORWARDED:
        signal.signal(number, lambda received, _: tell(connection, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    status = connection.recv(LENGTH_BYTES)
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "big")) if status else 1
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(f"{sys.argv[1]}-{os.urandom(1)[0] % int(sys.argv[2])}", sys.argv[3:])
