from __future__ import annotations

from collections.abc import Callable

import pytest

from program.checks import adoption
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import Settings, parse
from tests.unit.configuration import configuration

SECRET = "a-secret-from-before"
BUILDERS = [{"name": "here", "local": True, "s3User": "nixbuilder"}]


def settings(**changes: object) -> Settings:
    return parse(configuration(builders=BUILDERS, **changes))


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Server], object]) -> None:
    monkeypatch.setattr(Server, "lifecycle", lambda server, _bucket: answer(server))


def refuses(subject: str, *, reachable: bool = True) -> Callable[[Server], object]:
    def answer(_server: Server) -> object:
        raise ServerError(subject, "no", reachable=reachable)

    return answer


def test_an_existing_bucket_is_imported_only_where_the_settings_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, lambda _server: ())
    assert adoption.bucket_to_import(settings(adoptBucket=True)) == "nix-cache"
    assert adoption.bucket_to_import(settings()) is None


def test_a_bucket_that_is_not_there_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, lambda _server: None)
    assert adoption.bucket_to_import(settings(adoptBucket=True)) is None


def test_nothing_is_imported_from_a_server_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, refuses("endpoint", reachable=False))
    adopting = settings(adoptBucket=True, adoptedUserSecrets=f"nixbuilder:{SECRET}")
    assert adoption.bucket_to_import(adopting) is None


def test_a_secret_that_the_server_refuses_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, refuses("password"))
    with pytest.raises(SettingError) as refusal:
        adoption.bucket_to_import(settings(adoptedUserSecrets=f"nixbuilder:{SECRET}"))
    assert "adoptedUserSecrets: the server knows nixbuilder by another secret" in str(refusal.value)
    assert SECRET not in str(refusal.value)


def test_a_user_that_may_not_read_the_lifecycle_has_the_right_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def answer(server: Server) -> object:
        asked.append((server.user, server.password))
        raise ServerError("user", "denied")

    answering(monkeypatch, answer)
    assert adoption.bucket_to_import(settings(adoptedUserSecrets=f"nixbuilder:{SECRET}\n")) is None
    assert asked == [("nixbuilder", SECRET)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SECRET, "line 1 is no user:secret"),
        ("nixbuilder:short", "line 1 is no user:secret"),
        (f"\nsomebody:{SECRET}", "line 2 has a user that no builder is"),
        (f"nixbuilder:{SECRET}\nnixbuilder:{SECRET}", "line 2 has the user of a line before it"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_without_its_text(text: str, expected: str) -> None:
    with pytest.raises(SettingError) as refusal:
        settings(adoptedUserSecrets=text)
    assert f"adoptedUserSecrets: {expected}" in str(refusal.value)
    assert SECRET not in str(refusal.value)
    assert "short" not in str(refusal.value)
