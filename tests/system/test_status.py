"""The status of a real cache: what pushes tell, what a pin lacks, and what expires when."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from formats.narinfo import narinfo_of
from formats.pin import pin_key
from formats.push_status import parse_status, status_key
from program.checks.recorded import USER, Recorded
from tests.system import midnight
from tests.system.cache_bucket import connections, put_as_of
from tests.system.conftest import builder_settings, server_settings
from tests.system.minio_client import MinioClient
from tests.system.stack import Outcome, Stack
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

PATHS = 5
BUCKET = "told"
KEY = str(status_key("told-nixbuilder"))
UNDEPLOYED = "see pulumi preview, then run pulumi up, or undo the change"


@pytest.fixture(scope="module")
def mc(minio: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> MinioClient:
    return MinioClient(minio, tmp_path_factory.mktemp("mc"))


@pytest.fixture(scope="module")
def closure(builder: ThrowawayBuilder) -> str:
    return builder.make_closure(PATHS, 100_000, seed=51, name="told")


@pytest.fixture(scope="module")
def stack(
    engine: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    minio: MinioServer,
    builder: ThrowawayBuilder,
    closure: str,
) -> Stack:
    """A stack whose builder has pushed once, by the deployment, and whose pin keeps that."""
    stack = Stack(engine, tmp_path_factory.mktemp("told"))
    stack.set(
        server_settings(minio),
        bucket=BUCKET,
        upstreamKeys=[],
        sshPrivateKey=builder.private_key,
        builders=[builder_settings(builder, closure)],
        pins=[{"name": "release", "path": closure}],
    )
    stack.up().succeeded()
    return stack


def told(stack: Stack) -> tuple[Outcome, Mapping[str, Any]]:
    """Return what `make status` shows, and what it has for machines."""
    file = stack.project / "status.json"
    outcome = stack.operate("status", "--stack", stack.name, "--json", str(file))
    assert file.exists(), outcome.output
    status = json.loads(file.read_text())
    assert outcome.code == (1 if status["findings"] else 0)
    return outcome, status


def test_one_screen_shows_what_pushed_what_is_kept_and_what_expires(
    stack: Stack, closure: str
) -> None:
    outcome, status = told(stack)
    assert outcome.code == 0, outcome.output
    assert (status["entries"], status["nars"]) == (PATHS, PATHS)
    (builder,) = status["builders"]
    assert builder["status"]["started_by"] == "deployment"
    assert (builder["lease"]["own"], builder["status"]["pushed"]) == (PATHS, PATHS)
    assert builder["status"]["nix"].startswith("2.")
    pushed = datetime.fromisoformat(builder["last_push"].replace("Z", "+00:00")).date()
    assert builder["expires"] == f"{pushed + timedelta(days=8)}T00:00:00Z"
    (pin,) = status["pins"]
    assert (pin["name"], pin["targets"], pin["paths"], pin["lost"]) == (
        "release",
        [closure],
        PATHS,
        {},
    )
    assert "cache.test-1 signs" in outcome.output
    assert f"{PATHS} later" in outcome.output
    # Since when a builder can be late, the engine tells.
    users = {str(n): one for n, one in enumerate(stack.resources()) if one["type"] == USER}
    (since,) = Recorded(users).users_since.values()
    assert timedelta(0) < datetime.now(timezone.utc) - since < timedelta(hours=1)


def test_metrics_are_written_whole_for_node_exporter(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "nix-binary-cache.prom"
    command = ("status", "--stack", stack.name, "--prometheus", str(file))
    stack.operate(*command).succeeded()
    families = {one.name: one for one in text_string_to_metric_families(file.read_text())}
    (entries,) = families["nix_binary_cache_entries"].samples
    assert (entries.value, entries.labels) == (PATHS, {"stack": stack.name})
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    nowhere = stack.operate(*command[:-1], str(tmp_path / "none" / "x.prom"))
    assert (nowhere.code, "cannot be written" in nowhere.output) == (2, True)
    printed = stack.operate(*command[:-1], "-").succeeded().output
    assert printed.startswith("# HELP nix_binary_cache_")


def test_a_builder_that_stopped_and_a_pin_that_lacks_something_are_found(
    stack: Stack, minio: MinioServer, mc: MinioClient, closure: str
) -> None:
    content = mc.run(f"cat s3/{BUCKET}/{KEY}").encode()
    assert parse_status(content).kept_all
    then = datetime.now(timezone.utc) - timedelta(days=4)
    put_as_of(minio, connections(minio), BUCKET, KEY, content, then)
    outcome, status = told(stack)
    late = "! builder nixbuilder: no push has kept all it has for 4 of the 7 days"
    assert late in outcome.output
    assert status["builders"][0]["last_push"] == f"{then:%Y-%m-%dT%H:%M:%SZ}"

    mc.run(f"rm s3/{BUCKET}/{narinfo_of(closure)}")
    outcome, _ = told(stack)
    assert f"pin release is incomplete: {closure}: the cache does not have it" in outcome.output
    # The push that mends it tells of itself.
    stack.operate("push", "--stack", stack.name).succeeded()
    outcome, status = told(stack)
    assert outcome.code == 0, outcome.output
    assert status["builders"][0]["status"]["pushed"] == 1


def test_nobody_elses_text_does_harm(stack: Stack, mc: MinioClient, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.write_text(f'{{"host": "\x1b[2J{"x" * 3000}"}}')
    mc.run(f"cp {hostile} s3/{BUCKET}/{KEY}")
    mc.run(f"cp {hostile} s3/{BUCKET}/_nixcache/status/somebody")
    mc.run(f"cp {hostile} s3/{BUCKET}/{pin_key('odd')}")
    outcome, _ = told(stack)
    assert "! builder nixbuilder: what it tells of its pushes cannot be read" in outcome.output
    assert "! pin odd: cannot be read: " in outcome.output
    assert "somebody: no builder of this stack" in outcome.output
    assert "\x1b" not in outcome.output
    mc.run(f"rm s3/{BUCKET}/{pin_key('odd')} s3/{BUCKET}/_nixcache/status/somebody")
    # Nothing of it is a deployment's to mend, and none of it expires.
    assert not stack.changes("--refresh")
    assert stack.operate("drift", "--stack", stack.name).code == 0


def test_where_builders_may_not_tell_a_refresh_gives_them_the_right(
    stack: Stack, mc: MinioClient, tmp_path: Path
) -> None:
    """A policy of before: it let builders write the cache, and nothing of the program's folder."""
    mc.run(f"rm s3/{BUCKET}/{KEY}")
    before = tmp_path / "before.json"
    policy = json.loads(mc.run("--json admin policy info s3 told-write"))["policyInfo"]["Policy"]
    for statement in policy["Statement"]:
        if "Resource" in statement:
            resources = [one for one in statement["Resource"] if "/status/" not in one]
            statement["Resource"] = resources
    before.write_text(json.dumps(policy))
    mc.run(f"admin policy create s3 told-write {before}")
    advice = "run pulumi up --refresh --run-program to give builders that right"
    pushed = stack.operate("push", "--stack", stack.name).succeeded()
    assert advice in pushed.output
    outcome, _ = told(stack)
    assert "builder nixbuilder: it has told of no push yet" in outcome.output
    stack.run("up", "--refresh", "--yes", "--skip-preview", "-s", stack.name).succeeded()
    assert advice not in stack.operate("push", "--stack", stack.name).succeeded().output
    assert told(stack)[0].code == 0


