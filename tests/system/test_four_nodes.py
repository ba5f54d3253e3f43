"""A server of four nodes with two drives each: nodes die and come back while builders push."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import cast

import pytest

from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, Pushed
from tests.system.stack import CHECKOUT
from toolbox import throwaway_builder
from toolbox.minio_cluster import MinioCluster
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

PATHS = 120
RESULTS = CHECKOUT / "build" / "four-nodes.json"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioCluster]:
    """Four nodes that have found one another."""
    reason = throwaway_builder.available()
    if reason is not None:
        pytest.skip(f"no namespaces for several nodes: {reason}")
    with MinioCluster(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


def published(bucket: CacheBucket) -> int:
    """Return how many paths a reader finds."""
    return sum(key.endswith(".narinfo") for key in bucket.objects())


def test_nodes_die_and_come_back_and_nothing_is_lost_or_half_there(
    cluster: MinioCluster, builder: ThrowawayBuilder
) -> None:
    # A bucket asks no more of its server than where it is reached, and its root's credential.
    bucket = CacheBucket(cast(MinioServer, cluster), "nodes")
    closure = builder.make_closure(PATHS, 60_000_000, seed=4, name="first")
    second = builder.make_closure(PATHS, 10_000_000, seed=5, name="second")
    figures: dict[str, object] = {"nodes": 4, "drives": 8, "paths": PATHS}

    began = time.monotonic()
    pushes: list[Pushed] = []
    push = threading.Thread(target=lambda: pushes.append(bucket.push(builder, closure)))
    push.start()
    assert wait_until(lambda: published(bucket) > 0, 120.0)
    figures["published when the node died"] = before = published(bucket)
    cluster.kill_node(4)
    push.join()
    figures["seconds of the push in which it died"] = round(time.monotonic() - began, 1)
    assert before < PATHS
    assert pushes[0].counts()["pushed"] == PATHS
    verdict = verify(bucket)
    assert (verdict.narinfos, verdict.problems) == (PATHS, [])

    # Half of the drives: what is there is read, and nothing new is written, so nothing by half.
    cluster.kill_node(3)
    assert bucket.pull(builder, closure) == PATHS
    nothing_new = bucket.push(builder, closure)
    assert nothing_new.counts()["pushed"] == 0
    figures["seconds of a push with nothing new on half of the drives"] = float(
        nothing_new.succeeded()["seconds"]
    )
    # A write waits for a lock that most nodes must grant, until there are enough of them.
    late = threading.Thread(target=lambda: pushes.append(bucket.push(builder, second)))
    began = time.monotonic()
    late.start()
    cluster.start_node(3)
    late.join()
    assert pushes[1].counts()["pushed"] == PATHS
    figures["seconds of a push that began before the node was back"] = round(
        time.monotonic() - began, 1
    )
    assert bucket.pull(builder, second) == PATHS
    verdict = verify(bucket)
    assert (verdict.narinfos, verdict.problems) == (2 * PATHS, [])

    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
