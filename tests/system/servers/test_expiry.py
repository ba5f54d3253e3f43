"""What expires, and what a renewal keeps, on a server whose days can be made short."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from minio import Minio
from minio.commonconfig import REPLACE, CopySource, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from toolbox.processes import wait_until
from toolbox.servers.ceph_rgw import CephRGW
from toolbox.servers.s3_server import running

pytestmark = [pytest.mark.system, pytest.mark.by_request]

DAY = 10


def names(client: Minio) -> set[str]:
    return {str(entry.object_name) for entry in client.list_objects("days", recursive=True)}


def test_on_ceph_a_copy_onto_itself_renews_what_expiry_counts_from(tmp_path: Path) -> None:
    reason = CephRGW.unavailable()
    if reason is not None:
        pytest.skip(f"no Ceph RGW: {reason}")
    with running(CephRGW(tmp_path / "rgw", day=DAY)) as server:
        client = server.client()
        client.make_bucket("days")
        rule = Rule(
            "Enabled",
            rule_filter=Filter(prefix="nar/"),
            rule_id="nar",
            expiration=Expiration(days=2),
        )
        client.set_bucket_lifecycle("days", LifecycleConfig([rule]))
        for name in ("nar/renewed", "nar/left", "kept"):
            client.put_object("days", name, io.BytesIO(b"x"), 1)

        def renewed_while_the_other_goes() -> bool:
            client.copy_object(
                "days",
                "nar/renewed",
                CopySource("days", "nar/renewed"),
                metadata={"renewed": "yes"},
                metadata_directive=REPLACE,
            )
            return "nar/left" not in names(client)

        assert wait_until(renewed_while_the_other_goes, 20.0 * DAY)
        assert names(client) == {"nar/renewed", "kept"}
        assert wait_until(lambda: "nar/renewed" not in names(client), 20.0 * DAY)
        assert names(client) == {"kept"}
