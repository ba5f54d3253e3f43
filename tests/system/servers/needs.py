"""What the product needs of an S3 server, asked of a real one, each need in a word or two.

It asks with requests of its own and the project's signature, not with the product's code, so that
what is known of a server does not rest on what is to be tested.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from xml.etree import ElementTree

import urllib3
from minio.commonconfig import Filter
from minio.error import MinioException, S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from components.retention import expiration_rules
from formats.sigv4 import Signer, encoded_path, encoded_query
from toolbox.servers.s3_server import Credential, S3Server

MEBIBYTE = 1 << 20
PART = 5 * MEBIBYTE
NARINFO_TYPE = "text/x-nix-narinfo"
NOBODY = Credential("", "")
Answer = urllib3.BaseHTTPResponse


class Measurement:
    """One server, one bucket of it, and the users who ask."""

    def __init__(self, server: S3Server, bucket: str, builder: Credential) -> None:
        """Take a bucket that the builder may push to."""
        self.server = server
        self.bucket = bucket
        self.root = Credential(server.root_user, server.root_password)
        self.builder = builder
        self._client = server.client()
        self._http = urllib3.PoolManager(ca_certs=str(server.ca_file), retries=False, maxsize=8)

    def results(self) -> dict[str, str]:
        """Ask everything; the order is that of the table."""
        return {need: _in_words(ask) for need, ask in self._needs()}

    def _needs(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "anonymous-read policy, read back", self._policy
        yield "anonymous GET, HEAD at endpoint/bucket", self._anonymous_read
        yield (
            "anonymous GET of an absent key",
            lambda: str(self._ask("GET", "absent", who=NOBODY).status),
        )
        yield "anonymous listing", lambda: str(self._ask("GET", who=NOBODY).status)
        yield "anonymous PUT", lambda: str(self._ask("PUT", "x", body=b"x", who=NOBODY).status)
        yield "content type kept", self._content_type
        yield "ETag of a small object", self._etag
        yield "GET of an absent key", lambda: str(self._ask("GET", "absent").status)
        yield "listing by prefix, start-after", self._listing
        yield "keys on a page", self._page
        yield "copy onto itself renews Last-Modified", self._renewal
        yield "copy if the ETag is another", self._conditional_copy
        yield "copy of an absent key", lambda: self._copy("absent", {})
        yield "multipart", self._multipart
        yield "part copy", lambda: self._part_copy({"content-type": NARINFO_TYPE})
        yield "part copy without Content-Type", lambda: self._part_copy({})
        yield "rules read back", self._rules
        yield "1,000 rules", lambda: self._many_rules(1000)
        yield "1,001 rules", lambda: self._many_rules(1001)
        yield "x-amz-expiration", self._expiration
        yield "versioning of a new bucket", self._versioning
        yield "clock in Date", self._clock
        yield "wrong secret", lambda: self._refused(Credential(self.root.access_key_id, "wrong"))
        yield "unknown user", lambda: self._refused(Credential("nobody-of-the-cache", "wrong"))
        yield "another region signed", self._another_region
        yield "builder deletes", self._deletion
        yield "builder changes the lifecycle", self._lifecycle_of_a_builder
        yield "MinIO admin API", self._admin

    def _policy(self) -> str:
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": ["*"]},
                    "Action": ["s3:GetObject"],
                    "Resource": [f"arn:aws:s3:::{self.bucket}/*"],
                }
            ],
        }
        self._client.set_bucket_policy(self.bucket, json.dumps(policy))
        found = json.loads(self._client.get_bucket_policy(self.bucket))
        return "as written" if found == policy else "in other words"

    def _anonymous_read(self) -> str:
        self._put("public", b"x")
        return " ".join(
            str(self._ask(method, "public", who=NOBODY).status) for method in ("GET", "HEAD")
        )

    def _content_type(self) -> str:
        self._put("typed.narinfo", b"x", {"content-type": NARINFO_TYPE})
        return _yes(self._ask("HEAD", "typed.narinfo").headers.get("Content-Type") == NARINFO_TYPE)

    def _etag(self) -> str:
        etag = self._put("etag", b"abc").headers["ETag"].strip('"')
        return "MD5" if etag == "900150983cd24fb0d6963f7d28e17f72" else "another"

    def _listing(self) -> str:
        for key in ("list/a", "list/b", "list/c", "lisu"):
            self._put(key, b"x")
        query = {"list-type": "2", "prefix": "list/", "start-after": "list/a"}
        return _yes(_keys(self._ask("GET", query=query)) == ["list/b", "list/c"])

    def _page(self) -> str:
        with ThreadPoolExecutor(8) as workers:
            list(workers.map(lambda number: self._put(f"page/{number:04}", b""), range(1005)))
        listed = _keys(self._ask("GET", query={"list-type": "2", "prefix": "page/"}))
        return str(len(listed))

    def _renewal(self) -> str:
        first = self._modified("renewed")
        # Times are whole seconds.
        _wait_for_the_next_second()
        copied = self._copy("renewed", {"content-type": NARINFO_TYPE})
        if copied != "200":
            return copied
        return _yes(self._time("renewed") > first)

    def _conditional_copy(self) -> str:
        self._put("conditional", b"x")
        return self._copy("conditional", {"x-amz-copy-source-if-match": '"0123"'})

    def _copy(self, key: str, headers: Mapping[str, str]) -> str:
        answer = self._ask(
            "PUT",
            key,
            headers={
                "content-type": NARINFO_TYPE,
                "x-amz-copy-source": f"/{self.bucket}/{key}",
                "x-amz-metadata-directive": "REPLACE",
                **headers,
            },
            who=self.builder,
        )
        return str(answer.status)

    def _multipart(self) -> str:
        parts = [bytes(PART), b"end"]
        upload = self._begin("parts")
        etags = [
            self._part("parts", upload, number, body=body).headers["ETag"]
            for number, body in enumerate(parts, 1)
        ]
        status = self._join("parts", upload, etags)
        size = self._ask("HEAD", "parts").headers.get("Content-Length")
        return "yes" if status == 200 and size == str(PART + 3) else f"{status}, {size} bytes"

    def _part_copy(self, headers: Mapping[str, str]) -> str:
        self._put("whole", bytes(PART + 3))
        upload = self._begin("whole")
        etags = []
        for number, piece in ((1, f"0-{PART - 1}"), (2, f"{PART}-{PART + 2}")):
            answer = self._part(
                "whole",
                upload,
                number,
                headers={
                    "x-amz-copy-source": f"/{self.bucket}/whole",
                    "x-amz-copy-source-range": f"bytes={piece}",
                    **headers,
                },
            )
            if answer.status != 200:
                return str(answer.status)
            root = ElementTree.fromstring(answer.data)
            etags.append(root.findtext("{*}ETag") or root.findtext("ETag") or "")
        return _yes(self._join("whole", upload, etags) == 200)

    def _rules(self) -> str:
        # Not in the order of their ids, which some servers put them in.
        written = [(rule.id, rule.prefix, rule.days) for rule in reversed(expiration_rules(7, 1))]
        self._set_rules(written)
        lifecycle = self._client.get_bucket_lifecycle(self.bucket)
        found = [
            (
                rule.rule_id or "",
                (rule.rule_filter.prefix if rule.rule_filter else "") or "",
                (rule.expiration.days if rule.expiration else 0) or 0,
            )
            for rule in (lifecycle.rules if lifecycle else ())
        ]
        if found == written:
            return "as written"
        if sorted(found) != sorted(written):
            return "others"
        return "sorted by id" if found == sorted(written) else "in another order"

    def _many_rules(self, count: int) -> str:
        self._set_rules([(f"rule-{number:04}", f"many/{number:04}/", 7) for number in range(count)])
        return "yes"

    def _set_rules(self, rules: list[tuple[str, str, int]]) -> None:
        made = [
            Rule("Enabled", rule_filter=Filter(prefix=p), rule_id=i, expiration=Expiration(days=d))
            for i, p, d in rules
        ]
        self._client.set_bucket_lifecycle(self.bucket, LifecycleConfig(made))

    def _expiration(self) -> str:
        """Say what the server tells of an object's end, in whole days from now."""
        self._set_rules([("soon", "expiring/", 7)])
        self._put("expiring/x", b"x")
        told = self._ask("HEAD", "expiring/x").headers.get("x-amz-expiration", "")
        if "expiry-date" not in told:
            return "not told"
        due = parsedate_to_datetime(told.split('"')[1])
        midnight = (due.hour, due.minute, due.second) == (0, 0, 0)
        return "midnight" if midnight else "to the second"

    def _versioning(self) -> str:
        return str(self._client.get_bucket_versioning(self.bucket).status or "off").lower()

    def _clock(self) -> str:
        date = parsedate_to_datetime(self._ask("HEAD", "public").headers["Date"])
        return _yes(abs(datetime.now(timezone.utc) - date) < timedelta(seconds=30))

    def _refused(self, who: Credential) -> str:
        answer = self._ask("GET", query={"list-type": "2"}, who=who)
        return f"{answer.status} {_code(answer)}"

    def _another_region(self) -> str:
        answer = self._ask("GET", query={"list-type": "2"}, region="mars-1")
        return "accepted" if answer.status == 200 else f"{answer.status} {_code(answer)}"

    def _deletion(self) -> str:
        self._put("deleted", b"x")
        return str(self._ask("DELETE", "deleted", who=self.builder).status)

    def _lifecycle_of_a_builder(self) -> str:
        return str(self._ask("DELETE", query={"lifecycle": ""}, who=self.builder).status)

    def _admin(self) -> str:
        """Ask for a user as MinIO's admin API does, one that no server has."""
        path, query = "/minio/admin/v3/user-info", {"accessKey": "nobody-of-the-cache"}
        answer = self._ask("GET", path=path, query=query)
        try:
            return f"{answer.status} {json.loads(answer.data)['Code']}"
        except (ValueError, LookupError, TypeError):
            return f"{answer.status} {_code(answer)}".strip()

    def _begin(self, key: str) -> str:
        answer = self._ask(
            "POST",
            key,
            query={"uploads": ""},
            headers={"content-type": NARINFO_TYPE},
            who=self.builder,
        )
        root = ElementTree.fromstring(answer.data)
        return root.findtext("{*}UploadId") or root.findtext("UploadId") or ""

    def _part(
        self,
        key: str,
        upload: str,
        number: int,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        query = {"partNumber": str(number), "uploadId": upload}
        return self._ask("PUT", key, query=query, body=body, headers=headers, who=self.builder)

    def _join(self, key: str, upload: str, etags: list[str]) -> int:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = self._ask(
            "POST",
            key,
            query={"uploadId": upload},
            body=body,
            headers={"content-type": "text/xml"},
            who=self.builder,
        )
        return answer.status

    def _modified(self, key: str) -> datetime:
        self._put(key, b"x")
        return self._time(key)

    def _time(self, key: str) -> datetime:
        return parsedate_to_datetime(self._ask("HEAD", key).headers["Last-Modified"])

    def _put(self, key: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        answer = self._ask("PUT", key, body=body, headers=headers, who=self.builder)
        assert answer.status == 200, answer.data
        return answer

    def _ask(
        self,
        method: str,
        key: str = "",
        *,
        path: str | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        who: Credential | None = None,
        region: str | None = None,
    ) -> Answer:
        who = self.root if who is None else who
        path = f"/{self.bucket}/{key}" if path is None else path
        pairs = list((query or {}).items())
        sent = dict(headers or {})
        host = urlsplit(self.server.endpoint).netloc
        if who is not NOBODY:
            signer = Signer(who.access_key_id, who.secret_access_key, region or self.server.region)
            sent = signer.signed(method, host, path, pairs, sent, datetime.now(timezone.utc))
        target = f"{self.server.endpoint}{encoded_path(path)}"
        if pairs:
            target += f"?{encoded_query(pairs)}"
        # Garage closes a connection on which it has refused a body.
        sent["connection"] = "close"
        return self._http.request(method, target, body=body, headers=sent, redirect=False)


def _in_words(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except S3Error as error:
        return f"refused: {error.code}"
    except (MinioException, urllib3.exceptions.HTTPError, ValueError) as error:
        return f"refused: {type(error).__name__}"


def _wait_for_the_next_second() -> None:
    time.sleep(1.05)


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _keys(answer: Answer) -> list[str]:
    root = ElementTree.fromstring(answer.data)
    return [element.text or "" for element in root.findall("{*}Contents/{*}Key")]


def _code(answer: Answer) -> str:
    try:
        root = ElementTree.fromstring(answer.data)
    except ElementTree.ParseError:
        return ""
    return root.findtext("Code") or root.findtext("{*}Code") or ""
