"""Another server than that of the last deployment: whose the names are that the state knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone

import pytest

from formats.signing import SecretKey
from program.checks import removal, same_server
from program.checks.bucket_settings import Lifecycle
from program.checks.recorded import BUCKET, OBJECT, SERVER, SIGNING_KEY, USER, Recorded
from program.checks.s3_client import Server
from program.outputs.landing_page import landing_page
from program.outputs.machines import ClientConfiguration
from program.settings.reader import SettingError
from program.settings.stack import parse
from tests.unit.configuration import configuration
from tests.unit.program.checks.test_adoption import narinfo

OURS, THEIRS = SecretKey.generate("cache.test-1"), SecretKey.generate("cache.test-1")
INFO = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"


def page(key: SecretKey) -> bytes:
    client = ClientConfiguration("https://x/nix-cache", [str(key.public_key)], None)
    return landing_page(client, 7).encode()


def recorded(*, bucket: str | None = "nix-cache", user: str | None = None) -> Recorded:
    """Return the state of a stack that has been deployed to another server than that of now."""
    server = {"minioServer": "before:9000", "minioSsl": "true"}
    key = {"key_name": OURS.name, "public_key": str(OURS.public_key)}
    resources: dict[str, Mapping[str, object]] = {
        "urn:server": {"type": SERVER, "outputs": server},
        "urn:key": {"type": SIGNING_KEY, "outputs": key},
    }
    if bucket is not None:
        resources["urn:bucket"] = {"type": BUCKET, "outputs": {"bucket": bucket}}
        info = {"objectName": "nix-cache-info", "content": INFO.decode(), "etag": "the same"}
        resources["urn:info"] = {"type": OBJECT, "outputs": info}
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
    settings = parse(configuration(**changes))
    same_server.check(
        settings, OtherServer.holding(objects), recorded() if state is None else state
    )


OURS_THERE = [
    {"use.html": page(OURS)},
    {"use.html": page(OURS), "0.narinfo": narinfo(THEIRS)},
    {"0.narinfo": narinfo(), "1.narinfo": narinfo(THEIRS, OURS)},
]
THEIRS_THERE = [
    {"nix-cache-info": INFO, "use.html": page(THEIRS)},
    {"use.html": b"<!doctype html><title>Mine</title>"},
    {"nix-cache-info": INFO, "0.narinfo": narinfo(THEIRS)},
]
NOBODYS = [None, {}, {"nix-cache-info": INFO}, {"0.narinfo": narinfo()}]


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
    with pytest.raises(SettingError, match="nothing that this stack put into") as refused:
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


def test_endpoint_and_bucket_do_not_change_together() -> None:
    with pytest.raises(SettingError) as refused:
        check({}, bucket="another", adoptBucket=True)
    assert str(refused.value).startswith('bucket is "another": endpoint is another one, too, and')
    assert "a bucket nix-cache of somebody else's, which would be deleted" in str(refused.value)


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
    assert "nothing that this stack put into" in refusal
