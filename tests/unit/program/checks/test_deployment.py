"""What a deployment is told of its server, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pulumi
import pulumi_minio as minio
import pytest
from urllib3.exceptions import MaxRetryError, ProtocolError

import program.checks.s3_client
import program.server
from components.binary_cache import anonymous_policy
from components.retention import ExpirationRule, expiration_rules
from program.checks import deployment, key_rotation, ownership, recorded
from program.checks.bucket_settings import Lifecycle
from program.checks.deployment import Settled
from program.checks.recorded import BUCKET, BUCKET_POLICY, LIFECYCLE, OBJECT, STACK, Recorded
from program.checks.s3_client import Server, refusal, unreachable
from program.checks.server_error import ServerError
from program.outputs.landing_page import landing_page
from program.outputs.machines import ClientConfiguration
from program.server import declare_early, declare_server
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings, parse
from tests.unit.components.test_retention import former_rules
from tests.unit.configuration import configuration
from tests.unit.recording_mocks import settled, use_recording_mocks


class FakeServer(Server):
    """A server that answers what it is told to."""

    rules: tuple[ExpirationRule, ...] | None
    others: tuple[str, ...]
    policy: str | None
    asked_for_policy: int
    names: tuple[str, ...]
    ages_in_days: tuple[int, ...]
    foreign: tuple[str, ...]
    pages: dict[str, bytes]
    etags: dict[str, str]
    versioned: bool
    locked: bool
    replicated: bool
    error: ServerError | None

    def lifecycle(self, bucket: str) -> Lifecycle | None:
        assert bucket == "nix-cache"
        if self.error is not None:
            raise self.error
        return None if self.rules is None else Lifecycle(self.rules, self.others)

    def objects(self, bucket: str, _after: str = "") -> Iterator[tuple[str, datetime]]:
        assert bucket == "nix-cache"
        now = datetime.now(timezone.utc)
        for days in self.ages_in_days:
            yield f"{days:032}.narinfo", now - timedelta(days=days)
        for key in self.foreign:
            yield key, now

    def read(self, _bucket: str, key: str, _most: int) -> bytes | None:
        return self.pages.get(key)

    def access(self, bucket: str) -> str | None:
        assert bucket == "nix-cache"
        FakeServer.asked_for_policy += 1
        return self.policy

    def etag(self, _bucket: str, key: str) -> str | None:
        return self.etags.get(key)

    def keeps_versions(self, *_: object) -> bool:
        return self.versioned

    def locks_objects(self, *_: object) -> bool:
        return self.locked

    def replicates(self, *_: object) -> bool:
        return self.replicated

    def contents(self, bucket: str) -> Iterator[str]:
        assert bucket in ("mine", "nix-cache")
        yield from self.names if bucket == "mine" else ()


def state(bucket: str | None, *objects: str, protected: bool = True) -> Recorded:
    """Return what the state of a stack with that bucket knows, and has put into it."""
    if bucket is None:
        return Recorded({})
    return Recorded(
        {
            "urn:stack": {"type": STACK, "outputs": {"protected": protected}},
            "urn:bucket": {"type": BUCKET, "outputs": {"bucket": bucket}},
            **{
                f"urn:{key}": {
                    "type": OBJECT,
                    "outputs": {"bucketName": bucket, "objectName": key},
                }
                for key in ("nix-cache-info", *objects)
            },
        }
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    """The server that the checks will ask: no bucket yet, until a test says otherwise."""
    FakeServer.rules, FakeServer.ages_in_days, FakeServer.error = None, (), None
    FakeServer.names, FakeServer.others, FakeServer.foreign = (), (), ()
    FakeServer.etags, FakeServer.pages = {}, {}
    FakeServer.policy, FakeServer.asked_for_policy = None, 0
    FakeServer.versioned = FakeServer.locked = FakeServer.replicated = False
    monkeypatch.setattr(
        recorded, "read", lambda: state(None if FakeServer.rules is None else "nix-cache")
    )
    monkeypatch.setattr(program.checks.s3_client, "Server", FakeServer)
    monkeypatch.setattr(key_rotation, "check", lambda *_: SigningKeys((), {}))
    monkeypatch.setattr(ownership, "check", lambda *_: None)
    use_recording_mocks()
    return FakeServer


def check(**changes: object) -> Settled:
    """Let an update of a configuration with `changes` check the server."""
    _, settled = deployment.begin(parse(configuration(**changes)), None)
    return settled


def retention(preview: bool = False, **changes: object) -> str:
    """Return what a deployment of a configuration with `changes` says of its retention."""
    use_recording_mocks(preview)
    said: list[str] = []

    def deploy() -> pulumi.Output[None]:
        applied, access = pulumi.Output.from_input(True), pulumi.Output.from_input(False)
        settings = parse(configuration(**changes))
        _, found = deployment.begin(settings, declare_early(settings))
        return deployment.conclude(settings, found, applied, access).apply(said.append)

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
    monkeypatch.setattr(recorded, "read", lambda: state("mine", protected=False))
    server.names = ("nix-cache-info",)
    check(protect=False)
    server.names = ("nix-cache-info", *["nar/a"] * 3)
    with pytest.raises(SettingError, match=r"bucket mine holds 3 objects .* make empty STACK=test"):
        check(protect=False)
    server.names = ("nar/a",) * 2_000
    with pytest.raises(SettingError, match=r"holds 1,000 or more objects"):
        check(protect=False)


def both() -> Recorded:
    """Return the state of a stack whose bucket was to have another name, which has failed."""
    return Recorded(
        {
            **state("mine", protected=False).resources,
            "urn:new": {"type": BUCKET, "outputs": {"bucket": "nix-cache"}},
        }
    )


def test_of_two_buckets_that_of_the_settings_is_the_stacks_and_only_the_other_is_refused(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "read", both)
    server.rules = expiration_rules(7, 1)
    server.names = ("nix-cache-info",)
    assert check(protect=False).adopt is check(protect=False, adoptBucket=True).adopt is None
    server.names = ("nix-cache-info", "nar/a")
    with pytest.raises(SettingError, match=r"bucket mine is protected, .* and run pulumi up$"):
        check(protect=True)
    settings = parse(configuration(protect=False))
    assert "bucket mine holds 1 objects" in str(deployment.refusal_of_a_destroy(settings))
    for act in (check, lambda **changes: retention(preview=True, **changes)):
        with pytest.raises(SettingError, match=r"bucket mine holds 1 .* or name that one again$"):
            act(protect=False)


def test_a_bucket_of_the_name_that_a_former_version_gave_a_resource_is_refused(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.names == ()
    policy = {"type": BUCKET_POLICY, "outputs": {"bucket": "mine"}}
    for name, refused in (("nix-cache", True), ("cache-download", False)):
        former = {**state("mine", protected=False).resources, f"urn::{name}": policy}
        monkeypatch.setattr(recorded, "read", lambda known=former: Recorded(known))
        if not refused:
            check(protect=False)
            continue
        with pytest.raises(
            SettingError, match=r"of the bucket mine .* deploy it under the name mine first"
        ):
            check(protect=False)


@pytest.mark.parametrize(("protected", "protect"), [(True, True), (True, False), (False, True)])
def test_another_bucket_in_the_place_of_a_protected_one_is_refused(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, protected: bool, protect: bool
) -> None:
    assert server.names == ()
    monkeypatch.setattr(recorded, "read", lambda: state("mine", protected=protected))
    with pytest.raises(SettingError, match=r"bucket mine is protected, and would be deleted; "):
        check(protect=protect)


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

    def keys(*_: object) -> SigningKeys:
        done.append("keys")
        return SigningKeys((), {})

    monkeypatch.setattr(key_rotation, "check", keys)

    def declare(settings: Settings) -> minio.Provider:
        done.append("provider")
        return declare_server(settings)

    for module in (program.server, deployment):
        monkeypatch.setattr(module, "declare_server", declare)
    declared = declare_early(parse(configuration()))
    deployment.begin(parse(configuration()), declared)
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


@pytest.mark.parametrize(
    "needed",
    [
        {"builders": [{"name": "laptop", "local": True}]},
        {"pins": [{"name": "release", "path": f"/nix/store/{'a' * 32}-release"}]},
    ],
    ids=["builders", "pins"],
)
def test_a_first_expiry_wants_a_confirmation_for_any_entry_that_somebody_may_need(
    server: type[FakeServer], needed: dict[str, object]
) -> None:
    server.rules, server.ages_in_days = (), (0,) * 299 + (30,)
    check(retentionDays=7)
    with pytest.raises(SettingError) as refused:
        check(retentionDays=7, **needed)
    assert str(refused.value) == (
        "retentionDays is 7: less than 1% of the cache's entries would expire at once (it was no "
        "expiry); set retentionDays to 38 until every builder has pushed by the new outputs, or "
        "set confirmShorterRetention to true to go on"
    )
    check(retentionDays=7, confirmShorterRetention=True, **needed)
    check(retentionDays=38, **needed)
    server.rules = expiration_rules(60, 1)
    check(retentionDays=7, **needed)


def test_the_same_or_a_longer_retention_is_nobodys_business(server: type[FakeServer]) -> None:
    server.rules, server.ages_in_days = expiration_rules(7, 1), (100, 200)
    check(retentionDays=7)
    check(retentionDays=30)
    check(expire=False)


@pytest.mark.parametrize(
    "more",
    [
        {"rules": (*expiration_rules(30, 1), ExpirationRule("tmp", "tmp/", 1))},
        {"rules": expiration_rules(30, 1), "others": ("delete-markers",)},
        {"rules": (ExpirationRule("tmp", "tmp/", 1),)},
    ],
    ids=["tmp/ after a day", "one for delete markers", "tmp/ and nothing else"],
)
def test_other_rules_hide_no_shorter_retention(
    server: type[FakeServer], more: dict[str, Any]
) -> None:
    server.ages_in_days = (0, 10, 12, 20)
    for name, value in more.items():
        setattr(server, name, value)
    with pytest.raises(SettingError, match=r"75% .* set confirmShorterRetention to true"):
        check(retentionDays=7)
    with pytest.raises(SettingError, match=r"rules of somebody else would go: 1 \((tmp|delete-m)"):
        check(retentionDays=7, confirmShorterRetention=True)
    check(retentionDays=7, confirmShorterRetention=True, confirmSharedBucket=True)


def test_a_rule_that_would_take_all_of_the_cache_may_give_way(server: type[FakeServer]) -> None:
    server.rules, server.ages_in_days = (ExpirationRule("all", "", 7),), (1, 10)
    check(retentionDays=7)


ELSEWHERE = pulumi.Output.from_input(False)
"""Who may read is declared elsewhere, or not told."""

FOREIGN = (
    *(f"backups/{day}.tar" for day in range(3)),
    *(f"photos/{number}.jpg" for number in range(12)),
    "attic/config",
    "ca.pem",
    "nar/notes.txt",
    "x\x1b[31m",
    "public/\x1b",
)


def test_a_lifecycle_is_put_on_no_bucket_that_holds_more_than_a_cache(
    server: type[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    server.rules, server.ages_in_days, server.foreign = (), (1, 2), FOREIGN
    with pytest.raises(SettingError) as refused:
        check()
    message = str(refused.value)
    assert message.startswith('bucket is "nix-cache": objects would expire that are no files of')
    assert (
        "20 (photos/ (12), backups/ (3), attic/ (1), ca.pem, nar/ (1), x?[31m, public/" in message
    )
    assert "set confirmSharedBucket to true" in message
    check(confirmSharedBucket=True)
    assert "photos/ (12)" in caplog.text
    check(expire=False)


def test_a_stack_whose_page_was_called_otherwise_asks_only_about_what_it_did_not_make(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rules, server.foreign = former_rules(7), ("index.html",)
    server.pages = {"index.html": b"<!doctype html><title>Mine</title>"}
    with pytest.raises(SettingError, match=r"no files of a cache: 1 \(index.html\)"):
        check()
    monkeypatch.setattr(recorded, "read", lambda: state("nix-cache", "index.html"))
    check()
    check(expire=False)
    server.foreign = ("index.html", "logo.png")
    with pytest.raises(SettingError, match=r"no files of a cache: 1 \(logo.png\)"):
        check()


@pytest.mark.parametrize("access", ["public", "private"])
def test_a_caches_page_of_the_former_name_may_expire_in_a_bucket_that_is_adopted(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    server.rules, server.foreign = former_rules(7), ("index.html", "logo.png")
    client = ClientConfiguration("https://x/nix-cache", ["cache.test-1:AAAA"], None)
    server.pages = {"index.html": landing_page(client, 7).encode()}
    monkeypatch.setattr(recorded, "read", lambda: state(None))
    with pytest.raises(SettingError, match=r"no files of a cache: 1 \(logo.png\)"):
        check(adoptBucket=True, access=access)
    server.foreign = ("index.html",)
    check(adoptBucket=True, access=access)
    server.foreign = ("photos/index.html",)
    with pytest.raises(SettingError, match=r"no files of a cache: 1 \(photos/ \(1\)\)"):
        check(adoptBucket=True, access=access)


def test_somebody_elses_page_is_not_replaced_by_a_stack_that_had_none(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rules = expiration_rules(7, 1)
    server.pages = {"use.html": b"<!doctype html><title>Mine</title>"}
    with pytest.raises(SettingError, match=r"its use.html is somebody else's page"):
        check()
    check(access="private")
    monkeypatch.setattr(recorded, "read", lambda: state("nix-cache", "use.html"))
    check()


def test_what_no_rule_takes_is_nobodys_business(server: type[FakeServer]) -> None:
    server.rules, server.foreign = (
        (),
        ("Archive.zip", "_nixcache/x", "terraform.tfstate", "use.html"),
    )
    check()


def test_of_many_places_some_are_named_and_all_are_counted(server: type[FakeServer]) -> None:
    server.rules, server.foreign = (), tuple(f"d{number}/x" for number in range(25))
    with pytest.raises(SettingError, match=r": 25 \(d0/ \(1\), .*d9/ \(1\) and 15 more\)"):
        check()


def test_rules_in_force_are_not_questioned_again(server: type[FakeServer]) -> None:
    server.rules, server.foreign = expiration_rules(7, 1), FOREIGN
    check()
    check(retentionDays=9)


def test_versions_expire_where_a_bucket_keeps_them(server: type[FakeServer]) -> None:
    server.rules = ()
    assert not check().versioned
    server.versioned = True
    assert check().versioned
    assert not check(expire=False).versioned


@pytest.mark.parametrize(("how", "words"), [("locked", "it locks"), ("replicated", "replicated")])
def test_versions_that_no_rule_can_remove_are_refused(
    server: type[FakeServer], how: str, words: str
) -> None:
    server.rules, server.versioned = (), True
    setattr(server, how, True)
    with pytest.raises(SettingError, match=rf'bucket is "nix-cache": .*{words}.* set expire to'):
        check()
    check(expire=False)


def test_a_preview_says_that_a_bucket_keeps_versions_now(
    server: type[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server.rules, server.versioned = expiration_rules(7, 1), True
    retention(preview=True)
    assert "keeps versions: the deployment will also let those expire" in caplog.text


PUBLIC = anonymous_policy("nix-cache", True, False)
CLOSED = anonymous_policy("nix-cache", False, False)
ANYBODY_WRITES = PUBLIC.replace('"s3:GetObject"', '"s3:GetObject", "s3:PutObject"')
FOR_ONE = PUBLIC.replace('"*"', '"arn:aws:iam:::user/one"')


def told(server: type[FakeServer], told_access: bool = True, **changes: object) -> None:
    """Let an update that has told the server the lifecycle, or both, read back what it says."""
    settings = parse(configuration(**changes))
    server.rules = expiration_rules(settings.rule_days, settings.grace_days)
    found = Settled(SigningKeys((), {}), versioned=False, comparable_etags=True)
    applied, access = map(pulumi.Output.from_input, (True, told_access))
    settled(lambda: deployment.conclude(settings, found, applied, access))


@pytest.mark.parametrize(
    ("access", "policy", "words"),
    [
        ("private", PUBLIC, "access is private, and its policy lets anybody use s3:GetObject;"),
        ("private", ANYBODY_WRITES, "lets anybody use s3:GetObject, s3:PutObject;"),
        ("private", '{"Statement": [{"NotAction": "s3:*"}]}', "anybody use something unusual;"),
        ("private", "[]", "lets anybody use something unusual;"),
        ("public", None, "access is public, and its policy is not the one declared: it lets no"),
        ("public", ANYBODY_WRITES, "it allows everybody s3:GetObject, s3:PutObject;"),
        ("public", "no JSON", "it allows everybody something unusual;"),
    ],
)
def test_who_may_read_otherwise_than_declared_fails_the_deployment(
    server: type[FakeServer], access: str, policy: str | None, words: str
) -> None:
    server.policy = policy
    with pytest.raises(pulumi.RunError) as failed:
        told(server, access=access)
    assert words in str(failed.value)
    assert str(failed.value).endswith("; make repair STACK=test puts it right")
    # A destroy or a refresh has told the server nothing.
    told(server, False, access=access)


def test_who_may_read_as_declared_is_nobodys_business(server: type[FakeServer]) -> None:
    # One that names somebody lets in nobody without a credential.
    for policy in (CLOSED, None, '{"Version": "2012-10-17", "Statement": []}', FOR_ONE):
        server.policy = policy
        told(server, access="private")
    server.policy = PUBLIC.replace('["s3:GetObject"]', '"s3:GetObject"')
    told(server)
    server.policy = anonymous_policy("nix-cache", True, True)
    told(server, anonymousListing=True)


def test_a_server_that_does_not_tell_who_may_read_is_told_in_the_settings_words(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise refusal("AccessDenied")

    monkeypatch.setattr(FakeServer, "access", refused)
    with pytest.raises(SettingError, match=r"minioUser"):
        told(server)


def with_policy(policy: str) -> Recorded:
    known = {"bucket": "nix-cache", "policy": policy}
    return Recorded(
        {
            **state("nix-cache", "use.html").resources,
            "urn:policy": {"type": BUCKET_POLICY, "outputs": known},
        }
    )


def test_a_preview_warns_of_who_may_read_where_the_deployment_would_leave_it(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.rules, server.policy = expiration_rules(7, 1), PUBLIC
    monkeypatch.setattr(recorded, "read", lambda: with_policy(CLOSED))
    retention(preview=True, access="private")
    assert "access is private, and its policy lets anybody use s3:GetObject; make" in caplog.text
    assert server.asked_for_policy == 1
    # The deployment will write it.
    caplog.clear()
    retention(preview=True)
    # It is somebody else's to open.
    retention(preview=True, bucketPolicy=False, publicUrl="https://cache.example.org")
    assert (caplog.text, server.asked_for_policy) == ("", 1)


def test_a_lifecycle_that_is_not_in_force_fails_the_deployment(server: type[FakeServer]) -> None:
    settings = parse(configuration())
    in_force = Settled(SigningKeys((), {}), versioned=False, comparable_etags=True)

    def read_back(found: Settled) -> pulumi.Output[str]:
        return deployment.conclude(settings, found, pulumi.Output.from_input(True), ELSEWHERE)

    server.rules = expiration_rules(30, 1)
    with pytest.raises(pulumi.RunError, match=r"missing .* and .* not declared"):
        settled(lambda: read_back(in_force))
    # A destroy or a refresh finds what was declared before the settings were edited.
    older = pulumi.Output.from_input(False)
    settled(lambda: deployment.conclude(settings, in_force, older, ELSEWHERE))
    server.rules = expiration_rules(7, 1)
    settled(lambda: read_back(in_force))
    with pytest.raises(pulumi.RunError, match=r"missing .* and .* not declared"):
        settled(lambda: read_back(replace(in_force, versioned=True)))


def test_without_a_retention_only_rules_that_the_engine_is_about_to_delete_may_be_left(
    server: type[FakeServer],
) -> None:
    elsewhere = ExpirationRule("tmp", "tmp/", 1)
    for rules in ((), expiration_rules(30, 1), (elsewhere,)):
        server.rules = rules
        assert retention(expire=False) == "Entries never expire."
    server.rules = (ExpirationRule("expire", "", 7), elsewhere)
    with pytest.raises(pulumi.RunError, match=r"1 not declared"):
        retention(expire=False)


def test_rules_that_go_at_the_end_are_told_with_what_removes_them_in_spite_of_a_push(
    server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.rules = expiration_rules(7, 1)
    rules = {"type": LIFECYCLE, "outputs": {"bucket": "nix-cache", "rules": []}}
    known = Recorded({**state("nix-cache").resources, "urn:retention": rules})
    monkeypatch.setattr(recorded, "read", lambda: known)
    retention()
    assert "expire is off" not in caplog.text
    retention(expire=False)
    assert "rules of bucket nix-cache go at the end: until then entries expire; wh" in caplog.text
    assert "pulumi up --continue-on-error does the rest" in caplog.text
    assert "by hand" not in caplog.text
    # Those of a bucket that goes, go with it.
    caplog.clear()
    elsewhere = {**rules, "outputs": {"bucket": "before", "rules": []}}
    both = {**state("nix-cache").resources, "urn:retention": elsewhere}
    monkeypatch.setattr(recorded, "read", lambda: Recorded(both))
    retention(expire=False)
    assert "go at the end: until then" not in caplog.text
    # What the state does not have, the engine does not delete.
    caplog.clear()
    monkeypatch.setattr(recorded, "read", lambda: state("nix-cache"))
    retention(expire=False)
    assert "none of this stack's; entries expire until you delete them by hand" in caplog.text
    assert "continue-on-error" not in caplog.text


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
        ("AuthorizationHeaderMalformed", "region", "set it to the server's, which is garage on"),
    ],
)
def test_what_a_server_answers_is_told_in_the_settings_words(
    error: str | Exception, subject: str, words: str
) -> None:
    explained = refusal(error) if isinstance(error, str) else unreachable(error)
    assert explained.subject == subject
    assert words in str(explained)
