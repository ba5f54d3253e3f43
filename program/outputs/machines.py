"""What machines need to use the cache and to fill it: texts to paste, and data for the modules.

Pure. `nix/client.nix` and `nix/builder.nix` are the modules that read the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from components.access import read_policy, write_policy
from formats.nix_conf import patience
from program.push_settings import push_settings
from program.settings.stack import Settings


def s3_substituter(endpoint: str, region: str, bucket: str, profile: str) -> str:
    """Return the URL of a private cache (Nix manual, "S3 Binary Cache Store").

    Args:
        endpoint: scheme, host and port of the server; some versions of Nix misread the latter two
            alone.
        region: the server's region.
        bucket: the bucket.
        profile: the section of AWS's credentials file to take.
    """
    parameters = {"endpoint": endpoint, "region": region, "profile": profile}
    return f"s3://{bucket}?{urlencode(parameters, safe=':/[]')}"


def substituter(settings: Settings) -> str:
    """Return the URL that clients of a stack read from."""
    if not settings.private:
        return settings.public_url
    return s3_substituter(
        str(settings.endpoint), settings.region, settings.bucket, settings.reader_profile
    )


def policies_to_give(settings: Settings) -> dict[str, str]:
    """Return what users that are made elsewhere have to be allowed, by the output's name, as JSON.

    They are IAM policies, for whoever is given them: what a server's own tool has in their place
    says the same in its own words.
    """
    if not settings.given_users:
        return {}
    texts = {"builderPolicy": write_policy(settings.bucket, None)}
    if settings.private:
        texts["readerPolicy"] = read_policy(settings.bucket, None)
    return {name: json.dumps(json.loads(text), indent=2) for name, text in texts.items()}


def retention_in_words(settings: Settings) -> str:
    """Return how long a stack's entries live, in one sentence."""
    if settings.retention_days is None:
        return "Entries never expire."
    return f"An entry expires {settings.retention_days} days after its last push."


def credentials_file(profile: str, access_key_id: str, secret_access_key: str) -> str:
    """Return AWS's credentials file with one section (AWS SDKs and Tools Reference Guide)."""
    return (
        f"[{profile}]\n"
        f"aws_access_key_id = {access_key_id}\n"
        f"aws_secret_access_key = {secret_access_key}\n"
    )


TRUSTING_A_CA = {
    "Debian, Ubuntu": (
        "cp ca.pem /usr/local/share/ca-certificates/nix-cache.crt && update-ca-certificates"
    ),
    "Fedora, RHEL": "cp ca.pem /etc/pki/ca-trust/source/anchors/nix-cache.pem && update-ca-trust",
    "openSUSE": "cp ca.pem /etc/pki/trust/anchors/nix-cache.pem && update-ca-certificates",
    "Arch": "trust anchor ca.pem",
    "macOS": (
        "cat /nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt ca.pem >/etc/nix/ca.pem, "
        "and NIX_SSL_CERT_FILE=/etc/nix/ca.pem in the daemon's plist"
    ),
}
"""How a system that is not NixOS trusts the private CA in the file `ca.pem`, as root.

Source: the systems' manuals; Nix's installer takes the system's bundle on Linux and a bundle of its
own on macOS (`scripts/nix-profile-daemon.sh.in`; manual, "Environment Variables").
"""


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
        """Return the lines that `/etc/nix/nix.conf` includes, or has (Nix manual, `nix.conf`).

        They begin with an empty one: appended to a file whose last line has no end, the first of
        them would be part of that.
        """
        trust = ""
        if self.ca_certificate is not None:
            # No setting adds a CA: `ssl-cert-file` takes the place of all others.
            steps = "".join(f"#   {name}: {step}\n" for name, step in TRUSTING_A_CA.items())
            trust = (
                "# A private CA signed the server's certificate. Save the output caCertificate as\n"
                f"# ca.pem, let the system trust it, and restart the Nix daemon:\n{steps}"
            )
        return (
            f"\nextra-substituters = {self.substituter}\n"
            f"extra-trusted-public-keys = {' '.join(self.public_keys)}\n"
            "# Builds go on while a cache is away.\n"
            f"{patience('{name} = {value}')}"
            f"{trust}"
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
            "  # Builds go on while a cache is away.\n"
            f"{patience('  nix.settings.{name} = {value};')}"
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
            "  # Builds go on while a cache is away.\n"
            f"{patience('  {name} = {value};')}"
            "};\n"
        )


def client_configuration(settings: Settings, public_keys: Sequence[str]) -> ClientConfiguration:
    """Return how clients of a stack reach and trust its cache."""
    return ClientConfiguration(substituter(settings), public_keys, settings.ca_certificate)


def modules_configuration(
    settings: Settings, client: ClientConfiguration, access_key_ids: Mapping[str, str]
) -> dict[str, object]:
    """Return what the NixOS modules read, as JSON values. It holds no secret.

    Args:
        settings: the stack's settings.
        client: how clients reach and trust the cache.
        access_key_ids: each builder's user on the S3 server, by the builder's name.
    """
    return {
        "access": settings.access,
        "substituter": client.substituter,
        "publicKeys": list(client.public_keys),
        "caCertificate": client.ca_certificate,
        "push": {**push_settings(settings), "trusted-key": list(client.public_keys)},
        "builders": {
            builder.name: {
                "accessKeyId": access_key_ids[builder.name],
                "pins": list(builder.pins),
            }
            for builder in settings.builders
        },
    }
