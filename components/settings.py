"""Stack configuration, read once, as one typed and validated object.

This module is the only reader of the stack's configuration. The settings' types, defaults and
descriptions stand in `Pulumi.yaml`, and the engine fills the defaults in; what is checked here is
what a schema cannot say. Everything is checked before the first resource is declared.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pulumi

from .nix_format import FormatError, KeyName, SecretKey, is_key_domain, is_store_path

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_BUILDER_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9:]([A-Za-z0-9.:_-]*[A-Za-z0-9:])?")
_S3_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{2,127}")
_UPSTREAM_KEY = re.compile(r"[^\s:]+")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<kind>[A-Z ]*PRIVATE KEY)-----\n(?P<body>.+)\n-----END (?P=kind)-----",
    re.DOTALL,
)
_OPTIONAL_SECRETS = ("adoptedSigningKeys", "adoptedUserSecrets", "sshPrivateKey")
_COMPRESSIONS = {"zstd": range(20), "xz": range(10), "none": range(1)}


class SettingError(pulumi.RunError):
    """A setting that cannot be used: one sentence with the setting, its value and the remedy."""

    def __init__(self, setting: str, value: object, remedy: str) -> None:
        """Say what is wrong with a setting; a value of None is not shown."""
        shown = "" if value is None else f" is {json.dumps(value)}"
        super().__init__(f"{setting}{shown}: {remedy}")


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
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise SettingError(setting, url, remedy) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError(setting, url, remedy)
        if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise SettingError(setting, url, "write scheme, host and port only, and nothing else")
        if not _HOST.fullmatch(parts.hostname):
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
class BuilderSettings:
    """One machine that pushes: an element of the setting `builders`."""

    name: str
    """What the builder is called in this stack."""
    s3_user: str
    """Its user on the S3 server."""
    s3_policy: str
    """Its policy on the S3 server."""
    closures: tuple[str, ...]
    """Store paths, or links to them, whose closures it pushes."""
    local: bool = False
    """Whether the builder is the machine that runs Pulumi."""
    host: str = ""
    """The host that SSH connects to; empty for a local builder."""
    port: int = 22
    """The port of its SSH server."""
    user: str = "root"
    """The user that SSH logs in as."""
    host_key: str | None = None
    """The host's public key as `known_hosts` has it, without the host; None trusts any."""
    private_key: str | None = field(default=None, repr=False)
    """The private key's text; None asks the SSH agent."""
    jump_host: JumpHost | None = None
    """The host to go through, if any."""
    credentials_directory: str | None = None
    """Where the deployment puts the credential for pushes of the builder's own; None nowhere."""
    pins: tuple[str, ...] = ()
    """Store paths, or links to them, that each of its pushes renews beside what it pushes."""

    @property
    def pushed(self) -> tuple[str, ...]:
        """Everything that a push by the deployment is given: closures and pins, each once."""
        return tuple(dict.fromkeys((*self.closures, *self.pins)))


@dataclass(frozen=True)
class JumpHost:
    """An SSH host on the way to a builder."""

    host: str
    port: int = 22
    user: str = "root"
    host_key: str | None = None


@dataclass(frozen=True)
class Settings:
    """All of a stack's settings, validated. Each is described in `Pulumi.yaml`."""

    endpoint: Endpoint
    region: str
    minio_user: str
    minio_password: str = field(repr=False)
    ca_certificate_file: str | None
    ca_certificate: str | None
    bucket: str
    adopt_bucket: bool
    public_url: str
    access: str
    protect: bool
    anonymous_listing: bool
    retention_days: int | None
    grace_days: int
    confirm_shorter_retention: bool
    store_dir: str
    want_mass_query: bool
    priority: int
    signing_keys: tuple[str, ...]
    adopted_signing_keys: Mapping[str, str] = field(repr=False)
    adopted_user_secrets: Mapping[str, str] = field(repr=False)
    upstream_keys: tuple[str, ...]
    compression: str
    compression_level: int
    parallelism: int
    staging_limit: int
    builders: tuple[BuilderSettings, ...]

    @property
    def private(self) -> bool:
        """Whether only the builders and the reader may read the cache."""
        return self.access == "private"

    @property
    def reader_user(self) -> str:
        """The name of a private cache's reader on the S3 server, and of its policy."""
        return f"{self.bucket}-reader"


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
    return parse({name: config.get(name) or "" for name in names})


