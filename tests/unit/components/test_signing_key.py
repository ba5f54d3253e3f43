"""SigningKey's provider, as plain Python."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pulumi.runtime.rpc import UNKNOWN

from components.signing_key import SigningKeyProvider
from formats.keys import PublicKey
from formats.signing import SecretKey

NAME = "s3.homelab.local-1"


def minted(provider: SigningKeyProvider, **props: str) -> dict[str, Any]:
    """Return what `provider` makes of `props`."""
    outs = provider.create({"key_name": NAME, **props}).outs
    assert outs is not None
    return outs


def test_create_mints_a_pair_in_nixs_formats() -> None:
    outs = minted(SigningKeyProvider())
    key = SecretKey.parse(outs["secret_key"])
    assert key.name == outs["key_name"] == NAME
    assert PublicKey.parse(outs["public_key"]) == key.public_key


def test_two_keys_are_never_the_same() -> None:
    provider = SigningKeyProvider()
    assert minted(provider)["secret_key"] != minted(provider)["secret_key"]


def test_create_adopts_a_key_that_exists() -> None:
    key = SecretKey.generate(NAME)
    outs = minted(SigningKeyProvider(), adopted_secret_key=key.to_nix() + "\n")
    assert outs["secret_key"] == key.to_nix()


@pytest.mark.parametrize("name", ["s3.homelab.local", "", None, "-1", "a b-1"])
def test_check_refuses_a_name_without_domain_or_integer(name: object) -> None:
    (failure,) = SigningKeyProvider().check({}, {"key_name": name}).failures
    assert failure.property == "key_name"


def test_a_name_without_an_integer_is_an_adopted_keys_and_stays_when_the_setting_goes() -> None:
    provider, key = SigningKeyProvider(), SecretKey.generate("binarycache.example.com")
    named = {"key_name": key.name}
    adopted = {**named, "adopted_secret_key": key.to_nix()}
    assert provider.check({}, adopted).failures == []
    assert provider.check(adopted, named).failures == []
    assert [failure.property for failure in provider.check({}, named).failures] == ["key_name"]


def test_check_refuses_an_adopted_key_that_is_none_without_showing_it() -> None:
    other = SecretKey.generate("other-1")
    mismatched = base64.b64encode(bytes(32) + other.public_key.data).decode()
    for text in (
        "hunter2",
        str(SecretKey.generate(NAME).public_key),
        other.to_nix(),
        f"{NAME}:{mismatched}",
    ):
        news = {"key_name": NAME, "adopted_secret_key": text}
        (failure,) = SigningKeyProvider().check({}, news).failures
        assert failure.property == "adopted_secret_key"
        assert text not in failure.reason
        assert text.partition(":")[2] == "" or text.partition(":")[2] not in failure.reason


def test_diff_replaces_on_another_name_and_on_nothing_else() -> None:
    provider = SigningKeyProvider()
    outs = minted(provider)
    assert not provider.diff(NAME, outs, {"key_name": NAME}).changes
    assert not provider.diff(NAME, outs, {"key_name": NAME, "__provider": "other code"}).changes
    assert provider.diff(NAME, outs, {"key_name": "s3.homelab.local-2"}).replaces == ["key_name"]


def test_diff_lets_an_adopted_key_leave_the_settings_but_not_change() -> None:
    provider = SigningKeyProvider()
    key = SecretKey.generate(NAME)
    adopted = {"key_name": NAME, "adopted_secret_key": key.to_nix()}
    outs = minted(provider, adopted_secret_key=key.to_nix())
    assert not provider.diff(NAME, outs, adopted).changes
    assert not provider.diff(NAME, outs, {"key_name": NAME}).changes
    changed = {**adopted, "adopted_secret_key": SecretKey.generate(NAME).to_nix()}
    assert provider.diff(NAME, outs, changed).replaces == ["adopted_secret_key"]


def test_what_a_preview_cannot_know_yet_is_neither_refused_nor_a_change() -> None:
    provider = SigningKeyProvider()
    outs = minted(provider)
    unknown = {"key_name": NAME, "adopted_secret_key": UNKNOWN}
    assert provider.check({}, unknown).failures == []
    assert provider.check({}, {"key_name": UNKNOWN}).failures == []
    assert not provider.diff(NAME, outs, unknown).changes


def test_deleting_is_forgetting() -> None:
    SigningKeyProvider().delete(NAME, minted(SigningKeyProvider()))


def test_update_and_read_carry_the_minted_key_forward() -> None:
    provider = SigningKeyProvider()
    outs = minted(provider)
    assert provider.update(NAME, outs, {"key_name": NAME}).outs == outs
    read = provider.read(NAME, outs)
    assert (read.id, read.outs, read.inputs) == (NAME, outs, {"key_name": NAME})
