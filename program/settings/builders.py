"""What a stack says of the machines that push: the setting `builders`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from formats.error import FormatError
from formats.keys import KeyName
from formats.store_path import is_store_path
from program.settings.private_key import check_private_key
from program.settings.reader import SettingError, SettingReader, first_duplicate
from program.settings.ssh import (
    JumpHost,
    read_host,
    read_host_key,
    read_jump_host,
    read_private_key_file,
)

_BUILDER_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_SHARED_DIRECTORIES = frozenset(
    f"{parent}/{name}"
    for parents, names in (
        (
            "/usr /usr/local /var /nix",
            "bin cache etc games include lib lib64 libexec local log man opt run sbin share spool "
            "src state tmp var",
        ),
        ("/var", "account backups crash db empty lock mail yp"),
        ("/run", "dbus keys lock log secrets sshd systemd udev user wrappers"),
        ("/etc", "nix nixos pki profiles security ssh ssl static systemd"),
    )
    for parent in parents.split()
    for name in names.split()
)
"""Directories of a system, besides those at its root.

Source: Filesystem Hierarchy Standard 3.0; `hier` of macOS; what NixOS, systemd and OpenSSH make.
"""
_PARENTS_OF_SHARED = frozenset(["/Users", "/dev", "/home", "/proc", "/sys"])
"""Where all that lies directly there is a person's home, or the kernel's."""
_USER = {False: "s3User", True: "accessKeyId"}
"""The setting that has a builder's user, by whether users are given."""
_THIS_MACHINE = frozenset([ip_address("127.0.0.1"), ip_address("::1")])
_S3_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{2,127}")


@dataclass(frozen=True, kw_only=True)
class BuilderSettings:
    """One machine that pushes: an element of the setting `builders`."""

    name: str
    """What the builder is called in this stack."""
    s3_user: str
    """Its user on the S3 server: the access key id that the user has."""
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
    signing_key: str | None = None
    """The name of the key that signs what it pushes, one of the stack's; None is the last one."""
    sudo: bool = False
    """Whether the files there are placed by `sudo -n`, since SSH does not log in as root."""
    pins: tuple[str, ...] = ()
    """Store paths, or links to them, that each of its pushes renews beside what it pushes."""

    @property
    def pushed(self) -> tuple[str, ...]:
        """Everything that a push by the deployment is given: closures and pins, each once."""
        return tuple(dict.fromkeys((*self.closures, *self.pins)))


def read_builders(
    reader: SettingReader, bucket: str, *, given_users: bool
) -> tuple[BuilderSettings, ...]:
    """Return the machines that push.

    Args:
        reader: has the stack's settings.
        bucket: what users that the deployment makes are named after.
        given_users: whether the users are made elsewhere, and the settings tell their access keys.

    Raises:
        SettingError: a setting of one is missing, unknown or cannot be used.
    """
    shared_key = reader.text("sshPrivateKey")
    if shared_key:
        check_private_key("sshPrivateKey", shared_key)
    builders = []
    for index, element in enumerate(reader.elements("builders")):
        path = f"builders[{index}]"
        if not isinstance(element, dict):
            raise SettingError(path, element, "write an object with at least a name")
        own = SettingReader(f"{path}.", dict(element))
        builders.append(_builder(own, bucket, shared_key, given_users=given_users))
    for setting, names in (
        ("name", [builder.name for builder in builders]),
        (_USER[given_users], [builder.s3_user for builder in builders]),
    ):
        duplicate = first_duplicate(names)
        if duplicate is not None:
            raise SettingError(
                f"builders[].{setting}", duplicate, "two builders share it; give each its own"
            )
    _check_directories(builders)
    return tuple(builders)


def _check_directories(builders: Sequence[BuilderSettings]) -> None:
    """Refuse credentials of two builders in one directory: each would have the other's."""
    for index, builder in enumerate(builders):
        for other in builders[:index]:
            if builder.credentials_directory is None:
                continue
            if builder.credentials_directory == other.credentials_directory and (
                _machine(builder) == _machine(other)
                or (builder.host_key is not None and builder.host_key == other.host_key)
            ):
                raise SettingError(
                    f"builders[{index}].credentialsDirectory",
                    builder.credentials_directory,
                    f"the builder {other.name} has it on the same machine; give each its own",
                )


def _machine(builder: BuilderSettings) -> tuple[str, int, JumpHost | None]:
    """Return a builder's address, and behind what it is, the same for all names of this machine.

    Other addresses of loopback may be those of containers.
    """
    host = (builder.host or "localhost").lower()
    with suppress(ValueError):
        if ip_address(host) in _THIS_MACHINE:
            host = "localhost"
    return host, builder.port, builder.jump_host


