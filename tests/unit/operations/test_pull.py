"""What lends a private cache's reader to a Nix that cannot sign requests, and to nobody else."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from operations.bucket import Credential
from operations.pull import _client, _substituter
from tests.unit.operations.test_audit import stack

PRIVATE = replace(stack(access="private"), reader=Credential("reader", "a secret"))
NAMES = ("nix-cache-info", f"{1:032}.narinfo", f"nar/{1:052}.nar.zst", f"log/{1:032}-x+y.drv")


def asked(url: str, path: str, method: str = "GET") -> tuple[int, str]:
    """Return the status of an answer, and where it points."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Location", "")
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_of_the_clients_requests_is_sent_on_signed(method: str) -> None:
    with _substituter(PRIVATE) as url:
        for name in (*NAMES, NAMES[-1].replace("+", "%2B")):
            status, there = asked(url, f"{urlsplit(url).path}/{name}", method)
            assert status == 307
            assert urlsplit(there).path.endswith(f"/nix-cache/{name.replace('+', '%2B')}")
            assert "X-Amz-Signature=" in there


def test_other_users_of_the_machine_are_lent_nothing() -> None:
    with _substituter(PRIVATE) as url, _substituter(PRIVATE) as other:
        token, another = urlsplit(url).path, urlsplit(other).path
        assert len(token) > 40
        assert token != another
        for name in NAMES:
            for path in (
                f"/{name}",
                f"//{name}",
                f"/x/{name}",
                f"{another}/{name}",
                f"{token}{name}",
            ):
                assert asked(url, path) == (404, "")


def test_what_is_no_file_of_a_cache_is_not_sent_on(capfd: pytest.CaptureFixture[str]) -> None:
    with _substituter(PRIVATE) as url:
        token = urlsplit(url).path
        for path in (token, f"{token}/", f"{token}/{token}", f"{token}/../x", f"{token}/a.txt"):
            assert asked(url, path) == (404, "")
        for path in ("/", "*", "/%FF", "/%00"):
            assert asked(url, path) == (404, "")
    assert capfd.readouterr() == ("", "")


def test_where_the_reader_is_lent_is_no_argument_of_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Sequence[str], str]] = []

    def run(command: Sequence[str], *, input: str, **_: object) -> object:
        seen.append((command, input))
        return subprocess.CompletedProcess(command, 0, "1\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    _client(["ssh", "here"], PRIVATE, "http://127.0.0.1:1/token", ["/nix/store/x"])
    ((command, script),) = seen
    assert "token" not in " ".join(command)
    (line,) = [line for line in script.splitlines() if "token" in line]
    assert line.startswith("substituters = http://127.0.0.1:1/token")
