"""What each builder's last push came to: one small object per builder in the bucket, in JSON.

A builder writes its own. So it is read strictly, and shows people something; nothing is decided by
it. When it was written is not in it: the server says that of the object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from formats.error import FormatError
from formats.http_date import parse_iso_time

STATUS_FOLDER = "_nixcache/status/"
"""Where they lie. No narinfo's name begins with a _, so no rule expires them."""

LARGEST_STATUS = 4096
"""Bytes of the largest one that is read."""

STARTED_BY = (
    "deployment",
    "timer",
    "path",
    "service",
    "queue",
    "stdin",
    "ci",
    "command",
)
"""What may have started a push: `pulumi up`; systemd's timer, path unit or a service without
either; `--queue`; `--stdin`; a CI job; somebody else."""

_PARTIAL = frozenset({"queue", "stdin"})
_USER = re.compile(r"[A-Za-z0-9_.@+=,-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}:[A-Za-z0-9+/]{43}=")
_UNKNOWN = "unknown"
_LARGEST_NUMBER = 1 << 62
_NUMBERS = ("own", "ownBytes", "pushed", "pushedBytes", "renewed", "repaired", "failures")


@dataclass(frozen=True)
class Lease:
    """What a push kept: from then on, it ages."""

    at: datetime
    """When the push ended, to the second, in UTC."""
    own: int
    """Paths of its closures that no upstream cache signs."""
    own_bytes: int
    """Bytes of their NARs, before compression."""


@dataclass(frozen=True)
class PushStatus:
    """What a push came to."""

    started_by: str
    """One of `STARTED_BY`."""
    host: str
    """What the machine calls itself."""
    own: int
    """Paths of its closures that no upstream cache signs."""
    own_bytes: int
    """Bytes of their NARs, before compression."""
    pushed: int
    """Paths that it wrote."""
    pushed_bytes: int
    """Bytes of their NARs, before compression."""
    renewed: int
    """Paths whose lease it began anew."""
    repaired: int
    """Of those it wrote, the ones that the cache had, but broken."""
    failures: int
    """What is not in the cache and should be."""
    nix: str
    """The version of its Nix."""
    program: str
    """The version of the push."""
    before: Lease | None = None
    """What the last push before it kept that kept all; None where this one did, or none is known.
    """
    signed_by: str | None = None
    """The public half of the key that signs, in Nix's format; None where that is not told, as by
    earlier versions."""

    @property
    def kept_all(self) -> bool:
        """Whether it kept all that its machine is to keep.

        A queue and standard input name what was just built: their pushes say nothing of the rest.
        """
        return not self.failures and self.started_by not in _PARTIAL

    def lease(self, written: datetime) -> Lease | None:
        """Return what the last push kept that kept all, whether it is this one or one before.

        Args:
            written: when the server says that this status was written.
        """
        return Lease(written, self.own, self.own_bytes) if self.kept_all else self.before


def status_key(user: str) -> str | None:
    """Return the key of the status of a user's pushes; None where its name would be no key."""
    return f"{STATUS_FOLDER}{user}" if _USER.fullmatch(user) else None


def user_of(key: str) -> str | None:
    """Return the user whose status an object is, None where it is none."""
    user = key.removeprefix(STATUS_FOLDER)
    return user if status_key(user) == key else None


def format_status(status: PushStatus) -> bytes:
    """Return a status as an object's content; what cannot be written of it is `unknown`."""
    before = status.before
    fields: dict[str, object] = {
        "startedBy": status.started_by,
        "host": status.host if _HOST.fullmatch(status.host) else _UNKNOWN,
        "own": status.own,
        "ownBytes": status.own_bytes,
        "pushed": status.pushed,
        "pushedBytes": status.pushed_bytes,
        "renewed": status.renewed,
        "repaired": status.repaired,
        "failures": status.failures,
        "nix": status.nix if _VERSION.fullmatch(status.nix) else _UNKNOWN,
        "program": status.program,
        "signedBy": status.signed_by if _KEY.fullmatch(status.signed_by or "") else None,
        "before": before
        and {
            "at": before.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "own": before.own,
            "ownBytes": before.own_bytes,
        },
    }
    return f"{json.dumps(fields, indent=1)}\n".encode()


def parse_status(content: bytes) -> PushStatus:
    """Return the status that an object holds; fields that are not known decide nothing.

    Raises:
        FormatError: it is none, or has other values than `format_status` writes.
    """
    fields = _fields(content)
    numbers = {name: _number(fields, name) for name in _NUMBERS}
    return PushStatus(
        started_by=_text(fields, "startedBy", re.compile("|".join(STARTED_BY))),
        host=_text(fields, "host", _HOST),
        own=numbers["own"],
        own_bytes=numbers["ownBytes"],
        pushed=numbers["pushed"],
        pushed_bytes=numbers["pushedBytes"],
        renewed=numbers["renewed"],
        repaired=numbers["repaired"],
        failures=numbers["failures"],
        nix=_text(fields, "nix", _VERSION),
        program=_text(fields, "program", _VERSION),
        before=_lease(fields.get("before")),
        signed_by=None if fields.get("signedBy") is None else _text(fields, "signedBy", _KEY),
    )


def _fields(content: bytes) -> Mapping[str, Any]:
    if len(content) > LARGEST_STATUS:
        raise FormatError("a status is too large")
    try:
        found = json.loads(content.decode("ascii"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise FormatError("a status is no JSON") from None
    if not isinstance(found, dict):
        raise FormatError("a status is no object")
    return found


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    # True is an int, too.
    if type(value) is not int or not 0 <= value < _LARGEST_NUMBER:
        raise FormatError(f"a status has no number {name}")
    return value


def _text(fields: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise FormatError(f"a status has no {name}")
    return value


def _lease(fields: object) -> Lease | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("at"), str):
        raise FormatError("a status has no time of the push before")
    return Lease(parse_iso_time(fields["at"]), _number(fields, "own"), _number(fields, "ownBytes"))
