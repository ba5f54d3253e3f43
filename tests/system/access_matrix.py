"""Every call that S3 and MinIO have, and who may make it: what the live server is compared with.

A row's `{role}`, `{upload}` and the like are filled in for who asks, so that nobody trips over what
another one has done. Rows of MinIO's admin API have paths below `/minio/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

ANYBODY = "anonymous"
READER = "reader"
BUILDER = "builder"
STRANGER = "stranger"
"""A user that has the builders' policy, and is no builder (any more)."""
OUTSIDER = "outsider"
"""A builder of another stack on the same server."""
DEPLOYER = "deployer"

PUBLIC = (ANYBODY, BUILDER, STRANGER, OUTSIDER, DEPLOYER)
PRIVATE = (ANYBODY, READER, BUILDER, STRANGER, OUTSIDER, DEPLOYER)
USERS = frozenset({READER, BUILDER, STRANGER, OUTSIDER, DEPLOYER})

YES, NO, ABSENT = "yes", "no", "-"
"""It may; the server refuses it; the server has no such call, whoever asks."""


@dataclass(frozen=True)
class Call:
    """One call, and who may make it beside whom the deployer's policy names."""

    name: str
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    action: str = ""
    """What the deployer's policy calls it; empty where nothing there can allow it."""
    may: frozenset[str] = frozenset()
    in_public: frozenset[str] = frozenset()
    """Who else may in a public cache."""
    absent: bool = False
    """Whether the server has no such call, and says so to whoever might make it."""
    sealed: bool = False
    """Whether the body is encrypted with the user's secret, as MinIO's admin API has secrets."""


def obj(name: str, method: str, key: str = "log/{role}.drv", **more: object) -> Call:
    """Return a call about an object of the cache."""
    return Call(name, method, f"/{{bucket}}/{key}", **more)  # type: ignore[arg-type]


def bucket(name: str, method: str, sub: str = "", **more: object) -> Call:
    """Return a call about the cache's bucket, or one of its settings."""
    query = {sub: ""} if sub else more.pop("query", {})
    return Call(name, method, "/{bucket}", query=query, **more)  # type: ignore[arg-type]


def admin(name: str, method: str, command: str, **more: object) -> Call:
    """Return a call of MinIO's admin API."""
    return Call(name, method, f"/minio/admin/v3/{command}", **more)  # type: ignore[arg-type]


WRITERS = frozenset({BUILDER})
READERS = frozenset({BUILDER, READER})
EVERYBODY = frozenset({ANYBODY})
OUT = frozenset({OUTSIDER})
S3 = "http://s3.amazonaws.com/doc/2006-03-01/"
TAGS = f'<Tagging xmlns="{S3}"><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>'
POLICY = '{"Version": "2012-10-17", "Statement": []}'
RETENTION = (
    "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>2099-01-01T00:00:00Z</RetainUntilDate>"
    "</Retention>"
)
OPEN = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}],
    }
)
COPY = {"x-amz-copy-source": "/{bucket}/log/{role}.drv", "x-amz-metadata-directive": "REPLACE"}

