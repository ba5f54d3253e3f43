"""Who may write and read: users and policies. All of MinIO's admin API is here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

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
class WritePolicyArgs:
    """What the policy is called on the server, and what it lets its users write to."""

    bucket: pulumi.Input[str]
    """The bucket that builders push to."""
    policy: pulumi.Input[str]
    """The policy's name. An existing policy of that name gets this one's text."""


class WritePolicy(pulumi.ComponentResource):
    """What every builder may do: push to the bucket, and read it."""

    policy: pulumi.Output[str]
    """The policy's name, once it exists."""

    def __init__(
        self, name: str, args: WritePolicyArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the policy; `name` is the prefix of its child's name."""
        super().__init__("nixcache:index:WritePolicy", name, None, opts)
        self.policy = minio.IamPolicy(
            f"{name}-policy",
            name=args.policy,
            policy=pulumi.Output.from_input(args.bucket).apply(write_policy),
            opts=pulumi.ResourceOptions(parent=self),
        ).name
        self.register_outputs({"policy": self.policy})


@dataclass(frozen=True, kw_only=True)
class BuilderAccessArgs:
    """What a builder is called on the server, and what it may do there."""

    user: pulumi.Input[str]
    """The user's name, which is its access key too. An existing user's secret is overwritten."""
    policy: pulumi.Input[str]
    """The policy that it gets: the output of a `WritePolicy`, so that the policy goes last."""
    secret: pulumi.Input[str] | None = None
    """The secret that the user has already; None lets the server make one."""


class _UserAccess(pulumi.ComponentResource):
    """A user, and the attachment of a policy to it.

    The user's secret is the server's to make, unless it was chosen before there was a stack.
    """

    access_key_id: pulumi.Output[str]
    """The user's access key, usable once the policy is attached."""
    secret_access_key: pulumi.Output[str]
    """The user's secret key; a secret."""

    def _grant(
        self,
        name: str,
        user: pulumi.Input[str],
        policy: pulumi.Input[str],
        secret: pulumi.Input[str] | None = None,
    ) -> None:
        child = pulumi.ResourceOptions(parent=self)
        user_ = minio.IamUser(
            f"{name}-user",
            name=user,
            # Created over, not imported: the server tells nobody a secret, and an imported user
            # would have none in the state. What it has already, it keeps.
            secret=None if secret is None else pulumi.Output.secret(secret),
            opts=child,
        )
        attachment = minio.IamUserPolicyAttachment(
            f"{name}-attachment",
            # The output, not the argument: a user goes only after this.
            user_name=user_.name,
            policy_name=policy,
            opts=child,
        )
        # Through the attachment, so that nothing pushes before the server lets it.
        self.access_key_id = attachment.user_name
        self.secret_access_key = user_.secret
        self.register_outputs(
            {
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
            }
        )


class BuilderAccess(_UserAccess):
    """One builder's user, with a policy that other builders share."""

    def __init__(
        self, name: str, args: BuilderAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the access; `name` is the prefix of its children's names."""
        super().__init__("nixcache:index:BuilderAccess", name, None, opts)
        self._grant(name, args.user, args.policy, args.secret)


@dataclass(frozen=True, kw_only=True)
class ReaderAccessArgs:
    """What the reader of a private cache is called on the server, and what it may read."""

    bucket: pulumi.Input[str]
    """The bucket that clients read."""
    user: pulumi.Input[str]
    """The name of the user, and of its policy. An existing user's secret is overwritten."""


class ReaderAccess(_UserAccess):
    """What the clients of a private cache may do: read the objects whose names they know."""

    def __init__(
        self, name: str, args: ReaderAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the access; `name` is the prefix of its children's names."""
        super().__init__("nixcache:index:ReaderAccess", name, None, opts)
        policy = minio.IamPolicy(
            f"{name}-policy",
            name=args.user,
            policy=pulumi.Output.from_input(args.bucket).apply(read_policy),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self._grant(name, args.user, policy.name)
