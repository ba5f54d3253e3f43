"""A deployment takes, changes and removes what its settings name, and nothing else.

Each of these once ended in a deployment that said it had succeeded, and in a loss.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from minio.versioningconfig import VersioningConfig

from components.retention import expiration_rules
from formats.narinfo import NarInfo
from formats.signing import SecretKey
from tests.plugins.ssh_server import SshServer
from tests.system.cache_bucket import put_as_of
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.inventory import Inventory, difference, keys_of
from tests.system.minio_client import MinioClient
from tests.system.stack import Stack
from tests.system.terminal import YES
from tests.system.test_retention import days_ago
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

SECRET = "a-secret-of-somebody-else"
NOWHERE = ["/nowhere/link"]
"""Closures that no builder can push."""


@pytest.fixture(scope="module")
def inventory(minio: MinioServer) -> Inventory:
    return Inventory(minio)


def here(name: str, **more: object) -> dict[str, object]:
    """Return a builder that is this machine."""
    return {"name": name, "local": True, **more}


def secrets_of(stack: Stack) -> dict[str, str]:
    """Return the secrets of a stack's builders by their users."""
    builders = stack.outputs()["builders"].values()
    return {access["accessKeyId"]: access["secretAccessKey"] for access in builders}


# 1: what only the settings call a builder.


def test_renaming_a_builder_and_exchanging_two_changes_nothing_of_theirs(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, tmp_path: Path
) -> None:
    directory = {"credentialsDirectory": str(tmp_path / "credentials" / "first")}
    stack = new_stack(**server_settings(minio), bucket="renamed-builders")
    stack.set(builders=[here("first", s3User="one", **directory), here("second", s3User="two")])
    stack.up().succeeded()
    secrets, places = secrets_of(stack), [tmp_path / "credentials"]
    before = inventory.take(secrets, places)
    assert len([name for name in before if name.startswith("file ")]) == 3

    stack.set(builders=[here("other", s3User="one", **directory), here("second", s3User="two")])
    assert not stack.changes()
    stack.up().succeeded()
    assert difference(before, inventory.take(secrets, places)) == {}

    # The files in the directory are the other user's now, and everything else stays.
    stack.set(builders=[here("other", s3User="two", **directory), here("second", s3User="one")])
    stack.up().succeeded()
    changed = difference(before, inventory.take(secrets, places))
    assert changed == {f"file {tmp_path}/credentials/first/secret-access-key": "changed"}
    assert secrets_of(stack) == secrets
    stack.destroy().succeeded()
    assert not (tmp_path / "credentials" / "first").exists()


def test_a_builder_that_is_reached_another_way_keeps_its_files(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, tmp_path: Path
) -> None:
    directory = tmp_path / "credentials" / "mine"
    stack = new_stack(**server_settings(minio), bucket="another-way")
    with SshServer() as ssh:
        far = {"name": "first", "port": ssh.port, "hostKey": ssh.host_key}
        ways: list[dict[str, object]] = [
            here("first"),
            {**far, "host": "127.0.0.1"},
            {**far, "host": "localhost"},
            here("first"),
        ]
        stack.set(sshPrivateKey=ssh.private_key)
        before: dict[str, str] = {}
        for way in ways:
            stack.set(builders=[{**way, "credentialsDirectory": str(directory)}])
            stack.up().succeeded()
            after = inventory.take(secrets_of(stack), [directory])
            # Only who placed them is another.
            owner = {f"file {directory}/.placed-by": "changed"}
            assert difference(before or after, after) == (owner if before else {})
            before = after
            assert not stack.changes()
        stack.destroy().succeeded()
    assert not directory.exists()


def behind_one_name(name: str, machine: ThrowawayBuilder, directory: Path) -> dict[str, object]:
    """Return a builder with files of its own; machines of the tests differ by their ports alone."""
    key = directory / f"key-{machine.port}"
    key.write_text(machine.private_key)
    key.chmod(0o600)
    return {
        **builder_settings(machine),
        "name": name,
        "privateKeyFile": str(key),
        "credentialsDirectory": "/var/lib/behind",
    }


def has_files(machine: ThrowawayBuilder) -> bool:
    """Return whether the signing key lies on a machine behind one name."""
    return "signing-key" in machine.run("ls /var/lib/behind || :").stdout


def test_of_two_builders_behind_one_host_name_the_one_that_leaves_loses_its_files(
    new_stack: StackFactory,
    minio: MinioServer,
    builder: ThrowawayBuilder,
    second_builder: ThrowawayBuilder,
    tmp_path: Path,
) -> None:
    stack = new_stack(**server_settings(minio), bucket="behind-one-name")
    machines = (builder, second_builder)
    builders = [
        behind_one_name("one", builder, tmp_path),
        behind_one_name("two", second_builder, tmp_path),
    ]
    stack.set(builders=builders)
    stack.up().succeeded()
    assert [has_files(m) for m in machines] == [True, True]
    stack.set(builders=builders[1:])
    told = stack.up().succeeded().output
    assert f"the files in /var/lib/behind on {builder.host} port {builder.port} are rem" in told
    assert [has_files(m) for m in machines] == [False, True]
    assert not stack.changes()
    stack.destroy().succeeded()
    assert [has_files(m) for m in machines] == [False, False]


