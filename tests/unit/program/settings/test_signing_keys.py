"""The settings that name signing keys and adopt existing ones."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pulumi
import pytest

from formats.signing import SecretKey
from program.settings.reader import SettingError
from program.settings.stack import load, parse
from tests.unit.configuration import configuration, refusal

HOST = "s3.homelab.local"


def names(signing_keys: Sequence[str], **changes: object) -> tuple[str, ...]:
    """Return the names that a stack with `signing_keys` has."""
    return parse(configuration(signingKeys=signing_keys, **changes)).signing_keys


def test_the_host_of_the_public_url_names_the_keys() -> None:
    assert names(["{host}-1", "{host}-2"]) == (f"{HOST}-1", f"{HOST}-2")
    assert parse(configuration(publicUrl="https://cdn.example.org/nix")).signing_keys == (
        "cdn.example.org-1",
    )


def test_keys_are_given_oldest_first() -> None:
    assert names([f"{HOST}-1", f"{HOST}-3"]) == (f"{HOST}-1", f"{HOST}-3")
    message = refusal(signingKeys=[f"{HOST}-3", f"{HOST}-1"])
    assert message.startswith(f'signingKeys is "{HOST}-1": it stands after {HOST}-3')


def test_a_key_named_twice_is_refused_however_it_is_written() -> None:
    assert "once" in refusal(signingKeys=["{host}-1", f"{HOST}-1"])


def test_each_domain_counts_for_itself() -> None:
    keys = ["old.example.org-7", f"{HOST}-1"]
    assert names(keys, signingKeyDomains=["old.example.org"]) == tuple(keys)


def test_the_last_key_cannot_be_removed() -> None:
    message = refusal(signingKeys=[])
    assert message.startswith("signingKeys is []: a cache has at least one key")
    assert f"{HOST}-1" in message


def test_a_domain_that_is_not_the_caches_host_has_to_be_allowed() -> None:
    message = refusal(signingKeys=["example.org-1"])
    assert message.startswith('signingKeys is "example.org-1": its domain is not the cache')
    assert "signingKeyDomains" in message


@pytest.mark.parametrize("domain", ["", "https://example.org", "example.org/", "-x"])
def test_a_domain_that_no_key_can_have_is_refused(domain: str) -> None:
    assert refusal(signingKeyDomains=[domain]).startswith("signingKeyDomains is ")


def test_a_host_that_can_name_no_key_asks_for_a_name() -> None:
    message = refusal(endpoint="https://[::1]:9000")
    assert message.startswith('signingKeys is "::1-1": write the cache')


def test_keys_are_adopted_by_their_names() -> None:
    first, second = SecretKey.generate(f"{HOST}-1"), SecretKey.generate(f"{HOST}-2")
    settings = parse(
        configuration(
            signingKeys=[f"{HOST}-1", f"{HOST}-2"],
            adoptedSigningKeys=f"\n{first.to_nix()}\r\n{second.to_nix()}\n",
        )
    )
    assert settings.adopted_signing_keys == {
        f"{HOST}-1": first.to_nix(),
        f"{HOST}-2": second.to_nix(),
    }
    assert first.to_nix() not in repr(settings)


KEY = SecretKey.generate(f"{HOST}-1")
SEED_OF_ANOTHER = base64.b64encode(bytes(32) + KEY.public_key.data).decode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("correct horse battery", "line 1 is no secret key"),
        (f"{HOST}-1:correct*horse*battery", "not base64"),
        (f"{KEY.to_nix()[:-8]}", "line 1 is no secret key"),
        (str(KEY.public_key), "this is a public key"),
        (f"{HOST}-1:{SEED_OF_ANOTHER}", "seed does not match its public half"),
        (SecretKey.generate("example.org-1").to_nix(), "none of signingKeys"),
        (f"{KEY.to_nix()}\n{SecretKey.generate(KEY.name).to_nix()}", "line 2 has the name"),
    ],
    ids=["words", "no base64", "cut short", "public", "mismatch", "unnamed", "twice"],
)
def test_what_cannot_be_adopted_is_refused_without_showing_any_of_it(
    text: str, reason: str
) -> None:
    message = refusal(adoptedSigningKeys=text)
    assert message.startswith("adoptedSigningKeys: ")
    assert reason in message
    for line in text.splitlines():
        shown = line.partition(":")[2] or line
        assert not [start for start in range(len(shown) - 7) if shown[start : start + 8] in message]


@pytest.mark.parametrize("setting", ["adoptedSigningKeys", "sshPrivateKey"])
def test_a_secret_that_stands_in_plain_text_is_refused(setting: str) -> None:
    values = configuration(**{setting: KEY.to_nix()})
    pulumi.runtime.set_all_config(
        {f"{pulumi.get_project()}:{name}": value for name, value in values.items()}
    )
    try:
        with pytest.raises(SettingError, match=f"^{setting}: stands in plain text") as error:
            load()
    finally:
        pulumi.runtime.set_all_config({})
    assert KEY.to_nix() not in str(error.value)
