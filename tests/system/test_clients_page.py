"""What the clients' page says is typed: a machine then takes from the cache what it has not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

import pytest

from formats.signing import SecretKey
from program.outputs.machines import TRUSTING_A_CA, ClientConfiguration
from tests.system.cache_bucket import CacheBucket
from tests.system.stack import CHECKOUT
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

PAGE = (CHECKOUT / "docs" / "clients.md").read_text(encoding="utf-8")
SYSTEMS = "Debian, Fedora, any other system"
RESTART = "systemctl restart nix-daemon"
# The machine has no systemd.
START = """
nohup nix-daemon >/dev/null 2>&1 </dev/null &
for _ in $(seq 100); do
    nix --extra-experimental-features nix-command store info --store daemon && exit
    sleep 0.1
done
exit 1
"""


def section(title: str) -> str:
    """Return a section's text."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    """Return a section's blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


def including() -> list[str]:
    """Return the commands that let a machine's nix.conf include the cache's, but for the last."""
    commands = [line.removeprefix("# ") for line in blocks(SYSTEMS, "console")[0].splitlines()]
    assert commands.pop() == RESTART
    return commands


def shown(machine: ThrowawayBuilder, setting: str) -> list[str]:
    """Return what the machine's Nix has of a setting, word for word."""
    lines = machine.run("nix --extra-experimental-features nix-command show-config").stdout
    (value,) = re.findall(rf"^{setting} = ?(.*)$", lines, re.MULTILINE)
    return str(value).split()


@pytest.fixture(scope="module")
def bucket(minio: MinioServer) -> CacheBucket:
    return CacheBucket(minio, "nix-cache")


@pytest.fixture
def new_path(bucket: CacheBucket, builder: ThrowawayBuilder) -> Callable[[str], str]:
    """Push a closure of three paths by a name; return its top."""

    def push(name: str) -> str:
        closure = builder.make_closure(3, 3000, seed=90 + len(name), name=name)
        assert bucket.push(builder, closure).counts()["pushed"] == 3
        return closure

    return push


@pytest.fixture
def client(bucket: CacheBucket, second_builder: ThrowawayBuilder) -> Iterator[ThrowawayBuilder]:
    """A machine as Nix was installed, with what the stack puts out in the directory of a person."""
    url = f"{bucket.server.endpoint}/{bucket.name}"
    authority = bucket.server.ca_file.read_text()
    text = ClientConfiguration(url, [str(bucket.public_key)], authority).nix_conf()
    second_builder.run("cp -a /etc/nix/nix.conf /tmp/installed; cat >nix.conf", input=text)
    second_builder.run("cat >ca.pem", input=authority)
    yield second_builder
    second_builder.run("mv /tmp/installed /etc/nix/nix.conf")


def test_for_one_command_a_container_takes_the_settings_from_its_environment(
    client: ThrowawayBuilder, new_path: Callable[[str], str]
) -> None:
    (setting,) = re.findall(r'`(NIX_CONFIG="[^`]*")`', section("A container"))
    path = new_path("one-command")
    # The image has what the private authority needs; the shell has what the person's would.
    trusted = "export NIX_SSL_CERT_FILE=$PWD/ca.pem; pulumi() { cat nix.conf; }"
    assert "pulumi stack output nixConf" in setting
    said = client.run(f"{trusted}; {setting} nix-store --realise {path}").stderr
    assert said.count("copying path") == 3
    assert client.run("grep -c substituter /etc/nix/nix.conf").stdout == "1\n"


def test_an_image_is_built_that_takes_from_the_cache(
    client: ThrowawayBuilder, new_path: Callable[[str], str]
) -> None:
    path = new_path("container")
    script = ["set -e"]
    for line in "".join(blocks("A container", "dockerfile")).splitlines():
        word, _, rest = line.partition(" ")
        typed = {"COPY": f"cp {rest}", "RUN": f"sh -c {shlex.quote(rest)}", "ENV": f"export {rest}"}
        script.append(typed[word])
    said = client.run("\n".join([*script, f"nix-store --realise {path}"])).stderr
    assert said.count("copying path") == 3


def test_a_machine_with_a_daemon_takes_from_the_cache(
    client: ThrowawayBuilder, new_path: Callable[[str], str]
) -> None:
    path = new_path("daemon")
    client.run("groupadd --system nixbld; useradd --create-home ann")
    # As an installer leaves it, or an editor that ends no last line.
    client.run("printf 'substituters =\nbuild-users-group = nixbld' >/etc/nix/nix.conf")
    client.run("\n".join(["set -e", *including(), TRUSTING_A_CA["Debian, Ubuntu"]]))
    assert shown(client, "build-users-group") == ["nixbld"]
    client.run(START)
    said = client.run(f"su ann -c 'NIX_REMOTE=daemon nix-store --realise {path}'").stderr
    assert said.count("copying path") == 3


def test_lines_that_somebody_appends_leave_the_one_before_them_as_it_was(
    client: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    client.run(
        "printf 'substituters =\nbuild-users-group = nixbld' >/etc/nix/nix.conf\n"
        "cat nix.conf >>/etc/nix/nix.conf"
    )
    assert shown(client, "build-users-group") == ["nixbld"]
    assert shown(client, "substituters") == [f"{bucket.server.endpoint}/{bucket.name}"]


def test_a_key_that_was_retired_is_not_trusted_any_more(
    client: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    url = f"{bucket.server.endpoint}/{bucket.name}"
    old, new = (str(SecretKey.generate(f"cache.test-{n}").public_key) for n in (1, 2))
    host = url.removeprefix("https://").partition("/")[0]
    before = shown(client, "trusted-public-keys")
    # Appended, as the page once told, beside a line of somebody else's.
    client.run(
        "printf 'extra-substituters = https://own.example/cache.test\n' >>/etc/nix/nix.conf\n"
        "cat - >>/etc/nix/nix.conf",
        input=ClientConfiguration(url, [old], None).nix_conf(),
    )
    (_, console) = blocks(SYSTEMS, "console")
    take_out = console.removeprefix("# ")
    ours = {r"s3\.homelab\.local/": f"{host}/", r"s3\.homelab\.local-": "cache.test-"}
    for example, here in ours.items():
        assert example in take_out
        take_out = take_out.replace(example, here)
    client.run(take_out)
    for keys in ([old], [old, new], [new]):
        client.run("cat >nix.conf", input=ClientConfiguration(url, keys, None).nix_conf())
        client.run("\n".join(["set -e", *including()]))
        assert shown(client, "trusted-public-keys") == [*before, *keys]
    assert shown(client, "substituters")[-2:] == ["https://own.example/cache.test", url]
    assert client.run("grep -c include /etc/nix/nix.conf").stdout == "1\n"
