"""Become a command that the kernel kills when the process that started it goes.

Usage: `die_with_parent.py PARENT_PID COMMAND [ARGUMENT…]`. PR_SET_PDEATHSIG of prctl(2)
survives execve(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Ask for the signal, then replace this process by `command`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() == parent:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
