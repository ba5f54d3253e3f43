"""A job of a continuous integration system that pushes what it builds, while it goes on.

`start` tells Nix of the cache and leaves a hook with it that queues what is built; a process of its
own pushes what waits, again and again. `finish` pushes what is left, and takes all that away again.
The queue loses only what is in the cache. Whether the job fails with a push is the job's to say.

It runs from a checkout, with this Python and the machine's Nix, and takes its settings from the
environment, where such systems keep secrets: never from arguments.

Source: Nix manual, "post-build-hook", `nix.conf`.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from formats.nix_conf import patience
from formats.printable import SHOWN, printable
from formats.store_path import STORE_DIR, is_base_name
from push import signals
from push.failure import PushError, defect
from push.job_nix import (
    NoAnswerError,
    settings_in_force,
    why_nothing_is_queued,
    why_nothing_is_taken,
)
from push.progress import say
from push.settings import format_settings, read
from push.user_nix_conf import UserNixConf

_CHECKOUT = Path(__file__).resolve().parent.parent
_PREFIX = "NIX_BINARY_CACHE_"
_SECRETS = ("SECRET_ACCESS_KEY", "SESSION_TOKEN", "SIGNING_KEY")
_JOB_NAMES = ("CI_JOB_ID", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB")
"""What tells a forge's jobs apart, also those that are in the same place one after the other."""
_PAUSE = 2.0
"""Seconds between looks into the queue."""
_LONGEST_PAUSE = 120.0
"""Seconds until what could not be pushed is tried again, where nothing new has come."""
_PATIENCE = 900.0
"""Seconds that the last push in the background may take at the end."""

_USAGE = f"""\
Usage: python3 -m push.ci_job start | finish [PATH...]

Lets a job use a cache and push what it builds to it. In the environment:

  {_PREFIX}CONFIGURATION      file with what `pulumi stack output nixos --json` printed
  {_PREFIX}BUILDER            the job's builder in the stack; without it nothing is pushed
  {_PREFIX}SECRET_ACCESS_KEY  the secret of that builder's user
  {_PREFIX}ACCESS_KEY_ID      another user than the builder's, of a short-lived credential
  {_PREFIX}SESSION_TOKEN      and its token
  {_PREFIX}SIGNING_KEY        the secret key that signs, name:base64

finish has the variables of start. It pushes the closures of the paths, too, and exits with 1 where
something was not pushed.
"""

_LONGEST_TIME = 12
"""Digits of a time in seconds."""

_SECONDS_TO_END = 5.0
"""How long a push that is interrupted may clean up: a forge's runner kills what does not end."""

_LONGEST_JOB = 86_400.0
"""Seconds that a job may take whose forge does not say how many."""

_MOST_KEPT = 10_000
"""Names of what was not pushed that are kept for the next job."""

_LONGEST_KEPT = 3 * 86_400
"""Seconds for which they are: what fails for ever is not to fail jobs for ever."""

_LONGEST_REASON = 1_000
"""Characters of what the hook says it could not queue: two paths and the system's words."""

_LONGEST_RECORD = 1 << 16
"""Characters that are read of all that it says at a time."""

_HOOK = """\
#!/bin/sh
# Whatever has become of the job, no build fails for it, and nothing is written but into its own
# directory, whose name may be anybody's by then, and into a file beside this one, that stays as
# long: whoever could put another in its place could do so with this one.
trap '' PIPE
[ -d {queue} ] || exit 0
told=$({python} -I -S -B -c {program} 2>&1) && exit 0
[ -L {missed} ] || [ ! -f {missed} ] || printf '%s\\n' "$told" >{missed}
printf '%s\\n' "$told" >&2
exit 0
"""

