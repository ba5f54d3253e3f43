"""Where the drop-ins answer otherwise than the official plugins on purpose, and why.

A pattern is matched against the whole key of a transcript's line.
"""

from __future__ import annotations

from collections.abc import Mapping

NOT_NEEDED = (
    "this project never gives the argument: the drop-in refuses it rather than carry code for it"
)
SAYS_SO = (
    "the official plugin takes a server that cannot be asked for a deleted resource, and drops the"
    " resource from the state; the drop-in reports the error"
)
GONE_IS_DELETED = "deleting what has gone already is success"
NAMES_IT = "the drop-in's message names the resource where the official one's does not"

DIFFERENCES: Mapping[str, Mapping[str, str]] = {
    "minio": {
        r"S3Bucket: (acl for everybody|forceDestroy|objectLocking|quota|bucketPrefix): check": (
            NOT_NEEDED
        ),
        r"(S3Object: source|IamUser: forceDestroy|IamPolicy: namePrefix): check": NOT_NEEDED,
        r"(S3Bucket: no name|Iam(User|Policy): name left out): check": (
            "the drop-in makes up no names; this project always gives one"
        ),
        r"S3Bucket: acl of a wrong type: check": (
            "the official plugin turns a number into text; the drop-in refuses a wrong type"
        ),
        r"IlmPolicy: no rules: check": (
            "the official plugin deletes the lifecycle and then finds it gone; the drop-in says"
            " before anything changes that a lifecycle needs a rule"
        ),
        r"IlmPolicy: (a rule with tags|two rules of one id): (diff|preview of update)": (
            "beside another change, the official plugin shows tags that are null and shall be"
            " empty as added"
        ),
        r"IlmPolicy: two rules of one id: (update|read|back)": (
            "the official plugin swallows the server's refusal of new rules; the drop-in reports it"
        ),
        r"(S3Bucket|IamUser): delete when gone": GONE_IS_DELETED,
        r"(S3Bucket|IlmPolicy): (permission denied|wrong password|server unreachable): read": (
            SAYS_SO
        ),
        r"IlmPolicy: (permission denied|wrong password): delete": (
            "the official plugin ignores the answer to the deletion of a lifecycle"
        ),
        r"S3BucketPolicy: .*: create": (
            "the official plugin's message repeats the policy; the drop-in's names the bucket"
        ),
        r"S3Object: .*: create": NAMES_IT,
        r"settings: a (scheme|path|switch that is none)": (
            "the drop-in's message names the setting and what to write instead"
        ),
    },
    "command": {
        r"(local|remote)\.Command: unknown logging: check": (
            "the official plugin takes an unknown word for silence; the drop-in refuses it"
        ),
        r"local\.Command: (assetPaths|archivePaths): check": NOT_NEEDED,
        r"remote\.Command: private key that is none: create": (
            "the drop-in's message names the setting"
        ),
    },
    "language-python": {
        r"about": "the drop-in knows pip alone, so that it has no toolchain to report",
        r"prompts": "the drop-in knows pip alone, so that there is nothing to choose",
    },
}
"""Plugin → pattern → reason."""
