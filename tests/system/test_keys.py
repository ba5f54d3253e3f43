"""Signing keys through their whole life: minted, rotated, retired, adopted."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from formats.keys import PublicKey
from formats.signing import SecretKey
from push.settings import format_settings
from tests.system.cache_bucket import OpenBucket, client, place, trust
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.stack import Outcome, Stack
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

VECTORS = Path(__file__).parents[1] / "unit" / "formats" / "nix_vectors"
FIRST, SECOND = "cache.test-1", "cache.test-2"
KEY_TYPE = "pulumi-python:dynamic/nixcache:SigningKey"


def backup(stack: Stack) -> str:
    """Return the stack's secret keys as the documented backup command prints them."""
    command = ("stack", "output", "signingKeyBackup", "--show-secrets", "--stack", stack.name)
    return stack.run(*command).succeeded().output.strip()


def halves(key: str) -> tuple[str, ...]:
    """Return what of a secret key must never be seen: all of it, its seed, and either encoded."""
    encoded = key.partition(":")[2].strip()
    seed = base64.b64decode(encoded)[:32]
    return encoded, base64.b64encode(seed).decode().rstrip("="), seed.hex()


def assert_nowhere(key: str, *texts: str) -> None:
    """Fail if any part of a secret key stands in one of `texts`."""
    for text in texts:
        assert not [part for part in halves(key) if part in text]


def plain_files(directory: Path) -> list[str]:
    """Return the text of every file of a stack's backend and project."""
    files = [file for file in directory.rglob("*") if file.is_file() and ".venv" not in file.parts]
    return [file.read_text(errors="replace") for file in files]


def test_a_key_is_appended_and_the_old_one_retired_in_words(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="rotated")
    first_up = stack.up().succeeded().output
    assert f"signing keys: {FIRST} starts being trusted and signs" in first_up
    old = backup(stack)

    stack.set(signingKeys=[FIRST, SECOND])
    preview = stack.preview().succeeded().output
    assert f"{FIRST} stays trusted, {SECOND} starts being trusted and signs" in preview
    stack.up().succeeded()
    assert backup(stack).splitlines()[0] == old
    assert [key.partition(":")[0] for key in stack.outputs()["publicKeys"]] == [FIRST, SECOND]

    stack.set(signingKeys=[SECOND])
    preview = stack.preview().succeeded().output
    assert f"{SECOND} stays trusted and signs, {FIRST} stops being trusted" in preview
    stack.up().succeeded()
    assert stack.changes() == {}
    assert_nowhere(old, str(stack.resources_with_secrets()))
    assert [key.partition(":")[0] for key in stack.outputs()["publicKeys"]] == [SECOND]

    stack.set(signingKeys=[FIRST])
    assert f'signingKeys is "{FIRST}": this stack has had {SECOND}' in stack.preview().refused()


def test_a_key_stays_as_it_is_whatever_happens_around_it(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="lasting")
    stack.up().succeeded()
    key = backup(stack)
    stack.refresh().succeeded()
    stack.set(priority=30)
    stack.up().succeeded()
    assert backup(stack) == key
    stack.destroy().succeeded()
    assert not [found for found in stack.resources() if found["type"] == KEY_TYPE]


