"""Nix's formats: against what Nix wrote, in a circle, and against anything else."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.error import FormatError
from formats.keys import KeyName, PublicKey, is_key_domain, shown_key
from formats.narinfo import NarInfo
from formats.nix32 import NIX32_ALPHABET, nix32_decode, nix32_encode
from formats.signing import SecretKey, verified_by, verifies
from formats.store_path import is_store_path
from tests.unit.formats.narinfo_texts import narinfos

VECTORS = Path(__file__).with_name("nix_vectors")
NARINFO_FILES = sorted(VECTORS.glob("*.narinfo"))
SECRET_KEY = (VECTORS / "secret-key").read_text()
PUBLIC_KEY = (VECTORS / "public-key").read_text()


def test_a_key_made_by_nix_is_read_and_written_to_the_letter() -> None:
    key = SecretKey.parse(SECRET_KEY)
    assert key.to_nix() == SECRET_KEY.strip()
    assert str(key.public_key) == PUBLIC_KEY.strip()
    assert PublicKey.parse(PUBLIC_KEY) == key.public_key


@pytest.mark.parametrize("file", NARINFO_FILES, ids=lambda file: file.stem[:8])
def test_a_narinfo_made_by_nix_is_read_and_written_to_the_letter(file: Path) -> None:
    assert NarInfo.parse(file.read_text()).format() == file.read_text()


@pytest.mark.parametrize("file", NARINFO_FILES, ids=lambda file: file.stem[:8])
def test_a_signature_made_by_nix_is_the_one_made_here(file: Path) -> None:
    narinfo = NarInfo.parse(file.read_text())
    key = SecretKey.parse(SECRET_KEY)
    assert (key.sign(narinfo.fingerprint),) == narinfo.signatures
    assert verified_by(narinfo, {key.name: key.public_key}) == (key.name,)


def test_the_vectors_hold_a_path_with_references() -> None:
    assert max(len(NarInfo.parse(file.read_text()).references) for file in NARINFO_FILES) == 3


@pytest.mark.parametrize("digest", json.loads((VECTORS / "hashes.json").read_text()))
def test_nix32_is_what_nix_writes(digest: dict[str, str]) -> None:
    assert nix32_encode(bytes.fromhex(digest["base16"])) == digest["nix32"]
    assert nix32_decode(digest["nix32"]).hex() == digest["base16"]


def test_a_fingerprint_has_the_hash_in_nix32_whatever_the_narinfo_has() -> None:
    (digest, *_) = json.loads((VECTORS / "hashes.json").read_text())
    narinfo = NarInfo.parse(NARINFO_FILES[0].read_text())
    texts = {
        replace(narinfo, nar_hash=nar_hash).fingerprint
        for nar_hash in (
            f"sha256:{digest['base16']}",
            f"sha256:{digest['nix32']}",
            f"sha256:{digest['base64']}",
            f"sha256-{digest['base64']}",
        )
    }
    assert texts == {replace(narinfo, nar_hash=f"sha256:{digest['nix32']}").fingerprint}


@pytest.mark.parametrize("change", ["store_path", "nar_hash", "nar_size", "references"])
def test_a_signature_is_over_all_that_makes_a_path_what_it_is(change: str) -> None:
    narinfo = max((NarInfo.parse(f.read_text()) for f in NARINFO_FILES), key=lambda n: n.references)
    key = PublicKey.parse(PUBLIC_KEY)
    other = {
        "store_path": narinfo.store_path + "x",
        "nar_hash": f"sha256:{nix32_encode(bytes(32))}",
        "nar_size": narinfo.nar_size + 1,
        "references": narinfo.references[1:],
    }
    changed = replace(narinfo, **{change: other[change]})  # type: ignore[arg-type]
    assert verified_by(changed, {key.name: key}) == ()


def test_a_signature_by_an_unknown_or_another_key_of_the_name_counts_for_nothing() -> None:
    narinfo = NarInfo.parse(NARINFO_FILES[0].read_text())
    same_name = SecretKey.generate("s3.homelab.local-1").public_key
    assert verified_by(narinfo, {}) == ()
    assert verified_by(narinfo, {same_name.name: same_name}) == ()
    assert verified_by(narinfo, {"s3.homelab.local-1": PublicKey("x-1", same_name.data)}) == ()


@given(st.binary(max_size=64))
def test_nix32_goes_round(data: bytes) -> None:
    assert nix32_decode(nix32_encode(data)) == data


@given(st.text(NIX32_ALPHABET, max_size=60))
def test_nix32_has_one_text_for_each_value(text: str) -> None:
    try:
        data = nix32_decode(text)
    except FormatError:
        return
    assert nix32_encode(data) == text


@given(narinfos)
def test_a_narinfo_goes_round(narinfo: NarInfo) -> None:
    assert NarInfo.parse(narinfo.format()) == narinfo


@given(narinfos, st.text(), st.integers(0, 9), st.data())
def test_a_changed_narinfo_is_read_or_refused_and_never_verified_with_an_error(
    narinfo: NarInfo, inserted: str, removed: int, data: st.DataObject
) -> None:
    text = narinfo.format()
    start = data.draw(st.integers(0, len(text)))
    try:
        read = NarInfo.parse(text[:start] + inserted + text[start + removed :])
    except FormatError:
        return
    key = PublicKey.parse(PUBLIC_KEY)
    assert verified_by(read, {key.name: key}) == ()


def test_a_signature_with_anything_in_its_base64_is_none() -> None:
    key = SecretKey.generate("a-1")
    signature = key.sign("text")
    assert verifies(key.public_key, "text", signature)
    assert not verifies(key.public_key, "text", f"{signature[:9]} {signature[9:]}")


def test_a_signatures_name_ends_at_the_first_colon() -> None:
    """So it is for Nix, to which a name with a colon is none."""
    key = SecretKey("a-1:b", bytes(32))
    assert not verifies(key.public_key, "text", key.sign("text"))


@given(st.text(), st.text() | st.binary(max_size=70).map(lambda raw: b64encode(raw).decode()))
def test_any_text_can_stand_for_a_signature_and_none_is_good(text: str, signature: str) -> None:
    key = PublicKey.parse(PUBLIC_KEY)
    assert not verifies(key, text, f"{key.name}:{signature}")


def test_lines_end_where_they_end_for_nix() -> None:
    text = NARINFO_FILES[0].read_text()
    for separator in ("\u2028", "\x0b", "\r", "\x00", "\t"):
        with pytest.raises(FormatError, match="not of the form"):
            NarInfo.parse(text.replace("URL: ", f"X: x{separator}URL: "))


@pytest.mark.parametrize("number", ["01", "-1", "1.0", "9" * 5_000])
def test_a_key_number_that_is_none_is_a_part_of_the_name(number: str) -> None:
    name = KeyName.parse(f"s3.homelab.local-{number}")
    assert not name.has_number
    assert name.domain == str(name) == f"s3.homelab.local-{number}"


@pytest.mark.parametrize(
    "name",
    ["", "-1", "a-", "a b", "a:b", "a,b", 'a"b', "a'b", "a#b", "a$b", "a\\b", "{host}", "\xe9"],
)
def test_a_name_that_does_not_go_through_all_that_has_keys_is_refused(name: str) -> None:
    with pytest.raises(
        FormatError, match=r"^a signing key's name is a domain, a hyphen and an integer$"
    ):
        KeyName.parse(name)


@pytest.mark.parametrize("name", ["binarycache.example.com", "mycache", "my_cache", "me@host/a"])
def test_a_name_without_a_number_is_older_than_those_with_one(name: str) -> None:
    first = KeyName.parse(name)
    assert str(first) == name
    assert str(first.next) == f"{name}-1"
    assert first < KeyName.parse(f"{name}-0") < first.next < first.next.next
    assert KeyName.parse(f"{name}-1") == first.next


@given(st.from_regex(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9}){0,3}-[1-9][0-9]{0,4}", fullmatch=True))
def test_a_minted_key_goes_round_and_verifies_what_it_signs(name: str) -> None:
    key = SecretKey.generate(name)
    assert SecretKey.parse(key.to_nix()) == key
    assert PublicKey.parse(str(key.public_key)) == key.public_key
    assert verifies(key.public_key, "text", key.sign("text"))
    assert not verifies(key.public_key, "other text", key.sign("text"))
    assert str(KeyName.parse(name)) == name


def test_a_secret_key_shows_its_seed_in_no_representation() -> None:
    key = SecretKey.generate("a-1")
    assert "seed" not in repr(key)
    assert repr(key.seed) not in repr(key)


@pytest.mark.parametrize(
    ("read", "valid"),
    [
        (NarInfo.parse, NARINFO_FILES[0].read_text()),
        (SecretKey.parse, SECRET_KEY),
        (PublicKey.parse, PUBLIC_KEY),
        (KeyName.parse, "s3.homelab.local-1"),
        (nix32_decode, "abc"),
    ],
    ids=["narinfo", "secret key", "public key", "key name", "nix32"],
)
@given(data=st.data())
def test_malformed_input_raises_the_modules_own_error_and_nothing_else(
    read: Callable[[str], object], valid: str, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(valid)))
    text = data.draw(st.one_of(st.text(), st.just(valid[:cut]), st.text().map(valid.__add__)))
    message = ""
    try:
        read(text)
    except FormatError as error:
        message = str(error)
    assert len(text) < 12 or text not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            PUBLIC_KEY,
            "the part after the colon of a secret key holds 64 bytes, not 32; this is a public key",
        ),
        ("nothing", "a secret key is written name:base64"),
        (":AAAA", "a secret key is written name:base64"),
        ("a b-1:AAAA", "a secret key is written name:base64"),
        (
            f"\ufeff{SECRET_KEY}",
            "it begins with a byte order mark, which would be a part of its name",
        ),
        (
            SECRET_KEY.replace("homelab", "h\u00f6melab"),
            "the name of a secret key has a letter that is not printable ASCII",
        ),
        (f"\x7f{SECRET_KEY}", "the name of a secret key has a letter that is not printable ASCII"),
        ("a-1:!!!", "the part after the colon of a secret key is not base64"),
        ("a-1:AAAA", "the part after the colon of a secret key holds 64 bytes, not 3"),
        (
            SECRET_KEY.replace(":PdKP", ":AAAA"),
            "the secret key's seed does not match its public half",
        ),
    ],
)
def test_a_secret_key_that_is_none_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(FormatError) as refused:
        SecretKey.parse(text)
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            SECRET_KEY,
            "the part after the colon of a public key holds 32 bytes, not 64; this is a secret key",
        ),
        ("nothing", "a public key is written name:base64"),
        (
            f"\ufeff{PUBLIC_KEY}",
            "it begins with a byte order mark, which would be a part of its name",
        ),
        (f"\xe9{PUBLIC_KEY}", "the name of a public key has a letter that is not printable ASCII"),
        ("a-1:!!!", "the part after the colon of a public key is not base64"),
        ("a-1:AAAA", "the part after the colon of a public key holds 32 bytes, not 3"),
    ],
)
def test_a_public_key_that_is_none_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(FormatError) as refused:
        PublicKey.parse(text)
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cache.nixos.org-1", "cache.nixos.org-1"),
        (SECRET_KEY, "s3.homelab.local-1:..."),
        (SECRET_KEY.partition(":")[2].strip(), "..."),
        (f"x {SECRET_KEY}", "..."),
        ("", "..."),
    ],
)
def test_of_what_is_no_public_key_the_name_is_shown_as_the_rest_may_be_secret(
    text: str, shown: str
) -> None:
    assert shown_key(text) == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3.homelab.local", True), ("a", True), ("a b", False), ("-a", False), ("", False)],
)
def test_what_can_stand_before_a_keys_number_is_told_from_what_cannot(
    text: str, expected: bool
) -> None:
    assert is_key_domain(text) is expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("NarSize: ", "NarSize: -"), "NarSize is no number"),
        (("NarHash: sha256:", "NarHash: md5:"), "hash is sha256"),
        (("URL: ", "URI: "), "no URL"),
        (("StorePath: /nix/store/", "StorePath: "), "no path of /nix/store"),
        (("References: ", "References: ../x "), "no store path"),
        (("URL: ", "URL: x\nURL: "), "repeats"),
        (("URL: ", "no colon\nURL: "), "not of the form"),
    ],
)
def test_a_narinfo_that_is_none_is_refused_with_the_reason(
    change: tuple[str, str], reason: str
) -> None:
    with pytest.raises(FormatError, match=reason):
        NarInfo.parse(NARINFO_FILES[0].read_text().replace(*change, 1))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting", True),
        ("/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting/bin", False),
        ("/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c", False),
        ("/nix/store/e7pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting", False),
        ("/gnu/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting", False),
        ("/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-$(id)", False),
    ],
)
def test_a_store_path_is_told_from_what_is_none(path: str, expected: bool) -> None:
    assert is_store_path(path) is expected
