"""The rows of the plugin `minio`, each on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from io import BytesIO

import urllib3
from minio import Minio, MinioAdmin
from minio.commonconfig import Filter
from minio.credentials.providers import StaticProvider
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from tests.plugins.resource_rows import Row
from toolbox.minio_server import MinioServer
from toolbox.plugins.property_values import UNKNOWN, Properties

OPERATOR = ("operator-of-nothing", "a-password-of-nobody")
"""A user without any permission, and its password."""


SETTINGS: dict[str, Properties] = {
    "as they should be": {},
    "no server": {"minioServer": None},
    "a scheme": {"minioServer": "https://127.0.0.1:9000"},
    "a path": {"minioServer": "127.0.0.1:9000/minio"},
    "no such CA file": {"minioCacertFile": "/no/such/file"},
    "no such CA file, and no TLS": {"minioCacertFile": "/no/such/file", "minioSsl": "false"},
    "a CA file that is none": {"minioCacertFile": __file__},
    "a switch that is none": {"minioSsl": "perhaps"},
    "an unknown one": {"nonsense": "x"},
    "no password": {"minioPassword": None},
}
"""Changes of the provider's own settings."""


def download(bucket: str, *actions: str) -> str:
    """A bucket policy that permits `actions` to everybody."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": list(actions),
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def permission(*actions: str) -> str:
    """A user's policy that permits `actions` on the bucket `things`."""
    statement = {
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": ["arn:aws:s3:::things", "arn:aws:s3:::things/*"],
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def settings(server: MinioServer) -> Properties:
    """The provider's settings for `server` as its root user."""
    return {
        "version": "0.17.1",
        "minioServer": server.endpoint.removeprefix("https://"),
        "minioUser": server.root_user,
        "minioPassword": server.root_password,
        "minioSsl": "true",
        "minioCacertFile": str(server.ca_file),
    }


def rows(server: MinioServer) -> list[Row]:
    """All rows; their drifts act on `server` as its root user."""
    endpoint = server.endpoint.removeprefix("https://")
    http = urllib3.PoolManager(ca_certs=str(server.ca_file))
    root = StaticProvider(server.root_user, server.root_password)
    s3 = Minio(endpoint, credentials=root, http_client=http)
    admin = MinioAdmin(endpoint=endpoint, credentials=root, http_client=http)

    def put(
        bucket: str, name: str, content: bytes, kind: str = "text/plain"
    ) -> Callable[[], object]:
        return lambda: s3.put_object(bucket, name, BytesIO(content), len(content), kind)

    def lifecycle(bucket: str, *rules: Rule) -> Callable[[], object]:
        return lambda: s3.set_bucket_lifecycle(bucket, LifecycleConfig(list(rules)))

    def expiring(id: str, days: int, prefix: str = "") -> Rule:
        return Rule("Enabled", Filter(prefix=prefix), id, expiration=Expiration(days=days))

    def nobody() -> None:
        admin.user_add(*OPERATOR)

    def bucket() -> None:
        if not s3.bucket_exists("things"):
            s3.make_bucket("things")

    far_off = Expiration(date=datetime(2035, 5, 6, tzinfo=timezone.utc))
    return [
        Row(
            "minio:index/s3Bucket:S3Bucket",
            {"bucket": "things", "acl": "private"},
            before=nobody,
            changes={
                "acl left out": {"acl": None},
                "another name": {"bucket": "other-things"},
            },
            unknowns=("bucket",),
            refused={
                "unknown argument": {"bukcet": "things"},
                "acl of a wrong type": {"acl": 5},
                "acl for everybody": {"acl": "public-read"},
                "forceDestroy": {"forceDestroy": True},
                "objectLocking": {"objectLocking": True},
                "quota": {"quota": 1000000},
                "bucketPrefix": {"bucket": None, "bucketPrefix": "x-"},
                "no name": {"bucket": None},
                "computed argument": {"arn": "x"},
            },
            drifts={
                "made public": lambda: s3.set_bucket_policy(
                    "things", download("things", "s3:GetObject")
                ),
                "deleted": lambda: s3.remove_bucket("things"),
            },
            imports=("things", "no-such-things"),
            failing={
                "exists already": (lambda: s3.make_bucket("things"), {}),
                "bad name": (lambda: None, {"bucket": "Bad_Name"}),
            },
        ),
        Row(
            "minio:index/s3BucketPolicy:S3BucketPolicy",
            {"bucket": "things", "policy": download("things", "s3:GetObject")},
            before=bucket,
            changes={
                "policy spelled otherwise": {
                    "policy": download("things", "s3:GetObject")
                    .replace(" ", "")
                    .replace('["s3:GetObject"]', '"s3:GetObject"')
                },
                "another policy": {
                    "policy": download("things", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")
                },
                "another bucket": {"bucket": "other-things"},
            },
            unknowns=("bucket", "policy"),
            refused={
                "unknown argument": {"polciy": "{}"},
                "policy that is no JSON": {"policy": "{x"},
                "policy that is no object": {"policy": "[]"},
                "no policy": {"policy": None},
                "no bucket": {"bucket": None},
            },
            drifts={
                "changed": lambda: s3.set_bucket_policy(
                    "things", download("things", "s3:PutObject")
                ),
                "deleted": lambda: s3.delete_bucket_policy("things"),
            },
            imports=("things", "no-such-things"),
            failing={"refused by the server": (lambda: None, {"policy": '{"Version":"1"}'})},
        ),
        Row(
            "minio:index/ilmPolicy:IlmPolicy",
            {
                "bucket": "things",
                "rules": [
                    {"id": "a", "expiration": "7d", "filter": "a/"},
                    {"id": "b", "expiration": "8d"},
                ],
            },
            before=bucket,
            changes={
                "expiration": {
                    "rules": [
                        {"id": "a", "expiration": "9d", "filter": "a/"},
                        {"id": "b", "expiration": "8d"},
                    ]
                },
                "another rule": {
                    "rules": [
                        {"id": "a", "expiration": "7d", "filter": "a/"},
                        {"id": "b", "expiration": "8d"},
                        {"id": "c", "expiration": "2035-05-06", "filter": "c/"},
                    ]
                },
                "one rule less": {"rules": [{"id": "a", "expiration": "7d", "filter": "a/"}]},
                "a rule with tags": {
                    "rules": [
                        {"id": "a", "expiration": "7d", "filter": "a/", "tags": {"k": "v"}},
                        {"id": "b", "expiration": "8d"},
                    ]
                },
                "old versions": {
                    "rules": [
                        {"id": "a", "noncurrentVersionExpirationDays": 3},
                        {"id": "b", "expiration": "DeleteMarker", "filter": "b/"},
                    ]
                },
                "days spelled otherwise": {"rules": [{"id": "a", "expiration": "007days"}]},
                "two rules of one id": {
                    "rules": [
                        {"id": "a", "expiration": "7d", "filter": "x"},
                        {"id": "a", "expiration": "7d", "filter": "y"},
                    ]
                },
                "another bucket": {"bucket": "other-things"},
            },
            unknowns=("bucket", "rules"),
            refused={
                "unknown argument": {"ruels": []},
                "unknown argument in a rule": {
                    "rules": [{"id": "a", "expiration": "7d", "prefix": "x"}]
                },
                "no days": {"rules": [{"id": "a", "expiration": "0d"}]},
                "no expiration at all": {"rules": [{"id": "a", "expiration": "soon"}]},
                "no old days": {"rules": [{"id": "a", "noncurrentVersionExpirationDays": 0}]},
                "no id": {"rules": [{"expiration": "7d"}]},
                "no rules": {"rules": []},
                "rules left out": {"rules": None},
                "unknown expiration": {"rules": [{"id": "a", "expiration": UNKNOWN}]},
            },
            drifts={
                "changed": lifecycle("things", expiring("a", 3, "a/"), expiring("b", 8)),
                "one more": lifecycle(
                    "things",
                    expiring("a", 7, "a/"),
                    expiring("b", 8),
                    Rule("Disabled", Filter(prefix="z"), "z", expiration=far_off),
                ),
                "one less": lifecycle("things", expiring("b", 8)),
                "deleted": lambda: s3.delete_bucket_lifecycle("things"),
            },
            imports=("things", "no-such-things"),
        ),
        Row(
            "minio:index/s3Object:S3Object",
            {
                "bucketName": "things",
                "objectName": "dir/thing",
                "content": "hello\n",
                "contentType": "text/x-nix-cache-info",
            },
            before=bucket,
            changes={
                "content": {"content": "there\n"},
                "content in base64": {"content": None, "contentBase64": "aGk="},
                "contentType": {"contentType": "text/plain"},
                "contentType left out": {"contentType": None},
                "etag": {"etag": "c5d5f49ca191688ff7304429649c0853-1"},
                "no content": {"content": ""},
                "another bucket": {"bucketName": "other-things"},
                "another name": {"objectName": "other-thing"},
            },
            unknowns=("bucketName", "content", "contentType", "etag"),
            refused={
                "unknown argument": {"contents": "x"},
                "content twice": {"contentBase64": "aGk="},
                "source": {"content": None, "source": "file"},
                "no bucket": {"bucketName": None},
                "no name": {"objectName": None},
            },
            drifts={
                "content changed": put("things", "dir/thing", b"drift", "text/x-nix-cache-info"),
                "contentType changed": put("things", "dir/thing", b"hello\n"),
                "deleted": lambda: s3.remove_object("things", "dir/thing"),
            },
            imports=("dir/thing",),
            failing={
                "no such bucket": (lambda: None, {"bucketName": "no-such-things"}),
                "no content": (lambda: None, {"content": None}),
                "no base64": (lambda: None, {"content": None, "contentBase64": "%"}),
            },
        ),
        Row(
            "minio:index/iamUser:IamUser",
            {"name": "somebody"},
            changes={
                "disableUser": {"disableUser": True},
                "tags": {"tags": {"a": "b"}},
                "secret": {"secret": "a-secret-of-their-own"},
                "updateSecret": {"updateSecret": True},
                "another name": {"name": "somebody-else"},
            },
            unknowns=("name", "secret"),
            refused={
                "unknown argument": {"user": "x"},
                "bad name": {"name": "some body"},
                "forceDestroy": {"forceDestroy": True},
                "name left out": {"name": None},
            },
            drifts={
                "disabled": lambda: admin.user_disable("somebody"),
                "deleted": lambda: admin.user_remove("somebody"),
            },
            imports=("somebody", "nobody"),
            failing={"secret too short": (lambda: None, {"secret": "x"})},
        ),
        Row(
            "minio:index/iamPolicy:IamPolicy",
            {"name": "writing", "policy": permission("s3:PutObject", "s3:GetObject")},
            changes={
                "policy spelled otherwise": {
                    "policy": permission("s3:GetObject", "s3:PutObject").replace(" ", "")
                },
                "another policy": {"policy": permission("s3:GetObject")},
                "another name": {"name": "writing-more"},
            },
            unknowns=("name", "policy"),
            refused={
                "unknown argument": {"statement": "x"},
                "policy that is no JSON": {"policy": "{x"},
                "no policy": {"policy": None},
                "bad name": {"name": "a/b"},
                "name too long": {"name": "a" * 97},
                "namePrefix": {"name": None, "namePrefix": "w"},
                "name left out": {"name": None},
            },
            drifts={
                "changed": lambda: admin.policy_add(
                    "writing", policy=json.loads(permission("s3:DeleteObject"))
                ),
            },
            imports=("writing", "no-such-policy"),
            failing={"refused by the server": (lambda: None, {"policy": '{"Version":"1"}'})},
        ),
        Row(
            "minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment",
            {"userName": "member", "policyName": "readonly"},
            before=lambda: admin.user_add("member", "a-secret-of-theirs"),
            changes={
                "another policy": {"policyName": "writeonly"},
                "another user": {"userName": "somebody"},
            },
            unknowns=("userName", "policyName"),
            refused={
                "unknown argument": {"groupName": "x"},
                "no user": {"userName": None},
                "no policy": {"policyName": None},
                "bad user": {"userName": "some body"},
            },
            drifts={
                "another attached too": lambda: admin.policy_set("readonly,writeonly", "member"),
                "detached": lambda: admin.policy_set("writeonly", "member"),
            },
            imports=("member/readonly", "member/diagnostics", "member"),
            failing={
                "no such user": (lambda: None, {"userName": "nobody"}),
                "no such policy": (lambda: None, {"policyName": "no-such-policy"}),
            },
        ),
    ]
