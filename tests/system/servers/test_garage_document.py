"""The commands of docs/servers.md for Garage, run as a reader would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.system.conftest import builder_settings
from tests.system.stack import CHECKOUT, Stack
from toolbox.servers.garage import Garage
from toolbox.servers.s3_server import running
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = [pytest.mark.system, pytest.mark.by_request]


def commands(program: str) -> list[list[str]]:
    """Return the words of each command of a program, in the section about Garage."""
    _, _, section = (CHECKOUT / "docs" / "servers.md").read_text().partition("### Garage\n")
    lines = re.findall(rf"^\$ {program} (.*?)(?: +#.*)?$", section, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_what_the_document_says_for_garage_makes_a_cache_that_is_pushed_to(
    engine: Mapping[str, str], tmp_path: Path, builder: ThrowawayBuilder
) -> None:
    reason = Garage.unavailable()
    if reason is not None:
        pytest.skip(f"no Garage: {reason}")
    with running(Garage(tmp_path / "garage")) as server:
        for words in commands("garage"):
            # The reader's own name is another one.
            server.garage(*(word.replace("cache.homelab.local", "localhost") for word in words))
        keys = {name: key(server, name) for name in ("deployer", "nixbuilder")}
        answers = {
            "endpoint": server.endpoint,
            "publicUrl": server.web_url,
            "minioUser": keys["deployer"][0],
            "minioPassword": keys["deployer"][1],
            "givenUserSecrets": ":".join(keys["nixbuilder"]),
        }
        stack = Stack(engine, tmp_path / "stack")
        for words in commands("pulumi"):
            name = next(word for word in words[2:] if not word.startswith("--"))
            value = [] if "--secret" in words else [answers.get(name, words[-1])]
            options = [word for word in words if word.startswith("--")]
            stack.run(
                "config", "set", *options, name, *value, text=answers.get(name, "")
            ).succeeded()
        closure = builder.make_closure(3, 300_000, seed=2, name="document")
        machine = builder_settings(builder, closure)
        stack.set(
            caCertificateFile=str(server.ca_file),
            sshPrivateKey=builder.private_key,
            protect=False,
            upstreamKeys=[],
            signingKeys=["cache.test-1"],
            signingKeyDomains=["cache.test"],
            builders=[{**machine, "accessKeyId": keys["nixbuilder"][0]}],
        )
        (builder.root / "etc" / "private-ca.pem").write_bytes(server.ca_file.read_bytes())
        stack.up().succeeded()
        assert not stack.changes("--refresh")
        stack.operate("empty", "--stack", stack.name, text="nix-cache\n").succeeded()
        stack.destroy().succeeded()


def key(server: Garage, name: str) -> tuple[str, str]:
    """Return a key's id and secret, as its owner has Garage show them."""
    shown = server.garage("key", "info", "--show-secret", name)
    found = [re.search(rf"{what}: +(\S+)", shown) for what in ("Key ID", "Secret key")]
    assert all(found), shown
    first, second = (match[1] for match in found if match)
    return first, second
