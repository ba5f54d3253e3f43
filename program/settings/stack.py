"""Stack configuration, read once, as one typed and validated object.

This module is the only reader of the stack's configuration. The settings' types, defaults and
descriptions stand in `Pulumi.yaml`, and the engine fills the defaults in; what is checked here is
what a schema cannot say. Everything is checked before the first resource is declared.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from urllib.parse import urlsplit

import pulumi

from formats.compression import COMPRESSIONS
from formats.error import FormatError
from formats.keys import PublicKey, shown_key
from formats.s3 import LARGEST_COPY, SMALLEST_PART
from program.settings.builders import BuilderSettings, check_s3_name, read_builders
from program.settings.local_file import read_local_file
from program.settings.pins import PinSettings, read_pins
from program.settings.reader import SettingError, SettingReader
from program.settings.signing_keys import SigningKeySettings, read_signing_keys
from program.settings.ssh import is_host

_CERTIFICATE = re.compile(
    r"^-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----", re.MULTILINE
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RESERVED_BUCKET = "minio"
"""Where MinIO has its own APIs (`cmd/generic-handlers.go`, minioReservedBucket)."""
_REGION = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SEPARATORS = re.compile(r"[,=]")
"""What ends a user's name where a request is signed (Amazon S3, "Authenticating Requests").

A slash does not: the four parts behind the name are counted from the end
(`cmd/signature-v4-parser.go`, parseCredentialHeader).
"""
ADOPTED_BUCKET = "NIXCACHE_ADOPTED_BUCKET"
"""Variable that names the bucket which `make repair` adopts, for one `pulumi up` alone."""
CACHE_NIXOS_ORG = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
"""The public key of cache.nixos.org (Nix manual, `trusted-public-keys`)."""

BUILT_IN_POLICIES = frozenset(["consoleAdmin", "diagnostics", "readonly", "readwrite", "writeonly"])
"""Policies that every MinIO server has (minio/pkg, `policy/constants.go`)."""
_OPTIONAL_SECRETS = (
    "adoptedSigningKeys",
    "adoptedUserSecrets",
    "givenUserSecrets",
    "sshPrivateKey",
)
_SECRETS = frozenset([*_OPTIONAL_SECRETS, "minioPassword"])


_SHORTEST_SECRET = {"adoptedUserSecrets": 8, "givenUserSecrets": 1}
"""MinIO's own bound is 8 (`internal/auth/credentials.go`, secretKeyMinLen); others have others."""
_NO_SUCH_USER = {
    "adoptedUserSecrets": "has a user that no builder is, nor the reader of a private cache; take "
    "it out, or give a builder that s3User",
    "givenUserSecrets": "has a user that no builder is, nor the reader; take it out, or give a "
    "builder that accessKeyId",
}


@dataclass(frozen=True)
class Endpoint:
    """Where the S3 server answers."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, url: str, setting: str = "endpoint") -> Endpoint:
        """Read `https://host[:port]`.

        Raises:
            SettingError: no scheme, no host, or more than those.
        """
        remedy = "write the server's address with its scheme, such as https://s3.homelab.local"
        # A URL's parser drops line breaks, and takes a Kelvin sign for a k.
        if not re.fullmatch(r"[!-~]+", url):
            raise SettingError(setting, url, remedy)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise SettingError(setting, url, remedy) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError(setting, url, remedy)
        if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise SettingError(setting, url, "write scheme, host and port only, and nothing else")
        if not is_host(parts.hostname):
            raise SettingError(setting, url, remedy)
        return cls(parts.scheme, parts.hostname, port)

    @property
    def tls(self) -> bool:
        """Whether the server is spoken to over TLS."""
        return self.scheme == "https"

    @property
    def server(self) -> str:
        """`host` or `host:port`, as the MinIO provider wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    def __str__(self) -> str:
        """Return the URL."""
        return f"{self.scheme}://{self.server}"