OBJECTS = (
    obj("GetObject", "GET", action="s3:GetObject", may=READERS, in_public=EVERYBODY),
    obj("HeadObject", "HEAD", action="s3:GetObject", may=READERS, in_public=EVERYBODY),
    obj(
        "GetObject, a range",
        "GET",
        headers={"range": "bytes=0-0"},
        action="s3:GetObject",
        may=READERS,
        in_public=EVERYBODY,
    ),
    obj(
        "GetObject, a version",
        "GET",
        query={"versionId": "null"},
        action="s3:GetObject",
        may=READERS,
        in_public=EVERYBODY,
    ),
    obj(
        "GetObjectAttributes",
        "GET",
        query={"attributes": ""},
        headers={"x-amz-object-attributes": "ETag"},
        action="s3:GetObjectAttributes",
    ),
    obj("GetObjectTagging", "GET", query={"tagging": ""}, action="s3:GetObjectTagging"),
    obj("PutObjectTagging", "PUT", query={"tagging": ""}, body=TAGS, action="s3:PutObjectTagging"),
    obj("DeleteObjectTagging", "DELETE", query={"tagging": ""}, action="s3:DeleteObjectTagging"),
    obj("GetObjectAcl", "GET", query={"acl": ""}, action="s3:GetBucketPolicy"),
    obj("PutObjectAcl", "PUT", query={"acl": ""}, action="s3:PutBucketPolicy"),
    obj("GetObjectRetention", "GET", query={"retention": ""}),
    obj(
        "PutObjectRetention",
        "PUT",
        query={"retention": ""},
        body=RETENTION,
        absent=True,
        action="s3:PutObject",
        may=USERS | EVERYBODY,
    ),
    obj("GetObjectLegalHold", "GET", query={"legal-hold": ""}),
    obj("PutObjectLegalHold", "PUT", query={"legal-hold": ""}),
    obj(
        "SelectObjectContent",
        "POST",
        query={"select": "", "select-type": "2"},
        body="<x/>",
        action="s3:GetObject",
        may=READERS,
        in_public=EVERYBODY,
    ),
    obj("RestoreObject", "POST", query={"restore": ""}),
    obj("PutObject", "PUT", body="x", action="s3:PutObject", may=WRITERS),
    obj(
        "PutObject with tags",
        "PUT",
        body="x",
        headers={"x-amz-tagging": "a=b"},
        action="s3:PutObject",
        may=WRITERS,
    ),
    obj(
        "PutObject, locked",
        "PUT",
        body="x",
        headers={
            "x-amz-object-lock-mode": "COMPLIANCE",
            "x-amz-object-lock-retain-until-date": "2099-01-01T00:00:00Z",
        },
        action="s3:PutObject",
        may=WRITERS,
        absent=True,
    ),
    obj(
        # MinIO asks for no right beside PutObject's: docs/security.md says what follows.
        "PutObject with a time of its own",
        "PUT",
        body="x",
        headers={
            "x-minio-source-mtime": "2036-01-01T00:00:00.000000000Z",
            "x-minio-source-replication-request": "true",
        },
        action="s3:PutObject",
        may=WRITERS,
    ),
    obj("CopyObject onto itself", "PUT", headers=COPY, action="s3:PutObject", may=WRITERS),
    obj(
        "CopyObject out of another bucket",
        "PUT",
        headers={**COPY, "x-amz-copy-source": "/other/secret"},
    ),
    obj(
        "CreateMultipartUpload",
        "POST",
        query={"uploads": ""},
        action="s3:PutObject",
        may=WRITERS,
    ),
    obj(
        "UploadPart",
        "PUT",
        query={"partNumber": "1", "uploadId": "{upload}"},
        body="x",
        action="s3:PutObject",
        may=WRITERS,
    ),
    obj(
        "UploadPartCopy",
        "PUT",
        query={"partNumber": "1", "uploadId": "{upload}"},
        headers={"x-amz-copy-source": "/{bucket}/log/{role}.drv"},
        action="s3:PutObject",
        may=WRITERS,
    ),
    obj(
        "UploadPartCopy out of another bucket",
        "PUT",
        query={"partNumber": "1", "uploadId": "{upload}"},
        headers={"x-amz-copy-source": "/other/secret"},
    ),
    obj(
        "ListParts",
        "GET",
        query={"uploadId": "{upload}"},
        action="s3:ListMultipartUploadParts",
        may=WRITERS,
    ),
    obj(
        "CompleteMultipartUpload",
        "POST",
        query={"uploadId": "{upload}"},
        body="<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"
        "9dd4e461268c8034f5c8564e155c67a6</ETag></Part></CompleteMultipartUpload>",
        action="s3:PutObject",
        may=WRITERS,
    ),
    obj(
        "AbortMultipartUpload",
        "DELETE",
        query={"uploadId": "{spare}"},
        action="s3:AbortMultipartUpload",
        may=WRITERS,
    ),
    obj("DeleteObject", "DELETE", "log/{role}-1.drv", action="s3:DeleteObject"),
    obj(
        "DeleteObject, a version",
        "DELETE",
        "log/{role}-2.drv",
        query={"versionId": "null"},
        action="s3:DeleteObject",
    ),
    obj(
        "DeleteObject, whatever begins like it",
        "DELETE",
        "log/{role}-3.drv",
        headers={"x-minio-force-delete": "true"},
        action="s3:DeleteObject",
    ),
    bucket(
        "DeleteObjects",
        "POST",
        "delete",
        body="<Delete><Object><Key>log/{role}-4.drv</Key></Object></Delete>",
        action="s3:DeleteObject",
    ),
    *(
        obj(f"PutObject {key}", "PUT", key, body="{role}", action="s3:PutObject")
        for key in (
            "nix-cache-info",
            "use.html",
            "_nixcache/push.pyz",
            "_nixcache/pins/{role}",
            "_nixcache/status/another",
            "_nixcache/status/another/more",
            "_nixcache/x",
            # By names of their folders, objects hide all that is in those from listings.
            "_nixcache",
            "nar",
            "log",
            "{role}.txt",
        )
    ),
    obj(
        "PutObject _nixcache/status/, one's own",
        "PUT",
        "_nixcache/status/{user}",
        body="x",
        action="s3:PutObject",
        may=WRITERS,
    ),
    obj(
        "CopyObject onto nix-cache-info",
        "PUT",
        "nix-cache-info",
        headers=COPY,
        action="s3:PutObject",
    ),
    obj(
        "CreateMultipartUpload of the push",
        "POST",
        "_nixcache/push.pyz",
        query={"uploads": ""},
        action="s3:PutObject",
    ),
    obj("DeleteObject nix-cache-info", "DELETE", "nix-cache-info", action="s3:DeleteObject"),
    obj(
        "GetObject _nixcache/push.pyz",
        "GET",
        "_nixcache/push.pyz",
        action="s3:GetObject",
        may=READERS,
        in_public=EVERYBODY,
    ),
)
"""What is done with one object."""

