"""narinfo: what a cache says of one store path, and the fingerprint that signatures are over.

Nix's own parser (`src/libstore/nar-info.cc`) skips any one character after a field's colon and lets
a field that comes again win. A text in which the two could differ says one thing to a reader of
lines and another to Nix, so it is refused here: what is read is what Nix reads, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from formats.error import FormatError
from formats.nix32 import sha256_to_nix32
from formats.store_path import is_base_name

# Printable ASCII and nothing else: no tab, no carriage return, no NUL. Only References, Deriver and
# CA may be empty in what Nix writes, and Nix reads an empty value as none.
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9-]*): ([\x20-\x7e]*)")

LARGEST_NARINFO = 1 << 20
"""Bytes of the largest narinfo that is read; the largest of nixpkgs have some 100 kB."""


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
            FormatError: a line that is not `Name: value`, a field missing, repeated or malformed.
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
                signatures.append(value)
            elif name in fields:
                raise FormatError("a narinfo repeats a field")
            else:
                fields[name] = value
        for name in ("StorePath", "URL", "NarHash", "NarSize"):
            if not fields.get(name):
                raise FormatError(f"a narinfo has no {name}")
        _refuse_malformed(fields)
        references = fields.get("References", "")
        nar_size = _size(fields, "NarSize")
        if not nar_size:
            raise FormatError("a narinfo's NarSize is zero")
        sha256_to_nix32(fields["NarHash"])
        return cls(
            store_path=fields["StorePath"],
            url=fields["URL"],
            # Nix's own default for a narinfo without the field.
            compression=fields.get("Compression") or "bzip2",
            nar_hash=fields["NarHash"],
            nar_size=nar_size,
            references=tuple(references.split(" ")) if references else (),
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


def _refuse_malformed(fields: Mapping[str, str]) -> None:
    """Refuse values that Nix would read otherwise, or not at all."""
    store_dir, _, base_name = fields["StorePath"].rpartition("/")
    if not store_dir.startswith("/"):
        raise FormatError("a narinfo's StorePath is not absolute")
    references = fields.get("References", "")
    for reference in (base_name, *(references.split(" ") if references else ())):
        if not is_base_name(reference):
            raise FormatError("a narinfo names something that is no store path")
    for name in ("StorePath", "URL", "Compression", "FileHash", "Deriver", "CA"):
        if " " in fields.get(name, ""):
            raise FormatError(f"a narinfo's {name} has a blank")
    deriver = fields.get("Deriver")
    if deriver and deriver != "unknown-deriver" and not is_base_name(deriver):
        raise FormatError("a narinfo's Deriver is no store path")
    if fields.get("FileHash"):
        sha256_to_nix32(fields["FileHash"])


def _size(fields: Mapping[str, str], name: str) -> int | None:
    """Return the size in bytes that `name` holds, or None where the field is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", value):
        raise FormatError(f"a narinfo's {name} is no number of bytes")
    return int(value)
