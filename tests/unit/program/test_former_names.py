"""States that have resources under names of before."""

from __future__ import annotations

from typing import Any

from program import former_names
from program.checks.recorded import Recorded

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
    ("command:remote:Command", "10.0.0.7:2201/var/lib/nix-files"): "far-files",
    (CREDENTIALS, "10.0.0.7/var/lib/nix"): "far",
    (CREDENTIALS, "10.0.0.7:2201/var/lib/nix"): "far",
    ("command:local:Command", "/var/lib/nix-files"): "here-files",
    (CREDENTIALS, "/var/lib/nix"): "here",
}


def state(resources: dict[str, dict[str, Any]]) -> Recorded:
    return Recorded(
        {
            f"urn:pulumi:test::nixcache::{name}": {"type": "", "outputs": outputs}
            for name, outputs in resources.items()
        }
    )


def test_resources_are_found_by_what_they_are() -> None:
    assert former_names.find(state(FORMER)) == NOW


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
    assert not former_names.find(state(today))
