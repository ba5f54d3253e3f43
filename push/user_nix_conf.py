"""A block of lines in the `nix.conf` that a user's Nix reads, and the files that they name.

The block says whose it is: a directory that its owner holds as long as there is something that it
stands for. What others have written stays. What a block names lies beside the file and is never
removed: a build that goes on, or a daemon that was started meanwhile, has its name and fails
without it. So it is called after what it says, and there is one of each.

Source: Nix manual, `nix.conf`, "Configuration file" and "Environment variables"; `getHome`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from formats.store_path import STORE_DIR
from push.failure import PushError
from push.whole_file import replace_whole

_BEGIN, _END = "# nix-binary-cache: begin", "# nix-binary-cache: end"
_OURS = re.compile(f"{_BEGIN}\n(?:(?!{_BEGIN}\n).)*?{_END}\n", re.DOTALL)
_OWNER = re.compile(r"^# of (.+)$", re.MULTILINE)
_BESIDE = "nix-binary-cache-"
_USERS_FILES = "NIX_USER_CONF_FILES"
_CONFIG_HOME = "XDG_CONFIG_HOME"
_OTHERS_WRITE = 0o022
_PATIENCE = 30.0
"""Seconds that others may keep the directory to themselves, for what takes none."""


class UserNixConf:
    """The file, wherever Nix looks for it, and our block in it."""

    def __init__(self, environment: Mapping[str, str], goes_on: Callable[[Path], bool]) -> None:
        """Look at nothing yet.

        Args:
            environment: what tells Nix where it has its settings.
            goes_on: tells whether a directory, which a block is of, still needs it.
        """
        self._environment = environment
        self._goes_on = goes_on

    def name(self) -> Path:
        """Return what Nix calls the file, which may be a link to it.

        Raises:
            PushError: there is no place for it.
        """
        if _USERS_FILES in self._environment:
            # Of several the first one's settings win.
            names = [one for one in self._environment[_USERS_FILES].split(":") if one]
            if not names:
                raise _refused(f"{_USERS_FILES} is empty, so Nix reads no nix.conf; unset it")
            named = Path(names[0])
        else:
            base = self._environment.get(_CONFIG_HOME) or self._home() / ".config"
            named = Path(base, "nix", "nix.conf")
        if not named.is_absolute():
            given = (one for one in (_USERS_FILES, _CONFIG_HOME) if self._environment.get(one))
            variable = next(given, "HOME")
            raise _refused(
                f"{variable} is '{self._environment.get(variable, '')}', another place in each "
                "directory; write a whole path"
            )
        return named

    def path(self) -> Path:
        """Return the file itself, wherever a link to it lies.

        Raises:
            PushError: there is no place for it.
        """
        named = self.name()
        try:
            path = named.resolve()
        except (OSError, RuntimeError):
            # Of links that go in a circle, Python before 3.13 says it by itself.
            path = named
        if path.is_symlink():
            raise self._nowhere()
        return path

    def _home(self) -> Path:
        """Return this user's home as Nix takes it: HOME may be another's, as in a container job."""
        home = self._environment.get("HOME")
        try:
            if home is not None and Path(home).stat().st_uid == os.geteuid():
                return Path(home)
        except FileNotFoundError:
            return Path(str(home))
        except OSError:
            pass
        try:
            return Path(pwd.getpwuid(os.geteuid()).pw_dir)
        except KeyError:
            raise self._nowhere() from None

    def put_beside(self, name: str, text: str, mode: int) -> Path:
        """Write a file that a line is to name; one of the same text is the same file.

        Args:
            name: the end of what it is called, after what tells its texts apart.
            text: what it holds.
            mode: its mode.

        Raises:
            PushError: it cannot be written.
        """
        path = self.path()
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        beside = path.with_name(f"{_BESIDE}{digest}-{name}")
        try:
            with self._alone(path):
                replace_whole(beside, text, mode)
        except OSError as error:
            raise self._unchangeable(path, str(error.strerror)) from None
        return beside

    def change_beside(self, name: str, changed: Callable[[str], str]) -> None:
        """Change a file that no line names, and that this user alone can read.

        Args:
            name: the end of what it is called.
            changed: returns what it is to hold, for what it holds; that is empty without a file.

        Raises:
            PushError: it cannot be changed, or others could.
        """
        path = self.path()
        beside = path.with_name(f"{_BESIDE}{name}")
        try:
            with self._alone(path):
                before = self._text(beside, ours=True)
                text = changed(before)
                if text != before:
                    replace_whole(beside, text, 0o600)
        except (OSError, UnicodeDecodeError):
            raise self._unchangeable(beside, "it cannot be read or written") from None

    def is_ours(self, file: str) -> bool:
        """Tell whether a file is one of those that `put_beside` has written, in any job."""
        found = Path(file)
        return found.parent == self.path().parent and found.name.startswith(_BESIDE)

    def write(self, owner: Path, lines: Sequence[str]) -> Path:
        """Put lines in the place of an owner's, and of all that are over; return the file.

        Args:
            owner: the directory that the block is of.
            lines: what stands in it.

        Raises:
            PushError: the file cannot be changed, or has a block of another that goes on.
        """
        path = self.path()

        def is_over(block: str) -> bool:
            whose = _owner(block)
            return whose is None or whose == owner or not self._goes_on(whose)

        def changed(before: str) -> str:
            text = _OURS.sub(lambda block: "" if is_over(block[0]) else block[0], before)
            if _OURS.search(text):
                raise _refused(
                    f"another job of this user's goes on, whose hook stands in '{path}'; set "
                    f"{_CONFIG_HOME} to a directory of each job's own, or run finish as that job"
                )
            newline = "" if not text or text.endswith("\n") else "\n"
            block = (newline + _BEGIN, f"# of {owner}", *lines, _END)
            return text + "".join(f"{line}\n" for line in block)

        self._change(path, changed)
        return path

    def owner_that_goes_on(self) -> Path | None:
        """Return a directory that a block in the file is of, and that needs it; None without one.

        Raises:
            PushError: the file cannot be read.
        """
        path = self.path()
        try:
            owners = [_owner(block) for block in _OURS.findall(self._text(path))]
        except (OSError, UnicodeDecodeError):
            return None
        return next((one for one in owners if one is not None and self._goes_on(one)), None)

    def remove(self, path: Path, owners: Collection[Path]) -> str:
        """Take the blocks of owners out of a file, and return them; empty where there is none.

        Raises:
            PushError: the file cannot be changed.
        """
        if not path.is_file():
            return ""
        path = path.resolve()
        if path.is_relative_to(Path(STORE_DIR).resolve()):
            # Nothing of ours can be in it.
            return ""
        found: list[str] = []

        def taken_out(block: re.Match[str]) -> str:
            if _owner(block[0]) not in owners:
                return block[0]
            found.append(block[0])
            return ""

        self._change(path, lambda before: _OURS.sub(taken_out, before))
        return "".join(found)

    def _change(self, path: Path, changed: Callable[[str], str]) -> None:
        try:
            with self._alone(path):
                before = self._text(path)
                # Without its end a block may hold what somebody else has written.
                text = changed(before)
                if text != before:
                    replace_whole(path, text)
        except (OSError, UnicodeDecodeError) as error:
            why = str(error.strerror) if isinstance(error, OSError) else "it is no text in UTF-8"
            raise self._unchangeable(path, why) from None

    def _text(self, path: Path, *, ours: bool = False) -> str:
        """Return what stands in the file; empty where there is none.

        Args:
            path: the file itself.
            ours: whether nobody else may have written it.
        """
        # Where it lies in another user's home, she could have root read for her what a link leads
        # to: what is read here is hers in the end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            return ""
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise self._unchangeable(path, "it is no file")
            if ours and (found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE):
                raise self._unchangeable(path, "it is another user's")
            with open(descriptor, encoding="utf-8", newline="", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Keep other jobs from changing the file, or what lies beside it, meanwhile.

        Raises:
            OSError: the directory cannot be made or opened.
            PushError: the file cannot be changed there, or something else keeps the directory.
        """
        # Root could write anew what others take to stay as it is.
        if path.is_relative_to(Path(STORE_DIR).resolve()):
            raise self._unchangeable(path, "it lies in the Nix store")
        path.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock(directory, path.parent)
            yield
        finally:
            os.close(directory)

    def _lock(self, descriptor: int, directory: Path) -> None:
        # Whoever can read the directory can lock it, and need not let go.
        until = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() >= until:
                named = _USERS_FILES in self._environment
                in_that = f"let {_USERS_FILES} begin with a file in"
                to_that = f"set {_CONFIG_HOME} to"
                raise _refused(
                    f"another process has locked '{directory}' for {_PATIENCE:.0f} s; end that, or "
                    f"{in_that if named else to_that} a directory that this user alone can read"
                )
            time.sleep(0.1)

    def _unchangeable(self, path: Path, why: str) -> PushError:
        return _refused(f"'{path}' cannot be changed ({why}); {self._remedy()}")

    def _nowhere(self) -> PushError:
        return _refused(f"this user's nix.conf is nowhere; {self._remedy()}")

    def _remedy(self) -> str:
        if _USERS_FILES in self._environment:
            return f"let {_USERS_FILES} begin with a file that this user may write, or unset it"
        return f"set {_CONFIG_HOME} to a directory whose nix/nix.conf this user may write"


def _owner(block: str) -> Path | None:
    """Return the directory that a block is of, or None where it does not say."""
    found = _OWNER.search(block)
    return None if found is None else Path(found[1])


def _refused(what: str) -> PushError:
    return PushError("settings", what)
