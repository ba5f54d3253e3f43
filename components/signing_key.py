"""SigningKey: the key that signs the cache's narinfos, minted once and kept in the state.

A dynamic provider on PyNaCl. The state refers to its class by module and name, so both stay where
they are for as long as stacks exist.
"""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)
from pulumi.runtime.rpc import UNKNOWN

from formats.error import FormatError
from formats.keys import KeyName
from formats.signing import SecretKey


def _outputs(key: SecretKey) -> dict[str, str]:
    return {
        "key_name": key.name,
        "public_key": str(key.public_key),
        "secret_key": key.to_nix(),
    }


def _parse_adopted(name: str, text: str) -> SecretKey:
    key = SecretKey.parse(text)
    if key.name != name:
        raise FormatError("the adopted key's own name is another one")
    return key


class SigningKeyProvider(ResourceProvider):
    """Mints a key once, and from then on carries it forward whatever else changes.

    Inputs: `key_name`, and `adopted_secret_key` where a key made by `nix key generate-secret`
    takes the place of a new one. Outputs: `key_name`, `public_key`, `secret_key`.
    """

    def __init__(self) -> None:
        """Make the provider, without any state."""
        # Pickled into the state with the resource: it has nothing to remember.

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Refuse to make a key under a name without an integer, and an adopted key that is none."""
        failures: list[CheckFailure] = []
        name, adopted = news.get("key_name"), news.get("adopted_secret_key")
        if UNKNOWN in (name, adopted):
            # A preview that cannot know them yet; the deployment asks again.
            return CheckResult(news, failures)
        try:
            parsed = KeyName.parse(name if isinstance(name, str) else "")
            # One that is there keeps the name that it came with.
            if not (parsed.has_number or adopted or olds.get("key_name") == name):
                raise FormatError("a new key's name is a domain, a hyphen and an integer")
        except FormatError as error:
            failures.append(CheckFailure("key_name", f"{error}, such as s3.homelab.local-1"))
        if isinstance(adopted, str) and adopted and not failures:
            try:
                _parse_adopted(str(name), adopted)
            except FormatError as error:
                failures.append(
                    CheckFailure(
                        "adopted_secret_key",
                        f"{error}; give what nix key generate-secret --key-name {name} wrote",
                    )
                )
        return CheckResult(news, failures)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Adopt the key that is given, or mint one."""
        name, adopted = props["key_name"], props.get("adopted_secret_key")
        key = _parse_adopted(name, adopted) if adopted else SecretKey.generate(name)
        return CreateResult(name, _outputs(key))

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Replace on another name or another adopted key, and on nothing else.

        An adopted key that leaves the settings stays in the state: it is this stack's key now.
        """
        replaces = []
        if olds.get("key_name") != news.get("key_name"):
            replaces.append("key_name")
        adopted = news.get("adopted_secret_key")
        if adopted and adopted != UNKNOWN and str(adopted).strip() != olds.get("secret_key"):
            replaces.append("adopted_secret_key")
        return DiffResult(changes=bool(replaces), replaces=replaces, delete_before_replace=False)

    def update(self, _id: str, olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Carry the minted key forward; nothing of it can be updated."""
        return UpdateResult({name: olds[name] for name in ("key_name", "public_key", "secret_key")})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Return the key as the state holds it: there is nowhere else to look."""
        return ReadResult(id_, props, inputs={"key_name": props["key_name"]})

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Forget the key; it exists in the state only."""


class SigningKey(Resource, module="nixcache", name="SigningKey"):
    """An Ed25519 key in Nix's formats (Nix manual, `nix key generate-secret`)."""

    key_name: pulumi.Output[str]
    """The key's name, as it stands before the colon."""
    public_key: pulumi.Output[str]
    """`name:base64`, for `trusted-public-keys`."""
    secret_key: pulumi.Output[str]
    """`name:base64`, secret: what `nix store sign --key-file` and `secret-key=` read."""

    def __init__(
        self,
        name: str,
        key_name: pulumi.Input[str],
        adopted_secret_key: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare a signing key.

        Args:
            name: the resource's name.
            key_name: the cache's domain, a hyphen and an integer: `s3.homelab.local-1`; an adopted
                key's own name.
            adopted_secret_key: a key that exists already, in Nix's format; it must have that name.
            opts: resource options of the caller.
        """
        super().__init__(
            SigningKeyProvider(),
            name,
            {
                "key_name": key_name,
                "adopted_secret_key": (
                    None if adopted_secret_key is None else pulumi.Output.secret(adopted_secret_key)
                ),
                "public_key": None,
                "secret_key": None,
            },
            pulumi.ResourceOptions.merge(
                opts,
                pulumi.ResourceOptions(
                    additional_secret_outputs=["secret_key", "adopted_secret_key"]
                ),
            ),
        )
