"""Operations against a server that lies: each ends soon, in one sentence, and fills no memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.promises import attack
from tests.system.conftest import server_settings
from tests.system.stack import CHECKOUT, Stack
from tests.unit.push.s3_stand_in import Raw, Reply, Seen, StandIn, serving
from toolbox.minio_server import MinioServer

pytestmark = pytest.mark.system

SECONDS = 90.0
"""No operation takes so long; on a machine with nothing else to do it is two."""
LARGEST = 300 << 20
"""Bytes of memory, of which Python and its libraries take the third."""

KEY = "ssh.test-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
OPERATIONS: dict[str, tuple[str, ...]] = {
    "status": (),
    "report": ("--output", "page.html"),
    "audit": ("--hash", "all"),
    "drift": (),
    "check_server": (),
    "repair": ("--yes", "--skip-preview"),
    "empty": ("--all",),
    "import_cache": ("--from", "{url}/cache", "--keys", KEY, f"/nix/store/{'0' * 32}-a"),
}


def endless(_: Seen) -> Raw:
    """Answer everything with a body that does not end."""
    return Raw(itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(bytes(1 << 16))))


def standing_still(seen: Seen) -> Reply:
    """Have every listing go on, and never further; refuse the rest as S3 does."""
    entry = "<Key>a</Key><LastModified>2026-11-27T09:30:00Z</LastModified><Size>1</Size>"
    if "versions" in seen.query:
        page = f"<Version>{entry}</Version><NextKeyMarker>a</NextKeyMarker>"
        body = f"<ListVersionsResult><IsTruncated>true</IsTruncated>{page}</ListVersionsResult>"
        return Reply(body=body.encode())
    if "list-type" in seen.query:
        page = f'<Contents>{entry}<ETag>"e"</ETag></Contents>'
        body = f"<ListBucketResult><IsTruncated>true</IsTruncated>{page}</ListBucketResult>"
        return Reply(body=body.encode())
    code = "NoSuchLifecycleConfiguration" if "lifecycle" in seen.query else "NoSuchKey"
    return Reply(404, body=f"<Error><Code>{code}</Code></Error>".encode())


LIES: dict[str, Callable[[Seen], Raw | Reply]] = {
    "answers without an end": endless,
    "lists without going on": standing_still,
}


@pytest.fixture(scope="module")
def stack(
    engine: dict[str, str], tmp_path_factory: pytest.TempPathFactory, minio: MinioServer
) -> Stack:
    """A deployed stack, whose server is another one afterwards."""
    made = Stack(engine, tmp_path_factory.mktemp("lied-to"))
    made.set(server_settings(minio), bucket="cache", upstreamKeys=[])
    made.set(builders=[{"name": "here", "local": True}])
    made.up().succeeded()
    made.set(caCertificateFile=None)
    # The cache itself, which the audit reads as clients do, stays where it was.
    made.environment["SSL_CERT_FILE"] = str(minio.ca_file)
    return made


@pytest.fixture(scope="module")
def liar() -> Iterator[StandIn]:
    """A server that a test gives its lies."""
    with serving(StandIn(keep=False)) as server:
        yield server


@pytest.fixture
def deployed_there(stack: Stack, minio: MinioServer, liar: StandIn) -> Iterator[None]:
    """A state that says that the liar is the server that was deployed to."""
    before = stack.export()
    state = before.replace(minio.endpoint.partition("://")[2], liar.url.partition("://")[2])
    assert state != before
    state = state.replace('"minioSsl": "true"', '"minioSsl": "false"')
    stack.run("stack", "import", "-s", stack.name, text=state).succeeded()
    yield
    stack.run("stack", "import", "-s", stack.name, text=before).succeeded()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("lie", LIES)
def test_an_operation_ends_soon_in_one_sentence_and_fills_no_memory(
    stack: Stack, liar: StandIn, request: pytest.FixtureRequest, operation: str, lie: str
) -> None:
    liar.script = LIES[lie]
    stack.set(endpoint=liar.url)
    if operation == "drift":
        request.getfixturevalue("deployed_there")
    arguments = [one.replace("{url}", liar.url) for one in OPERATIONS[operation]]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", f"operations.{operation}", "--stack", stack.name, *arguments],
        cwd=stack.project,
        env={**stack.environment, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    late = threading.Timer(SECONDS, process.kill)
    late.start()
    with process.stdout as stream:
        said = stream.read()
    late.cancel()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (1, 2), said
    assert "Traceback" not in said
    assert "error:" in said or operation in ("check_server", "import_cache"), said
    assert time.monotonic() - began < SECONDS
    assert used.ru_maxrss * 1024 < LARGEST, used.ru_maxrss
    assert liar.seen, said
    liar.seen.clear()
    attack(f"a server {lie} to {operation}", "it ends, and says so")
