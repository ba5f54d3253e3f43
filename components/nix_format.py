"""Nix's own text formats: nix32, signing keys, narinfo, and the fingerprint that is signed.

Pure functions and values; the one library behind them is PyNaCl (Ed25519). Every failure is a
`FormatError` whose text never repeats its input, because the input may be a secret.

Sources: Nix manual, "Store path" and "Signing" pages and `nix key`; `src/libstore/nar-info.cc`
(narinfo), `src/libstore/path-info.cc` (fingerprint), `src/libutil/hash.cc` (nix32).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey as Ed25519SigningKey
from nacl.signing import VerifyKey

NIX32_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
"""Digits of Nix's base 32: no `e`, `o`, `t`, `u` (`src/libutil/base-nix-32.cc`)."""

STORE_PATH_HASH_LENGTH = 32
"""Length in characters of a store path's hash part: 20 bytes in nix32."""

_KEY_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_KEY_NAME = re.compile(rf"(?P<domain>{_KEY_DOMAIN})-(?P<number>0|[1-9][0-9]{{0,17}})")
_STORE_PATH_NAME = rf"[{NIX32_ALPHABET}]{{{STORE_PATH_HASH_LENGTH}}}-[0-9A-Za-z+\-._?=]{{1,211}}"
_STORE_PATH_BASE_NAME = re.compile(_STORE_PATH_NAME)
_SHA256_LENGTHS = {64: "base16", 52: "nix32", 44: "base64"}


class FormatError(ValueError):
    """A text that is not what Nix writes; the message says what is wrong, never the text."""


