"""What the product needs of an S3 server, each asked of the server itself.

Servers of S3's kind differ where nobody looks: whether a copy renews an object, in which order
rules come back, what a refusal is called. Each need is asked with the requests that the program
and a push make, and the answer is one line. `operations.check_server` asks them all, with a bucket
that it makes and removes; a deployment to a new bucket asks the few that decide.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from components.access import same_policy
from components.binary_cache import anonymous_policy
from components.retention import expiration_rules
from formats.error import FormatError
from formats.http_date import parse_http_date
from formats.nix32 import nix32_encode
from formats.s3 import (
    SMALLEST_PART,
    completion,
    parse_begun_upload,
    parse_completed_upload,
    parse_copy,
    parse_etag,
    parse_listing,
)
from program.checks.admin_client import Admin
from program.checks.s3_client import Answer, Server
from program.checks.server_error import ServerError
from program.settings.stack import Settings

WORKS, DIFFERS, REFUSED, NOT_SEEN = "works", "differs", "refused", "not seen"
"""Verdicts: as it is needed; done in another way; not done; nothing here can tell."""

_SendPart = Callable[[int, str], str]
"""Given a part's number and the upload's id: sends it, and returns its ETag."""

_TYPE = "application/x-nix-nar"
_NAMES = ("", "after", "renewed", "gone", "parts", "expiry", "anybody")
"""What a probe calls the objects that it writes, or tries to."""

_HASH_BYTES = 20
_SKEW = timedelta(minutes=5)
_PATIENCE_SECONDS = 5.0
_DAYS, _GRACE = 7, 1
_MOVED = timedelta(days=3)


@dataclass(frozen=True)
class Result:
    """What came of one need."""

    need: str
    """What is needed, in a few words."""
    verdict: str
    """One of the verdicts above."""
    answered: str
    """What the server answered, in words."""
    means: str = ""
    """What that means for the product; empty where all is well."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings with which the promise is kept all the same."""
    kept: bool = True
    """Whether the product's promise is kept, with the stack's settings as they are."""

    def __str__(self) -> str:
        """Return the line."""
        means = f"; {self.means}" if self.means else ""
        return f"{self.need}: {self.verdict} ({self.answered}){means}"


def conclusion(results: Iterable[Result]) -> str:
    """Return in one sentence what results mean for the product."""
    broken = [result for result in results if not result.kept]
    if not broken:
        return "every promise can be kept"
    wanted = {name: value for result in broken for name, value in result.settings.items()}
    if any(not result.settings for result in broken):
        needs = ", ".join(result.need for result in broken if not result.settings)
        return f"it cannot be used: {needs}"
    settings = ", ".join(f"{name}: {json.dumps(value)}" for name, value in wanted.items())
    return f"it can be used with the settings {settings}"


