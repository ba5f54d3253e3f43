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
import json
import os
import re
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
from typing import Any

from formats.printable import printable
from formats.store_path import STORE_DIR
from push import signals
from push.failure import PushError, defect
from push.progress import say
from push.settings import format_settings, read
from push.whole_file import replace_whole

_CHECKOUT = Path(__file__).resolve().parent.parent
_PREFIX = "NIX_BINARY_CACHE_"
_BEGIN, _END = "# nix-binary-cache: begin", "# nix-binary-cache: end"
_OURS = re.compile(f"{_BEGIN}\n(?:(?!{_BEGIN}\n).)*?{_END}\n", re.DOTALL)
_HOOK_LINE = re.compile(r"^post-build-hook = (.+)$", re.MULTILINE)
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

finish pushes the closures of the paths, too, and exits with 1 where something was not pushed.
"""

_SECONDS_TO_END = 5.0
"""How long a push that is interrupted may clean up: a forge's runner kills what does not end."""

_HOOK = """\
#!/bin/sh
exec {python} -I -B -c {program}
"""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do what the command line says, and return the exit code."""
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
        # A forge's runner gives each job one of its own, and empties it.
        base = environment.get("RUNNER_TEMP") or tempfile.gettempdir()
        self._workspace = (
            environment.get("GITHUB_WORKSPACE") or environment.get("CI_PROJECT_DIR") or os.curdir
        )
        self._directory = Path(base, f"nix-binary-cache-{os.getuid()}")
        self._settings = self._directory / "settings"
        self._queue = self._directory / "queue"
        self._hook = self._directory / "post-build-hook"
        self._stop = self._directory / "stop"
        self._log = self._directory / "log"

    def start(self) -> int:
        cache = self._cache()
        settings = self._push_settings(cache)
        lines = [
            f"extra-substituters = {cache['substituter']}",
            f"extra-trusted-public-keys = {' '.join(cache['publicKeys'])}",
            "fallback = true",
        ]
        if settings is not None:
            self._take_directory()
            lines.append(f"post-build-hook = {self._hook}")
        try:
            try:
                if settings is not None:
                    self._fill(settings)
                self._configure(lines)
                if settings is not None:
                    self._start_pusher()
            except BaseException:
                # As in `finish`.
                signals.ignore()
                raise
        except BaseException as error:
            # A hook that is not there would fail every build.
            with contextlib.suppress(PushError):
                self._configure(())
            if settings is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            if isinstance(error, OSError):
                raise _refused(
                    f"'{self._directory}' cannot be written to ({error.strerror}); free space, or "
                    "set RUNNER_TEMP to a directory of this user's"
                ) from None
            raise
        print("what this job builds is pushed" if settings else "the cache is set up", flush=True)
        return 0

    def _take_directory(self) -> None:
        try:
            # Nix's daemon runs the hook as root, other users' Nix as themselves.
            _make_directory(self._directory, 0o711)
        except OSError as error:
            raise _refused(
                f"'{self._directory}' cannot be made ({error.strerror}); run finish first, or "
                "remove what another job left"
            ) from None

    def _fill(self, settings: str) -> None:
        # Whoever writes here has the job sign and push: root, as Nix's daemon, and its own user.
        _make_directory(self._queue, 0o700)
        _write(self._settings, settings, 0o600)
        program = (
            f"import sys; sys.path.insert(0, {str(_CHECKOUT)!r}); from pathlib import Path; "
            f"from push.post_build_hook import main; main(Path({str(self._queue)!r}))"
        )
        hook = _HOOK.format(python=shlex.quote(sys.executable), program=shlex.quote(program))
        _write(self._hook, hook, 0o755)

    def run(self) -> int:
        """Push what waits, until `finish` says that it is enough."""
        left: set[Path] = set()
        pause = again = 0.0
        while not self._stop.exists():
            waiting = set(self._queue.iterdir())
            # What cannot be pushed now can be later, or never.
            if waiting - left or (waiting and time.monotonic() >= again):
                self._push_queue()
                left = waiting.intersection(self._queue.iterdir())
                pause = min(max(2 * pause, _PAUSE), _LONGEST_PAUSE) if left else 0.0
                again = time.monotonic() + pause
            time.sleep(_PAUSE)
        return 0

    def finish(self, paths: Sequence[str]) -> int:
        ours = self._is_ours()
        started = ours and self._settings.exists()
        if paths and not started:
            raise _refused(f"nothing was started that could push; set {_PREFIX}BUILDER at start")
        try:
            try:
                return self._push_the_rest(paths) if started else 0
            finally:
                # One that comes before this is done has them ignored itself, and goes on below.
                signals.ignore()
        finally:
            # However it ends: a hook that is not there would fail every build after it.
            try:
                self._configure(())
            finally:
                if ours:
                    shutil.rmtree(self._directory, ignore_errors=True)

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
        code = self._push_queue()
        given = [str(Path(self._workspace, path).absolute()) for path in paths]
        code = (self._push(given) if given else 0) or code
        if self._log.exists():
            sys.stderr.write(self._log.read_text(errors="replace"))
        return code

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
            raise _refused(f"{name} '{where[:200]}' cannot be read; {remedy}") from None
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
        of_builder = cache["builders"][builder]
        settings = {
            **cache["push"],
            "access-key-id": self._given("ACCESS_KEY_ID") or of_builder.get("accessKeyId"),
            "secret-access-key": self._given("SECRET_ACCESS_KEY"),
            "session-token": self._given("SESSION_TOKEN"),
            "signing-key": self._given("SIGNING_KEY"),
        }
        for name in ("secret-access-key", "signing-key"):
            if settings[name] is None:
                variable = _PREFIX + name.upper().replace("-", "_")
                raise _refused(f"{variable} is empty; give the job that secret, or no builder")
        if cache.get("caCertificate"):
            certificate = str(cache["caCertificate"]).encode()
            settings["ca-certificate"] = base64.b64encode(certificate).decode()
        try:
            text = format_settings(settings)
        except ValueError as error:
            raise _refused(f"{error}; give it on one line") from None
        except TypeError:
            raise _refused(
                f"{_PREFIX}CONFIGURATION has a setting of the push that is none; make it anew with "
                "pulumi stack output nixos --json"
            ) from None
        read(text.splitlines())
        return text

    def _given(self, name: str) -> str | None:
        return self._environment.get(_PREFIX + name, "").strip() or None

    def _configure(self, lines: Sequence[str]) -> None:
        """Put lines into this user's nix.conf, in the place of those that were there before."""
        path = self._nix_conf()
        try:
            before = ""
            if path.exists():
                if not path.is_file():
                    if not lines:
                        # Nothing of ours can be in it.
                        return
                    raise _unchangeable(path, "it is no file")
                with path.open(encoding="utf-8", newline="") as file:
                    before = file.read()
            # Without its end it may hold what somebody else has written.
            text = _OURS.sub(lambda ours: ours[0] if self._is_anothers(ours[0]) else "", before)
            if lines and _OURS.search(text):
                raise _refused(
                    f"another job of this user's goes on, whose hook stands in '{path}'; set "
                    "XDG_CONFIG_HOME to a directory of each job's own"
                )
            if lines:
                newline = "" if not text or text.endswith("\n") else "\n"
                text += "".join(f"{line}\n" for line in (newline + _BEGIN, *lines, _END))
            if text != before:
                # Root could write anew what others take to stay as it is.
                if path.is_relative_to(Path(STORE_DIR).resolve()):
                    raise _unchangeable(path, "it lies in the Nix store")
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_whole(path, text)
        except (OSError, UnicodeDecodeError) as error:
            why = str(error.strerror) if isinstance(error, OSError) else "it is no text in UTF-8"
            raise _unchangeable(path, why) from None

    def _is_anothers(self, block: str) -> bool:
        """Whether lines in nix.conf are those of another job that goes on."""
        found = _HOOK_LINE.search(block)
        if found is None or found[1] == str(self._hook):
            return False
        try:
            log = os.open(
                Path(found[1]).with_name(self._log.name),
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        # What is no path can come from whoever edited the file.
        except (OSError, ValueError):
            return False
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(log)
        return False

    def _nix_conf(self) -> Path:
        """Return this user's nix.conf itself, wherever a link to it lies."""
        try:
            base = self._environment.get("XDG_CONFIG_HOME") or Path.home() / ".config"
            path = Path(base, "nix", "nix.conf").resolve()
            # Of links that go in a circle, Python before 3.13 says it by itself.
            if not path.is_symlink():
                return path
        # Nobody's home.
        except (OSError, RuntimeError):
            pass
        raise _refused("this user's nix.conf is nowhere; set XDG_CONFIG_HOME")

    def _start_pusher(self) -> None:
        # What stands in it is shown at the end as the job's own.
        _write(self._log, "", 0o600)
        with self._log.open("ab") as log:
            # The process keeps the lock as long as it lives, whoever is its parent by then.
            fcntl.flock(log, fcntl.LOCK_EX)
            subprocess.Popen(
                [sys.executable, "-m", "push.ci_job", "run"],
                cwd=_CHECKOUT,
                env=self._children,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

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
        push = subprocess.Popen(command, cwd=_CHECKOUT, env=self._children)
        try:
            return push.wait()
        finally:
            # Where this is interrupted: it has directories of its own to remove, with the key.
            push.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                push.wait(_SECONDS_TO_END)
            push.kill()


def _make_directory(path: Path, mode: int) -> None:
    """Make a new directory that has its mode whatever the umask is."""
    path.mkdir(mode=mode & stat.S_IRWXU)
    path.chmod(mode)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a new file that has its mode from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & stat.S_IRWXU)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    path.chmod(mode)


def _unchangeable(path: Path, why: str) -> PushError:
    return _refused(
        f"'{path}' cannot be changed ({why}); set XDG_CONFIG_HOME to a directory whose "
        "nix/nix.conf this user may write"
    )


def _refused(what: str) -> PushError:
    return PushError("settings", what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
