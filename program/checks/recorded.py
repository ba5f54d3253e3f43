"""What the state knows of this stack: its resources, as the last deployment left them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from typing import Any

import pulumi

from formats.error import FormatError
from formats.pin import parse_pin, pin_key

SERVER = "pulumi:providers:minio"
BUCKET = "minio:index/s3Bucket:S3Bucket"
BUCKET_POLICY = "minio:index/s3BucketPolicy:S3BucketPolicy"
COMMANDS = ("command:remote:Command", "command:local:Command")
OBJECT = "minio:index/s3Object:S3Object"
USER = "minio:index/iamUser:IamUser"
POLICY = "minio:index/iamPolicy:IamPolicy"
ATTACHMENT = "minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment"
LIFECYCLE = "minio:index/ilmPolicy:IlmPolicy"
SIGNING_KEY = "pulumi-python:dynamic/nixcache:SigningKey"
STACK = "pulumi:pulumi:Stack"

_BUCKET_NAMED_BY = {
    BUCKET: "bucket",
    BUCKET_POLICY: "bucket",
    LIFECYCLE: "bucket",
    OBJECT: "bucketName",
}
"""The output that says which bucket a resource is, or belongs to."""

BUILDERS = "nixcache:index:BuilderAccess"
READER = "nixcache:index:ReaderAccess"
"""What the users and policies of a role are children of."""

PROTECTED_OUTPUT = "protected"
"""The stack output that tells whether the engine keeps the bucket from being deleted."""

RETENTION_OUTPUT = "retention"
"""The stack output that says how long entries live."""


@dataclass(frozen=True)
class Recorded:
    """The resources of a state. Their outputs hold secrets: no message shows more than names."""

    resources: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """By URN: `type`, and `outputs` with secrets in plain text; `created` in an exported state."""

    def outputs(self, type_: str) -> Iterator[Mapping[str, Any]]:
        """Yield the outputs of every resource of a type."""
        for resource in self.resources.values():
            if resource["type"] == type_:
                yield resource["outputs"]

    def stack_output(self, name: str, default: Any = None) -> Any:
        """Return one of the stack's own outputs; it lacks those that no deployment has come to."""
        return next(self.outputs(STACK), {}).get(name, default)

    def of(self, bucket: str) -> Recorded:
        """Return the same with what belongs to a bucket before what belongs to another.

        A state has two where a deployment that renames the bucket has not come to its end, and what
        the settings name is this stack's bucket then.
        """
        return Recorded(
            dict(sorted(self.resources.items(), key=lambda found: _is_elsewhere(found[1], bucket)))
        )

    @property
    def bucket(self) -> str | None:
        """The name of the bucket that this stack has made or adopted; of two, the first one."""
        return next(iter(self.buckets), None)

    @property
    def buckets(self) -> tuple[str, ...]:
        """The names of all the buckets that this stack has made or adopted."""
        return tuple(str(bucket["bucket"]) for bucket in self.outputs(BUCKET))

    def going(self, bucket: str) -> tuple[str, ...]:
        """Return the names of the buckets that a deployment with another one deletes."""
        return tuple(name for name in self.buckets if name != bucket)

    def misnamed(self, bucket: str) -> str | None:
        """Return which bucket has a resource with this one's name, by a version of before, or None.

        The engine would put this one in its place, and keep two halves of one name.
        """
        for urn, resource in self.resources.items():
            named = _BUCKET_NAMED_BY.get(resource["type"]) is not None
            if named and urn.endswith(f"::{bucket}") and _is_elsewhere(resource, bucket):
                return str(resource["outputs"].get("bucket"))
        return None

    @property
    def endpoint(self) -> str | None:
        """Where the server answered that has what the state knows, as its provider was told."""
        for server in self.outputs(SERVER):
            scheme = "https" if str(server.get("minioSsl")).lower() == "true" else "http"
            return f"{scheme}://{server.get('minioServer')}"
        return None

    @property
    def has_names(self) -> bool:
        """Whether the state has anything that the server knows by a name."""
        return bool(self.bucket or self.users or self.policies)

    @property
    def protected(self) -> bool:
        """Whether the engine keeps the bucket from being deleted, or may: it does by default."""
        return bool(self.stack_output(PROTECTED_OUTPUT, True))

    @property
    def users(self) -> frozenset[str]:
        """The users that this stack has made or adopted on the server."""
        return frozenset(str(user["name"]) for user in self.outputs(USER))

    @property
    def attached_users(self) -> frozenset[str]:
        """The users that this stack has given a policy.

        A refresh that found such a user gone has forgotten it, and failed at its policy.
        """
        return frozenset(str(found["userName"]) for found in self.outputs(ATTACHMENT))

    @property
    def users_since(self) -> dict[str, datetime]:
        """When this stack made or adopted each of its users, as far as the state tells."""
        found = {}
        for resource in self.resources.values():
            if resource["type"] == USER:
                # To the second: the engine writes more digits than Python 3.10 reads.
                with suppress(ValueError):
                    moment = datetime.fromisoformat(str(resource.get("created"))[:19])
                    found[str(resource["outputs"]["name"])] = moment.replace(tzinfo=timezone.utc)
        return found

    def names_of(self, role: str, type_: str) -> frozenset[str]:
        """Return what the server calls the resources of a type that belong to a role.

        Args:
            role: `BUILDERS` or `READER`.
            type_: `USER` or `POLICY`.
        """
        return frozenset(
            str(resource["outputs"]["name"])
            for urn, resource in self.resources.items()
            if resource["type"] == type_ and urn.split("::")[2].startswith(f"{role}$")
        )

    @property
    def policies(self) -> Mapping[str, str]:
        """The policies that this stack has made or adopted on the server, by name."""
        return {
            str(policy["name"]): str(policy.get("policy", "")) for policy in self.outputs(POLICY)
        }

    @property
    def signing_keys(self) -> dict[str, str]:
        """The public keys of the signing keys that the state has, by name."""
        return {
            str(key["key_name"]): str(key["public_key"])
            for key in self.outputs(SIGNING_KEY)
            if "key_name" in key
        }

    @property
    def anonymous_download(self) -> bool | None:
        """Whether the bucket's policy lets anybody read; None where the state has no policy."""
        for policy in self.outputs(BUCKET_POLICY):
            return '"Allow"' in str(policy.get("policy"))
        return None

    @property
    def expires_versions(self) -> bool:
        """Whether the lifecycle that this stack has set is one for a bucket that keeps versions."""
        rules = next(self.outputs(LIFECYCLE), {}).get("rules") or ()
        return any(rule.get("noncurrentVersionExpirationDays") for rule in rules)

    def lifecycle_rules(self, bucket: str) -> Sequence[Mapping[str, Any]]:
        """Return the rules that this stack has set on a bucket; none where it has set none."""
        for lifecycle in self.outputs(LIFECYCLE):
            if lifecycle.get("bucket") == bucket:
                return lifecycle.get("rules") or ()
        return ()

    def objects(self, bucket: str) -> frozenset[str]:
        """Return the names of the objects that the program itself keeps in a bucket."""
        return frozenset(
            str(found["objectName"])
            for found in self.outputs(OBJECT)
            if found["bucketName"] == bucket
        )

    def lacks_bucket_of_objects(self, bucket: str) -> bool:
        """Tell whether the program's objects in a bucket are known, and the bucket itself is not.

        The provider takes a server that does not answer, or refuses the user, for one that has no
        such bucket, and a refresh forgets it.
        """
        return bucket not in self.buckets and bool(self.objects(bucket))

    def content(self, key: str) -> str:
        """Return the text of an object since the last deployment; empty where it has none."""
        for found in self.outputs(OBJECT):
            if found["objectName"] == key:
                return str(found.get("content") or "")
        return ""

    def binary_content(self, key: str) -> bytes:
        """Return the bytes of an object that is no text, as `content` does."""
        for found in self.outputs(OBJECT):
            if found["objectName"] == key:
                with suppress(ValueError):
                    return base64.b64decode(str(found.get("contentBase64") or ""), validate=True)
        return b""

    def pinned(self, name: str) -> tuple[str, ...]:
        """Return what a pin keeps since the last deployment: store paths, the newest first."""
        for found in self.outputs(OBJECT):
            if found["objectName"] == pin_key(name):
                with suppress(FormatError):
                    return parse_pin(str(found.get("content")).encode())
        return ()


