"""ServerError: the S3 server cannot be used, in words for its user."""

from __future__ import annotations

from formats.printable import printable

_LONGEST = 1_000
"""Characters of a sentence."""

_SETTINGS = {"user": "minioUser", "password": "minioPassword"}


class ServerError(Exception):
    """The server cannot be used; the message is one sentence with the remedy.

    Attributes:
        subject: what the sentence is about: `endpoint`, `region`, `user`, `password`, `bucket` or
            `users`.
        reachable: whether the server answered at all.
    """

    def __init__(self, subject: str, remedy: str, *, reachable: bool = True) -> None:
        """Say what is wrong with `subject`, and what to do."""
        # It may hold a server's own word for what is wrong, and a server may be anybody's.
        super().__init__(printable(remedy, _LONGEST))
        self.subject = subject
        self.reachable = reachable

    @property
    def setting(self) -> str:
        """What the sentence is about, as the settings call it."""
        return _SETTINGS.get(self.subject, self.subject)
