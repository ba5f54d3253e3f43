"""What lives, for how long: the rules in force, a change of them, leases, pins, sixty days."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from components.push_program import PROGRAM_KEY
from components.retention import ExpirationRule, difference, expiration_rules
from formats.nix32 import NIX32_ALPHABET
from formats.push_status import status_key
from program.checks.recorded import LIFECYCLE
from program.checks.s3_client import Server
from tests.system import retention_simulation
from tests.system.cache_bucket import CacheBucket, client, connections, put_as_of
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.fault_proxy import fault_proxy
from tests.system.retention_simulation import GRACE_DAYS, RETENTION_DAYS, set_lifecycle
from tests.system.stack import CHECKOUT, Stack
from tests.system.terminal import YES
from tests.unit.components.test_retention import former_rules
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

BUCKET = "retained"


def days_ago(days: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(days=days)


class Deployed:
    """A stack whose bucket is looked into and aged behind its back."""

    def __init__(self, stack: Stack, server: MinioServer) -> None:
        self.stack = stack
        self.server = server
        self.root = client(server)
        self._http = connections(server)

    def put(self, key: str, content: bytes = b"x", *, days: float) -> None:
        """Write an object as if so many days ago."""
        put_as_of(self.server, self._http, BUCKET, key, content, days_ago(days))

    def age(self, days: float) -> None:
        """Make every object so many days old."""
        for key in self.objects():
            self.put(key, self.root.get_object(BUCKET, key).read(), days=days)

    def objects(self) -> set[str]:
        return {str(entry.object_name) for entry in self.root.list_objects(BUCKET, recursive=True)}

    def age_in_days(self, path: str) -> int:
        """Return how old the narinfo of a store path is."""
        modified = self.root.stat_object(BUCKET, narinfo_key(path)).last_modified
        assert modified is not None
        return (datetime.now(timezone.utc) - modified).days

    def rules(self) -> tuple[ExpirationRule, ...]:
        """Return the rules in force."""
        server = Server(
            address=self.server.endpoint.removeprefix("https://"),
            tls=True,
            region="us-east-1",
            user=self.server.root_user,
            password=self.server.root_password,
            ca_certificate_file=str(self.server.ca_file),
        )
        lifecycle = server.lifecycle(BUCKET)
        return () if lifecycle is None else lifecycle.rules


def narinfo_key(path: str) -> str:
    return f"{Path(path).name[:32]}.narinfo"


def narinfo_keys(count: int) -> list[str]:
    """Return names of narinfos that begin differently."""
    return [f"{NIX32_ALPHABET[number] * 32}.narinfo" for number in range(count)]


@pytest.fixture
def deployed(new_stack: StackFactory, minio: MinioServer) -> Iterator[Deployed]:
    """A stack without builders that has not been deployed; its bucket is gone afterwards."""
    it = Deployed(new_stack(**server_settings(minio), bucket=BUCKET), minio)
    assert not it.root.bucket_exists(BUCKET)
    yield it
    if it.root.bucket_exists(BUCKET):
        for key in it.objects():
            it.root.remove_object(BUCKET, key)
        it.root.remove_bucket(BUCKET)


def test_the_rules_in_force_are_the_declared_ones(deployed: Deployed) -> None:
    stack = deployed.stack
    stack.set(retentionDays=9, graceDays=3)
    stack.up().succeeded()
    assert difference(expiration_rules(9, 3), deployed.rules()) is None
    assert stack.outputs()["retention"] == "An entry expires 9 days after its last push."
    stack.set(expire=False)
    assert "expire is off" in stack.up().succeeded().output
    assert deployed.rules() == ()
    assert "expire is off" not in stack.up().succeeded().output
    assert stack.outputs()["retention"] == "Entries never expire."


def test_rules_that_are_not_in_force_fail_the_deployment_and_are_shown(deployed: Deployed) -> None:
    stack = deployed.stack
    stack.up().succeeded()
    # What the recipe does by hand takes every rule's place, and deletes nix-cache-info in a week.
    recipe = Rule(
        ENABLED, rule_filter=Filter(prefix=""), rule_id="expire", expiration=Expiration(days=7)
    )
    deployed.root.set_bucket_lifecycle(BUCKET, LifecycleConfig([recipe]))
    refused = stack.up().refused()
    assert f"{len(expiration_rules(7, 1))} missing (nar: nar/ after 8 days)" in refused
    assert "1 not declared (expire: everything after 7 days)" in refused
    assert "pulumi up --refresh --run-program" in refused
    stack.type("pulumi up --refresh --run-program", YES).succeeded()
    assert difference(expiration_rules(7, 1), deployed.rules()) is None


def test_a_stack_whose_page_and_rules_were_other_ones_is_brought_up_to_date(
    deployed: Deployed,
) -> None:
    stack, rules = deployed.stack, former_rules(7)
    stack.up().succeeded()
    page = deployed.root.get_object(BUCKET, "use.html").read()
    deployed.put("index.html", page, days=0)
    deployed.root.remove_object(BUCKET, "use.html")
    set_lifecycle(deployed.root, BUCKET, rules)
    state = json.loads(stack.export().replace("use.html", "index.html"))
    for one in state["deployment"]["resources"]:
        for known in (one.get("inputs", {}), one.get("outputs", {})):
            if one["type"] == LIFECYCLE:
                like = known["rules"][0]
                known["rules"] = [
                    {**like, "id": rule.id, "filter": rule.prefix, "expiration": f"{rule.days}d"}
                    for rule in rules
                ]
    stack.run("stack", "import", "-s", stack.name, text=json.dumps(state)).succeeded()
    # The new rules would take what the former ones spared: that is asked about.
    deployed.put("logo.png", days=0)
    assert "no files of a cache: 1 (logo.png)" in stack.up().refused()
    assert {"index.html", "logo.png"} <= deployed.objects()
    deployed.root.remove_object(BUCKET, "logo.png")
    assert stack.changes() == {"create": 1, "update": 2, "delete": 1}
    stack.up().succeeded()
    assert deployed.objects() == {"nix-cache-info", "use.html"}
    assert deployed.root.get_object(BUCKET, "use.html").read() == page
    assert difference(expiration_rules(7, 1), deployed.rules()) is None
    assert not stack.changes("--refresh")


def test_a_user_that_may_not_set_the_lifecycle_fails_the_deployment(
    deployed: Deployed, minio: MinioServer, tmp_path: Path
) -> None:
    stack = deployed.stack
    stack.up().succeeded()
    user, secret = "almost-an-administrator", "a secret of an administrator"
    everything = {"Effect": "Allow", "Resource": ["arn:aws:s3:::*"]}
    statements = [
        {"Effect": "Allow", "Action": ["admin:*"]},
        {**everything, "Action": ["s3:*"]},
        {**everything, "Effect": "Deny", "Action": ["s3:PutLifecycleConfiguration"]},
    ]
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"Version": "2012-10-17", "Statement": statements}))
    administration = CacheBucket(minio, "administration").admin
    administration.policy_add(user, str(policy))
    administration.user_add(user, secret)
    administration.attach_policy([user], user=user)
    stack.set(minioUser=user, minioPassword=secret, retentionDays=9)
    outcome = stack.up()
    assert outcome.code != 0, outcome.output
    # The official provider reports success; the drop-in what the server said.
    told = ("missing (nar: nar/ after 10 days)", "creating bucket lifecycle failed (retained)")
    assert any(words in outcome.output for words in told), outcome.output
    assert difference(expiration_rules(7, 1), deployed.rules()) is None


def test_a_shorter_retention_shows_what_it_takes_and_asks_where_that_is_most(
    deployed: Deployed,
) -> None:
    stack = deployed.stack
    stack.set(retentionDays=30)
    stack.up().succeeded()
    names = narinfo_keys(10)
    for number, key in enumerate(names):
        deployed.put(key, days=10 if number < 6 else 2)
    stack.set(retentionDays=7)
    share = "60% of the cache's entries would expire at once (it was 30 days)"
    refused = stack.preview().refused()
    assert f"{share}; set confirmShorterRetention to true" in refused
    assert stack.up().refused() == refused
    assert deployed.objects() >= set(names)
    stack.set(confirmShorterRetention=True)
    assert share in stack.preview().succeeded().output
    stack.up().succeeded()
    assert deployed.objects() & set(names) == set(names[6:])


def test_a_shorter_retention_that_takes_little_is_shown_and_asks_nothing(
    deployed: Deployed,
) -> None:
    stack = deployed.stack
    stack.set(retentionDays=30)
    stack.up().succeeded()
    for number, key in enumerate(narinfo_keys(10)):
        deployed.put(key, days=10 if number < 3 else 2)
    stack.set(retentionDays=7)
    shown = stack.preview().succeeded().output
    assert "30% of the cache's entries would expire at once" in shown
    stack.set(retentionDays=14)
    assert "would expire at once" not in stack.preview().succeeded().output


def test_expiry_that_is_turned_on_asks_for_anything_it_takes_and_names_who_renews_nothing(
    deployed: Deployed,
) -> None:
    stack = deployed.stack
    stack.set(expire=False, builders=[{"name": "laptop", "local": True}])
    stack.up().succeeded()
    names = narinfo_keys(10)
    for number, key in enumerate(names):
        deployed.put(key, days=30 if number < 1 else 2)
    stack.set(expire=True)
    refused = stack.preview().refused()
    assert "10% of the cache's entries would expire at once (it was no expiry); set " in refused
    assert "set retentionDays to 38 until every builder has pushed by the new outputs" in refused
    assert stack.up().refused() == refused
    assert deployed.objects() >= set(names)
    stack.set(retentionDays=38)
    told = "renew nothing until they go by the new output nixos; give it to laptop, CI jobs"
    assert told in stack.preview().succeeded().output
    assert told in stack.up().succeeded().output
    assert deployed.objects() >= set(names)
    assert told not in stack.up().succeeded().output
    # With its policy: another stack with this bucket would let the user go.
    for key in names:
        deployed.root.remove_object(BUCKET, key)
    stack.destroy().succeeded()


def test_every_push_renews_a_pin_and_a_removed_pin_ages(
    deployed: Deployed, builder: ThrowawayBuilder
) -> None:
    first, second, third, pin = (
        builder.make_closure(3, 30_000, seed=seed, name=f"retained-{seed}") for seed in (1, 2, 3, 4)
    )
    stack, machine = deployed.stack, builder_settings(builder)
    link = "/nix/var/nix/gcroots/retained-4"
    stack.set(sshPrivateKey=builder.private_key, upstreamKeys=[])
    stack.set(builders=[{**machine, "closures": [first], "pins": [link]}])
    stack.up().succeeded()
    assert {narinfo_key(path) for path in (first, pin)} <= deployed.objects()
    assert stack.outputs()["nixos"]["builders"]["nixbuilder"]["pins"] == [link]

    deployed.age(5)
    stack.set(builders=[{**machine, "closures": [second], "pins": [link]}])
    stack.up().succeeded()
    assert [deployed.age_in_days(path) for path in (first, second, pin)] == [5, 0, 0]

    deployed.age(5)
    stack.set(builders=[{**machine, "closures": [third]}])
    stack.up().succeeded()
    assert [deployed.age_in_days(path) for path in (second, third, pin)] == [5, 0, 5]

    deployed.age(RETENTION_DAYS + GRACE_DAYS + 1)
    told = status_key(f"{BUCKET}-nixbuilder")
    assert deployed.objects() == {"nix-cache-info", "use.html", PROGRAM_KEY, told}


@pytest.fixture
def leased(minio: MinioServer, request: pytest.FixtureRequest) -> CacheBucket:
    """A bucket with the program's rules."""
    bucket = CacheBucket(minio, re.sub("[^a-z]+", "-", request.node.name)[-40:].strip("-"))
    set_lifecycle(bucket.client, bucket.name, expiration_rules(RETENTION_DAYS, GRACE_DAYS))
    return bucket


