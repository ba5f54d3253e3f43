"""Secrets in files: where a relative path lies, and what is said of one that is not there."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from push import settings
from push.failure import PushError

KEY = f"cache.test-1:{base64.b64encode(bytes(range(64))).decode()}"
LINES = ("endpoint=https://s3.homelab.local", "bucket=nix-cache", "access-key-id=nixbuilder")
FILES = ("secret-access-key-file=secret", "signing-key-file=key")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A directory as a service manager makes it."""
    (tmp_path / "secret").write_text("of the service\n")
    (tmp_path / "key").write_text(f"{KEY}\n")
    return tmp_path


def test_a_relative_path_lies_where_the_service_manager_put_it(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    read = settings.read([*LINES, *FILES])
    assert (read.secret_access_key, read.signing_key) == ("of the service", KEY)


def test_an_absolute_path_lies_where_it_says(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/nowhere")
    files = [line.replace("=", f"={given}/") for line in FILES]
    assert settings.read([*LINES, *files]).signing_key == KEY


def test_without_a_service_manager_a_relative_path_begins_where_the_push_does(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.chdir(given)
    assert settings.read([*LINES, *FILES]).signing_key == KEY


def test_only_secrets_are_looked_for_there(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    with pytest.raises(PushError, match="ca-certificate-file 'key' cannot be read"):
        settings.read([*LINES, *FILES, "ca-certificate-file=key"])


def test_a_credential_that_is_not_there_is_named_with_its_place(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    (given / "key").unlink()
    with pytest.raises(PushError) as refused:
        settings.read([*LINES, *FILES])
    assert str(refused.value) == (
        f"settings: signing-key-file '{given}/key' cannot be read; name a readable file"
    )