def parse(configuration: Mapping[str, str]) -> Settings:
    """Validate `configuration`, a stack's settings as Pulumi hands them to a program.

    Args:
        configuration: names without the project's, values as text; lists and objects as JSON.

    Raises:
        SettingError: a setting is missing, unknown or cannot be used.
    """
    reader = _Reader("", dict(configuration))
    endpoint = Endpoint.parse(reader.text("endpoint"))
    bucket = _bucket(reader.text("bucket"))
    public_url = _public_url(reader.text("publicUrl"), f"{endpoint}/{bucket}")
    ca_certificate_file, ca_certificate = _ca_certificate(reader.text("caCertificateFile"))
    if ca_certificate is not None and not endpoint.tls:
        raise SettingError("endpoint", str(endpoint), "a CA certificate needs an https:// endpoint")
    access = reader.text("access")
    if access not in ("public", "private"):
        raise SettingError("access", access, "write public or private")
    compression = reader.text("compression")
    if compression not in _COMPRESSIONS:
        raise SettingError("compression", compression, "write zstd, xz or none")
    levels = _COMPRESSIONS[compression]
    signing_keys = _signing_keys(
        reader.texts("signingKeys"), reader.texts("signingKeyDomains"), public_url
    )
    builders = _builders(reader, bucket)
    retention_days = reader.integer("retentionDays", range(1, 36_501), "days")
    settings = Settings(
        endpoint=endpoint,
        region=reader.line("region"),
        minio_user=reader.line("minioUser"),
        minio_password=reader.secret("minioPassword"),
        ca_certificate_file=ca_certificate_file,
        ca_certificate=ca_certificate,
        bucket=bucket,
        adopt_bucket=reader.boolean("adoptBucket"),
        public_url=public_url,
        access=access,
        protect=reader.boolean("protect"),
        anonymous_listing=reader.boolean("anonymousListing"),
        retention_days=retention_days if reader.boolean("expire") else None,
        grace_days=reader.integer("graceDays", range(1, 3_651), "days"),
        confirm_shorter_retention=reader.boolean("confirmShorterRetention"),
        store_dir=_store_dir(reader.text("storeDir")),
        want_mass_query=reader.boolean("wantMassQuery"),
        priority=reader.integer("priority", range(1_000_001)),
        signing_keys=signing_keys,
        adopted_signing_keys=_adopted_signing_keys(reader.text("adoptedSigningKeys"), signing_keys),
        adopted_user_secrets=_adopted_user_secrets(
            reader.text("adoptedUserSecrets"), {builder.s3_user for builder in builders}
        ),
        upstream_keys=_upstream_keys(reader.texts("upstreamKeys")),
        compression=compression,
        compression_level=reader.integer("compressionLevel", levels, f"for {compression}"),
        parallelism=reader.integer("parallelism", range(1_025)),
        staging_limit=reader.integer("stagingLimit", range(1 << 20, 1 << 50), "bytes"),
        builders=builders,
    )
    reader.refuse_the_rest("Pulumi.yaml lists the settings there are")
    if settings.private:
        _check_private(settings)
    return settings


def _check_private(settings: Settings) -> None:
    if settings.anonymous_listing:
        raise SettingError(
            "anonymousListing", True, "nobody is anonymous to a private cache; write false"
        )
    if settings.reader_user in {builder.s3_user for builder in settings.builders}:
        raise SettingError(
            "builders[].s3User",
            settings.reader_user,
            "this is the private cache's reader; give the builder another",
        )


