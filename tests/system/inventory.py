"""What there is on a server, on a machine and in a state, so that two moments can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import S3Error
from urllib3 import PoolManager

from tests.system.stack import Stack
from toolbox.minio_server import MinioServer

SIGNING_KEY = "pulumi-python:dynamic/nixcache:SigningKey"


class Inventory:
    """Looks at a server with its root user, and at directories."""

    def __init__(self, server: MinioServer) -> None:
        """Connect to nothing yet."""
        self._server = server
        self.http = PoolManager(ca_certs=str(server.ca_file), retries=False, maxsize=4)
        self._admin = MinioAdmin(
            endpoint=self._address,
            credentials=StaticProvider(server.root_user, server.root_password),
            secure=True,
            http_client=self.http,
        )
        self.root = self.client(server.root_user, server.root_password)

    @property
    def _address(self) -> str:
        return self._server.endpoint.removeprefix("https://")

    def client(self, user: str, secret: str) -> Minio:
        """Return a user's client."""
        return Minio(self._address, user, secret, region="us-east-1", http_client=self.http)

    def accepts(self, user: str, secret: str) -> bool:
        """Tell whether the server knows the user by this secret, whatever it may do."""
        try:
            self.client(user, secret).get_bucket_lifecycle("of-nobody")
        except S3Error as error:
            return error.code in ("AccessDenied", "NoSuchBucket")
        return True

    def anonymous(self, bucket: str, key: str) -> int:
        """Return the HTTP status that somebody without a credential gets."""
        return self.http.request("GET", f"{self._server.endpoint}/{bucket}/{key}").status

    def take(
        self, secrets: Mapping[str, str] = {}, directories: Iterable[Path] = ()
    ) -> dict[str, str]:
        """Return what there is, by kind and name.

        Args:
            secrets: users' secrets, each tried.
            directories: their files are looked at too.
        """
        found = {
            f"user {name}": user["status"]
            for name, user in json.loads(self._admin.user_list()).items()
        }
        for name, policy in json.loads(self._admin.policy_list()).items():
            found[f"policy {name}"] = json.dumps(_sorted(policy), sort_keys=True)
        for user, secret in secrets.items():
            if f"user {user}" in found:
                found[f"secret of {user}"] = str(self.accepts(user, secret))
        for bucket in self.root.list_buckets():
            found |= self._bucket(bucket.name)
        for directory in directories:
            for file in directory.rglob("*"):
                if file.is_file():
                    digest = hashlib.sha256(file.read_bytes()).hexdigest()
                    found[f"file {file}"] = digest
        return found

    def _bucket(self, name: str) -> dict[str, str]:
        found = {f"bucket {name}": ""}
        try:
            found[f"access to {name}"] = self.root.get_bucket_policy(name)
        except S3Error as error:
            if error.code != "NoSuchBucketPolicy":
                raise
        lifecycle = self.root.get_bucket_lifecycle(name)
        if lifecycle is not None:
            found[f"lifecycle of {name}"] = repr(lifecycle)
        for entry in self.root.list_objects(name, recursive=True):
            found[f"object {name}/{entry.object_name}"] = str(entry.etag)
        return found


def _sorted(value: Any) -> Any:
    """Return a policy with its lists, which a server returns in any order, in one order."""
    if isinstance(value, dict):
        return {name: _sorted(element) for name, element in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(element) for element in value), key=json.dumps)
    return value


def keys_of(stack: Stack) -> dict[str, str]:
    """Return the signing keys that a state has, with their public halves."""
    return {
        f"key {resource['outputs']['key_name']}": str(resource["outputs"]["public_key"])
        for resource in stack.kept()
        if resource["type"] == SIGNING_KEY
    }


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return what was `created`, `changed` and `deleted`, by kind and name."""
    found = {}
    for name in sorted({*before, *after}):
        if name not in before:
            found[name] = "created"
        elif name not in after:
            found[name] = "deleted"
        elif before[name] != after[name]:
            found[name] = "changed"
    return found
