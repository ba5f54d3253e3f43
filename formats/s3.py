"""What an S3 server answers, in XML: listings, copies, uploads in parts, errors.

A server may be anybody's. No answer's document type or entities are looked at, sizes are numbers of
bytes before they are numbers, times are times, and an entry that is none of this is as good as
absent: what the bucket seems to lack is pushed again.

Source: Amazon S3 API Reference, `ListObjectsV2`, `CopyObject`, `CreateMultipartUpload`,
`ListMultipartUploads`, `CompleteMultipartUpload`, "Error responses".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from formats.error import FormatError
from formats.http_date import parse_iso_time

LARGEST_ANSWER = 1 << 23
"""Bytes of the largest answer that is read: a thousand keys of 1,024 characters fit, encoded."""

LARGEST_COPY = 5 << 30
"""Bytes of the largest object that one request copies, and of the largest part."""

SMALLEST_PART = 5 << 20
"""Bytes of the smallest part but the last."""

MOST_PARTS = 10_000
"""Parts of one object."""

# A thousand entries of thirty elements; each takes a hundred times its text in memory.
_MOST_TAGS = 60_000
_ETAG = re.compile(r'"?([0-9A-Za-z+/=._-]{1,128})"?')
_UPLOAD_ID = re.compile(r"[A-Za-z0-9._~=+/-]{1,1024}")
_NAME = re.compile(r"[A-Za-z0-9]{1,64}")
_SIZE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class ListedObject:
    """One object of a listing."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Without its quotation marks."""
    last_modified: datetime
    """In UTC."""


@dataclass(frozen=True)
class Listing:
    """One page of a listing."""

    objects: tuple[ListedObject, ...]
    truncated: bool
    """Whether there is another page."""
    last_key: str | None
    """The last key or folder of the page, whatever else could be made of it."""


@dataclass(frozen=True)
class ListedVersion:
    """A version of an object, or what marks it as deleted."""

    key: str
    id: str | None
    """The version's; None where the bucket keeps no versions."""
    size: int
    """In bytes."""
    current: bool
    """Whether it is what a reader gets."""


@dataclass(frozen=True)
class VersionListing:
    """A page of a listing of versions."""

    versions: tuple[ListedVersion, ...]
    truncated: bool
    """Whether there is another page."""
    next_key: str
    next_id: str
    """Where that begins."""


@dataclass(frozen=True)
class CopiedObject:
    """What a server says of what it has copied."""

    etag: str
    """Without its quotation marks."""
    last_modified: datetime | None
    """When the copy was written, in UTC; None where the answer does not tell it."""


@dataclass(frozen=True)
class ErrorAnswer:
    """Why a server refused."""

    code: str
    """S3's word for it, such as `AccessDenied`; empty where the answer has none."""
    message: str
    """The server's sentence, printable and short."""


def parse_etag(text: str) -> str:
    """Return an ETag without its quotation marks.

    Raises:
        FormatError: it is not what a server of S3's kind sends.
    """
    match = _ETAG.fullmatch(text)
    if match is None:
        raise FormatError("an ETag has characters that no ETag has")
    return match[1]


def parse_listing(body: bytes) -> Listing:
    """Return a page of a listing, without entries that are malformed.

    Raises:
        FormatError: it is no listing.
    """
    root = parse_answer(body, "ListBucketResult")
    encoded = root.findtext("EncodingType") == "url"
    objects = tuple(_listed_objects(root, encoded))
    names = [element.text or "" for element in root.findall("Contents/Key")]
    names += [element.text or "" for element in root.findall("CommonPrefixes/Prefix")]
    last = max((_decoded(name, encoded) for name in names), default=None)
    return Listing(objects, root.findtext("IsTruncated") == "true", last)


def parse_versions(body: bytes) -> VersionListing:
    """Return a page of a listing of versions.

    Raises:
        FormatError: it is no such listing.
    """
    root = parse_answer(body, "ListVersionsResult")
    encoded = root.findtext("EncodingType") == "url"

    versions = []
    for element in root:
        if element.tag in ("Version", "DeleteMarker"):
            size = element.findtext("Size") or "0"
            if not _SIZE.fullmatch(size):
                raise FormatError("a version's size is no number")
            versions.append(
                ListedVersion(
                    _decoded(element.findtext("Key"), encoded),
                    element.findtext("VersionId") or None,
                    int(size),
                    current=element.tag == "Version" and element.findtext("IsLatest") != "false",
                )
            )
    return VersionListing(
        tuple(versions),
        root.findtext("IsTruncated") == "true",
        _decoded(root.findtext("NextKeyMarker"), encoded),
        root.findtext("NextVersionIdMarker") or "",
    )


