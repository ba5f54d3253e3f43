"""What machines are given to use the cache and to fill it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from formats.nix_conf import PATIENCE
from program.outputs.machines import (
    ClientConfiguration,
    credentials_file,
    modules_configuration,
    s3_substituter,
    substituter,
)
from program.settings.stack import parse
from tests.unit.configuration import PROJECT_ROOT, configuration, stack_file
from toolbox.certificates import make_authority

PUBLIC_KEY = "s3.homelab.local-1:MNdV1gE3P3pEpuQMOJC+Jdm7ccXyu3/6Pxcx3DbYYRA="


def test_the_modules_example_is_what_the_homelab_stack_puts_out() -> None:
    settings = parse(configuration(**stack_file("homelab")))
    client = ClientConfiguration(substituter(settings), [PUBLIC_KEY], settings.ca_certificate)
    keys = {builder.name: builder.s3_user for builder in settings.builders}
    example = json.loads((PROJECT_ROOT / "nix" / "example-cache.json").read_text())
    assert example == modules_configuration(settings, client, keys)


def test_the_modules_data_says_what_the_push_is_to_do() -> None:
    settings = parse(
        configuration(
            expire=False,
            compression="xz",
            compressionLevel=3,
            parallelism=2,
            upstreamKeys=[PUBLIC_KEY],
        )
    )
    client = ClientConfiguration(substituter(settings), [PUBLIC_KEY], None)
    data = modules_configuration(settings, client, {})
    assert data["push"] == {
        "endpoint": "https://s3.homelab.local",
        "region": "us-east-1",
        "bucket": "nix-cache",
        "renew": "no",
        "compression": "xz",
        "compression-level": 3,
        "parallelism": 2,
        "staging-limit": settings.staging_limit,
        "part-size": 67108864,
        "upstream-key": [PUBLIC_KEY],
        "trusted-key": [PUBLIC_KEY],
    }


def test_the_modules_data_gives_a_builders_pins_to_pushes_of_its_own() -> None:
    here = {"name": "here", "local": True, "pins": ["/nix/var/nix/profiles/keep"]}
    settings = parse(configuration(builders=[here]))
    client = ClientConfiguration(substituter(settings), [PUBLIC_KEY], None)
    data = modules_configuration(settings, client, {"here": "nix-cache-here"})
    assert data["builders"] == {
        "here": {"accessKeyId": "nix-cache-here", "pins": ["/nix/var/nix/profiles/keep"]}
    }


def test_the_lines_for_nix_conf_say_what_a_private_ca_needs_on_each_system() -> None:
    public = ClientConfiguration("https://s3.homelab.local/nix-cache", [PUBLIC_KEY], None)
    # Appended to a file whose last line has no end, they leave that line as it was.
    empty, *settings = public.nix_conf().splitlines()
    assert not empty
    assert [line.partition(" = ")[0] for line in settings] == [
        "extra-substituters",
        "extra-trusted-public-keys",
        "# Builds go on while a cache is away.",
        "fallback",
        "connect-timeout",
        "download-attempts",
    ]
    private = ClientConfiguration(public.substituter, [PUBLIC_KEY], "-----BEGIN CERTIFICATE-----")
    lines = private.nix_conf().splitlines()[1:]
    assert lines[:6] == settings
    assert all(line.startswith("# ") for line in lines[6:])
    systems = [line[4:].partition(": ")[0] for line in lines if line.startswith("#   ")]
    assert systems == ["Debian, Ubuntu", "Fedora, RHEL", "openSUSE", "Arch", "macOS"]
    assert "output caCertificate" in private.nix_conf()


def test_the_modules_data_holds_no_secret(tmp_path: Path) -> None:
    ca = make_authority(tmp_path).ca_file
    settings = parse(
        configuration(
            access="private",
            caCertificateFile=str(ca),
            builders=[{"name": "here", "local": True}],
        )
    )
    client = ClientConfiguration(substituter(settings), [PUBLIC_KEY], settings.ca_certificate)
    text = json.dumps(modules_configuration(settings, client, {"here": "nix-cache-here"}))
    assert settings.minio_password not in text
    assert "secret" not in text.lower()
    assert json.loads(text)["access"] == "private"


def test_an_address_of_version_6_stays_readable_in_the_url() -> None:
    assert "endpoint=https://[fd00::1]:9000&" in s3_substituter(
        "https://[fd00::1]:9000", "r", "b", "p"
    )


def test_a_region_cannot_add_parameters() -> None:
    assert s3_substituter("https://s3", "a&profile=b", "bucket", "p").count("&") == 2


def test_the_credentials_file_is_one_profile() -> None:
    assert credentials_file("nix-cache-reader", "id", "a/b+c=") == (
        "[nix-cache-reader]\naws_access_key_id = id\naws_secret_access_key = a/b+c=\n"
    )


@pytest.mark.parametrize("text", ["nix_conf", "nixos_configuration", "flake_nix_config"])
def test_every_text_adds_to_the_defaults_and_trusts_every_key(text: str) -> None:
    keys = [PUBLIC_KEY, PUBLIC_KEY.replace("local-1", "local-2")]
    shown = getattr(ClientConfiguration("https://s3.homelab.local/nix-cache", keys, None), text)()
    assert all(key in shown for key in keys)
    assert "extra-substituters" in shown
    assert "extra-trusted-public-keys" in shown
    assert "pki" not in shown


@pytest.mark.parametrize("text", ["nix_conf", "nixos_configuration", "flake_nix_config"])
def test_every_text_says_how_long_nix_waits(text: str) -> None:
    """That Nix then does it is in `tests/system/test_away.py`."""
    client = ClientConfiguration("https://s3.homelab.local/nix-cache", [PUBLIC_KEY], None)
    lines = getattr(client, text)().splitlines()
    said = [line.strip().rstrip(";").removeprefix("nix.settings.") for line in lines]
    for name, value in PATIENCE.items():
        assert f"{name} = {json.dumps(value)}" in said
