"""What a bucket's lifecycle, versions and locks are taken for."""

from __future__ import annotations

import pytest

from components.retention import ExpirationRule, expiration_rules
from formats.error import FormatError
from program.checks.bucket_settings import (
    Lifecycle,
    lifecycle,
    parse_lifecycle,
    parse_object_lock,
    parse_versioning,
)

RULE = ExpirationRule("a", "0", 7)


def answer(*rules: str) -> bytes:
    return (
        '<?xml version="1.0"?><LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/'
        f'2006-03-01/">{"".join(f"<Rule>{rule}</Rule>" for rule in rules)}'
        "<ExpiryUpdatedAt>now</ExpiryUpdatedAt></LifecycleConfiguration>"
    ).encode()


def rule(more: str = "", *, status: str = "Enabled", days: str = "<Days>7</Days>") -> str:
    return (
        f"<ID>a</ID><Status>{status}</Status><Expiration>{days}</Expiration>"
        f"<Filter><Prefix>0</Prefix></Filter>{more}"
    )


def test_what_is_declared_is_read_back() -> None:
    rules = tuple(expiration_rules(7, 1))
    assert len(rules) > 100
    assert parse_lifecycle(lifecycle(rules)) == Lifecycle(rules)
    odd = ExpirationRule("<&>", "a&b<c", 1)
    assert parse_lifecycle(lifecycle([odd])).rules == (odd,)
    assert parse_lifecycle(lifecycle([])) == Lifecycle()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rule(), RULE),
        (rule("<DelMarkerExpiration></DelMarkerExpiration>"), RULE),
        (
            rule(days="<Days>7</Days><ExpiredObjectDeleteMarker>false</ExpiredObjectDeleteMarker>"),
            RULE,
        ),
        (
            rule(
                "<NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays>"
                "<NewerNoncurrentVersions>0</NewerNoncurrentVersions>"
                "</NoncurrentVersionExpiration>"
            ),
            ExpirationRule("a", "0", 7, 2),
        ),
        (
            "<ID>a</ID><Status>Enabled</Status><Prefix>0</Prefix><Expiration><Days>7</Days>"
            "</Expiration>",
            RULE,
        ),
        (
            "<ID>a</ID><Status>Enabled</Status><Filter/><Expiration><Days>7</Days></Expiration>",
            ExpirationRule("a", "", 7),
        ),
    ],
)
def test_a_rule_that_expires_by_key_and_age_is_known(text: str, expected: ExpirationRule) -> None:
    assert parse_lifecycle(answer(text)) == Lifecycle((expected,))


@pytest.mark.parametrize(
    "text",
    [
        rule(status="Disabled"),
        rule(days=""),
        rule(days="<Days>0</Days>"),
        rule(days="<Days>-7</Days>"),
        rule(days="<Days>1e3</Days>"),
        rule(days="<Days>9999999999</Days>"),
        rule(days="<Date>2026-11-27T00:00:00Z</Date>"),
        rule(days="<Days>7</Days><ExpiredObjectAllVersions>true</ExpiredObjectAllVersions>"),
        rule("<Transition><Days>1</Days><StorageClass>COLD</StorageClass></Transition>"),
        rule("<Transition></Transition>"),
        rule(
            "<NoncurrentVersionTransition><NoncurrentDays>0</NoncurrentDays>"
            "</NoncurrentVersionTransition>"
        ),
        rule("<DelMarkerExpiration><Days>1</Days></DelMarkerExpiration>"),
        rule(
            "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>"
            "</AbortIncompleteMultipartUpload>"
        ),
        rule(
            "<NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays>"
            "<NewerNoncurrentVersions>3</NewerNoncurrentVersions></NoncurrentVersionExpiration>"
        ),
        "<ID>a</ID><Status>Enabled</Status><Expiration><Days>7</Days></Expiration><Filter><And>"
        "<Prefix>0</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And></Filter>",
        "<ID>a</ID><Status>Enabled</Status><Expiration><Days>7</Days></Expiration><Filter>"
        "<ObjectSizeGreaterThan>1</ObjectSizeGreaterThan></Filter>",
    ],
)
def test_a_rule_that_does_anything_else_is_somebody_elses(text: str) -> None:
    assert parse_lifecycle(answer(text)) == Lifecycle((), ("a",))


def test_a_rule_without_an_id_is_told_all_the_same() -> None:
    assert parse_lifecycle(answer("<Status>Disabled</Status>")).others == ("a rule without an id",)


@pytest.mark.parametrize("body", [b"", b"<html/>", b"<LifecycleConfiguration>", b"\xff"])
def test_what_is_no_lifecycle_is_none(body: bytes) -> None:
    with pytest.raises(FormatError):
        parse_lifecycle(body)


@pytest.mark.parametrize(
    ("status", "keeps"), [("", False), ("Off", False), ("Enabled", True), ("Suspended", True)]
)
def test_a_bucket_that_keeps_versions_says_so(status: str, keeps: bool) -> None:
    body = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>"
    assert parse_versioning(body.encode()) is keeps


def test_a_state_of_versioning_that_nobody_knows_is_not_taken_for_none() -> None:
    with pytest.raises(FormatError):
        parse_versioning(b"<VersioningConfiguration><Status>On</Status></VersioningConfiguration>")


def test_a_bucket_that_locks_what_is_written_says_so() -> None:
    locked = (
        b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>"
        b"<DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule>"
        b"</ObjectLockConfiguration>"
    )
    assert parse_object_lock(locked)
    assert not parse_object_lock(
        b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>"
        b"</ObjectLockConfiguration>"
    )
