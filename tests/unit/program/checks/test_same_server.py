"""Another server than that of the last deployment: whose the names are that the state knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone

import pytest

from components.binary_cache import anonymous_policy
from formats.pin import format_pin, pin_key
from formats.signing import SecretKey
from program.checks import removal, same_server
from program.checks.bucket_settings import Lifecycle
from program.checks.recorded import (
    BUCKET,
    BUCKET_POLICY,
    OBJECT,
    SERVER,
    SIGNING_KEY,
    STACK,
    USER,
    Recorded,
)
from program.checks.s3_client import Server
from program.outputs.landing_page import landing_page
from program.outputs.machines import ClientConfiguration
from program.settings.reader import SettingError
from program.settings.stack import parse
from tests.unit.configuration import configuration
from tests.unit.program.checks.test_adoption import narinfo

OURS, THEIRS = SecretKey.generate("cache.test-1"), SecretKey.generate("cache.test-1")
RETIRED, STRANGER = SecretKey.generate("cache.test-0"), SecretKey.generate("cache.other-1")
UPSTREAM, NIXOS = SecretKey.generate("up.test-1"), SecretKey.generate("cache.nixos.org-1")
PIN = pin_key("app")
KEPT = format_pin(["/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-app"])
INFO = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"


def page(key: SecretKey) -> bytes:
    client = ClientConfiguration("https://x/nix-cache", [str(key.public_key)], None)
    return landing_page(client, 7).encode()


def recorded(
    *,
    bucket: str | None = "nix-cache",
    user: str | None = None,
    private: bool = False,
    objects: Mapping[str, str] = {"use.html": "the page"},
) -> Recorded:
    """Return the state of a stack that has been deployed to another server than that of now."""
    server = {"minioServer": "before:9000", "minioSsl": "true"}
    key = {"key_name": OURS.name, "public_key": str(OURS.public_key)}
    resources: dict[str, Mapping[str, object]] = {
        "urn:server": {"type": SERVER, "outputs": server},
        "urn:key": {"type": SIGNING_KEY, "outputs": key},
        "urn:stack": {
            "type": STACK,
            "outputs": {
                "publicKeys": [str(OURS.public_key)],
                "retiredKeys": [str(RETIRED.public_key)],
            },
        },
    }
    if bucket is not None:
        resources["urn:bucket"] = {"type": BUCKET, "outputs": {"bucket": bucket}}
        info = {"objectName": "nix-cache-info", "content": INFO.decode(), "etag": "the same"}
        resources["urn:info"] = {"type": OBJECT, "outputs": {"bucketName": bucket, **info}}
        policy = anonymous_policy(bucket, download=not private, listing=False)
        resources["urn:policy"] = {"type": BUCKET_POLICY, "outputs": {"policy": policy}}
        for name, content in objects.items():
            kept = {"bucketName": bucket, "objectName": name, "content": content}
            resources[f"urn:{name}"] = {"type": OBJECT, "outputs": kept}
    if user is not None:
        resources["urn:user"] = {"type": USER, "outputs": {"name": user}}
    return Recorded(resources)


class OtherServer(Server):
    """A server with one bucket, `nix-cache`, or none."""

    held: Mapping[str, bytes] | None = None

    @classmethod
    def holding(cls, objects: Mapping[str, bytes] | None) -> OtherServer:
        server = cls("s3", True, "us-east-1", "pulumi", "password", None)
        object.__setattr__(server, "held", objects)
        return server

    def lifecycle(self, *_: object) -> Lifecycle | None:
        return None if self.held is None else Lifecycle((), ())

    def objects(self, *_: object) -> Iterator[tuple[str, datetime]]:
        return ((key, datetime.now(timezone.utc)) for key in self.held or ())

    def read(self, _bucket: str, key: str, _most: int) -> bytes | None:
        return (self.held or {}).get(key)

    def etag(self, _bucket: str, key: str) -> str | None:
        return "the same" if key in (self.held or {}) else None


def check(
    objects: Mapping[str, bytes] | None, state: Recorded | None = None, **changes: object
) -> None:
    settings = parse(configuration(upstreamKeys=[str(UPSTREAM.public_key)], **changes))
    same_server.check(
        settings, OtherServer.holding(objects), recorded() if state is None else state
    )


OURS_THERE = [
    {"use.html": page(OURS)},
    {"use.html": page(OURS), "0.narinfo": narinfo(THEIRS)},
    {"index.html": page(OURS)},
    {"index.html": b"<!doctype html><title>Mine</title>", "use.html": page(OURS)},
    {"0.narinfo": narinfo(), "1.narinfo": narinfo(THEIRS, OURS)},
    {"0.narinfo": narinfo(RETIRED)},
    {"0.narinfo": narinfo(NIXOS), "1.narinfo": narinfo(STRANGER), "2.narinfo": narinfo(OURS)},
]
THEIRS_THERE = [
    {"nix-cache-info": INFO, "use.html": page(THEIRS)},
    {"use.html": b"<!doctype html><title>Mine</title>"},
    {"index.html": page(THEIRS)},
    {"use.html": page(THEIRS), "index.html": page(OURS), "0.narinfo": narinfo(OURS)},
    {"nix-cache-info": INFO, "0.narinfo": narinfo(THEIRS)},
    {"0.narinfo": narinfo(NIXOS), "1.narinfo": narinfo(UPSTREAM, STRANGER)},
]
NOBODYS = [
    None,
    {},
    {"nix-cache-info": INFO},
    {"0.narinfo": narinfo()},
    {"0.narinfo": narinfo(NIXOS), "1.narinfo": narinfo(UPSTREAM), "2.narinfo": narinfo()},
    {"index.html": b"<!doctype html><title>Mine</title>"},
]


@pytest.mark.parametrize("objects", OURS_THERE)
@pytest.mark.parametrize("adopt", [False, True])
def test_a_bucket_that_a_key_of_the_stack_has_signed_has_moved(
    objects: Mapping[str, bytes], adopt: bool
) -> None:
    check(objects, adoptBucket=adopt)


@pytest.mark.parametrize("objects", THEIRS_THERE)
@pytest.mark.parametrize("adopt", [False, True])
def test_somebody_elses_cache_of_the_same_name_is_not_taken_whatever_the_settings_say(
    objects: Mapping[str, bytes], adopt: bool
) -> None:
    with pytest.raises(SettingError, match="shows no key of this stack") as refused:
        check(objects, adoptBucket=adopt)
    assert "https://before:9000" in str(refused.value)
    assert "adoptBucket" not in str(refused.value)


@pytest.mark.parametrize("objects", NOBODYS)
def test_a_bucket_that_shows_no_key_is_the_stacks_only_where_the_settings_say_so(
    objects: Mapping[str, bytes] | None,
) -> None:
    with pytest.raises(SettingError, match="set adoptBucket to true if the bucket has moved"):
        check(objects)
    check(objects, adoptBucket=True)


def test_a_private_cache_without_entries_has_moved_where_a_pin_of_it_is() -> None:
    state = recorded(private=True, objects={PIN: KEPT})
    check({"nix-cache-info": INFO, PIN: KEPT.encode()}, state)
    # Two caches may keep the same; the keys tell them apart.
    with pytest.raises(SettingError, match="shows no key of this stack"):
        check({PIN: KEPT.encode(), "0.narinfo": narinfo(STRANGER)}, state, adoptBucket=True)


@pytest.mark.parametrize("private", [False, True])
def test_what_many_stacks_put_into_their_buckets_tells_none_of_them_from_another(
    private: bool,
) -> None:
    same = {"_nixcache/push.pyz": "the push", PIN: format_pin([])}
    state = recorded(private=private, objects=same)
    there = {"nix-cache-info": INFO, **{name: text.encode() for name, text in same.items()}}
    with pytest.raises(SettingError, match="set adoptBucket to true if the bucket has moved"):
        check(there, state)
    check(there, state, adoptBucket=True)


def test_a_private_cache_has_no_page_that_could_tell_whose_it_is() -> None:
    state = recorded(private=True)
    with pytest.raises(SettingError, match="set adoptBucket to true if the bucket has moved"):
        check({"use.html": page(THEIRS)}, state)
    check({"use.html": page(THEIRS)}, state, adoptBucket=True)


def test_somebody_elses_page_is_not_taken_for_the_one_of_the_version_before() -> None:
    state = recorded(objects={"index.html": page(OURS).decode()})
    there = {"index.html": b"<!doctype html><title>Mine</title>"}
    with pytest.raises(SettingError, match="shows no key of this stack"):
        check(there, state, adoptBucket=True)
    check({"use.html": there["index.html"], "index.html": page(OURS)}, state)


def test_endpoint_and_bucket_do_not_change_together() -> None:
    with pytest.raises(SettingError) as refused:
        check({}, bucket="another", adoptBucket=True)
    assert str(refused.value).startswith('bucket is "another": endpoint is another one, too, and')
    assert "a bucket nix-cache of somebody else's, which would be deleted" in str(refused.value)


def test_a_bucket_that_has_still_to_go_is_deleted_on_no_other_server() -> None:
    going = {"type": BUCKET, "outputs": {"bucket": "another"}}
    both = Recorded({**recorded().resources, "urn:going": going})
    with pytest.raises(SettingError) as refused:
        check(OURS_THERE[0], both, adoptBucket=True)
    assert "has still to delete its bucket another at https://before:9000" in str(refused.value)


def test_users_that_were_made_on_another_server_are_not_looked_for_here() -> None:
    with pytest.raises(SettingError, match="users or policies at https://before:9000"):
        check(None, recorded(bucket=None, user="nix-cache-one"))
    # What has no name on a server, such as a key, is the stack's wherever it is deployed.
    check(None, recorded(bucket=None))


def test_the_server_of_the_last_deployment_is_asked_nothing() -> None:
    check({"use.html": page(THEIRS)}, endpoint="https://before:9000")
    check({"use.html": page(THEIRS)}, Recorded({}))


def test_a_destroy_does_not_count_what_somebody_elses_bucket_holds() -> None:
    settings = parse(configuration(protect=False))
    refusal = removal.refusal(settings, OtherServer.holding(THEIRS_THERE[0]), recorded())
    assert refusal is not None
    assert "shows no key of this stack" in refusal
