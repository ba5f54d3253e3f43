"""What a new bucket and given users are asked before anything is put there, and when."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pulumi
import pytest

from program.checks import before_pushes, given_users, recorded, server_needs
from program.checks.deployment import Settled
from program.checks.recorded import BUCKET, Recorded
from program.checks.server_error import ServerError
from program.checks.server_needs import REFUSED, Result
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import parse
from tests.unit.configuration import configuration
from tests.unit.recording_mocks import use_recording_mocks

KNOWN = Recorded({"bucket": {"type": BUCKET, "outputs": {"bucket": "nix-cache"}}})
NEW = Recorded({})
LIMIT = 20.0
"""Seconds in which all is asked, however slow the machine."""
SETTLED = Settled(SigningKeys((), {}), versioned=False, comparable_etags=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the server is asked, which does all that it is asked."""
    done: list[str] = []
    monkeypatch.setattr(server_needs.Probe, "deciding", lambda _: done.append("needs"))
    monkeypatch.setattr(given_users, "check", lambda *_: done.append("users"))
    return done


def run(
    monkeypatch: pytest.MonkeyPatch, state: Recorded, adopt: str | None = None, **changes: Any
) -> None:
    """Let three resources ask, as the engine does."""
    use_recording_mocks()
    monkeypatch.setattr(recorded, "read", lambda: state)
    callbacks: list[Any] = []

    def registered(_: str, ask: Any) -> Any:
        callbacks.append(ask)
        return ask

    monkeypatch.setattr(pulumi, "ResourceHook", registered)
    settled = Settled(SETTLED.signing_keys, False, True, adopt)
    hook = before_pushes.hook(parse(configuration(**changes)), settled)
    assert (hook is None) is (not callbacks)

    async def ask_all() -> None:
        asked = asyncio.gather(*(callback(None) for callback in callbacks * 3))
        await asyncio.wait_for(asked, LIMIT)

    # Not asyncio.run, which leaves the thread without the loop that the SDK takes.
    loop = asyncio.new_event_loop()
    # All of the SDK's threads wait for resources that the engine deploys after the answer.
    answered = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(answered.wait)
        loop.set_default_executor(threads)
        try:
            loop.run_until_complete(ask_all())
        finally:
            answered.set()
            loop.close()


@pytest.mark.parametrize(
    ("state", "adopt", "users", "expected"),
    [
        (NEW, None, "minio", ["needs"]),
        (NEW, None, "given", ["needs", "users"]),
        (NEW, "nix-cache", "minio", []),
        (NEW, "nix-cache", "given", ["users"]),
        (KNOWN, None, "minio", []),
        (KNOWN, None, "given", ["users"]),
    ],
)
def test_each_is_asked_once_and_only_where_it_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    state: Recorded,
    adopt: str | None,
    users: str,
    expected: list[str],
) -> None:
    run(monkeypatch, state, adopt, users=users)
    assert asked == expected


def test_a_need_that_is_lacking_refuses_with_its_line(
    monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    lacking = Result("copy onto itself", REFUSED, "HTTP 501", "no lease holds", kept=False)
    monkeypatch.setattr(server_needs.Probe, "deciding", lambda _: lacking)
    expected = (
        r'endpoint is "https://s3.homelab.local": copy onto itself: refused \(HTTP 501\); no lease '
        r"holds; make check-server STACK=test asks it about all there is"
    )
    with pytest.raises(SettingError, match=expected):
        run(monkeypatch, NEW, users="given")
    assert asked == []


def test_what_is_asked_knows_the_stack(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(given_users, "check", lambda *_: asked.append(pulumi.get_stack()))
    run(monkeypatch, KNOWN, users="given")
    assert asked == ["test"]


def test_a_server_that_fails_is_told_in_the_settings_words(
    monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    def fail(*_: object) -> None:
        raise ServerError("password", "the server refuses it")

    monkeypatch.setattr(given_users, "check", fail)
    with pytest.raises(SettingError, match=r"minioPassword: the server refuses it"):
        run(monkeypatch, KNOWN, users="given")
    assert asked == []
