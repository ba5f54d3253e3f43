"""What a machine needs to use the cache, as texts to paste. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClientConfiguration:
    """How to reach and trust a cache. Every text merges with a machine's defaults."""

    substituter: str
    """The URL that clients read from."""
    public_keys: Sequence[str]
    """The keys that clients trust, in Nix's format."""
    ca_certificate: str | None
    """PEM text of the private CA; None where a public one signed the server's certificate."""

    def nix_conf(self) -> str:
        """Return the lines for `/etc/nix/nix.conf` (Nix manual, `nix.conf`)."""
        return (
            f"extra-substituters = {self.substituter}\n"
            f"extra-trusted-public-keys = {' '.join(self.public_keys)}\n"
        )

    def nixos_configuration(self) -> str:
        """Return a NixOS module for `configuration.nix` or its `imports`."""
        keys = "".join(f'    "{key}"\n' for key in self.public_keys)
        trust = ""
        if self.ca_certificate is not None:
            body = "".join(f"    {line}\n" for line in self.ca_certificate.strip().splitlines())
            trust = f"  security.pki.certificates = [ ''\n{body}  '' ];\n"
        return (
            "{\n"
            f'  nix.settings.extra-substituters = [ "{self.substituter}" ];\n'
            f"  nix.settings.extra-trusted-public-keys = [\n{keys}  ];\n"
            f"{trust}"
            "}\n"
        )

    def flake_nix_config(self) -> str:
        """Return a flake's `nixConfig` attribute (Nix manual, `nix flake`)."""
        keys = " ".join(f'"{key}"' for key in self.public_keys)
        return (
            "nixConfig = {\n"
            f'  extra-substituters = [ "{self.substituter}" ];\n'
            f"  extra-trusted-public-keys = [ {keys} ];\n"
            "};\n"
        )
