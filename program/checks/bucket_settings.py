"""What S3 says of a bucket in XML, and is told: its lifecycle, its versions, its locks. Pure.

Source: Amazon S3 API Reference, `PutBucketLifecycleConfiguration`, `GetBucketVersioning`,
`GetObjectLockConfiguration`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from components.retention import ExpirationRule
from formats.error import FormatError
from formats.s3 import parse_answer

_OF_A_RULE = frozenset(
    {"ID", "Status", "Prefix", "Filter", "Expiration", "NoncurrentVersionExpiration"}
)
"""What a rule consists of that expires by key and age alone."""

_OTHER_ACTIONS = ("Transition", "NoncurrentVersionTransition", "AbortIncompleteMultipartUpload")
"""What S3 knows besides; a rule that as much as names one is another."""

_OFF = frozenset({"", "0", "false"})
"""How servers write that a rule has nothing more to say."""


@dataclass(frozen=True)
class Lifecycle:
    """A bucket's lifecycle."""

    rules: tuple[ExpirationRule, ...] = ()
    """What expires by its key and age alone."""
    others: tuple[str, ...] = ()
    """The ids of all other rules."""


def parse_lifecycle(body: bytes) -> Lifecycle:
    """Return the lifecycle that a server answers with.

    Raises:
        FormatError: it is none.
    """
    rules, others = [], []
    for element in parse_answer(body, "LifecycleConfiguration"):
        if element.tag == "Rule":
            rule = _expiring(element)
            if rule is None:
                others.append(element.findtext("ID") or "a rule without an id")
            else:
                rules.append(rule)
    return Lifecycle(tuple(rules), tuple(others))


def _expiring(rule: ElementTree.Element) -> ExpirationRule | None:
    """Return a rule that expires by key and age alone, or None for any other."""
    expiration, selected = _parts(rule, "Expiration"), _parts(rule, "Filter")
    noncurrent = _parts(rule, "NoncurrentVersionExpiration")
    days = _days(expiration.pop("Days", ""))
    prefix = selected.pop("Prefix", "") or rule.findtext("Prefix") or ""
    noncurrent_days = _days(noncurrent.pop("NoncurrentDays", ""))
    more = [_text(part) for part in rule if part.tag not in _OF_A_RULE]
    more += [*expiration.values(), *selected.values(), *noncurrent.values()]
    if (
        rule.findtext("Status") != "Enabled"
        or days is None
        or any(rule.find(name) is not None for name in _OTHER_ACTIONS)
        or not _OFF.issuperset(more)
    ):
        return None
    return ExpirationRule(rule.findtext("ID") or "", prefix, days, noncurrent_days)


def _parts(rule: ElementTree.Element, name: str) -> dict[str, str]:
    """Return what each part of a part of a rule says."""
    found = rule.find(name)
    return {part.tag: _text(part) for part in found} if found is not None else {}


def _text(part: ElementTree.Element) -> str:
    return "".join(part.itertext()).strip()


def _days(text: str) -> int | None:
    return (int(text) or None) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def lifecycle(rules: Iterable[ExpirationRule]) -> bytes:
    """Return the document that gives a bucket these rules, and no others."""
    root = ElementTree.Element("LifecycleConfiguration")
    for rule in rules:
        element = ElementTree.SubElement(root, "Rule")
        ElementTree.SubElement(element, "ID").text = rule.id
        ElementTree.SubElement(element, "Status").text = "Enabled"
        selected = ElementTree.SubElement(element, "Filter")
        ElementTree.SubElement(selected, "Prefix").text = rule.prefix
        expiration = ElementTree.SubElement(element, "Expiration")
        ElementTree.SubElement(expiration, "Days").text = str(rule.days)
    return ElementTree.tostring(root)


def parse_versioning(body: bytes) -> bool:
    """Return whether a bucket keeps, or has kept, what is written again or deleted.

    Raises:
        FormatError: the answer is something else.
    """
    status = parse_answer(body, "VersioningConfiguration").findtext("Status") or ""
    if status not in ("", "Off", "Enabled", "Suspended"):
        raise FormatError("a bucket's versioning has a state that S3 does not know")
    return status in ("Enabled", "Suspended")


def parse_object_lock(body: bytes) -> bool:
    """Return whether a bucket locks whatever is written to it.

    Raises:
        FormatError: the answer is something else.
    """
    mode = parse_answer(body, "ObjectLockConfiguration").findtext("Rule/DefaultRetention/Mode")
    return bool((mode or "").strip())
