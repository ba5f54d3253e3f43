"""The settings that name signing keys and adopt existing ones."""

from __future__ import annotations

import base64
import json
from urllib.parse import urlsplit

import pulumi
import pytest

from formats.signing import SecretKey
from program.settings.reader import SettingError
from program.settings.stack import load, parse
from tests.unit.configuration import configuration

HOST = "s3.homelab.local"
CDN = "https://cdn.example.org/nix"


def names(*known: str, **changes: object) -> tuple[str, ...]:
    """Return the names that a stack's keys have, whose clients trust those of `known` already."""
    return parse(configuration(**changes)).signing_keys.settle(known).names


def refused(**changes: object) -> str:
    """Return what the settings are refused with."""
    with pytest.raises(SettingError) as error:
        names(**changes)
    return str(error.value)


def host_of(changes: dict[str, object]) -> str:
    """Return the host of the address that `changes` are about."""
    return urlsplit(str(changes.get("publicUrl") or changes["endpoint"])).hostname or ""


def test_the_host_of_the_public_url_names_the_keys_of_a_first_deployment() -> None:
    assert names(signingKeys=["{host}-1", "{host}-2"]) == (f"{HOST}-1", f"{HOST}-2")
    assert names(publicUrl=CDN) == ("cdn.example.org-1",)


def test_keys_outlive_the_host_that_they_are_named_after() -> None:
    assert names(f"{HOST}-1", publicUrl=CDN) == (f"{HOST}-1",)
    assert names(f"{HOST}-1", endpoint="https://another:9000") == (f"{HOST}-1",)
    assert names(f"{HOST}-1", publicUrl=CDN, signingKeys=[f"{HOST}-1"]) == (f"{HOST}-1",)
    rotated = names(f"{HOST}-1", publicUrl=CDN, signingKeys=["{host}-1", "{host}-2"])
    assert rotated == (f"{HOST}-1", f"{HOST}-2")


def test_the_domain_of_a_foreign_key_is_not_taken_for_the_host() -> None:
    known = ("old.example.org-7", f"{HOST}-1")
    changes = {"signingKeyDomains": ["old.example.org"], "publicUrl": CDN}
    keys = names(*known, signingKeys=["old.example.org-7", "{host}-1", "{host}-2"], **changes)
    assert keys == (*known, f"{HOST}-2")


def test_the_unset_setting_means_the_keys_that_there_are() -> None:
    known = (f"{HOST}-2", f"{HOST}-3")
    assert names(*known) == known


def test_the_new_host_may_name_a_new_key() -> None:
    keys = [f"{HOST}-1", "cdn.example.org-1"]
    assert names(f"{HOST}-1", publicUrl=CDN, signingKeys=keys) == tuple(keys)


def test_keys_are_given_oldest_first() -> None:
    assert names(signingKeys=[f"{HOST}-1", f"{HOST}-3"]) == (f"{HOST}-1", f"{HOST}-3")
    message = refused(signingKeys=[f"{HOST}-3", f"{HOST}-1"])
    assert message.startswith(f'signingKeys is "{HOST}-1": it stands after {HOST}-3')


def test_a_key_named_twice_is_refused_however_it_is_written() -> None:
    assert "once" in refused(signingKeys=["{host}-1", f"{HOST}-1"])


def test_each_domain_counts_for_itself() -> None:
    keys = ["old.example.org-7", f"{HOST}-1"]
    assert names(signingKeys=keys, signingKeyDomains=["old.example.org"]) == tuple(keys)


def test_the_last_key_cannot_be_removed() -> None:
    message = refused(signingKeys=[])
    assert message.startswith("signingKeys is []: a cache has at least one key")
    assert f"{HOST}-1" in message


def test_a_domain_that_is_not_the_caches_host_has_to_be_allowed() -> None:
    message = refused(signingKeys=["example.org-1"])
    assert message.startswith('signingKeys is "example.org-1": its domain is not the cache')
    assert "signingKeyDomains" in message


@pytest.mark.parametrize(
    "name", ["s3.homelab.local", "s3.homelab.local-", "-1", "s3.homelab.local-01", "a b-1", "x-1:"]
)
def test_a_key_name_that_cannot_be_rotated_is_refused(name: str) -> None:
    assert refused(signingKeys=[name]).startswith(f'signingKeys is "{name}": write the cache')


@pytest.mark.parametrize("domain", ["", "https://example.org", "example.org/", "-x"])
def test_a_domain_that_no_key_can_have_is_refused(domain: str) -> None:
    assert refused(signingKeyDomains=[domain]).startswith("signingKeyDomains is ")


