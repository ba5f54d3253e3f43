"""States that have resources under names of before."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from program import former_names, placed
from program.checks.recorded import Recorded
from program.settings.builders import BuilderSettings

ACCESS = "nixcache:index:BuilderAccess$minio:index"
CACHE = "nixcache:index:BinaryCache$minio:index"
CREDENTIALS = "nixcache:index:BuilderCredentials"
PUSH = "nixcache:index:ClosurePush$command:remote:Command"
FORMER: dict[str, dict[str, Any]] = {
    f"{CACHE}/s3Bucket:S3Bucket::cache-bucket": {"bucket": "nix-cache"},
    f"{CACHE}/s3BucketPolicy:S3BucketPolicy::cache-download": {"bucket": "nix-cache"},
    f"{CACHE}/ilmPolicy:IlmPolicy::cache-retention": {"bucket": "nix-cache"},
    f"{CACHE}/s3Object:S3Object::cache-index.html": {
        "bucketName": "nix-cache",
        "objectName": "index.html",
    },
    "nixcache:index:ClosurePush$minio:index/s3Object:S3Object::builders-push.pyz": {
        "bucketName": "nix-cache",
        "objectName": "_nixcache/push.pyz",
    },
    "nixcache:index:Pins$minio:index/s3Object:S3Object::pin-live": {
        "bucketName": "nix-cache",
        "objectName": "_nixcache/pins/live",
    },
    f"{ACCESS}/iamPolicy:IamPolicy::builders-policy": {"name": "nix-cache-write"},
    f"{ACCESS}/iamUser:IamUser::far-user": {"name": "nixbuilder"},
    f"{ACCESS}/iamUserPolicyAttachment:IamUserPolicyAttachment::far-attachment": {
        "userName": "nixbuilder",
        "policyName": "nix-cache-write",
    },
    f"{PUSH}::far-command": {"create": "push"},
    "pulumi-python:dynamic/nixcache:Closure::far": {"links": ["/run/current-system"]},
    f"{CREDENTIALS}$command:remote:Command::far-files": {
        "triggers": ["10.0.0.7", "/var/lib/nix"],
        "connection": {"host": "10.0.0.7", "port": 2201.0},
    },
    f"{CREDENTIALS}$command:local:Command::here-files": {"triggers": ["", "/var/lib/nix"]},
}
NOW = {
    ("minio:index/s3Bucket:S3Bucket", "nix-cache"): "cache-bucket",
    ("minio:index/s3BucketPolicy:S3BucketPolicy", "nix-cache"): "cache-download",
    ("minio:index/ilmPolicy:IlmPolicy", "nix-cache"): "cache-retention",
    ("minio:index/s3Object:S3Object", "nix-cache/index.html"): "cache-index.html",
    ("minio:index/s3Object:S3Object", "nix-cache/_nixcache/push.pyz"): "builders-push.pyz",
    ("minio:index/s3Object:S3Object", "nix-cache/_nixcache/pins/live"): "pin-live",
    ("minio:index/iamPolicy:IamPolicy", "nix-cache-write"): "builders-policy",
    ("minio:index/iamUser:IamUser", "nixbuilder"): "far-user",
    (
        "minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment",
        "nixbuilder/nix-cache-write",
    ): "far-attachment",
    ("command:remote:Command", "nixbuilder-push"): "far-command",
    ("pulumi-python:dynamic/nixcache:Closure", "nixbuilder"): "far",
    ("command:remote:Command", "10.0.0.7/var/lib/nix-files"): "far-files",
    (CREDENTIALS, "10.0.0.7/var/lib/nix"): "far",
    ("command:local:Command", "/var/lib/nix-files"): "here-files",
    (CREDENTIALS, "/var/lib/nix"): "here",
}
DIRECTORY = "/var/lib/nix"
HERE = BuilderSettings(
    name="here", s3_user="here", closures=(), local=True, credentials_directory=DIRECTORY
)


def at(port: int, key: str | None = None, name: str = "far") -> BuilderSettings:
    """Return a builder behind the one host name."""
    return BuilderSettings(
        name=name,
        s3_user=name,
        closures=(),
        host="10.0.0.7",
        port=port,
        host_key=key,
        credentials_directory=DIRECTORY,
    )


def files(*machines: tuple[str, int, str | None]) -> dict[str, dict[str, Any]]:
    """Return the files that a state has on machines behind it: name, port and host key."""
    return {
        f"{CREDENTIALS}$command:remote:Command::{name}-files": {
            "triggers": ["10.0.0.7", DIRECTORY],
            "connection": {"host": "10.0.0.7", "port": float(port), "hostKey": key},
        }
        for name, port, key in machines
    }


def state(resources: dict[str, dict[str, Any]]) -> Recorded:
    return Recorded(
        {
            f"urn:pulumi:test::nixcache::{name}": {"type": "", "outputs": outputs}
            for name, outputs in resources.items()
        }
    )


def test_resources_are_found_by_what_they_are() -> None:
    assert former_names.find(state(FORMER), [HERE, at(2201)]) == NOW


def test_a_state_of_todays_names_has_no_former_ones() -> None:
    today: dict[str, dict[str, Any]] = {
        f"{CACHE}/s3Bucket:S3Bucket::cache-bucket": {"bucket": "cache-bucket"},
        f"{CACHE}/ilmPolicy:IlmPolicy::nix-cache": {"bucket": "nix-cache"},
        f"{CACHE}/s3Object:S3Object::nix-cache/use.html": {
            "bucketName": "nix-cache",
            "objectName": "use.html",
        },
        f"{ACCESS}/iamUser:IamUser::nixbuilder": {"name": "nixbuilder"},
        f"{ACCESS}/iamUser:IamUser::nixbuilder-user": {"name": "nixbuilder-user"},
        f"{PUSH}::nixbuilder-push": {"create": "push"},
        "pulumi-python:dynamic/nixcache:Closure::nixbuilder": {"links": ["/run/current-system"]},
    }
    assert not former_names.find(state(today), [])


ONE, TWO = (f"10.0.0.7:{port}{DIRECTORY}" for port in (1, 2))
ALONE = f"10.0.0.7{DIRECTORY}"


@pytest.mark.parametrize(
    ("known", "wanted", "former"),
    [
        pytest.param(
            [(ONE, 1, "a"), (TWO, 2, "b")], [at(2, "b")], {ALONE: TWO}, id="one of two leaves"
        ),
        pytest.param(
            [(ONE, 1, None), (TWO, 2, None)], [at(2)], {ALONE: TWO}, id="told apart by ports alone"
        ),
        pytest.param(
            [(ONE, 1, "a"), (TWO, 2, "b")], [at(1, "b")], {ALONE: TWO}, id="a key tells more"
        ),
        pytest.param([(ONE, 1, "a"), (TWO, 2, "b")], [at(3, "c")], {}, id="both leave"),
        pytest.param([("far", 1, None), ("near", 1, None)], [at(1)], {}, id="not to be told apart"),
        pytest.param(
            [(ALONE, 2, "b")],
            [at(1, "a", "new"), at(2, "b")],
            {TWO: ALONE},
            id="another comes beside it",
        ),
        pytest.param([(ALONE, 1, "a")], [at(2, "b")], {}, id="a name that stays"),
        pytest.param(
            [(ONE, 1, "a"), (TWO, 2, "b")],
            [at(2, "a", "new"), at(1, "b")],
            {},
            id="two that exchange their ports",
        ),
    ],
)
def test_files_behind_one_host_name_stay_whose_they_are(
    known: list[tuple[str, int, str | None]],
    wanted: list[BuilderSettings],
    former: dict[str, str],
) -> None:
    for order in permutations(known):
        found = former_names.find(state(files(*order)), wanted)
        assert {now: then for (kind, now), then in found.items() if kind == CREDENTIALS} == former
        assert len(found) == 2 * len(former)


def test_a_connection_is_never_shown() -> None:
    (one,) = placed.in_state(state(files((ONE, 1, "secret-of-the-state"))))
    assert one.name == f"{ONE}-files"
    assert "secret-of-the-state" not in repr(one)