def _listed_objects(root: ElementTree.Element, encoded: bool) -> Iterator[ListedObject]:
    for element in root.findall("Contents"):
        key, size = element.findtext("Key") or "", element.findtext("Size") or ""
        if not key or not _SIZE.fullmatch(size):
            continue
        try:
            etag = parse_etag(element.findtext("ETag") or "")
            modified = parse_iso_time(element.findtext("LastModified") or "")
        except FormatError:
            continue
        yield ListedObject(_decoded(key, encoded), int(size), etag, modified)


def _decoded(name: str | None, encoded: bool) -> str:
    """Return a name in a listing, of which servers write a blank as `+` or `%20`.

    MinIO, SeaweedFS and AWS write the former, Ceph's gateway the latter, and all of them a plus as
    `%2B`.
    """
    return unquote_plus(name or "") if encoded else name or ""


def parse_copy(body: bytes) -> str:
    """Return the ETag of what was copied, an object or a part.

    Raises:
        FormatError: it is no such answer. A copy may fail after the server has said 200.
    """
    return parse_copied(body).etag


def parse_copied(body: bytes) -> CopiedObject:
    """Return what is said of what was copied, an object or a part.

    Raises:
        FormatError: as `parse_copy`.
    """
    root = parse_answer(body, "CopyObjectResult", "CopyPartResult")
    etag = parse_etag(root.findtext("ETag") or "")
    try:
        return CopiedObject(etag, parse_iso_time(root.findtext("LastModified") or ""))
    except FormatError:
        return CopiedObject(etag, None)


def parse_begun_upload(body: bytes) -> str:
    """Return the id of an upload in parts that was begun.

    Raises:
        FormatError: it is no such answer.
    """
    return _upload_id(parse_answer(body, "InitiateMultipartUploadResult"))


def parse_completed_upload(body: bytes) -> str | None:
    """Return the ETag of an object whose parts were joined, None where the answer has none.

    Raises:
        FormatError: it is no such answer. Joining may fail after the server has said 200.
    """
    text = parse_answer(body, "CompleteMultipartUploadResult").findtext("ETag") or ""
    try:
        return parse_etag(text)
    except FormatError:
        return None


def parse_uploads(body: bytes) -> tuple[tuple[str, str, datetime], ...]:
    """Return key, id and beginning of each upload in parts that was begun and not ended.

    Raises:
        FormatError: it is no such answer.
    """
    found = []
    for element in parse_answer(body, "ListMultipartUploadsResult").findall("Upload"):
        try:
            initiated = parse_iso_time(element.findtext("Initiated") or "")
            found.append((element.findtext("Key") or "", _upload_id(element), initiated))
        except FormatError:
            continue
    return tuple(found)


def completion(etags: list[str]) -> bytes:
    """Return the body of `CompleteMultipartUpload`, for parts from 1 with these ETags."""
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def parse_error(body: bytes) -> ErrorAnswer:
    """Return why a server refused; a proxy's page, which is no error of S3's, has no code."""
    try:
        root = parse_answer(body, "Error")
    except FormatError:
        return ErrorAnswer("", "")
    code, message = root.findtext("Code") or "", root.findtext("Message") or ""
    if not _NAME.fullmatch(code):
        return ErrorAnswer("", "")
    printable = "".join(letter if letter.isprintable() else " " for letter in message[:200])
    return ErrorAnswer(code, printable.strip())


def _upload_id(element: ElementTree.Element) -> str:
    text = element.findtext("UploadId") or ""
    if not _UPLOAD_ID.fullmatch(text):
        raise FormatError("an upload has no id")
    return text


def parse_answer(body: bytes, *names: str) -> ElementTree.Element:
    """Return the root, which has one of `names`, with all names bare of their namespace.

    Raises:
        FormatError: it is too large, no XML as S3 writes it, or something else than was asked for.
    """
    if len(body) > LARGEST_ANSWER:
        raise FormatError("an answer is too large")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("an answer is no UTF-8") from None
    # Neither document types with their entities nor comments are part of S3's answers.
    if "<!" in text:
        raise FormatError("an answer declares a document type or has a comment")
    if text.count("<") > _MOST_TAGS:
        raise FormatError("an answer has too many elements")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        raise FormatError("an answer is no XML") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag not in names:
        raise FormatError("an answer is something else than was asked for")
    return root
