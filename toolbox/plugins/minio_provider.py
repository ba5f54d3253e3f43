"""Drop-in for the provider plugin `minio` 0.17.1: buckets, objects, users and policies.

S3Bucket, S3BucketPolicy, IlmPolicy, S3Object, IamUser, IamPolicy and IamUserPolicyAttachment, on
the official MinIO SDK. It answers as the official plugin does, except that it reports what that one
swallows: a failed change of a lifecycle, and a server that cannot be asked on a refresh, which that
one takes for a deleted bucket or lifecycle.

Source of fact: terraform-provider-minio v1.20.1, which pulumi-minio 0.17.1 bridges, and its answers
as recorded in `tests/plugins/data`.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import os
import re
import secrets
import ssl
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any, ClassVar
from xml.etree import ElementTree

import urllib3
from minio import Minio, MinioAdmin
from minio.commonconfig import AndOperator, Filter, Tags
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException, S3Error
from minio.lifecycleconfig import (
    Expiration,
    LifecycleConfig,
    NoncurrentVersionExpiration,
    Rule,
)

from formats.sigv4 import Signer, encoded_path, encoded_query
from toolbox.plugins import planned_state
from toolbox.plugins.planned_state import Attribute, Schema
from toolbox.plugins.policy_equivalence import equivalent
from toolbox.plugins.property_values import UNKNOWN, Properties, plain
from toolbox.plugins.resource_provider import (
    Difference,
    Failure,
    ResourceError,
    ResourceProvider,
    ResourceType,
    Subject,
    UnfinishedError,
    serve_provider,
)

SETTINGS: dict[str, str | None] = {
    "minioServer": "MINIO_ENDPOINT",
    "minioUser": "MINIO_USER",
    "minioPassword": "MINIO_PASSWORD",
    "minioSsl": "MINIO_ENABLE_HTTPS",
    "minioInsecure": "MINIO_INSECURE",
    "minioCacertFile": "MINIO_CACERT_FILE",
    "minioCertFile": "MINIO_CERT_FILE",
    "minioKeyFile": "MINIO_KEY_FILE",
    "minioRegion": None,
    "minioSessionToken": "MINIO_SESSION_TOKEN",
}
"""The provider's settings and the environment variables that stand in for them."""

DEFAULT_REGION = "us-east-1"
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 300.0
RETRIES = urllib3.Retry(
    total=3,
    connect=0,
    backoff_factor=0.2,
    status_forcelist=(500, 502, 503, 504),
    raise_on_status=False,
)
SECRET_BYTES = 40
"""Random bytes in a user's secret that nobody chose."""

GONE = {"NoSuchBucket", "NoSuchBucketPolicy", "NoSuchKey", "NoSuchLifecycleConfiguration"}
NO_USER = "XMinioAdminNoSuchUser"

_counter = itertools.count(1)


