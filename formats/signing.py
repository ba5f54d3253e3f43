"""What signs and verifies: Ed25519 by PyNaCl (libsodium)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey as Ed25519SigningKey
from nacl.signing import VerifyKey

from formats.error import FormatError
from formats.keys import PublicKey, split_key
from formats.narinfo import NarInfo


@dataclass(frozen=True)
class SecretKey:
    """A key as Nix signs with it: `name:base64(32-byte seed + 32-byte public key)`."""

    name: str
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls, name: str) -> SecretKey:
        """Make a new key; the seed comes from PyNaCl's generator (libsodium)."""
        return cls(name, bytes(Ed25519SigningKey.generate()))

    @classmethod
    def parse(cls, text: str) -> SecretKey:
        """Read what `nix key generate-secret` writes.

        Raises:
            FormatError: not that form, not base64, not 64 bytes, or a seed whose public half is
                another one's.
        """
        name, raw = split_key(text, 64, "secret")
        key = cls(name, raw[:32])
        if key.public_key.data != raw[32:]:
            raise FormatError("the secret key's seed does not match its public half")
        return key

    @property
    def public_key(self) -> PublicKey:
        """The public half (`nix key convert-secret-to-public`)."""
        return PublicKey(self.name, bytes(Ed25519SigningKey(self.seed).verify_key))

    def to_nix(self) -> str:
        """Return the secret in Nix's format, for a file or a secret output and nothing else."""
        return f"{self.name}:{base64.b64encode(self.seed + self.public_key.data).decode()}"

    def sign(self, fingerprint: str) -> str:
        """Return this key's signature over `fingerprint`, as a narinfo's `Sig:` holds it."""
        signature = Ed25519SigningKey(self.seed).sign(fingerprint.encode()).signature
        return f"{self.name}:{base64.b64encode(signature).decode()}"


def verifies(key: PublicKey, fingerprint: str, signature: str) -> bool:
    """Tell whether `signature` (`name:base64`) is `key`'s over `fingerprint`.

    A signature by another name, or one that is malformed, is simply not this key's.
    """
    name, _, encoded = signature.partition(":")
    if name != key.name:
        return False
    try:
        VerifyKey(key.data).verify(fingerprint.encode(), base64.b64decode(encoded, validate=True))
    except (BadSignatureError, ValueError, binascii.Error):
        return False
    return True


def verified_by(narinfo: NarInfo, trusted: Mapping[str, PublicKey]) -> tuple[str, ...]:
    """Return the names of the trusted keys whose signature `narinfo` has, in its order."""
    text = narinfo.fingerprint
    return tuple(
        name
        for signature in narinfo.signatures
        for name in (signature.partition(":")[0],)
        if name in trusted and verifies(trusted[name], text, signature)
    )
