"""Signatures verified without libsodium: against the RFC's vectors, and against libsodium."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from formats.ed25519 import verifies

# RFC 8032, section 7.1: public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19
NEUTRAL = (1).to_bytes(32, "little")
"""The group's neutral point, y = 1: as a key, what it signs is the same for every message."""


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_what_the_rfc_signs_is_verified(key: str, message: str, signature: str) -> None:
    public, text, signed = map(bytes.fromhex, (key, message, signature))
    assert verifies(public, text, signed)
    assert not verifies(public, text + b"x", signed)
    for place in (0, 31, 32, 63):
        spoiled = bytearray(signed)
        spoiled[place] ^= 1
        assert not verifies(public, text, bytes(spoiled))
    other = bytes.fromhex(next(one[0] for one in VECTORS if one[0] != key))
    assert not verifies(other, text, signed)


def libsodium_verifies(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(key).verify(message, signature)
    except BadSignatureError:
        return False
    return True


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
@settings(max_examples=20)
def test_what_libsodium_signs_is_verified(seed: bytes, message: bytes) -> None:
    key = SigningKey(seed)
    assert verifies(bytes(key.verify_key), message, key.sign(message).signature)


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 95),
    st.integers(0, 7),
    st.binary(min_size=1, max_size=40),
)
@settings(max_examples=60)
def test_a_flipped_bit_is_verified_by_neither(
    seed: bytes, place: int, bit: int, message: bytes
) -> None:
    signing = SigningKey(seed)
    both = bytearray(bytes(signing.verify_key) + signing.sign(message).signature)
    both[place] ^= 1 << bit
    key, signature = bytes(both[:32]), bytes(both[32:])
    assert not verifies(key, message, signature)
    assert not libsodium_verifies(key, message, signature)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64))
@settings(max_examples=60)
def test_bytes_at_random_are_verified_by_neither(key: bytes, signature: bytes) -> None:
    assert not verifies(key, b"message", signature)
    assert not libsodium_verifies(key, b"message", signature)


def test_a_scalar_has_one_form() -> None:
    """Adding the group's order would make another signature of the same (RFC 8032, 5.1.7)."""
    key = SigningKey(bytes(32))
    signature = key.sign(b"message").signature
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    malleable = signature[:32] + scalar.to_bytes(32, "little")
    assert verifies(bytes(key.verify_key), b"message", signature)
    assert not verifies(bytes(key.verify_key), b"message", malleable)
    just = ORDER.to_bytes(32, "little")
    assert not verifies(bytes(key.verify_key), b"message", signature[:32] + just)
    assert not verifies(NEUTRAL, b"message", NEUTRAL + just)


@pytest.mark.parametrize(
    "point",
    [
        (P + 1).to_bytes(32, "little"),
        (2**255 - 1).to_bytes(32, "little"),
        (1 | 1 << 255).to_bytes(32, "little"),
        (2).to_bytes(32, "little"),
        (P - 1 | 1 << 255).to_bytes(32, "little"),
    ],
)
def test_what_is_no_point_of_the_curve_verifies_nothing(point: bytes) -> None:
    key = SigningKey(bytes(32))
    signature = key.sign(b"message").signature
    assert not verifies(point, b"message", signature)
    assert not verifies(bytes(key.verify_key), b"message", point + signature[32:])


@pytest.mark.parametrize(("key", "signature"), [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_what_is_of_another_size_verifies_nothing(key: int, signature: int) -> None:
    """Not even with the numbers of a key and a signature that fit."""
    assert verifies(NEUTRAL, b"", NEUTRAL + bytes(32))
    other_key = NEUTRAL[:key] + bytes(key - min(key, 32))
    assert not verifies(other_key, b"", (NEUTRAL + bytes(33))[:signature])


@pytest.mark.parametrize(
    "other",
    [(P + 1).to_bytes(32, "little"), (1 | 1 << 255).to_bytes(32, "little")],
    ids=["y beyond the prime", "x of minus zero"],
)
def test_a_point_has_one_form(other: bytes) -> None:
    """Of the others, RFC 8032 says that decoding fails (5.1.3)."""
    assert verifies(NEUTRAL, b"", NEUTRAL + bytes(32))
    assert not verifies(other, b"", NEUTRAL + bytes(32))
    assert not verifies(NEUTRAL, b"", other + bytes(32))


def test_the_prime_itself_is_no_form_of_zero() -> None:
    """A key with y = 0 is of order 4: the neutral point commits for one message of four."""
    messages = [b"%d" % number for number in range(40)]
    assert any(verifies(bytes(32), text, NEUTRAL + bytes(32)) for text in messages)
    prime = P.to_bytes(32, "little")
    assert not any(verifies(prime, text, NEUTRAL + bytes(32)) for text in messages)


def test_points_are_the_same_only_if_both_coordinates_are() -> None:
    scalar = (1).to_bytes(32, "little")
    y = 4 * pow(5, -1, P) % P
    base, mirrored = y.to_bytes(32, "little"), (y | 1 << 255).to_bytes(32, "little")
    assert verifies(NEUTRAL, b"", base + scalar)
    assert not verifies(NEUTRAL, b"", mirrored + scalar)
    # Of the x that the base point has, and of the y that it has not.
    assert not verifies(NEUTRAL, b"", (P - y).to_bytes(32, "little") + scalar)


def test_a_signature_of_zeros_by_the_neutral_point_is_no_secret_of_ours() -> None:
    """The one key for which it verifies is nobody's: it signs every message."""
    assert verifies(NEUTRAL, b"anything", NEUTRAL + bytes(32))
    for _, message, _ in VECTORS:
        real = bytes(SigningKey(bytes(32)).verify_key)
        assert not verifies(real, bytes.fromhex(message), NEUTRAL + bytes(32))