def nix32_encode(data: bytes) -> str:
    """Return `data` in Nix's base 32: least significant bits last, without padding."""
    length = (len(data) * 8 + 4) // 5
    number = int.from_bytes(data, "little")
    return "".join(
        NIX32_ALPHABET[(number >> (5 * position)) & 31] for position in reversed(range(length))
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


def is_store_path(path: str, store_dir: str = "/nix/store") -> bool:
    """Tell whether `path` names a path directly in `store_dir`, hash and name well-formed."""
    prefix = f"{store_dir}/"
    return path.startswith(prefix) and bool(_STORE_PATH_BASE_NAME.fullmatch(path[len(prefix) :]))


def is_key_domain(text: str) -> bool:
    """Tell whether `text` can stand before the hyphen and the integer of a key's name."""
    return bool(re.fullmatch(_KEY_DOMAIN, text))


@dataclass(frozen=True, order=True)
class KeyName:
    """A signing key's name: the cache's domain, a hyphen, an integer that grows with rotation."""

    domain: str
    number: int

    @classmethod
    def parse(cls, text: str) -> KeyName:
        """Read `domain-integer`.

        Raises:
            FormatError: there is no domain, no hyphen or no integer.
        """
        match = _KEY_NAME.fullmatch(text)
        if match is None:
            raise FormatError("a signing key's name is a domain, a hyphen and an integer")
        return cls(match["domain"], int(match["number"]))

    def __str__(self) -> str:
        """Return the name as Nix has it."""
        return f"{self.domain}-{self.number}"


def _split_key(text: str, size: int, kind: str) -> tuple[str, bytes]:
    """Split Nix's `name:base64` and check that the base64 holds `size` bytes."""
    name, colon, encoded = text.strip().partition(":")
    if not colon or not name or re.search(r"\s", name):
        raise FormatError(f"a {kind} key is written name:base64")
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
        return cls(*_split_key(text, 32, "public"))

    def __str__(self) -> str:
        """Return the key as Nix has it."""
        return f"{self.name}:{base64.b64encode(self.data).decode()}"

    def verifies(self, fingerprint: str, signature: str) -> bool:
        """Tell whether `signature` (`name:base64`) is this key's over `fingerprint`.

        A signature by another name, or one that is malformed, is simply not this key's.
        """
        name, _, encoded = signature.partition(":")
        if name != self.name:
            return False
        try:
            raw = base64.b64decode(encoded, validate=True)
            VerifyKey(self.data).verify(fingerprint.encode(), raw)
        except (BadSignatureError, ValueError):
            return False
        return True


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
        name, raw = _split_key(text, 64, "secret")
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


def sha256_to_nix32(text: str) -> str:
    """Return `sha256:…` in nix32, as the fingerprint has it, from base 16, nix32 or base 64.

    Raises:
        FormatError: it is no SHA-256, or not in one of these encodings.
    """
    algorithm, separator, encoded = text.partition("-" if text.startswith("sha256-") else ":")
    encoding = _SHA256_LENGTHS.get(len(encoded))
    if algorithm != "sha256" or not separator or encoding is None:
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


def fingerprint(
    store_path: str, nar_hash: str, nar_size: int, references: Iterable[str], store_dir: str
) -> str:
    """Return the text that is signed for a store path (`ValidPathInfo::fingerprint`).

    Args:
        store_path: the full store path.
        nar_hash: `sha256:` and the digest of the uncompressed NAR.
        nar_size: size of the uncompressed NAR, bytes.
        references: base names of the referenced store paths, in any order.
        store_dir: the store directory, `/nix/store`.

    Raises:
        FormatError: the hash is no SHA-256.
    """
    full_references = ",".join(f"{store_dir}/{reference}" for reference in sorted(set(references)))
    return f"1;{store_path};{sha256_to_nix32(nar_hash)};{nar_size};{full_references}"


@dataclass(frozen=True)
class NarInfo:
    """What a cache says of one store path: the text file `<hash>.narinfo`."""

    store_path: str
    url: str
    compression: str
    nar_hash: str
    nar_size: int
    references: tuple[str, ...] = ()
    file_hash: str | None = None
    file_size: int | None = None
    deriver: str | None = None
    signatures: tuple[str, ...] = ()
    content_address: str | None = None

    @classmethod
    def parse(cls, text: str) -> NarInfo:
        """Read a narinfo; unknown fields are passed over, as Nix does.

        Raises:
            FormatError: a line without a colon, a field missing, repeated or malformed.
        """
        fields: dict[str, str] = {}
        signatures: list[str] = []
        for line in text.removesuffix("\n").split("\n"):
            name, separator, value = line.partition(":")
            value = value.strip(" ")
            if not separator:
                raise FormatError("a narinfo's line has no colon")
            if name == "Sig":
                signatures.append(value)
            elif name in fields:
                raise FormatError("a narinfo repeats a field")
            else:
                fields[name] = value
        for name in ("StorePath", "URL", "NarHash", "NarSize"):
            if not fields.get(name):
                raise FormatError(f"a narinfo has no {name}")
        store_dir, _, base_name = fields["StorePath"].rpartition("/")
        references = tuple(fields.get("References", "").split())
        for reference in (base_name, *references):
            if not _STORE_PATH_BASE_NAME.fullmatch(reference):
                raise FormatError("a narinfo names something that is no store path")
        if not store_dir.startswith("/"):
            raise FormatError("a narinfo's StorePath is not absolute")
        sha256_to_nix32(fields["NarHash"])
        return cls(
            store_path=fields["StorePath"],
            url=fields["URL"],
            # Nix's own default for a narinfo without the field.
            compression=fields.get("Compression") or "bzip2",
            nar_hash=fields["NarHash"],
            nar_size=_size(fields, "NarSize") or 0,
            references=references,
            file_hash=fields.get("FileHash") or None,
            file_size=_size(fields, "FileSize"),
            deriver=fields.get("Deriver") or None,
            signatures=tuple(signatures),
            content_address=fields.get("CA") or None,
        )

    def format(self) -> str:
        """Return the narinfo's text, fields in the order in which Nix writes them."""
        fields: list[tuple[str, str | int | None]] = [
            ("StorePath", self.store_path),
            ("URL", self.url),
            ("Compression", self.compression),
            ("FileHash", self.file_hash),
            ("FileSize", self.file_size),
            ("NarHash", self.nar_hash),
            ("NarSize", self.nar_size),
            ("References", " ".join(self.references)),
            ("Deriver", self.deriver),
            *(("Sig", signature) for signature in self.signatures),
            ("CA", self.content_address),
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields if value is not None)

    @property
    def fingerprint(self) -> str:
        """The text that this path's signatures are over."""
        store_dir = self.store_path.rpartition("/")[0]
        return fingerprint(
            self.store_path, self.nar_hash, self.nar_size, self.references, store_dir
        )

    def verified_by(self, trusted: Mapping[str, PublicKey]) -> tuple[str, ...]:
        """Return the names of the trusted keys whose signature here is good, in file order."""
        text = self.fingerprint
        return tuple(
            name
            for signature in self.signatures
            for name in (signature.partition(":")[0],)
            if name in trusted and trusted[name].verifies(text, signature)
        )


def _size(fields: Mapping[str, str], name: str) -> int | None:
    """Return the size in bytes that `name` holds, or None where the field is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", value):
        raise FormatError(f"a narinfo's {name} is no number of bytes")
    return int(value)
