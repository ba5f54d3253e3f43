"""The private key that SSH logs in with: whether a text holds a whole one.

What would be found in the midst of a deployment otherwise is found before it, by the structure of
the key and without cryptography, whose libraries a preview would wait for.
"""

from __future__ import annotations

import base64
import re

from program.settings.reader import SettingError

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<kind>[A-Z ]*PRIVATE KEY)-----\n(?P<body>.+)\n-----END (?P=kind)-----",
    re.DOTALL,
)
_OPENSSH = "OPENSSH PRIVATE KEY"
_OPENSSH_MAGIC = b"openssh-key-v1\x00"
_ELEMENTS = {
    "RSA PRIVATE KEY": 9,
    "DSA PRIVATE KEY": 6,
    "EC PRIVATE KEY": 2,
    "PRIVATE KEY": 3,
}
"""Kinds of keys in ASN.1, and how many elements each has at least.

Source: RFC 8017 (A.1.2), RFC 5915 and RFC 5958; OpenSSL has DSA's as it has RSA's.
"""
_INTEGER, _SEQUENCE = 0x02, 0x30


def check_private_key(setting: str, text: str) -> None:
    """Refuse what is no private key, or one that only a passphrase opens, without showing it.

    Raises:
        SettingError: it is refused.
    """
    match = _PRIVATE_KEY.search(text.replace("\r\n", "\n"))
    if match is None:
        raise SettingError(
            setting, None, "holds no private key; give the whole text from -----BEGIN to END-----"
        )
    if "ENCRYPTED" in match["kind"] or "ENCRYPTED" in match["body"]:
        raise SettingError(setting, None, "wants a passphrase; use the SSH agent for this key")
    if match["kind"] not in (_OPENSSH, *_ELEMENTS):
        raise SettingError(
            setting, None, "holds a private key that SSH does not take; give one of OpenSSH's form"
        )
    # Lines with a colon are headers (RFC 1421).
    lines = [line for line in match["body"].split("\n") if ":" not in line]
    try:
        data = base64.b64decode("".join("".join(lines).split()), validate=True)
        if match["kind"] == _OPENSSH:
            locked = _openssh_key_is_locked(data)
        else:
            locked = False
            _check_asn1_key(data, _ELEMENTS[match["kind"]])
    except ValueError:
        raise SettingError(
            setting, None, "holds a damaged private key; give its whole text"
        ) from None
    if locked:
        raise SettingError(setting, None, "wants a passphrase; use the SSH agent for this key")


def _openssh_key_is_locked(data: bytes) -> bool:
    """Return whether a passphrase opens a private key of OpenSSH's own form (`PROTOCOL.key`).

    Raises:
        ValueError: it is damaged, as far as its lengths and what it says twice tell.
    """
    if not data.startswith(_OPENSSH_MAGIC):
        raise ValueError("no key of OpenSSH's")
    cipher, rest = _string(data[len(_OPENSSH_MAGIC) :])
    _derivation, rest = _string(rest)
    _options, rest = _string(rest)
    # After the number of keys, which is one.
    public, rest = _string(rest[4:])
    private, _ = _string(rest)
    if cipher != b"none":
        return True
    # What is decrypted with a wrong passphrase does not begin twice with the same number.
    if not private or private[:4] != private[4:8]:
        raise ValueError("what is private does not begin as it should")
    if _string(private[8:])[0] != _string(public)[0]:
        raise ValueError("its halves are of two kinds")
    return False


def _string(data: bytes) -> tuple[bytes, bytes]:
    """Return the string that `data` begins with (RFC 4251, section 5), and the rest.

    Raises:
        ValueError: it ends before the string does.
    """
    end = 4 + int.from_bytes(data[:4], "big")
    if len(data) < max(end, 4):
        raise ValueError("it is cut short")
    return data[4:end], data[end:]


def _check_asn1_key(data: bytes, elements: int) -> None:
    """Refuse what does not have a private key's structure in ASN.1; numbers are not looked at.

    Args:
        data: the key: a sequence that begins with a version.
        elements: how many elements it has at least.

    Raises:
        ValueError: it is damaged.
    """
    tag, content, rest = _element(data)
    if tag != _SEQUENCE or rest:
        raise ValueError("it is no sequence")
    tags = []
    while content:
        tag, _, content = _element(content)
        tags.append(tag)
    if tags[:1] != [_INTEGER] or len(tags) < elements:
        raise ValueError("it has other elements")


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and content of the element that `data` begins with (X.690), and the rest.

    Raises:
        ValueError: it ends before the element does.
    """
    if len(data) < 2:
        raise ValueError("it is cut short")
    length, start = data[1], 2
    if length > 0x7F:
        # As many bytes as it says have the length.
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("it is cut short")
    return data[0], data[start : start + length], data[start + length :]
