"""What messages show of settings: no secret that was put into the wrong one."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from formats.signing import SecretKey
from program.checks import key_rotation
from program.checks.recorded import Recorded
from program.settings.reader import SettingError
from program.settings.redaction import sentence_without_secrets, without_secrets
from program.settings.stack import CACHE_NIXOS_ORG, parse
from tests.unit.configuration import HOST_KEY, as_text, configuration, refusal
from tests.unit.recording_mocks import use_recording_mocks

CONFIGURATION = configuration()
FAR: dict[str, object] = {"name": "far", "host": "10.0.0.2", "hostKey": HOST_KEY}

WRONG: dict[str, Any] = {
    "signingKeys": lambda text: {"signingKeys": [text]},
    "signingKeys, no list": lambda text: {"signingKeys": f'["{text}'},
    "signingKeyDomains": lambda text: {"signingKeyDomains": [text]},
    "upstreamKeys": lambda text: {"upstreamKeys": [text, text]},
    "endpoint": lambda text: {"endpoint": text},
    "publicUrl": lambda text: {"publicUrl": text},
    "caCertificateFile": lambda text: {"caCertificateFile": text},
    "bucket": lambda text: {"bucket": text},
    "region": lambda text: {"region": text},
    "minioUser": lambda text: {"minioUser": text},
    "writePolicy": lambda text: {"writePolicy": text},
    "retentionDays": lambda text: {"retentionDays": text},
    "builders": lambda text: {"builders": [text]},
    "no builders": lambda text: {"builders": {"signingKey": text}},
    "pins[0].path": lambda text: {"pins": [{"name": "pin", "path": text}]},
    **{
        f"builders[0].{name}": lambda text, name=name: {"builders": [{**FAR, name: text}]}
        for name in (
            *("name", "s3User", "host", "user", "hostKey", "privateKeyFile", "signingKey"),
            *("credentialsDirectory", "jumpHost", "port", "closures"),
        )
    },
    "builders[0].closures[0]": lambda text: {"builders": [{**FAR, "closures": [text]}]},
    "builders[0].host as an object": lambda text: {"builders": [{**FAR, "host": {"is": [text]}}]},
}
"""How each setting is given a text that belongs into another one."""

some = settings(max_examples=15, deadline=None, derandomize=True, database=None)
base64_texts = st.binary(min_size=64, max_size=64).map(lambda raw: base64.b64encode(raw).decode())


def said(changes: dict[str, object]) -> str:
    """Return what a configuration with `changes` is refused with; nothing where it is taken."""
    changed = CONFIGURATION | {name: as_text(value) for name, value in changes.items()}
    try:
        key_rotation.check(parse(changed), Recorded({}))
    except SettingError as refused:
        return str(refused)
    return ""


def shows(message: str, secret: str, anyway: str = "") -> bool:
    """Tell whether a message has a part of a secret that is worth something.

    Args:
        message: the message.
        secret: the secret.
        anyway: what it says of another secret, whose words may be drawn for one.
    """
    escaped = json.dumps(secret)[1:-1]
    return any(
        text[start : start + 8] in message and text[start : start + 8] not in anyway
        for text in {secret, escaped}
        for start in range(max(1, len(text) - 7))
    )


@pytest.fixture(autouse=True, scope="module")
def _engine() -> None:
    use_recording_mocks()


@pytest.mark.parametrize("setting", WRONG)
@given(secret=base64_texts)
@some
def test_a_secret_key_in_the_wrong_setting_is_not_shown(setting: str, secret: str) -> None:
    for name in ("cache.test-1", "old_name"):
        if name == "cache.test-1" or "no list" not in setting:
            assert not shows(said(WRONG[setting](f"{name}:{secret}")), secret)


@pytest.mark.parametrize("setting", WRONG)
@given(body=base64_texts)
@some
def test_a_private_key_in_the_wrong_setting_is_not_shown(setting: str, body: str) -> None:
    pem = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"
    for text in (pem, pem.replace("\n", " "), f"{body}\n-----END PRIVATE KEY-----"):
        assert not shows(said(WRONG[setting](text)), body)


@pytest.mark.parametrize("setting", WRONG)
@given(password=st.text(st.characters(codec="utf-8"), min_size=4).map(lambda text: f"h7Q{text}r2"))
@example(password="h7Qwrite a r2")
@some
def test_a_login_in_a_url_is_not_shown(setting: str, password: str) -> None:
    for text in (
        f"https://root:{password}@minio.test:9000",
        f"https://{password}@minio.test/nix-cache",
        f"root:{password}@minio.test",
    ):
        anyway = said(WRONG[setting](text.replace(password, "h7Q-another-r2")))
        assert not shows(said(WRONG[setting](text)), password, anyway)


@pytest.mark.parametrize("setting", WRONG)
@pytest.mark.parametrize(
    "secret",
    [
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "7d37d093435a41f2aab8f13c19ba067d9776c90215f56614adad6ece597dbb34",
        SecretKey.generate("a").to_nix().removeprefix("a:"),
    ],
    ids=["of AWS and MinIO", "of Garage and R2", "of Nix, without its name"],
)
def test_a_secret_without_a_name_is_not_shown(setting: str, secret: str) -> None:
    message = said(WRONG[setting](secret))
    # What is taken for a user's name is the server's to refuse.
    assert secret not in message


# Hypothesis likes zeros, and no secret is made of them.
random = st.integers(0, 2**64 - 1).map(Random)
words = st.sampled_from(
    (
        *("cache", "nix", "homelab", "builder", "Projects", "certificate", "authority", "x86"),
        *("2026", "Keys", "linux", "system", "configuration", "production", "CA", "64", "26"),
    )
)


def named(*separators: str, most: int = 9) -> st.SearchStrategy[str]:
    """Return what people call something: words with separators between them."""
    tail = st.tuples(st.sampled_from(separators), words).map("".join)
    tails = st.lists(tail, max_size=most - 1).map("".join)
    return st.tuples(words, tails).map("".join)


def store_hash(source: Random) -> str:
    """Return a store path's hash."""
    return "".join(source.choices("0123456789abcdfghijklmnpqrsvwxyz", k=32))


