"""A cache for everyone, and one for its reader alone: what is declared, and what is refused."""

from __future__ import annotations

import json

import pytest

from components.access import ReaderAccess, ReaderAccessArgs, users_of
from components.binary_cache import BinaryCache, BinaryCacheArgs
from program.outputs.machines import substituter
from program.settings.reader import SettingError
from program.settings.stack import parse
from tests.unit.configuration import HOST_KEY, configuration
from tests.unit.recording_mocks import RecordingMocks, settled, use_recording_mocks


@pytest.fixture
def engine() -> RecordingMocks:
    return use_recording_mocks()


def declare(args: BinaryCacheArgs) -> None:
    settled(lambda: BinaryCache("cache", args).bucket)


def test_a_private_cache_has_no_policy_that_lets_anyone_in(engine: RecordingMocks) -> None:
    declare(BinaryCacheArgs(bucket="nix-cache", anonymous_download=False, anonymous_listing=True))
    policy = json.loads(engine.inputs("minio:index/s3BucketPolicy:S3BucketPolicy")["policy"])
    assert [statement["Effect"] for statement in policy["Statement"]] == ["Deny"]


def test_the_page_is_an_object_whose_drift_a_refresh_sees(engine: RecordingMocks) -> None:
    declare(BinaryCacheArgs(bucket="nix-cache", landing_page="<!doctype html>…"))
    (page,) = [
        inputs for _, name, inputs in engine.resources if inputs.get("objectName") == "use.html"
    ]
    assert page["content"] == "<!doctype html>…"
    assert page["contentType"] == "text/html; charset=utf-8"
    assert page["etag"].endswith("-1")


def test_the_reader_may_read_objects_by_name_and_nothing_else(engine: RecordingMocks) -> None:
    args = ReaderAccessArgs(bucket="nix-cache", user="nix-cache-reader")
    settled(lambda: ReaderAccess("reader", args).credential.secret_access_key)
    policy = json.loads(engine.inputs("minio:index/iamPolicy:IamPolicy")["policy"])
    allowed, denied = policy["Statement"]
    assert allowed["Action"] == ["s3:GetObject"]
    assert allowed["Resource"] == ["arn:aws:s3:::nix-cache/*"]
    assert denied == {"Effect": "Deny", "Action": ["admin:*"]}
    assert users_of(json.dumps(policy), "nix-cache") == frozenset(["nix-cache-reader"])
    assert engine.inputs("minio:index/iamUser:IamUser") == {"name": "nix-cache-reader"}


def test_a_reader_that_has_a_secret_already_keeps_it(engine: RecordingMocks) -> None:
    args = ReaderAccessArgs(bucket="nix-cache", user="nix-cache-reader", secret="from-before")
    settled(lambda: ReaderAccess("reader", args).credential.secret_access_key)
    user = engine.inputs("minio:index/iamUser:IamUser")
    assert user["name"] == "nix-cache-reader"
    assert "from-before" in str(user["secret"])
    assert "from-before" not in repr(args)


def test_only_a_private_cache_has_a_reader_to_adopt() -> None:
    line = {"adoptedUserSecrets": "nix-cache-reader:a-secret-from-before"}
    adopted = parse(configuration(access="private", **line)).adopted_user_secrets
    assert adopted == {"nix-cache-reader": "a-secret-from-before"}
    with pytest.raises(SettingError, match="no builder is, nor the reader of a private cache"):
        parse(configuration(**line))


def test_clients_of_a_private_cache_read_over_s3_with_the_readers_profile() -> None:
    settings = parse(configuration(access="private", endpoint="https://s3.homelab.local:9000"))
    assert substituter(settings) == (
        "s3://nix-cache?endpoint=https://s3.homelab.local:9000&region=us-east-1"
        "&profile=nix-cache-reader"
    )


def test_clients_of_a_public_cache_read_from_the_public_url() -> None:
    settings = parse(configuration(publicUrl="https://cache.homelab.local"))
    assert substituter(settings) == "https://cache.homelab.local"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"access": "protected"}, 'access is "protected": write public or private'),
        (
            {"access": "private", "anonymousListing": True},
            "anonymousListing is true: nobody is anonymous to a private cache; write false",
        ),
        (
            {"access": "private", "writePolicy": "nix-cache-reader"},
            'writePolicy is "nix-cache-reader": this is the reader\'s policy; take another name',
        ),
        (
            {
                "access": "private",
                "builders": [{"name": "reader", "host": "builder", "hostKey": HOST_KEY}],
            },
            'builders[].s3User is "nix-cache-reader": this is the private cache\'s reader; '
            "give the builder another",
        ),
    ],
)
def test_what_a_private_cache_cannot_have_is_refused(
    changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(SettingError) as refused:
        parse(configuration(**changes))
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    "directory", ["credentials", "/", "/var/lib/", "/var/../etc", "/nix/store/x", "/a b", "/$HOME"]
)
def test_a_directory_that_cannot_hold_credentials_is_refused(directory: str) -> None:
    builder = {"name": "here", "local": True, "credentialsDirectory": directory}
    with pytest.raises(SettingError, match=r"^builders\[0\]\.credentialsDirectory is "):
        parse(configuration(builders=[builder]))


def test_credentials_are_placed_only_where_a_directory_is_named() -> None:
    directory = "/var/lib/nix-binary-cache"
    settings = parse(
        configuration(
            builders=[
                {"name": "here", "local": True, "credentialsDirectory": directory},
                {"name": "far", "host": "far", "hostKey": HOST_KEY},
            ]
        )
    )
    assert [b.credentials_directory for b in settings.builders] == [directory, None]
