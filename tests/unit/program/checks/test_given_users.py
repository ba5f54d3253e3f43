"""Users that were made elsewhere: what is asked of the server of each, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from components.retention import expiration_rules, is_cache_file
from program.checks import given_users
from program.checks.given_users import key_of
from program.checks.recorded import USER, Recorded
from program.checks.s3_client import Answer, Server
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import check_given_secrets, parse
from tests.unit.configuration import configuration, refusal
from tests.unit.recording_mocks import use_recording_mocks

SECRET = "a-secret-that-nobody-may-see"
GIVEN: dict[str, Any] = {
    "users": "given",
    "builders": [{"name": "here", "local": True, "accessKeyId": "GK1"}],
    "givenUserSecrets": f"GK1:{SECRET}",
}
PRIVATE: dict[str, Any] = {
    **GIVEN,
    "access": "private",
    "builders": [],
    "readerAccessKeyId": "GK2",
    "givenUserSecrets": f"GK2:{SECRET}",
}


def error(status: int, code: str) -> Answer:
    return Answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())


def listing(key: str) -> bytes:
    return (
        f"<ListBucketResult><Contents><Key>{key}</Key><Size>32</Size><ETag>x</ETag>"
        "<LastModified>2026-11-26T12:00:00.000Z</LastModified></Contents></ListBucketResult>"
    ).encode()


COPIED = b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>"
Script = Callable[[str, str, str], Answer | None]
"""Given who asks, the method and the key (a copy's method is COPY): the answer, None the usual."""


@dataclass(frozen=True)
class FakeServer(Server):
    """A server that does what it is asked, but for what it is told to do otherwise."""

    script: Script = lambda *_: None
    objects_: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def ask(  # type: ignore[override]
        self,
        method: str,
        bucket: str,
        key: str = "",
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] = {},
        body: bytes = b"",
    ) -> Answer:
        assert bucket == "nix-cache"
        if "x-amz-copy-source" in headers:
            method = "COPY"
        self.asked.append(f"{self.user} {method} {key}")
        told = self.script(self.user, method, key)
        if told is not None:
            return told
        builder_may_not = key.startswith("_nixcache/") or method == "DELETE"
        if self.user == "GK1" and builder_may_not:
            return error(403, "AccessDenied")
        if self.user == "GK2" and (method == "PUT" or not key):
            return error(403, "AccessDenied")
        if method == "PUT":
            self.objects_[key] = body
        if method == "DELETE":
            self.objects_.pop(key, None)
            return Answer(204, {}, b"")
        listed = listing(dict(query).get("prefix", ""))
        bodies = {"COPY": COPIED, "GET": self.objects_.get(key, b"") if key else listed}
        return Answer(200, {}, bodies.get(method, b""))


def check(script: Script = lambda *_: None, **changes: Any) -> FakeServer:
    """Let an update try the users of a configuration; return the server that it asked."""
    use_recording_mocks()
    server = FakeServer("s3", True, "us-east-1", "pulumi", "password", None, script=script)
    given_users.check(parse(configuration(**{**GIVEN, **changes})), server)
    return server


def said(script: Script, **changes: Any) -> str:
    with pytest.raises((SettingError, ServerError)) as refused:
        check(script, **changes)
    assert SECRET not in str(refused.value)
    return str(refused.value)


def only(user: str, method: str, answer: Answer) -> Script:
    return lambda who, how, key: answer if (who, how) == (user, method) and key != "" else None


def test_a_user_that_may_do_what_a_builder_does_is_fine_and_nothing_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = check()
    assert not server.objects_
    assert caplog.text == ""
    key, own = key_of("GK1"), f"_nixcache/{key_of('GK1').removeprefix('log/')}"
    assert server.asked == [
        f"GK1 PUT {key}",
        f"GK1 GET {key}",
        "GK1 GET ",
        f"GK1 COPY {key}",
        f"GK1 PUT {own}",
        f"GK1 DELETE {key}",
        f"pulumi DELETE {key}",
        f"pulumi DELETE {own}",
    ]