@dataclass(frozen=True)
class Probe:
    """Asks a server, and removes what it wrote."""

    settings: Settings
    """What the results are judged by."""
    server: Server
    """As the deploying user reaches it."""
    bucket: str
    """The bucket that is asked about."""
    scratch: bool = True
    """Whether the bucket is the probe's own, whose rules and policy may be changed."""
    lent: bool = False
    """Whether somebody else has made it, so that it stays, without rules and policy."""
    hash: str = field(default_factory=lambda: nix32_encode(secrets.token_bytes(_HASH_BYTES)))
    """What the names of its objects begin with. They are those of logs that nobody asks for: what
    stays behind of an interruption expires."""
    _uploads: list[tuple[str, str]] = field(default_factory=list)
    """Key and id of what was begun to be uploaded in parts, and not ended."""

    def deciding(self) -> Result | None:
        """Return the first need that a deployment to this bucket founders on, or None."""
        try:
            for need in (self._put, self._copy):
                result = need()
                if not result.kept:
                    return result
            return None
        finally:
            self._delete(self._key())

    def results(self) -> Iterator[Result]:
        """Yield every need's result. Whoever breaks off calls `remove` all the same."""
        yield self._clock()
        yield self._users_api()
        yield self._wrong_secret()
        yield self._unknown_user()
        put = self._put()
        yield put
        if not put.kept:
            return
        yield self._head()
        yield self._etag()
        yield self._list()
        yield self._start_after()
        yield self._versions()
        if self.scratch:
            yield from self._lifecycle()
        yield self._copy()
        yield self._renewal()
        yield self._changed()
        yield self._absent()
        yield self._parts()
        yield self._part_copy()
        if self.scratch:
            yield from self._access()

    def remove(self) -> None:
        """Remove whatever the probe may have written, and the bucket that was made for it.

        Raises:
            ServerError: no answer.
        """
        server, bucket = self.server, self.bucket
        # By their names: a listing may be what the server is bad at.
        for key, upload in self._uploads:
            server.ask("DELETE", bucket, key, [("uploadId", upload)])
        for name in _NAMES:
            server.ask("DELETE", bucket, self._key(name))
        if self.lent:
            server.ask("DELETE", bucket, "", [("lifecycle", "")])
            server.ask("DELETE", bucket, "", [("policy", "")])
        elif self.scratch:
            answer = server.ask("DELETE", bucket)
            if not answer.done and answer.status not in (403, 404):
                raise ServerError(
                    "bucket", f"the scratch bucket {bucket} cannot be removed ({answer}); remove it"
                )

    @property
    def _prefix(self) -> str:
        return f"log/{self.hash}-check"

    def _key(self, name: str = "") -> str:
        return f"{self._prefix}{name and '-'}{name}.drv"

    def _ask(self, method: str, key: str, **more: object) -> Answer:
        headers = {"content-type": _TYPE, **dict(more.pop("headers", {}))}  # type: ignore[call-overload]
        return self.server.ask(method, self.bucket, key, headers=headers, **more)  # type: ignore[arg-type]

    def _delete(self, key: str) -> None:
        with suppress(ServerError):
            self.server.ask("DELETE", self.bucket, key)

    def _copied(self, key: str, **headers: str) -> Answer:
        copy = {
            "x-amz-copy-source": f"/{self.bucket}/{key}",
            "x-amz-metadata-directive": "REPLACE",
        }
        return self._ask("PUT", key, headers={**copy, **headers})

    # Each of the following is one need.

    def _clock(self) -> Result:
        need = "clock"
        answer = self.server.ask("GET", self.bucket, "", [("location", "")])
        try:
            skew = abs(datetime.now(timezone.utc) - parse_http_date(answer.headers["date"]))
        except (FormatError, KeyError):
            means = "pushes renew by the server's clock, and would renew nothing"
            return Result(need, DIFFERS, "it tells no time", means, kept=False)
        seconds = f"{skew.total_seconds():.0f} s apart"
        if skew > _SKEW:
            return Result(need, DIFFERS, seconds, "set both clocks right", kept=False)
        return Result(need, WORKS, seconds)

    def _users_api(self) -> Result:
        need = "MinIO's admin API"
        try:
            Admin(self.server).check()
        except ServerError as error:
            if not error.reachable:
                raise
            if error.subject == "users":
                return Result(
                    need,
                    REFUSED,
                    "there is none",
                    "you make the users, by the server's own means",
                    {"users": "given"},
                    kept=self.settings.given_users,
                )
            return Result(need, REFUSED, str(error), kept=self.settings.given_users)
        return Result(need, WORKS, "it is one")

    def _wrong_secret(self) -> Result:
        wrong = replace(self.server, password=secrets.token_urlsafe())
        return self._wrong("wrong secret", wrong, "SignatureDoesNotMatch")

    def _unknown_user(self) -> Result:
        wrong = replace(self.server, user=f"nobody{secrets.token_hex(7)}")
        return self._wrong("unknown user", wrong, "InvalidAccessKeyId")

    def _wrong(self, need: str, wrong: Server, code: str) -> Result:
        answer = wrong.ask("GET", self.bucket, "", [("list-type", "2"), ("max-keys", "1")])
        if answer.done:
            return Result(need, DIFFERS, str(answer), "it lets anybody in", kept=False)
        if answer.error.code != code:
            means = "it is not told from missing rights, and messages name both"
            return Result(need, DIFFERS, str(answer), means)
        return Result(need, WORKS, str(answer))

    def _put(self) -> Result:
        need, key = "write and read", self._key()
        content = secrets.token_bytes(64)
        answer = self._ask("PUT", key, body=content)
        if answer.done:
            answer = self._ask("GET", key)
            if answer.body == content:
                return Result(need, WORKS, str(answer))
            answer = replace(answer, body=b"")
        return Result(need, REFUSED, str(answer), "it cannot be used", kept=False)

    def _head(self) -> Result:
        need = "HEAD and content types"
        answer = self._ask("HEAD", self._key())
        if not answer.done:
            return Result(need, REFUSED, str(answer), "pushes cannot look at NARs", kept=False)
        kept = answer.headers.get("content-type", "")
        if kept != _TYPE or answer.headers.get("content-length") != "64":
            means = "browsers and proxies are told another type or size"
            return Result(need, DIFFERS, f"{kept or 'no type'}", means)
        return Result(need, WORKS, kept)

    def _etag(self) -> Result:
        need, key = "ETags", self._key()
        content = self._ask("GET", key).body
        try:
            etag = parse_etag(self._ask("HEAD", key).headers.get("etag", ""))
        except FormatError:
            means = "pushes read every narinfo again"
            return Result(need, DIFFERS, "none", means)
        if etag != hashlib.md5(content, usedforsecurity=False).hexdigest():
            means = "what others write over the deployment's own objects is not found"
            return Result(need, DIFFERS, "not of the content", means)
        return Result(need, WORKS, "MD5 of the content")

    def _list(self) -> Result:
        need, key = "list by prefix", self._key()
        found = self._listed([("prefix", key)])
        if found == [key]:
            return Result(need, WORKS, "what was written")
        return Result(
            need, DIFFERS, self._shown(found), "pushes find nothing of what is there", kept=False
        )

    def _start_after(self) -> Result:
        need, key, after = "list from a key on", self._key(), self._key("after")
        first, last = sorted((key, after))
        self._ask("PUT", after, body=b"x")
        found = self._listed([("prefix", self._prefix), ("start-after", first)])
        if found == [last]:
            return Result(need, WORKS, "what is after it")
        return Result(need, DIFFERS, self._shown(found), "listings do not end", kept=False)

    def _listed(self, query: list[tuple[str, str]]) -> list[str] | None:
        fixed = [("list-type", "2"), ("encoding-type", "url"), ("max-keys", "1000")]
        answer = self.server.ask("GET", self.bucket, "", [*fixed, *query])
        try:
            return [found.key for found in parse_listing(answer.body).objects]
        except FormatError:
            return None

    def _shown(self, found: list[str] | None) -> str:
        return "no listing" if found is None else f"{len(found)} others or none"

    def _copy(self) -> Result:
        need = "copy onto itself"
        answer = self._copied(self._key())
        try:
            parse_copy(answer.body)
        except FormatError:
            if answer.done:
                answer = replace(answer, body=b"")
            means = "no lease can be renewed: entries go while closures still need them"
            return Result(need, REFUSED, str(answer), means, {"expire": False}, self._forever)
        return Result(need, WORKS, str(answer))

    @property
    def _forever(self) -> bool:
        return self.settings.retention_days is None

    def _renewal(self) -> Result:
        need, key = "a copy renews", self._key("renewed")
        means = "renewals do not hold: entries go while closures still need them"
        moved = self._put_in_the_past(key)
        self._wait_for_another_second(key)
        before = self._seen(key)
        self._copied(key)
        after = self._seen(key)
        if before[0] is None or after[0] is None or after[0] <= before[0]:
            answered = "Last-Modified stays"
            return Result(need, DIFFERS, answered, means, {"expire": False}, self._forever)
        if before[1] is not None and after[1] is not None and moved:
            days = (after[1] - before[1]).days
            answered = f"its expiry moved by {days} days after {_MOVED.days}"
            if after[1] - before[1] < _MOVED - timedelta(days=1):
                return Result(need, DIFFERS, answered, means, {"expire": False}, self._forever)
            return Result(need, WORKS, answered)
        return Result(need, WORKS, "Last-Modified is new; when it expires is not told")

    def _put_in_the_past(self, key: str) -> bool:
        """Write an object as if days ago, where the server lets this user; tell whether it did.

        Source: MinIO, replication requests (`internal/http/headers.go`).
        """
        then = datetime.now(timezone.utc) - _MOVED
        replicated = {
            "x-minio-source-mtime": then.strftime("%Y-%m-%dT%H:%M:%S.000000000Z"),
            "x-minio-source-replication-request": "true",
        }
        if not self._ask("PUT", key, body=b"x", headers=replicated).done:
            self._ask("PUT", key, body=b"x")
        written = self._seen(key)[0]
        return written is not None and written < then + timedelta(hours=1)

    def _seen(self, key: str) -> tuple[datetime | None, datetime | None]:
        """Return when an object was last written, and when it expires, as far as it is told."""
        headers = self._ask("HEAD", key).headers
        try:
            modified = parse_http_date(headers.get("last-modified", ""))
        except FormatError:
            modified = None
        return modified, expiry(headers.get("x-amz-expiration", ""))

    def _wait_for_another_second(self, key: str) -> None:
        """Wait until the server's clock shows a later second than that of an object's writing."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            headers = self._ask("HEAD", key).headers
            if headers.get("date", "") != headers.get("last-modified", ""):
                return
            time.sleep(0.1)

    def _changed(self) -> Result:
        need = "copy only what is unchanged"
        answer = self._copied(self._key(), **{"x-amz-copy-source-if-match": "0" * 32})
        if answer.status == 412:
            return Result(need, WORKS, str(answer))
        means = "a narinfo that another builder writes at that moment may be taken for the former"
        return Result(need, DIFFERS, str(answer), means)

    def _absent(self) -> Result:
        need = "copy of what is gone"
        answer = self._copied(self._key("gone"))
        if answer.status == 404:
            return Result(need, WORKS, str(answer))
        means = "a push takes it for a refusal, ends, and has to be run again"
        return Result(need, DIFFERS, str(answer), means, kept=not answer.done)

    def _parts(self) -> Result:
        need, key = "upload in parts", self._key("parts")
        sizes = (SMALLEST_PART, 1)

        def part(number: int, upload: str) -> str:
            query = [("partNumber", str(number)), ("uploadId", upload)]
            body = bytes([number]) * sizes[number - 1]
            return self._ask("PUT", key, query=query, body=body).headers.get("etag", "")

        answer, size = self._joined(key, part)
        if size == sum(sizes):
            return Result(need, WORKS, str(answer))
        means = "NARs larger than partSize cannot be pushed"
        return Result(need, REFUSED, str(answer), means, kept=False)

    def _part_copy(self) -> Result:
        need, key = "copy in parts", self._key("parts")
        answers: list[Answer] = []

        def part(number: int, upload: str) -> str:
            start, end = ((0, SMALLEST_PART - 1), (SMALLEST_PART, SMALLEST_PART))[number - 1]
            headers = {
                "x-amz-copy-source": f"/{self.bucket}/{key}",
                "x-amz-copy-source-range": f"bytes={start}-{end}",
            }
            query = [("partNumber", str(number)), ("uploadId", upload)]
            answers.append(self._ask("PUT", key, query=query, headers=headers))
            return parse_copy(answers[-1].body)

        answer, size = self._joined(key, part)
        if size == SMALLEST_PART + 1:
            return Result(need, WORKS, str(answer))
        refused = next((one for one in answers if not one.done), answer)
        means = "NARs larger than partSize are not renewed, and go while closures still need them"
        return Result(need, REFUSED, str(refused), means, {"expire": False}, self._forever)

    def _joined(self, key: str, part: _SendPart) -> tuple[Answer, int]:
        """Upload an object in two parts; return the answer that ended it, and the object's size."""
        answer = self._ask("POST", key, query=[("uploads", "")])
        try:
            upload = parse_begun_upload(answer.body)
            self._uploads.append((key, upload))
            etags = [parse_etag(part(number, upload)) for number in (1, 2)]
            headers = {"content-type": "text/xml"}
            query = [("uploadId", upload)]
            answer = self._ask("POST", key, query=query, headers=headers, body=completion(etags))
            parse_completed_upload(answer.body)
            self._uploads.remove((key, upload))
        except FormatError:
            return replace(answer, body=b"") if answer.done else answer, -1
        size = self._ask("HEAD", key).headers.get("content-length", "")
        return answer, int(size) if re.fullmatch(r"[0-9]{1,18}", size) else -1

    def _versions(self) -> Result:
        need = "versions"
        try:
            keeps = self.server.keeps_versions(self.bucket)
        except ServerError as error:
            if not error.reachable:
                raise
            return Result(need, DIFFERS, str(error), "it is taken for a server without versions")
        if keeps:
            means = "each renewal leaves one; the rules let them go after a day"
            return Result(need, DIFFERS, "the bucket keeps them", means)
        return Result(need, WORKS, "none is kept")

    def _lifecycle(self) -> Iterator[Result]:
        need = "lifecycle rules"
        declared = expiration_rules(_DAYS, _GRACE)
        means = "nothing expires, or not as declared"
        try:
            self.server.set_lifecycle(self.bucket, declared)
            found = self.server.lifecycle(self.bucket)
        except ServerError as error:
            if not error.reachable:
                raise
            yield Result(need, REFUSED, str(error), means, {"expire": False}, self._forever)
            return
        applied = () if found is None else found.rules
        if set(applied) != set(declared):
            answered = f"{len(set(declared) - set(applied))} are not as written"
            yield Result(need, DIFFERS, answered, means, {"expire": False}, self._forever)
            return
        if applied != declared:
            means = "every refresh shows the rules changed"
            yield Result(need, DIFFERS, "in another order", means, kept=True)
        else:
            yield Result(need, WORKS, "read back as written")
        yield self._midnight()

    def _midnight(self) -> Result:
        need, key = "expiry at midnight UTC", self._key("expiry")
        self._ask("PUT", key, body=b"x")
        expires = self._seen(key)[1]
        setting = {"expiresAtMidnight": False}
        if expires is None:
            means = "if it does not round up, as SeaweedFS, set expiresAtMidnight to false"
            return Result(need, NOT_SEEN, "it does not tell when an object expires", means)
        if (expires.hour, expires.minute, expires.second) != (0, 0, 0):
            means = "a path may go before what refers to it, unless the rules count a day more"
            kept = not self.settings.expires_at_midnight
            return Result(need, DIFFERS, f"{expires:%H:%M:%S}", means, setting, kept)
        return Result(need, WORKS, "it is")

    def _access(self) -> Iterator[Result]:
        setting = {"bucketPolicy": False}
        elsewhere = not self.settings.bucket_policy
        means = "who may read is settled by the server's own means"
        for need, download in (("policy that opens", True), ("policy that lets nobody in", False)):
            declared = anonymous_policy(self.bucket, download, False)
            try:
                self.server.set_access(self.bucket, declared)
                applied = self.server.access(self.bucket) or ""
            except ServerError as error:
                if not error.reachable:
                    raise
                kept = elsewhere or self.settings.private == download
                yield Result(need, REFUSED, str(error), means, setting, kept)
                continue
            if same_policy(declared, applied):
                yield Result(need, WORKS, "read back as written")
            else:
                yield Result(need, DIFFERS, "read back as another", "every refresh shows a change")
            yield from self._anonymous(download=download)

    def _anonymous(self, *, download: bool) -> Iterator[Result]:
        key = self._key()
        setting: dict[str, object] = {"bucketPolicy": False}
        elsewhere = not self.settings.bucket_policy

        def anybody(method: str, name: str, **more: object) -> Answer:
            return self.server.ask(method, self.bucket, name, anonymous=True, **more)  # type: ignore[arg-type]

        got = anybody("GET", key)
        if not download:
            need = "nobody reads a closed bucket"
            if got.done:
                means = "a private cache is open to everyone"
                kept = elsewhere or not self.settings.private
                yield Result(need, DIFFERS, str(got), means, setting, kept)
            else:
                yield Result(need, WORKS, str(got))
            return
        need = "everyone reads an open bucket"
        if got.done:
            yield Result(need, WORKS, str(got))
        else:
            means = "open it elsewhere, and give publicUrl"
            kept = elsewhere or self.settings.private
            yield Result(need, REFUSED, str(got), means, setting, kept)
        for need, answer in (
            ("nobody lists it", anybody("GET", "", query=[("list-type", "2")])),
            ("nobody writes to it", anybody("PUT", self._key("anybody"), body=b"x")),
        ):
            if answer.done:
                means = "a public cache is more open than it should be"
                kept = elsewhere or self.settings.private
                yield Result(need, DIFFERS, str(answer), means, setting, kept)
            else:
                yield Result(need, WORKS, str(answer))


def expiry(header: str) -> datetime | None:
    """Return when an object expires, as `x-amz-expiration` says it; None where it does not."""
    match = re.search(r'expiry-date="([^"]+)"', header)
    if match is None:
        return None
    try:
        expires = parsedate_to_datetime(match[1])
        # One without a zone could not be compared.
        return expires.replace(tzinfo=expires.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (ValueError, TypeError, OverflowError):
        return None
