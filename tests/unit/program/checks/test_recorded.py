"""What the state tells of this stack."""

from __future__ import annotations

import base64
from datetime import datetime, timezone
from typing import Any

import pulumi
import pytest

from program.checks.recorded import (
    BUCKET,
    BUCKET_POLICY,
    LIFECYCLE,
    OBJECT,
    STACK,
    USER,
    Recorded,
    without_unknowns,
)

KEY = "_nixcache/push.pyz"


def state(**outputs: Any) -> Recorded:
    """Return a state with one object."""
    return Recorded({"urn": {"type": OBJECT, "outputs": {"objectName": KEY, **outputs}}})


def of_bucket(bucket: str, access: str, versions: int) -> dict[str, dict[str, Any]]:
    """Return what the state has of one bucket."""
    rules = [{"noncurrentVersionExpirationDays": versions}]
    page = {"bucketName": bucket, "objectName": "use.html", "content": f"the page of {bucket}"}
    resources = (
        (BUCKET, {"bucket": bucket}),
        (BUCKET_POLICY, {"bucket": bucket, "policy": f'{{"Effect": "{access}"}}'}),
        (LIFECYCLE, {"bucket": bucket, "rules": rules}),
        (OBJECT, page),
    )
    return {
        f"urn:{type_}::{bucket}": {"type": type_, "outputs": outputs}
        for type_, outputs in resources
    }


def test_of_two_buckets_the_one_that_is_named_is_the_stacks_and_the_other_one_goes() -> None:
    both = Recorded({**of_bucket("first", "Allow", 1), **of_bucket("second", "Deny", 0)})
    for named, other, everyone in (("first", "second", True), ("second", "first", False)):
        known = both.of(named)
        assert known.resources == both.resources
        assert known.bucket == named
        assert (known.buckets, known.going(named)) == ((named, other), (other,))
        assert known.anonymous_download is known.expires_versions is everyone
        assert known.content("use.html") == f"the page of {named}"
    both = Recorded({**both.resources, **state(bucketName="first").resources})
    assert both.objects("first") == {KEY, "use.html"}
    assert both.objects("second") == {"use.html"}
    assert both.of("third").going("third") == ("first", "second")


def test_it_is_known_since_when_a_user_is_there() -> None:
    users = {
        "named": {"created": "2026-11-27T09:30:00.123456789Z"},
        "whole": {"created": "2026-11-27T09:30:00Z"},
        "odd": {"created": "yesterday"},
        "unknown": {},
    }
    state = Recorded(
        {name: {"type": USER, "outputs": {"name": name}, **made} for name, made in users.items()}
    )
    then = datetime(2026, 11, 27, 9, 30, tzinfo=timezone.utc)
    assert state.users_since == {"named": then, "whole": then}


def test_what_nobody_knows_of_a_stacks_outputs_is_left_out() -> None:
    unknown = pulumi.output.UNKNOWN
    outputs = {
        "publicKeys": ["a-1:x", unknown],
        "builders": {"two": {"accessKeyId": "two", "closures": unknown}},
        "retention": "For ever.",
        "readerCredentials": unknown,
    }
    urn = {"type": STACK, "outputs": outputs}
    other = {"type": BUCKET, "outputs": {"bucket": "nix-cache"}}
    known = without_unknowns({"urn": urn, "other": other})
    assert known["urn"]["outputs"] == {
        "builders": {"two": {"accessKeyId": "two"}},
        "retention": "For ever.",
    }
    assert known["other"] == other


def test_an_object_that_is_no_text_has_its_bytes() -> None:
    content = bytes(range(256))
    kept = state(contentBase64=base64.b64encode(content).decode())
    assert kept.binary_content(KEY) == content
    assert kept.binary_content("use.html") == b""


@pytest.mark.parametrize("recorded", [{}, {"contentBase64": None}, {"contentBase64": "eA=\n"}])
def test_an_object_without_readable_bytes_has_none(recorded: dict[str, Any]) -> None:
    assert state(**recorded).binary_content(KEY) == b""
