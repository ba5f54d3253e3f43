"""Text files on the machine that runs Pulumi, which settings name."""

from __future__ import annotations

from pathlib import Path

from program.settings.reader import SettingError

_MOST_CHARACTERS = 1 << 22
"""More than any bundle of certificates has."""

_REPLACED_MARK = "\N{REPLACEMENT CHARACTER}" * 3
"""What `replace` makes of UTF-8's byte order mark, which is three bytes."""


def read_local_file(
    setting: str, name: str, what: str, *, errors: str = "strict"
) -> tuple[Path, str]:
    """Return the path that a setting names, and the text there, in ASCII.

    Args:
        setting: the setting.
        name: what it names; `~` is a home.
        what: what should be there, such as "the CA's PEM file".
        errors: what becomes of other letters, as `open` has it: bundles of certificates have them
            in comments.

    Raises:
        SettingError: there is no such user, or nothing that can be read and has an end.
    """
    try:
        path = Path(name).expanduser()
    except (RuntimeError, ValueError):
        raise SettingError(setting, name, "there is no such user; write the whole path") from None
    try:
        # A FIFO is waited for, and a device may have no end.
        if path.exists() and not path.is_file():
            reason = "it is no file"
        else:
            with path.open(encoding="ascii", errors=errors) as file:
                text = file.read(_MOST_CHARACTERS + 1)
            if len(text) > _MOST_CHARACTERS:
                reason = "it is too large"
            elif text.startswith(_REPLACED_MARK):
                # Go, in which the server's provider is written, passes over what follows it.
                reason = "it begins with a byte order mark"
            else:
                return path, text
    except OSError as error:
        reason = str(error.strerror)
    except UnicodeDecodeError:
        reason = "it is no ASCII text"
    except ValueError:
        reason = "it is no path"
    raise SettingError(setting, name, f"cannot be read ({reason}); name {what}")