SETTINGS = (
    bucket("HeadBucket", "HEAD", action="s3:ListBucket", may=WRITERS),
    bucket("ListObjects", "GET", action="s3:ListBucket", may=WRITERS),
    bucket("ListObjectsV2", "GET", query={"list-type": "2"}, action="s3:ListBucket", may=WRITERS),
    bucket(
        "ListObjectsV2, a folder",
        "GET",
        query={"list-type": "2", "prefix": "log/"},
        action="s3:ListBucket",
        may=WRITERS,
    ),
    bucket(
        "ListObjectsV2 with metadata",
        "GET",
        query={"list-type": "2", "metadata": "true"},
        action="s3:ListBucket",
        may=WRITERS,
    ),
    bucket("ListObjectVersions", "GET", "versions", action="s3:ListBucket", may=WRITERS),
    bucket(
        "ListMultipartUploads",
        "GET",
        query={"uploads": "", "prefix": "log/"},
        action="s3:ListBucketMultipartUploads",
        may=WRITERS,
    ),
    bucket("GetBucketLocation", "GET", "location", action="s3:GetBucketLocation", may=WRITERS),
    bucket("GetBucketPolicy", "GET", "policy", action="s3:GetBucketPolicy"),
    bucket("PutBucketPolicy", "PUT", "policy", body=POLICY, action="s3:PutBucketPolicy"),
    bucket("DeleteBucketPolicy", "DELETE", "policy", action="s3:DeleteBucketPolicy"),
    bucket("GetBucketPolicyStatus", "GET", "policyStatus"),
    bucket("GetBucketLifecycle", "GET", "lifecycle", action="s3:GetLifecycleConfiguration"),
    bucket(
        "PutBucketLifecycle",
        "PUT",
        "lifecycle",
        action="s3:PutLifecycleConfiguration",
        body="<LifecycleConfiguration><Rule><ID>{role}</ID><Status>Enabled</Status><Filter><Prefix>"
        "</Prefix></Filter><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>",
    ),
    bucket("DeleteBucketLifecycle", "DELETE", "lifecycle", action="s3:PutLifecycleConfiguration"),
    bucket("GetBucketVersioning", "GET", "versioning", action="s3:GetBucketVersioning"),
    bucket(
        "PutBucketVersioning",
        "PUT",
        "versioning",
        body="<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
    ),
    bucket("GetBucketTagging", "GET", "tagging"),
    bucket("PutBucketTagging", "PUT", "tagging", body=TAGS),
    bucket("DeleteBucketTagging", "DELETE", "tagging"),
    bucket("GetBucketEncryption", "GET", "encryption"),
    bucket("PutBucketEncryption", "PUT", "encryption"),
    bucket("DeleteBucketEncryption", "DELETE", "encryption"),
    bucket(
        "GetObjectLockConfiguration",
        "GET",
        "object-lock",
        action="s3:GetBucketObjectLockConfiguration",
    ),
    bucket("PutObjectLockConfiguration", "PUT", "object-lock"),
    bucket("GetBucketReplication", "GET", "replication", action="s3:GetReplicationConfiguration"),
    bucket("PutBucketReplication", "PUT", "replication"),
    bucket("DeleteBucketReplication", "DELETE", "replication"),
    bucket("GetBucketNotification", "GET", "notification"),
    bucket("PutBucketNotification", "PUT", "notification"),
    bucket("ListenBucketNotification", "GET", query={"events": "s3:ObjectCreated:*"}),
    bucket("GetBucketAcl", "GET", "acl", action="s3:GetBucketPolicy"),
    bucket(
        "PutBucketAcl",
        "PUT",
        "acl",
        headers={"x-amz-acl": "public-read-write"},
        action="s3:PutBucketPolicy",
        absent=True,
    ),
    bucket("GetBucketCors", "GET", "cors"),
    bucket("PutBucketCors", "PUT", "cors"),
    bucket("GetBucketWebsite", "GET", "website", action="s3:GetBucketPolicy"),
    bucket("PutBucketWebsite", "PUT", "website", action="s3:PutBucketPolicy"),
    bucket("DeleteBucketWebsite, in vain", "DELETE", "website", may=USERS | EVERYBODY),
    bucket("GetBucketLogging", "GET", "logging", action="s3:GetBucketPolicy"),
    bucket("GetBucketAccelerate", "GET", "accelerate", action="s3:GetBucketPolicy"),
    bucket("GetBucketRequestPayment", "GET", "requestPayment", action="s3:GetBucketPolicy"),
    bucket("CreateBucket, the same", "PUT", action="s3:CreateBucket"),
    bucket("DeleteBucket", "DELETE", action="s3:DeleteBucket"),
    bucket(
        "DeleteBucket with all that is in it",
        "DELETE",
        headers={"x-minio-force-delete": "true"},
        action="s3:ForceDeleteBucket",
    ),
    Call("CreateBucket, another", "PUT", "/of-{role}"),
    Call("ListBuckets, of one's own", "GET", "/", action="s3:ListBucket", may=WRITERS | OUT),
    Call("ListObjectsV2 of another bucket", "GET", "/other", {"list-type": "2"}, may=OUT),
    Call("GetObject of another bucket", "GET", "/other/secret", may=OUT),
    Call("PutObject into another bucket", "PUT", "/other/log/{role}.drv", body="x", may=OUT),
    Call("PutBucketPolicy of another bucket", "PUT", "/other", {"policy": ""}, body=POLICY),
    Call("DeleteBucket, another", "DELETE", "/other"),
)
"""What is done with a bucket."""