class AnswerError(ResourceError):
    """The server refused; `code` is its word for why, "" where it gave none."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(reason)
        self.code = code


class Server:
    """The MinIO server of one provider's settings. Making one contacts nobody."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take the provider's settings.

        Raises:
            ResourceError: one cannot be used; the message names it.
        """
        tls = _switch(settings, "minioSsl")
        self.endpoint = settings.get("minioServer", "")
        if "/" in self.endpoint:
            raise ResourceError(
                f"minio:minioServer is {self.endpoint!r}; write host:port, without a scheme or path"
            )
        self.url = f"{'https' if tls else 'http'}://{self.endpoint}"
        self.region = settings.get("minioRegion") or DEFAULT_REGION
        try:
            http = urllib3.PoolManager(
                ssl_context=_tls(settings) if tls else None,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS),
                retries=RETRIES,
                maxsize=16,
            )
            credentials = StaticProvider(
                settings.get("minioUser") or "-",
                settings.get("minioPassword") or "-",
                settings.get("minioSessionToken") or None,
            )
            self.objects = Minio(
                self.endpoint,
                credentials=credentials,
                secure=tls,
                # Without one, the SDK asks for each bucket's, as the official plugin's does. A
                # server of another region refuses that question and names its own, which only
                # that plugin's SDK takes.
                region=None if self.region == DEFAULT_REGION else self.region,
                http_client=http,
            )
            self.admin = MinioAdmin(
                endpoint=self.endpoint,
                credentials=credentials,
                region=self.region,
                secure=tls,
                http_client=http,
            )
        except (OSError, ValueError) as error:
            raise ResourceError(f"client creation failed (client): {error}") from None
        self._http = http
        self._signer = Signer(
            settings.get("minioUser") or "-",
            settings.get("minioPassword") or "-",
            self.region,
            settings.get("minioSessionToken") or None,
        )
        self._missing = [name for name in ("minioUser", "minioPassword") if not settings.get(name)]

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Turn the SDK's errors into one that begins with `what` was tried.

        Raises:
            AnswerError: the server said no.
            ResourceError: it did not answer, or there is no credential to ask with.
        """
        if self._missing:
            raise ResourceError(f"{what}: minio:{' and minio:'.join(self._missing)} not set")
        try:
            yield
        except AnswerError as error:
            raise AnswerError(f"{what}: {error}", error.code) from None
        except S3Error as error:
            message = "Access Denied." if error.code == "AccessDenied" else error.message
            raise AnswerError(f"{what}: {message}", error.code or "") from None
        except MinioAdminException as error:
            code, message = _admin_error(str(error))
            raise AnswerError(f"{what}: {message}", code) from None
        except urllib3.exceptions.HTTPError as error:
            # Only the last words: before them stand addresses in memory, and signed URLs.
            reason = str(getattr(error, "reason", error)).rpartition(": ")[2].strip("'\")")
            raise AnswerError(f"{what}: {self.url} does not answer: {reason}", "") from None
        except (MinioException, ValueError) as error:
            raise AnswerError(f"{what}: {error}", "") from None

    def put(self, bucket: str, name: str, data: bytes, content_type: str) -> None:
        """Store an object as one part of a multipart upload, as the official plugin does.

        The way shows in the object's ETag, which programs compare: the MD5 of the part's MD5 and
        "-1". The SDK's own upload of little data has no parts.
        """
        started = self._signed(
            "POST", bucket, name, {"uploads": ""}, headers={"Content-Type": content_type}
        )
        upload = {"uploadId": started.findtext("{*}UploadId", "")}
        part = ElementTree.Element("Part")
        ElementTree.SubElement(part, "PartNumber").text = "1"
        ElementTree.SubElement(part, "ETag").text = self._signed(
            "PUT", bucket, name, {"partNumber": "1", **upload}, data
        ).get("ETag")
        whole = ElementTree.Element("CompleteMultipartUpload")
        whole.append(part)
        self._signed("POST", bucket, name, upload, ElementTree.tostring(whole))

    def _signed(
        self,
        method: str,
        bucket: str,
        name: str,
        query: dict[str, str],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> ElementTree.Element:
        path, pairs = f"/{bucket}/{name}", list(query.items())
        # All headers are signed: not every server takes one of a kind that it looks at unsigned.
        signed = self._signer.signed(
            method, self.endpoint, path, pairs, headers or {}, datetime.now(timezone.utc)
        )
        answer = self._http.request(
            method,
            f"{self.url}{encoded_path(path)}?{encoded_query(pairs)}",
            body=body,
            headers=signed,
        )
        content = ElementTree.Element("none")
        with suppress(ElementTree.ParseError):
            content = ElementTree.fromstring(answer.data)
        code = content.findtext("Code") or content.findtext("{*}Code")
        if answer.status >= 300 or code:
            message = content.findtext("Message") or f"HTTP status {answer.status}"
            raise AnswerError(message, code or "")
        content.set("ETag", answer.headers.get("ETag", ""))
        return content


def _switch(settings: Mapping[str, str], name: str) -> bool:
    text = settings.get(name, "").lower()
    if text not in ("", "true", "false", "1", "0", "t", "f"):
        raise ResourceError(f"minio:{name} is {settings[name]!r}; write true or false")
    return text in ("true", "1", "t")


def _tls(settings: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.get("minioCacertFile"):
        try:
            context.load_verify_locations(settings["minioCacertFile"])
        except ssl.SSLError:
            raise ValueError("minio CA Cert is not a valid x509 certificate") from None
        except OSError as error:
            missing = f"open {settings['minioCacertFile']}: {(error.strerror or '').lower()}"
            raise ValueError(missing) from None
    if settings.get("minioCertFile") and settings.get("minioKeyFile"):
        context.load_cert_chain(settings["minioCertFile"], settings["minioKeyFile"])
    if _switch(settings, "minioInsecure"):
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _admin_error(text: str) -> tuple[str, str]:
    body = text.partition("Body: ")[2]
    try:
        answer = json.loads(body)
        return str(answer["Code"]), str(answer["Message"])
    except (ValueError, KeyError, TypeError):
        return "", text


def unique_id(prefix: str) -> str:
    """`prefix`, the time to a tenth of a millisecond and a count, as Terraform makes ids."""
    now = datetime.now(timezone.utc)
    return f"{prefix}{now:%Y%m%d%H%M%S}{now.microsecond // 100:04d}{next(_counter):08x}"


def unsupported(value: Any) -> str | None:
    """Refuse an argument of the official plugin that is not needed here."""
    return "not supported by the drop-in plugin" if value else None


class MinioResource(ResourceType):
    """A resource with a schema, planned by `planned_state` and carried out by `Server`."""

    schema: ClassVar[Schema]
    delete_before_replace = False
    """Whether a replacement would take the old one's name."""
    gone: ClassVar[AbstractSet[str]] = GONE | {NO_USER}
    """The answers that say that it is not there any more."""

    def __init__(self, server: Server) -> None:
        self.server = server

    @abstractmethod
    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Make it; returns id and outputs."""

    @abstractmethod
    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Id and outputs as they are now; `state` is empty on import."""

    @abstractmethod
    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Change it; returns the outputs."""

    @abstractmethod
    def remove(self, id: str, state: Properties) -> None:
        """Delete it."""

    def check(self, subject: Subject, news: Properties) -> tuple[Properties, list[Failure]]:
        """Check against the schema."""
        return planned_state.check(subject.name, news, self.schema)

    def diff(self, state: Properties, old_inputs: Properties, news: Properties) -> Difference:
        """Compare the plan with the stored outputs."""
        state = plain(state)
        planned = planned_state.plan(state, plain(news), self.schema)
        return planned_state.diff(state, planned, self.schema, self.delete_before_replace)

    def create(self, subject: Subject, inputs: Properties, preview: bool) -> tuple[str, Properties]:
        """Plan, then make."""
        planned = planned_state.plan(None, plain(inputs), self.schema)
        if preview:
            return "", self._stored(UNKNOWN, planned)
        new_id, outputs = self.make(planned)
        return new_id, self._stored(new_id, outputs)

    def read(
        self, subject: Subject, id: str, state: Properties, inputs: Properties
    ) -> tuple[str, Properties, Properties] | None:
        """Find, and say which inputs would describe what was found."""
        try:
            found = self.find(id, plain(state))
        except AnswerError as error:
            if error.code in self.gone:
                return None
            raise
        if found is None:
            return None
        found_id, outputs = found
        now = planned_state.inputs_now(inputs, outputs, self.schema)
        return found_id, self._stored(found_id, outputs), now

    def update(
        self, subject: Subject, id: str, state: Properties, news: Properties, preview: bool
    ) -> Properties:
        """Plan, then change."""
        state = plain(state)
        planned = planned_state.plan(state, plain(news), self.schema)
        if preview:
            return self._stored(id, planned)
        settled = planned_state.settle(state, planned, self.schema)
        try:
            return self._stored(id, self.change(id, state, settled))
        except ResourceError as error:
            raise UnfinishedError(str(error), id, self._stored(id, settled)) from None

    def delete(self, subject: Subject, id: str, state: Properties) -> None:
        """Remove; what has gone already is removed."""
        try:
            self.remove(id, plain(state))
        except AnswerError as error:
            if error.code not in self.gone:
                raise

    def _stored(self, id: Any, outputs: Properties) -> Properties:
        return {**planned_state.with_secrets(outputs, self.schema), "id": id}


class Bucket(MinioResource):
    """`S3Bucket`, private and empty when it goes."""

    schema: ClassVar[Schema] = {
        "bucket": Attribute(required=True, replaces=True),
        "acl": Attribute(
            default="private",
            wrong=lambda value: (
                None
                if value == "private"
                else "the drop-in plugin knows only the acl `private`; use an S3BucketPolicy"
            ),
        ),
        "bucketPrefix": Attribute(replaces=True, wrong=unsupported),
        "forceDestroy": Attribute("boolean", default=False, wrong=unsupported),
        "objectLocking": Attribute("boolean", default=False, wrong=unsupported),
        "quota": Attribute("number", wrong=unsupported),
        "arn": Attribute(output=True),
        "bucketDomainName": Attribute(output=True),
    }

    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Make a bucket, which must not exist."""
        name = planned["bucket"]
        with self.server.asked(f"unable to check bucket ({name})"):
            if self.server.objects.bucket_exists(name):
                raise ResourceError(f"bucket already exists! ({name})")
        with self.server.asked(f"unable to create bucket ({name})"):
            self.server.objects.make_bucket(name, self.server.region)
        return name, self._described(name, planned)

    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Find the bucket, if it exists."""
        with self.server.asked(f"unable to find bucket ({id})"):
            if not self.server.objects.bucket_exists(id):
                return None
        imported = {**dict.fromkeys(self.schema), "acl": "private", "objectLocking": False}
        return id, self._described(id, {**(state or imported), "bucket": id})

    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Nothing that the drop-in knows of a bucket changes on the server."""
        return planned

    def remove(self, id: str, state: Properties) -> None:
        """Remove the bucket, which must be empty."""
        with self.server.asked(f"unable to remove bucket ({id})"):
            self.server.objects.remove_bucket(id)

    def _described(self, name: str, properties: Properties) -> Properties:
        return {
            **{key: properties.get(key) for key in self.schema},
            "arn": f"arn:aws:s3:::{name}",
            "bucketDomainName": f"{self.server.url}/minio/{name}",
        }


def policy_wrong(text: str) -> str | None:
    """Return what is wrong with a policy's JSON."""
    if not text.startswith("{"):
        return '"policy" contains an invalid JSON policy'
    try:
        json.loads(text)
    except ValueError as error:
        return f'"policy" contains an invalid JSON: {error}'
    return None


class BucketPolicy(MinioResource):
    """`S3BucketPolicy`: what anybody may do with a bucket."""

    schema: ClassVar[Schema] = {
        "bucket": Attribute(required=True, replaces=True),
        "policy": Attribute(required=True, wrong=policy_wrong, same=equivalent),
    }

    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Set the policy, instead of any other."""
        bucket = planned["bucket"]
        return bucket, self.change(bucket, {}, planned)

    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Find the policy as stored while the server's says the same; "" where it has none."""
        with self.server.asked(f"failed to load bucket policy ({id})"):
            try:
                now = self.server.objects.get_bucket_policy(id)
            except S3Error as error:
                if error.code != "NoSuchBucketPolicy":
                    raise ResourceError(
                        f"failed to load bucket policy ({id}): {error.message}"
                    ) from None
                now = ""
        stored = state.get("policy") or ""
        policy = stored if stored and now and equivalent(stored, now) else now
        return id, {"bucket": id, "policy": _one_line(policy)}

    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Another policy."""
        with self.server.asked(f"error putting bucket policy ({id})"):
            self.server.objects.set_bucket_policy(id, _one_line(planned["policy"]))
        return planned

    def remove(self, id: str, state: Properties) -> None:
        """No policy."""
        with self.server.asked(f"error deleting bucket ({id})"):
            self.server.objects.delete_bucket_policy(id)


def _one_line(policy: str) -> str:
    if not policy:
        return ""
    text = json.dumps(json.loads(policy), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # As Go's encoder writes what could end an HTML element.
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def expiration_of(text: str) -> Expiration | None:
    """`"7d"`, `"2030-01-31"` or `"DeleteMarker"` as the SDK has it; None for anything else."""
    if text == "DeleteMarker":
        return Expiration(expired_object_delete_marker=True)
    days = re.match(r"\d+(?=d)", text, re.ASCII)
    if days:
        return Expiration(days=int(days[0])) if int(days[0]) else None
    try:
        return Expiration(date=datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc))
    except ValueError:
        return None


class Lifecycle(MinioResource):
    """`IlmPolicy`: all lifecycle rules of a bucket."""

    schema: ClassVar[Schema] = {
        "bucket": Attribute(required=True, replaces=True),
        "rules": Attribute(
            "list",
            terraform="rule",
            required=True,
            wrong=lambda rules: None if rules else "a lifecycle needs at least one rule",
            items={
                "id": Attribute(required=True),
                "expiration": Attribute(
                    wrong=lambda text: (
                        None
                        if expiration_of(text)
                        else "expiration must be a duration (5d), date (1970-01-01), or"
                        ' "DeleteMarker"'
                    )
                ),
                "filter": Attribute(),
                "noncurrentVersionExpirationDays": Attribute(
                    "number",
                    wrong=lambda days: (
                        None
                        if days >= 1
                        else "noncurrent_version_expiration_days must be strictly positive"
                    ),
                ),
                "tags": Attribute("map"),
                "status": Attribute(output=True),
            },
        ),
    }

    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Set the rules, instead of any others."""
        bucket = planned["bucket"]
        return bucket, self.change(bucket, {}, planned)

    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Find the rules as they are now."""
        with self.server.asked(f"reading lifecycle configuration failed ({id})"):
            now = self.server.objects.get_bucket_lifecycle(id)
        if now is None:
            return None
        return id, {"bucket": id, "rules": [_described(rule) for rule in now.rules]}

    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Set other rules, and read them back."""
        with self.server.asked(f"creating bucket lifecycle failed ({id})"):
            self.server.objects.set_bucket_lifecycle(
                id, LifecycleConfig([_rule(rule) for rule in planned["rules"]])
            )
        found = self.find(id, planned)
        if found is None:
            raise ResourceError(f"reading lifecycle configuration failed ({id}): it has gone")
        for rule in found[1]["rules"][len(state.get("rules") or ()) :]:
            rule["tags"] = rule["tags"] or None
        return found[1]

    def remove(self, id: str, state: Properties) -> None:
        """No rules."""
        with self.server.asked(f"deleting lifecycle configuration failed ({id})"):
            self.server.objects.delete_bucket_lifecycle(id)


def _rule(rule: Properties) -> Rule:
    prefix = rule.get("filter") or ""
    tags = Tags()
    tags.update(rule.get("tags") or {})
    days = rule.get("noncurrentVersionExpirationDays")
    return Rule(
        "Enabled",
        rule_filter=Filter(and_operator=AndOperator(prefix, tags))
        if tags
        else Filter(prefix=prefix),
        rule_id=rule["id"],
        expiration=expiration_of(rule["expiration"]) if rule.get("expiration") else None,
        noncurrent_version_expiration=NoncurrentVersionExpiration(days) if days else None,
    )


def _described(rule: Rule) -> Properties:
    expiration, expires = rule.expiration, ""
    if expiration and expiration.expired_object_delete_marker:
        expires = "DeleteMarker"
    elif expiration and expiration.days:
        expires = f"{expiration.days}d"
    elif expiration and expiration.date:
        expires = f"{expiration.date:%Y-%m-%d}"
    chosen = rule.rule_filter and (rule.rule_filter.and_operator or rule.rule_filter)
    noncurrent = rule.noncurrent_version_expiration
    return {
        "id": rule.rule_id,
        "expiration": expires,
        "filter": (chosen and chosen.prefix) or "",
        "noncurrentVersionExpirationDays": (noncurrent and noncurrent.noncurrent_days) or 0,
        "status": rule.status,
        "tags": dict(getattr(chosen, "tags", None) or {}),
    }


class Object(MinioResource):
    """`S3Object`: an object whose content stands in the program."""

    schema: ClassVar[Schema] = {
        "bucketName": Attribute(required=True, replaces=True),
        "objectName": Attribute(required=True, replaces=True),
        "content": Attribute(conflicts=("contentBase64",)),
        "contentBase64": Attribute(conflicts=("content",)),
        "contentType": Attribute(computed=True),
        "etag": Attribute(computed=True),
        "source": Attribute(wrong=unsupported),
        "versionId": Attribute(computed=True),
    }

    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Put an object, instead of any other of its name."""
        name = planned["objectName"]
        return name, self.change(name, {}, planned)

    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Find what the server says of it; not its content is compared, but its ETag."""
        if not state:
            return None
        with self.server.asked(f"reading object failed ({id})"):
            now = self.server.objects.stat_object(state["bucketName"], state["objectName"])
        return id, {
            **{name: state.get(name) for name in self.schema},
            "contentType": now.content_type,
            "etag": now.etag,
            "versionId": now.version_id or "",
        }

    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Put other content."""
        content_type = planned["contentType"]
        if content_type in (None, "", UNKNOWN):
            content_type = "application/octet-stream"
        try:
            data = (planned["content"] or "").encode() or base64.b64decode(
                planned["contentBase64"] or "", validate=True
            )
        except binascii.Error as error:
            raise ResourceError(f"error decoding content_base64 ({id}): {error}") from None
        if not data:
            nothing = "one of source / content / content_base64 is not set"
            raise ResourceError(f"putting object failed ({id}): {nothing}")
        with self.server.asked(f"putting object failed ({id})"):
            self.server.put(planned["bucketName"], planned["objectName"], data, content_type)
        found = self.find(id, planned)
        assert found
        return found[1]

    def remove(self, id: str, state: Properties) -> None:
        """Remove the object."""
        with self.server.asked(f"deleting object failed ({id})"):
            self.server.objects.remove_object(state["bucketName"], state["objectName"])


def user_wrong(argument: str) -> Callable[[str], str | None]:
    """Return what is wrong with a user's name that stands in `argument`."""

    def wrong(name: str) -> str | None:
        if re.match(r"[0-9A-Za-z=,.@\-_+]+\Z", name):
            return None
        return (
            "only alphanumeric characters, hyphens, underscores, commas, periods, @ symbols, plus"
            " and equals signs allowed or a valid LDAP Distinguished Name (DN) in"
            f' "{argument}": {json.dumps(name)}'
        )

    return wrong


class User(MinioResource):
    """`IamUser`, with a secret of its own."""

    delete_before_replace = True
    schema: ClassVar[Schema] = {
        "name": Attribute(required=True, replaces=True, wrong=user_wrong("name")),
        "secret": Attribute(computed=True, secret=True),
        "updateSecret": Attribute("boolean", default=False),
        "disableUser": Attribute("boolean", default=False),
        "forceDestroy": Attribute("boolean", default=False, wrong=unsupported),
        "tags": Attribute("map"),
        "status": Attribute(output=True),
    }

    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Make a user; one that exists gets the new secret."""
        name = planned["name"]
        secret = planned["secret"]
        if secret in (UNKNOWN, ""):
            secret = _new_secret()
        with self.server.asked(f"error creating user ({name})"):
            self.server.admin.user_add(name, secret)
        made = {**planned, "secret": secret, "status": "enabled"}
        if planned["disableUser"]:
            try:
                with self.server.asked(f"error disabling IAM User ({name})"):
                    self.server.admin.user_disable(name)
            except ResourceError as error:
                raise UnfinishedError(str(error), name, self._stored(name, made)) from None
            made["status"] = "disabled"
        return name, made

    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Whether it exists and is enabled; its secret cannot be read."""
        with self.server.asked(f"error reading IAM User ({id})"):
            now = json.loads(self.server.admin.user_info(id))
        outputs = {name: state.get(name) for name in self.schema}
        return id, {**outputs, "name": id, "status": now["status"]}

    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Another secret, or another status."""
        status = "disabled" if planned["disableUser"] else "enabled"
        secret = _new_secret() if planned["updateSecret"] else planned["secret"]
        with self.server.asked(f"error updating IAM User Key ({id})"):
            if secret != state.get("secret"):
                # This also enables the user.
                self.server.admin.user_add(id, secret)
            if status == "disabled":
                self.server.admin.user_disable(id)
            else:
                self.server.admin.user_enable(id)
        return {**planned, "secret": secret, "status": status}

    def remove(self, id: str, state: Properties) -> None:
        """Remove the user, first from the groups it is in."""
        with self.server.asked(f"error deleting IAM User ({id})"):
            for group in json.loads(self.server.admin.user_info(id)).get("memberOf") or ():
                self.server.admin.group_remove(group, id)
            self.server.admin.user_remove(id)


def _new_secret() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def name_wrong(name: str) -> str | None:
    """Return what is wrong with a policy's name."""
    if len(name) > 96:
        return '"name" cannot be longer than 96 characters, name is limited to 128'
    if not re.match(r"[\w+=,.@:-]*\Z", name, re.ASCII):
        return r'"name" must match [\w+=,.@:-]'
    return None


class Policy(MinioResource):
    """`IamPolicy`: a named set of permissions."""

    delete_before_replace = True
    schema: ClassVar[Schema] = {
        "name": Attribute(required=True, replaces=True, wrong=name_wrong),
        "namePrefix": Attribute(replaces=True, wrong=unsupported),
        "policy": Attribute(required=True, wrong=policy_wrong, same=equivalent),
    }

    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Set the policy, instead of any other of its name."""
        name = planned["name"]
        return name, self._put(f"unable to create policy ({name})", name, planned)

    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Find the policy as the server writes it."""
        with self.server.asked(f"unable to read policy ({id})"):
            now = json.loads(self.server.admin.policy_info(id))
        return id, {
            "name": id,
            "namePrefix": state.get("namePrefix"),
            "policy": json.dumps(now, indent=1, ensure_ascii=False),
        }

    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Other permissions."""
        return self._put(f"unable to update policy ({id})", id, planned)

    def remove(self, id: str, state: Properties) -> None:
        """Remove the policy, which nobody may have."""
        with self.server.asked(f"unable to delete policy ({id})"):
            self.server.admin.policy_remove(id)

    def _put(self, what: str, name: str, planned: Properties) -> Properties:
        with self.server.asked(what):
            self.server.admin.policy_add(name, policy=json.loads(planned["policy"]))
        found = self.find(name, planned)
        assert found
        return found[1]


class Attachment(MinioResource):
    """`IamUserPolicyAttachment`: a user has a policy, among others."""

    schema: ClassVar[Schema] = {
        "policyName": Attribute(required=True, replaces=True, wrong=name_wrong),
        "userName": Attribute(required=True, replaces=True, wrong=user_wrong("user_name")),
    }
    # The official plugin fails where its user is gone, in a refresh and in a deletion.
    gone = GONE
    # The server knows a user's policies only as one list, read, changed and written back.
    one_at_a_time = threading.Lock()

    def make(self, planned: Properties) -> tuple[str, Properties]:
        """Attach."""
        user, policy = planned["userName"], planned["policyName"]
        with self.one_at_a_time:
            attached = self._attached(user)
            if policy not in attached:
                with self.server.asked(f"unable to Set User policy ({user} {policy})"):
                    self.server.admin.policy_set(",".join([*attached, policy]), user)
        return unique_id(f"{user}-"), planned

    def find(self, id: str, state: Properties) -> tuple[str, Properties] | None:
        """Whether it is still attached; an import's id is USER/POLICY."""
        user, _, policy = id.partition("/")
        imported = {"userName": user, "policyName": policy}
        attached = state or imported
        if not attached["policyName"] or attached["policyName"] not in self._attached(
            attached["userName"]
        ):
            return None
        return id if state else unique_id(f"{user}-"), {
            name: attached[name] for name in self.schema
        }

    def change(self, id: str, state: Properties, planned: Properties) -> Properties:
        """Never: every change replaces."""
        return planned

    def remove(self, id: str, state: Properties) -> None:
        """Detach."""
        user, policy = state["userName"], state["policyName"]
        with self.one_at_a_time:
            attached = self._attached(user)
            if policy in attached:
                with self.server.asked(f"unable to delete user policy ({user})"):
                    rest = [name for name in attached if name != policy]
                    self.server.admin.policy_set(",".join(rest), user)

    def _attached(self, user: str) -> list[str]:
        with self.server.asked(f"failed to load user Infos ({user})"):
            names = json.loads(self.server.admin.user_info(user)).get("policyName")
        return str(names).split(",") if names else []


TYPES: dict[str, type[MinioResource]] = {
    "minio:index/s3Bucket:S3Bucket": Bucket,
    "minio:index/s3BucketPolicy:S3BucketPolicy": BucketPolicy,
    "minio:index/ilmPolicy:IlmPolicy": Lifecycle,
    "minio:index/s3Object:S3Object": Object,
    "minio:index/iamUser:IamUser": User,
    "minio:index/iamPolicy:IamPolicy": Policy,
    "minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment": Attachment,
}


class MinioProvider(ResourceProvider):
    """The plugin `minio`."""

    version = "0.17.1"
    # As the official plugin: the engine then keeps secret inputs secret in the outputs by itself.
    accept_secrets = False

    def check_configuration(self, settings: Properties) -> list[Failure]:
        """Names of settings, and that there is a server."""
        failures = [
            (
                "",
                f"`minio:{name}` is not a valid configuration key for the minio provider. If the"
                " referenced key is not intended for the provider, please choose a different"
                " namespace from `minio:`.",
            )
            for name in settings
            if name not in SETTINGS and name != "version"
        ]
        if "minioServer" not in settings and not os.environ.get("MINIO_ENDPOINT"):
            failures.append(
                (
                    "",
                    "Provider is missing a required configuration key, try `pulumi config set"
                    " minio:minioServer`: Minio Host and Port",
                )
            )
        return failures

    def configure(self, settings: Properties) -> None:
        """Take the settings, or the environment's where they are left out."""
        known = {
            name: str(plain(settings[name]))
            if name in settings
            else os.environ.get(variable or "", "")
            for name, variable in SETTINGS.items()
        }
        server = Server(known)
        self.types = {token: resource(server) for token, resource in TYPES.items()}


def main() -> None:
    """Serve the engine named by the last argument."""
    serve_provider(MinioProvider)


if __name__ == "__main__":
    main()