def test_what_an_interrupted_trial_leaves_is_a_caches_and_expires() -> None:
    key = key_of("GK1")
    assert is_cache_file(key)
    assert any(key.startswith(rule.prefix) for rule in expiration_rules(7, 1))
    assert key != key_of("GK2")


@pytest.mark.parametrize(
    ("method", "answer", "expected"),
    [
        (
            "PUT",
            error(403, "SignatureDoesNotMatch"),
            "givenUserSecrets: the server refuses the secret of GK1, as builder here is known by",
        ),
        (
            "PUT",
            error(403, "InvalidAccessKeyId"),
            'builders[0].accessKeyId is "GK1": the server knows no such user',
        ),
        (
            "PUT",
            error(403, "AccessDenied"),
            'builders[0].accessKeyId is "GK1": the server does not let it write in bucket '
            "nix-cache (HTTP 403 AccessDenied); give it the rights that make check-server "
            "STACK=test ARGS=--policy shows, or correct its secret in givenUserSecrets",
        ),
        ("GET", error(403, "AccessDenied"), "does not let it read in bucket nix-cache"),
        ("COPY", error(403, "AccessDenied"), "does not let it copy onto itself what it wrote"),
        ("COPY", error(501, "NotImplemented"), "answers HTTP 501 NotImplemented when builder"),
        ("COPY", Answer(200, {}, b"<Error/>"), "the server's answer to a copy is none of S3's"),
        ("GET", Answer(200, {}, b"another"), "write and read there is not the same"),
    ],
)
def test_what_a_builder_may_not_is_one_sentence(method: str, answer: Answer, expected: str) -> None:
    assert expected in said(only("GK1", method, answer))


@pytest.mark.parametrize("body", [b"<html/>", listing("log/another.drv")])
def test_a_listing_that_is_none_or_lacks_what_was_written_is_told(body: bytes) -> None:
    def script(_: str, method: str, key: str) -> Answer | None:
        return Answer(200, {}, body) if (method, key) == ("GET", "") else None

    assert "answer to a list is none of S3's" in said(script)


def test_the_trials_object_is_removed_also_where_the_server_then_fails() -> None:
    asked: list[str] = []

    def script(user: str, method: str, key: str) -> Answer | None:
        asked.append(f"{user} {method} {key}")
        if method == "COPY":
            raise ServerError("endpoint", "no S3 server answers there", reachable=False)
        return None

    assert "no S3 server answers" in said(script)
    assert f"pulumi DELETE {key_of('GK1')}" in asked


def test_what_a_user_may_beyond_its_work_is_told_and_not_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def anything(_: str, method: str, key: str) -> Answer | None:
        done = method == "DELETE" or (method == "PUT" and key.startswith("_nixcache/"))
        return Answer(204, {}, b"") if done else None

    check(anything)
    assert "builders[0].accessKeyId is GK1: the server lets it delete" in caplog.text
    assert "what the deployment keeps in the bucket (_nixcache/)" in caplog.text
    assert SECRET not in caplog.text


def test_a_reader_reads_and_does_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    server = check(**PRIVATE)
    assert not server.objects_
    assert caplog.text == ""
    denied = only("GK2", "GET", error(403, "AccessDenied"))
    assert 'readerAccessKeyId is "GK2": the server does not let it read' in said(denied, **PRIVATE)
    check(lambda user, *_: Answer(200, {}, b"") if user == "GK2" else None, **PRIVATE)
    assert "lets it list, so clients can tell all" in caplog.text
    assert "lets it write, so clients can change" in caplog.text


