"""A block of lines in the `nix.conf` that a user's Nix reads, and the files that they name.

The block says whose it is: a directory that its owner holds as long as there is something that it
stands for. What others have written stays, and what the block names lies beside the file, so that
a block that somebody was kept from taking away harms nobody.

Source: Nix manual, `nix.conf`, "Configuration file" and "Environment variables"; `getHome`.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from formats.store_path import STORE_DIR
from push.failure import PushError
from push.whole_file import replace_whole

_BEGIN, _END = "# nix-binary-cache: begin", "# nix-binary-cache: end"
_OURS = re.compile(f"{_BEGIN}\n(?:(?!{_BEGIN}\n).)*?{_END}\n", re.DOTALL)
_OWNER = re.compile(r"^# of (.+)$", re.MULTILINE)
_NAMED = re.compile(r"^[a-z-]+ = (.+)$", re.MULTILINE)
_BESIDE = "nix-binary-cache-"
_USERS_FILES = "NIX_USER_CONF_FILES"


class UserNixConf:
    """The file, wherever Nix looks for it, and our block in it."""

    def __init__(
        self, environment: Mapping[str, str], owner: Path, goes_on: Callable[[Path], bool]
    ) -> None:
        """Look at nothing yet.

        Args:
            environment: what tells Nix where it has its settings.
            owner: the directory that the block is of.
            goes_on: tells whether another directory, which a block is of, still needs it.
        """
        self._environment = environment
        self._owner = owner
        self._goes_on = goes_on
        self._beside: list[Path] = []

    def path(self) -> Path:
        """Return the file itself, wherever a link to it lies.

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
            base = self._environment.get("XDG_CONFIG_HOME") or self._home() / ".config"
            named = Path(base, "nix", "nix.conf")
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
        """Write a file that a line is to name; it goes with the block.

        Raises:
            PushError: it cannot be written.
        """
        path = self.path()
        beside = path.with_name(f"{_BESIDE}{secrets.token_hex(16)}-{name}")
        try:
            self._check_place(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._beside.append(beside)
            write_new(beside, text, mode)
        except OSError as error:
            raise self._unchangeable(path, str(error.strerror)) from None
        return beside

    def replace(self, lines: Sequence[str]) -> None:
        """Put lines in the place of those that were there before, and remove what these named.

        Raises:
            PushError: the file cannot be changed, or has a block of another that goes on.
        """
        path = self.path()
        gone: list[Path] = []

        def taken_out(block: re.Match[str]) -> str:
            owner = _OWNER.search(block[0])
            whose = None if owner is None else Path(owner[1])
            if whose not in (None, self._owner) and self._goes_on(whose):
                return block[0]
            gone.extend(_named_beside(path, block[0]))
            return ""

        try:
            before = ""
            if path.exists():
                if not path.is_file():
                    if not lines:
                        # Nothing of ours can be in it.
                        return
                    raise self._unchangeable(path, "it is no file")
                with path.open(encoding="utf-8", newline="") as file:
                    before = file.read()
            # Without its end a block may hold what somebody else has written.
            text = _OURS.sub(taken_out, before)
            if lines and _OURS.search(text):
                raise _refused(
                    f"another job of this user's goes on, whose hook stands in '{path}'; set "
                    "XDG_CONFIG_HOME to a directory of each job's own"
                )
            if lines:
                newline = "" if not text or text.endswith("\n") else "\n"
                block = (newline + _BEGIN, f"# of {self._owner}", *lines, _END)
                text += "".join(f"{line}\n" for line in block)
            if text != before:
                self._check_place(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_whole(path, text)
            kept = _named_beside(path, text)
            for unnamed in {*gone, *self._beside}.difference(kept):
                unnamed.unlink(missing_ok=True)
        except (OSError, UnicodeDecodeError) as error:
            why = str(error.strerror) if isinstance(error, OSError) else "it is no text in UTF-8"
            raise self._unchangeable(path, why) from None

    def _check_place(self, path: Path) -> None:
        # Root could write anew what others take to stay as it is.
        if path.is_relative_to(Path(STORE_DIR).resolve()):
            raise self._unchangeable(path, "it lies in the Nix store")

    def _unchangeable(self, path: Path, why: str) -> PushError:
        return _refused(f"'{path}' cannot be changed ({why}); {self._remedy()}")

    def _nowhere(self) -> PushError:
        return _refused(f"this user's nix.conf is nowhere; {self._remedy()}")

    def _remedy(self) -> str:
        if _USERS_FILES in self._environment:
            return f"let {_USERS_FILES} begin with a file that this user may write, or unset it"
        return "set XDG_CONFIG_HOME to a directory whose nix/nix.conf this user may write"


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a new file that has its mode from its first byte on, whatever the umask is.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & stat.S_IRWXU)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    path.chmod(mode)


def _named_beside(path: Path, text: str) -> list[Path]:
    """Return the files of ours that the blocks in a text name: none but those beside it."""
    named = [Path(found[1]) for block in _OURS.findall(text) for found in _NAMED.finditer(block)]
    return [one for one in named if one.parent == path.parent and one.name.startswith(_BESIDE)]


def _refused(what: str) -> PushError:
    return PushError("settings", what)
