"""The push's settings: the one list of their names, defaults and meanings, and their reader.

A command's standard input (`components.closure_push`), the NixOS module's data
(`program.outputs.machines`) and a file for pushes by hand are all of them: one `name=value` a line.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from formats.compression import COMPRESSIONS
from formats.error import FormatError
from formats.keys import KeyName, PublicKey, shown_key, split_key
from formats.printable import SHOWN, printable
from formats.s3 import LARGEST_COPY, SMALLEST_PART
from formats.sigv4 import Signer
from push.failure import PushError


@dataclass(frozen=True)
class Setting:
    """One setting of the push."""

    name: str
    meaning: str
    """What it is, for `--help`."""
    default: str | None = None
    """What it is where it is not given; None where nothing is."""
    repeats: bool = False
    """Whether it may stand on several lines."""


_CREDENTIALS = "a relative path lies in CREDENTIALS_DIRECTORY where that is set, as by systemd"

SETTINGS = (
    Setting("endpoint", "https://host[:port] of the S3 server"),
    Setting("region", "its region", "us-east-1"),
    Setting("bucket", "the cache's bucket"),
    Setting(
        "addressing",
        "path, or virtual where the server wants the bucket in its host name: bucket.host",
        "path",
    ),
    Setting("access-key-id", "who pushes"),
    Setting("secret-access-key", "and the secret"),
    Setting("secret-access-key-file", f"or a file that holds it; {_CREDENTIALS}"),
    Setting("session-token", "the token of a short-lived credential (STS)"),
    Setting("session-token-file", f"or a file that holds it; {_CREDENTIALS}"),
    Setting("signing-key", "secret key, name:base64, the last of which signs", repeats=True),
    Setting("signing-key-file", f"or a file of such keys, one a line; {_CREDENTIALS}"),
    Setting(
        "trusted-key",
        "public key, name:base64, that clients trust; where any is given, the one that signs has "
        "to be among them, or newer",
        repeats=True,
    ),
    Setting("ca-certificate-file", "certificates (PEM) to trust in place of the system's"),
    Setting("ca-certificate", "or the same in base64, on one line"),
    Setting("upstream-key", "public key, name:base64, whose paths are not stored", repeats=True),
    Setting("compression", f"{', '.join(COMPRESSIONS)}", next(iter(COMPRESSIONS))),
    Setting("compression-level", "its level, 0 for Nix's own default", "0"),
    Setting("parallelism", "how many nix copy run at once, each on all cores", "1"),
    Setting(
        "staging-limit",
        "bytes that may lie in TMPDIR, or else /var/tmp; a path that needs more is staged alone",
        "2147483648",
    ),
    Setting("part-size", "larger NARs go up in parts of so many bytes", "67108864"),
    Setting("renew", "yes, or no where the bucket never forgets an entry", "yes"),
    Setting("logs", "yes to keep build logs beside the paths, for nix log", "no"),
    Setting("listings", "yes to keep listings of NARs beside the paths, for nix-index", "no"),
    Setting("path", "a store path or link to push", repeats=True),
)
"""All settings, in the order in which `--help` lists them."""

YES_NO = {True: "yes", False: "no"}
"""How the settings have what is true, and what is not."""

_BY_NAME = {setting.name: setting for setting in SETTINGS}
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])"
_ENDPOINT = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?/?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LARGEST_FILE = 1 << 20
# Anything else may be a piece of a secret.
_LOOKS_LIKE_A_NAME = re.compile(r"[a-z]{1,20}(?:-[a-z]{1,20}){0,3}")


def format_settings(values: Mapping[str, str | int | Sequence[str] | None]) -> str:
    """Return settings as the push reads them: `name=value` lines, None left out.

    Raises:
        ValueError: there is no such setting, or a value has a line break; the message names the
            setting only.
    """
    lines = []
    for name, given in values.items():
        if name not in _BY_NAME:
            raise ValueError(f"{name} is no setting of the push")
        for value in [given] if isinstance(given, str | int) else given or ():
            if "\n" in str(value) or "\r" in str(value):
                raise ValueError(f"{name} has a line break")
            lines.append(f"{name}={value}\n")
    return "".join(lines)


@dataclass(frozen=True)
class PushSettings:
    """A push's settings, validated."""

    scheme: str
    """`http` or `https`."""
    host: str
    """The host name or address that is asked, without brackets; it may begin with the bucket."""
    port: int
    region: str
    bucket: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    signing_key: str = field(repr=False)
    """The secret key that signs, in Nix's format."""
    trusted_keys: tuple[PublicKey, ...]
    """The keys that clients trust, as far as they were told; the last one is that of the key that
    signs."""
    ca_certificate: str | None
    """PEM text to trust in place of the system's certificates."""
    upstream_keys: tuple[PublicKey, ...]
    compression: str
    compression_level: int
    parallelism: int
    staging_limit: int
    part_size: int
    renew: bool
    logs: bool
    """Whether build logs are kept, too."""
    listings: bool
    """Whether listings of NARs are kept, too."""
    paths: tuple[str, ...]
    session_token: str | None = field(default=None, repr=False)
    """The token of a short-lived credential; None for a lasting one."""
    virtual: bool = False
    """Whether the host name has the bucket, and the path has not."""
    notice: str | None = None
    """What somebody should see to though the push can go on, a sentence; None where nothing is."""

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and, where it is not the scheme's, port: what the header Host says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"

    def path(self, key: str) -> str:
        """Return the path of an object, or of the bucket where the key is empty."""
        return f"/{key}" if self.virtual else f"/{self.bucket}/{key}"

    @property
    def signer(self) -> Signer:
        """Who signs the requests."""
        return Signer(self.access_key_id, self.secret_access_key, self.region, self.session_token)

    @property
    def public_key(self) -> PublicKey:
        """The public half of the key that signs."""
        return self.trusted_keys[-1]


