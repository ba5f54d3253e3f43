"""Runs the push: `python -m push`, or a zipapp of it."""

from __future__ import annotations

import os
import sys

from push.cli import main

if __name__ == "__main__":
    # Threads that still wait for an answer are not waited for.
    os._exit(main(sys.argv[1:]))