@dataclass(frozen=True)
class Settings:
    """All of a stack's settings, validated. Each is described in `Pulumi.yaml`."""

    endpoint: Endpoint
    region: str
    virtual_hosts: bool
    """Whether the bucket stands in the server's host name, and not in the path."""
    minio_user: str
    minio_password: str = field(repr=False)
    ca_certificate_file: str | None
    ca_certificate: str | None
    bucket: str
    adopt_bucket: bool
    public_url: str
    access: str
    bucket_policy: bool
    protect: bool
    anonymous_listing: bool
    retention_days: int | None
    grace_days: int
    expires_at_midnight: bool
    confirm_shorter_retention: bool
    confirm_shared_bucket: bool
    page_figures: bool
    want_mass_query: bool
    priority: int
    signing_keys: SigningKeySettings
    confirm_key_replacement: bool
    adopted_user_secrets: Mapping[str, str] = field(repr=False)
    given_users: bool
    """Whether users and policies are made elsewhere: the deployment makes none."""
    given_user_secrets: Mapping[str, str] = field(repr=False)
    """The secrets of users that are made elsewhere, by their access key ids."""
    reader_access_key_id: str
    upstream_keys: tuple[str, ...]
    compression: str
    compression_level: int
    parallelism: int
    staging_limit: int
    part_size: int
    listings: bool
    logs: bool
    write_policy: str
    builders: tuple[BuilderSettings, ...]
    pins: tuple[PinSettings, ...]

    @property
    def private(self) -> bool:
        """Whether only the builders and the reader may read the cache."""
        return self.access == "private"

    @property
    def bucket_url(self) -> str:
        """The bucket's URL on the server itself."""
        return bucket_url(self.endpoint, self.bucket, virtual=self.virtual_hosts)

    @property
    def rule_days(self) -> int | None:
        """Days after which the bucket's rules take a narinfo; None where none does.

        What was pushed on one day goes together where expiry is rounded up to midnight. Where it is
        not, a path goes as much before what refers to it as it was written before it that day: a
        day more, and it still outlives the lease.
        """
        if self.retention_days is None:
            return None
        return self.retention_days + (0 if self.expires_at_midnight else 1)

    @property
    def reader_profile(self) -> str:
        """What clients of a private cache call the reader's credential."""
        return _reader_profile(self.bucket)

    @property
    def reader_user(self) -> str:
        """The access key id of a private cache's reader; one made here has a policy of the name."""
        return self.reader_access_key_id if self.given_users else self.reader_profile

    @property
    def users(self) -> frozenset[str]:
        """The access key ids of the builders and the reader, whoever made them."""
        readers = [self.reader_user] if self.private else []
        return frozenset([*readers, *(builder.s3_user for builder in self.builders)])

    @property
    def policies(self) -> frozenset[str]:
        """The policies on the S3 server that a deployment makes."""
        if self.given_users:
            return frozenset()
        return frozenset([self.write_policy, *([self.reader_user] if self.private else [])])

    def name_of_user(self, access_key_id: str) -> tuple[str, str]:
        """Return the setting that names a builder's or the reader's user, and whose it is."""
        for index, builder in enumerate(self.builders):
            if builder.s3_user == access_key_id:
                setting = "accessKeyId" if self.given_users else "s3User"
                return f"builders[{index}].{setting}", f"builder {builder.name}"
        return "readerAccessKeyId" if self.given_users else "bucket", "the cache's reader"


def load() -> Settings:
    """Read the settings of the stack that is running.

    Raises:
        SettingError: a setting is missing, unknown or cannot be used.
    """
    config = pulumi.Config()
    for name in _OPTIONAL_SECRETS:
        # `secret: true` in Pulumi.yaml would make the engine refuse the empty default too.
        if config.get(name) and not pulumi.runtime.is_config_secret(config.full_key(name)):
            raise SettingError(
                name, None, f"stands in plain text; pulumi config set --secret {name}"
            )
    prefix = f"{config.name}:"
    names = [
        key[len(prefix) :] for key in pulumi.runtime.get_config_env() if key.startswith(prefix)
    ]
    settings = parse({name: config.get(name) or "" for name in names})
    check_given_secrets(settings)
    for name in names:
        if name not in _SECRETS and pulumi.runtime.is_config_secret(config.full_key(name)):
            pulumi.log.warn(
                f"{name} is marked secret, and is shown all the same: in outputs, previews and the "
                "state; set it without --secret"
            )
    if os.environ.get(ADOPTED_BUCKET) == settings.bucket:
        return replace(settings, adopt_bucket=True)
    return settings


def check_given_secrets(settings: Settings) -> None:
    """Refuse a user without its secret, which a deployment needs.

    Raises:
        SettingError: `users` is `given`, and one has none.
    """
    for user in sorted(settings.users) if settings.given_users else ():
        if user not in settings.given_user_secrets:
            _, whose = settings.name_of_user(user)
            raise SettingError(
                "givenUserSecrets",
                None,
                f"has no line for {user}, as {whose} is known by; add {user}:SECRET "
                "(pulumi config set --secret givenUserSecrets)",
            )