def read(lines: Iterable[str], paths: Sequence[str] = ()) -> PushSettings:
    """Return the settings that `lines` are, of which blank ones and those with # say nothing.

    Args:
        lines: `name=value` each.
        paths: what is to be pushed besides what the lines say.

    Raises:
        PushError: a setting is unknown, missing or cannot be used. No message shows a secret.
    """
    given: dict[str, list[str]] = {}
    for line in lines:
        text = line.rstrip("\r\n")
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals:
            raise _refused("a line is not of the form name=value; see --help")
        if name not in _BY_NAME and _LOOKS_LIKE_A_NAME.fullmatch(name):
            raise _refused(f"unknown setting '{name}'; see --help")
        if name not in _BY_NAME:
            raise _refused("a line does not begin with the name of a setting; see --help")
        if _BY_NAME[name].repeats:
            given.setdefault(name, []).append(value)
        else:
            given[name] = [value]
    return _checked(_Given(given), paths)


class _Given:
    """Settings as they were given, each asked for by name."""

    def __init__(self, values: Mapping[str, list[str]]) -> None:
        self._values = values

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def optional(self, name: str) -> str | None:
        values = self.all(name)
        return values[-1] if values and values[-1] else _BY_NAME[name].default

    def matching(self, name: str, pattern: str | re.Pattern[str], what: str) -> re.Match[str]:
        value = self.optional(name)
        if value is None:
            raise _refused(f"{name} is missing; set it to {what}")
        match = re.fullmatch(pattern, value)
        if match is None:
            raise _refused(f"{name} '{_shown(value)}' is not valid; set it to {what}")
        return match

    def number(self, name: str, allowed: range, unit: str = "") -> int:
        bounds = f"{allowed.start} to {allowed.stop - 1}{unit}"
        match = self.matching(name, r"-?[0-9]{1,19}", f"a whole number from {bounds}")
        if int(match[0]) not in allowed:
            raise _refused(f"{name} '{match[0]}' is not from {bounds}")
        return int(match[0])

    def yes(self, name: str) -> bool:
        return self.matching(name, "yes|no", "yes or no")[0] == "yes"

    def file(self, name: str, directory: str = "", errors: str = "strict") -> str | None:
        path = self.optional(name)
        if path is None:
            return None
        place = Path(directory, path)
        try:
            with place.open("rb") as file:
                content = file.read(_LARGEST_FILE + 1)
            if len(content) <= _LARGEST_FILE:
                return content.decode(errors=errors)
        except (OSError, ValueError):
            pass
        raise _refused(f"{name} '{_shown(str(place))}' cannot be read; name a readable file")

    def credential(self, name: str) -> str | None:
        """Return what is in a file that a service manager may have put where only we can read.

        Source: systemd.exec(5), "Credentials".
        """
        return self.file(name, os.environ.get("CREDENTIALS_DIRECTORY", ""))


