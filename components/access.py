"""Who may write and read: users and policies. All of MinIO's admin API is here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pulumi
import pulumi_minio as minio

WRITE_ACTIONS = (
    "s3:AbortMultipartUpload",
    "s3:GetBucketLocation",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
)
"""What a push needs, and `nix copy --to s3://…` by hand; deleting is not among it."""


def write_policy(bucket: str) -> str:
    """Return the IAM policy that lets its user push to `bucket` and nothing else."""
    return _policy(WRITE_ACTIONS, [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"])


def read_policy(bucket: str) -> str:
    """Return the IAM policy that lets its user read what `bucket` holds, by name only."""
    return _policy(("s3:GetObject",), [f"arn:aws:s3:::{bucket}/*"])


def _policy(actions: Sequence[str], resources: Sequence[str]) -> str:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a user proves itself by."""

    access_key_id: pulumi.Output[str]
    """The user's access key, usable once its policy is attached."""
    secret_access_key: pulumi.Output[str]
    """The user's secret key; a secret."""


@dataclass(frozen=True, kw_only=True)
class BuilderAccessArgs:
    """What the builders are called on the server, and what they may do there."""

    bucket: str
    """The bucket that builders push to."""
    policy: pulumi.Input[str]
    """The name of their policy. An existing policy of that name gets this one's text."""
    users: Mapping[str, str]
    """The name of each builder's user, which is its access key too, by the builder's name."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """The secrets that users have already, by the user's name. Of the others the server makes one,
    and overwrites what an existing user of that name has."""


class BuilderAccess(pulumi.ComponentResource):
    """A user for each builder, and the policy that they share: push to the bucket, and read it."""

    credentials: dict[str, Credential]
    """Each builder's credential, by the builder's name."""

    def __init__(
        self, name: str, args: BuilderAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare policy and users; users' resources carry their builders' names."""
        super().__init__("nixcache:index:BuilderAccess", name, None, opts)
        policy = minio.IamPolicy(
            f"{name}-policy",
            name=args.policy,
            policy=write_policy(args.bucket),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.credentials = {
            builder: _declare_user(self, builder, user, policy, args.secrets.get(user))
            for builder, user in args.users.items()
        }
        self.register_outputs({})


@dataclass(frozen=True, kw_only=True)
class ReaderAccessArgs:
    """What the reader of a private cache is called on the server, and what it may read."""

    bucket: str
    """The bucket that clients read."""
    user: str
    """The name of the user, and of its policy. An existing user's secret is overwritten."""


class ReaderAccess(pulumi.ComponentResource):
    """What the clients of a private cache may do: read the objects whose names they know."""

    credential: Credential
    """The credential that all of them share."""

    def __init__(
        self, name: str, args: ReaderAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the access; `name` is the prefix of its children's names."""
        super().__init__("nixcache:index:ReaderAccess", name, None, opts)
        policy = minio.IamPolicy(
            f"{name}-policy",
            name=args.user,
            policy=read_policy(args.bucket),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.credential = _declare_user(self, name, args.user, policy)
        self.register_outputs({})


def _declare_user(
    parent: pulumi.Resource,
    name: str,
    user: str,
    policy: minio.IamPolicy,
    secret: str | None = None,
) -> Credential:
    """Declare a user with a policy.

    The user's secret is the server's to make, unless it was chosen before there was a stack.
    """
    child = pulumi.ResourceOptions(parent=parent)
    user_ = minio.IamUser(
        f"{name}-user",
        name=user,
        # Created over, not imported: the server tells nobody a secret, and an imported user would
        # have none in the state. What it has already, it keeps.
        secret=None if secret is None else pulumi.Output.secret(secret),
        opts=child,
    )
    attachment = minio.IamUserPolicyAttachment(
        f"{name}-attachment",
        # The outputs, not the arguments: user and policy go only after this.
        user_name=user_.name,
        policy_name=policy.name,
        opts=child,
    )
    # Through the attachment, so that nothing pushes before the server lets it.
    return Credential(access_key_id=attachment.user_name, secret_access_key=user_.secret)
