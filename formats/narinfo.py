"""narinfo: what a cache says of one store path, and the fingerprint that signatures are over.

Nix's own parser (`src/libstore/nar-info.cc`) skips any one character after a field's colon and lets
a field that comes again win. A text in which the two could differ says one thing to a reader of
lines and another to Nix, so it is refused here: what is read is what Nix reads, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from formats.compression import READABLE
from formats.error import FormatError
from formats.nix32 import nix32_decode, sha256_to_nix32
from formats.store_path import STORE_PATH_HASH_LENGTH, is_base_name, is_store_path

# Printable ASCII and nothing else: no tab, no carriage return, no NUL.
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9-]*): ([\x20-\x7e]*)")
_ONCE = frozenset(
    {
        "StorePath",
        "URL",
        "Compression",
        "FileHash",
        "FileSize",
        "NarHash",
        "NarSize",
        "References",
        "Deriver",
        "CA",
    }
)
# The base 64 of 64 bytes; one that holds something else makes Nix refuse the whole narinfo, or the
# path once it looks at its signatures.
_SIGNATURE = re.compile(r"[!-9;-~]+:[A-Za-z0-9+/]{85}[AQgw]==")
_NAR_KEY = re.compile(r"nar/[0-9A-Za-z][0-9A-Za-z._-]{0,250}")
_CONTENT_ADDRESS = re.compile(
    r"(?:text:sha256|fixed:(?:r:|git:)?(?:md5|sha1|sha256|sha512|blake3)):(?P<digest>[0-9a-z]+)"
)
_DIGEST_LENGTHS = {"md5": 26, "sha1": 32, "sha256": 52, "sha512": 103, "blake3": 52}

_UNKNOWN_DERIVER = "unknown-deriver"

LARGEST_NARINFO = 1 << 20
"""Bytes of the largest narinfo that is read; the largest of nixpkgs have some 100 kB."""

LOG_FOLDER = "log/"
"""Where a cache has build logs (Nix, `src/libstore/binary-cache-store.cc`, `addBuildLog`)."""


def narinfo_of(store_path: str) -> str:
    """Return the key of a store path's narinfo; its directory may be left out."""
    return f"{store_path.rpartition('/')[2][:STORE_PATH_HASH_LENGTH]}.narinfo"


def listing_of(store_path: str) -> str:
    """Return the key of the listing of a store path's NAR (`write-nar-listing`)."""
    return f"{narinfo_of(store_path).removesuffix('.narinfo')}.ls"


def log_of(deriver: str) -> str:
    """Return the key of the build log of a derivation, which is given by its base name."""
    return f"{LOG_FOLDER}{deriver}"


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
        """Read a narinfo; a field of another name is passed over, as Nix does.

        Raises:
            FormatError: a line that is not `Name: value`, a field missing, repeated or malformed,
                or a path of another store than `/nix/store`.
        """
        if len(text) > LARGEST_NARINFO:
            raise FormatError("a narinfo is too large")
        if not text.endswith("\n"):
            raise FormatError("a narinfo does not end with a line break")
        fields: dict[str, str] = {}
        signatures: list[str] = []
        for line in text[:-1].split("\n"):
            match = _LINE.fullmatch(line)
            if match is None:
                raise FormatError("a narinfo's line is not of the form Name: value")
            name, value = match.groups()
            if name == "Sig":
                if not is_signature(value):
                    raise FormatError("a narinfo's Sig is no signature")
                signatures.append(value)
            elif name in fields:
                raise FormatError("a narinfo repeats a field")
            elif name in _ONCE:
                fields[name] = value
        for name in ("StorePath", "URL", "NarHash", "NarSize"):
            if not fields.get(name):
                raise FormatError(f"a narinfo has no {name}")
        _refuse_malformed(fields)
        references = fields.get("References", "")
        nar_size = _size(fields, "NarSize")
        if not nar_size:
            raise FormatError("a narinfo's NarSize is zero")
        deriver = fields.get("Deriver")
        return cls(
            store_path=fields["StorePath"],
            url=fields["URL"],
            # Nix's own default for a narinfo without the field.
            compression=fields.get("Compression") or "bzip2",
            nar_hash=fields["NarHash"],
            nar_size=nar_size,
            references=tuple(references.split(" ")) if references else (),
            file_hash=fields.get("FileHash"),
            file_size=_size(fields, "FileSize"),
            deriver=None if deriver == _UNKNOWN_DERIVER else deriver,
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


def is_nar_key(text: str) -> bool:
    """Tell whether `text` is a URL as Nix gives it to a NAR: a name in the folder `nar`."""
    return bool(_NAR_KEY.fullmatch(text))


def is_signature(text: str) -> bool:
    """Tell whether `text` is a signature as a narinfo holds it: `name:base64(64 bytes)`."""
    return bool(_SIGNATURE.fullmatch(text))


def _refuse_malformed(fields: Mapping[str, str]) -> None:
    """Refuse values that Nix would read otherwise, or not at all."""
    if not is_store_path(fields["StorePath"]):
        raise FormatError("a narinfo's StorePath is no path of /nix/store")
    references = fields.get("References", "")
    for reference in references.split(" ") if references else ():
        if not is_base_name(reference):
            raise FormatError("a narinfo names something that is no store path")
    if " " in fields["URL"]:
        raise FormatError("a narinfo's URL has a blank")
    # Empty is the default, as absent is.
    if fields.get("Compression") and fields["Compression"] not in READABLE:
        raise FormatError("a narinfo's Compression is none that Nix can read")
    deriver = fields.get("Deriver", _UNKNOWN_DERIVER)
    if deriver != _UNKNOWN_DERIVER and not is_base_name(deriver):
        raise FormatError("a narinfo's Deriver is no store path")
    for name in ("NarHash", "FileHash"):
        if name in fields:
            sha256_to_nix32(fields[name])
    if fields.get("CA"):
        _refuse_malformed_content_address(fields["CA"])


def _refuse_malformed_content_address(text: str) -> None:
    """Refuse what Nix would not write as a content address (`ContentAddress::render`)."""
    match = _CONTENT_ADDRESS.fullmatch(text)
    if match is None or len(match["digest"]) != _DIGEST_LENGTHS[text.split(":")[-2]]:
        raise FormatError("a narinfo's CA is no content address")
    nix32_decode(match["digest"])


def _size(fields: Mapping[str, str], name: str) -> int | None:
    """Return the size in bytes that `name` holds, or None where the field is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", value):
        raise FormatError(f"a narinfo's {name} is no number of bytes")
    return int(value)