def _checked(given: _Given, paths: Sequence[str]) -> PushSettings:
    endpoint = given.matching("endpoint", _ENDPOINT, "https://host[:port]")
    port = int(endpoint["port"] or {"http": 80, "https": 443}[endpoint["scheme"]])
    if port not in range(1, 65_536) or not _is_host(endpoint["host"]):
        raise _refused(f"endpoint '{endpoint[0]}' is not valid; set it to https://host[:port]")
    what = ", ".join(COMPRESSIONS)
    compression = given.matching("compression", "|".join(COMPRESSIONS), f"one of {what}")[0]
    signing_key = _signing_key(given)
    name, raw = split_key(signing_key, 64, "secret")
    trusted = [_public_key("trusted-key", text) for text in given.all("trusted-key") if text]
    own = PublicKey(name, raw[32:])
    newer = _is_newer(own, trusted)
    all_paths = (*paths, *given.all("path"))
    bucket = given.matching("bucket", _BUCKET, "the bucket's name")[0]
    virtual = given.matching("addressing", "path|virtual", "path or virtual")[0] == "virtual"
    host = endpoint["host"].strip("[]")
    return PushSettings(
        scheme=endpoint["scheme"],
        host=f"{bucket}.{host}" if virtual else host,
        port=port,
        region=given.matching("region", r"[A-Za-z0-9._-]{1,64}", "the server's region")[0],
        bucket=bucket,
        virtual=virtual,
        access_key_id=given.matching("access-key-id", r"[\x21-\x7e]+", "the builder's user")[0],
        secret_access_key=_secret_access_key(given),
        session_token=_session_token(given),
        signing_key=signing_key,
        trusted_keys=(*(key for key in trusted if key != own), own),
        ca_certificate=_ca_certificate(given),
        upstream_keys=tuple(
            _public_key("upstream-key", text) for text in given.all("upstream-key") if text
        ),
        compression=compression,
        compression_level=given.number("compression-level", COMPRESSIONS[compression].levels),
        parallelism=given.number("parallelism", range(1, 1_000)),
        staging_limit=given.number("staging-limit", range(1, 1 << 50), " bytes"),
        part_size=given.number("part-size", range(SMALLEST_PART, LARGEST_COPY + 1), " bytes"),
        renew=given.yes("renew"),
        logs=given.yes("logs"),
        listings=given.yes("listings"),
        paths=all_paths,
        notice=f"the signing key {_shown(name)} is newer than all of trusted-key; give this "
        "machine, or the job, the stack's new output nixos (cache.json)"
        if newer
        else None,
    )


def _is_newer(own: PublicKey, trusted: Sequence[PublicKey]) -> bool:
    """Tell whether the key that signs came after all that clients are known to trust.

    A rotation may give a builder its new key before the new list: it has to go on, since what it
    does not renew expires. A key that has gone has a lower integer than those that are there.

    Args:
        own: the key that signs.
        trusted: the list; empty where there is none.

    Raises:
        PushError: it is none of the list, and not newer: clients would refuse what it signs, and
            where it has the name of one of them, that one's signatures would go.
    """
    if not trusted or own in trusted:
        return False
    name = _shown(own.name)
    remedy = (
        "give this machine, or the job, the key that the stack has it sign with now (docs/ci.md), "
        "or, if that is the one it has, the stack's new output nixos (cache.json)"
    )
    names = [key.name for key in trusted]
    if own.name in names:
        raise _refused(
            f"the signing key {name} is another key than clients trust by that name; {remedy}"
        )
    known = [key for key in map(_key_name, names) if key is not None]
    new = _key_name(own.name)
    older = [] if new is None else [key for key in known if key.domain == new.domain]
    if new is not None and older and max(older) < new:
        return True
    raise _refused(
        f"the signing key {name} is none that clients trust, {_shown(', '.join(names))}; {remedy}"
    )


