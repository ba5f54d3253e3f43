"""What a job's Nix is asked, and what is taken for its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from formats.store_path import is_store_path
from push import job_nix
from push.failure import PushError
from push.job_nix import (
    NoAnswerError,
    settings_in_force,
    why_nothing_is_queued,
    why_nothing_is_taken,
)

CACHE = "https://s3.test/cache"


@pytest.fixture
def nix(tmp_path: Path) -> Path:
    """A directory for commands of a Nix, which is all that a job's PATH has but the system's."""
    directory = tmp_path / "nix"
    directory.mkdir()
    return directory


def command(nix: Path, name: str, script: str) -> dict[str, str]:
    """Put a command there; return the job's environment."""
    file = nix / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return {"PATH": f"{nix}:/usr/bin:/bin"}


def test_settings_are_what_nix_says_that_is_in_force(nix: Path) -> None:
    environment = command(
        nix,
        "nix",
        '[ "$*" = "--extra-experimental-features nix-command show-config" ] || exit 1\n'
        "echo 'warning: show-config is a deprecated alias' >&2\n"
        "echo 'post-build-hook = '; echo 'system = x86_64-linux'; echo 'extra = a = b'",
    )
    assert settings_in_force(environment) == {
        "post-build-hook": "",
        "system": "x86_64-linux",
        "extra": "a = b",
    }


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'error: in\x1b[2J' >&2; exit 1", r"show-config ends with 'error: in\?\[2J'; try it"),
        ("exit 1", "show-config ends with ''; try it"),
    ],
)
def test_a_nix_that_says_nothing_is_one_sentence(nix: Path, script: str, said: str) -> None:
    with pytest.raises(PushError, match=said):
        settings_in_force(command(nix, "nix", script))


def test_a_nix_that_is_not_there_is_named(nix: Path) -> None:
    environment = {"PATH": str(nix)}
    with pytest.raises(PushError, match="nix is not on PATH; install Nix before start"):
        settings_in_force(environment)
    with pytest.raises(PushError, match="nix-build is not on PATH"):
        why_nothing_is_queued(environment, nix, nix)
    with pytest.raises(PushError, match="nix-store is not on PATH"):
        why_nothing_is_taken(environment, CACHE, {})
    (nix / "nix").mkdir()
    with pytest.raises(PushError, match=r"nix cannot be run \(Permission denied\); see to it"):
        settings_in_force(environment)


BUILT = "/nix/store/13y1ba0a7dpnxw40d4s4kghxl5vjqx1c-nix-binary-cache-probe"


def test_what_is_built_to_see_is_new_each_time_and_not_left_to_be_pushed(
    nix: Path, tmp_path: Path
) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    asked = tmp_path / "asked"
    environment = command(
        nix, "nix-build", f'echo "$*" >>{asked}; ln -s {BUILT} {queue}; echo {BUILT}'
    )
    for _ in range(2):
        assert why_nothing_is_queued(environment, Path("/the/hook"), queue) is None
        assert list(queue.iterdir()) == []
    text = asked.read_text()
    assert text.count("--option post-build-hook /the/hook ") == 2
    expressions = text.split("derivation {")
    assert expressions[1] != expressions[2]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (f"echo {BUILT}", "Nix does not run the post-build-hook"),
        ("printf 'error: no\\nHint: x\\n' >&2; exit 1", "error: no"),
        (
            f"echo 'warning: ignoring post-build-hook, a restricted setting' >&2; echo {BUILT}",
            "warning: ignoring post-build-hook, a restricted setting",
        ),
        ("printf 'first\\nerror: \\33[31mno\\n\\n' >&2; exit 1", "error: ?[31mno"),
    ],
)
def test_why_nothing_is_queued_is_what_nix_says(
    nix: Path, tmp_path: Path, script: str, why: str
) -> None:
    assert why_nothing_is_queued(command(nix, "nix-build", script), nix, tmp_path) == why


def test_a_build_or_an_answer_that_does_not_come_is_not_waited_for_without_end(
    nix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_nix, "_SECONDS", 0.1)
    for name in ("nix", "nix-build", "nix-store"):
        environment = command(nix, name, "exec sleep 60")
    assert why_nothing_is_queued(environment, nix, tmp_path) == "Nix has built nothing after 0 s"
    with pytest.raises(NoAnswerError, match="no answer after 0 s"):
        why_nothing_is_taken(environment, CACHE, {})
    with pytest.raises(PushError, match="show-config says nothing for 0 s"):
        settings_in_force(environment)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("error: path 'x' does not exist and cannot be created", None),
        ("warning: unable to download 'https://other.test/x': no; retrying in 3 ms", None),
        (f"warning: unable to download '{CACHE}/x.narinfo': no; retrying in 3 ms", None),
        (f"disabling binary cache '{CACHE}' for 60 seconds", "disabling binary cache"),
        (f"warning: ignoring untrusted substituter '{CACHE}'", "ignoring untrusted substituter"),
    ],
)
def test_a_cache_that_is_not_asked_is_told_in_nixs_words(
    nix: Path, said: str, why: str | None
) -> None:
    asked = nix / "asked"
    environment = command(
        nix, "nix-store", f'echo "$*" >{asked}; cat >&2 <<"END"\n{said}\nEND\nexit 1'
    )
    told = why_nothing_is_taken(environment, f"{CACHE}?priority=3", {"cores": "3"})
    assert (told is None) == (why is None)
    assert why is None or why in str(told)
    first, path, rest = asked.read_text().strip().split(" ", 2)
    assert (first, is_store_path(path)) == ("--realise", True)
    assert rest == f"--option extra-substituters {CACHE}?priority=3 --option cores 3"