def parse(configuration: Mapping[str, str]) -> Settings:
    """Validate `configuration`, a stack's settings as Pulumi hands them to a program.

    Args:
        configuration: names without the project's, values as text; lists and objects as JSON.

    Raises:
        SettingError: a setting is missing, unknown or cannot be used.
    """
    reader = SettingReader("", dict(configuration))
    endpoint = Endpoint.parse(reader.text("endpoint"))
    given_users = _given_users(reader.text("users"))
    bucket = _bucket(reader.text("bucket"), given_users=given_users)
    public_url_given = reader.text("publicUrl")
    virtual_hosts = _virtual_hosts(reader.text("addressing"), endpoint, bucket)
    public_url = _public_url(public_url_given, bucket_url(endpoint, bucket, virtual=virtual_hosts))
    ca_certificate_file, ca_certificate = _ca_certificate(reader.text("caCertificateFile"))
    if ca_certificate is not None and not endpoint.tls:
        raise SettingError("endpoint", str(endpoint), "a CA certificate needs an https:// endpoint")
    access = reader.text("access")
    if access not in ("public", "private"):
        raise SettingError("access", access, "write public or private")
    compression = reader.text("compression")
    if compression not in COMPRESSIONS:
        names = ", ".join(COMPRESSIONS)
        raise SettingError("compression", compression, f"write one of {names}")
    levels = COMPRESSIONS[compression].levels
    signing_keys = read_signing_keys(
        reader,
        urlsplit(public_url).hostname or "",
        ("publicUrl", public_url) if public_url_given else ("endpoint", str(endpoint)),
    )
    pins, builders = read_pins(reader, read_builders(reader, bucket, given_users=given_users))
    reader_access_key_id = reader.text("readerAccessKeyId") if given_users else ""
    if reader_access_key_id:
        check_s3_name("readerAccessKeyId", reader_access_key_id)
    retention_days = reader.integer("retentionDays", range(1, 36_501), "days")
    settings = Settings(
        endpoint=endpoint,
        region=_region(reader.line("region")),
        virtual_hosts=virtual_hosts,
        minio_user=_minio_user(reader.line("minioUser")),
        minio_password=reader.secret("minioPassword"),
        ca_certificate_file=ca_certificate_file,
        ca_certificate=ca_certificate,
        bucket=bucket,
        adopt_bucket=reader.boolean("adoptBucket"),
        public_url=public_url,
        access=access,
        bucket_policy=reader.boolean("bucketPolicy"),
        protect=reader.boolean("protect"),
        anonymous_listing=reader.boolean("anonymousListing"),
        retention_days=retention_days if reader.boolean("expire") else None,
        grace_days=reader.integer("graceDays", range(1, 3_651), "days"),
        expires_at_midnight=reader.boolean("expiresAtMidnight"),
        confirm_shorter_retention=reader.boolean("confirmShorterRetention"),
        confirm_shared_bucket=reader.boolean("confirmSharedBucket"),
        page_figures=reader.boolean("pageFigures"),
        want_mass_query=reader.boolean("wantMassQuery"),
        priority=reader.integer("priority", range(1_000_001)),
        signing_keys=signing_keys,
        confirm_key_replacement=reader.boolean("confirmKeyReplacement"),
        adopted_user_secrets=_user_secrets(
            "adoptedUserSecrets",
            "" if given_users else reader.text("adoptedUserSecrets"),
            {builder.s3_user for builder in builders}
            | ({_reader_profile(bucket)} if access == "private" else set()),
        ),
        given_users=given_users,
        given_user_secrets=_user_secrets(
            "givenUserSecrets",
            reader.text("givenUserSecrets") if given_users else "",
            {reader_access_key_id, *(builder.s3_user for builder in builders)},
        ),
        reader_access_key_id=reader_access_key_id,
        upstream_keys=_upstream_keys(reader.texts("upstreamKeys")),
        compression=compression,
        compression_level=reader.integer("compressionLevel", levels, f"for {compression}"),
        parallelism=reader.integer("parallelism", range(1, 1_000)),
        staging_limit=reader.integer("stagingLimit", range(1 << 20, 1 << 50), "bytes"),
        part_size=reader.integer("partSize", range(SMALLEST_PART, LARGEST_COPY + 1), "bytes"),
        listings=reader.boolean("listings"),
        logs=reader.boolean("logs"),
        write_policy=check_s3_name(
            "writePolicy",
            ("" if given_users else reader.text("writePolicy")) or f"{bucket}-write",
        ),
        builders=builders,
        pins=pins,
    )
    if reader_access_key_id and access == "public":
        raise SettingError(
            "readerAccessKeyId",
            None,
            "is without effect, since access is public: everyone reads; leave it out",
        )
    _check_who_makes_users(reader, given_users=given_users)
    reader.refuse_the_rest("Pulumi.yaml lists the settings there are")
    if not settings.bucket_policy:
        _check_no_bucket_policy(settings, public_url_given)
    if settings.private:
        _check_private(settings)
    _check_names_of_others(settings)
    return settings