# What it runs travels within it: the checkout can be gone, or another one, when something is built.
_HOOK_PROGRAM = """\
import sys
from pathlib import Path
from types import ModuleType
for name, text in {modules!r}.items():
    module = sys.modules[name] = ModuleType(name)
    exec(compile(text, name, "exec"), vars(module))
module.main(Path({queue!r}), {owner}, 1)
"""
_HOOK_MODULES = (
    "formats.error",
    "formats.nix32",
    "formats.store_path",
    "push.post_build_hook",
)


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do what the command line says, and return the exit code."""
    # What it starts, Nix and pushes, inherits that.
    signals.leave_no_core()
    try:
        if list(arguments) == ["start"]:
            with _cancelled_in_order():
                return _Job(environment).start()
        if list(arguments) == ["run"]:
            return _Job(environment).run()
        if arguments[:1] == ["finish"]:
            with _cancelled_in_order():
                return _Job(environment).finish(arguments[1:])
    except PushError as error:
        # The names in it are those of a file, which is anybody's.
        say(printable(str(error)))
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was not pushed is not in the cache")
        return 130
    except Exception as error:  # noqa: BLE001 (Python would print what it says)
        say(defect(error))
        return 1
    sys.stderr.write(_USAGE)
    return 0 if list(arguments) == ["--help"] else 2


@contextlib.contextmanager
def _cancelled_in_order() -> Iterator[None]:
    """Take what ends a cancelled job for an interruption, after which nothing is left behind.

    It comes once: another one would cut short what follows from the first.
    """

    def interrupt(*_: object) -> None:
        signals.ignore()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in signals.heard()}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Job:
    """One job's files, in a directory that its user alone can enter."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        # What is started has its settings from a file, and none of the secrets.
        self._children = {
            name: value for name, value in environment.items() if not name.startswith(_PREFIX)
        }
        self._nix_conf = UserNixConf(environment, _goes_on)
        self._workspace = (
            environment.get("GITHUB_WORKSPACE") or environment.get("CI_PROJECT_DIR") or os.curdir
        )
        # A forge's runner gives each job one of its own, and empties it.
        temporary = environment.get("RUNNER_TEMP")
        # GitLab's runner gives none, but a number to each of the jobs that it has at a time.
        number = [environment.get(name, "") for name in ("CI_RUNNER_ID", "CI_CONCURRENT_ID")]
        on_gitlab = all(map(str.isalnum, number))
        if on_gitlab:
            place = f"-{'-'.join(number)}"
        elif temporary:
            place = ""
        else:
            # There is one job at a time for each nix.conf, and nothing else that tells them apart.
            name = os.fsencode(self._nix_conf.name())
            place = f"-{hashlib.sha256(name).hexdigest()[:16]}"
        named = [environment.get(name, "") for name in _JOB_NAMES]
        ends_it = "CI_JOB_ID" if on_gitlab else "GITHUB_RUN_ID" if temporary else ""
        self._is_forges_place = bool(environment.get(ends_it))
        # Where no forge names them, a job that only reads is at least not one that pushes.
        self._job = "\n".join(named if any(named) else [self._given("BUILDER") or ""])
        base = temporary or tempfile.gettempdir()
        self._directory = Path(base, f"nix-binary-cache-{os.getuid()}{place}")
        # Nothing is there: it is what the lines of a job are of that has no files.
        self._reads = self._directory / "reads"
        self._has_no_secrets = self._directory / "has-no-secrets"
        self._settings = self._directory / "settings"
        self._queue = self._directory / "queue"
        self._stop = self._directory / "stop"
        self._log = self._directory / "log"
        self._pusher = self._directory / "pusher"
        self._of_job = self._directory / "job"
        self._not_queued = self._directory / "not-queued"
        self._told_nix = self._directory / "told-nix"

    def start(self) -> int:
        cache = self._cache()
        settings = self._push_settings(cache)
        owner = self._directory
        if settings is None:
            owner = self._has_no_secrets if self._given("BUILDER") else self._reads
        self._clear_place()
        with contextlib.ExitStack() as held:
            if settings is not None:
                self._take_directory()
            try:
                try:
                    log = None if settings is None else self._fill(settings, held)
                    queued = self._tell_nix(cache, owner, queues=log is not None)
                    if log is not None:
                        # Where nothing is queued it only removes the secrets in the end, and does
                        # without the lock: there is no hook that another job could take away.
                        unlocked = held.enter_context(self._log.open("ab"))
                        if queued:
                            self._take_what_is_kept()
                        self._start_pusher(log if queued else unlocked)
                except BaseException:
                    # As in `finish`.
                    signals.ignore()
                    raise
            except BaseException as error:
                with contextlib.suppress(PushError):
                    self._nix_conf.remove(self._nix_conf.path(), [owner])
                if settings is not None:
                    self._remove_files()
                if isinstance(error, OSError):
                    raise _refused(
                        f"'{self._directory}' cannot be written to ({error.strerror}); free space, "
                        "or set RUNNER_TEMP to a directory of this user's"
                    ) from None
                raise
        print("what this job builds is pushed" if queued else "the cache is set up", flush=True)
        return 0

    def _clear_place(self) -> None:
        """Remove what a job has left that was here before this one: there is one at a time."""
        if not self._is_forges_place or not self._is_ours() or self._is_this_jobs():
            return
        self._end_pusher()
        self._remove_files()
        say("settings: a job here ended without finish; what it had queued waits for the next one")

    def _remove_files(self) -> int:
        """Remove the job's files, keep what it has not pushed by name, and return how many it is.

        It is in the store by now: no later job builds it, so none would queue it.
        """
        kept = 0
        with contextlib.suppress(OSError, UnicodeDecodeError, PushError):
            lines = [
                f"{int(link.lstat().st_mtime)} {link.name}\n"
                for link in self._queue.iterdir()
                if link.is_symlink() and is_base_name(link.name)
            ]
            if lines:
                self._nix_conf.change_beside(
                    self._kept(),
                    # The oldest are the first to go.
                    lambda text: "".join(
                        sorted({*text.splitlines(keepends=True), *lines})[-_MOST_KEPT:]
                    ),
                )
                kept = len(lines)
        shutil.rmtree(self._directory, ignore_errors=True)
        return kept

    def _take_what_is_kept(self) -> None:
        """Queue what jobs of this user's have not pushed to this cache, and what is there still."""
        now = time.time()

        def taken(text: str) -> str:
            for line in text.splitlines():
                since, _, name = line.partition(" ")
                if not (since.isdecimal() and len(since) < _LONGEST_TIME and is_base_name(name)):
                    continue
                path, link = Path(STORE_DIR, name), self._queue / name
                if now - int(since) < _LONGEST_KEPT and os.path.lexists(path):
                    with contextlib.suppress(FileExistsError):
                        link.symlink_to(path)
                        os.utime(link, (int(since), int(since)), follow_symlinks=False)
            return ""

        with contextlib.suppress(PushError):
            self._nix_conf.change_beside(self._kept(), taken)

    def _kept(self) -> str:
        """Return what the file is called that has the names of what was not pushed to the cache.

        Raises:
            OSError, UnicodeDecodeError: the job's settings cannot be read.
        """
        lines = self._settings.read_text(encoding="utf-8").splitlines()
        cache = [line for line in lines if line.startswith(("endpoint=", "bucket="))]
        return f"{hashlib.sha256(repr(cache).encode()).hexdigest()[:32]}-unpushed"

    def _take_directory(self) -> None:
        try:
            # Nix's daemon runs the hook as root, other users' Nix as themselves.
            _make_directory(self._directory, 0o711)
        except FileExistsError:
            raise _refused(
                f"'{self._directory}' is there already, of a job that goes on or was ended; run "
                "finish first as that job, or remove it"
            ) from None
        except OSError as error:
            raise _refused(
                f"'{self._directory}' cannot be made ({error.strerror}); set RUNNER_TEMP to a "
                "directory that is there, and this user's"
            ) from None

    def _fill(self, settings: str, held: contextlib.ExitStack) -> BinaryIO:
        """Make the job's files, and return its log, which is locked until nobody has it any more.

        Its lock says that the job goes on; the pusher takes it over.
        """
        _write_new(self._of_job, self._job)
        # What stands in it is shown at the end as the job's own.
        _write_new(self._log, "")
        log = held.enter_context(self._log.open("ab"))
        fcntl.flock(log, fcntl.LOCK_EX)
        # Whoever writes here has the job sign and push: root, as Nix's daemon, and its own user.
        _make_directory(self._queue, 0o700)
        _write_new(self._settings, settings)
        return log

    def _tell_nix(self, cache: Mapping[str, Any], owner: Path, *, queues: bool) -> bool:
        """Tell Nix of the cache and, where what it builds is to be queued, of the hook.

        Args:
            cache: what Nix is told of.
            owner: the directory that the lines are of.
            queues: whether what it builds is to be queued.

        Returns:
            Whether what it builds is queued.
        """
        before = settings_in_force(self._children)
        lines = self._taking(cache, before)
        hook = why = missed = None
        if queues:
            # Its bytes are there before the disk is full: then it can still be written over.
            missed = self._nix_conf.put_beside("missed", self._nothing_missed(), 0o600)
            hook, why = self._queueing(before, missed)
        with_hook = [*lines, *([f"post-build-hook = {hook}"] if hook else [])]
        path = self._nix_conf.write(owner, with_hook)
        now = settings_in_force(self._children)
        if lines:
            self._check_in_force(cache, path, now)
        if hook is not None and now.get("post-build-hook") != str(hook):
            hook, why = None, f"the post-build-hook is '{now.get('post-build-hook')}'"
            self._nix_conf.write(owner, lines)
        if missed is None:
            return False
        _write_new(self._told_nix, f"{path}\n{hook or ''}\n{missed}\n")
        if why is not None:
            _write_new(self._not_queued, f"what this job builds is not queued: {why}")
            self._say_what_is_not_queued()
        return hook is not None

    def _taking(self, cache: Mapping[str, Any], before: Mapping[str, str]) -> list[str]:
        """Return the lines by which Nix takes from the cache what it has; say where it does not."""
        if cache.get("access") == "private":
            say(
                "settings: the cache is private; Nix reads it where this machine has its reader's "
                "credential, which is not the job's to set"
            )
        lines = [
            f"extra-substituters = {cache['substituter']}",
            f"extra-trusted-public-keys = {' '.join(cache['publicKeys'])}",
            *patience("{name} = {value}").splitlines(),
        ]
        # A daemon that does not see the file could ask no cache at all.
        certificates = self._certificates(cache, before)
        why = None
        trusting = [{"ssl-cert-file": str(certificates)}] if certificates else []
        for options in (*trusting, dict[str, str]()):
            try:
                why = why_nothing_is_taken(self._children, cache["substituter"], options)
            except NoAnswerError as error:
                say(f"settings: the cache lets Nix wait ({error}); this job goes without it")
                return []
            if why is None:
                return [*lines, *(f"{name} = {value}" for name, value in options.items())]
        say(f"settings: nothing is taken from the cache: {why}; builds go on without it")
        return lines

    def _certificates(self, cache: Mapping[str, Any], before: Mapping[str, str]) -> Path | None:
        """Return a file of all that Nix trusts and the private CA of the cache's server.

        No setting adds a CA: a file takes the place of all others.
        """
        certificate = str(cache.get("caCertificate") or "").strip()
        try:
            trusted = Path(before["ssl-cert-file"]).read_text(encoding="utf-8", errors="replace")
        except (KeyError, OSError, ValueError):
            return None
        if certificate in trusted:
            return None
        return self._nix_conf.put_beside("ca.pem", f"{trusted}\n{certificate}\n", 0o644)

    def _check_in_force(self, cache: Mapping[str, Any], path: Path, now: Mapping[str, str]) -> None:
        if not set(cache["publicKeys"]).issubset(now.get("trusted-public-keys", "").split()):
            raise _refused(
                f"Nix does not read '{path}'; unset what keeps it from that, such as NIX_CONFIG or "
                "NIX_CONFIG_HOME"
            )
        url = cache["substituter"].partition("?")[0]
        asked = any(one.partition("?")[0] == url for one in now.get("substituters", "").split())
        if not asked or now.get("substitute") == "false":
            say(
                "settings: nothing is taken from the cache: other settings keep Nix from asking "
                "it; see substituters and substitute in nix show-config"
            )

    def _queueing(self, before: Mapping[str, str], missed: Path) -> tuple[Path | None, str | None]:
        """Return the hook that queues what Nix builds, or None and why nothing would be queued.

        Args:
            before: Nix's settings.
            missed: the file that says what the hook has not queued.
        """
        anothers = before.get("post-build-hook")
        if anothers and not self._nix_conf.is_ours(anothers):
            return None, f"the post-build-hook is '{anothers}' already"
        modules = {
            name: Path(_CHECKOUT, *name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
            for name in _HOOK_MODULES
        }
        program = _HOOK_PROGRAM.format(modules=modules, queue=str(self._queue), owner=os.getuid())
        text = _HOOK.format(
            queue=shlex.quote(str(self._queue)),
            python=shlex.quote(sys.executable),
            program=shlex.quote(program),
            missed=shlex.quote(str(missed)),
        )
        hook = self._nix_conf.put_beside("post-build-hook", text, 0o755)
        why = why_nothing_is_queued(self._children, hook, self._queue)
        return (hook, None) if why is None else (None, why)

    def _nothing_missed(self) -> str:
        """Return what the file says that the hook writes over where it queues something not."""
        return f"all that was built is queued in {self._queue}\n"

    def _say_what_is_not_queued(self) -> None:
        why = self._not_queued.read_text(encoding="utf-8")
        say(f"settings: {why}; name what is to be pushed at finish")

    def run(self) -> int:
        """Push what waits, until `finish` says that it is enough.

        Where the job's time is over before, nobody has to come any more who would remove its
        secrets, so they are removed with the rest.
        """
        left: set[Path] = set()
        pause = again = 0.0
        log = self._log.stat()
        # A forge that ends a job may not let it finish.
        longest = self._environment.get("CI_JOB_TIMEOUT", "")
        end = time.monotonic() + (float(longest) if longest.isdecimal() else _LONGEST_JOB)
        while self._is_wanted(log):
            if time.monotonic() >= end:
                self._remove_files()
                break
            waiting = set(self._queue.iterdir())
            # What cannot be pushed now can be later, or never.
            if waiting - left or (waiting and time.monotonic() >= again):
                self._push_queue()
                left = waiting.intersection(self._queue.iterdir())
                pause = min(max(2 * pause, _PAUSE), _LONGEST_PAUSE) if left else 0.0
                again = time.monotonic() + pause
            time.sleep(_PAUSE)
        return 0

    def _is_wanted(self, log: os.stat_result) -> bool:
        """Whether the job whose log this is goes on: its runner may have removed everything."""
        try:
            return os.path.samestat(log, self._log.stat()) and not self._stop.exists()
        except OSError:
            return False

    def finish(self, paths: Sequence[str]) -> int:
        self._clear_place()
        is_there = self._is_ours()
        is_this_jobs = is_there and self._is_this_jobs()
        started = is_this_jobs and self._settings.exists()
        code, removed = 0, ""
        try:
            try:
                if started:
                    code = self._push_the_rest(paths)
            finally:
                # One that comes before this is done has them ignored itself, and goes on below.
                signals.ignore()
        finally:
            # However it ends: what is built later is not this job's.
            try:
                told = self._told()[0] if is_this_jobs else ""
                path = Path(told) if told else self._nix_conf.path()
                # Of a job that is another's, the lines are as well.
                pushes = [] if is_there and not is_this_jobs else [self._directory]
                owners = (*pushes, self._reads, self._has_no_secrets)
                removed = self._nix_conf.remove(path, owners)
            finally:
                kept = self._remove_files() if is_this_jobs else 0
                if kept:
                    say(
                        f"queue: {kept} paths are not pushed; this user's next job here that "
                        "pushes to this cache tries again"
                    )
        if started:
            return code
        if f"# of {self._directory}\n" in removed:
            say(f"settings: '{self._directory}' is gone, and what the job had queued with it")
            return 1
        if f"# of {self._has_no_secrets}\n" in removed:
            return 0
        if removed and not paths and not self._given("BUILDER"):
            return 0
        return self._nothing_was_started(paths, anothers=is_there and not is_this_jobs)

    def _nothing_was_started(self, paths: Sequence[str], *, anothers: bool) -> int:
        """Return 1, and say what is to be done, where `finish` was to find a job that pushes.

        Args:
            paths: what was to be pushed.
            anothers: whether another job's files are where this one's would be.
        """
        if not (paths or anothers or self._given("BUILDER")):
            return 0
        if anothers:
            what = f"'{self._directory}' is of a job that had other variables at start, and stays"
        else:
            what = f"nothing was started in '{self._directory}' that could push, or it is over"
            going_on = self._nix_conf.owner_that_goes_on()
            if going_on is not None:
                what += f", and a job goes on in '{printable(str(going_on), SHOWN)}'"
        say(
            f"settings: {what}; run finish with the variables that start had, among them "
            f"{_PREFIX}BUILDER, RUNNER_TEMP and TMPDIR"
        )
        return 1

    def _is_this_jobs(self) -> bool:
        """Whether what is in the job's directory was put there by this job's own start."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self._of_job.read_text(encoding="utf-8") == self._job
        return False

    def _is_ours(self) -> bool:
        """Whether the job's directory is there, and is one of this user's.

        It is asked once: what is not there now may be another user's a moment later.
        """
        try:
            found = self._directory.lstat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _refused(
                f"'{self._directory}' cannot be looked into ({error.strerror}); set RUNNER_TEMP to "
                "one of ours"
            ) from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise _refused(f"'{self._directory}' is another user's; set RUNNER_TEMP to one of ours")
        return True

    def _push_the_rest(self, paths: Sequence[str]) -> int:
        # What was interrupted while it started has none.
        if self._log.exists():
            self._stop_pusher()
        code = 0 if self._not_queued.exists() else self._push_queue()
        given = [str(Path(self._workspace, path).absolute()) for path in paths]
        code = (self._push(given) if given else 0) or code
        if self._log.exists():
            sys.stderr.write(self._log.read_text(errors="replace"))
        if self._not_queued.exists():
            if not given:
                self._say_what_is_not_queued()
            return code or (0 if given else 1)
        missed = self._check_nothing_missed()
        return code or missed or self._check_still_queued()

    def _check_nothing_missed(self) -> int:
        """Return 1, and say so, where the hook has queued something not."""
        _, hook, missed = self._told()
        if not hook:
            return 0
        try:
            descriptor = os.open(missed, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
                text = file.read(_LONGEST_RECORD)
        except OSError as error:
            text = f"'{missed}' cannot be read ({error.strerror})"
        if text == self._nothing_missed():
            return 0
        last = text.strip().rpartition("\n")[2].removeprefix("push: queue: ")
        why = printable(last, _LONGEST_REASON) or "no reason that the hook told"
        say(
            f"queue: not all that was built was queued, the last time for '{why}'; see to that, "
            "and name in paths at finish what is to be pushed"
        )
        return 1

    def _check_still_queued(self) -> int:
        """Return 1, and say so, where something has kept Nix from running the hook meanwhile."""
        hook = self._told()[1]
        if not hook:
            return 0
        now = settings_in_force(self._children).get("post-build-hook")
        if now == hook:
            return 0
        say(
            f"settings: the post-build-hook is '{now}' by now, so not all that was built was "
            "queued; let what sets it come before start"
        )
        return 1

    def _told(self) -> tuple[str, str, str]:
        """Return the nix.conf that has the job's lines, its hook, and the file of what that missed.

        They are empty where there is none.
        """
        try:
            path, hook, missed, _ = self._told_nix.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError):
            return "", "", ""
        return path, hook, missed

    def _cache(self) -> dict[str, Any]:
        name = f"{_PREFIX}CONFIGURATION"
        where = self._environment.get(name, "")
        remedy = "name the file with what pulumi stack output nixos --json printed"
        try:
            cache = json.loads(Path(self._workspace, where).read_text(encoding="utf-8"))
            parts = [cache["substituter"], *cache["publicKeys"]]
            if not all(isinstance(part, str) and part.isprintable() for part in parts):
                raise ValueError
            if not isinstance(cache["publicKeys"], list):
                raise ValueError
            for part in (cache["push"], cache["builders"], *cache["builders"].values()):
                if not isinstance(part, dict):
                    raise ValueError
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _refused(f"{name} '{where[:SHOWN]}' cannot be read; {remedy}") from None
        return dict(cache)

    def _push_settings(self, cache: Mapping[str, Any]) -> str | None:
        """Return the push's settings, checked, or None where the job pushes nothing."""
        builder = self._given("BUILDER")
        if builder is None:
            return None
        if builder not in cache["builders"]:
            names = ", ".join(sorted(cache["builders"])) or "none"
            raise _refused(
                f"{_PREFIX}BUILDER '{builder[:64]}' is no builder of the stack; write one of "
                f"{names}"
            )
        if not any(self._given(name) for name in _SECRETS):
            say(
                f"settings: {_PREFIX}SECRET_ACCESS_KEY and {_PREFIX}SIGNING_KEY are empty, as a "
                "forge leaves them for a fork; this job reads, and pushes nothing"
            )
            return None
        of_builder = cache["builders"][builder]
        settings = {
            **cache["push"],
            "access-key-id": self._given("ACCESS_KEY_ID") or of_builder.get("accessKeyId"),
            "secret-access-key": self._given("SECRET_ACCESS_KEY"),
            "session-token": self._given("SESSION_TOKEN"),
            "signing-key": self._given("SIGNING_KEY"),
            "trusted-key": cache["publicKeys"],
        }
        for name in ("secret-access-key", "signing-key"):
            if settings[name] is None:
                variable = _PREFIX + name.upper().replace("-", "_")
                raise _refused(f"{variable} is empty; give the job that secret, or no builder")
        if cache.get("caCertificate"):
            certificate = str(cache["caCertificate"]).encode()
            settings["ca-certificate"] = base64.b64encode(certificate).decode()
        try:
            checked = read(format_settings(settings).splitlines())
            if checked.notice is not None:
                say(f"settings: {checked.notice}")
            # What was said of it now is not said again by each push.
            settings["trusted-key"] = [str(key) for key in checked.trusted_keys]
            return format_settings(settings)
        except ValueError as error:
            raise _refused(f"{error}; give it on one line") from None
        except TypeError:
            raise _refused(
                f"{_PREFIX}CONFIGURATION has a setting of the push that is none; make it anew with "
                "pulumi stack output nixos --json"
            ) from None

    def _given(self, name: str) -> str | None:
        return self._environment.get(_PREFIX + name, "").strip() or None

    def _start_pusher(self, log: BinaryIO) -> None:
        pusher = subprocess.Popen(
            [sys.executable, "-m", "push.ci_job", "run"],
            cwd=_CHECKOUT,
            env=self._children,
            stdin=subprocess.DEVNULL,
            # It keeps the lock as long as it lives, whoever is its parent by then.
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        _write_new(self._pusher, str(pusher.pid))

    def _end_pusher(self) -> None:
        """End the pusher of a job that is over, and what it pushes."""
        with contextlib.suppress(OSError, ValueError):
            leader = int(self._pusher.read_text(encoding="utf-8"))
            until = time.monotonic() + _SECONDS_TO_END
            while _goes_on(self._directory) and time.monotonic() < until:
                os.killpg(leader, signal.SIGTERM)
                time.sleep(0.1)

    def _stop_pusher(self) -> None:
        """Let the push that runs come to its end."""
        self._stop.touch(mode=0o600)
        until = time.monotonic() + _PATIENCE
        with self._log.open("rb") as log:
            while time.monotonic() < until:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                time.sleep(0.1)

    def _push_queue(self) -> int:
        """Push what root, as Nix's daemon, or this user has queued."""
        for link in self._queue.iterdir():
            # Another push may have taken it.
            with contextlib.suppress(FileNotFoundError):
                if link.lstat().st_uid not in (0, os.getuid()):
                    link.unlink()
                    say(printable(f"'{link}' is another user's; it is removed, and not pushed"))
        return self._push(["--queue", str(self._queue)])

    def _push(self, arguments: Sequence[str]) -> int:
        command = [sys.executable, "-m", "push", "--config", str(self._settings), *arguments]
        # A signal that came while it starts would leave it, and its key, to nobody.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDS)
        try:
            push = subprocess.Popen(command, cwd=_CHECKOUT, env=self._children)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDS)
            raise
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDS)
            while True:
                # One that comes just before a wait is heard after it.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return push.wait(_PAUSE)
        finally:
            # Where this is interrupted: it has directories of its own to remove, with the key.
            push.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                push.wait(_SECONDS_TO_END)
            push.kill()


def _goes_on(directory: Path) -> bool:
    """Whether the job of a directory goes on: its start, or its pusher, holds the log's lock."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        log = os.open(directory / "log", flags)
    # What is no path can come from whoever edited the file that names it.
    except (OSError, ValueError):
        return False
    try:
        fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(log)
    return False


def _write_new(path: Path, text: str) -> None:
    """Write a new file that is this user's alone from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _make_directory(path: Path, mode: int) -> None:
    """Make a new directory that has its mode whatever the umask is."""
    path.mkdir(mode=mode & stat.S_IRWXU)
    # Where it lies in another user's directory, its name can lead elsewhere by now.
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(directory, mode)
    finally:
        os.close(directory)


def _refused(what: str) -> PushError:
    return PushError("settings", what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