def test_files_on_a_machine_whose_name_another_one_has_taken_are_told(
    new_stack: StackFactory,
    minio: MinioServer,
    builder: ThrowawayBuilder,
    second_builder: ThrowawayBuilder,
    tmp_path: Path,
) -> None:
    stack = new_stack(**server_settings(minio), bucket="taken-name")
    before, after = (behind_one_name("one", m, tmp_path) for m in (builder, second_builder))
    stack.set(builders=[before])
    stack.up().succeeded()
    stack.set(builders=[after])
    for told in (stack.preview(), stack.up()):
        sentence = f"placed in /var/lib/behind on {builder.host} port {builder.port}: if that was"
        assert sentence in told.succeeded().output
    assert has_files(builder)
    assert has_files(second_builder)
    builder.run("rm -r /var/lib/behind")
    assert "another machine" not in stack.preview().succeeded().output
    # Back, as it says.
    stack.set(builders=[{k: v for k, v in before.items() if k != "credentialsDirectory"}])
    stack.up().succeeded()
    assert not has_files(second_builder)
    stack.set(builders=[before])
    stack.up().succeeded()
    stack.destroy().succeeded()
    assert not has_files(builder)


OLD_NAMES = {
    "::upgraded-write": "::builders-policy",
    "::one/upgraded-write": "::first-attachment",
    "::one": "::first-user",
    "{directory}-files": "first-files",
    "BuilderCredentials::{directory}": "BuilderCredentials::first",
}


def test_a_state_of_old_names_comes_up_with_nothing_deleted(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, tmp_path: Path
) -> None:
    directory = tmp_path / "credentials" / "mine"
    builder = {"s3User": "one", "credentialsDirectory": str(directory)}
    stack = new_stack(
        **server_settings(minio), bucket="upgraded", builders=[here("first", **builder)]
    )
    stack.up().succeeded()
    before = inventory.take(secrets_of(stack), [directory])
    state = stack.run("stack", "export", "-s", stack.name).succeeded().output
    for template, former in OLD_NAMES.items():
        present = template.format(directory=directory)
        assert f'{present}"' in state
        state = state.replace(f'{present}"', f'{former}"')
    # Commands have the provider that the engine made for them.
    assert "providers:command::default_1_2_1::" in state
    stack.run("stack", "import", "-s", stack.name, text=state).succeeded()

    # Renamed in the same breath: what the state calls it is still found by what it is.
    stack.set(builders=[here("second", **builder)])
    assert not {*stack.changes()} - {"update"}
    stack.up().succeeded()
    assert difference(before, inventory.take(secrets_of(stack), [directory])) == {}
    assert not stack.changes()
    assert "first" not in {r["urn"].rpartition("::")[2] for r in stack.resources()}


OLD_NAMES_OF_A_BUCKET = {
    "S3Bucket::told-apart": "S3Bucket::cache-bucket",
    "S3BucketPolicy::told-apart": "S3BucketPolicy::cache-download",
    "IlmPolicy::told-apart": "IlmPolicy::cache-retention",
    "S3Object::told-apart/nix-cache-info": "S3Object::cache-nix-cache-info",
    "S3Object::told-apart/use.html": "S3Object::cache-use.html",
    "S3Object::told-apart/_nixcache/pins/kept": "S3Object::pin-kept",
}