def test_the_page_shows_figures_that_change_when_a_report_is_published_and_at_no_other_time(
    stack: Stack, mc: MinioClient
) -> None:
    midnight.wait_where_it_is_near()

    def page() -> str:
        return mc.run(f"cat s3/{BUCKET}/use.html")

    report = ("report", "--stack", stack.name, "--output", "report.html")
    off = stack.operate(*report, "--publish")
    assert (off.code, "set pageFigures to true" in off.output) == (2, True)
    stack.set(pageFigures=True)
    assert not stack.changes()
    stack.operate(*report, "--publish").succeeded()
    assert f"<dd>{PATHS}</dd>" in page()
    # Nor does it promise what is not deployed.
    stack.set(retentionDays=30)
    told_before, promised = told(stack)
    assert "retentionDays is 30 in the settings and not deployed" in told_before.output
    assert promised["rules"]["retention_days"] == 7
    refused = stack.operate(*report, "--publish")
    assert (refused.code, UNDEPLOYED in refused.output) == (2, True)
    assert "(retentionDays is 30)" in refused.output
    assert "30 days" not in page()
    stack.up().succeeded()
    stack.operate(*report, "--publish").succeeded()
    assert "30 days" in page()
    assert f"{datetime.now(timezone.utc):%Y-%m-%d}" in page()
    shown = page()
    # Neither a preview, a refresh nor a deployment measures anything.
    mc.run(f"cp s3/{BUCKET}/nix-cache-info s3/{BUCKET}/{'0' * 32}.narinfo")
    assert not stack.changes("--refresh")
    stack.up().succeeded()
    stack.operate(*report).succeeded()
    assert page() == shown
    stack.operate(*report, "--publish").succeeded()
    assert f"<dd>{PATHS + 1}</dd>" in page()
    assert not stack.changes("--refresh")
    mc.run(f"rm s3/{BUCKET}/{'0' * 32}.narinfo")
    # What a page keeps of the reports before it is one figure a day.
    text = (stack.project / "report.html").read_text()
    (kept,) = re.findall(r'id="reports">([^<]*)<', text)
    assert json.loads(kept)["stack"] == stack.name
    assert len(json.loads(kept)["reports"]) == 1


