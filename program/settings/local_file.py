"""Text files on the machine that runs Pulumi, which settings name."""

from __future__ import annotations

from pathlib import Path

from program.settings.reader import SettingError

_MOST_CHARACTERS = 1 << 22
"""More than any bundle of certificates has."""


def read_local_file(setting: str, name: str, what: str) -> tuple[Path, str]:
    """Return the path that a setting names, and the text there.

    Letters beyond ASCII, which bundles of certificates have in comments, come as U+FFFD.

    Args:
        setting: the setting.
        name: what it names; `~` is a home.
        what: what should be there, such as "the CA's PEM file".

    Raises:
        SettingError: there is no such user, or nothing that can be read and has an end.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise SettingError(setting, name, "there is no such user; write the whole path") from None
    try:
        # A FIFO is waited for, and a device may have no end.
        if path.exists() and not path.is_file():
            reason = "it is no file"
        else:
            with path.open(encoding="ascii", errors="replace") as file:
                text = file.read(_MOST_CHARACTERS + 1)
            if len(text) <= _MOST_CHARACTERS:
                return path, text
            reason = "it is too large"
    except OSError as error:
        reason = str(error.strerror)
    except ValueError:
        reason = "it is no path"
    raise SettingError(setting, name, f"cannot be read ({reason}); name {what}")
