"""What a push stands on, without the push: connections, transfers, a bucket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from push.bucket import Bucket
from push.connection import Answer, Connection, Request, Route
from push.failure import Failure
from push.settings import PushSettings, read
from push.transfers import Loop, Transfers
from tests.unit.push.s3_stand_in import BUCKET

SIGNING_KEY = (
    "cache.test-1:nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2"
    "DXWpgBgrEKt9VL/tPJZAc6DuFy89qmIyWvAhpo9wdRGg=="
)
"""The first key of RFC 8032, section 7.1, in Nix's format."""


def settings_for(endpoint: str, **changes: object) -> PushSettings:
    """Return settings; `_` in a name is `-`, None leaves one out."""
    values: dict[str, object] = {
        "endpoint": endpoint,
        "bucket": BUCKET,
        "access_key_id": "builder",
        "secret_access_key": "a secret",
        "signing_key": SIGNING_KEY,
        **changes,
    }
    return read(
        f"{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None
    )


class Client:
    """Asks a server as the push does; the loop runs until everything is answered."""

    def __init__(self, endpoint: str, **changes: object) -> None:
        """Connect to nothing yet."""
        self.settings = settings_for(endpoint, **changes)
        self.route = Route(self.settings)
        self.loop = Loop()
        self.loop.watch_threads()
        self.transfers = Transfers(self.route, self.loop)
        self.bucket = Bucket(self.settings, self.transfers, self.loop)

    def close(self) -> None:
        """Start nothing more."""
        self.transfers.close()

    def ask(self, *requests: Request) -> list[Answer]:
        """Return the answers of requests made side by side."""
        return self.bucket.gather(requests)

    def exchange(self, request: Request) -> Answer:
        """Make a request once, on a connection of its own."""
        return Connection(self.route).exchange(request)

    def outcome(self, begin: Callable[[Outcome], None]) -> Outcome:
        """Return what came of what `begin` began."""
        outcome = Outcome()
        begin(outcome)
        self.loop.run(lambda: outcome.said is not None, _waited_too_long, 60.0)
        self.loop.run(self.transfers.idle, _waited_too_long, 60.0)
        return outcome

    def outcomes(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return what came of each of several requests."""
        outcomes = [Outcome() for _ in requests]
        for request, outcome in zip(requests, outcomes, strict=True):
            self.transfers.submit(request, lambda _, one=outcome: one.done(None), outcome.failed)  # type: ignore[misc]
        self.loop.run(self.transfers.idle, _waited_too_long, 60.0)
        return outcomes


class Outcome:
    """What was called in the end, and how."""

    def __init__(self) -> None:
        """Nothing was called yet."""
        self.said: str | None = None
        self.etag: str | None = None
        self.failure: Failure | None = None

    def done(self, etag: str | None) -> None:
        """Take in an ETag."""
        self._say("done")
        self.etag = etag

    def failed(self, failure: Failure) -> None:
        """Take in a failure."""
        self._say("failed")
        self.failure = failure

    def gone(self) -> None:
        """Take in that there is no such object."""
        self._say("gone")

    def changed(self) -> None:
        """Take in that the object is another one."""
        self._say("changed")

    def _say(self, word: str) -> None:
        assert self.said is None, f"{self.said}, and then {word}"
        assert threading.current_thread() is threading.main_thread()
        self.said = word


def _waited_too_long() -> None:
    raise AssertionError("nothing happened for a minute")