class _Reader:
    """Takes values out of an object of settings, so that what is left over is unknown."""

    def __init__(self, path: str, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def take(self, name: str, default: Any = None) -> Any:
        value = self._values.pop(name, default)
        if value is None:
            raise SettingError(
                self.full_name(name),
                None,
                f"is missing; set it, or see {name} in the README's tables",
            )
        return value

    def full_name(self, name: str) -> str:
        return f"{self._path}{name}"

    def text(self, name: str, default: str | None = None) -> str:
        value = self.take(name, default)
        if not isinstance(value, str):
            raise SettingError(self.full_name(name), value, "write a text")
        return value

    def line(self, name: str, default: str | None = None) -> str:
        """A text that is neither empty nor longer than a line."""
        value = self.text(name, default)
        if not value or re.search(r"[\x00-\x20\x7f]", value):
            raise SettingError(self.full_name(name), value, "write one word without spaces")
        return value

    def secret(self, name: str) -> str:
        """A text that no message may show."""
        value = self.take(name)
        if not isinstance(value, str) or not value or "\n" in value:
            raise SettingError(
                name, None, f"is empty or no single line; pulumi config set --secret {name}"
            )
        return value

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self.take(name, default)
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if not isinstance(value, bool):
            raise SettingError(self.full_name(name), value, "write true or false")
        return value

    def integer(self, name: str, allowed: range, unit: str = "", default: int | None = None) -> int:
        value = self.take(name, default)
        bounds = f"{allowed.start} to {allowed.stop - 1}{unit and ' '}{unit}"
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
            raise SettingError(self.full_name(name), value, f"write a whole number from {bounds}")
        return value

    def elements(self, name: str, default: list[Any] | None = None) -> list[Any]:
        value = self.take(name, default)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise SettingError(self.full_name(name), value, "write a list") from None
        if not isinstance(value, list):
            raise SettingError(self.full_name(name), value, "write a list")
        return value

    def texts(self, name: str, default: list[Any] | None = None) -> tuple[str, ...]:
        values = self.elements(name, default)
        for value in values:
            if not isinstance(value, str):
                raise SettingError(self.full_name(name), value, "write a list of texts")
        duplicate = _first_duplicate(values)
        if duplicate is not None:
            raise SettingError(self.full_name(name), duplicate, "name it once only")
        return tuple(values)

    def has(self, name: str) -> bool:
        return name in self._values

    def refuse_the_rest(self, remedy: str) -> None:
        for name in self._values:
            raise SettingError(
                self.full_name(name), None, f"is no setting of this program; {remedy}"
            )


def _first_duplicate(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _bucket(bucket: str) -> str:
    """Check a bucket's name against S3's "General purpose bucket naming rules"."""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or ".-" in bucket or "-." in bucket:
        raise SettingError(
            "bucket", bucket, "write 3 to 63 lower-case letters, digits and single hyphens"
        )
    if bucket.startswith("xn--") or bucket.endswith(("-s3alias", "--ol-s3")):
        raise SettingError("bucket", bucket, "S3 keeps this prefix or suffix for itself; rename it")
    try:
        ip_address(bucket)
    except ValueError:
        return bucket
    raise SettingError("bucket", bucket, "a bucket's name must not look like an IP address")


def _public_url(url: str, default: str) -> str:
    if not url:
        return default
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"[\s?#@\"'\\$]", url):
        raise SettingError("publicUrl", url, "write an http:// or https:// URL without a query")
    return url.rstrip("/")


def _ca_certificate(name: str) -> tuple[str | None, str | None]:
    if not name:
        return None, None
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no PEM text"
        raise SettingError(
            "caCertificateFile", name, f"cannot be read ({reason}); name the CA's PEM file"
        ) from None
    if "-----BEGIN CERTIFICATE-----" not in text or "PRIVATE KEY" in text:
        raise SettingError(
            "caCertificateFile", name, "holds no certificate; name the CA's PEM file"
        )
    return str(path), text


def _store_dir(store_dir: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._+-]+)+", store_dir):
        raise SettingError("storeDir", store_dir, "write an absolute directory, such as /nix/store")
    return store_dir


def _signing_keys(
    names: tuple[str, ...], domains: tuple[str, ...], public_url: str
) -> tuple[str, ...]:
    host = urlsplit(public_url).hostname or ""
    names = tuple(name.replace("{host}", host) for name in names)
    if not names:
        raise SettingError(
            "signingKeys", [], f"a cache has at least one key; name one, such as {host}-1"
        )
    for domain in domains:
        if not is_key_domain(domain):
            raise SettingError(
                "signingKeyDomains", domain, "write a domain only, such as cache.example.org"
            )
    newest: dict[str, int] = {}
    for name in names:
        try:
            key = KeyName.parse(name)
        except FormatError:
            raise SettingError(
                "signingKeys",
                name,
                "write the cache's domain, a hyphen and an integer, such as s3.homelab.local-1",
            ) from None
        if key.domain not in (host, *domains):
            raise SettingError(
                "signingKeys",
                str(key),
                f"its domain is not the cache's host, {host}; name the key {host}-{key.number}, "
                "or list its domain in signingKeyDomains",
            )
        if key.number <= newest.get(key.domain, -1):
            raise SettingError(
                "signingKeys",
                str(key),
                f"it stands after {key.domain}-{newest[key.domain]}; "
                "name each key once, and a newer one with a higher integer",
            )
        newest[key.domain] = key.number
    return names


