"""Runs one Pulumi program, in the interpreter and virtualenv that the program chose.

Started by `language_host` as a script, because the program's virtualenv knows nothing of this
package. Exit code 0 is success, 1 an error that a line of the log explains, 32 an error whose
traceback the log shows.

Source of fact: `sdk/python/cmd/pulumi-language-python-exec` at v3.259.0.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Before anything that takes a moment: an interruption is not worth a traceback of imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import logging
import runpy
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import pulumi
    import pulumi.runtime
except ImportError as missing:
    sys.exit(
        f"{missing}\nThe program's Python, {sys.executable}, lacks the Pulumi SDK: run"
        " `pip install -r requirements.txt` with it."
    )

SHOWN_TO_USER = 32


def own_traceback(error: BaseException, program: str) -> str:
    """Return the traceback of `error` from the first frame in `program`, a file or directory."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next(
        (number for number, frame in enumerate(frames) if frame.filename.startswith(program)), 0
    )
    own = error.__traceback__
    for _ in range(first):
        own = own.tb_next if own else None
    return "".join(traceback.format_exception(type(error), error, own))


def run(program: str, parallel: int) -> int:
    """Run the file or directory `program`; returns the exit code. `parallel` is the engine's."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    executor = ThreadPoolExecutor(max_workers=max(parallel, 1) * 4)
    loop.set_default_executor(executor)
    # A failed program leaves futures that nobody awaits; asyncio's complaints would bury the error.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    path = Path(program).resolve()

    def run_program() -> None:
        if path.is_dir() and not (path / "__main__.py").exists():
            pulumi.log.error(f"unable to find main python program `__main__.py` in `{path}`")
            sys.exit(SHOWN_TO_USER)
        runpy.run_path(program, run_name="__main__")

    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(run_program))
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        return 1
    except Exception as error:  # noqa: BLE001 -- whatever a program raises is shown
        pulumi.log.error(
            "Program failed with an unhandled exception:\n" + own_traceback(error, str(path))
        )
        return SHOWN_TO_USER
    finally:
        executor.shutdown(wait=True)
        loop.close()
    return 0


def main() -> int:
    """Read the engine's settings from the arguments, then run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("monitor", "engine", "project", "stack", "organization", "root-directory"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    pulumi.runtime.set_all_config(
        pulumi.runtime.get_config_env(), pulumi.runtime.get_config_secret_keys_env()
    )
    pulumi.runtime.configure(
        pulumi.runtime.Settings(
            monitor=given.monitor,
            engine=given.engine,
            project=given.project,
            stack=given.stack,
            organization=given.organization,
            root_directory=given.root_directory,
            parallel=given.parallel,
            dry_run=given.dry_run,
        )
    )
    # As if the program had been started by itself: without this script's own directory.
    sys.path.pop(0)
    sys.argv = [given.program, *given.arguments]
    return run(given.program, given.parallel)


if __name__ == "__main__":
    sys.exit(main())