@pytest.mark.parametrize("preview", [True, False])
def test_a_look_writes_nothing_and_warns(preview: bool, caplog: pytest.LogCaptureFixture) -> None:
    use_recording_mocks(preview)
    denied = error(403, "AccessDenied")
    server = FakeServer(
        "s3", True, "us-east-1", "pulumi", "password", None, script=lambda *_: denied
    )
    directory = {"credentialsDirectory": "/var/lib/nix-binary-cache"}
    builders = [{**GIVEN["builders"][0], **directory}]
    given_users.look(parse(configuration(**{**GIVEN, "builders": builders})), server)
    # An update tries it before it pushes.
    assert server.asked == (["GK1 GET "] if preview else [])
    assert ("does not let it list" in caplog.text) is preview
    given_users.look(parse(configuration(**GIVEN)), server)
    assert "does not let it list" in caplog.text
    given_users.look(parse(configuration(**PRIVATE)), server)
    assert 'readerAccessKeyId is "GK2": the server does not let it read' in caplog.text
    assert not [line for line in server.asked if " GET " not in line]


def test_a_user_that_this_stack_made_would_be_deleted_and_is_refused() -> None:
    settings = parse(configuration(**GIVEN))
    given_users.check_recorded(settings, Recorded({}))
    made = Recorded({"user": {"type": USER, "outputs": {"name": "GK1"}}})
    with pytest.raises(SettingError, match=r'accessKeyId is "GK1": this stack made that user'):
        given_users.check_recorded(settings, made)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"users": "garage"}, 'users is "garage": write minio or given'),
        (
            {"builders": [{"name": "here", "local": True}]},
            "builders[0].accessKeyId: users is given, so write here",
        ),
        (
            {"builders": [{"name": "here", "local": True, "s3User": "GK1"}]},
            "builders[0].accessKeyId: users is given, so write here, and not in s3User",
        ),
        (
            {"builders": [{"name": "here", "local": True, "accessKeyId": "G 1"}]},
            'builders[0].accessKeyId is "G 1": write 3 to 128',
        ),
        (
            {"builders": [{"name": n, "local": True, "accessKeyId": "GK1"} for n in "ab"]},
            'builders[].accessKeyId is "GK1": two builders share it',
        ),
        (
            {"users": "minio", "givenUserSecrets": ""},
            "builders[0].accessKeyId: users is minio, and the deployment makes the user",
        ),
        (
            {"users": "minio", "builders": []},
            "givenUserSecrets: is without effect, since users is minio",
        ),
        (
            {"users": "minio", "builders": [], "givenUserSecrets": "", "readerAccessKeyId": "GK2"},
            "readerAccessKeyId: is without effect, since users is minio",
        ),
        ({"adoptedUserSecrets": f"GK1:{SECRET}"}, "adoptedUserSecrets: is without effect"),
        ({"writePolicy": "mine"}, "writePolicy: is without effect, since users is given"),
        ({"access": "private"}, "readerAccessKeyId: is missing, since access is private"),
        (
            {"access": "private", "readerAccessKeyId": "GK1"},
            'builders[].accessKeyId is "GK1": this is the private cache\'s reader',
        ),
        ({"minioUser": "GK1"}, 'builders[0].accessKeyId is "GK1": this is minioUser'),
        (
            {"givenUserSecrets": f"GK3:{SECRET}"},
            "givenUserSecrets: line 1 has a user that no builder is, nor the reader; take it out",
        ),
        ({"givenUserSecrets": SECRET}, "givenUserSecrets: line 1 is no user:secret"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], expected: str
) -> None:
    message = refusal(**{**GIVEN, **changes})
    assert expected in message
    assert SECRET not in message


def test_a_user_without_its_secret_is_refused_where_it_is_needed() -> None:
    # Operations read the settings without secrets.
    settings = parse(configuration(**{**GIVEN, "givenUserSecrets": ""}))
    with pytest.raises(SettingError, match=r"givenUserSecrets: has no line for GK1, as builder"):
        check_given_secrets(settings)
    check_given_secrets(parse(configuration(**GIVEN)))
    check_given_secrets(parse(configuration()))


def test_given_secrets_are_in_no_representation() -> None:
    assert SECRET not in repr(parse(configuration(**GIVEN)))
