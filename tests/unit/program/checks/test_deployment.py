"""What a deployment is told of its server, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pulumi
import pulumi_minio as minio
import pytest
from minio.error import S3Error
from urllib3.exceptions import MaxRetryError, ProtocolError

import program.checks.s3_client
from components.retention import ExpirationRule, expiration_rules
from program.checks import deployment, key_rotation, recorded
from program.checks.recorded import BUCKET, OBJECT, Recorded
from program.checks.s3_client import Server, explain
from program.checks.server_error import ServerError
from program.declaration import declare_server
from program.settings.reader import SettingError
from program.settings.stack import Settings, parse
from tests.unit.configuration import configuration
from tests.unit.recording_mocks import settled, use_recording_mocks


class FakeServer(Server):
    """A server that answers what it is told to."""

    rules: tuple[ExpirationRule, ...] | None
    names: tuple[str, ...]
    ages_in_days: tuple[int, ...]
    error: ServerError | None

    def lifecycle(self, bucket: str) -> tuple[ExpirationRule, ...] | None:
        assert bucket == "nix-cache"
        if self.error is not None:
            raise self.error
        return self.rules

    def narinfo_ages(self, bucket: str) -> Iterator[datetime]:
        assert bucket == "nix-cache"
        now = datetime.now(timezone.utc)
        yield from (now - timedelta(days=days) for days in self.ages_in_days)

    def contents(self, bucket: str) -> Iterator[str]:
        assert bucket == "mine"
        yield from self.names

    def keeps_versions(self, bucket: str) -> bool:
        assert bucket == "mine"
        return False


def state(bucket: str | None) -> Recorded:
    """Return what the state of a stack with that bucket knows."""
    if bucket is None:
        return Recorded({})
    return Recorded(
        {
            "urn:bucket": {"type": BUCKET, "outputs": {"bucket": bucket}},
            "urn:object": {"type": OBJECT, "outputs": {"objectName": "nix-cache-info"}},
        }
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    """The server that the checks will ask: no bucket yet, until a test says otherwise."""
    FakeServer.rules, FakeServer.ages_in_days, FakeServer.error = None, (), None
    FakeServer.names = ()
    monkeypatch.setattr(
        recorded, "read", lambda: state(None if FakeServer.rules is None else "nix-cache")
    )
    monkeypatch.setattr(program.checks.s3_client, "Server", FakeServer)
    monkeypatch.setattr(key_rotation, "check", lambda *_: None)
    use_recording_mocks()
    return FakeServer


def check(**changes: object) -> None:
    """Let an update of a configuration with `changes` check the server."""
    deployment.begin(parse(configuration(**changes)), declare_server)


def retention(preview: bool = False, **changes: object) -> str:
    """Return what a deployment of a configuration with `changes` says of its retention."""
    use_recording_mocks(preview)
    said: list[str] = []

    def deploy() -> pulumi.Output[None]:
        applied = pulumi.Output.from_input("applied")
        settings = parse(configuration(**changes))
        return deployment.check_lifecycle(settings, applied).apply(said.append)

    settled(deploy)
    return said[0]


def test_a_bucket_that_is_not_there_yet_is_no_reason_to_refuse(server: type[FakeServer]) -> None:
    assert server.rules is None
    check()


def test_a_bucket_that_is_there_and_not_the_stacks_is_refused_unless_it_is_adopted(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rules = expiration_rules(7, 1)
    check()
    monkeypatch.setattr(recorded, "read", lambda: state(None))
    for act in (check, lambda: retention(preview=True)):
        with pytest.raises(SettingError, match=r'bucket is "nix-cache": .* set adoptBucket to'):
            act()
    check(adoptBucket=True)


def test_a_bucket_that_is_gone_is_told_and_not_taken_for_unchanged(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.rules is None
    monkeypatch.setattr(recorded, "read", lambda: state("nix-cache"))
    for act in (check, lambda: retention(preview=True)):
        with pytest.raises(SettingError, match=r"no longer.* make repair STACK=test makes it"):
            act()


def test_another_bucket_in_the_place_of_one_that_is_not_empty_is_refused(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "read", lambda: state("mine"))
    server.names = ("nix-cache-info",)
    check()
    server.names = ("nix-cache-info", *["nar/a"] * 3)
    with pytest.raises(SettingError, match=r"bucket mine holds 3 objects .* make empty STACK=test"):
        check()
    server.names = ("nar/a",) * 2_000
    with pytest.raises(SettingError, match=r"holds 1,000 or more objects"):
        check()


def test_a_stack_is_destroyed_only_where_protect_is_off_and_its_bucket_empty(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "read", lambda: state("mine"))

    def refusal(**changes: object) -> str | None:
        return deployment.refusal_of_a_destroy(parse(configuration(**changes)))

    assert "pulumi config set protect false" in str(refusal())
    assert refusal(protect=False) is None
    server.names = ("nar/a",)
    assert "make empty STACK=test" in str(refusal(protect=False))


def test_a_refused_password_is_named_and_not_shown(server: type[FakeServer]) -> None:
    server.error = ServerError("password", "the server refuses it")
    with pytest.raises(SettingError, match=r"^minioPassword: the server refuses it$"):
        check()


def test_a_preview_only_warns_of_a_server_it_cannot_reach(
    server: type[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    server.error = ServerError("endpoint", "no S3 server answers there", reachable=False)
    with pytest.raises(SettingError, match="no S3 server answers"):
        check()
    assert retention(preview=True) == "An entry expires 7 days after its last push."
    assert "this preview could not check the server" in caplog.text


def test_a_preview_refuses_where_the_server_itself_says_no(server: type[FakeServer]) -> None:
    server.error = ServerError("user", "the server knows no such user")
    with pytest.raises(SettingError, match="no such user"):
        retention(preview=True)


def test_a_preview_declares_before_it_asks_the_server(server: type[FakeServer]) -> None:
    server.error = ServerError("user", "the server knows no such user")
    use_recording_mocks(preview=True)
    check()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("preview", "order"), [(False, ["keys", "provider"]), (True, ["provider", "keys"])]
)
def test_an_update_checks_its_keys_before_the_provider_is_declared_and_a_preview_after(
    monkeypatch: pytest.MonkeyPatch, preview: bool, order: list[str]
) -> None:
    use_recording_mocks(preview)
    done: list[str] = []
    monkeypatch.setattr(key_rotation, "check", lambda *_: done.append("keys"))

    def declare(settings: Settings) -> minio.Provider:
        done.append("provider")
        return declare_server(settings)

    deployment.begin(parse(configuration()), declare)
    assert done == order


def test_a_preview_says_what_will_be_in_force(server: type[FakeServer]) -> None:
    server.rules = expiration_rules(7, 1)
    assert "30 days" in retention(preview=True, retentionDays=30)
    assert retention(preview=True, expire=False) == "Entries never expire."


def test_a_shorter_retention_that_takes_most_of_the_cache_wants_a_confirmation(
    server: type[FakeServer],
) -> None:
    server.rules, server.ages_in_days = expiration_rules(30, 1), (0, 10, 12, 20)
    with pytest.raises(SettingError, match=r"75% .* set confirmShorterRetention to true"):
        check(retentionDays=7)
    check(retentionDays=7, confirmShorterRetention=True)


def test_a_shorter_retention_that_takes_little_only_warns(server: type[FakeServer]) -> None:
    server.rules, server.ages_in_days = expiration_rules(30, 1), (0, 0, 12, 1)
    check(retentionDays=7)


def test_a_first_expiry_on_a_cache_that_had_none_wants_a_confirmation_too(
    server: type[FakeServer],
) -> None:
    server.rules, server.ages_in_days = (), (100, 200)
    with pytest.raises(SettingError, match="it was no expiry"):
        check(retentionDays=7)


def test_the_same_or_a_longer_retention_is_nobodys_business(server: type[FakeServer]) -> None:
    server.rules, server.ages_in_days = expiration_rules(7, 1), (100, 200)
    check(retentionDays=7)
    check(retentionDays=30)
    check(expire=False)


def test_a_lifecycle_that_is_not_in_force_fails_the_deployment(server: type[FakeServer]) -> None:
    server.rules = expiration_rules(30, 1)
    with pytest.raises(pulumi.RunError, match=r"missing .* and .* not declared"):
        retention()
    server.rules = expiration_rules(7, 1)
    assert retention() == "An entry expires 7 days after its last push."


def test_without_a_retention_only_rules_that_the_engine_is_about_to_delete_may_be_left(
    server: type[FakeServer],
) -> None:
    for rules in ((), expiration_rules(30, 1)):
        server.rules = rules
        assert retention(expire=False) == "Entries never expire."
    server.rules = (ExpirationRule("expire", "", 7),)
    with pytest.raises(pulumi.RunError, match=r"1 not declared"):
        retention(expire=False)


@pytest.mark.parametrize(
    ("error", "subject", "words"),
    [
        ("InvalidAccessKeyId", "user", "no such user"),
        ("SignatureDoesNotMatch", "password", "refuses"),
        ("AccessDenied", "user", "denies"),
        ("RequestTimeTooSkewed", "endpoint", "clock"),
        ("SlowDown", "endpoint", "SlowDown"),
        (MaxRetryError(None, "/", Exception("CERTIFICATE_VERIFY_FAILED")), "endpoint", "CA"),  # type: ignore[arg-type]
        (ProtocolError("WRONG_VERSION_NUMBER"), "endpoint", "TLS"),
        (ProtocolError("Connection refused"), "endpoint", "no S3 server answers"),
    ],
)
def test_what_a_server_answers_is_told_in_the_settings_words(
    error: str | Exception, subject: str, words: str
) -> None:
    if isinstance(error, str):
        error = S3Error(None, error, "", "", "", "")  # type: ignore[arg-type]
    explained = explain(error)  # type: ignore[arg-type]
    assert explained is not None
    assert explained.subject == subject
    assert words in str(explained)
