"""What keeps a push, or one path of it, from being done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Failure:
    """Why something was not done, for people."""

    step: str
    """What was being done: `settings`, `prepare`, `list`, `sign`, `stage`, `upload`, …"""
    what: str
    """What went wrong and, after a semicolon, the remedy."""
    kind: str = ""
    """What failures of one cause share; where it is empty, `what`."""
    refused: bool = False
    """Whether the server answered, and will again answer so."""

    @property
    def given_up(self) -> bool:
        """Whether the server gave no answer that counts, again and again."""
        return bool(self.kind) and not self.refused

    @property
    def cause(self) -> tuple[str, str]:
        """What failures that need telling only once have in common."""
        return self.step, self.kind or self.what

    def __str__(self) -> str:
        """Return it as a line of the log has it."""
        return f"{self.step}: {self.what}"


class PushError(Exception):
    """Nothing more can be done: the whole push ends here."""

    def __init__(self, step: str, what: str) -> None:
        """End the push in `step`, because of `what`."""
        super().__init__(f"{step}: {what}")
        self.failure = Failure(step, what)


class OutputError(Exception):
    """What the push says cannot be written; what it did is done."""


def defect(error: BaseException) -> str:
    """Return a line about what nobody foresaw: what it is and where, and none of what it says.

    Its text may have any value that the push was given, secrets among them, and whoever started
    the push keeps what it writes: the engine, a journal, a forge. Of an operating system's error
    its own words are known.
    """
    told: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        words = f" ({one.strerror})" if isinstance(one, OSError) and _is_systems(one) else ""
        told.append(f"{type(one).__name__}{words} {_where(one)}")
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return f"defect: {', after '.join(told)}; report this line, which holds no value"


def _is_systems(error: OSError) -> bool:
    return error.errno is not None and error.strerror == os.strerror(error.errno)


def _where(error: BaseException) -> str:
    places, step = [], error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        name = "/".join(Path(code.co_filename).parts[-2:])
        places.append(f"{name}:{step.tb_lineno} {code.co_name}")
        step = step.tb_next
    return f"at {' > '.join(places)}"