def base64_of(source: Random, size: int) -> str:
    """Return random bytes in base64, without padding."""
    return base64.b64encode(source.randbytes(size)).decode().rstrip("=")


@pytest.mark.parametrize(
    "make",
    [
        lambda source: base64_of(source, 30),
        lambda source: base64_of(source, 32).translate(str.maketrans("+/", "-_")),
        lambda source: base64_of(source, 64) + "==",
        lambda source: source.randbytes(source.randint(16, 40)).hex(),
        lambda source: source.randbytes(source.randint(16, 40)).hex().upper(),
    ],
    ids=["of AWS", "of url-safe base64", "of Nix", "hexadecimal", "HEXADECIMAL"],
)
@given(source=random)
@settings(some, max_examples=300)
def test_a_random_secret_is_told_from_words(make: Any, source: Random) -> None:
    secret = make(source)
    # A path begins so, and what begins so is a secret one time in 64.
    if secret.startswith("/"):
        secret = f"A{secret[1:]}"
    assert without_secrets(secret) == "..."
    assert without_secrets([{"a": secret}]) == [{"a": "..."}]
    for sentence in (f"not {secret}", f"is it KEY={secret}?", f'"{secret}": write another one.'):
        assert sentence_without_secrets(sentence, None) == sentence.replace(secret, "...")


