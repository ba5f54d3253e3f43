"""Objects that are written in parts: large NARs, sent or renewed (S3, "Multipart upload")."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from formats.error import FormatError
from formats.http_date import parse_http_date
from formats.s3 import (
    LARGEST_COPY,
    MOST_PARTS,
    completion,
    parse_begun_upload,
    parse_completed_upload,
    parse_copy,
    parse_etag,
    parse_uploads,
)
from formats.sigv4 import encoded_path
from push.connection import Answer, FileSlice, Request
from push.failure import Failure
from push.transfers import Transfers

PRIORITY = 4
"""Before NARs that are not begun yet, so that what is begun ends."""

_ABSENT = frozenset({404})
_A_DAY = timedelta(days=1)


class PartsUpload:
    """Writes an object in parts: from a file or, without one, from the object itself.

    Uploads of the same object that were begun more than a day ago are ended first: readers never
    see them, but they take space. A younger one may be another builder's. One that fails is taken
    back.
    """

    def __init__(
        self,
        transfers: Transfers,
        *,
        bucket: str,
        key: str,
        size: int,
        part_size: int,
        content_type: str,
        file: Path | None,
        done: Callable[[str | None], None],
        failed: Callable[[Failure], None],
        gone: Callable[[], None],
    ) -> None:
        """Plan the parts; `done` gets the object's ETag, `gone` is called where it is no more."""
        self._transfers = transfers
        self._bucket = bucket
        self._key = key
        self._type = content_type
        self._size = size
        self._file = file
        self._done = done
        self._failed = failed
        self._gone = gone
        self._step = "renew" if file is None else "upload"
        part = max(part_size, -(-size // MOST_PARTS))
        self._part = min(part, LARGEST_COPY)
        self._etags: dict[int, str] = {}
        self._ended = False
        self._id = ""
        self._since = datetime.max.replace(tzinfo=timezone.utc)

    def begin(self) -> None:
        """Begin it; the rest follows from the answers."""
        self._submit(
            Request(self._step, "GET", "", (("prefix", self._key), ("uploads", ""))),
            self._end_old,
        )

    def _end_old(self, answer: Answer) -> None:
        try:
            begun = parse_uploads(answer.body)
        except FormatError:
            begun = ()
        for key, upload, initiated in begun:
            if key == self._key and answer.date and answer.date - initiated > _A_DAY:
                self._forget(upload)
        request = Request(
            self._step,
            "POST",
            self._key,
            (("uploads", ""),),
            {"content-type": self._type},
        )
        self._submit(request, self._begun)

    def _begun(self, answer: Answer) -> None:
        try:
            self._id = parse_begun_upload(answer.body)
        except FormatError:
            self._fail(Failure(self._step, f"the server began no upload of {self._key} in parts"))
            return
        self._since = answer.date or self._since
        for number in range(1, self._parts + 1):
            start = (number - 1) * self._part
            self._send(number, start, min(self._part, self._size - start))

    @property
    def _parts(self) -> int:
        return -(-self._size // self._part)

    def _send(self, number: int, start: int, size: int) -> None:
        query = (("partNumber", str(number)), ("uploadId", self._id))
        headers = {"content-type": self._type}
        body: bytes | FileSlice = b""
        expected = frozenset[int]()
        if self._file is None:
            expected = _ABSENT
            headers |= {
                "x-amz-copy-source": encoded_path(f"/{self._bucket}/{self._key}"),
                "x-amz-copy-source-range": f"bytes={start}-{start + size - 1}",
            }
        else:
            body = FileSlice(self._file, start, size)
        request = Request(self._step, "PUT", self._key, query, headers, body, expected)
        self._submit(
            request, lambda answer: self._sent(number, answer), wanted=lambda: not self._ended
        )

    def _sent(self, number: int, answer: Answer) -> None:
        if self._ended:
            return
        if answer.status == 404:
            self._ended = True
            self._forget(self._id)
            self._gone()
            return
        try:
            copied = self._file is None
            etag = parse_copy(answer.body) if copied else parse_etag(answer.headers.get("etag", ""))
        except FormatError:
            self._fail(Failure(self._step, f"the server took no part {number} of {self._key}"))
            return
        self._etags[number] = etag
        if len(self._etags) == self._parts:
            etags = [self._etags[one] for one in range(1, self._parts + 1)]
            request = Request(
                self._step,
                "POST",
                self._key,
                (("uploadId", self._id),),
                {"content-type": "text/xml"},
                completion(etags),
                # The answer to an attempt that succeeded may have been lost.
                _ABSENT,
            )
            self._submit(request, self._joined)

    def _joined(self, answer: Answer) -> None:
        try:
            etag = parse_completed_upload(answer.body)
        except FormatError:
            request = Request(self._step, "HEAD", self._key, expected=_ABSENT)
            self._submit(request, self._looked)
            return
        self._ended = True
        self._done(etag)

    def _looked(self, answer: Answer) -> None:
        """Take what is there for what was joined if it has the size, and is no older than that."""
        try:
            written = parse_http_date(answer.headers.get("last-modified", ""))
        except FormatError:
            written = datetime.min.replace(tzinfo=timezone.utc)
        whole = answer.headers.get("content-length") == str(self._size)
        if answer.status == 404 or not whole or written < self._since:
            self._fail(Failure(self._step, f"the server did not join the parts of {self._key}"))
            return
        self._ended = True
        self._done(answer.etag)

    def _submit(
        self,
        request: Request,
        done: Callable[[Answer], None],
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._transfers.submit(request, done, self._fail, PRIORITY, wanted)

    def _fail(self, failure: Failure) -> None:
        if self._ended:
            return
        self._ended = True
        if self._id:
            self._forget(self._id)
        if "; " not in failure.what:
            failure = Failure(failure.step, f"{failure.what}; push again")
        self._failed(failure)

    def _forget(self, upload: str) -> None:
        request = Request(
            self._step, "DELETE", self._key, (("uploadId", upload),), expected=_ABSENT
        )
        self._transfers.submit(request, lambda _: None, lambda _: None, PRIORITY)
