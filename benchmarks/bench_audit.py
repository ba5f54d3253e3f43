"""Times the audit of 10,000 narinfos, without hashing, on a MinIO server on loopback.

The whole command is timed, from the start of Python to its exit code. It writes
`build/bench-audit.json`: `seconds_10000`, and the size of what was audited.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import urllib3
from minio import Minio
from minio.commonconfig import SnowballObject

from components.binary_cache import anonymous_policy, nix_cache_info
from formats.narinfo import NarInfo
from formats.nix32 import nix32_encode
from formats.signing import SecretKey
from toolbox import tools
from toolbox.minio_server import MinioServer

NARINFOS = 10_000
LIMIT_SECONDS = 60.0
REFERENCES = 8
"""Of each path: about what a NixOS system's paths have."""
NAR_BYTES = 400
BUCKET = "nix-cache"
STACK = "bench"
RESULT = tools.CHECKOUT / "build" / "bench-audit.json"


def entries(key: SecretKey) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every object of a cache with paths that `key` signs."""
    yield "nix-cache-info", nix_cache_info(True, 40).encode()
    chance = random.Random(1)
    paths = [f"{nix32_encode(chance.randbytes(20))}-path-{n}" for n in range(NARINFOS)]
    for path in paths:
        nar = chance.randbytes(NAR_BYTES)
        digest = nix32_encode(hashlib.sha256(nar).digest())
        narinfo = NarInfo(
            store_path=f"/nix/store/{path}",
            url=f"nar/{digest}.nar",
            compression="none",
            nar_hash=f"sha256:{digest}",
            nar_size=len(nar),
            references=tuple(chance.sample(paths, REFERENCES)),
            file_hash=f"sha256:{digest}",
            file_size=len(nar),
        )
        signed = replace(narinfo, signatures=(key.sign(narinfo.fingerprint),))
        yield narinfo.url, nar
        yield f"{path[:32]}.narinfo", signed.format().encode()


def fill(server: MinioServer, key: SecretKey) -> None:
    """Make the bucket and put the cache into it."""
    client = Minio(
        server.endpoint.removeprefix("https://"),
        server.root_user,
        server.root_password,
        http_client=urllib3.PoolManager(ca_certs=str(server.ca_file)),
    )
    client.make_bucket(BUCKET)
    client.set_bucket_policy(BUCKET, anonymous_policy(BUCKET, download=True, listing=False))
    objects = entries(key)
    while batch := list(islice(objects, 2_000)):
        client.upload_snowball_objects(
            BUCKET,
            [SnowballObject(name, data=io.BytesIO(data), length=len(data)) for name, data in batch],
        )


def make_stack(server: MinioServer, key: SecretKey, directory: Path) -> Mapping[str, str]:
    """Make a stack whose settings and outputs name the cache; return what finds it."""
    project = directory / "project"
    project.mkdir()
    (project / "Pulumi.yaml").symlink_to(tools.CHECKOUT / "Pulumi.yaml")
    (directory / "state").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")},
        **tools.engine_environment(directory / "pulumi"),
        "PULUMI_BACKEND_URL": f"file://{directory / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "a passphrase for measurements",
        "PYTHONPATH": str(tools.CHECKOUT),
    }

    def pulumi(*arguments: str, text: str = "") -> None:
        subprocess.run(
            ["pulumi", "--non-interactive", *arguments],
            cwd=project,
            env=environment,
            input=text,
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    pulumi("stack", "init", STACK)
    settings = {
        "endpoint": server.endpoint,
        "caCertificateFile": str(server.ca_file),
        "minioUser": server.root_user,
    }
    for name, value in settings.items():
        pulumi("config", "set", name, value)
    pulumi("config", "set", "--secret", "minioPassword", text=server.root_password)
    root = {
        "urn": f"urn:pulumi:{STACK}::nixcache::pulumi:pulumi:Stack::nixcache-{STACK}",
        "custom": False,
        "type": "pulumi:pulumi:Stack",
        "outputs": {
            "substituter": f"{server.endpoint}/{BUCKET}",
            "publicKeys": [str(key.public_key)],
        },
    }
    pulumi("stack", "import", text=json.dumps({"version": 3, "deployment": {"resources": [root]}}))
    return environment


def main() -> int:
    """Measure, write the figures down, and return 1 where the limit is not kept."""
    key = SecretKey.generate("127.0.0.1-1")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        (directory / "minio").mkdir()
        with MinioServer(directory / "minio") as server:
            print(f"filling a cache with {NARINFOS:,} narinfos", file=sys.stderr)
            fill(server, key)
            environment = make_stack(server, key, directory)
            report = directory / "report.json"
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "operations.audit", "--stack", STACK, "--json", str(report)],
                cwd=directory / "project",
                env=environment,
                check=True,
            )
            seconds = time.monotonic() - started
        audited = json.loads(report.read_text())
    if audited["narinfos"] != NARINFOS or audited["keys"][key.name]["verified"] != NARINFOS:
        raise AssertionError("the audit did not verify every narinfo")
    figures = {
        "seconds_10000": round(seconds, 2),
        "narinfos": NARINFOS,
        "nars": audited["nars"],
        "cores": os.cpu_count(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(f"{json.dumps(figures, indent=2)}\n")
    print(f"{figures}; the limit is {LIMIT_SECONDS:.0f} s")
    return 0 if seconds < LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