def test_a_key_made_by_nix_is_adopted_and_stays_when_the_setting_goes(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    name = (VECTORS / "public-key").read_text().partition(":")[0]
    settings = {
        **server_settings(minio),
        "bucket": "adopted",
        "signingKeys": [name],
        "signingKeyDomains": [name.rpartition("-")[0]],
    }
    stack = new_stack(**settings, adoptedSigningKeys=(VECTORS / "secret-key").read_text())
    stack.up().succeeded()
    assert stack.outputs()["publicKeys"] == [(VECTORS / "public-key").read_text().strip()]
    stack.refresh().succeeded()
    assert stack.changes() == {}
    stack.set(adoptedSigningKeys=None)
    stack.up().succeeded()
    assert stack.changes() == {}
    assert backup(stack) == (VECTORS / "secret-key").read_text().strip()


@pytest.mark.parametrize("name", ["binarycache.example.com", "my_cache"])
def test_a_key_with_a_name_of_its_own_is_adopted_rotated_and_retired(
    new_stack: StackFactory, minio: MinioServer, builder: ThrowawayBuilder, name: str
) -> None:
    """Clients that trust it need no change."""
    key, closure = SecretKey.generate(name), builder.make_closure(2, 20_000, seed=41, name="named")
    where = name.replace("_", "-")
    named = {"signingKeys": [name], "signingKeyDomains": [name]}
    stack = new_stack(**{**server_settings(minio), **named}, bucket=where)
    stack.set(sshPrivateKey=builder.private_key, builders=[builder_settings(builder, closure)])
    assert f'signingKeys is "{name}": write the cache' in stack.preview().refused()
    stack.set(adoptedSigningKeys=key.to_nix())
    stack.up().succeeded()
    old = key.public_key
    assert stack.outputs()["publicKeys"] == [str(old)]
    user = stack.outputs()["builders"]["nixbuilder"]
    secrets = user["accessKeyId"], user["secretAccessKey"]
    bucket = OpenBucket(minio, where, *secrets, key)
    assert bucket.pull(builder, closure, keys=[old]) == 2
    stack.set(adoptedSigningKeys=None)
    assert stack.changes() == {}

    stack.set(signingKeys=[name, f"{name}-1"])
    assert f"{name} stays trusted, {name}-1 starts being" in stack.preview().succeeded().output
    stack.up().succeeded()
    assert backup(stack).splitlines()[0] == key.to_nix()
    new = PublicKey.parse(stack.outputs()["publicKeys"][1])
    assert new.name == f"{name}-1"
    for trusted in (old, new):
        assert bucket.pull(builder, closure, keys=[trusted]) == 2
    audit = stack.operate("audit", "--stack", stack.name).succeeded().output
    assert name in audit

    stack.set(signingKeys=[f"{name}-1"])
    stack.up().succeeded()
    assert stack.changes() == {}
    assert stack.outputs()["retiredKeys"] == [str(old)]
    stack.set(signingKeys=[name, f"{name}-1"])
    assert f'signingKeys is "{name}": write the cache' in stack.preview().refused()
    stack.set(signingKeys=[name, f"{name}-1"], adoptedSigningKeys=key.to_nix())
    stack.preview().succeeded()


KEY = SecretKey.generate(FIRST)
MISMATCH = base64.b64encode(KEY.seed + SecretKey.generate(FIRST).public_key.data).decode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (KEY.to_nix()[:-9], "line 1 is no secret key"),
        (str(KEY.public_key), "this is a public key"),
        (f"{FIRST}:{MISMATCH}", "seed does not match its public half"),
    ],
    ids=["malformed", "public", "mismatch"],
)
def test_what_cannot_be_adopted_is_refused_and_nowhere_to_be_seen(
    new_stack: StackFactory, minio: MinioServer, text: str, reason: str
) -> None:
    stack = new_stack(**server_settings(minio), bucket="refused", adoptedSigningKeys=text)
    outcome = stack.up("--debug", "--diff")
    assert reason in outcome.refused()
    assert "Traceback" not in outcome.output
    secret = text.partition(":")[2]
    assert secret not in outcome.output
    assert secret[:16] not in outcome.output