def _key_name(text: str) -> KeyName | None:
    try:
        return KeyName.parse(text)
    except FormatError:
        return None


def _is_host(text: str) -> bool:
    """Tell whether a name is short enough for DNS, or an address is one."""
    if not text.startswith("["):
        return len(text) <= 253
    try:
        ipaddress.IPv6Address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _secret_access_key(given: _Given) -> str:
    text = given.credential("secret-access-key-file")
    secret = given.optional("secret-access-key") if text is None else text.rstrip("\r\n")
    if not secret or not re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]+", secret):
        raise _refused(
            "secret-access-key is missing or malformed; set it to the secret of the user"
        )
    return secret


def _session_token(given: _Given) -> str | None:
    text = given.credential("session-token-file")
    token = given.optional("session-token") if text is None else text.rstrip("\r\n")
    if token is not None and not re.fullmatch(r"[\x21-\x7e]{1,16384}", token):
        raise _refused("session-token is malformed; set it to the token that came with the secret")
    return token


def _signing_key(given: _Given) -> str:
    text = given.credential("signing-key-file")
    keys = given.all("signing-key") if text is None else text.splitlines()
    keys = [key.strip() for key in keys if key.strip()]
    if not keys:
        raise _refused("signing-key is missing; set it to name:base64")
    for key in keys:
        try:
            split_key(key, 64, "secret")
        except FormatError as error:
            raise _refused(
                f"a signing key is not a secret key: {error}; set it to what nix key "
                "generate-secret wrote"
            ) from None
    return keys[-1]


def _ca_certificate(given: _Given) -> str | None:
    encoded = given.optional("ca-certificate")
    if encoded is None:
        name = "ca-certificate-file"
        text = given.file(name, errors="ignore")
    else:
        name = "ca-certificate"
        try:
            text = base64.b64decode(encoded, validate=True).decode(errors="ignore")
        except ValueError:
            text = ""
    if text is not None and "-----BEGIN CERTIFICATE-----" not in text:
        where = " in base64; encode the whole file on one line"
        raise _refused(f"{name} is not PEM{where if encoded else '; name the CA certificates'}")
    return text


def _public_key(name: str, text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except FormatError:
        raise _refused(
            f"{name} '{shown_key(text)}' is no public key; write the whole key, name:base64, "
            "so that its signatures can be verified"
        ) from None


def _shown(text: str) -> str:
    # A URL may have a password in it.
    bare = re.sub(r"//.*@", "//...@", text)
    return printable(bare, SHOWN)


def _refused(what: str) -> PushError:
    return PushError("settings", what)


def usage() -> str:
    """Return the part of `--help` that lists the settings."""
    lines = []
    for setting in SETTINGS:
        default = "" if setting.default is None else f" ({setting.default})"
        repeats = "; may repeat" if setting.repeats else ""
        text = textwrap.wrap(f"{setting.meaning}{default}{repeats}", 72)
        lines += [f"  {setting.name:22}  {text[0]}", *(f"{'':26}{line}" for line in text[1:])]
    return "\n".join(lines)


def cache_directory() -> Path | None:
    """Return where this user's programs keep what costs them time to lose; None where nowhere.

    Source: XDG Base Directory Specification, `XDG_CACHE_HOME`.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    if base.startswith("/"):
        return Path(base, "nix-binary-cache")
    return Path(home, ".cache", "nix-binary-cache") if home.startswith("/") else None
