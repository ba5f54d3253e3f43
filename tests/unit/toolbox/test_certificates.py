"""The private authority: made once, kept private, trusted by those who trust it."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from toolbox.certificates import Authority, make_authority


def handshake(authority: Authority, ca_file: Path, name: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority.server_certificate, authority.server_key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        ssl.create_default_context(cafile=str(ca_file)).wrap_bio(
            to_client, to_server, server_hostname=name
        ),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_client_that_trusts_the_authority_accepts_the_server(tmp_path: Path, name: str) -> None:
    authority = make_authority(tmp_path)
    handshake(authority, authority.ca_file, name)


def test_a_client_that_trusts_another_authority_refuses_it(tmp_path: Path) -> None:
    other = make_authority(tmp_path / "other").ca_file
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(make_authority(tmp_path / "ours"), other, "localhost")


def test_the_authority_of_a_directory_stays_and_its_key_is_private(tmp_path: Path) -> None:
    first = make_authority(tmp_path)
    before = first.ca_file.read_bytes()
    assert make_authority(tmp_path) == first
    assert first.ca_file.read_bytes() == before
    assert stat.S_IMODE(first.server_key.stat().st_mode) == 0o600