def bucket_url(endpoint: Endpoint, bucket: str, *, virtual: bool) -> str:
    """Return a bucket's URL (Amazon S3 User Guide, "Virtual hosting of buckets")."""
    if virtual:
        return f"{endpoint.scheme}://{bucket}.{endpoint.server}"
    return f"{endpoint}/{bucket}"


def _reader_profile(bucket: str) -> str:
    return f"{bucket}-reader"


def _virtual_hosts(addressing: str, endpoint: Endpoint, bucket: str) -> bool:
    if addressing not in ("path", "virtual"):
        raise SettingError("addressing", addressing, "write path or virtual")
    if addressing == "path":
        return False
    if ":" in endpoint.host or re.fullmatch(r"[0-9.]+", endpoint.host):
        raise SettingError(
            "addressing", addressing, "an address has no names below it; write a host's name"
        )
    if endpoint.tls and "." in bucket:
        raise SettingError(
            "addressing",
            addressing,
            f"no certificate for one name below the host covers {bucket}.{endpoint.host}; take a "
            "bucket without a dot",
        )
    return True


def _given_users(users: str) -> bool:
    if users not in ("minio", "given"):
        raise SettingError("users", users, "write minio or given")
    return users == "given"


def _check_who_makes_users(reader: SettingReader, *, given_users: bool) -> None:
    """Refuse what would be without effect, because users are made by another than it says."""
    without_effect = {
        False: {
            "givenUserSecrets": "the deployment makes them; or is it adoptedUserSecrets that you "
            "mean",
            "readerAccessKeyId": "the deployment makes the reader",
        },
        True: {
            "adoptedUserSecrets": "no user is made here; write the secrets to givenUserSecrets",
            "writePolicy": "no policy is made here; leave it out",
        },
    }[given_users]
    for setting, remedy in without_effect.items():
        if reader.has(setting) and reader.text(setting):
            users = "given" if given_users else "minio"
            raise SettingError(
                setting, None, f"is without effect, since users is {users}: {remedy}"
            )


def _check_no_bucket_policy(settings: Settings, public_url: str) -> None:
    if settings.anonymous_listing:
        raise SettingError(
            "anonymousListing", True, "bucketPolicy is off, so nothing here opens it; write false"
        )
    if not settings.private and not public_url:
        raise SettingError(
            "publicUrl",
            None,
            "is missing, since bucketPolicy is off; write the URL at which the bucket is open by "
            "the server's own means",
        )


def _check_private(settings: Settings) -> None:
    if settings.given_users and not settings.reader_access_key_id:
        raise SettingError(
            "readerAccessKeyId",
            None,
            "is missing, since access is private and users is given; write the access key id of "
            "a user that may read the bucket's objects",
        )
    if settings.anonymous_listing:
        raise SettingError(
            "anonymousListing", True, "nobody is anonymous to a private cache; write false"
        )
    if settings.write_policy == settings.reader_profile:
        raise SettingError(
            "writePolicy", settings.write_policy, "this is the reader's policy; take another name"
        )
    if settings.reader_user in {builder.s3_user for builder in settings.builders}:
        setting = "accessKeyId" if settings.given_users else "s3User"
        raise SettingError(
            f"builders[].{setting}",
            settings.reader_user,
            "this is the private cache's reader; give the builder another",
        )


