"""Pushes that go wrong: whatever fails, a reader never sees half of anything."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system import midnight
from tests.system.bucket_verifier import Verdict, verify, watched
from tests.system.cache_bucket import CacheBucket, leftovers, place, small_disk, trust
from tests.system.fault_proxy import (
    PASS,
    RESET_BEFORE,
    Request,
    at_random,
    fault_proxy,
    until_asked_again,
)
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS = 30
BYTES = 2_000_000
KILLS = 50


@pytest.fixture(scope="module")
def closure(builder: ThrowawayBuilder) -> str:
    """The top of a closure of PATHS paths."""
    return builder.make_closure(PATHS, BYTES, seed=40, name="faulty")


def assert_whole(bucket: CacheBucket) -> None:
    verdict = verify(bucket)
    assert (verdict.narinfos, verdict.problems) == (PATHS, [])


# The server and the network.


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_errors_and_broken_connections_are_overcome(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, share: float
) -> None:
    with (
        watched(bucket) as watch,
        fault_proxy(bucket.server, at_random(share, seed=1)) as proxy,
    ):
        pushed = bucket.push(builder, closure, endpoint=proxy.url, renew="yes")
    assert pushed.counts()["pushed"] == PATHS
    print(
        f"{share:.0%} of requests failed: {proxy.faults} of {len(proxy.requests)}; "
        f"verified {watch.walks} times meanwhile, {watch.narinfos} narinfos"
    )
    assert watch.problems == []
    assert_whole(bucket)


def test_a_server_that_is_killed_during_an_upload_and_comes_back_is_waited_for(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    killed = threading.Event()
    one_by_one = threading.Lock()

    def kill_once(request: Request) -> int:
        with one_by_one:
            if request.method == "PUT" and request.number > PATHS + 10 and not killed.is_set():
                bucket.server.kill()
                killed.set()
                return RESET_BEFORE
        return PASS

    with fault_proxy(bucket.server, kill_once) as proxy, ThreadPoolExecutor(1) as beside:
        pushed = beside.submit(bucket.push, builder, closure, endpoint=proxy.url)
        assert killed.wait(60)
        # The server ends with the thread that starts it, so that is this one.
        bucket.server.start()
        assert pushed.result().counts()["pushed"] == PATHS
    assert_whole(bucket)


def test_a_server_that_stays_away_ends_the_push_with_its_address(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    nobody = "http://127.0.0.1:9"
    # The pauses between attempts are not what is tested.
    hasty = "import push.transfers; push.transfers._LONGEST_PAUSE = 0.0"
    refused = bucket.push(builder, closure, endpoint=nobody, changed=hasty).refused()
    assert refused.startswith("push: list: Failed to connect to 127.0.0.1")
    assert refused.endswith(f"see that the server runs and that endpoint {nobody} is right")


def test_what_the_server_asks_for_is_how_long_a_push_waits(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with fault_proxy(bucket.server, until_asked_again(503), retry_after=2) as proxy:
        pushed = bucket.push(builder, closure, endpoint=proxy.url)
    assert "push: list: the server answers HTTP 503, trying again in 2 s" in pushed.log
    assert_whole(bucket)


# Credentials, clocks, quotas.


def test_a_wrong_secret_is_refused_at_once_and_named(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with fault_proxy(bucket.server) as proxy:
        refused = bucket.push(
            builder, closure, secret_access_key="wrong-secret", endpoint=proxy.url
        ).refused()
    assert refused.startswith("push: list: GET pushed/")
    assert "HTTP 403 SignatureDoesNotMatch" in refused
    assert refused.endswith("set secret-access-key to the secret of user pushed-builder")
    assert len(proxy.requests) == len({r.key for r in proxy.requests}), "a 403 was retried"


def test_an_unknown_user_is_named(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    refused = bucket.push(builder, closure, access_key_id="stranger").refused()
    assert "HTTP 403 InvalidAccessKeyId" in refused
    assert "the server has no enabled user stranger" in refused


def test_a_user_who_is_revoked_during_a_push_stops_it_at_once(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    revoked = threading.Event()

    def revoke(request: Request) -> int:
        if request.method == "PUT" and not revoked.is_set():
            bucket.admin.user_disable(bucket.user)
            revoked.set()
        return PASS

    try:
        with fault_proxy(bucket.server, revoke) as proxy:
            refused = bucket.push(builder, closure, endpoint=proxy.url).refused()
    finally:
        bucket.admin.user_enable(bucket.user)
    assert refused.startswith("push: upload: PUT pushed/nar/")
    assert "HTTP 403" in refused
    assert "pushed-builder" in refused
    assert len(proxy.requests) == len({r.key for r in proxy.requests}), "a 403 was retried"
    assert verify(bucket).problems == []
    assert bucket.push(builder, closure).counts()["pushed"] == PATHS
    assert_whole(bucket)


def test_a_clock_that_is_wrong_is_named_with_how_much(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    late = """
from datetime import datetime, timedelta
import push.connection
class Late(datetime):
    @classmethod
    def now(cls, zone=None):
        return datetime.now(zone) - timedelta(minutes=20)
