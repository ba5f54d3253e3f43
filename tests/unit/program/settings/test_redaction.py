"""What messages show of settings: no secret that was put into the wrong one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.signing import SecretKey
from program.checks import key_rotation
from program.checks.recorded import Recorded
from program.settings.reader import SettingError
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


def shows(message: str, secret: str) -> bool:
    """Tell whether a message has a part of a secret that is worth something."""
    escaped = json.dumps(secret)[1:-1]
    return any(
        text[start : start + 8] in message
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
@some
def test_a_login_in_a_url_is_not_shown(setting: str, password: str) -> None:
    for text in (
        f"https://root:{password}@minio.test:9000",
        f"https://{password}@minio.test/nix-cache",
        f"root:{password}@minio.test",
    ):
        assert not shows(said(WRONG[setting](text)), password)


@pytest.mark.parametrize("setting", WRONG)
@pytest.mark.parametrize(
    "secret",
    [
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY0",
        "7d37d093435a41f2aab8f13c19ba067d9776c90215f56614adad6ece597dbb34",
        SecretKey.generate("a").to_nix().removeprefix("a:"),
    ],
    ids=["of AWS and MinIO", "of Garage and R2", "of Nix, without its name"],
)
def test_a_secret_without_a_name_is_not_shown(setting: str, secret: str) -> None:
    message = said(WRONG[setting](secret))
    # What is taken for a user's name is the server's to refuse.
    assert secret not in message


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