def test_a_push_waits_until_the_settings_are_deployed_and_changes_nothing_before(
    stack: Stack, builder: ThrowawayBuilder, closure: str
) -> None:
    link = "/nix/var/nix/gcroots/told"
    builder.run(f"ln -sfn {closure} {link}")
    pushing = builder_settings(builder, link)
    keys = ["cache.test-1", "cache.test-2"]
    pins = [
        {"name": "release", "path": closure},
        {"name": "live", "builder": "nixbuilder", "link": link, "keepLast": 2},
    ]
    stack.set(builders=[pushing], pins=pins)
    stack.up().succeeded()
    push = ("push", "--stack", stack.name)

    def refused(words: str) -> None:
        before = stack.export()
        told = stack.operate(*push)
        assert f"({words})" in told.refused()
        assert "see pulumi preview, then run pulumi up, or undo the change" in told.output
        assert stack.export() == before

    for changed, undone, words in (
        ({"signingKeys": keys}, {"signingKeys": keys[:1]}, f"signingKeys is {json.dumps(keys)}"),
        ({"publicUrl": "https://c.test"}, {"publicUrl": None}, "publicUrl is https://c.test"),
        (
            {"builders": [pushing, {"name": "laptop", "local": True}]},
            {"builders": [pushing]},
            "builders has laptop",
        ),
        ({"pins": pins[1:]}, {"pins": pins}, "pins lacks release"),
    ):
        stack.set(changed)
        refused(words)
        stack.set(undone)
    # A link that points elsewhere now is what a push is for, again and again.
    other = builder.make_closure(1, 1000, seed=52, name="later")
    builder.run(f"ln -sfn {other} {link}")
    for _ in range(2):
        stack.operate(*push).succeeded()
    assert stack.outputs()["builders"]["nixbuilder"]["closures"] == [other]
    # Clients do not know the new key yet: nothing is signed with it by chance.
    stack.set(signingKeys=keys)
    stack.up("--target", "**SigningKey**").succeeded()
    refused("builder nixbuilder is to sign with cache.test-2 and does not yet")
    stack.up().succeeded()
    stack.operate(*push).succeeded()


def test_a_builder_that_left_is_shown_as_such_and_an_emptied_bucket_can_go(stack: Stack) -> None:
    stack.set(builders=[], pins=[])
    stack.up().succeeded()
    outcome, status = told(stack)
    assert status["former"] == ["told-nixbuilder"]
    assert "told-nixbuilder: no builder of this stack" in outcome.output
    stack.operate("empty", "--stack", stack.name, text=f"{BUCKET}\n").succeeded()
    assert told(stack)[1]["former"] == []
    stack.destroy().succeeded()
