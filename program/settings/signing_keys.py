"""The settings that name signing keys and adopt existing ones.

Which names they mean is settled by the first deployment: a key outlives the host that it is named
after, since clients trust it by its name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from formats.error import FormatError
from formats.keys import KeyName, is_given_domain, is_key_domain
from formats.signing import SecretKey
from program.settings.reader import SettingError, SettingReader

DEFAULT = ("{host}-1",)
"""What stands in `Pulumi.yaml`: one key, named after the host at the first deployment."""


@dataclass(frozen=True)
class SigningKeys:
    """The keys of a stack, as its settings and its past have settled them."""

    names: tuple[str, ...]
    """Oldest first; the last one signs."""
    adopted: Mapping[str, str] = field(repr=False)
    """Secret keys that exist already, by name."""


@dataclass(frozen=True)
class SigningKeySettings:
    """What the settings say of signing keys. `{host}` in a name stands for a host."""

    names: tuple[str, ...]
    domains: tuple[str, ...]
    """Domains that keys may be named after, besides the host."""
    host: str
    """The public URL's host, as a key's name can have it; some hosts no name can have."""
    given_host: tuple[str, str]
    """The setting that has the host, and its value."""
    adopted: Mapping[str, str] = field(repr=False)
    """Secret keys that exist already, by name."""

    def settle(self, known: Sequence[str], kept: Collection[str] = ()) -> SigningKeys:
        """Return the keys that are meant.

        Args:
            known: the names that clients trust since the last deployment, oldest first. Unset, the
                setting means these, whatever the host is called now.
            kept: those that the state has. A key that is there may have a name without an integer,
                which no new one gets.

        Raises:
            SettingError: a name is none that a key of this stack can have.
        """
        names = known if self.names == DEFAULT and known else self.names
        settled = self._settled(known)
        named = tuple(name.replace("{host}", settled) for name in names)
        hosts = set() if self._names_none else {self.host, settled}
        old = {KeyName.parse(name).domain for name in known}
        self._check(named, {*hosts, *old, *self.domains}, {*known, *kept, *self.adopted})
        for name in self.adopted:
            if name not in named:
                raise SettingError(
                    "adoptedSigningKeys",
                    None,
                    f"a key of it is named {name}, which is none of signingKeys; "
                    "take its line out, or add the name there",
                )
        return SigningKeys(named, self.adopted)

    def passed_over(self, known: Sequence[str]) -> str | None:
        """Return the name that the list has, where it means more keys than that one, or None.

        Written out, the default cannot be told from a list that is unset.

        Args:
            known: as `settle`.
        """
        name = DEFAULT[0].replace("{host}", self._settled(known))
        return name if self.names == DEFAULT and name in known and len(known) > 1 else None

    def _settled(self, known: Sequence[str]) -> str:
        """Return what `{host}` stands for."""
        old = (KeyName.parse(name).domain for name in known)
        return next((domain for domain in old if domain not in self.domains), self.host)

    @property
    def _names_none(self) -> bool:
        """Whether no key can be named after the host."""
        return not is_key_domain(self.host)

    def _check(self, names: Sequence[str], domains: set[str], there: set[str]) -> None:
        newest: dict[str, KeyName] = {}
        for name in names:
            key = self._parsed(name, there)
            if key.domain not in domains:
                raise self._of_another_domain(key)
            before = newest.get(key.domain)
            if before is not None and before >= key:
                raise SettingError(
                    "signingKeys",
                    str(key),
                    f"it stands after {before}; name each key once, and a newer one with a higher "
                    "integer",
                )
            newest[key.domain] = key

    def _parsed(self, name: str, there: set[str]) -> KeyName:
        remedy = "write the cache's domain, a hyphen and an integer, such as s3.homelab.local-1"
        try:
            key = KeyName.parse(name)
            if key.has_number or name in there:
                return key
            remedy += ", or give the key of this name, if there is one, in adoptedSigningKeys"
        except FormatError:
            pass
        if self._names_none and name.startswith(self.host):
            raise self._of_no_domain()
        raise SettingError("signingKeys", name, remedy)

    def _of_no_domain(self) -> SettingError:
        return SettingError(
            *self.given_host,
            "no key can be named after its host; list a domain in signingKeyDomains, such as "
            "example.org, and name a key after it in signingKeys, such as example.org-1",
        )

    def _of_another_domain(self, key: KeyName) -> SettingError:
        if self._names_none and key.domain == self.host:
            return self._of_no_domain()
        other = f"name the key {self.host}-{key.number}, or "
        return SettingError(
            "signingKeys",
            str(key),
            f"its domain is not the cache's host, {self.host}; "
            f"{other if key.has_number and not self._names_none else ''}list its domain in "
            "signingKeyDomains",
        )


def read_signing_keys(
    reader: SettingReader, host: str, given_host: tuple[str, str]
) -> SigningKeySettings:
    """Return what the settings say of signing keys.

    Args:
        reader: has the settings.
        host: the public URL's.
        given_host: the setting that has it, and its value.
    """
    names, domains = reader.texts("signingKeys"), reader.texts("signingKeyDomains")
    domain = _domain_of(host)
    if not names:
        name = f"{domain if is_key_domain(domain) else 'example.org'}-1"
        raise SettingError(
            "signingKeys", [], f"a cache has at least one key; name one, such as {name}"
        )
    for given in domains:
        if not is_given_domain(given):
            raise SettingError(
                "signingKeyDomains", given, "write a domain only, such as cache.example.org"
            )
    return SigningKeySettings(
        names, domains, domain, given_host, _adopted(reader.text("adoptedSigningKeys"))
    )


def _domain_of(host: str) -> str:
    """Return a host as a key's name can have it: an IPv6 address has colons, and no name may."""
    if ":" not in host:
        return host
    name = host.replace(":", "-")
    return f"{'0' if name.startswith('-') else ''}{name}{'0' if name.endswith('-') else ''}"


def _adopted(text: str) -> dict[str, str]:
    """Return the secret keys of `text` by name; no message shows any part of one."""
    adopted: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            key = SecretKey.parse(line)
        except FormatError as error:
            raise SettingError(
                "adoptedSigningKeys",
                None,
                f"line {number} is no secret key: {error}; "
                "give the file that nix key generate-secret wrote",
            ) from None
        if key.name in adopted:
            raise SettingError(
                "adoptedSigningKeys",
                None,
                f"line {number} has the name of a key before it; give each name one key",
            )
        adopted[key.name] = key.to_nix()
    return adopted
