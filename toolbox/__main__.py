"""`python -m toolbox VERB`: what the Makefile's lines call.

An interruption says the same at every moment: what is imported here is imported under its guard.
The Makefile's lines begin with interrupts ignored, until there is somebody to hear them.
"""

from __future__ import annotations

import signal
import sys

INTERRUPTED = 130


def main() -> int:
    """Run the verb; return its exit code."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from toolbox.commands import run  # noqa: PLC0415

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\ninterrupted; run the command again to go on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