def _check_names_of_others(settings: Settings) -> None:
    """Refuse to put users and policies of this stack over what the server cannot do without."""
    if settings.write_policy in BUILT_IN_POLICIES:
        raise SettingError(
            "writePolicy",
            settings.write_policy,
            "MinIO itself has this policy, for everyone; write another name",
        )
    if settings.given_users and settings.minio_user in settings.users:
        setting, whose = settings.name_of_user(settings.minio_user)
        raise SettingError(
            setting,
            settings.minio_user,
            f"this is minioUser, the deployment's own, and {whose} would have all its rights; make "
            "a user of its own",
        )
    if settings.minio_user in settings.users:
        raise SettingError(
            "minioUser",
            settings.minio_user,
            "a builder or the reader has this user, whose secret and rights are the deployment's "
            "to change; give the builder another s3User",
        )


def _bucket(bucket: str, *, given_users: bool) -> str:
    """Check a bucket's name against S3's "General purpose bucket naming rules"."""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or ".-" in bucket or "-." in bucket:
        raise SettingError(
            "bucket", bucket, "write 3 to 63 lower-case letters, digits and single hyphens"
        )
    if bucket.startswith("xn--") or bucket.endswith(("-s3alias", "--ol-s3")):
        raise SettingError("bucket", bucket, "S3 keeps this prefix or suffix for itself; rename it")
    # Where users are given, the server may be any.
    if bucket == _RESERVED_BUCKET and not given_users:
        raise SettingError("bucket", bucket, "MinIO keeps this name for itself; write another")
    try:
        ip_address(bucket)
    except ValueError:
        return bucket
    raise SettingError("bucket", bucket, "a bucket's name must not look like an IP address")


def _region(region: str) -> str:
    if not _REGION.fullmatch(region):
        raise SettingError(
            "region", region, "write 1 to 64 letters, digits, dots, hyphens and underscores"
        )
    return region


def _minio_user(user: str) -> str:
    if _SEPARATORS.search(user):
        raise SettingError(
            "minioUser", user, "no request can be signed by a name with , or =; write the user"
        )
    return user


def _public_url(url: str, default: str) -> str:
    if not url:
        return default
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"[^!-~]|[?#@\"'\\$`<>{}|^]", url):
        raise SettingError("publicUrl", url, "write an http:// or https:// URL without a query")
    return url.rstrip("/")


def _ca_certificate(name: str) -> tuple[str | None, str | None]:
    if not name:
        return None, None
    path, text = read_local_file("caCertificateFile", name, "the CA's PEM file", errors="replace")
    if not _CERTIFICATE.search(text) or "PRIVATE KEY" in text:
        raise SettingError(
            "caCertificateFile", name, "holds no certificate; name the CA's PEM file"
        )
    try:
        # The file as it is: so it is read when the server is asked, which would seem to be away.
        ssl.create_default_context(cadata=text.replace("\N{REPLACEMENT CHARACTER}", "?"))
    except ssl.SSLError:
        raise SettingError(
            "caCertificateFile", name, "holds a damaged certificate; name the CA's PEM file, whole"
        ) from None
    # What stands around the certificates would be a part of Nix expressions.
    return str(path), "".join(f"{block}\n" for block in _CERTIFICATE.findall(text))


def _user_secrets(setting: str, text: str, users: Collection[str]) -> dict[str, str]:
    """Return the secrets of `text` by user; no message shows any part of one."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        user, _, secret = line.strip().partition(":")
        if not re.fullmatch(r"[\x21-\x7e]+", secret) or len(secret) < _SHORTEST_SECRET[setting]:
            remedy = "is no user:secret; write the user's name, a colon and its secret"
        elif user not in users:
            remedy = _NO_SUCH_USER[setting]
        elif user in found:
            remedy = "has the user of a line before it; give each user one secret"
        else:
            found[user] = secret
            continue
        raise SettingError(setting, None, f"line {number} {remedy}")
    return found


def _upstream_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    for key in keys:
        try:
            # No more than one form, and no name that means something to whoever reads it.
            if str(PublicKey.parse(key)) != key or re.search(r"[^!-~]|[\"'\\$`]", key):
                raise FormatError("a public key's name is of other characters")
        except FormatError:
            raise SettingError(
                "upstreamKeys",
                shown_key(key),
                "write the whole public key, name:base64, so that its signatures can be verified; "
                f"that of cache.nixos.org is {CACHE_NIXOS_ORG}",
            ) from None
    names = [PublicKey.parse(key).name for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingError(
            "upstreamKeys", twice, "two keys have this name, and Nix knows one of a name; leave one"
        )
    return keys