_ATTACH = "admin:AttachUserOrGroupPolicy"

ADMINISTRATION = (
    *(
        admin(name, method, command, query=query, body=body, action=action)
        for name, method, command, query, body, action in (
            ("AddUserToGroup", "PUT", "update-group-members", {}, "{}", ""),
            ("AttachPolicy", "POST", "idp/builtin/policy/attach", {}, "x", _ATTACH),
            ("ConsoleLog", "GET", "log", {"limit": "1"}, "", ""),
            (
                "CreatePolicy",
                "PUT",
                "add-canned-policy",
                {"name": "by-{role}"},
                OPEN,
                "admin:CreatePolicy",
            ),
            ("DataUsageInfo", "GET", "datausageinfo", {}, "", ""),
            (
                "DeletePolicy",
                "DELETE",
                "remove-canned-policy",
                {"name": "by-{role}"},
                "",
                "admin:DeletePolicy",
            ),
            (
                "DeleteUser, another",
                "DELETE",
                "remove-user",
                {"accessKey": "of-{role}"},
                "",
                "admin:DeleteUser",
            ),
            (
                "EnableUser, another",
                "PUT",
                "set-user-status",
                {"accessKey": "bystander", "status": "enabled"},
                "",
                "admin:EnableUser",
            ),
            (
                "ExportBucketMetadata",
                "GET",
                "export-bucket-metadata",
                {"bucket": "{bucket}"},
                "",
                "",
            ),
            ("ExportIAM", "GET", "export-iam", {}, "", ""),
            ("GetBucketQuota", "GET", "get-bucket-quota", {"bucket": "{bucket}"}, "", ""),
            ("GetConfig", "GET", "get-config-kv", {"key": "api"}, "", ""),
            ("GetConfigHistory", "GET", "list-config-history-kv", {"count": "1"}, "", ""),
            ("GetGroup", "GET", "group", {"group": "g"}, "", ""),
            (
                "GetPolicy",
                "GET",
                "info-canned-policy",
                {"name": "consoleAdmin"},
                "",
                "admin:GetPolicy",
            ),
            (
                "GetUser, another",
                "GET",
                "user-info",
                {"accessKey": "bystander"},
                "",
                "admin:GetUser",
            ),
            ("HealthInfo", "GET", "healthinfo", {"sysinfo": "true"}, "", ""),
            (
                "ImportBucketMetadata",
                "PUT",
                "import-bucket-metadata",
                {"bucket": "{bucket}"},
                "x",
                "",
            ),
            (
                "InspectData",
                "GET",
                "inspect-data",
                {"volume": "{bucket}", "file": "nix-cache-info/xl.meta"},
                "",
                "",
            ),
            ("KMSCreateKey", "POST", "kms/key/create", {"key-id": "k"}, "", ""),
            ("KMSStatus", "POST", "kms/status", {}, "", ""),
            ("ListBatchJobs", "GET", "list-jobs", {}, "", ""),
            ("ListGroups", "GET", "groups", {}, "", ""),
            ("ListPolicies", "GET", "list-canned-policies", {}, "", "admin:ListUserPolicies"),
            (
                "ListPolicyEntities",
                "GET",
                "idp/builtin/policy-entities",
                {"policy": "consoleAdmin"},
                "",
                "admin:ListUserPolicies",
            ),
            (
                "ListRemoteTargets",
                "GET",
                "list-remote-targets",
                {"bucket": "{bucket}", "type": "replication"},
                "",
                "",
            ),
            (
                "ListServiceAccounts, another's",
                "GET",
                "list-service-accounts",
                {"user": "bystander"},
                "",
                "",
            ),
            ("ListTiers", "GET", "tier", {}, "", ""),
            ("ListUsers", "GET", "list-users", {}, "", ""),
            ("Metrics", "GET", "metrics", {"n": "1"}, "", ""),
            ("Profile", "POST", "profile", {"profilerType": "cpu", "duration": "1s"}, "", ""),
            ("ReplicationDiff", "POST", "replication/diff", {"bucket": "{bucket}"}, "", ""),
            (
                "Restart",
                "POST",
                "service",
                {"action": "restart", "type": "2", "dry-run": "true"},
                "",
                "",
            ),
            ("ServerInfo", "GET", "info", {}, "", ""),
            (
                "SetBucketQuota",
                "PUT",
                "set-bucket-quota",
                {"bucket": "{bucket}"},
                '{"quota": 1}',
                "",
            ),
            ("SetConfig", "PUT", "set-config-kv", {}, "x", ""),
            (
                "SetPolicy",
                "PUT",
                "set-user-or-group-policy",
                {"policyName": "readonly", "userOrGroup": "bystander", "isGroup": "false"},
                "",
                _ATTACH,
            ),
            ("SetRemoteTarget", "PUT", "set-remote-target", {"bucket": "{bucket}"}, "", ""),
            ("SiteReplicationAdd", "PUT", "site-replication/add", {}, "x", ""),
            ("SiteReplicationInfo", "GET", "site-replication/info", {}, "", ""),
            ("SpeedTest", "POST", "speedtest", {"duration": "1s"}, "", ""),
            ("StartBatchJob", "POST", "start-job", {}, "x", ""),
            ("StorageInfo", "GET", "storageinfo", {}, "", ""),
            ("Trace", "GET", "trace", {"s3": "true"}, "", ""),
            ("Update", "POST", "update", {"updateURL": "", "type": "2", "dry-run": "true"}, "", ""),
        )
    ),
    # What MinIO lets every user do with itself, unless a policy forbids it.
    admin(
        "CreateUser, oneself anew",
        "PUT",
        "add-user",
        query={"accessKey": "{user}"},
        body='{"secretKey": "{secret}", "status": "enabled"}',
        sealed=True,
        action="admin:CreateUser",
        may=OUT,
    ),
    admin(
        "CreateUser, another",
        "PUT",
        "add-user",
        query={"accessKey": "of-{role}"},
        body='{"secretKey": "a-secret-of-another", "status": "enabled"}',
        sealed=True,
        action="admin:CreateUser",
    ),
    admin(
        "CreateServiceAccount",
        "PUT",
        "add-service-account",
        body='{"accessKey": "more-{role}", "secretKey": "a-secret-of-another"}',
        sealed=True,
        may=OUT | {DEPLOYER},
    ),
    admin("ListServiceAccounts, one's own", "GET", "list-service-accounts", may=USERS),
    Call("Prometheus metrics", "GET", "/minio/v2/metrics/cluster"),
    Call("Prometheus metrics, the newer", "GET", "/minio/metrics/v3/cluster/usage/buckets"),
    Call("Health", "GET", "/minio/health/live", may=USERS | EVERYBODY),
)
"""What is asked of MinIO beside S3."""

CALLS = (*OBJECTS, *SETTINGS, *ADMINISTRATION)
