"""The cache's bucket: what is asked of it, one object at a time, and what its answers mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path

from formats.error import FormatError
from formats.http_date import parse_http_date
from formats.s3 import parse_copied
from formats.sigv4 import encoded_path
from push.connection import Answer, FileSlice, Request
from push.failure import Failure, PushError
from push.parts import PartsUpload
from push.progress import say
from push.settings import PushSettings
from push.transfers import Loop, Transfers

NARINFO_TYPE = "text/x-nix-narinfo"
NAR_TYPE = "application/x-nix-nar"
LISTING_TYPE = "application/json"
LOG_TYPE = "text/plain; charset=utf-8"

Done = Callable[[str | None], None]
"""Called with an object's new ETag, None where the server does not tell it."""
Failed = Callable[[Failure], None]

_ABSENT = frozenset({404})
# Of a condition that does not hold; 409 where two such writes meet (Amazon S3, `PutObject`).
_UNMET = frozenset({409, 412})
_ENCODING = re.compile(r"[a-z0-9-]{1,20}")
# As many refusals, and nothing else, are no damage of objects.
_REFUSALS = 3
_NARINFO_PRIORITY, _NAR_PRIORITY = 1, 5
# A part's copy is over sooner than servers and proxies lose patience.
_COPIED_WHOLE = 1 << 30


@dataclass(frozen=True)
class Listed:
    """What is asked for when the bucket is listed."""

    prefix: str
    folders: bool
    """Whether folders are shown as such, and what is in them is left out."""


@dataclass(frozen=True)
class Place:
    """What is where a narinfo is to be written, and is to be there still when it is."""

    etag: str | None
    """The ETag of what is there; None for nothing."""

    @property
    def condition(self) -> dict[str, str]:
        """The header by which a server writes there and over nothing else (RFC 9110, 13.1)."""
        return {"if-none-match": "*"} if self.etag is None else {"if-match": f'"{self.etag}"'}


EMPTY = Place(None)
"""Where nothing is."""


class Asked:
    """Requests that were made, and whose answers come."""

    def __init__(self, transfers: Transfers, loop: Loop, requests: Sequence[Request]) -> None:
        """Make them."""
        self._loop = loop
        self._answers: list[Answer | None] = [None] * len(requests)
        self._left = len(requests)
        for number, request in enumerate(requests):
            transfers.submit(request, partial(self._take, number))

    def _take(self, number: int, answer: Answer) -> None:
        self._answers[number] = answer
        self._left -= 1

    def answers(self) -> list[Answer]:
        """Return the answers in the order of the requests.

        Raises:
            PushError: one of them is refused, or the server stays away.
        """
        self._loop.run(lambda: not self._left, lambda: None, 60.0)
        return [answer for answer in self._answers if answer is not None]


