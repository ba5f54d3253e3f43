"""BinaryCache: what it declares, as the engine would be told."""

from __future__ import annotations

import json

import pytest

from components.binary_cache import BinaryCache, BinaryCacheArgs, anonymous_policy, nix_cache_info
from tests.unit.recording_mocks import RecordingMocks, settled, use_recording_mocks


@pytest.fixture
def engine() -> RecordingMocks:
    """An engine that records."""
    return use_recording_mocks()


def test_a_cache_is_bucket_download_policy_lifecycle_and_nix_cache_info(
    engine: RecordingMocks,
) -> None:
    settled(lambda: BinaryCache("cache", BinaryCacheArgs(bucket="nix-cache")).bucket)
    assert sorted(engine.types()) == [
        "minio:index/ilmPolicy:IlmPolicy",
        "minio:index/s3Bucket:S3Bucket",
        "minio:index/s3BucketPolicy:S3BucketPolicy",
        "minio:index/s3Object:S3Object",
        "nixcache:index:BinaryCache",
    ]
    assert engine.inputs("minio:index/s3Bucket:S3Bucket") == {
        "bucket": "nix-cache",
        "acl": "private",
    }
    assert engine.inputs("minio:index/s3Object:S3Object") == {
        "bucketName": "nix-cache",
        "objectName": "nix-cache-info",
        "content": "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n",
        "contentType": "text/x-nix-cache-info",
        # What the server itself stored for this content.
        "etag": "903abbf2b4fe2148b74314d1508c0473-1",
    }


def test_children_are_named_after_the_bucket(engine: RecordingMocks) -> None:
    settled(lambda: BinaryCache("cache", BinaryCacheArgs(bucket="nix-cache")).bucket)
    names = [name for typ, name, _ in engine.resources if typ.startswith("minio:")]
    assert sorted(names) == [*["nix-cache"] * 3, "nix-cache/nix-cache-info"]


@pytest.mark.parametrize(
    ("listing", "actions"), [(False, ["s3:GetObject"]), (True, ["s3:GetObject", "s3:ListBucket"])]
)
def test_everyone_may_read_and_only_where_asked_list(
    engine: RecordingMocks, listing: bool, actions: list[str]
) -> None:
    args = BinaryCacheArgs(bucket="nix-cache", anonymous_listing=listing)
    settled(lambda: BinaryCache("cache", args).bucket)
    policy = json.loads(engine.inputs("minio:index/s3BucketPolicy:S3BucketPolicy")["policy"])
    assert [statement["Action"] for statement in policy["Statement"]] == [[a] for a in actions]
    assert {json.dumps(s["Principal"]) for s in policy["Statement"]} == {'{"AWS": ["*"]}'}


@pytest.mark.parametrize("listing", [False, True])
def test_a_private_caches_policy_allows_nothing_and_is_not_empty(listing: bool) -> None:
    (statement,) = json.loads(anonymous_policy("nix-cache", False, listing))["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Resource"] == ["arn:aws:s3:::nix-cache/_nixcache/nobody"]


def test_the_lifecycle_has_the_days_in_the_one_form_that_shows_no_drift(
    engine: RecordingMocks,
) -> None:
    args = BinaryCacheArgs(bucket="nix-cache", retention_days=30, grace_days=2)
    settled(lambda: BinaryCache("cache", args).bucket)
    rules = engine.inputs("minio:index/ilmPolicy:IlmPolicy")["rules"]
    assert {rule["expiration"] for rule in rules if rule["id"].startswith("narinfo")} == {"30d"}
    assert {rule["expiration"] for rule in rules if rule["filter"] == "nar/"} == {"32d"}


def test_without_a_retention_there_is_no_lifecycle(engine: RecordingMocks) -> None:
    args = BinaryCacheArgs(bucket="nix-cache", retention_days=None)
    settled(lambda: BinaryCache("cache", args).bucket)
    assert "minio:index/ilmPolicy:IlmPolicy" not in engine.types()


def test_nix_cache_info_says_what_it_is_told() -> None:
    assert nix_cache_info(False, 30) == ("StoreDir: /nix/store\nWantMassQuery: 0\nPriority: 30\n")
