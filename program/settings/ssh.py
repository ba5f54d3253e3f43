"""How SSH reaches a machine: hosts, their keys, and the private key to log in with."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from ipaddress import ip_address

from program.settings.local_file import read_local_file
from program.settings.private_key import check_private_key
from program.settings.reader import SettingError, SettingReader

_HOST = re.compile(r"[A-Za-z0-9:]([A-Za-z0-9.:_-]*[A-Za-z0-9:])?")


@dataclass(frozen=True)
class JumpHost:
    """An SSH host on the way to a builder."""

    host: str
    port: int = 22
    user: str = "root"
    host_key: str | None = None


def is_host(text: str) -> bool:
    """Tell whether a text is a host's name or an address; none could be taken for an option."""
    if not _HOST.fullmatch(text):
        return False
    try:
        # No name has a colon: what has one is an IPv6 address.
        return ":" not in text or bool(ip_address(text))
    except ValueError:
        return False


def read_host(reader: SettingReader, setting: str) -> str:
    """Return a host's name or address, as `is_host` has it.

    Raises:
        SettingError: it is neither.
    """
    host = reader.text(setting)
    if not is_host(host):
        remedy = "write a host name or an address"
        if ":" in host:
            remedy += " only, and the port in port"
        raise SettingError(reader.full_name(setting), host, remedy)
    return host


def read_host_key(reader: SettingReader, host: str) -> str | None:
    """Return a host's public key, type and base64; None where any host is to be trusted.

    Raises:
        SettingError: there is no key, or it cannot be used.
    """
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
    if not re.fullmatch(r"[a-z0-9@.-]+", kind):
        raise SettingError(reader.full_name("hostKey"), key, remedy)
    try:
        data = base64.b64decode(rest.split(" ")[0], validate=True)
    except (binascii.Error, ValueError):
        raise SettingError(reader.full_name("hostKey"), key, remedy) from None
    if not _is_key_of(kind, data):
        raise SettingError(reader.full_name("hostKey"), key, remedy)
    if kind == "ssh-rsa":
        raise SettingError(
            reader.full_name("hostKey"),
            "ssh-rsa …",
            "pulumi-command checks an RSA host key with SHA-1 only; write the ssh-ed25519 one",
        )
    return f"{kind} {rest.split(' ')[0]}"


def _is_key_of(kind: str, data: bytes) -> bool:
    """Tell whether a public key has its type, and all of the numbers that it is made of.

    Each is its length in four bytes and itself, to the end (RFC 4251, section 5; RFC 4253, 6.6).
    """
    fields = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        fields.append(data[4:end])
        if len(data) < end:
            return False
        data = data[end:]
    return len(fields) > 1 and fields[0] == kind.encode() and all(fields)


def read_private_key_file(reader: SettingReader) -> str | None:
    """Return the text of the private key in the file that `privateKeyFile` names, or None.

    Raises:
        SettingError: the file cannot be read, or holds no key that can be used.
    """
    if not reader.has("privateKeyFile"):
        return None
    setting = reader.full_name("privateKeyFile")
    name = reader.text("privateKeyFile")
    _, text = read_local_file(setting, name, "the private key's file")
    check_private_key(setting, text)
    return text


def read_jump_host(reader: SettingReader) -> JumpHost | None:
    """Return the host on the way that `jumpHost` describes, or None.

    Raises:
        SettingError: a setting of it is missing, unknown or cannot be used.
    """
    if not reader.has("jumpHost"):
        return None
    value = reader.take("jumpHost")
    if not isinstance(value, dict):
        raise SettingError(
            reader.full_name("jumpHost"), value, "write an object with host, user and hostKey"
        )
    jump = SettingReader(reader.full_name("jumpHost."), dict(value))
    host = read_host(jump, "host")
    parsed = JumpHost(
        host=host,
        port=jump.integer("port", range(1, 65_536), default=22),
        user=jump.line("user", "root"),
        host_key=read_host_key(jump, host),
    )
    jump.refuse_the_rest("a jump host has host, port, user and hostKey")
    return parsed
