"""Secrets as canaries: none is seen on any way that it does not have to go.

Two ways are not looked at, because secrets have to go there: the engine gives the program its
settings in the environment of the deploying machine's own process, and a push that was killed
leaves the key that signs in its builder's memory until the next push (docs/security.md).
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.promises import record
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.stack import Stack
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system


class Canaries:
    """The secrets of a stack, and where they were seen."""

    def __init__(self, values: Sequence[str]) -> None:
        self.values = values
        self.found: dict[str, int] = {}

    @classmethod
    def of(cls, stack: Stack, server: MinioServer, builder: ThrowawayBuilder) -> Canaries:
        shown = stack.run("stack", "output", "--show-secrets", "--json", "--stack", stack.name)
        outputs = json.loads(shown.succeeded().output)
        values = [
            server.root_password,
            stack.environment["PULUMI_CONFIG_PASSPHRASE"],
            *(one["secretAccessKey"] for one in outputs["builders"].values()),
            # The middle of it: its frame is every key's.
            builder.private_key.splitlines()[2],
        ]
        for key in outputs["signingKeyBackup"].split():
            encoded = key.partition(":")[2]
            seed = base64.b64decode(encoded)[:32]
            values += [encoded, base64.b64encode(seed).decode()[:40], seed.hex()]
        assert all(len(value) >= 16 for value in values)
        return cls(values)

    def look(self, where: str, text: str) -> None:
        """Count the canaries in a text."""
        seen = sum(value in text for value in self.values)
        self.found[where] = self.found.get(where, 0) + seen


@contextmanager
def watched(canaries: Canaries, builder: ThrowawayBuilder) -> Iterator[None]:
    """Look at the processes of this machine, as `ps` shows them, and at the builder's, meanwhile.

    Whatever runs on the builder runs for a push, so its environment counts too.
    """
    over, looked = threading.Event(), threading.Event()

    def look() -> None:
        while not over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                canaries.look("ps during a push", _read(file))
            for name in ("cmdline", "environ"):
                for file in (builder.root / "proc").glob(f"[0-9]*/{name}"):
                    canaries.look(f"{name} of the builder's processes", _read(file))
            looked.set()
            over.wait(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert looked.is_set()


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def files_of(builder: ThrowawayBuilder) -> Mapping[str, str]:
    """Return what lies on a builder's disk and in its memory, where pushes write."""
    places = ("etc", "home", "root", "tmp", "var/tmp", "var/lib", "run", "dev/shm", "nix/var")
    files = {}
    for place in places:
        for file in (builder.root / place).rglob("*"):
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 1 << 22:
                files[str(file)] = _read(file)
    return files


def test_a_secret_that_is_shown_is_seen(builder: ThrowawayBuilder) -> None:
    canaries = Canaries(["a-canary-that-sings"])
    heard = builder.root / "tmp" / "heard"
    song = "SONG=a-canary-that-sings sh -c 'until [ -e /tmp/heard ]; do sleep 0.01; done' "
    with ThreadPoolExecutor(1) as beside, watched(canaries, builder):
        sung = beside.submit(builder.run, f"{song} a-canary-that-sings")
        try:
            known = canaries.found.values
            assert wait_until(lambda: len(known()) == 3 and all(known()), 30), canaries.found
        finally:
            heard.touch()
        sung.result()
    assert len(canaries.found) == 3
    assert all(canaries.found.values()), canaries.found
    heard.unlink()
    (builder.root / "tmp" / "canary").write_text("a-canary-that-sings")
    for text in files_of(builder).values():
        canaries.look("file", text)
    assert canaries.found["file"] == 1


def test_no_secret_is_seen_where_it_does_not_have_to_go(
    new_stack: StackFactory, minio: MinioServer, builder: ThrowawayBuilder, tmp_path: Path
) -> None:
    closure = builder.make_closure(60, 30_000_000, seed=2101, name="canaries")
    stack = new_stack(**server_settings(minio), bucket="canaries")
    machine = builder_settings(builder, closure)
    stack.set(sshPrivateKey=builder.private_key, builders=[{**machine, "closures": []}])
    stack.up().succeeded()
    canaries = Canaries.of(stack, minio, builder)

    stack.set(builders=[machine])
    canaries.look("preview", stack.preview("--diff", "--debug").succeeded().output)
    canaries.look("preview --json", stack.preview("--json").succeeded().output)
    with watched(canaries, builder):
        canaries.look("up", stack.up("--debug").succeeded().output)
    canaries.look("refresh", stack.refresh().succeeded().output)
    logged = stack.preview("-v=9", "--logtostderr", "--logflow").succeeded().output
    assert "I1" in logged or "eventsink" in logged, "the engine has logged"
    canaries.look("engine log at -v=9", logged)

    gone = f"/nix/store/{'0' * 32}-gone"
    stack.set(builders=[{**machine, "closures": [gone]}])
    failed = stack.up("--debug")
    assert gone in failed.refused()
    canaries.look("a push that fails", failed.output)

    stack.set(builders=[machine])
    stack.up().succeeded()
    for text in files_of(builder).values():
        canaries.look("the builder's disk and memory after a push", text)

    for operation in ("status", "audit", "drift"):
        canaries.look(operation, stack.operate(operation, "--stack", stack.name).output)
    page = tmp_path / "report.html"
    stack.operate("report", "--stack", stack.name, "--output", str(page)).succeeded()
    canaries.look("report", page.read_text())
    canaries.look("state", stack.export())
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        if ".venv" not in file.parts:
            canaries.look("backend and project", _read(file))

    for where, seen in canaries.found.items():
        record("canary_sightings", where, seen)
    print(f"looked for {len(canaries.values)} secrets on {len(canaries.found)} ways")
    assert {where: seen for where, seen in canaries.found.items() if seen} == {}