class Bucket:
    """The bucket that is pushed to."""

    def __init__(self, settings: PushSettings, transfers: Transfers, loop: Loop) -> None:
        """Ask nothing yet."""
        self._settings = settings
        self._transfers = transfers
        self._loop = loop
        # Until a server has refused one that it took without.
        self._knows_conditions = True

    def begin(self, requests: Sequence[Request]) -> Asked:
        """Make requests side by side, and do not wait for their answers."""
        return Asked(self._transfers, self._loop, requests)

    def gather(self, requests: Sequence[Request]) -> list[Answer]:
        """Make requests side by side and return their answers, in the same order.

        Raises:
            PushError: one of them is refused, or the server stays away.
        """
        return self.begin(requests).answers()

    def attempt(self, requests: Sequence[Request]) -> list[Answer | Failure]:
        """Make requests side by side and return their answers, in order, or why there is none.

        Raises:
            PushError: the server stays away.
        """
        outcomes: dict[int, Answer | Failure] = {}
        for number, request in enumerate(requests):
            take = partial(outcomes.__setitem__, number)
            self._transfers.submit(request, take, take)
        self._loop.run(lambda: len(outcomes) == len(requests), lambda: None, 60.0)
        return [outcomes[number] for number in range(len(requests))]

    def try_each(self, requests: Sequence[Request]) -> list[Answer | None]:
        """Make requests side by side and return their answers, in order; None for none.

        One object that the server does not give is written anew: as good as gone, it is no reason
        to push nothing. A server that refuses each of several means the user, not the objects.

        Raises:
            PushError: the server stays away, or refuses everything.
        """
        outcomes = self.attempt(requests)
        failures = [one for one in outcomes if isinstance(one, Failure)]
        if (
            len(failures) >= _REFUSALS
            and len(failures) == len(outcomes)
            and all(one.refused for one in failures)
        ):
            raise PushError(failures[0].step, failures[0].what)
        if failures:
            many = f"{len(failures)} objects" if len(failures) > 1 else "an object"
            say(f"{failures[0].step}: {many} cannot be read, so broken: {failures[0].what}")
        return [one if isinstance(one, Answer) else None for one in outcomes]

    def page(self, listed: Listed, after: str = "") -> Request:
        """Return the request for a page of a listing (S3 `ListObjectsV2`)."""
        query = [
            ("list-type", "2"),
            # Keys that are no XML must not spoil the page for all others.
            ("encoding-type", "url"),
            ("max-keys", "1000"),
            *([("prefix", listed.prefix)] if listed.prefix else []),
            *([("delimiter", "/")] if listed.folders else []),
            *([("start-after", after)] if after else []),
        ]
        return Request("list", "GET", "", tuple(query))

    def read(self, key: str, largest: int) -> Request:
        """Return the request for a narinfo of at most so many bytes."""
        return Request("list", "GET", key, expected=_ABSENT, largest=largest)

    def look_at(self, key: str) -> Request:
        """Return the request for what is known of an object without its content."""
        return Request("list", "HEAD", key, expected=_ABSENT)

    def look_beside(self, key: str) -> Request:
        """Return the request for what is known of something that the push goes on without."""
        return Request("beside", "HEAD", key, expected=_ABSENT, optional=True)

    def write_beside(self, key: str, content_type: str, body: bytes | FileSlice) -> Request:
        """Return the request that writes something that the push goes on without."""
        headers = {"content-type": content_type}
        return Request("beside", "PUT", key, headers=headers, body=body, optional=True)

    def renew_beside(self, key: str, content_type: str, seen: Answer) -> Request:
        """Return the request that writes the same again as it is, once it has been looked at."""
        headers = self._copy_headers(key, content_type)
        encoding = seen.headers.get("content-encoding", "")
        # Others may have compressed it, and a client reads it by what is said here.
        if _ENCODING.fullmatch(encoding):
            headers["content-encoding"] = encoding
        return Request("beside", "PUT", key, headers=headers, expected=_ABSENT, optional=True)

    def read_again(
        self, key: str, largest: int, done: Callable[[Answer], None], failed: Failed
    ) -> None:
        """Read a narinfo, while others are written; `done` gets it, or that there is none."""
        self._transfers.submit(self.read(key, largest), done, failed, _NARINFO_PRIORITY)

    def put_narinfo(
        self,
        key: str,
        content: bytes,
        done: Done,
        failed: Failed,
        place: Place | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a narinfo; `failed` also where the server says so and does not have it.

        Args:
            key: the object's.
            content: the narinfo.
            done: called once it is written.
            failed: called where it cannot be.
            place: what it may take the place of; None for whatever is there. A server that refuses
                to be told so is asked without.
            changed: called where the server says that something else is there, or nothing. An
                answer that was lost may have been of this very write.
        """
        request = Request(
            "publish", "PUT", key, headers={"content-type": NARINFO_TYPE}, body=content
        )
        if place is None or not self._knows_conditions:
            self._write(request, done, failed, _NARINFO_PRIORITY)
            return

        def written(etag: str | None) -> None:
            self._knows_conditions = False
            done(etag)

        def refused(failure: Failure) -> None:
            if failure.refused:
                self._write(request, written, failed, _NARINFO_PRIORITY)
            else:
                failed(failure)

        conditional = replace(
            request,
            headers={**request.headers, **place.condition},
            expected=_UNMET if place.etag is None else _UNMET | _ABSENT,
        )
        self._write(conditional, done, refused, _NARINFO_PRIORITY, changed)

    def renew_narinfo(
        self, key: str, etag: str, done: Done, changed: Callable[[], None], failed: Failed
    ) -> None:
        """Write a narinfo again as it is, by having the server copy it onto itself.

        `changed` is called where it is no longer the one with that ETag, or the server says so;
        whether it has been written since, only `day_of` the answer of `read_again` tells. A copy
        that has the time of what it is to take the place of has failed.
        """
        headers = {**self._copy_headers(key, NARINFO_TYPE), "x-amz-copy-source-if-match": etag}
        expected = frozenset({404, 412})
        request = Request("renew", "PUT", key, headers=headers, expected=expected)
        copied = self._copied(request, done, failed, _NARINFO_PRIORITY)
        self._transfers.submit(
            request,
            lambda answer: changed() if answer.status in expected else copied(answer),
            failed,
            _NARINFO_PRIORITY,
        )

    def renew_nar(
        self, key: str, size: int, done: Done, gone: Callable[[], None], failed: Failed
    ) -> None:
        """Write a NAR again as it is; `gone` is called where there is none any more.

        A copy that has the time of what it is to take the place of has failed.
        """
        if size > min(self._settings.part_size, _COPIED_WHOLE):
            self._in_parts(key, size, None, done, failed, gone)
            return
        request = Request(
            "renew", "PUT", key, headers=self._copy_headers(key, NAR_TYPE), expected=_ABSENT
        )
        copied = self._copied(request, done, failed, _NAR_PRIORITY)
        self._transfers.submit(
            request,
            lambda answer: gone() if answer.status == 404 else copied(answer),
            failed,
            _NAR_PRIORITY,
        )

    def put_nar(self, key: str, file: Path, size: int, done: Done, failed: Failed) -> None:
        """Write a NAR from a file, in parts where it is large; `failed` as for a narinfo."""
        if size > self._settings.part_size:
            self._in_parts(key, size, file, done, failed, lambda: None)
            return
        request = Request(
            "upload",
            "PUT",
            key,
            headers={"content-type": NAR_TYPE},
            body=FileSlice(file, 0, size),
        )
        self._write(request, done, failed, _NAR_PRIORITY)

    def _in_parts(
        self,
        key: str,
        size: int,
        file: Path | None,
        done: Done,
        failed: Failed,
        gone: Callable[[], None],
    ) -> None:
        PartsUpload(
            self._transfers,
            bucket=self._settings.bucket,
            key=key,
            size=size,
            part_size=self._settings.part_size,
            content_type=NAR_TYPE,
            file=file,
            done=done,
            failed=failed,
            gone=gone,
        ).begin()

    def _copy_headers(self, key: str, content_type: str) -> dict[str, str]:
        return {
            "content-type": content_type,
            # Names of derivations may have a ?, behind which servers look for a version.
            "x-amz-copy-source": encoded_path(f"/{self._settings.bucket}/{key}"),
            "x-amz-metadata-directive": "REPLACE",
        }

    def _write(
        self,
        request: Request,
        done: Done,
        failed: Failed,
        priority: int,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a request that writes an object whole, and see that it was written.

        `changed` is called after an answer that says that the request's condition does not hold.

        A server of S3's kind says 200 and the object's ETag. Whatever else says yes, such as the
        page of a firewall before it, is believed once the object is there.

        Source: Amazon S3 API Reference, `PutObject`, "Response Syntax".
        """
        asked = self._transfers.day or ""
        content = request.body if isinstance(request.body, bytes) else None

        def answered(answer: Answer) -> None:
            if answer.status in request.expected:
                changed()
                return
            if answer.status == HTTPStatus.OK and answer.etag is not None:
                done(answer.etag)
                return
            look = Request(
                request.step,
                # Of the same size there may be what it takes the place of, with another signature.
                "HEAD" if content is None else "GET",
                request.key,
                expected=_ABSENT,
                largest=request.size,
            )
            day = _day(asked, answer)
            self._transfers.submit(
                look, lambda there: looked(there, day, answer.status), failed, priority
            )

        def looked(there: Answer, day: str, status: int) -> None:
            size = there.headers.get("content-length")
            same = size == str(request.size) if content is None else there.body == content
            if there.status == HTTPStatus.OK and same and _written_on(there) >= day:
                done(there.etag)
                return
            what = (
                f"the server, or a proxy before it, said that {request.key} was written (HTTP "
                f"{status}), and it is not there as it was sent; see their logs"
            )
            failed(Failure(request.step, what, f"not written, HTTP {status}"))

        self._transfers.submit(request, answered, failed, priority)

    def _copied(
        self, request: Request, done: Done, failed: Failed, priority: int
    ) -> Callable[[Answer], None]:
        """Return what is done with the answer to a copy that is asked for now."""
        asked = self._transfers.day or ""

        def answered(answer: Answer) -> None:
            try:
                copy = parse_copied(answer.body)
            except FormatError:
                why = f"the server did not copy {request.key}; see the server's log"
                failed(Failure(request.step, why))
                return
            day, written = _day(asked, answer), copy.last_modified
            if written is not None and _day_text(written) >= day:
                done(copy.etag)
                return
            # What it says of the copy may be wrong where the copy is not.
            look = Request(request.step, "HEAD", request.key, expected=_ABSENT)
            self._transfers.submit(
                look, lambda there: looked(there, day, copy.etag), failed, priority
            )

        def looked(there: Answer, day: str, etag: str) -> None:
            if there.status == HTTPStatus.OK and _written_on(there) >= day:
                done(etag)
                return
            why = (
                f"the server copied {request.key} and kept the time of before, so its lease did "
                "not begin anew; see the server's log"
            )
            failed(Failure(request.step, why))

        return answered


def _day(asked: str, answer: Answer) -> str:
    """Return the day since which what an answer tells of was written, asked for on a day."""
    # A day that one answer has wrong is not that of the others.
    return asked if answer.date is None else min(asked, _day_text(answer.date))


def _written_on(answer: Answer) -> str:
    try:
        return _day_text(parse_http_date(answer.headers.get("last-modified", "")))
    except FormatError:
        return ""


def _day_text(when: datetime) -> str:
    return when.date().isoformat()
