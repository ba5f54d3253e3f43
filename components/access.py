"""Who may write and read: users and policies. All of MinIO's admin API is here.

A `Credential` comes about in one of two ways: `BuilderAccess` and `ReaderAccess` have a MinIO
server make the user, and `given_credential` takes one that somebody made elsewhere. What is behind
it does not know which.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pulumi
import pulumi_minio as minio

from components.retention import OWN_FOLDER, OWN_KEYS
from formats.foreign_json import parse_foreign_json
from formats.push_status import STATUS_FOLDER

_USERNAME = "aws:username"
_NO_ADMINISTRATION = {"Effect": "Deny", "Action": ["admin:*"]}

_PUT = "s3:PutObject"

WRITE_ACTIONS = (
    "s3:AbortMultipartUpload",
    "s3:GetBucketLocation",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts",
    _PUT,
)
"""What a push needs, and `nix copy --to s3://…` by hand; deleting is not among it."""

CACHE_FILES = (
    "*.narinfo",
    "*.ls",
    "nar/*",
    "log/*",
    "debuginfo/*",
    "realisations/*",
    "build-trace-v2/*",
)
"""Keys that Nix, or a push, writes to a binary cache, as policies have them."""

# The program's own, whatever else a user's policies say; and what only looks like a cache's file.
_KEPT = (
    *(key for key in OWN_KEYS if key != OWN_FOLDER),
    *(f"{OWN_FOLDER}{name}" for name in ("push.pyz", "pins/*", "*.narinfo", "*.ls")),
)


def write_policy(bucket: str, users: Collection[str] | None) -> str:
    """Return the IAM policy that lets `users` push to `bucket`.

    They write a cache's files, and each the status of its own pushes, and nothing else. Where
    somebody else makes the users, servers differ in what a user's name is, and whether a policy can
    say it: there each may write the others' status.

    Whoever has the policy and is not named in it may do nothing. So a user that leaves the list has
    lost its rights with the policy's update, before anything is pushed and long before the engine,
    which deletes last, deletes the user.

    Args:
        bucket: the bucket.
        users: who may; None is whoever has the policy.
    """
    arn = f"arn:aws:s3:::{bucket}"
    kept = [f"{arn}/{key}" for key in _KEPT]
    denied = {"Effect": "Deny", "Action": [_PUT], "Resource": kept}
    if users is not None and not users:
        return _policy(denied)
    status = f"{STATUS_FOLDER}{'*' if users is None else f'${{{_USERNAME}}}'}"
    written = [f"{arn}/{key}" for key in (*CACHE_FILES, status)]
    return _policy(
        _allowed(users, [one for one in WRITE_ACTIONS if one != _PUT], [arn, f"{arn}/*"]),
        _allowed(users, [_PUT], written),
        denied,
    )


def read_policy(bucket: str, user: str | None) -> str:
    """Return the IAM policy that lets `user` read what `bucket` holds, by name only.

    Args:
        bucket: the bucket.
        user: who may; None is whoever has the policy.
    """
    users = None if user is None else [user]
    return _policy(_allowed(users, ["s3:GetObject"], [f"arn:aws:s3:::{bucket}/*"]))


def without_administration(policy: str) -> str:
    """Return a policy with the rights that MinIO gives every user over itself taken away.

    Whoever has a user's secret could otherwise change it, which locks the user out, or make access
    keys that outlive it (`add-user` and `add-service-account` of MinIO's admin API).
    """
    document = json.loads(policy)
    return _policy(*document["Statement"], _NO_ADMINISTRATION)


def unwrapped(text: str) -> str:
    """Return the policy in what a server answers when it is asked for one.

    MinIO answers with the policy itself, RustFS with what else it knows of it around it, as newer
    versions of the admin API do (`PolicyInfo` of madmin; RustFS 1.0.1 writes `policy`).
    """
    try:
        answer = parse_foreign_json(text)
        policy = answer.get("Policy", answer.get("policy"))
    except (ValueError, AttributeError):
        return text
    return json.dumps(policy) if isinstance(policy, dict) else text


def same_policy(one: str, other: str) -> bool:
    """Return whether two policies say the same, in whatever order."""
    try:
        return _sorted(parse_foreign_json(one)) == _sorted(parse_foreign_json(other))
    except ValueError:
        return False


def _sorted(value: object) -> object:
    """Return JSON as it compares: a list in any order, and a list of one as what it holds."""
    if isinstance(value, dict):
        # By name, too: what stands in a list is sorted as it is written.
        inner_values = sorted(value.items())
        return {name: _sorted(inner) for name, inner in inner_values if inner not in ("", [], {})}
    if isinstance(value, list):
        inner = sorted((_sorted(element) for element in value), key=repr)
        return inner[0] if len(inner) == 1 else inner
    return value


def users_of(policy: str, bucket: str) -> frozenset[str] | None:
    """Return the users that a policy names, as those made here do, or None where it is another.

    Args:
        policy: its text, whoever wrote it.
        bucket: the bucket that it must be about, and about nothing else.
    """
    users: set[str] = set()
    if not concerns_only(policy, bucket):
        return None
    try:
        for statement in parse_foreign_json(policy)["Statement"]:
            if statement["Effect"] == "Allow":
                named = statement["Condition"]["StringEquals"][_USERNAME]
                users.update([named] if isinstance(named, str) else named)
    except (LookupError, TypeError):
        return None
    return frozenset(users)


def concerns_only(policy: str, bucket: str) -> bool:
    """Return whether all that a policy says is about `bucket`; what cannot be read is not.

    Args:
        policy: its text, whoever wrote it.
        bucket: the bucket.
    """
    arn = f"arn:aws:s3:::{bucket}"
    try:
        for statement in parse_foreign_json(policy)["Statement"]:
            if _sorted(statement) == _sorted(_NO_ADMINISTRATION):
                continue
            resources = statement["Resource"]
            for resource in [resources] if isinstance(resources, str) else resources:
                if resource != arn and not resource.startswith(f"{arn}/"):
                    return False
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    return True


def _allowed(
    users: Collection[str] | None, actions: Sequence[str], resources: Sequence[str]
) -> dict[str, object]:
    return {
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": list(resources),
        **({} if users is None else {"Condition": {"StringEquals": {_USERNAME: sorted(users)}}}),
    }


def _policy(*statements: Mapping[str, object]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a user proves itself by."""

    access_key_id: pulumi.Output[str]
    """The user's access key, there once the server lets it do what it is for."""
    secret_access_key: pulumi.Output[str]
    """The user's secret key; a secret."""


def given_credential(access_key_id: str, secret_access_key: str) -> Credential:
    """Return the credential of a user that was made elsewhere, with its rights."""
    return Credential(
        access_key_id=pulumi.Output.from_input(access_key_id),
        secret_access_key=pulumi.Output.secret(secret_access_key),
    )


@dataclass(frozen=True, kw_only=True)
class BuilderAccessArgs:
    """What the builders are called on the server, and what they may do there."""

    bucket: str
    """The bucket that builders push to."""
    policy: str
    """The name of their policy. An existing policy of that name gets this one's text."""
    users: Mapping[str, str]
    """The name of each builder's user, which is its access key too, by the builder's name."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """The secrets that users have already, by the user's name. Of the others the server makes one,
    and overwrites what an existing user of that name has."""
    known_policies: Mapping[str, str] = field(default_factory=dict)
    """The policies that the state has, by name, as the server gave them."""
    bucket_made: pulumi.Resource | None = None
    """The bucket, where it is declared: who may write to it then goes before it does."""


class BuilderAccess(pulumi.ComponentResource):
    """A user for each builder, and the policy that they share: push to the bucket, and read it."""

    credentials: dict[str, Credential]
    """Each builder's credential, by the builder's name."""

    def __init__(
        self, name: str, args: BuilderAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare policy and users, each named as the server knows it."""
        super().__init__("nixcache:index:BuilderAccess", name, None, opts)
        text = without_administration(write_policy(args.bucket, args.users.values()))
        policy = _declare_policy(self, args.policy, text, args.known_policies, args.bucket_made)
        self.credentials = {
            builder: _declare_user(self, user, args.policy, policy, args.secrets.get(user))
            for builder, user in args.users.items()
        }
        self.register_outputs({})


@dataclass(frozen=True, kw_only=True)
class ReaderAccessArgs:
    """What the reader of a private cache is called on the server, and what it may read."""

    bucket: str
    """The bucket that clients read."""
    user: str
    """The name of the user, and of its policy."""
    secret: str | None = field(default=None, repr=False)
    """The secret that the user has already. Without it the server makes one, and overwrites what an
    existing user of that name has."""
    known_policies: Mapping[str, str] = field(default_factory=dict)
    """The policies that the state has, by name, as the server gave them."""
    bucket_made: pulumi.Resource | None = None
    """The bucket, where it is declared: who may write to it then goes before it does."""


class ReaderAccess(pulumi.ComponentResource):
    """What the clients of a private cache may do: read the objects whose names they know."""

    credential: Credential
    """The credential that all of them share."""

    def __init__(
        self, name: str, args: ReaderAccessArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare policy and user, each named as the server knows it."""
        super().__init__("nixcache:index:ReaderAccess", name, None, opts)
        text = without_administration(read_policy(args.bucket, args.user))
        policy = _declare_policy(self, args.user, text, args.known_policies, args.bucket_made)
        self.credential = _declare_user(self, args.user, args.user, policy, args.secret)
        self.register_outputs({})


def _declare_policy(
    parent: pulumi.Resource,
    name: str,
    text: str,
    known: Mapping[str, str],
    bucket: pulumi.Resource | None,
) -> minio.IamPolicy:
    # A server that wraps a policy has said the same in other words: no reason to write it again.
    stored = known.get(name, "")
    wrapped = unwrapped(stored) != stored and same_policy(unwrapped(stored), text)
    return minio.IamPolicy(
        name,
        name=name,
        policy=text,
        opts=pulumi.ResourceOptions(
            parent=parent,
            # No server deletes a bucket that somebody has just pushed to.
            depends_on=None if bucket is None else [bucket],
            ignore_changes=["policy"] if wrapped else None,
        ),
    )


def _declare_user(
    parent: pulumi.Resource,
    user: str,
    policy_name: str,
    policy: minio.IamPolicy,
    secret: str | None = None,
) -> Credential:
    """Declare a user with a policy.

    The user's secret is the server's to make, unless it was chosen before there was a stack.
    """
    user_ = minio.IamUser(
        user,
        name=user,
        # Created over, not imported: the server tells nobody a secret, and an imported user would
        # have none in the state. What it has already, it keeps.
        secret=None if secret is None else pulumi.Output.secret(secret),
        # After the policy, which names it: a user that an interrupted deployment made and did not
        # note down is known by that.
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[policy]),
    )
    attachment = minio.IamUserPolicyAttachment(
        f"{user}/{policy_name}",
        # The outputs, not the arguments: user and policy go only after this.
        user_name=user_.name,
        policy_name=policy.name,
        opts=pulumi.ResourceOptions(parent=parent),
    )
    # Through the attachment, so that nothing pushes before the server lets it.
    return Credential(access_key_id=attachment.user_name, secret_access_key=user_.secret)
