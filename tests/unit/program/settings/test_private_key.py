"""The private key that SSH logs in with: whole ones of all kinds, and what is damaged of them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from program.settings.private_key import check_private_key
from program.settings.reader import SettingError
from program.settings.stack import parse
from tests.unit.configuration import configuration, refusal


def pem(key: PrivateKeyTypes, form: PrivateFormat) -> str:
    return key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()


def every_kind_of_key() -> Iterator[str]:
    """Yield private keys of all kinds and forms that OpenSSH and OpenSSL write."""
    forms = (PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8, PrivateFormat.OpenSSH)
    rsa_key = rsa.generate_private_key(65537, 1024)
    for key in (rsa_key, ec.generate_private_key(ec.SECP256R1())):
        yield from (pem(key, form) for form in forms)
    yield from (pem(ed25519.Ed25519PrivateKey.generate(), form) for form in forms[1:])
    yield pem(dsa.generate_private_key(1024), PrivateFormat.TraditionalOpenSSL)


def test_a_private_key_of_any_kind_is_taken() -> None:
    for text in every_kind_of_key():
        for written in (text, text.replace("\n", "\r\n"), f"# mine\n{text}"):
            parse(configuration(sshPrivateKey=written))


def test_a_damaged_private_key_is_refused_wherever_the_damage_is() -> None:
    damaged = "sshPrivateKey: holds a damaged private key; give its whole text"
    for text in every_kind_of_key():
        begin, *body, end = text.strip().split("\n")
        for lines in (
            ["AAAA"],
            ["!!!!"],
            body[1:],
            body[:-1],
            [body[0], *body],
            ["A" * len(body[0]), *body[1:]],
            [*body, "AAAA"] if "OPENSSH" not in begin else body[:1],
            [body[0][:-1], *body[1:]],
        ):
            if lines:
                assert refusal(sshPrivateKey="\n".join([begin, *lines, end])) == damaged
    unknown = next(every_kind_of_key()).replace("RSA PRIVATE", "ANY PRIVATE")
    assert "holds a private key that SSH does not take" in refusal(sshPrivateKey=unknown)


@given(st.binary(max_size=200))
def test_a_private_key_of_anything_is_a_sentence(data: bytes) -> None:
    for start in (b"", b"\x30\x20\x02\x01\x00", b"\x30\x82", b"openssh-key-v1\x00"):
        text = base64.b64encode(start + data).decode()
        for kind in ("OPENSSH ", "RSA ", ""):
            key = f"-----BEGIN {kind}PRIVATE KEY-----\n{text}\n-----END {kind}PRIVATE KEY-----\n"
            with suppress(SettingError):
                check_private_key("sshPrivateKey", key)
