"""The deploying user's policy, as it is shipped: all of it is needed, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from tests.promises import record
from tests.system.conftest import StackFactory, server_settings
from tests.system.fault_proxy import Request, fault_proxy
from tests.system.inventory import Inventory, difference
from tests.system.minio_client import MinioClient
from tests.system.s3_requests import Requester
from tests.system.stack import CHECKOUT
from toolbox.minio_server import MinioServer

pytestmark = pytest.mark.system

SHIPPED = json.loads((CHECKOUT / "docs" / "deployer-policy.json").read_text())
USER, SECRET = "pulumi", "a-secret-to-deploy-with"
BY_HAND = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": ["arn:aws:s3:::nix-cache/*"]}
    ],
}
"""What somebody let builders do before there was a stack."""


class Administrator:
    """Gives the deploying user its rights, as a person does with `mc`."""

    def __init__(self, minio: MinioServer, directory: Path) -> None:
        """Make the user."""
        self.mc = MinioClient(minio, directory)
        self._file = directory / "policy.json"
        self.mc.run("admin user add s3", text=f"{USER}\n{SECRET}\n")
        self.give(USER, SHIPPED)
        self.mc.run(f"admin policy attach s3 {USER} --user {USER}")

    def give(self, name: str, policy: Mapping[str, Any]) -> None:
        """Make a policy, or change it."""
        self._file.write_text(json.dumps(policy))
        self.mc.run(f"admin policy create s3 {name} {self._file}")


def without(action: str) -> dict[str, Any]:
    """Return the shipped policy with one action dropped."""
    statements = [
        {**statement, "Action": [one for one in statement["Action"] if one != action]}
        for statement in SHIPPED["Statement"]
    ]
    return {**SHIPPED, "Statement": [one for one in statements if one["Action"]]}


def refused(who: Requester, requests: Iterable[Request]) -> Request | None:
    """Make requests again until one is denied, and return that."""
    for request in requests:
        url = urlsplit(request.path)
        query = parse_qsl(url.query, keep_blank_values=True)
        answer = who.ask(request.method, unquote(url.path), query, body=request.body)
        if answer.status == 403:
            return request
    return None


def test_the_policy_is_what_the_whole_life_of_a_stack_needs_and_no_action_more(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    administrator = Administrator(minio, tmp_path)
    mc = administrator.mc
    inventory = Inventory(minio)
    before = inventory.take()
    with fault_proxy(minio) as proxy:
        stack = new_stack(
            **{
                **server_settings(minio),
                "endpoint": proxy.url,
                "caCertificateFile": None,
                "minioUser": USER,
                "minioPassword": SECRET,
                "builders": [{"name": "a", "local": True}],
            }
        )
        administrator.give(USER, without("s3:PutBucketPolicy"))
        assert "access denied" in stack.up().refused().lower()
        administrator.give(USER, SHIPPED)
        stack.up().succeeded()
        # A change, a rotation, drift that is found and put right, private and back.
        mc.run("rm s3/nix-cache/nix-cache-info")
        assert stack.operate("drift", "--stack", stack.name).code != 0
        stack.set(
            access="private",
            retentionDays=9,
            signingKeys=["cache.test-1", "cache.test-2"],
            builders=[{"name": "b", "local": True}],
        )
        stack.up("--refresh", "--run-program").succeeded()
        # It names one bucket, so none can be made to be asked about.
        asked = stack.operate("check_server", "--stack", stack.name).succeeded()
        assert "rules and policies were not asked about" in asked.output
        # A builder's secret that somebody chose; the official provider enables the user, too.
        mc.run("admin user add s3", text=f"nix-cache-b\n{SECRET}\n")
        stack.set(
            access="public",
            builders=[{"name": "b", "local": True}],
            adoptedUserSecrets=f"nix-cache-b:{SECRET}",
        )
        stack.up().succeeded()
        stack.refresh().succeeded()
        stack.destroy().succeeded()
        assert difference(before, inventory.take()) == {}

        # A cache made by hand is adopted with it, too, and one that keeps versions.
        mc.run("mb --with-versioning s3/nix-cache")
        administrator.give("nix-cache-write", BY_HAND)
        stack.set(adoptBucket=True, adoptedUserSecrets=None)
        stack.up().succeeded()
        mc.run("rm --recursive --force --versions s3/nix-cache")
        stack.destroy().succeeded()
    # What the policy does not allow was asked of a bucket of another name.
    life = {
        (request.method, request.path): request
        for request in proxy.requests
        if not request.path.startswith("/nix-cache-check-")
    }
    who = Requester(minio, USER, SECRET)
    assert refused(who, life.values()) is None
    needed = {}
    for action in sorted(one for part in SHIPPED["Statement"] for one in part["Action"]):
        administrator.give(USER, without(action))
        needed[action] = refused(who, life.values())
    administrator.give(USER, SHIPPED)
    for action, request in needed.items():
        print(f"{action}: {request and request.method} {request and request.path}")
    assert [action for action, request in needed.items() if request is None] == []
    record("actions", "deployer", len(needed), "each needed, and none beside them")
