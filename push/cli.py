"""The command line: settings in, one line out, and an end that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from formats.printable import SHOWN, printable
from push import settings as push_settings
from push import signals
from push.failure import OutputError, PushError, defect
from push.progress import open_streams, put, say
from push.store import Nix

if TYPE_CHECKING:
    from push.session import Session

_PROGRAM = "nix-binary-cache-push"

_USAGE = """\
Usage: {program} [--config FILE|-] [--dry-run | --stdin | --queue DIRECTORY] [PATH...]

Pushes the closures of store paths, or of what links point to now, to a Nix binary cache on S3.
What the cache lacks is compressed, signed and uploaded; what it has is reused, and its lease
renewed; what an upstream cache signs is skipped. The last line sums it up.

  --config FILE      settings; - reads them from standard input
  --dry-run          only say what would be pushed
  --stdin            push what standard input names, a path a line, as it comes; each line is
                     written to standard output again once its closure is in the cache
  --queue DIRECTORY  push what the links in a directory point to, and remove each link once its
                     closure is in the cache; what stays in the directory makes the exit code 1
  --help             this text

Settings, one name=value a line; a line that starts with # is a comment:
{settings}

The file holds secrets: make it readable by its owner alone.
"""


class Interrupted(BaseException):
    """A signal asks the push to end."""

    def __init__(self, number: int) -> None:
        """Remember which."""
        super().__init__()
        self.number = number


class _Arguments:
    """What the command line says."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.config: str | None = None
        self.queue: str | None = None
        self.dry_run = self.stdin = self.help = False
        self.paths: list[str] = []
        left = iter(arguments)
        for argument in left:
            if argument in ("--config", "--queue"):
                value = next(left, None)
                if value is None:
                    raise _refused(f"{argument} needs a value; see --help")
                setattr(self, argument[2:], value)
            elif argument in ("--dry-run", "--stdin", "--help"):
                setattr(self, argument[2:].replace("-", "_"), True)
            elif argument.startswith("-"):
                raise _refused(f"unknown option '{printable(argument, 40)}'; see --help")
            else:
                self.paths.append(argument)
        if self.dry_run + self.stdin + (self.queue is not None) > 1:
            raise _refused("--dry-run, --stdin and --queue exclude one another; give one of them")
        self.check_no_paths(self.paths, "give no path")
        if self.stdin and self.config == "-":
            raise _refused("--stdin takes paths from standard input; give --config a file")

    def check_no_paths(self, paths: Sequence[str], remedy: str) -> None:
        """Refuse paths where what is to be pushed comes from elsewhere.

        Raises:
            PushError: there are some.
        """
        if paths and (self.stdin or self.queue is not None):
            where = "standard input" if self.stdin else "its directory"
            option = "--stdin" if self.stdin else "--queue"
            raise _refused(f"{option} takes what is to be pushed from {where}; {remedy}")


def main(arguments: Sequence[str], standard_input: Callable[[], str] | None = None) -> int:
    """Push as the command line says, and return the exit code.

    Args:
        arguments: the command line, without the program.
        standard_input: returns what standard input holds, where somebody has read it already.
    """
    # Before there is anything secret in its memory.
    signals.leave_no_core()
    open_streams()
    try:
        return _outcome(arguments, standard_input or _standard_input)
    except Interrupted as interruption:
        # Only one ever comes, and from wherever it does it comes here.
        return 128 + interruption.number


def _outcome(arguments: Sequence[str], standard_input: Callable[[], str]) -> int:
    try:
        # Inside, so that a signal at any moment ends it in order.
        _catch_signals()
        return _run(arguments, standard_input)
    except (PushError, OutputError) as error:
        return _end(str(error))
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 (Python would print what it says)
        # What a signal comes into the midst of may break: giving back a lock of Python's own, say.
        if isinstance(error.__context__, Interrupted):
            raise error.__context__ from None
        return _end(defect(error))


def _run(arguments: Sequence[str], standard_input: Callable[[], str]) -> int:
    given = _Arguments(arguments)
    if given.help:
        text = push_settings.usage()
        put(_USAGE.format(program=_PROGRAM, settings=text).rstrip("\n"))
        return 0
    settings = push_settings.read(_config(given.config, standard_input), given.paths)
    if settings.notice is not None:
        say(f"settings: {settings.notice}")
    given.check_no_paths(settings.paths, "leave path out of the settings")
    if not settings.paths and not given.stdin and given.queue is None:
        raise _refused("nothing to push; give a store path, or a link to one")
    nix = Nix(os.environ)
    nix.begin_closure(settings.paths)
    # Nix takes as long to answer as Python takes to read all of this, and it is the other's turn.
    from push.session import Session  # noqa: PLC0415

    # A signal that came meanwhile would leave what it has made already.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDS)
    session = Session(settings, os.environ, nix)
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDS)
            return _push(session, settings.paths, given, standard_input)
        finally:
            # One that comes before this is done has them ignored itself, and ends in the next.
            signals.ignore()
    finally:
        session.close()


def _push(
    session: Session, paths: Sequence[str], given: _Arguments, standard_input: Callable[[], str]
) -> int:
    from push import modes, status  # noqa: PLC0415 (as in `_run`)
    from push.queue import Queue  # noqa: PLC0415

    if given.dry_run:
        return modes.look(session, paths)
    started_by = status.started_by(
        os.environ,
        # What a deployment sends has read standard input already.
        deployed=standard_input is not _standard_input,
        queue=given.queue is not None,
        stdin=given.stdin,
    )
    tell = partial(session.tell, started_by)
    try:
        if given.stdin:
            return modes.push_lines(session, tell)
        if given.queue is not None:
            return modes.push_queue(session, Queue(Path(given.queue)), tell)
        return modes.push_once(session, paths, tell)
    except PushError:
        tell(None)
        raise


def _config(name: str | None, standard_input: Callable[[], str]) -> list[str]:
    if name is None:
        raise _refused("no settings; give --config FILE")
    if name == "-":
        return standard_input().split("\n")
    try:
        return Path(name).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        raise _refused(
            f"--config '{printable(name, SHOWN)}' cannot be read; name a readable file"
        ) from None


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise _refused("standard input is no text in UTF-8; see --help") from None


def _end(reason: str) -> int:
    try:
        say(reason)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    return 1


def _refused(what: str) -> PushError:
    return PushError("settings", what)


def _catch_signals() -> None:
    def interrupt(number: int, _: object) -> NoReturn:
        # Another one must not cut short what follows from this.
        signals.ignore()
        raise Interrupted(number)

    for number in signals.heard():
        signal.signal(number, interrupt)
    # Whoever started this may have held them back meanwhile.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDS)
