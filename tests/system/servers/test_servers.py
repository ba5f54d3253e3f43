"""Every server that can be had: what it answers, and the life of a cache on it.

The tests of one server follow one another, from the first deployment to the destruction.
"""

from __future__ import annotations

import fcntl
import io
import json
import shlex
import time
from collections.abc import Callable, Mapping

import pytest
import urllib3
from minio.error import S3Error

from components.access import WRITE_ACTIONS
from formats.narinfo import NarInfo
from tests.system.cache_bucket import place
from tests.system.servers.conftest import BUCKET, PATHS, Life, expected, secrets_of
from tests.system.servers.needs import Measurement
from tests.system.stack import CHECKOUT
from toolbox.servers.s3_server import S3Server

pytestmark = pytest.mark.system

RESULTS = CHECKOUT / "build" / "servers.json"

TOMORROW = """
import push.publishing, push.session
push.publishing.today = push.session.today = lambda _: "2999-01-01"
"""
"""Every lease has begun on an earlier day."""


def note(server: S3Server, results: Mapping[str, str]) -> None:
    """Write what a server answered into the file of results, beside what others did."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        rows = [row for row in json.loads(text or "[]") if row["server"] != server.title]
        rows += [
            {"server": server.title, "version": server.version, "need": need, "result": result}
            for need, result in results.items()
        ]
        file.seek(0)
        file.truncate()
        file.write(json.dumps(rows, indent=1) + "\n")


def policy_to_write_anything(bucket: str) -> str:
    """Return a policy of what pushes do, with objects of any name: a question is one, too."""
    arn = f"arn:aws:s3:::{bucket}"
    allowed = {"Effect": "Allow", "Action": WRITE_ACTIONS, "Resource": [arn, f"{arn}/*"]}
    return json.dumps({"Version": "2012-10-17", "Statement": [allowed]})


def test_a_server_answers_as_the_table_says(server: S3Server) -> None:
    bucket = "needs"
    builder = server.make_user("asker")
    if server.makes_buckets_elsewhere:
        server.make_bucket(bucket)
    else:
        server.client().make_bucket(bucket, server.region)
    server.let_write("asker", bucket, policy_to_write_anything(bucket))
    results = Measurement(server, bucket, builder).results()
    note(server, results)
    assert results == expected()[server.title]


def test_the_probe_says_that_the_cache_can_be_kept_there(life: Life) -> None:
    probed = life.stack.operate("check_server", "--stack", life.stack.name)
    assert probed.code == 0, probed.output


def test_a_client_with_only_the_key_pulls_what_a_builder_pushed(life: Life) -> None:
    outputs = life.stack.outputs()
    assert life.pull(outputs["substituter"], outputs["publicKeys"]) == PATHS


def test_nothing_is_left_to_do_after_the_first_up_and_a_refresh_finds_the_same(life: Life) -> None:
    assert not life.stack.changes("--refresh")


def test_a_push_with_nothing_new_writes_nothing(life: Life) -> None:
    before = life.objects()
    again = life.stack.operate("push", "--stack", life.stack.name).succeeded().output
    assert f"pushed 0 paths (0 B), reused {PATHS}" in again
    assert "renewed 0, repaired 0" in again
    assert life.objects() == before


def test_a_push_on_a_later_day_renews_every_object_and_changes_none(life: Life) -> None:
    before, contents = life.objects(), narinfos(life)
    parts = [key for key in before if size(life, key) > 5 << 20]
    assert parts
    time.sleep(1.1)  # Times of objects are whole seconds.
    access = life.stack.outputs()["builders"]["nixbuilder"]
    settings = {
        "endpoint": life.server.endpoint,
        "region": life.server.region,
        "bucket": BUCKET,
        "access-key-id": access["accessKeyId"],
        "secret-access-key": access["secretAccessKey"],
        "signing-key": life.stack.outputs()["signingKeyBackup"],
        "ca-certificate-file": "/etc/private-ca.pem",
        "compression": "none",
        "part-size": str(5 << 20),
        "renew": "yes",
    }
    text = "".join(f"{name}={value}\n" for name, value in settings.items())
    command = [*place(life.machine, TOMORROW), "--config", "-", life.closure]
    renewed = life.machine.run(shlex.join(command), input=text).stdout
    assert f"pushed 0 paths (0 B), reused {PATHS}" in renewed
    assert f"renewed {PATHS}, repaired 0" in renewed
    after = life.objects()
    assert after.keys() == before.keys()
    cache = [key for key in after if key.endswith(".narinfo") or key.startswith("nar/")]
    assert len(cache) == 2 * PATHS
    assert [key for key in cache if after[key] <= before[key]] == []
    assert narinfos(life) == contents


def test_a_builder_does_what_pushing_takes_and_a_reader_only_reads(life: Life) -> None:
    some = next(key for key in life.objects() if key.endswith(".narinfo"))
    builder, reader = life.server.client(life.builder), life.server.client(life.reader)
    assert reader.get_object(BUCKET, some).read()
    forbidden: list[Callable[[], object]] = [
        lambda: reader.put_object(BUCKET, "x", io.BytesIO(b"x"), 1),
        lambda: reader.remove_object(BUCKET, some),
        lambda: builder.delete_bucket_lifecycle(BUCKET),
    ]
    if not life.server.writers_may_delete:
        forbidden += [
            lambda: builder.remove_object(BUCKET, some),
            lambda: builder.put_object(BUCKET, "nix-cache-info", io.BytesIO(b"x"), 1),
            lambda: list(reader.list_objects(BUCKET)),
        ]
    for attempt in forbidden:
        with pytest.raises(S3Error, match="AccessDenied"):
            attempt()


def test_a_longer_retention_and_another_key_are_one_up(life: Life) -> None:
    life.stack.set(retentionDays=14, signingKeys=["cache.test-1", "cache.test-2"])
    life.stack.up().succeeded()
    assert life.expiration() == life.declared(14)
    for text in narinfos(life).values():
        signed = {signature.partition(":")[0] for signature in NarInfo.parse(text).signatures}
        assert signed == {"cache.test-1", "cache.test-2"}
    outputs = life.stack.outputs()
    assert life.pull(outputs["substituter"], outputs["publicKeys"][1:]) == PATHS


def test_drift_and_damage_are_found_and_the_program_mends_both(life: Life) -> None:
    stack = life.stack
    assert stack.operate("drift", "--stack", stack.name).succeeded()
    root = life.server.client()
    root.delete_bucket_lifecycle(BUCKET)
    lost = next(key for key in life.objects() if key.startswith("nar/"))
    root.remove_object(BUCKET, lost)
    assert stack.operate("drift", "--stack", stack.name).code == 1
    audited = stack.operate("audit", "--stack", stack.name)
    assert audited.code == 1
    assert lost in audited.output
    stack.up("--refresh").succeeded()
    assert life.expiration() == life.declared(14)
    stack.operate("push", "--stack", stack.name).succeeded()
    assert stack.operate("audit", "--stack", stack.name).succeeded()


def test_a_cache_goes_private(life: Life) -> None:
    if not life.server.has_bucket_policies:
        pytest.skip(f"{life.server.title} opens and closes a bucket by its own tool")
    assert anonymous(life, "nix-cache-info") == 200
    life.stack.set(
        access="private",
        readerAccessKeyId=life.reader.access_key_id,
        givenUserSecrets=secrets_of(life.builder, life.reader),
    )
    life.stack.up().succeeded()
    assert anonymous(life, "nix-cache-info") == 403
    assert life.server.client(life.reader).get_object(BUCKET, "nix-cache-info").read()
    assert not life.stack.changes("--refresh")


def test_it_ends_with_nothing_left(life: Life) -> None:
    life.stack.operate("empty", "--stack", life.stack.name, text=f"{BUCKET}\n").succeeded()
    life.stack.destroy().succeeded()
    life.ended = True
    assert not life.stack.resources()
    assert not life.server.client().bucket_exists(BUCKET)


def narinfos(life: Life) -> dict[str, str]:
    """Return the narinfos' texts by their keys."""
    client = life.server.client()
    keys = [key for key in life.objects() if key.endswith(".narinfo")]
    return {key: client.get_object(BUCKET, key).read().decode() for key in keys}


def size(life: Life, key: str) -> int:
    """Return an object's size."""
    return int(life.server.client().stat_object(BUCKET, key).size or 0)


def anonymous(life: Life, key: str) -> int:
    """Return the status of a GET without a credential."""
    pool = urllib3.PoolManager(ca_certs=str(life.server.ca_file), retries=False)
    return pool.request("GET", f"{life.server.endpoint}/{BUCKET}/{key}").status