@pytest.mark.parametrize(
    ("address", "domain"), [("::1", "0--1"), ("fd00::7", "fd00--7"), ("fe80::", "fe80--0")]
)
def test_an_ipv6_address_names_keys_with_hyphens(address: str, domain: str) -> None:
    endpoint = f"https://[{address}]:9000"
    assert names(endpoint=endpoint) == (f"{domain}-1",)
    assert names(endpoint=endpoint, signingKeys=[f"{domain}-1", "{host}-2"])[1] == f"{domain}-2"
    message = refused(endpoint=endpoint, signingKeys=["example.org-1"])
    assert f"name the key {domain}-1" in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"publicUrl": "https://my_cache.local"}, 'publicUrl is "https://my_cache.local"'),
        ({"publicUrl": "https://example.com./x"}, 'publicUrl is "https://example.com./x"'),
        ({"endpoint": "https://my_cache:9000"}, 'endpoint is "https://my_cache:9000"'),
        (
            {"endpoint": "https://my_cache", "signingKeys": ["my_cache-1"]},
            'endpoint is "https://my_cache"',
        ),
    ],
)
def test_a_host_that_names_no_key_is_told_by_its_setting_and_the_remedy_works(
    changes: dict[str, object], told: str
) -> None:
    message = refused(**changes)
    assert message == (
        f"{told}: no key can be named after its host; list a domain in signingKeyDomains, such as "
        "example.org, and name a key after it in signingKeys, such as example.org-1"
    )
    followed = {**changes, "signingKeyDomains": ["example.org"], "signingKeys": ["example.org-1"]}
    assert names(**followed) == ("example.org-1",)
    # Nor does what is told of half of it lead back.
    half = refused(**{**followed, "signingKeyDomains": []})
    assert half.endswith(
        "its domain is not the cache's host, " + host_of(changes) + "; list its "
        "domain in signingKeyDomains"
    )
    assert refused(**changes | {"signingKeys": []}).endswith("name one, such as example.org-1")


def test_a_host_that_names_no_key_leaves_the_keys_that_there_are() -> None:
    assert names(f"{HOST}-1", publicUrl="https://my_cache.local") == (f"{HOST}-1",)


def test_keys_are_adopted_by_their_names() -> None:
    first, second = SecretKey.generate(f"{HOST}-1"), SecretKey.generate(f"{HOST}-2")
    settings = parse(
        configuration(
            signingKeys=[f"{HOST}-1", f"{HOST}-2"],
            adoptedSigningKeys=f"\n{first.to_nix()}\r\n{second.to_nix()}\n",
        )
    )
    assert settings.signing_keys.settle(()).adopted == {
        f"{HOST}-1": first.to_nix(),
        f"{HOST}-2": second.to_nix(),
    }
    assert first.to_nix() not in repr(settings)


def adopted(*keys: str) -> str:
    return "\n".join(SecretKey.generate(name).to_nix() for name in keys)


def test_an_adopted_key_keeps_the_name_that_it_has() -> None:
    """As in the NixOS wiki's page on binary caches: its domain alone; others name a cache."""
    for name in ("binarycache.example.com", "mycache", "my_cache", "me@host/a"):
        given = {"signingKeys": [name], "signingKeyDomains": [name]}
        assert names(**given, adoptedSigningKeys=adopted(name)) == (name,)
        # It is rotated by a new one, and kept without its text.
        rotated = {**given, "signingKeys": [name, f"{name}-1"]}
        assert names(name, **rotated) == (name, f"{name}-1")
        assert "it stands after" in refused(
            **rotated | {"signingKeys": [f"{name}-1", name]}, adoptedSigningKeys=adopted(name)
        )
        # Nor is it lost where the setting is not there, and the outputs do not know it.
        kept = parse(configuration(**given)).signing_keys
        assert kept.settle((), [name]).names == (name,)
        assert names(name, signingKeys=[name]) == names(name) == (name,)
    assert names(signingKeys=[HOST], adoptedSigningKeys=adopted(HOST)) == (HOST,)


def test_no_new_key_is_called_by_a_domain_alone() -> None:
    message = refused(signingKeys=["mycache"], signingKeyDomains=["mycache"])
    assert message == (
        'signingKeys is "mycache": write the cache\'s domain, a hyphen and an integer, such as '
        "s3.homelab.local-1, or give the key of this name, if there is one, in adoptedSigningKeys"
    )
    message = refused(signingKeys=["mycache"], adoptedSigningKeys=adopted("mycache"))
    assert message == (
        'signingKeys is "mycache": its domain is not the cache\'s host, s3.homelab.local; list its '
        "domain in signingKeyDomains"
    )


def test_a_builder_signs_with_an_adopted_key_by_its_name() -> None:
    builder = {"name": "a", "local": True, "signingKey": "mycache"}
    (found,) = parse(configuration(builders=[builder])).builders
    assert found.signing_key == "mycache"


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
        (
            SecretKey.generate("example.org-1").to_nix(),
            "none of signingKeys; take its line out, or add the name there",
        ),
        (f"{KEY.to_nix()}\n{SecretKey.generate(KEY.name).to_nix()}", "line 2 has the name"),
    ],
    ids=["words", "no base64", "cut short", "public", "mismatch", "unnamed", "twice"],
)
def test_what_cannot_be_adopted_is_refused_without_showing_any_of_it(
    text: str, reason: str
) -> None:
    message = refused(adoptedSigningKeys=text)
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


def test_what_is_marked_secret_and_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine hides it in the settings' file alone."""
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", told.append)
    prefix = f"{pulumi.get_project()}:"
    values = {f"{prefix}{name}": value for name, value in configuration().items()}
    monkeypatch.setenv("PULUMI_CONFIG", json.dumps(values))
    try:
        pulumi.runtime.set_all_config(values, [f"{prefix}bucket", f"{prefix}minioPassword"])
        load()
    finally:
        pulumi.runtime.set_all_config({}, [])
    (sentence,) = told
    assert sentence.startswith("bucket is marked secret, and is shown all the same")
