"""narinfos from an adversary: what is read is what Nix reads, or nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.error import FormatError
from formats.narinfo import LARGEST_NARINFO, NarInfo, fingerprint, is_nar_key, is_signature
from formats.nix32 import nix32_encode, sha256_to_nix32
from formats.store_path import is_base_name, is_store_path
from tests.unit.formats.narinfo_texts import narinfos

BASE = f"{'0' * 32}-a"
HASH = f"sha256:{'1' * 52}"
SIGNATURE = f"cache.test-1:{'A' * 86}=="
TEXT = f"""\
StorePath: /nix/store/{BASE}
URL: nar/x.nar.zst
Compression: zstd
FileHash: {HASH}
FileSize: 5
NarHash: {HASH}
NarSize: 10
References: {BASE} {"1" * 32}-b
Deriver: {BASE}.drv
Sig: {SIGNATURE}
CA: text:{HASH}
"""


def changed(name: str, value: str | None) -> str:
    """Return the text with another value of a field, or without it."""
    lines = [line for line in TEXT.splitlines() if not line.startswith(f"{name}: ")]
    lines += [] if value is None else [f"{name}: {value}"]
    return "".join(f"{line}\n" for line in lines)


def test_every_field_is_read() -> None:
    assert NarInfo.parse(TEXT) == NarInfo(
        store_path=f"/nix/store/{BASE}",
        url="nar/x.nar.zst",
        compression="zstd",
        nar_hash=HASH,
        nar_size=10,
        references=(BASE, f"{'1' * 32}-b"),
        file_hash=HASH,
        file_size=5,
        deriver=f"{BASE}.drv",
        signatures=(SIGNATURE,),
        content_address=f"text:{HASH}",
    )
    assert NarInfo.parse(TEXT).format() == TEXT


@pytest.mark.parametrize(
    ("name", "value", "attribute", "read"),
    [
        ("Compression", None, "compression", "bzip2"),
        ("Compression", "", "compression", "bzip2"),
        ("Compression", "br", "compression", "br"),
        ("FileHash", None, "file_hash", None),
        ("FileHash", f"sha256:{'0' * 64}", "file_hash", f"sha256:{'0' * 64}"),
        ("FileSize", None, "file_size", None),
        ("FileSize", "0", "file_size", 0),
        ("FileSize", "007", "file_size", 7),
        ("NarSize", "9" * 19, "nar_size", 10**19 - 1),
        ("NarHash", f"sha256-{'A' * 43}=", "nar_hash", f"sha256-{'A' * 43}="),
        ("References", None, "references", ()),
        ("References", "", "references", ()),
        ("References", BASE, "references", (BASE,)),
        ("Deriver", None, "deriver", None),
        ("Deriver", "unknown-deriver", "deriver", None),
        ("Sig", None, "signatures", ()),
        ("CA", None, "content_address", None),
        ("CA", "", "content_address", None),
        ("CA", f"fixed:r:{HASH}", "content_address", f"fixed:r:{HASH}"),
        ("CA", f"fixed:git:sha1:{'0' * 32}", "content_address", f"fixed:git:sha1:{'0' * 32}"),
        ("CA", f"fixed:md5:{'0' * 26}", "content_address", f"fixed:md5:{'0' * 26}"),
        ("CA", f"fixed:r:sha512:{'0' * 103}", "content_address", f"fixed:r:sha512:{'0' * 103}"),
        ("CA", f"fixed:blake3:{'0' * 52}", "content_address", f"fixed:blake3:{'0' * 52}"),
    ],
)
def test_what_nix_takes_is_taken_as_nix_takes_it(
    name: str, value: str | None, attribute: str, read: object
) -> None:
    assert getattr(NarInfo.parse(changed(name, value)), attribute) == read


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("StorePath", None, "has no StorePath"),
        ("StorePath", "", "has no StorePath"),
        ("StorePath", f"/nix/store//{BASE}", "StorePath is no path of /nix/store"),
        ("StorePath", f"/nix/./store/{BASE}", "StorePath is no path of /nix/store"),
        ("StorePath", f"/nix/store/{BASE}/", "StorePath is no path of /nix/store"),
        ("StorePath", f"/nix/store/{BASE} ", "StorePath is no path of /nix/store"),
        ("StorePath", f"/gnu/store/{BASE}", "StorePath is no path of /nix/store"),
        ("StorePath", BASE, "StorePath is no path of /nix/store"),
        ("URL", None, "has no URL"),
        ("URL", "", "has no URL"),
        ("URL", "nar/a b", "URL has a blank"),
        ("Compression", "z std", "Compression is none that Nix can read"),
        ("Compression", "bzip9", "Compression is none that Nix can read"),
        ("FileHash", "", "hash is sha256"),
        ("FileHash", f"sha512:{'0' * 103}", "hash is sha256"),
        ("FileSize", "", "FileSize is no number"),
        ("FileSize", "-1", "FileSize is no number"),
        ("NarHash", None, "has no NarHash"),
        ("NarHash", "", "has no NarHash"),
        ("NarHash", "sha256:", "hash is sha256"),
        ("NarHash", f"sha256:{'z' * 52}", "characters outside its encoding"),
        ("NarHash", f"sha256:{'e' * 52}", "characters outside its encoding"),
        ("NarHash", f"sha256:{'g' * 64}", "characters outside its encoding"),
        ("NarHash", f"sha256:{'0' * 62} 0", "characters outside its encoding"),
        ("NarHash", f"sha256:{'A' * 44}", "does not hold 32 bytes"),
        ("NarHash", f"sha256:{'A' * 42}==", "does not hold 32 bytes"),
        ("NarHash", f"sha256:{'A' * 20}={'A' * 23}", "characters outside its encoding"),
        ("NarHash", f"sha256-{'0' * 64}", "hash is sha256"),
        ("NarHash", f"sha256-{'1' * 52}", "hash is sha256"),
        ("NarHash", f"SHA256:{'1' * 52}", "hash is sha256"),
        ("NarHash", f" {HASH}", "hash is sha256"),
        ("NarHash", "1" * 52, "hash is sha256"),
        ("NarSize", None, "has no NarSize"),
        ("NarSize", "", "has no NarSize"),
        ("NarSize", "0", "NarSize is zero"),
        ("NarSize", "000", "NarSize is zero"),
        ("NarSize", "1" * 20, "NarSize is no number"),
        ("NarSize", "+5", "NarSize is no number"),
        ("NarSize", " 5", "NarSize is no number"),
        ("NarSize", "5 ", "NarSize is no number"),
        ("NarSize", "0x5", "NarSize is no number"),
        ("NarSize", "1_0", "NarSize is no number"),
        ("NarSize", "1e3", "NarSize is no number"),
        ("NarSize", "5.0", "NarSize is no number"),
        ("References", " ", "names something that is no store path"),
        ("References", f"{BASE}  {BASE}", "names something that is no store path"),
        ("References", f"{BASE} ", "names something that is no store path"),
        ("References", f"/nix/store/{BASE}", "names something that is no store path"),
        ("References", f"{'0' * 32}-..", "names something that is no store path"),
        ("References", f"{'0' * 32}-.-x", "names something that is no store path"),
        ("References", f"{'0' * 32}-{'a' * 212}", "names something that is no store path"),
        ("References", f"{'0' * 31}-a", "names something that is no store path"),
        ("Deriver", "", "Deriver is no store path"),
        ("Deriver", "x.drv", "Deriver is no store path"),
        ("Deriver", f"/nix/store/{BASE}", "Deriver is no store path"),
        ("Deriver", f"{BASE} ", "Deriver is no store path"),
        ("Sig", "", "Sig is no signature"),
        ("Sig", "cache.test-1", "Sig is no signature"),
        ("Sig", "cache.test-1:AAAA", "Sig is no signature"),
        ("Sig", f":{'A' * 86}==", "Sig is no signature"),
        ("Sig", f" {SIGNATURE}", "Sig is no signature"),
        ("Sig", f"{SIGNATURE} ", "Sig is no signature"),
        ("Sig", f"{SIGNATURE[:-2]}", "Sig is no signature"),
        ("Sig", f"{SIGNATURE[:-3]}B==", "Sig is no signature"),
        ("Sig", f"{SIGNATURE[:-4]}!A==", "Sig is no signature"),
        ("CA", "x", "CA is no content address"),
        ("CA", " ", "CA is no content address"),
        ("CA", f"text:md5:{'0' * 26}", "CA is no content address"),
        ("CA", f"text:r:{HASH}", "CA is no content address"),
        ("CA", f"fixed:x:{HASH}", "CA is no content address"),
        ("CA", f"fixed:sha256:{'1' * 51}", "CA is no content address"),
        ("CA", f"fixed:sha256:{'0' * 64}", "CA is no content address"),
        ("CA", f"fixed:sha512:{'0' * 52}", "CA is no content address"),
        ("CA", f"fixed:sha256:{'z' * 52}", "length or value"),
        ("CA", f"fixed:sha256:{'e' * 52}", "outside its alphabet"),
        ("CA", f"fixed:{HASH} ", "CA is no content address"),
    ],
)
def test_what_nix_takes_for_something_else_or_not_at_all_is_refused(
    name: str, value: str | None, reason: str
) -> None:
    with pytest.raises(FormatError, match=rf"^(a narinfo's|a narinfo|nix32 text) .*{reason}"):
        NarInfo.parse(changed(name, value))


@pytest.mark.parametrize(
    "line",
    [
        "NarHash:_sha256:" + "1" * 52,
        "NarSize:_7",
        "URL:_nar/evil.nar",
        "NarSize:7",
        "NarSize : 7",
        " NarSize: 7",
        "\tNarSize: 7",
        ": 7",
        "",
        "NarSize",
        "NarSize: 7\r",
        "X: \u00e9",
        "X: \x00",
        "X: a\tb",
        "X: \x7f",
        "\u00dc: x",
        "1: x",
        "-: x",
        "X_Y: x",
    ],
)
@pytest.mark.parametrize("where", [0, 5, 11])
def test_a_line_of_another_form_spoils_the_whole(line: str, where: int) -> None:
    lines = TEXT.splitlines()
    text = "\n".join([*lines[:where], line, *lines[where:]]) + "\n"
    with pytest.raises(FormatError, match=r"^a narinfo's line is not of the form Name: value$"):
        NarInfo.parse(text)


@pytest.mark.parametrize("name", [line.partition(":")[0] for line in TEXT.splitlines()])
def test_a_known_field_comes_once_but_for_signatures(name: str) -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith(f"{name}: "))
    twice = f"{TEXT}{line}\n"
    if name == "Sig":
        assert NarInfo.parse(twice).signatures == (SIGNATURE, SIGNATURE)
    else:
        with pytest.raises(FormatError, match=r"^a narinfo repeats a field$"):
            NarInfo.parse(twice)


def test_a_field_that_is_not_known_says_nothing_however_often_it_comes() -> None:
    more = "Mood: fine\nMood: \nnarsize: 77\nNARSIZE: x\nReferences2: ../x\nA-b-1: x: y\n"
    assert NarInfo.parse(more + TEXT + more) == NarInfo.parse(TEXT)


@pytest.mark.parametrize("text", ["", "\n", TEXT[:-1], f"{TEXT}\n", "StorePath", "\x00"])
def test_a_text_that_does_not_end_as_it_should_is_refused(text: str) -> None:
    with pytest.raises(
        FormatError,
        match=r"^a narinfo(|'s line) (does not end with a line break|is not of the form)",
    ):
        NarInfo.parse(text)


def test_a_text_larger_than_any_is_refused_before_it_is_read() -> None:
    padding = f"X: {'x' * (LARGEST_NARINFO - len(TEXT) - 4)}\n"
    assert NarInfo.parse(TEXT + padding)
    with pytest.raises(FormatError, match=r"^a narinfo is too large$"):
        NarInfo.parse(f"{TEXT}{padding}\n")


@given(narinfos, st.data())
def test_a_narinfo_with_lines_dropped_repeated_and_moved_is_read_or_refused(
    narinfo: NarInfo, data: st.DataObject
) -> None:
    lines = narinfo.format().splitlines(keepends=True)
    chosen = data.draw(st.lists(st.sampled_from(lines), max_size=len(lines) + 2))
    try:
        read = NarInfo.parse("".join(chosen))
    except FormatError:
        return
    said = set(chosen)
    assert f"StorePath: {read.store_path}\n" in said
    assert f"NarHash: {read.nar_hash}\n" in said
    assert f"NarSize: {read.nar_size}\n" in said
    assert chosen.count(f"NarHash: {read.nar_hash}\n") == 1
    assert {f"Sig: {one}\n" for one in read.signatures} <= said


@given(narinfos, st.integers(0, 400), st.sampled_from("\n\r\t :\x00_aA0é"))
def test_a_character_more_never_changes_what_is_signed_unseen(
    narinfo: NarInfo, place: int, character: str
) -> None:
    text = narinfo.format()
    spoiled = text[:place] + character + text[place:]
    try:
        read = NarInfo.parse(spoiled)
    except FormatError:
        return
    # Whatever is read can be written, and is read as the same again.
    assert NarInfo.parse(read.format()) == read


# Pieces.


def test_a_fingerprint_is_what_nix_signs() -> None:
    names = (f"{'1' * 32}-b", BASE, BASE)
    assert fingerprint(f"/nix/store/{BASE}", HASH, 10, names, "/nix/store") == (
        f"1;/nix/store/{BASE};{HASH};10;/nix/store/{BASE},/nix/store/{'1' * 32}-b"
    )
    assert replace(NarInfo.parse(TEXT), references=()).fingerprint == (
        f"1;/nix/store/{BASE};{HASH};10;"
    )
    with pytest.raises(FormatError):
        fingerprint(f"/nix/store/{BASE}", "md5:x", 10, (), "/nix/store")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (SIGNATURE, True),
        (f"a!~:{'A' * 85}w==", True),
        (f"a:b:{'A' * 86}==", False),
        (f"a b:{'A' * 86}==", False),
        (f"a:{'A' * 87}=", False),
        (f"a:{'A' * 86}==\n", False),
        (f"\u00e9:{'A' * 86}==", False),
    ],
)
def test_a_signature_is_a_name_and_64_bytes(text: str, is_one: bool) -> None:
    assert is_signature(text) is is_one


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("nar/0.nar.zst", True),
        ("nar/A-b_c.d", True),
        ("nar/" + "a" * 251, True),
        ("nar/" + "a" * 252, False),
        ("nar/", False),
        ("nar/.a", False),
        ("nar/a/b", False),
        ("nar/a b", False),
        ("nar/a%2fb", False),
        ("nar/a?b", False),
        ("nar/a\n", False),
        ("/nar/a", False),
        ("../nar/a", False),
        ("https://x/nar/a", False),
    ],
)
def test_a_nar_lies_in_its_folder(text: str, is_one: bool) -> None:
    assert is_nar_key(text) is is_one


@given(st.binary(min_size=32, max_size=32))
def test_a_hash_is_the_same_in_every_encoding(data: bytes) -> None:
    from base64 import b64encode  # noqa: PLC0415

    in_64 = b64encode(data).decode()
    texts = (
        f"sha256:{data.hex()}",
        f"sha256:{data.hex().upper()}",
        f"sha256:{nix32_encode(data)}",
        f"sha256:{in_64}",
        f"sha256-{in_64}",
    )
    assert {sha256_to_nix32(text) for text in texts} == {f"sha256:{nix32_encode(data)}"}


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a", True),
        ("a" * 211, True),
        ("a" * 212, False),
        ("", False),
        ("+-._?=aZ9", True),
        (".a", True),
        (".", False),
        ("..", False),
        (".-a", False),
        ("..-a", False),
        ("...", True),
        ("..a", True),
        ("a/b", False),
        ("a b", False),
        ("a\n", False),
        ("\u00e9", False),
        ("\u0663", False),
    ],
)
def test_a_name_is_what_nix_allows(name: str, is_one: bool) -> None:
    assert is_base_name(f"{'0' * 32}-{name}") is is_one
    assert is_store_path(f"/nix/store/{'0' * 32}-{name}") is is_one
    assert is_store_path(f"/other/{'0' * 32}-{name}", "/other") is is_one
    assert not is_store_path(f"/nix/store{'0' * 32}-{name}")
