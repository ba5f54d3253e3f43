"""What keeps a push, or one path of it, from being done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Why something was not done, for people."""

    step: str
    """What was being done: `settings`, `prepare`, `list`, `sign`, `stage`, `upload`, …"""
    what: str
    """What went wrong and, after a semicolon, the remedy."""
    kind: str = ""
    """What failures of one cause share; where it is empty, `what`."""

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