def _adopted_signing_keys(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """Return the secret keys of `text` by name; no message shows any part of one."""
    adopted: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            key = SecretKey.parse(line)
        except FormatError as error:
            raise SettingError(
                "adoptedSigningKeys",
                None,
                f"line {number} is no secret key: {error}; "
                "give the file that nix key generate-secret wrote",
            ) from None
        if key.name not in names:
            raise SettingError(
                "adoptedSigningKeys",
                None,
                f"the key of line {number} is none of signingKeys; add its name there",
            )
        if key.name in adopted:
            raise SettingError(
                "adoptedSigningKeys",
                None,
                f"line {number} has the name of a key before it; give each name one key",
            )
        adopted[key.name] = key.to_nix()
    return adopted


def _adopted_user_secrets(text: str, users: Collection[str]) -> dict[str, str]:
    """Return the secrets of `text` by user; no message shows any part of one."""
    adopted: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        user, _, secret = line.strip().partition(":")
        # The server's own bound (MinIO, internal/auth/credentials.go: secretKeyMinLen).
        if not re.fullmatch(r"[\x21-\x7e]{8,}", secret):
            remedy = "is no user:secret; write the user's name, a colon and its secret"
        elif user not in users:
            remedy = "has a user that no builder is; give a builder that s3User"
        elif user in adopted:
            remedy = "has the user of a line before it; give each user one secret"
        else:
            adopted[user] = secret
            continue
        raise SettingError("adoptedUserSecrets", None, f"line {number} {remedy}")
    return adopted


def _upstream_keys(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _UPSTREAM_KEY.fullmatch(name):
            raise SettingError(
                "upstreamKeys", name, "write the key's name only, such as cache.nixos.org-1"
            )
    return names


def _builders(reader: _Reader, bucket: str) -> tuple[BuilderSettings, ...]:
    shared_key = reader.text("sshPrivateKey")
    if shared_key:
        _check_private_key("sshPrivateKey", shared_key)
    builders = []
    for index, element in enumerate(reader.elements("builders")):
        path = f"builders[{index}]"
        if not isinstance(element, dict):
            raise SettingError(path, element, "write an object with at least a name")
        builders.append(_builder(_Reader(f"{path}.", dict(element)), bucket, shared_key))
    for setting, names in (
        ("name", [builder.name for builder in builders]),
        ("s3User", [builder.s3_user for builder in builders]),
        ("s3Policy", [builder.s3_policy for builder in builders]),
    ):
        duplicate = _first_duplicate(names)
        if duplicate is not None:
            raise SettingError(
                f"builders[].{setting}", duplicate, "two builders share it; give each its own"
            )
    return tuple(builders)


def _builder(reader: _Reader, bucket: str, shared_key: str) -> BuilderSettings:
    name = reader.text("name")
    if not _BUILDER_NAME.fullmatch(name):
        raise SettingError(
            reader.full_name("name"), name, "write 1 to 32 lower-case letters, digits and hyphens"
        )
    s3_user = _s3_name(reader, "s3User", f"{bucket}-{name}")
    s3_policy = _s3_name(reader, "s3Policy", f"{bucket}-write-{name}")
    closures, pins = _store_paths(reader, "closures"), _store_paths(reader, "pins")
    credentials_directory = _credentials_directory(reader)
    remedy = "README lists a builder's settings"
    if reader.boolean("local", False):
        reader.refuse_the_rest(f"a local builder needs no SSH; {remedy}")
        return BuilderSettings(
            name,
            s3_user,
            s3_policy,
            closures,
            local=True,
            credentials_directory=credentials_directory,
            pins=pins,
        )
    host = _host(reader, "host")
    port = reader.integer("port", range(1, 65_536), default=22)
    user = reader.line("user", "root")
    host_key = _host_key(reader, host)
    private_key = shared_key or None
    if reader.has("privateKeyFile"):
        private_key = _private_key_file(reader)
    jump_host = _jump_host(reader)
    reader.refuse_the_rest(remedy)
    return BuilderSettings(
        name,
        s3_user,
        s3_policy,
        closures,
        False,
        host,
        port,
        user,
        host_key,
        private_key,
        jump_host,
        credentials_directory,
        pins,
    )


def _credentials_directory(reader: _Reader) -> str | None:
    if not reader.has("credentialsDirectory"):
        return None
    setting = reader.full_name("credentialsDirectory")
    directory = reader.text("credentialsDirectory")
    # Ordinary names only: it stands in a command line, and everyone can read the store.
    if not re.fullmatch(r"(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+", directory):
        raise SettingError(
            setting, directory, "write an absolute directory, such as /var/lib/nix-binary-cache"
        )
    if f"{directory}/".startswith("/nix/store/"):
        raise SettingError(setting, directory, "everyone can read the Nix store; write another")
    return directory


def _s3_name(reader: _Reader, setting: str, default: str) -> str:
    name = reader.text(setting, default)
    if not _S3_NAME.fullmatch(name):
        raise SettingError(
            reader.full_name(setting),
            name,
            "write 3 to 128 letters, digits and ._@+- without spaces",
        )
    return name


def _store_paths(reader: _Reader, name: str) -> tuple[str, ...]:
    """Take a list of store paths, or of links to them."""
    setting, paths = reader.full_name(name), reader.texts(name, [])
    for path in paths:
        if re.search(r"[\x00-\x1f\x7f]", path) or not path.startswith("/"):
            raise SettingError(
                setting,
                path,
                "write a store path, or an absolute link to one such as /run/current-system",
            )
        if path.startswith("/nix/store/") and not is_store_path(path):
            raise SettingError(
                setting, path, "this is no store path; write /nix/store/<hash>-<name> and no more"
            )
    return paths


def _host(reader: _Reader, setting: str) -> str:
    host = reader.text(setting)
    if not _HOST.fullmatch(host):
        raise SettingError(reader.full_name(setting), host, "write a host name or an address")
    return host


def _host_key(reader: _Reader, host: str) -> str | None:
    insecure = reader.boolean("insecureHostKey", False)
    if not reader.has("hostKey"):
        if insecure:
            return None
        raise SettingError(
            reader.full_name("hostKey"),
            None,
            f"is missing; write what `ssh-keyscan -t ed25519 {host}` prints after the host's name "
            "once you have checked it, or set insecureHostKey",
        )
    key = reader.text("hostKey")
    remedy = "write the type and the base64 of the host's public key: ssh-ed25519 AAAA…"
    kind, _, rest = key.strip().partition(" ")
    try:
        data = base64.b64decode(rest.split(" ")[0], validate=True)
    except (binascii.Error, ValueError):
        raise SettingError(reader.full_name("hostKey"), key, remedy) from None
    if not data.startswith(len(kind).to_bytes(4, "big") + kind.encode()) or len(data) < 40:
        raise SettingError(reader.full_name("hostKey"), key, remedy)
    if kind == "ssh-rsa":
        raise SettingError(
            reader.full_name("hostKey"),
            "ssh-rsa …",
            "pulumi-command checks an RSA host key with SHA-1 only; write the ssh-ed25519 one",
        )
    return f"{kind} {rest.split(' ')[0]}"


def _private_key_file(reader: _Reader) -> str:
    setting = reader.full_name("privateKeyFile")
    name = reader.text("privateKeyFile")
    try:
        text = Path(name).expanduser().read_text(encoding="ascii")
    except OSError as error:
        raise SettingError(
            setting, name, f"cannot be read ({error.strerror}); name the private key's file"
        ) from None
    except UnicodeDecodeError:
        raise SettingError(
            setting, name, "is no private key; name the private key's file"
        ) from None
    _check_private_key(setting, text)
    return text


def _check_private_key(setting: str, text: str) -> None:
    """Refuse what is no private key, or one that only a passphrase opens, without showing it."""
    match = _PRIVATE_KEY.search(text.replace("\r\n", "\n"))
    if match is None:
        raise SettingError(
            setting, None, "holds no private key; give the whole text from -----BEGIN to END-----"
        )
    if "ENCRYPTED" in match["kind"] or "ENCRYPTED" in match["body"]:
        raise SettingError(setting, None, "wants a passphrase; use the SSH agent for this key")
    if match["kind"] != "OPENSSH PRIVATE KEY":
        return
    try:
        data = base64.b64decode("".join(match["body"].split()), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    # PROTOCOL.key of OpenSSH: the magic, then the cipher's name with its length before it.
    magic = b"openssh-key-v1\x00"
    if not data.startswith(magic):
        raise SettingError(setting, None, "holds a damaged private key; give its whole text")
    if not data.startswith(magic + b"\x00\x00\x00\x04none"):
        raise SettingError(setting, None, "wants a passphrase; use the SSH agent for this key")


def _jump_host(reader: _Reader) -> JumpHost | None:
    if not reader.has("jumpHost"):
        return None
    value = reader.take("jumpHost")
    if not isinstance(value, dict):
        raise SettingError(
            reader.full_name("jumpHost"), value, "write an object with host, user and hostKey"
        )
    jump = _Reader(reader.full_name("jumpHost."), dict(value))
    host = _host(jump, "host")
    parsed = JumpHost(
        host,
        jump.integer("port", range(1, 65_536), default=22),
        jump.line("user", "root"),
        _host_key(jump, host),
    )
    jump.refuse_the_rest("a jump host has host, port, user and hostKey")
    return parsed