def _is_elsewhere(resource: Mapping[str, Any], bucket: str) -> bool:
    """Return whether a resource is another bucket, or belongs to one."""
    output = _BUCKET_NAMED_BY.get(resource["type"])
    return output is not None and resource["outputs"].get(output) != bucket


@cache
def read() -> Recorded:
    """Ask the engine, once, for the state as it was when this deployment began.

    It reads the state, which must not be written meanwhile. So in an update the first call comes
    before anything but the stack itself is registered; a preview writes nothing.
    """
    name = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    root = pulumi.runtime.get_root_resource()
    # The engine's own function, behind no resource: a StackReference would be one more in every
    # preview, and it tells a stack's outputs only. The stack's URN is known when the state that
    # begins with it has been written.
    answer = pulumi.runtime.invoke(
        "pulumi:pulumi:readStackResourceOutputs",
        {"stackName": pulumi.Output.from_input(root and root.urn).apply(lambda _: name)},
    )
    return Recorded(without_unknowns(answer.value["outputs"]))


def without_unknowns(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state's resources without the outputs of a stack that nobody knows.

    A deployment of some resources alone (`--target`) writes all outputs of the stack, and those of
    what it left out are no values.
    """
    return {
        urn: {**resource, "outputs": _known(resource["outputs"])}
        if resource["type"] == STACK
        else resource
        for urn, resource in resources.items()
    }


def _known(value: Any) -> Any:
    if not pulumi.contains_unknowns(value):
        return value
    if isinstance(value, Mapping):
        parts = {name: _known(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part is not None}
    return None
