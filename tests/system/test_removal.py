"""A stack goes whole, or nothing of it goes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from minio import Minio
from minio.versioningconfig import VersioningConfig

from program.checks.s3_client import Server
from tests.system.conftest import StackFactory, server_settings
from tests.system.stack import Outcome, Stack
from tests.system.terminal import YES
from tests.system.test_cache import s3
from toolbox.minio_server import MinioServer

pytestmark = pytest.mark.system


def root(server: MinioServer) -> Minio:
    """Return an S3 client that may do everything."""
    return s3(server, server.root_user, server.root_password)


def destroys(stack: Stack, *arguments: str) -> Iterator[Outcome]:
    """Yield what a preview of a destroy comes to, and then the destroy."""
    for how in (["--preview-only"], ["--skip-preview", "--yes"]):
        yield stack.run("destroy", *how, "-s", stack.name, *arguments)


@pytest.fixture(scope="module")
def lasting(
    engine: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory, minio: MinioServer
) -> Iterator[Stack]:
    """A stack that no refusal changes, and that goes whole in the end."""
    stack = Stack(engine, tmp_path_factory.mktemp("lasting"))
    stack.set(server_settings(minio), bucket="lasting", builders=[{"name": "here", "local": True}])
    stack.up().succeeded()
    yield stack
    assert not stack.changes("--refresh")
    for outcome in destroys(stack, "--run-program"):
        outcome.succeeded()
    assert not root(minio).bucket_exists("lasting")
    assert not stack.resources()


@pytest.fixture
def full(lasting: Stack, minio: MinioServer) -> Iterator[Stack]:
    """The same stack while its bucket holds something."""
    names = ("nar/1", "0" * 32 + ".narinfo")
    for name in names:
        root(minio).put_object("lasting", name, io.BytesIO(b"x"), 1)
    yield lasting
    for name in names:
        root(minio).remove_object("lasting", name)


def test_a_destroy_of_a_bucket_that_is_not_empty_is_refused_before_anything_goes(
    full: Stack,
) -> None:
    for refused in destroys(full, "--run-program"):
        assert "bucket lasting holds 2 objects of the cache" in refused.refused()
        assert "make empty STACK=test removes them" in refused.output
        assert "Traceback" not in refused.output
    for refused in destroys(full):
        assert "--run-program" in refused.refused()
        assert "protect off, bucket empty" in refused.output


def test_a_bucket_is_emptied_once_its_name_is_typed_and_keeps_what_the_program_keeps(
    full: Stack, minio: MinioServer
) -> None:
    def left() -> set[str]:
        return {str(o.object_name) for o in root(minio).list_objects("lasting", recursive=True)}

    before = left()
    nothing = full.operate("empty", "--stack", full.name, "no-such", text="lasting\n")
    assert "bucket lasting has no object of the name no-such" in nothing.refused()
    refused = full.operate("empty", "--stack", full.name, text="yes\n")
    assert refused.code == 1
    assert "bucket lasting at https://127.0.0.1" in refused.output
    assert "holds 2 objects and versions, 2 bytes" in refused.output
    assert refused.output.endswith("error: that is not its name; nothing was removed\n")
    some = full.operate("empty", "--stack", full.name, "no-such", "use.html", text="no\n")
    assert "1 object or version of these names" in some.output
    assert "It has none of the name no-such.\n" in some.output
    assert left() == before

    emptied = full.operate("empty", "--stack", full.name, text="lasting\n").succeeded()
    assert emptied.output.endswith("removed 2 objects from bucket lasting\n")
    assert left() == {"nix-cache-info", "use.html"}
    full.run("destroy", "--preview-only", "--run-program", "-s", full.name).succeeded()
    again = full.operate("empty", "--stack", full.name).succeeded()
    assert again.output == "bucket lasting holds nothing to remove\n"


def test_whatever_an_object_is_called_it_goes_and_no_other_in_its_place(
    lasting: Stack, minio: MinioServer
) -> None:
    names = ["a b", "nar/x\ry", "a+b", "a%20b", "a%2Bb", "\u6f22.nar", "q'\"<>&.txt"]
    names += ["nar/x-g++.drv", "nar/x\ny", "nar/\x01", "\x01.narinfo", " lead", "\ufffe"]
    for name in names:
        root(minio).put_object("lasting", name, io.BytesIO(b"x"), 1)
    for name in names[:2]:
        one = lasting.operate("empty", "--stack", "test", name, text="lasting\n").succeeded()
        assert one.output.endswith("removed 1 object from bucket lasting\n")
        names.remove(name)
        assert held(minio, "lasting") == {*names, "nix-cache-info", "use.html"}
    emptied = lasting.operate("empty", "--stack", "test", text="lasting\n").succeeded()
    assert emptied.output.endswith(f"removed {len(names)} objects from bucket lasting\n")
    assert held(minio, "lasting") == {"nix-cache-info", "use.html"}


def test_what_is_behind_a_page_of_names_with_blanks_is_seen(
    lasting: Stack, minio: MinioServer
) -> None:
    with ThreadPoolExecutor(4) as threads:
        put = partial(root(minio).put_object, "lasting", data=io.BytesIO(), length=0)
        list(threads.map(lambda number: put(f"img {number:04}.jpg"), range(1100)))
    server = Server(
        address=minio.endpoint.removeprefix("https://"),
        tls=True,
        region="us-east-1",
        user=minio.root_user,
        password=minio.root_password,
        ca_certificate_file=str(minio.ca_file),
    )
    assert {entry.key for entry in server.listing("lasting")} == held(minio, "lasting")
    emptied = lasting.operate("empty", "--stack", "test", text="lasting\n").succeeded()
    assert "holds 1,100 objects and versions" in emptied.output
    assert held(minio, "lasting") == {"nix-cache-info", "use.html"}


def test_a_bucket_that_keeps_versions_is_emptied_and_goes(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="versions")
    stack.up().succeeded()
    root(minio).set_bucket_versioning("versions", VersioningConfig("Enabled"))
    for _ in range(2):
        root(minio).put_object("versions", "nar/1", io.BytesIO(b"x"), 1)
    root(minio).put_object("versions", "nar/\x01\r", io.BytesIO(b"x"), 1)
    for name in ("nar/1", "nar/\x01\r"):
        root(minio).remove_object("versions", name)
    # What the settings say by now has never been applied, and neither has to be for this.
    stack.set(retentionDays=30)
    stack.run("refresh", "--run-program", "--yes", "-s", "test").succeeded()
    for refused in destroys(stack, "--run-program"):
        assert "bucket versions holds 7 versions of objects" in refused.refused()
        assert "make empty STACK=test ARGS=--all removes them" in refused.output
    stack.operate("empty", "--stack", "test", "--all", text="versions\n").succeeded()
    stack.destroy().succeeded()
    assert not root(minio).bucket_exists("versions")


def test_a_destroy_of_a_protected_stack_is_refused_and_names_the_setting(lasting: Stack) -> None:
    lasting.set(protect=True)
    lasting.up().succeeded()
    for refused in destroys(lasting, "--run-program"):
        assert "pulumi config set protect false, pulumi up" in refused.refused()
        assert "state unprotect" not in refused.output
    # What only leaves the settings is not in the safeguard's way.
    lasting.set(builders=[])
    lasting.up().succeeded()
    lasting.set(bucket="another")
    kept = lasting.preview().refused()
    assert "set protect to false and run pulumi up before the change" in kept
    lasting.set(bucket="lasting", protect=False)
    lasting.type("pulumi up", YES).succeeded()
    lasting.set(bucket="another")
    assert lasting.changes().keys() == {"create", "delete"}
    lasting.set(bucket="lasting")


def test_another_bucket_is_not_made_in_the_place_of_one_that_is_not_empty(
    full: Stack, minio: MinioServer
) -> None:
    full.set(bucket="another")
    for refused in (full.preview().refused(), full.up().refused()):
        assert 'bucket is "another": this stack\'s bucket lasting holds 2 objects' in refused
    assert not root(minio).bucket_exists("another")
    full.set(bucket="lasting")


HERE = {"name": "here", "local": True}
ASLEEP = {**HERE, "closures": [f"/nix/store/{'0' * 32}-nowhere"]}
"""A builder whose push fails."""


@pytest.fixture
def stuck(new_stack: StackFactory, minio: MinioServer) -> Iterator[Stack]:
    """A stack whose bucket `first` was to be `second`: both are there, and no builder has pushed.

    A builder has pushed to the old one meanwhile, by the outputs that are still in force.
    """
    stack = new_stack(**server_settings(minio), bucket="first", builders=[HERE])
    stack.set(pins=[{"name": "kept", "path": f"/nix/store/{'1' * 32}-kept"}])
    stack.up().succeeded()
    stack.set(bucket="second", builders=[ASLEEP])
    assert "here-push" in stack.up().refused()
    assert {"first", "second"} <= {bucket.name for bucket in root(minio).list_buckets()}
    root(minio).put_object("first", "nar/1", io.BytesIO(b"x"), 1)
    stack.set(builders=[HERE])
    yield stack
    for name in ("first", "second"):
        if root(minio).bucket_exists(name):
            root(minio).remove_object(name, "nar/1")
    stack.destroy().succeeded()


def held(server: MinioServer, bucket: str) -> set[str]:
    """Return the names of what a bucket holds."""
    return {str(found.object_name) for found in root(server).list_objects(bucket, recursive=True)}


@pytest.mark.parametrize("adopt", [True, None])
def test_a_bucket_whose_renaming_failed_is_the_cache_again_once_its_name_is_taken_back(
    stuck: Stack, minio: MinioServer, adopt: bool | None
) -> None:
    before = held(minio, "first")
    stuck.set(bucket="first", adoptBucket=adopt)
    told = stuck.preview().succeeded().output
    changes = stuck.changes()
    stuck.up().succeeded()
    assert held(minio, "first") == before
    assert "nar/1" in before
    assert not root(minio).bucket_exists("second")
    assert changes.keys() == {"delete"}
    assert "data would be lost: bucket second is deleted, with every entry that is in it" in told
    # Who may read it and what expires there, too.
    assert not stuck.changes("--refresh")
    stuck.up().succeeded()
    assert held(minio, "first") == before


def test_a_bucket_that_was_pushed_to_before_it_went_is_named_and_goes_once_it_is_empty(
    stuck: Stack, minio: MinioServer
) -> None:
    root(minio).put_object("second", "nar/1", io.BytesIO(b"x"), 1)
    for refused in (
        stuck.preview().refused(),
        stuck.up().refused(),
        stuck.operate("repair", "--stack", "test", "--yes", "--skip-preview").refused(),
    ):
        assert "this stack's bucket first holds 1 objects of the cache" in refused
        assert "make empty STACK=test removes them, or name that one again" in refused
    told = stuck.operate("drift", "--stack", "test")
    assert told.code == 2
    assert "this stack's bucket first holds 1 objects of the cache" in told.output
    assert "it cannot be told what differs\n" in told.output

    not_it = stuck.operate("empty", "--stack", "test", text="second\n")
    assert "bucket first at https://127.0.0.1" in not_it.output
    assert not_it.code == 1
    assert "nar/1" in held(minio, "first") & held(minio, "second")
    stuck.operate("empty", "--stack", "test", text="first\n").succeeded()
    assert "nar/1" in held(minio, "second")
    stuck.up().succeeded()
    assert not root(minio).bucket_exists("first")
    assert not stuck.changes("--refresh")


def test_a_half_renamed_stack_is_destroyed_once_both_buckets_are_empty(
    stuck: Stack, minio: MinioServer
) -> None:
    root(minio).put_object("second", "nar/1", io.BytesIO(b"x"), 1)
    for bucket in ("first", "second"):
        for refused in destroys(stuck, "--run-program"):
            assert f"bucket {bucket} holds 1 objects of the cache" in refused.refused()
        stuck.operate("empty", "--stack", "test", text=f"{bucket}\n").succeeded()
    stuck.destroy().succeeded()
    assert not {"first", "second"} & {bucket.name for bucket in root(minio).list_buckets()}


def test_a_stack_whose_server_is_silent_is_not_destroyed_half_way(
    new_stack: StackFactory, tmp_path: Path
) -> None:
    with MinioServer(tmp_path / "minio") as server:
        stack = new_stack(**server_settings(server))
        stack.up().succeeded()
        before = {resource["urn"] for resource in stack.resources()}
    for refused in destroys(stack, "--run-program"):
        assert "no S3 server answers there" in refused.refused()
    assert {resource["urn"] for resource in stack.resources()} == before