push.connection.datetime = Late
"""
    refused = bucket.push(builder, closure, changed=late).refused()
    assert "RequestTimeTooSkewed" in refused
    _, _, remedy = refused.rpartition("; ")
    assert remedy.startswith("this machine's clock differs from the server's by -1")
    assert -1200 <= int(remedy.rpartition(" seconds")[0].rpartition(" ")[2]) <= -1190


def test_a_bucket_that_is_full_says_so(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    bucket.admin.bucket_quota_set(bucket.name, 10_000)
    try:
        refused = bucket.push(builder, closure).refused()
    finally:
        bucket.admin.bucket_quota_clear(bucket.name)
    assert "XMinioAdminBucketQuotaExceeded" in refused
    assert refused.endswith("raise the bucket's quota, or wait until entries expire")
    assert verify(bucket).problems == []
    # What found room is there already.
    counts = bucket.push(builder, closure).counts()
    assert counts["pushed"] > 0
    assert counts["pushed"] + counts["reused"] == PATHS
    assert_whole(bucket)


def test_a_bucket_that_does_not_exist_is_named(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    admin = {"access_key_id": bucket.server.root_user}
    refused = bucket.push(
        builder, closure, bucket="elsewhere", secret_access_key=bucket.server.root_password, **admin
    ).refused()
    assert refused == (
        f"push: list: {bucket.server.endpoint} has no bucket elsewhere; create it, or set bucket"
    )


def test_a_server_whose_certificate_is_not_trusted_is_not_talked_to(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    refused = bucket.push(builder, closure, ca_certificate_file=None).refused()
    assert refused.startswith("push: list: ")
    assert refused.endswith("set ca-certificate to what signed the certificate of the server")


# The builder.


def test_a_full_disk_ends_the_push_and_a_larger_one_completes_it(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    with small_disk(builder, 400_000) as disk:
        refused = bucket.push(builder, closure, environment=f"TMPDIR={disk}").refused()
        assert refused.startswith("push: stage: ")
        assert "No space left on device" in refused
        assert refused.endswith(f"free space in {disk}, or set TMPDIR to a larger disk")
        assert builder.run(f"ls {disk}").stdout == ""
    assert verify(bucket).problems == []
    # What found space in the small one is there already.
    counts = bucket.push(builder, closure).counts()
    assert counts["pushed"] > 0
    assert counts["pushed"] + counts["reused"] == PATHS
    assert_whole(bucket)


def test_a_path_deleted_during_the_push_is_named(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    top = builder.make_closure(3, 30_000, seed=41, name="fleeting")

    def delete(request: Request) -> int:
        if request.number == 1:
            # Nix has said by then what the closure is.
            running = builder.root / "proc"
            assert wait_until(lambda: not any(map(_is_nix, running.glob("[0-9]*"))), 60)
            builder.run(
                f"rm /nix/var/nix/gcroots/fleeting && nix-store --delete --ignore-liveness {top}"
            )
        return PASS

    with fault_proxy(bucket.server, delete) as proxy:
        refused = bucket.push(builder, top, endpoint=proxy.url).refused()
    assert refused.startswith("push: stage: ")
    assert f"path '{top}' is " in refused
    assert refused.endswith("keep the closure alive by a link, and push again")
    assert verify(bucket).problems == []
    assert builder.make_closure(3, 30_000, seed=41, name="fleeting") == top
    # What the path that went refers to was pushed nevertheless.
    counts = bucket.push(builder, top).counts()
    assert (counts["pushed"], counts["reused"]) == (1, 2)


def test_a_path_that_breaks_while_it_is_compressed_is_reported(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    top = builder.make_closure(3, 30_000, seed=42, name="broken")
    builder.run(f"mv {top} /tmp/broken-content")
    refused = bucket.push(builder, top).refused()
    builder.run(f"mv /tmp/broken-content {top}")
    assert refused.startswith("push: stage: ")
    assert top in refused
    assert verify(bucket).problems == []
    # What the first push finished beside the failure is reused.
    assert 1 <= bucket.push(builder, top).counts()["pushed"] <= 3
    assert verify(bucket).problems == []
    assert bucket.pull(builder, top) == 3


@pytest.mark.parametrize(
    ("paths", "settings", "message"),
    [
        ("/etc/hostname", {}, "'/etc/hostname' is neither a store path nor a link to one"),
        ("/nowhere", {}, "'/nowhere' is neither a store path nor a link to one"),
        (f"/nix/store/{'0' * 32}-gone", {}, "is not valid; build it, or copy it"),
        ("", {}, "nothing to push; give a store path"),
        (
            "/x",
            {"compression": "lzma"},
            "compression 'lzma' is not valid; set it to one of zstd, xz",
        ),
        ("/x", {"endpoint": "s3.example"}, "endpoint 's3.example' is not valid; set it to https"),
        ("/x", {"renew": "1.5"}, "renew '1.5' is not valid; set it to yes or no"),
        ("/x", {"staging_limit": "2G"}, "staging-limit '2G' is not valid"),
        ("/x", {"part_size": 1_000_000}, "part-size '1000000' is not from 5242880"),
        ("/x", {"signing_key": "cache-1:public"}, "a signing key is not a secret key"),
        ("/x", {"signing_key": None}, "signing-key is missing"),
        ("/x", {"secret_access_key": None}, "secret-access-key is missing"),
        ("/x", {"secret_access_key_file": "/none"}, "'/none' cannot be read"),
        ("/x", {"ca_certificate": "bm90IFBFTQ=="}, "ca-certificate is not PEM in base64"),
        ("/x", {"shoe_size": 43}, "unknown setting 'shoe-size'"),
    ],
)
def test_a_mistake_in_settings_is_one_clear_line(
    builder: ThrowawayBuilder,
    bucket: CacheBucket,
    paths: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    pushed = bucket.push(builder, *paths.split(), **settings)
    assert message in pushed.refused()
    assert len(pushed.log.splitlines()) == 1
    assert leftovers(builder) == []


def test_missing_tools_are_named(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    builder.run("mkdir -p /tmp/few && ln -sf /usr/bin/python3 /tmp/few")
    refused = bucket.push(builder, closure, environment="PATH=/tmp/few").refused()
    assert refused == (
        "push: prepare: nix is missing on this machine; install it, or add it to PATH"
    )


# The push itself.


class Push:
    """A push in the background, with a process that can be killed."""

    def __init__(
        self, builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, endpoint: str
    ) -> None:
        self._builder = builder
        trust(builder, bucket.server)
        settings = bucket.settings(endpoint=endpoint, renew="yes")
        (builder.root / "run" / "settings").write_text(settings)
        command = " ".join(place(builder))
        script = f"echo $$ >/run/pid; exec {command} --config /run/settings {closure}"
        self._thread = threading.Thread(target=builder.run, args=(script,), kwargs={"check": False})
        self._thread.start()

    def kill(self, number: signal.Signals) -> None:
        """Send the push, not what it started, a signal; return when it is no more."""
        self._builder.run(
            f"pid=$(cat /run/pid) && kill -{number.value} $pid && "
            "tail --pid=$pid -s 0.01 -f /dev/null",
            check=False,
        )

    def wait(self) -> None:
        """Wait until everything that it started has ended too."""
        self._thread.join()
        # The Nix of a push that was killed goes on for a while.
        processes = self._builder.root / "proc"
        assert wait_until(lambda: not any(map(_is_nix, processes.glob("[0-9]*"))), 60)


def _is_nix(process: Path) -> bool:
    try:
        return (process / "comm").read_text() == "nix\n"
    except OSError:
        return False


@dataclass(frozen=True)
class Kill:
    """Where, and how, a push is killed; the same seed is always the same."""

    number: signal.Signals
    renewal: bool
    """Whether the bucket has everything already, to be renewed."""
    request: int
    """When it makes this request,"""
    delay: float
    """and so many seconds later."""

    @classmethod
    def seeded(cls, seed: int) -> Kill:
        draw = random.Random(seed)
        number = draw.choice((signal.SIGTERM, signal.SIGKILL))
        # A look is two requests, and each path two writes.
        return cls(number, draw.random() < 0.3, draw.randrange(1, 2 * PATHS), draw.random() * 0.15)

    def __str__(self) -> str:
        return f"{self.number.name} during a {'renewal' if self.renewal else 'push'}"


def push_and_kill(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str, kill: Kill
) -> list[Verdict]:
    """Kill a push; return what readers saw at its death, and when its children had ended too."""
    verdicts: list[Verdict] = []
    timers: list[threading.Timer] = []

    def strike() -> None:
        push.kill(kill.number)
        verdicts.append(verify(bucket, leases=True))

    def count(request: Request) -> int:
        if request.number == kill.request:
            timers.append(threading.Timer(kill.delay, strike))
            timers[0].start()
        return PASS

    with fault_proxy(bucket.server, count) as proxy:
        push = Push(builder, bucket, closure, proxy.url)
        push.wait()
        for timer in timers:
            timer.join()
    return [*verdicts, verify(bucket, leases=True)]


def test_a_push_killed_anywhere_leaves_nothing_half_and_the_next_one_completes(
    builder: ThrowawayBuilder, bucket: CacheBucket, closure: str
) -> None:
    kills: Counter[str] = Counter()
    walks = narinfos = cleared = 0
    midnight.wait_where_it_is_near()
    for seed in range(KILLS):
        kill = Kill.seeded(seed)
        bucket.empty()
        if kill.renewal:
            bucket.push(builder, closure).succeeded()
            bucket.age(2, *bucket.objects())
        verdicts = push_and_kill(builder, bucket, closure, kill)
        left = leftovers(builder)
        assert left == [] or kill.number == signal.SIGKILL
        cleared += len(left)
        bucket.push(builder, closure, renew="yes").succeeded()
        verdicts.append(verify(bucket, leases=True))
        assert [p for v in verdicts for p in v.problems] == [], f"seed {seed}: {kill}"
        assert verdicts[-1].narinfos == PATHS
        assert leftovers(builder) == []
        walks += len(verdicts)
        narinfos += sum(verdict.narinfos for verdict in verdicts)
        kills[str(kill)] += 1
    print(
        f"killed {KILLS} times: {dict(kills)}; {walks} walks saw {narinfos} narinfos, all whole; "
        f"{cleared} directories of killed pushes were cleared by the next"
    )
