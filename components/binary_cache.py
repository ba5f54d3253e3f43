"""BinaryCache: a bucket that Nix clients can read as a binary cache, and that stays small."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_minio as minio

from components.access import same_policy
from components.retention import (
    GRACE_DAYS,
    OWN_FOLDER,
    PAGE_KEY,
    RETENTION_DAYS,
    ExpirationRule,
    expiration_rules,
)
from components.text_object import declare_text_object, multipart_etag
from formats.store_path import STORE_DIR


def nix_cache_info(want_mass_query: bool, priority: int) -> str:
    """Return the text of `nix-cache-info` (Nix, `src/libstore/binary-cache-store.cc`)."""
    return f"StoreDir: {STORE_DIR}\nWantMassQuery: {int(want_mass_query)}\nPriority: {priority}\n"


def anonymous_policy(bucket: str, download: bool, listing: bool) -> str:
    """Return the bucket policy that lets everyone read objects and list them, where asked.

    A private cache has one too, which lets nobody do anything: going private is then an update of
    the policy, before anything is pushed, and no deletion, which the engine would do last and only
    when nothing has failed; and a cache that somebody opens is found by a refresh. Amazon and
    SeaweedFS take no policy without a statement, so it denies what is never there.

    Source: S3 API, "Bucket policy"; MinIO keeps a principal only in the form `{"AWS": ["*"]}`.
    """
    arn = f"arn:aws:s3:::{bucket}"
    if not download:
        statements = [("Deny", "s3:GetObject", f"{arn}/{OWN_FOLDER}nobody")]
    else:
        statements = [("Allow", "s3:GetObject", f"{arn}/*")]
        if listing:
            statements.append(("Allow", "s3:ListBucket", arn))
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": effect,
                    "Principal": {"AWS": ["*"]},
                    "Action": [action],
                    "Resource": [resource],
                }
                for effect, action, resource in statements
            ],
        }
    )


@dataclass(frozen=True, kw_only=True)
class BinaryCacheArgs:
    """What a binary cache is made of."""

    bucket: str
    """The bucket's name, which its resource and those of what is of it are named after."""
    adopt: str | None = None
    """The name of the bucket that is there already, to be imported as it is; None creates it."""
    protect: bool = True
    """Refuse to delete or replace the bucket."""
    anonymous_download: bool = True
    """Let everyone read the bucket; without it the cache is private."""
    bucket_policy: bool = True
    """Declare who may read as the bucket's policy; without it that is settled elsewhere."""
    anonymous_listing: pulumi.Input[bool] = False
    """Let everyone who may read the bucket list it, too."""
    retention_days: pulumi.Input[int] | None = RETENTION_DAYS
    """Days that an entry lives after the last push of a closure with it; None for ever."""
    grace_days: pulumi.Input[int] = GRACE_DAYS
    """Days that a NAR lives longer than its narinfo."""
    want_mass_query: pulumi.Input[bool] = True
    """Whether clients may ask for many paths at once."""
    priority: pulumi.Input[int] = 40
    """Which cache clients ask first: the lower, the earlier."""
    landing_page: pulumi.Input[str] | None = None
    """The page for people, as HTML; None has none."""
    versioned: bool = False
    """Let versions expire that others have followed: the bucket keeps them."""
    comparable_etags: bool = True
    """Find, by their ETags, what others write over objects; not where the server encrypts."""
    before_first_object: pulumi.ResourceHook | None = None
    """Asked before the first object is put into the bucket; it refuses by raising."""


