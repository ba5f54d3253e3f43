"""BuilderAccess: what one builder is on the S3 server. All of MinIO's admin API is here."""

from __future__ import annotations

import json
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
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Action": list(WRITE_ACTIONS),
                    "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                }
            ],
        }
    )


@dataclass(frozen=True, kw_only=True)
class BuilderAccessArgs:
    """What a builder is called on the server, and what it may write to."""

    bucket: pulumi.Input[str]
    """The bucket that the builder pushes to."""
    user: pulumi.Input[str]
    """The user's name, which is its access key too. An existing user's secret is overwritten."""
    policy: pulumi.Input[str]
    """The name of the policy made for it."""


class BuilderAccess(pulumi.ComponentResource):
    """A user, its write policy, and the attachment of one to the other.

    The user's secret is the server's to make, never chosen by hand.
    """

    access_key_id: pulumi.Output[str]
    """The user's access key, usable once the policy is attached."""
    secret_access_key: pulumi.Output[str]
    """The user's secret key; a secret."""

    def __init__(
        self, name: str, args: BuilderAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the access; `name` is the prefix of its children's names."""
        super().__init__("nixcache:index:BuilderAccess", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        user = minio.IamUser(f"{name}-user", name=args.user, opts=child)
        policy = minio.IamPolicy(
            f"{name}-policy",
            name=args.policy,
            policy=pulumi.Output.from_input(args.bucket).apply(write_policy),
            opts=child,
        )
        attachment = minio.IamUserPolicyAttachment(
            f"{name}-attachment",
            # Their outputs, not the arguments: a policy in use can be deleted only after this.
            user_name=user.name,
            policy_name=policy.name,
            opts=child,
        )
        # Through the attachment, so that nothing pushes before the server lets it.
        self.access_key_id = attachment.user_name
        self.secret_access_key = user.secret
        self.register_outputs(
            {
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
            }
        )
