"""A private certificate authority, and a server certificate for loopback signed by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

SERVER_NAMES = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Authority:
    """Files, in PEM, of one private authority and its one server certificate."""

    ca_file: Path
    """The authority's certificate: what a client trusts."""
    server_certificate: Path
    """The server's certificate with its chain."""
    server_key: Path
    """The server's private key, readable by its owner alone."""


def make_authority(directory: Path) -> Authority:
    """Return the authority in `directory`, made there on the first call and found later."""
    authority = Authority(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    if authority.ca_file.exists():
        return authority
    directory.mkdir(parents=True, exist_ok=True)
    ca = trustme.CA(organization_name="Nix binary cache", organization_unit_name="private")
    server = ca.issue_cert(*SERVER_NAMES)
    authority.server_key.touch(mode=0o600)
    server.private_key_pem.write_to_path(authority.server_key)
    chain = b"".join(part.bytes() for part in server.cert_chain_pems)
    authority.server_certificate.write_bytes(chain)
    # Written last: its presence says that the directory is whole.
    ca.cert_pem.write_to_path(authority.ca_file)
    return authority