@given(
    text=st.one_of(
        st.tuples(random.map(store_hash), named("-", ".", "_", "+")).map(
            lambda path: f"/nix/store/{path[0]}-{path[1]}"
        ),
        st.tuples(random.map(store_hash), named("-")).map("-".join),
        named("/", "-", "_").map(lambda path: f"/{path}"),
        named("/", "-", "_", ".").map(lambda path: f"~/{path}.pem"),
        named("/", "-", "_", most=12),
        named(".", "-").map(str.lower),
        named(".", "-").map(lambda domain: f"{domain.lower()}-1"),
        st.tuples(named(".", "-"), st.integers(0, 65_535)).map(
            lambda host: f"{host[0].lower()}:{host[1]}"
        ),
        random.map(lambda source: f"{source.randbytes(16).hex()}.r2.cloudflarestorage.com"),
        random.map(lambda source: f"https://{source.randbytes(16).hex()}.r2.example.org"),
    )
)
@settings(some, max_examples=1000)
def test_names_paths_and_addresses_are_shown(text: str) -> None:
    assert without_secrets(text) == text
    for sentence in (f"not {text}; name {text} instead", f'"{text}": write another one.'):
        assert sentence_without_secrets(sentence, None) == sentence
        assert sentence_without_secrets(sentence, text) == sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "the bucket nix at http://a:9000 has user alice@example.org",
        "the server minio-1:9000/x has no bucket nix",
        "minio-1:9000/nix-cache and minio-2:9000 are of alice@example.org",
    ],
)
def test_an_address_and_a_later_name_are_no_login(sentence: str) -> None:
    assert sentence_without_secrets(sentence, None) == sentence


@given(source=random)
@settings(some, max_examples=300)
def test_a_key_that_begins_like_a_port_is_not_shown(source: Random) -> None:
    secret = f"9000/{base64_of(source, 64)[5:]}=="
    assert sentence_without_secrets(f"minio-1:{secret} is none", None) == "minio-1:... is none"


def test_what_hides_a_secret_still_says_which_one() -> None:
    secret = SecretKey.generate("cache.test-1").to_nix()
    assert said({"signingKeys": [secret]}).startswith('signingKeys is "cache.test-1:...": write ')
    builder = {"name": "here", "local": True, "signingKey": secret}
    assert said({"builders": [builder]}) == (
        'builders[0].signingKey is "cache.test-1:...": write the name of a key, one of signingKeys'
    )
    assert said({"endpoint": "https://root:hunter2@minio.test:9000"}) == (
        'endpoint is "https://...@minio.test:9000": write scheme, host and port only, and nothing '
        "else"
    )
    unknown = said({"builders": [{**FAR, secret: "x"}]})
    assert secret not in unknown
    assert "is no setting of this program" in said({secret: "x"})
    assert secret not in said({secret: "x"})


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"endpoint": "https://cache-1:9000/nix-cache"}, '"https://cache-1:9000/nix-cache"'),
        ({"publicUrl": "https://cache.test:8443/nix?x=1"}, '"https://cache.test:8443/nix?x=1"'),
        ({"builders": [{**FAR, "host": "fd00::z"}]}, '"fd00:..."'),
        ({"builders": [{**FAR, "host": "builder-1:2222"}]}, '"builder-1:2222"'),
        ({"builders": [{**FAR, "host": "fd00::7:1:2:3:4:5:6"}]}, '"fd00::7:1:2:3:4:5:6"'),
        ({"caCertificateFile": "/home/Bob/2026/Projects/Cache/Keys/ca.pem"}, "/Keys/ca.pem"),
        ({"bucket": "GK3515373e4c851ebaad366558"}, '"GK3515373e4c851ebaad366558"'),
        ({"upstreamKeys": ["x"]}, CACHE_NIXOS_ORG),
    ],
)
def test_what_is_no_secret_is_shown(changes: dict[str, object], shown: str) -> None:
    assert shown in said(changes)


def test_a_remedy_shows_no_secret_either() -> None:
    secret = SecretKey.generate("cache.test-1").to_nix()
    pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
    for value, text, hidden in (
        (secret, secret, secret.partition(":")[2]),
        (None, secret, secret.partition(":")[2]),
        (None, pem, "AAAA"),
        ("root:hunter2", "root:hunter2", "hunter2"),
        (None, "https://root:hunter2@minio.test", "hunter2"),
    ):
        message = str(SettingError("setting", value, f"not {text}; append {text} to it"))
        assert hidden not in message
    assert str(SettingError("setting", None, f"write {CACHE_NIXOS_ORG}")).endswith(CACHE_NIXOS_ORG)


def test_the_signature_of_a_url_is_not_shown() -> None:
    signed = "https://minio.test/nix-cache?X-Amz-Expires=600&X-Amz-Signature=c4n4ry"
    assert "c4n4ry" not in refusal(publicUrl=signed)
