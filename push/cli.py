"""The command line: settings in, one line out, and an end that leaves nothing behind."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from push import settings as push_settings
from push.failure import Failure, PushError, defect
from push.progress import Summary, say
from push.queue import Queue
from push.session import Outcome, Session
from push.settings import PushSettings
from push.status import started_by

_PROGRAM = "nix-binary-cache-push"
_SHOWN = 10
_SECONDS_BETWEEN_TELLING = 60.0

_Tell = Callable[[Outcome], None]

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
                raise _refused(f"unknown option '{argument[:40]}'; see --help")
            else:
                self.paths.append(argument)
        if self.dry_run + self.stdin + (self.queue is not None) > 1:
            raise _refused("--dry-run, --stdin and --queue exclude one another; give one of them")
        if self.paths and (self.stdin or self.queue is not None):
            where = "standard input" if self.stdin else "its directory"
            option = "--stdin" if self.stdin else "--queue"
            raise _refused(f"{option} takes what is to be pushed from {where}; give no path")
        if self.stdin and self.config == "-":
            raise _refused("--stdin takes paths from standard input; give --config a file")


def main(arguments: Sequence[str], standard_input: Callable[[], str] | None = None) -> int:
    """Push as the command line says, and return the exit code.

    Args:
        arguments: the command line, without the program.
        standard_input: returns what standard input holds, where somebody has read it already.
    """
    try:
        # Inside, so that a signal at any moment ends it in order.
        _catch_signals()
        return _run(arguments, standard_input or _standard_input)
    except PushError as error:
        return _end(str(error))
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except Interrupted as interruption:
        return 128 + interruption.number
    except Exception as error:  # noqa: BLE001 (Python would print what it says)
        return _end(defect(error))


def _run(arguments: Sequence[str], standard_input: Callable[[], str]) -> int:
    given = _Arguments(arguments)
    if given.help:
        text = push_settings.usage()
        sys.stdout.write(_USAGE.format(program=_PROGRAM, settings=text))
        return 0
    settings = push_settings.read(_config(given.config, standard_input), given.paths)
    if not settings.paths and not given.stdin and given.queue is None:
        raise _refused("nothing to push; give a store path, or a link to one")
    # A signal that came meanwhile would leave what it has made already.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    session = Session(settings, os.environ)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if given.dry_run:
            return _look(session, settings)
        tell = partial(session.tell, _started_by(given, standard_input))
        try:
            if given.stdin:
                return _push_lines(session, tell)
            if given.queue is not None:
                return _push_queue(session, Queue(Path(given.queue)), tell)
            return _push_once(session, settings.paths, tell)
        except PushError:
            tell(None)
            raise
    finally:
        _ignore_signals()
        session.close()


def _started_by(given: _Arguments, standard_input: Callable[[], str]) -> str:
    return started_by(
        os.environ,
        # What a deployment sends has read standard input already.
        deployed=standard_input is not _standard_input,
        queue=given.queue is not None,
        stdin=given.stdin,
    )


def _config(name: str | None, standard_input: Callable[[], str]) -> list[str]:
    if name is None:
        raise _refused("no settings; give --config FILE")
    if name == "-":
        return standard_input().split("\n")
    try:
        return Path(name).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        raise _refused(f"--config '{name}' cannot be read; name a readable file") from None


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise _refused("standard input is no text in UTF-8; see --help") from None


def _push_once(session: Session, paths: Sequence[str], tell: _Tell) -> int:
    began = time.monotonic()
    outcome = session.push(paths)
    tell(outcome)
    line = outcome.summary.line("pushed", time.monotonic() - began)
    if _tell_failures(outcome, line):
        return 1
    print(line, flush=True)
    return 0


def _look(session: Session, settings: PushSettings) -> int:
    began = time.monotonic()
    outcome, inventory = session.look(settings.paths)
    for one in inventory.missing:
        sys.stderr.write(f"would push {one.path.path}, {one.path.nar_size} bytes, {one.reason}\n")
    line = outcome.summary.line("would push", time.monotonic() - began)
    if _tell_failures(outcome, line):
        return 1
    print(line, flush=True)
    return 0


def _push_lines(session: Session, tell: _Tell) -> int:
    """Push what lines name, as many at once as have come by then."""
    code, told = 0, -_SECONDS_BETWEEN_TELLING
    so_far: Outcome | None = None
    for lines in _lines():
        outcome = session.push(lines)
        so_far = outcome if so_far is None else so_far + outcome
        # Who waits for the lines waits for this, too: not after each of them.
        if time.monotonic() - told >= _SECONDS_BETWEEN_TELLING:
            tell(so_far)
            told, so_far = time.monotonic(), None
        if _tell_failures(outcome, None):
            code = 1
        for line in outcome.done:
            print(line, flush=True)
    if so_far is not None:
        tell(so_far)
    return code


def _lines() -> Iterator[list[str]]:
    """Yield the lines of standard input, together those that have come meanwhile."""
    descriptor, rest, ended = sys.stdin.fileno(), b"", False
    while not ended:
        lines: list[str] = []
        while not ended and (not lines or select.select([descriptor], [], [], 0)[0]):
            block = os.read(descriptor, 1 << 16)
            ended = not block
            *whole, rest = (rest + block).split(b"\n")
            whole += [rest] if ended and rest else []
            lines += [line.decode(errors="replace").strip() for line in whole]
        lines = [line for line in lines if line]
        if lines:
            yield lines


def _push_queue(session: Session, queue: Queue, tell: _Tell) -> int:
    """Push what waits, and take out of the queue what is in the bucket, and nothing else."""
    if not queue.targets and not queue.strange:
        return 0
    began = time.monotonic()
    outcome = session.push(queue.targets) if queue.targets else Outcome(Summary())
    queue.remove(outcome.done)
    outcome.unpushed |= queue.strange
    tell(outcome)
    line = outcome.summary.line("pushed", time.monotonic() - began)
    if _tell_failures(outcome, line):
        return 1
    print(line, flush=True)
    return 0


def _tell_failures(outcome: Outcome, so_far: str | None) -> bool:
    """Say what is not in the bucket and why, the reasons last; return whether there is anything."""
    if not outcome.unpushed:
        return False
    shown = {
        path: "renewed" if failure.step == "renew" else "pushed"
        for path, failure in outcome.unpushed.items()
        if failure.step != "list"
    }
    if so_far is not None and outcome.done:
        say(f"so far: {so_far}")
    for path, what in list(shown.items())[:_SHOWN]:
        say(f"not {what}: {path}")
    if len(shown) > _SHOWN:
        say(f"not pushed: {len(shown) - _SHOWN} more paths")
    if outcome.blocked:
        say(f"not published: {len(outcome.blocked)} paths that refer to them")
    reasons: dict[tuple[str, str], Failure] = {}
    for failure in outcome.unpushed.values():
        reasons.setdefault(failure.cause, failure)
    for failure in list(reasons.values())[:_SHOWN]:
        say(str(failure))
    if len(reasons) > _SHOWN:
        say(f"{len(reasons) - _SHOWN} more reasons; the first ones are above")
    return True


def _end(reason: str) -> int:
    try:
        say(reason)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    return 1


def _refused(what: str) -> PushError:
    return PushError("settings", what)


_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def _catch_signals() -> None:
    def interrupt(number: int, _: object) -> NoReturn:
        # Another one must not cut short what follows from this.
        _ignore_signals()
        raise Interrupted(number)

    for number in _SIGNALS:
        signal.signal(number, interrupt)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