def _builder(
    reader: SettingReader, bucket: str, shared_key: str, *, given_users: bool
) -> BuilderSettings:
    name = reader.text("name")
    if not _BUILDER_NAME.fullmatch(name):
        raise SettingError(
            reader.full_name("name"), name, "write 1 to 32 lower-case letters, digits and hyphens"
        )
    s3_user = _s3_user(reader, f"{bucket}-{name}", given_users=given_users)
    closures, pins = _store_paths(reader, "closures"), _store_paths(reader, "pins")
    credentials_directory = _credentials_directory(reader)
    signing_key = _signing_key(reader)
    remedy = "docs/settings.md lists a builder's settings"
    if reader.boolean("local", False):
        reader.refuse_the_rest(f"a local builder needs no SSH; {remedy}")
        return BuilderSettings(
            name=name,
            s3_user=s3_user,
            closures=closures,
            pins=pins,
            credentials_directory=credentials_directory,
            signing_key=signing_key,
            local=True,
        )
    host = read_host(reader, "host")
    builder = BuilderSettings(
        name=name,
        s3_user=s3_user,
        closures=closures,
        pins=pins,
        credentials_directory=credentials_directory,
        signing_key=signing_key,
        host=host,
        port=reader.integer("port", range(1, 65_536), default=22),
        user=reader.line("user", "root"),
        host_key=read_host_key(reader, host),
        sudo=_sudo(reader, credentials_directory),
        private_key=read_private_key_file(reader) or shared_key or None,
        jump_host=read_jump_host(reader),
    )
    reader.refuse_the_rest(remedy)
    return builder


def _s3_user(reader: SettingReader, default: str, *, given_users: bool) -> str:
    if not given_users:
        if reader.has("accessKeyId"):
            raise SettingError(
                reader.full_name("accessKeyId"),
                None,
                "users is minio, and the deployment makes the user; name it with s3User, or set "
                "users to given",
            )
        return check_s3_name(reader.full_name("s3User"), reader.text("s3User", default))
    if reader.has("s3User") or not reader.has("accessKeyId"):
        raise SettingError(
            reader.full_name("accessKeyId"),
            None,
            "users is given, so write here, and not in s3User, the access key id of the user that "
            "you made for this builder",
        )
    return check_s3_name(reader.full_name("accessKeyId"), reader.text("accessKeyId"))


def _signing_key(reader: SettingReader) -> str | None:
    name = reader.text("signingKey", "")
    if not name:
        return None
    try:
        return str(KeyName.parse(name))
    except FormatError:
        raise SettingError(
            reader.full_name("signingKey"), name, "write the name of a key, one of signingKeys"
        ) from None


def _sudo(reader: SettingReader, credentials_directory: str | None) -> bool:
    sudo = reader.boolean("sudo", False)
    if sudo and credentials_directory is None:
        raise SettingError(
            reader.full_name("sudo"),
            "true",
            "only files of credentialsDirectory are placed by sudo; leave it out",
        )
    return sudo


def _credentials_directory(reader: SettingReader) -> str | None:
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
    # Linux has the one as a link to the other.
    place = directory.removeprefix("/var") if directory.startswith("/var/run/") else directory
    parent, _, _ = place.rpartition("/")
    if not parent or parent in _PARENTS_OF_SHARED or place in _SHARED_DIRECTORIES:
        raise SettingError(
            setting,
            directory,
            "others need this directory, and it would become root's alone; "
            "write one of its own, such as /var/lib/nix-binary-cache",
        )
    return directory


def check_s3_name(setting: str, name: str) -> str:
    """Return the name of a user or policy on the S3 server.

    Raises:
        SettingError: it can be none.
    """
    if not _S3_NAME.fullmatch(name):
        raise SettingError(setting, name, "write 3 to 128 letters, digits and ._@+- without spaces")
    return name


def _store_paths(reader: SettingReader, name: str) -> tuple[str, ...]:
    """Take a list of store paths, or of links to them."""
    paths = reader.texts(name, [])
    for path in paths:
        check_pushed(reader.full_name(name), path)
    return paths


def check_pushed(setting: str, path: str) -> None:
    """Refuse what is neither a store path nor a link that every login shell reads alike.

    Raises:
        SettingError: it is something of the kind.
    """
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path) or not path.startswith("/"):
        raise SettingError(
            setting,
            path,
            "write a store path, or an absolute link to one such as /run/current-system",
        )
    # csh takes ! within quotation marks for history, and fish a backslash for a quotation.
    if re.search(r"[!\\]", path):
        raise SettingError(
            setting,
            path,
            "login shells disagree on ! and \\ in a path; write a link to it without them",
        )
    if path.startswith("/nix/store/") and not is_store_path(path):
        raise SettingError(
            setting, path, "this is no store path; write /nix/store/<hash>-<name> and no more"
        )