def test_a_state_whose_bucket_has_the_name_of_before_wants_nothing_done(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    stack = new_stack(**server_settings(minio), bucket="told-apart", builders=[here("first")])
    stack.set(pins=[{"name": "kept", "path": f"/nix/store/{'1' * 32}-kept"}])
    stack.up().succeeded()
    before = inventory.take(secrets_of(stack))
    state = stack.export()
    for present, former in OLD_NAMES_OF_A_BUCKET.items():
        assert f'{present}"' in state
        state = state.replace(f'{present}"', f'{former}"')
    before_commands = json.loads(state)
    resources = before_commands["deployment"]["resources"]
    resources[:] = [one for one in resources if one["type"] != "pulumi:providers:command"]
    text = json.dumps(before_commands)
    stack.run("stack", "import", "-s", stack.name, text=text).succeeded()

    assert not stack.changes()
    assert not stack.changes("--refresh")
    assert not stack.changes("--refresh", "--run-program")
    # Renamed in the same breath: that one goes, under the name of before.
    stack.set(bucket="told-anew")
    assert stack.changes().keys() == {"create", "delete"}
    stack.set(bucket="told-apart")
    stack.up().succeeded()
    assert difference(before, inventory.take(secrets_of(stack))) == {}
    assert not stack.changes()
    now = {resource["urn"].rpartition("::")[2] for resource in stack.resources()}
    assert not {name.rpartition("::")[2] for name in OLD_NAMES_OF_A_BUCKET.values()} & now


# 2: keys outlive settings.


@pytest.mark.parametrize("protect", [True, False])
def test_another_host_is_no_reason_for_another_key(
    new_stack: StackFactory, minio: MinioServer, protect: bool
) -> None:
    stack = new_stack(f"keys-{protect}".lower(), **server_settings(minio))
    stack.set(bucket=stack.name, signingKeys=None, signingKeyDomains=None, protect=protect)
    stack.up().succeeded()
    keys = keys_of(stack)
    assert list(keys) == ["key 127.0.0.1-1"]
    for change in (
        {"publicUrl": "https://cdn.example.org/nix"},
        {"publicUrl": None, "endpoint": minio.endpoint.replace("127.0.0.1", "localhost")},
    ):
        stack.set(change)
        assert "stops being trusted" not in stack.preview().succeeded().output
        stack.up().succeeded()
        assert keys_of(stack) == keys
        assert not stack.changes()
    stack.set(endpoint=minio.endpoint, protect=False)

    # A rotated stack keeps its keys where the setting goes, too.
    stack.set(signingKeys=["{host}-1", "{host}-2"])
    stack.up().succeeded()
    keys = keys_of(stack)
    stack.set(signingKeys=None, publicUrl="https://cdn.example.org/nix")
    assert not {*stack.changes()} - {"update"}
    stack.up().succeeded()
    assert keys_of(stack) == keys


def test_no_key_staying_wants_a_confirmation(new_stack: StackFactory, minio: MinioServer) -> None:
    stack = new_stack(**server_settings(minio), bucket="all-keys-go")
    stack.up().succeeded()
    keys = keys_of(stack)
    stack.set(signingKeys=["cache.test-2"])
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert 'signingKeys is ["cache.test-2"]: no key stays that clients trust' in refused
    assert keys_of(stack) == keys
    stack.set(confirmKeyReplacement=True)
    stack.up().succeeded()
    assert list(keys_of(stack)) == ["key cache.test-2"]


def test_another_server_is_not_taken_for_the_one_before(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    stack = new_stack(**server_settings(minio), bucket="same-name")
    stack.up().succeeded()
    with MinioServer(tmp_path / "another") as another:
        theirs = Inventory(another)
        theirs.root.make_bucket("same-name")
        put(theirs, "same-name", "photos/1.jpg", "nix-cache-info")
        before = theirs.take()
        stack.set({**server_settings(another), "bucket": "same-name"})
        for refused in (stack.preview().refused(), stack.up("--refresh").refused()):
            assert "shows no key of this stack, which was deployed to" in refused
        assert difference(before, theirs.take()) == {}
    stack.set({**server_settings(minio), "bucket": "same-name"})
    stack.up().succeeded()


def test_a_builder_that_left_stays_out_where_the_cache_comes_back_to_a_server(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, tmp_path: Path
) -> None:
    mc = MinioClient(minio, tmp_path)
    stack = new_stack(**server_settings(minio), bucket="comes-back")
    stack.set(builders=[here("stays"), here("leaves")])
    stack.up().succeeded()
    former = tmp_path / "policy.json"
    document = json.loads(mc.run("--json admin policy info s3 comes-back-write"))
    former.write_text(json.dumps(document["policyInfo"]["Policy"]))
    secret = secrets_of(stack)["comes-back-leaves"]
    leaver = inventory.client("comes-back-leaves", secret)
    stack.set(builders=[here("stays")])
    stack.up().succeeded()
    # What the builder was shut out at was another server. This one is as it was.
    mc.run("admin user add s3", text=f"comes-back-leaves\n{secret}\n")
    mc.run(f"admin policy create s3 comes-back-write {former}")
    mc.run("admin policy attach s3 comes-back-write --user comes-back-leaves")
    put_as(leaver, "comes-back", f"{'0' * 32}.narinfo")
    stack.set(endpoint=minio.endpoint.replace("127.0.0.1", "localhost"))
    said = "has the bucket, and another policy comes-back-write than this stack's; make repair"
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert said in refused
    repaired = stack.operate("repair", "--stack", stack.name, "--yes").succeeded().output
    assert "policy comes-back-write was another one there: put back" in repaired
    with pytest.raises(S3Error, match="AccessDenied"):
        put_as(leaver, "comes-back", f"{'1' * 32}.narinfo")
    stack.up("--expect-no-changes").succeeded()
    # One that is about something else as well is not this cache's.
    wide = json.dumps(document["policyInfo"]["Policy"]).replace("comes-back/", "comes-back-too/")
    former.write_text(wide)
    mc.run(f"admin policy create s3 comes-back-write {former}")
    stack.set(endpoint=minio.endpoint)
    refused = stack.operate("repair", "--stack", stack.name, "--yes").refused()
    assert "has a policy comes-back-write that this stack did not make; remove it th" in refused


def test_another_caches_server_gets_and_loses_nothing_whatever_else_changes(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    bucket = "of-two-caches"
    stack = new_stack("staging", **server_settings(minio), bucket=bucket)
    stack.set(builders=[here("a")])
    stack.up().succeeded()
    with MinioServer(tmp_path / "another") as another:
        production = new_stack("production", **server_settings(another), bucket=bucket)
        production.set(builders=[here("a")])
        production.up().succeeded()
        theirs = Inventory(another)
        put(theirs, bucket, f"{'0' * 32}.narinfo")
        before = theirs.take()
        stack.set(server_settings(another), bucket="of-staging")
        for both in (stack.preview().refused(), stack.up().refused()):
            assert f"would be deleted; move the bucket under its name, {bucket}, first" in both
        stack.set(bucket=bucket, adoptBucket=True)
        nothing = "shows no key of this stack, which was deployed to"
        for refused in (
            stack.preview().refused(),
            stack.up().refused(),
            stack.operate("repair", "--stack", stack.name).refused(),
            stack.operate("empty", "--stack", stack.name, "--all", text=f"{bucket}\n").refused(),
            stack.run("destroy", "--run-program", "--yes", "--skip-preview").refused(),
        ):
            assert nothing in refused
        assert difference(before, theirs.take()) == {}
    stack.set(server_settings(minio))
    assert not stack.changes()


def test_a_deployment_of_keys_alone_does_not_make_the_next_preview_believe_the_rest(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="keys-alone", builders=[here("a")])
    stack.up().succeeded()
    path = f"/nix/store/{'0' * 32}-closure"
    stack.set(
        signingKeys=["cache.test-1", "cache.test-2"],
        access="private",
        retentionDays=30,
        builders=[here("a"), here("b", closures=[path])],
    )
    before = stack.preview().succeeded().output
    stack.up("--target", "**SigningKey**").succeeded()
    assert stack.outputs()["retention"] == "An entry expires 7 days after its last push."
    after = stack.preview().succeeded().output
    for words in (
        "access: nobody reads without a credential any more",
        "retention: An entry expires 30 days after its last push. Before: An entry expires 7 days",
        "builder b comes, as user keys-alone-b",
        f"builder b pushes {path} for the first time",
    ):
        assert words in before
        assert words in after


# 3: users and policies of others.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"builders": [here("a", s3User="alice")]},
            'builders[0].s3User is "alice": the server has',
        ),
        ({"writePolicy": "by-hand"}, 'writePolicy is "by-hand": the server has a policy by-hand'),
        ({"writePolicy": "readwrite"}, 'writePolicy is "readwrite": MinIO itself has this policy'),
        ({"writePolicy": "consoleAdmin"}, 'writePolicy is "consoleAdmin": MinIO itself has'),
        ({"builders": [here("a", s3User="root-of-the-cache")]}, "root-of-the-cache"),
    ],
    ids=["a user", "a policy", "readwrite", "consoleAdmin", "minioUser"],
)
def test_what_is_there_already_is_not_taken(
    new_stack: StackFactory,
    minio: MinioServer,
    inventory: Inventory,
    tmp_path: Path,
    changes: dict[str, object],
    expected: str,
) -> None:
    mc = MinioClient(minio, tmp_path)
    mc.run("admin user add s3", text=f"alice\n{SECRET}\n")
    document = tmp_path / "policy.json"
    allowed = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}
    document.write_text(json.dumps({"Version": "2012-10-17", "Statement": [allowed]}))
    mc.run(f"admin policy create s3 by-hand {document}")
    before = inventory.take({"alice": SECRET})
    stack = new_stack(**server_settings(minio), bucket="not-taken")
    stack.set(changes)
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert expected in refused
        assert SECRET not in refused
    assert difference(before, inventory.take({"alice": SECRET})) == {}
    assert not [found for found in stack.resources() if found["type"].startswith("minio:")]