class BinaryCache(pulumi.ComponentResource):
    """A bucket with anonymous download, `nix-cache-info`, a page for people and expiry.

    It does not declare who may push (`BuilderAccess`), the key that signs (`SigningKey`) or the
    pushes themselves (`ClosurePush`).
    """

    bucket: pulumi.Output[str]
    """The bucket's name, once it exists and lets in whom it should."""
    made: pulumi.Resource
    """The bucket itself: what depends on it is deleted before it."""
    lifecycle_applied: pulumi.Output[bool]
    """Whether the server has been told the lifecycle that is declared, in this deployment or before
    it; known once it has been. A destroy or a refresh runs the program too, and tells it nothing.
    """
    access_applied: pulumi.Output[bool]
    """The same of the bucket's policy, which says who may read; never where none is declared."""
    first_object: pulumi.Output[str]
    """There once `nix-cache-info` is."""
    comparable_etags: pulumi.Output[bool]
    """Whether the server gave `nix-cache-info` the ETag that its content has."""

    def __init__(
        self, name: str, args: BinaryCacheArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the cache; its children are named after the bucket.

        So a bucket of another name is another resource, and no replacement. Of one the engine keeps
        two halves of one name in the state, and tells the program of the new one alone: where it
        fails and is taken back, the old half is still deleted by its name.
        """
        super().__init__("nixcache:index:BinaryCache", name, None, opts)
        bucket = minio.S3Bucket(
            args.bucket,
            bucket=args.bucket,
            # "private" writes nothing; every other canned ACL of the provider lets the world
            # delete or enumerate the cache. The policy below is what opens it.
            acl="private",
            opts=pulumi.ResourceOptions(parent=self, protect=args.protect, import_=args.adopt),
        )
        self.made = bucket
        child = pulumi.ResourceOptions(parent=self)
        # By way of the policy: what is pushed comes after the bucket is open or closed as set.
        self.bucket = bucket.bucket
        self.access_applied = bucket.id.apply(lambda _: False)
        download = None
        if args.bucket_policy:
            policy = pulumi.Output.all(
                args.bucket, args.anonymous_download, args.anonymous_listing
            ).apply(lambda values: anonymous_policy(*values))
            written, opts_of_access = _noting_writes(f"policy of {args.bucket}", child)
            download = minio.S3BucketPolicy(
                args.bucket, bucket=bucket.bucket, policy=policy, opts=opts_of_access
            )
            self.bucket = download.bucket
            self.access_applied = pulumi.Output.all(download.policy, policy).apply(
                lambda policies: written.is_set() or same_policy(*policies)
            )
        content = pulumi.Output.all(args.want_mass_query, args.priority).apply(
            lambda values: nix_cache_info(bool(values[0]), int(values[1]))
        )
        first = pulumi.ResourceOptions(parent=self, hooks=_before_create(args))
        info = declare_text_object(
            args.bucket,
            "nix-cache-info",
            bucket=self.bucket,
            content_type="text/x-nix-cache-info",
            content=content,
            comparable=args.comparable_etags,
            opts=first,
        )
        self.lifecycle_applied = bucket.id.apply(lambda _: True)
        if args.retention_days is not None:
            rules = pulumi.Output.all(args.retention_days, args.grace_days).apply(
                lambda days: expiration_rules(int(days[0]), int(days[1]), args.versioned)
            )
            # After the policy: MinIO keeps a bucket's settings in one file, and of two written at
            # the same moment it may lose one, having answered that both are set. After the object,
            # too, since the engine takes long for the many rules: what comes of users, and the
            # program goes on with, is before them then.
            before = [info] if download is None else [download, info]
            last = pulumi.ResourceOptions(parent=self, depends_on=before)
            self.lifecycle_applied = _declare_lifecycle(args.bucket, bucket.bucket, rules, last)
        if args.landing_page is not None:
            declare_text_object(
                args.bucket,
                PAGE_KEY,
                bucket=self.bucket,
                content_type="text/html; charset=utf-8",
                content=args.landing_page,
                comparable=args.comparable_etags,
                opts=first,
            )
        self.comparable_etags = pulumi.Output.all(info.etag, content).apply(
            lambda known: known[0] == multipart_etag(known[1].encode())
        )
        self.first_object = info.id
        self.register_outputs({"bucket": self.bucket, "lifecycleApplied": self.lifecycle_applied})


def _declare_lifecycle(
    name: str,
    bucket: pulumi.Input[str],
    declared: pulumi.Output[tuple[ExpirationRule, ...]],
    opts: pulumi.ResourceOptions,
) -> pulumi.Output[bool]:
    """Declare a bucket's lifecycle, and return whether the server has been told it."""
    written, opts = _noting_writes(f"lifecycle of {name}", opts)
    lifecycle = minio.IlmPolicy(
        name,
        bucket=bucket,
        rules=declared.apply(
            lambda rules: [
                minio.IlmPolicyRuleArgs(
                    id=rule.id,
                    filter=rule.prefix,
                    expiration=f"{rule.days}d",
                    noncurrent_version_expiration_days=rule.noncurrent_days,
                )
                for rule in rules
            ]
        ),
        opts=opts,
    )

    def told(recorded: Sequence[Any], wanted: Sequence[ExpirationRule]) -> bool:
        return written.is_set() or {
            (
                rule["filter"],
                rule["expiration"],
                rule.get("noncurrent_version_expiration_days") or None,
            )
            for rule in recorded
        } == {(rule.prefix, f"{rule.days}d", rule.noncurrent_days) for rule in wanted}

    # Where a refresh finds it gone, its rules are the declared ones all the same, but it has no id.
    # Not by `Output.all`, which makes an output of every value in every rule: some four thousand.
    return lifecycle.id.apply(
        lambda _: declared.apply(
            lambda wanted: lifecycle.rules.apply(lambda recorded: told(recorded, wanted))
        )
    )


def _noting_writes(
    name: str, opts: pulumi.ResourceOptions
) -> tuple[threading.Event, pulumi.ResourceOptions]:
    """Return what is set once a deployment has written a resource, and the options for that.

    Its outputs alone do not tell: the official provider takes a refused update for done.
    """
    written = threading.Event()
    hook = pulumi.ResourceHook(f"{name} is written", lambda _: written.set())
    hooks = pulumi.ResourceHookBinding(after_create=[hook], after_update=[hook])
    return written, pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(hooks=hooks))


def _before_create(args: BinaryCacheArgs) -> pulumi.ResourceHookBinding | None:
    hook = args.before_first_object
    return None if hook is None else pulumi.ResourceHookBinding(before_create=[hook])
