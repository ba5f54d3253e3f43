"""Nix's base 32 (`src/libutil/base-nix-32.cc`), and hashes written in it."""

from __future__ import annotations

import base64

from formats.error import FormatError

NIX32_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
"""Digits of Nix's base 32: no `e`, `o`, `t`, `u`."""

_SHA256_LENGTHS = {64: "base16", 52: "nix32", 44: "base64"}


def nix32_encode(data: bytes) -> str:
    """Return `data` in Nix's base 32: least significant bits last, without padding."""
    length = (len(data) * 8 + 4) // 5
    number = int.from_bytes(data, "little")
    return "".join(
        [NIX32_ALPHABET[(number >> shift) & 31] for shift in range(5 * length - 5, -1, -5)]
    )


def nix32_decode(text: str) -> bytes:
    """Return the bytes that `text` stands for in Nix's base 32.

    Raises:
        FormatError: a character outside the alphabet, or bits that no byte can hold.
    """
    number = 0
    for character in text:
        digit = NIX32_ALPHABET.find(character)
        if digit < 0:
            raise FormatError("nix32 text has a character outside its alphabet")
        number = number << 5 | digit
    size = len(text) * 5 // 8
    if number >> (8 * size) or len(text) != (size * 8 + 4) // 5:
        raise FormatError("nix32 text is of a length or value that no bytes have")
    return number.to_bytes(size, "little")


def sha256_to_nix32(text: str) -> str:
    """Return `sha256:…` in nix32, as the fingerprint has it, from base 16, nix32 or base 64.

    Raises:
        FormatError: it is no SHA-256, or not in one of these encodings.
    """
    algorithm, separator, encoded = text.partition("-" if text.startswith("sha256-") else ":")
    encoding = _SHA256_LENGTHS.get(len(encoded))
    if separator == "-" and encoding != "base64":
        encoding = None
    if algorithm != "sha256" or encoding is None:
        raise FormatError("a narinfo's hash is sha256 in base 16, nix32 or base 64")
    try:
        if encoding == "base16":
            data = bytes.fromhex(encoded)
        elif encoding == "nix32":
            data = nix32_decode(encoded)
        else:
            data = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise FormatError("a narinfo's hash has characters outside its encoding") from None
    if len(data) != 32:
        raise FormatError("a narinfo's hash does not hold 32 bytes")
    return f"sha256:{nix32_encode(data)}"
