"""Names and public halves of signing keys (Nix manual, "Signing", `trusted-public-keys`)."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from formats.error import FormatError

_BYTE_ORDER_MARK = "\ufeff"
_NAME = re.compile(r"[!-9;-~]+")
"""What stands before a key's colon: in the line of a narinfo with its signature, nothing else."""

_KEY_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_NUMBERED = r"(?P<domain>{})-(?P<number>0|[1-9][0-9]{{0,17}})"
_KEY_NAME = re.compile(_NUMBERED.format(_KEY_DOMAIN))
# Nix takes any name without a colon (`BorrowedCryptoValue::parse`,
# src/libutil/signature/local-keys.cc). These letters go through nix.conf, where # begins a comment
# and a blank another key, and through texts in Nix and HTML, as they are.
NAME_LETTERS = r"\w.+@=~/-"
"""What the name of a cache's own key is made of, for a class in a pattern (`re.ASCII`)."""

_GIVEN_DOMAIN = rf"\w(?:[{NAME_LETTERS}]*\w)?"
_GIVEN_NAME = re.compile(_NUMBERED.format(_GIVEN_DOMAIN), re.ASCII)

_NO_NUMBER = -1


def is_key_domain(text: str) -> bool:
    """Tell whether `text` is called as a host is, so that a new key can be named after it."""
    return bool(re.fullmatch(_KEY_DOMAIN, text))


@dataclass(frozen=True, order=True)
class KeyName:
    """A signing key's name: the cache's domain, a hyphen, an integer that grows with rotation.

    A key that was made elsewhere may have another name. All of it is the domain then, and it is
    older than those of that domain which have an integer.
    """

    domain: str
    number: int
    """Negative where the name has none."""

    @classmethod
    def parse(cls, text: str) -> KeyName:
        """Read `domain-integer`, or a name that is a domain only.

        Raises:
            FormatError: it begins or ends with something else than a letter, a digit or an
                underscore, or a letter is none that goes through all that has a cache's keys.
        """
        match = _GIVEN_NAME.fullmatch(text)
        if match is not None:
            return cls(match["domain"], int(match["number"]))
        if not is_given_domain(text):
            raise FormatError("a signing key's name is a domain, a hyphen and an integer")
        return cls(text, _NO_NUMBER)

    @property
    def has_number(self) -> bool:
        """Whether it ends with a hyphen and an integer, as that of a key that is made here does."""
        return self.number != _NO_NUMBER

    @property
    def next(self) -> KeyName:
        """The name that follows it when the key is rotated."""
        return KeyName(self.domain, max(self.number, 0) + 1)

    def __str__(self) -> str:
        """Return the name as Nix has it."""
        return f"{self.domain}-{self.number}" if self.has_number else self.domain


def is_given_domain(text: str) -> bool:
    """Tell whether `text` can be the domain of a key made elsewhere, or of one that follows it."""
    return bool(re.fullmatch(_GIVEN_DOMAIN, text, re.ASCII))


def split_key(text: str, size: int, kind: str) -> tuple[str, bytes]:
    """Split Nix's `name:base64`, and check that the base64 holds `size` bytes.

    Args:
        text: the key.
        size: how many bytes there must be.
        kind: `public` or `secret`, for the message.

    Raises:
        FormatError: it is not of that form or size.
    """
    text = text.strip()
    if text.startswith(_BYTE_ORDER_MARK):
        raise FormatError("it begins with a byte order mark, which would be a part of its name")
    name, colon, encoded = text.partition(":")
    if not colon or not name or re.search(r"\s", name):
        raise FormatError(f"a {kind} key is written name:base64")
    if not _NAME.fullmatch(name):
        raise FormatError(f"the name of a {kind} key has a letter that is not printable ASCII")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"the part after the colon of a {kind} key is not base64") from None
    if len(raw) != size:
        hint = ""
        if {len(raw), size} == {32, 64}:
            hint = "; this is a public key" if size == 64 else "; this is a secret key"
        raise FormatError(
            f"the part after the colon of a {kind} key holds {size} bytes, not {len(raw)}{hint}"
        )
    return name, raw


def shown_key(text: str) -> str:
    """Return what a message may show of a text that should be a public key and is none: its name.

    The rest may be a secret key, given by mistake.
    """
    name, colon, _ = text.partition(":")
    return f"{name}{colon}{'...' if colon else ''}" if _KEY_NAME.fullmatch(name) else "..."


@dataclass(frozen=True)
class PublicKey:
    """A key as clients trust it: `name:base64(32 bytes)` (`trusted-public-keys`)."""

    name: str
    data: bytes

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read `name:base64`.

        Raises:
            FormatError: not that form, not base64, or not 32 bytes.
        """
        return cls(*split_key(text, 32, "public"))

    def __str__(self) -> str:
        """Return the key as Nix has it."""
        return f"{self.name}:{base64.b64encode(self.data).decode()}"