def test_a_root_user_that_deploys_under_another_name_is_not_taken(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    mc = MinioClient(minio, tmp_path)
    mc.run("admin user add s3", text="deployer\na-secret-to-deploy-with\n")
    mc.run("admin policy attach s3 consoleAdmin --user deployer")
    stack = new_stack(**server_settings(minio), bucket="not-taken")
    stack.set(minioUser="deployer", minioPassword="a-secret-to-deploy-with")
    stack.set(builders=[here("a", s3User=minio.root_user)])
    assert "its root user or a service account" in stack.up().refused()


def test_a_destroy_leaves_what_others_have(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, tmp_path: Path
) -> None:
    mc = MinioClient(minio, tmp_path)
    mc.run("admin user add s3", text=f"bob\n{SECRET}\n")
    before = inventory.take({"bob": SECRET})
    stack = new_stack(**server_settings(minio), bucket="comes-and-goes", access="private")
    stack.set(builders=[here("a")])
    stack.up().succeeded()
    assert len(difference(before, inventory.take({"bob": SECRET}))) > 5
    stack.destroy().succeeded()
    assert difference(before, inventory.take({"bob": SECRET})) == {}


def test_a_user_that_another_stack_has_taken_over_stays(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, tmp_path: Path
) -> None:
    mc = MinioClient(minio, tmp_path)
    ci = here("ci", s3User="ci-machine")
    giving = new_stack("giving", **{**server_settings(minio), "protect": True})
    giving.set(bucket="giving", builders=[ci, here("stays")])
    giving.up().succeeded()
    both = giving.export()
    secret = secrets_of(giving)["ci-machine"]
    taking = new_stack("taking", **server_settings(minio), bucket="taking", builders=[ci])
    taking.set(adoptedUserSecrets=f"ci-machine:{secret}")
    taking.up().succeeded()

    # It leaves the stack that made it last, and only there.
    giving.set(builders=[here("stays")])
    giving.preview().refused()
    refused = giving.up().refused()
    assert "the user ci-machine would be deleted, and it has taking-write on the server" in refused
    forget = re.search(r"pulumi state delete '[^']+' --target-dependents --force", refused)
    detach = re.search(r"mc admin policy detach ALIAS ([\w-]+) --user ([\w-]+)", refused)
    assert forget
    assert detach
    giving.type(forget[0], (r"y/N\) ", "y\r")).succeeded()
    mc.run(f"admin policy detach s3 {detach[1]} --user {detach[2]}")
    giving.up().succeeded()
    assert inventory.accepts("ci-machine", secret)
    put_as(inventory.client("ci-machine", secret), "taking", f"{'0' * 32}.narinfo")

    # An older state knows it still, by a secret that it has no longer.
    mc.run("admin user add s3", text=f"ci-machine\n{SECRET}\n")
    giving.run("stack", "import", "-s", "giving", text=both).succeeded()
    repair = ("repair", "--stack", "giving", "--yes", "--skip-preview")
    refused = giving.operate(*repair).output
    assert "the secret of user ci-machine would be put back, and it has taking-write on" in refused
    forget = re.search(r"pulumi state delete '[^']+' --target-dependents --force", refused)
    assert forget
    giving.type(forget[0], (r"y/N\) ", "y\r")).succeeded()
    giving.operate(*repair).succeeded()
    assert inventory.accepts("ci-machine", SECRET)
    put_as(inventory.client("ci-machine", SECRET), "taking", f"{'1' * 32}.narinfo")
    giving.set(protect=False)
    giving.up().succeeded()
    giving.operate("empty", "--stack", "giving", text="giving\n").succeeded()
    giving.destroy().succeeded()
    assert inventory.accepts("ci-machine", SECRET)


# 4: a bucket that holds more than a cache.

FOREIGN = (
    *("backups/2026.tar", "photos/1.jpg", "attic/x", "ca.pem", "favicon.ico", "public-key.txt"),
    *("install.sh", "nar/readme"),
)
OURS = (f"{'0' * 32}.narinfo", f"nar/{'1' * 52}.nar.zst", f"{'1' * 32}.ls", "Archive.zip")


def put(inventory: Inventory, bucket: str, *keys: str, text: bytes = b"x") -> None:
    for key in keys:
        inventory.root.put_object(bucket, key, io.BytesIO(text), len(text))


def test_a_bucket_that_holds_more_than_a_cache_is_adopted_only_with_a_confirmation(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    inventory.root.make_bucket("shared")
    put(inventory, "shared", *FOREIGN, *OURS)
    before = inventory.take()
    stack = new_stack(**server_settings(minio), bucket="shared", adoptBucket=True)
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert "objects would expire that are no files of a cache: 8 (" in refused
        for key in FOREIGN:
            assert key.partition("/")[0] in refused
        assert "Archive" not in refused
        assert "set confirmSharedBucket to true" in refused
    assert difference(before, inventory.take()) == {}

    # Where nothing expires, nothing is lost; and what is moved is not lost either.
    stack.set(expire=False)
    stack.up().succeeded()
    assert not [name for name in inventory.take() if name.startswith("lifecycle of shared")]
    stack.set(expire=True)
    assert "would expire that are no files" in stack.up().refused()
    for key in FOREIGN:
        inventory.root.remove_object("shared", key)
    stack.up().succeeded()

    # What somebody puts there later is told.
    put(inventory, "shared", "photos/2.jpg")
    drift = stack.operate("drift", "--stack", stack.name)
    assert drift.code == 1
    assert "photos/" in drift.output
    audit = stack.operate("audit", "--stack", stack.name)
    assert "foreign photos/2.jpg: " in audit.output


def test_somebody_elses_lifecycle_and_page_are_not_replaced_unasked(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    inventory.root.make_bucket("with-rules")
    put(inventory, "with-rules", "use.html", text=b"<!doctype html><title>Mine</title>")
    set_rules(inventory, "with-rules", rule("tmp", "tmp/", 1))
    before = inventory.take()
    stack = new_stack(**server_settings(minio), bucket="with-rules", adoptBucket=True)
    assert "its use.html is somebody else's page" in stack.up().refused()
    stack.set(access="private")
    assert "lifecycle rules of somebody else would go: 1 (tmp)" in stack.up().refused()
    assert difference(before, inventory.take()) == {}
    stack.set(access="public", confirmSharedBucket=True)
    stack.up().succeeded()
    assert not stack.changes()


# 5: a shorter retention beside other rules.


def rule(name: str, prefix: str, days: int) -> Rule:
    expiration = Expiration(days=days)
    return Rule(ENABLED, rule_filter=Filter(prefix=prefix), rule_id=name, expiration=expiration)


DELETE_MARKERS = Rule(
    ENABLED,
    rule_filter=Filter(prefix=""),
    rule_id="markers",
    expiration=Expiration(expired_object_delete_marker=True),
)


def set_rules(inventory: Inventory, bucket: str, *more: Rule, days: int | None = None) -> None:
    """Give a bucket a lifecycle: this program's rules of so many days, and `more`."""
    ours = [] if days is None else expiration_rules(days, 1)
    rules = [*more, *(rule(one.id, one.prefix, one.days) for one in ours)]
    inventory.root.set_bucket_lifecycle(bucket, LifecycleConfig(rules))


@pytest.mark.parametrize("other", [rule("tmp", "tmp/", 1), DELETE_MARKERS], ids=["tmp", "markers"])
def test_other_rules_do_not_silence_the_guard_against_a_shorter_retention(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, other: Rule
) -> None:
    stack = new_stack(f"shorter-{other.rule_id}", **server_settings(minio), retentionDays=30)
    stack.set(bucket=stack.name)
    stack.up().succeeded()
    for number in range(4):
        put_as_of_days(minio, inventory, stack.name, f"{number:032}.narinfo", 10)
    set_rules(inventory, stack.name, other, days=30)
    stack.set(retentionDays=7)
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert "retentionDays is 7: 100% of the cache's entries would expire at once" in refused
    assert len(list(inventory.root.list_objects(stack.name))) >= 4


def put_as_of_days(
    minio: MinioServer, inventory: Inventory, bucket: str, key: str, days: int
) -> None:
    """Write an object as if so many days ago."""
    put_as_of(minio, inventory.http, bucket, key, b"x", days_ago(days))


# 6: a bucket that keeps versions.


def test_versions_expire_with_the_rules_where_a_bucket_keeps_them(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    inventory.root.make_bucket("versioned")
    inventory.root.set_bucket_versioning("versioned", VersioningConfig(ENABLED))
    stack = new_stack(**server_settings(minio), bucket="versioned", adoptBucket=True)
    stack.up().succeeded()
    assert not stack.changes()
    assert not stack.changes("--refresh")
    assert superseded(inventory, "versioned") == {1}
    stack.set(adoptBucket=None)
    assert not stack.changes()

    # One that keeps them only since gets the same with the next deployment.
    later = new_stack("later", **server_settings(minio), bucket="versioned-later")
    later.up().succeeded()
    inventory.root.set_bucket_versioning("versioned-later", VersioningConfig(ENABLED))
    assert "keeps versions: the deployment will also let" in later.preview().succeeded().output
    later.up().succeeded()
    assert superseded(inventory, "versioned-later") == {1}
    assert not later.changes()


def superseded(inventory: Inventory, bucket: str) -> set[int | None]:
    """Return after how many days versions go that others have followed, over all rules."""
    lifecycle = inventory.root.get_bucket_lifecycle(bucket)
    assert lifecycle is not None
    versions = [found.noncurrent_version_expiration for found in lifecycle.rules]
    return {None if found is None else found.noncurrent_days for found in versions}


def test_locked_and_replicated_buckets_are_refused_with_the_remedy(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    mc = MinioClient(minio, tmp_path)
    mc.run("mb --with-lock s3/locked")
    stack = new_stack(**server_settings(minio), bucket="locked", adoptBucket=True)
    # Able to lock, and locking nothing: as any that keeps versions.
    stack.up().succeeded()
    mc.run("retention set --default governance 30d s3/locked")
    refused = stack.up().refused()
    assert 'bucket is "locked": it locks what is written for a while' in refused
    assert "set expire to false" in refused

    for name in ("source", "target"):
        mc.run(f"mb --with-versioning s3/{name}")
    credential = f"{minio.root_user}:{minio.root_password}"
    target = minio.endpoint.replace("https://", f"https://{credential}@")
    mc.run(f"replicate add s3/source --remote-bucket {target}/target")
    stack = new_stack("source", **server_settings(minio), bucket="source", adoptBucket=True)
    assert 'bucket is "source": it is replicated' in stack.up().refused()


# 7: what security asks for is not held up by a push.


def test_a_failing_push_leaves_nobody_in_who_should_be_out(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    stack = new_stack(**server_settings(minio), bucket="going-private")
    stack.set(signingKeys=["cache.test-1", "cache.test-2"])
    stack.set(builders=[here("stays"), here("leaves")])
    stack.up().succeeded()
    secret = secrets_of(stack)["going-private-leaves"]
    leaver = inventory.client("going-private-leaves", secret)
    put_as(leaver, "going-private", f"{'0' * 32}.narinfo")
    assert inventory.anonymous("going-private", "nix-cache-info") == 200

    stack.set(access="private", signingKeys=["cache.test-2"])
    stack.set(builders=[here("stays", closures=NOWHERE)])
    failed = stack.up()
    assert failed.code != 0
    assert "stays" in failed.output
    assert inventory.anonymous("going-private", "nix-cache-info") == 403
    for forbidden in (
        lambda: put_as(leaver, "going-private", f"{'1' * 32}.narinfo"),
        lambda: list(leaver.list_objects("going-private")),
        lambda: leaver.get_object("going-private", "nix-cache-info"),
    ):
        with pytest.raises(S3Error, match="AccessDenied"):
            forbidden()
    # What the engine does last is named, with the command that does it in spite of the push.
    (line,) = [line for line in failed.output.splitlines() if "--continue-on-error" in line][:1]
    assert "cache.test-1" in line
    assert stack.outputs()["publicKeys"][0].startswith("cache.test-1:")
    assert stack.type("pulumi up --continue-on-error", YES).code != 0
    assert [key.partition(":")[0] for key in stack.outputs()["publicKeys"]] == ["cache.test-2"]
    assert "user going-private-leaves" not in inventory.take()
    stack.set(builders=[])
    stack.up().succeeded()


def test_a_failing_push_lets_no_rule_stay_that_expire_has_turned_off(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    stack = new_stack(**server_settings(minio), bucket="kept-for-ever")
    stack.set(builders=[here("asleep")])
    stack.up().succeeded()
    stack.set(expire=False, builders=[here("asleep", closures=NOWHERE)])
    for _ in range(2):
        failed = stack.up()
        assert failed.code != 0
        assert inventory.root.get_bucket_lifecycle("kept-for-ever") is not None
        assert "by hand" not in failed.output
        (line,) = [one for one in failed.output.splitlines() if "--continue-on-error" in one][:1]
        assert "expire is off, and the lifecycle rules of bucket kept-for-ever go at the" in line
    assert stack.type("pulumi up --continue-on-error", YES).code != 0
    assert inventory.root.get_bucket_lifecycle("kept-for-ever") is None


@pytest.mark.parametrize("expire", [True, False])
def test_a_private_cache_that_is_open_fails_the_deployment_that_says_it_is_not(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory, tmp_path: Path, expire: bool
) -> None:
    stack = new_stack(f"closed-{expire}".lower(), **server_settings(minio), expire=expire)
    stack.set(bucket=stack.name, access="private")
    stack.up().succeeded()
    # As an up leaves it that went public, was killed as it wrote the policy, and was given up.
    MinioClient(minio, tmp_path).run(f"anonymous set download s3/{stack.name}")
    assert inventory.anonymous(stack.name, "nix-cache-info") == 200
    said = f"bucket {stack.name}: access is private, and its policy lets anybody use s3:GetB"
    assert said in stack.preview().succeeded().output
    refused = stack.up().refused()
    assert said in refused
    assert f"make repair STACK={stack.name} puts it right" in refused
    stack.operate("repair", "--stack", stack.name, "--yes").succeeded()
    assert inventory.anonymous(stack.name, "nix-cache-info") == 403
    stack.up("--expect-no-changes").succeeded()


def put_as(client: Any, bucket: str, key: str) -> None:
    client.put_object(bucket, key, io.BytesIO(b"x"), 1)


@pytest.mark.parametrize("others", [[], [here("stays")]], ids=["the only one", "one of two"])
def test_a_builder_that_does_not_answer_is_revoked(
    new_stack: StackFactory,
    minio: MinioServer,
    inventory: Inventory,
    tmp_path: Path,
    others: list[dict[str, object]],
) -> None:
    # As by default: what is forgotten must not be what the protected safeguard depends on.
    stack = new_stack(f"silent-{len(others)}", **{**server_settings(minio), "protect": True})
    directory = tmp_path / "credentials" / "mine"
    with SshServer() as ssh:
        gone = {"name": "gone", "host": "127.0.0.1", "port": ssh.port, "hostKey": ssh.host_key}
        stack.set(bucket=stack.name, sshPrivateKey=ssh.private_key)
        stack.set(builders=[{**gone, "credentialsDirectory": str(directory)}, *others])
        stack.up().succeeded()
    user = f"{stack.name}-gone"
    client = inventory.client(user, secrets_of(stack)[user])
    put_as(client, stack.name, f"{'0' * 32}.narinfo")

    stack.set(builders=others)
    failed = stack.up()
    assert failed.code != 0
    with pytest.raises(S3Error):
        put_as(client, stack.name, f"{'1' * 32}.narinfo")
    (remedy,) = [line for line in failed.output.splitlines() if "pulumi state delete" in line][:1]
    forget = re.search(r"pulumi state delete '[^']+' --target-dependents --force", remedy)
    assert forget
    stack.type(forget[0], (r"y/N\) ", "y\r")).succeeded()
    stack.up().succeeded()
    assert f"user {user}" not in inventory.take()
    assert not stack.changes()


# 8: a lost key.


def narinfo(key: SecretKey) -> bytes:
    """Return a narinfo with the key's signature."""
    unsigned = NarInfo(
        store_path="/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting",
        url=f"nar/{'1' * 52}.nar.zst",
        compression="zstd",
        nar_hash=f"sha256:{'0' * 52}",
        nar_size=1,
    )
    return replace(unsigned, signatures=(key.sign(unsigned.fingerprint),)).format().encode()


def test_another_key_does_not_take_the_name_of_the_one_that_signed_what_is_there(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    lost = SecretKey.generate("cache.test-1")
    inventory.root.make_bucket("lost-key")
    put(inventory, "lost-key", f"{'7' * 32}.narinfo", text=narinfo(lost))
    stack = new_stack(**server_settings(minio), bucket="lost-key", adoptBucket=True)
    for refused in (stack.preview().refused(), stack.up().refused()):
        assert 'signingKeys is "cache.test-1": what is in the bucket lost-key is signed' in refused
        assert "give that key in adoptedSigningKeys, or write cache.test-2" in refused
    stack.set(adoptedSigningKeys=lost.to_nix())
    assert not [line for line in stack.preview().succeeded().output if "error" in line]
    stack.set(adoptedSigningKeys=None, signingKeys=["cache.test-2"])
    stack.up().succeeded()


def test_the_key_that_a_state_has_kept_is_known_where_it_has_lost_the_bucket(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    stack = new_stack(**server_settings(minio), bucket="found-again")
    stack.up().succeeded()
    kept = stack.outputs()["signingKeyBackup"]
    signed = narinfo(SecretKey.parse(kept))
    put(inventory, "found-again", f"{'7' * 32}.narinfo", text=signed)
    # As a refresh does that meets a server without its data disk.
    (bucket,) = [one["urn"] for one in stack.resources() if one["type"].endswith(":S3Bucket")]
    stack.run("state", "delete", bucket, "--target-dependents", "--force", "--yes").succeeded()
    assert "set adoptBucket to true" in stack.up().refused()
    stack.set(adoptBucket=True)
    stack.preview().succeeded()
    stack.up().succeeded()
    assert stack.outputs()["signingKeyBackup"] == kept


# 9: directories of others.


def test_a_directory_that_holds_other_things_keeps_its_mode(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    directory = tmp_path / "holds" / "things"
    directory.mkdir(parents=True)
    (directory / "hosts").touch()
    directory.chmod(0o755)
    stack = new_stack(**server_settings(minio), bucket="directories")
    stack.set(builders=[here("a", credentialsDirectory="/etc")])
    mode = Path("/etc").stat().st_mode
    assert 'credentialsDirectory is "/etc": others need this directory' in stack.up().refused()
    assert Path("/etc").stat().st_mode == mode
    stack.set(builders=[here("a", credentialsDirectory=str(directory))])
    assert "holds other things, such as hosts" in stack.up().output
    assert directory.stat().st_mode & 0o777 == 0o755
    shared = str(tmp_path / "shared" / "directory")
    stack.set(builders=[here(name, credentialsDirectory=shared) for name in "ab"])
    assert "the builder a has it on the same machine" in stack.up().refused()


# 10: what the deployment keeps in the bucket.


def test_builders_write_nothing_that_the_deployment_keeps_in_the_bucket(
    new_stack: StackFactory, minio: MinioServer, inventory: Inventory
) -> None:
    stack = new_stack(**server_settings(minio), bucket="own-files", builders=[here("a")])
    stack.up().succeeded()
    ((user, secret),) = secrets_of(stack).items()
    builder = inventory.client(user, secret)
    status = "_nixcache/status"
    for key in (
        "nix-cache-info",
        "use.html",
        "index.html",
        "_nixcache/push.pyz",
        "_nixcache/x/y",
        "_nixcache/pins/x.narinfo",
        f"{status}/somebody-else",
        f"{status}/{user}/x",
    ):
        with pytest.raises(S3Error, match="AccessDenied"):
            put_as(builder, "own-files", key)
    for key in (f"{'0' * 32}.narinfo", f"nar/{'1' * 52}.nar", f"{status}/{user}"):
        put_as(builder, "own-files", key)
    with pytest.raises(S3Error, match="AccessDenied"):
        builder.remove_object("own-files", f"{'0' * 32}.narinfo")