def test_no_secret_key_is_in_plain_text_anywhere(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    stack = new_stack(**server_settings(minio), bucket="secretive")
    stack.set(signingKeys=[FIRST, SECOND], adoptedSigningKeys=KEY.to_nix())
    seen: list[Outcome] = [
        stack.preview("--diff", "--debug"),
        stack.preview("--json"),
        stack.up("--debug"),
        stack.refresh(),
        stack.preview("--diff", "--debug"),
        stack.run("stack", "output", "--json", "--stack", stack.name),
        stack.run("stack", "--show-urns", "--stack", stack.name),
    ]
    texts = [outcome.succeeded().output for outcome in seen]
    keys = backup(stack).splitlines()
    assert keys[0] == KEY.to_nix()
    stack.set(signingKeys=[SECOND], adoptedSigningKeys=None)
    texts += [stack.preview("--diff").output, stack.up("--debug").succeeded().output]
    texts += [stack.export(), *plain_files(tmp_path)]
    for key in keys:
        assert_nowhere(key, *texts)


def test_an_exception_of_the_provider_shows_nothing_of_the_key(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="damaged")
    stack.up().succeeded()
    key = backup(stack)
    command = ("stack", "export", "--show-secrets", "--stack", stack.name)
    state = json.loads(stack.run(*command).succeeded().output)
    (damaged,) = [
        resource for resource in state["deployment"]["resources"] if resource["type"] == KEY_TYPE
    ]
    del damaged["outputs"]["key_name"]
    stack.run("stack", "import", "--stack", stack.name, text=json.dumps(state)).succeeded()
    outcome = stack.refresh()
    outcome.refused()
    assert "KeyError: 'key_name'" in outcome.output
    assert_nowhere(key, outcome.output)


FILES = "/var/lib/nix-binary-cache"
THIRD = "cache.test-3"


def push_by_itself(
    builder: ThrowawayBuilder, outputs: Mapping[str, object], path: str, files: str
) -> tuple[int, str]:
    """Push as the NixOS module's units do; return the exit code, and what was said.

    Args:
        builder: who pushes.
        outputs: the stack's output `nixos`, as the builder was given it last.
        path: what is pushed.
        files: where the two secrets lie.
    """
    push, builders = outputs["push"], outputs["builders"]
    assert isinstance(push, dict)
    assert isinstance(builders, dict)
    settings = {
        **push,
        "access-key-id": builders["nixbuilder"]["accessKeyId"],
        "secret-access-key-file": f"{files}/secret-access-key",
        "signing-key-file": f"{files}/signing-key",
        "ca-certificate-file": "/etc/private-ca.pem",
    }
    command = shlex.join([*place(builder), "--config", "-", path])
    done = builder.run(command, input=format_settings(settings), check=False)
    return done.returncode, done.stderr


def test_no_step_of_a_rotation_stops_a_builders_own_pushes(
    new_stack: StackFactory, minio: MinioServer, builder: ThrowawayBuilder
) -> None:
    """Whichever comes first to the builder, or never: the key that is placed, or `cache.json`."""
    trust(builder, minio)
    path = builder.make_closure(2, 20_000, seed=86, name="own")
    stack = new_stack(**server_settings(minio), upstreamKeys=[], bucket="own-pushes")
    settings = {**builder_settings(builder), "credentialsDirectory": FILES}
    stack.set(sshPrivateKey=builder.private_key, builders=[settings])
    given: list[Mapping[str, object]] = []

    def pushes() -> list[str]:
        """Push with each `cache.json` so far; return what was said."""
        given.append(stack.outputs()["nixos"])
        said = [push_by_itself(builder, one, path, FILES) for one in given]
        assert [code for code, _ in said] == [0] * len(given), said
        return [text for _, text in said]

    stack.up().succeeded()
    pushes()
    builder.run(f"cp -r {FILES} /root/before")
    stack.set(signingKeys=[FIRST, SECOND])
    stack.up("--target", "**SigningKey**").succeeded()
    assert "sign:" not in "".join(pushes()), "clients do not trust the new key yet"
    stack.up().succeeded()
    said = pushes()
    assert f"the signing key {SECOND} is newer than all of trusted-key" in said[0]
    assert "newer" not in "".join(said[1:])
    stack.set(signingKeys=[SECOND])
    stack.up().succeeded()
    pushes()
    # One that leaked is replaced in one step.
    stack.set(signingKeys=[THIRD], confirmKeyReplacement=True)
    stack.up().succeeded()
    pushes()
    # Where nothing places the key, the one that is left behind does no harm, and says what it is.
    server = client(minio)

    def there() -> dict[str, str]:
        listed = server.list_objects("own-pushes", recursive=True)
        return {str(one.object_name): str(one.etag) for one in listed}

    objects = there()
    code, text = push_by_itself(builder, stack.outputs()["nixos"], path, "/root/before")
    assert code == 1
    assert text.startswith(
        f"push: settings: the signing key {FIRST} is none that clients trust, {THIRD}; give this "
        "machine, or the job, the key that the stack has it sign with now (docs/ci.md), or, if "
    )
    assert len(text.splitlines()) == 1
    assert there() == objects