def test_a_push_renews_narinfo_and_nar_of_all_that_it_contains(
    leased: CacheBucket, builder: ThrowawayBuilder
) -> None:
    closure = builder.make_closure(6, 60_000, seed=21, name="renewed")
    leased.push(builder, closure, renew="yes").succeeded()
    for days in (RETENTION_DAYS // 2 + 1, RETENTION_DAYS):
        leased.age(days, *leased.objects())
        counts = leased.push(builder, closure, renew="yes").counts()
        assert (counts["pushed"], counts["renewed"]) == (0, 6)
        objects = leased.objects()
        del objects["nix-cache-info"]
        assert len(objects) == 12
        assert min(str(entry.last_modified) for entry in objects.values()) > str(days_ago(0.5))


def test_a_renewal_is_two_requests_a_path_and_the_next_push_of_the_day_four_in_all(
    leased: CacheBucket, builder: ThrowawayBuilder
) -> None:
    closure = builder.make_closure(6, 60_000, seed=23, name="counted")
    with fault_proxy(leased.server) as proxy:
        leased.push(builder, closure, renew="yes", endpoint=proxy.url).succeeded()
        leased.age(1, *leased.objects())
        for requests in (6 * 2, 0):
            before = len(proxy.requests)
            leased.push(builder, closure, renew="yes", endpoint=proxy.url).succeeded()
            # Three more list narinfos, NARs and the cache's pins, and one tells what it came to.
            assert len(proxy.requests) - before == requests + 4
    # A builder that remembers nothing reads each narinfo.
    builder.run("rm -r ~/.cache/nix-binary-cache")
    with fault_proxy(leased.server) as proxy:
        leased.push(builder, closure, renew="yes", endpoint=proxy.url).succeeded()
    assert len(proxy.requests) == 6 + 4


@pytest.mark.parametrize("gone", [".narinfo", ".nar.zst", ""])
def test_what_has_expired_is_pushed_again(
    leased: CacheBucket, builder: ThrowawayBuilder, gone: str
) -> None:
    closure = builder.make_closure(6, 60_000, seed=22, name="expired")
    leased.push(builder, closure, renew="yes").succeeded()
    leased.age(30, *(key for key in leased.objects() if key.endswith(gone)))
    counts = leased.push(builder, closure, renew="yes").counts()
    assert counts["pushed"] == 6
    assert leased.pull(builder, closure) == 6


def test_the_cache_stays_a_cache_however_old_it_is(leased: CacheBucket) -> None:
    lasting = ("nix-cache-info", "use.html")
    for key in lasting:
        leased.put(key, b"x", modified=days_ago(365))
    leased.put(narinfo_keys(1)[0], b"x", modified=days_ago(RETENTION_DAYS + 1))
    leased.put("nar/n.nar.zst", b"x", modified=days_ago(RETENTION_DAYS + GRACE_DAYS))
    leased.put("log/l.drv", b"x", modified=days_ago(RETENTION_DAYS + 1))
    assert leased.objects().keys() == {*lasting, "nar/n.nar.zst"}
    for key in lasting:
        assert leased.get(key) == b"x"


def test_for_sixty_days_every_closure_within_its_lease_is_whole_and_nothing_else_is_kept(
    minio: MinioServer, builder: ThrowawayBuilder
) -> None:
    buckets = (CacheBucket(minio, "leases"), CacheBucket(minio, "recipe"))
    ours, recipe = retention_simulation.simulate(builder, *buckets)
    figures = retention_simulation.report(ours, recipe)
    retention_simulation.write_report(figures, CHECKOUT / "build" / "retention.json")
    assert [morning for morning in ours.mornings if morning.problems] == []
    assert [morning for morning in ours.mornings if morning.overdue] == []
    assert ours.pulls > 0
    check_pins(ours)
    # The last closure, and nothing else.
    assert figures["stored_bytes_end"] == figures["live_bytes_end"]
    # What the documentation shows, and the picture is drawn from.
    shown = json.loads((CHECKOUT / "docs" / "retention.json").read_text())
    assert figures["broken_days_ours"] == shown["broken_days_ours"] == 0
    assert [morning.entries for morning in ours.mornings] == [
        morning["ours"] for morning in shown["mornings"]
    ]
    # The recipe is broken from the day on which what all closures share has expired.
    first_broken = next(morning.day for morning in recipe.mornings if morning.problems)
    assert first_broken == RETENTION_DAYS + 1


def check_pins(ours: retention_simulation.Simulation) -> None:
    """That pins lived until they were removed, and no longer, each morning has shown already."""
    assert isinstance(ours.way, retention_simulation.Leases)
    release = ours.way.pins["release"]
    kept = {narinfo_key(path) for path in retention_simulation.closure([release], ours.planned)}
    assert len(kept) == 2
    asked = ours.way.asked
    assert kept <= asked[retention_simulation.FIRST]
    # What one builder has renewed today the next one looks at, and walks no further.
    assert kept & asked[retention_simulation.SECOND] == {narinfo_key(release)}
    days = len(ours.mornings)
    for pin in retention_simulation.CACHE_PINS.values():
        assert pin.lost_on + RETENTION_DAYS + GRACE_DAYS < pin.until
        assert pin.until + RETENTION_DAYS + GRACE_DAYS < days
