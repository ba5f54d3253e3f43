"""ServerError: the S3 server cannot be used, in words for its user."""

from __future__ import annotations


class ServerError(Exception):
    """The server cannot be used; the message is one sentence with the remedy.

    Attributes:
        subject: what the sentence is about: `endpoint`, `user`, `password`, `bucket` or `users`.
        reachable: whether the server answered at all.
    """

    def __init__(self, subject: str, remedy: str, *, reachable: bool = True) -> None:
        """Say what is wrong with `subject`, and what to do."""
        super().__init__(remedy)
        self.subject = subject
        self.reachable = reachable
