"""Secrets as canaries: none is seen on any way that it does not have to go.

Two ways are not looked at, because secrets have to go there: the engine gives the program its
settings in the environment of the deploying machine's own process, and a push that was killed
leaves the key that signs in its builder's memory until the next push (docs/security.md).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from tests.promises import record
from tests.system.cache_bucket import CacheBucket, leftovers
from tests.system.conftest import builder_settings, server_settings
from tests.system.fault_proxy import PASS, Request, fault_proxy
from tests.system.stack import CHECKOUT, Stack
from tests.system.test_ci_job import FORGES, FORGES_FILES, Runner
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system


class Canaries:
    """The secrets of a stack, and where they were seen."""

    def __init__(self, values: Sequence[str]) -> None:
        self.values = values
        self._forms = {value: _forms(value) for value in values}
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
            values += _halves(key)
        assert all(len(value) >= 16 for value in values)
        return cls(values)

    @classmethod
    def of_bucket(cls, bucket: CacheBucket) -> Canaries:
        return cls([bucket.secret, *_halves(bucket.key.to_nix())])

    def look(self, where: str, text: str) -> None:
        """Count the canaries in a text."""
        self.found[where] = self.found.get(where, 0) + len(self.within(text))

    def within(self, text: str) -> list[str]:
        """Return the canaries that a text has, however they are written."""
        return [value for value, forms in self._forms.items() if any(one in text for one in forms)]

    def settle(self) -> None:
        """Write down what was seen, and fail the test if that was anything."""
        for where, seen in self.found.items():
            record("canary_sightings", where, seen)
        print(f"looked for {len(self.values)} secrets on {len(self.found)} ways")
        assert {where: seen for where, seen in self.found.items() if seen} == {}


def _halves(key: str) -> list[str]:
    """Return what of a key `name:base64` nobody may see: all of it, and its seed in two ways."""
    encoded = key.partition(":")[2]
    seed = base64.b64decode(encoded)[:32]
    return [encoded, base64.b64encode(seed).decode()[:40], seed.hex()]


def _forms(value: str) -> set[str]:
    """Return how a secret may be written: as it is, as programs quote it, in base64."""
    encoded = base64.b64encode(value.encode()).decode().rstrip("=")[:-1]
    return {value, repr(value)[1:-1], json.dumps(value)[1:-1], shlex.quote(value), encoded}


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
        for directory, _, names in os.walk(builder.root / place):
            for file in (Path(directory, name) for name in names):
                # What a push was killed over still makes and removes files.
                with suppress(OSError):
                    found = file.lstat()
                    if stat.S_ISREG(found.st_mode) and found.st_size < 1 << 22:
                        files[str(file)] = _read(file)
    return files


SPEAKING = """
import sys
def defect(*_, **__):
    frame, said = sys._getframe(), []
    while frame is not None:
        values = list(frame.f_locals.values())
        said += [*values, *(vars(one) for one in values if hasattr(one, "__dict__"))]
        frame = frame.f_back
    raise ValueError(str(said))
"""
"""A defect whose exception says all that is known where it happens."""

POISONS = {"bootstrap": ("hmac", "digest"), "push": ("tempfile", "mkdtemp")}
"""What of Python is broken: before the push is there, and when it has its settings."""


@contextmanager
def poisoned(builder: ThrowawayBuilder, module: str, name: str) -> Iterator[None]:
    """Break a function of a builder's Python itself: the push takes no other module there."""
    builder.run("rm -rf ~/.cache/nix-binary-cache")
    (file,) = (builder.root / "usr" / "lib").glob(f"python3.*/{module}.py")
    before = file.read_text()
    file.write_text(f"{before}\n{SPEAKING}\n{name} = defect\n")
    try:
        yield
    finally:
        file.write_text(before)


DEFECTS = (
    ("push.session", "Session"),
    ("push.workspace", "Workspace.write_secret"),
    ("push.connection", "Connection.exchange"),
    ("formats.sigv4", "Signer.signed"),
    ("push.store", "Nix.closure"),
    ("push.staging", "Staging._read"),
    ("push.transfers", "Transfers.close"),
    ("push.memory", "Memory.save"),
)


@pytest.fixture
def bucket(minio: MinioServer) -> CacheBucket:
    return CacheBucket(minio, f"canaries-{secrets.token_hex(4)}")


def test_a_defect_of_the_push_says_where_it_is_and_none_of_its_values(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    canaries = Canaries.of_bucket(bucket)
    closure = builder.make_closure(3, 30_000, seed=2102, name="defects")
    # Past what the push makes of its lines, which is no longer than a person reads.
    plain = (
        "import push.cli, sys; push.cli.defect = lambda error: str(sys.stderr.write(str(error)))"
    )
    would_be_seen = 0
    for module, name in DEFECTS:
        # What is under way goes on, and is pushed each time.
        bucket.empty()
        broken = f"{SPEAKING}\nimport {module}; {module}.{name}; {module}.{name} = defect"
        pushed = bucket.push(builder, closure, changed=broken)
        assert pushed.code == 1, name
        last = pushed.log.splitlines()[-1]
        assert last.startswith("push: defect: ValueError at push/cli.py:"), last
        assert " defect; report this line" in last
        canaries.look("a defect of the push", pushed.output + pushed.log)
        assert leftovers(builder) == [], name
        shown = bucket.push(builder, closure, changed=f"{broken}\n{plain}")
        would_be_seen += bool(canaries.within(shown.log))
    assert would_be_seen > len(DEFECTS) // 2, "what Python prints would have shown them"
    canaries.settle()


def test_a_killed_push_leaves_the_key_in_memory_and_no_other_secret(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    canaries = Canaries.of_bucket(bucket)
    closure = builder.make_closure(30, 3_000_000, seed=2103, name="killed")
    kept = 0
    for number in (2, 5, 20, 50):
        bucket.empty()

        def kill(request: Request, number: int = number) -> int:
            if request.number == number:
                builder.run(KILL)
            return PASS

        with fault_proxy(bucket.server, kill) as proxy:
            pushed = bucket.push(builder, closure, endpoint=proxy.url)
        assert pushed.code in (137, 255), pushed
        canaries.look("what a killed push said", pushed.output + pushed.log)
        for name, text in files_of(builder).items():
            inside = Path(name).relative_to(builder.root)
            if inside.match("run/nixcache-push.*/signing-key"):
                kept += 1
                assert bucket.key.to_nix() in text
                assert canaries.within(text) == canaries.within(bucket.key.to_nix())
            else:
                canaries.look("a builder's disk and memory right after a kill", text)
        for file in (builder.root / "proc").glob("[0-9]*/environ"):
            canaries.look("what a killed push left running", _read(file))
    assert kept >= 4, "it is there, as docs/security.md says, until the next push"
    bucket.push(builder, closure).succeeded()
    assert leftovers(builder) == []
    canaries.settle()


KILL = r"""
for process in /proc/[0-9]*; do
    if tr '\0' ' ' <"$process/cmdline" | grep -q '^python3 -I /run/push.pyz'; then
        kill -9 "${process#/proc/}"
    fi
done
"""


def test_a_push_that_a_signal_ends_leaves_no_core(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    """It would have the signing key and the secret, wherever the push was started."""
    closure = builder.make_closure(30, 3_000_000, seed=2105, name="core")
    builder.run("mkdir -p /var/tmp/cores")
    for number in (2, 20, 50):
        bucket.empty()
        ended: list[str] = []

        def end(request: Request, number: int = number, ended: list[str] = ended) -> int:
            if request.number == number:
                ended.append(builder.run(END_WITH_A_CORE).stdout)
            return PASS

        with fault_proxy(bucket.server, end) as proxy:
            around = "cd /var/tmp/cores; ulimit -c unlimited;"
            pushed = bucket.push(builder, closure, environment=around, endpoint=proxy.url)
        assert pushed.code in (131, 255), pushed
        # Where a program collects cores, only the limit tells that it gets none.
        limits = {line.split()[-3] for line in "".join(ended).splitlines()}
        assert limits == {"1"}, ended
    assert builder.run("ls /var/tmp/cores").stdout == ""


END_WITH_A_CORE = r"""
for process in /proc/[0-9]*; do
    if tr '\0' ' ' <"$process/cmdline" | grep -qE '^(python3 -I /run/push.pyz|nix )'; then
        grep '^Max core file size' "$process/limits"
        kill -QUIT "${process#/proc/}"
    fi
done 2>/dev/null
"""


def test_a_forges_job_shows_no_secret(builder: ThrowawayBuilder, bucket: CacheBucket) -> None:
    canaries = Canaries.of_bucket(bucket)
    runner = Runner(builder, bucket)
    asked = {**runner.secrets, "fail-on-push-error": "true"}
    said = [runner.step(asked)[1]]
    paths = runner.build("canary", 3)
    for name in ("cmdline", "environ"):
        for file in (builder.root / "proc").glob(f"[0-9]*/{name}"):
            canaries.look("what a job's steps leave running", _read(file))
    said.append(runner.step({"do": "finish"})[1])
    assert runner.published(paths) == set(paths)
    # A push that fails, settings that are refused, and a defect: the log is what people post.
    said.append(runner.step({**asked, "secret-access-key": f"{bucket.secret}, not"})[1])
    runner.build("canary-refused", 1)
    said.append(runner.step({"do": "finish", "fail-on-push-error": "true"}, check=False)[1])
    for wrong in (
        {"signing-key": bucket.key.to_nix()[:-3]},
        {"signing-key": bucket.key.to_nix().partition(":")[2]},
        {"signing-key": f"{bucket.secret}\n{bucket.key.to_nix()}"},
        {"secret-access-key": f"{bucket.secret}\x01"},
        {"secret-access-key": f"{bucket.secret}\n{bucket.secret}"},
        {"session-token": f"{bucket.secret} "},
        {"builder": "laptop"},
    ):
        code, refused = runner.step({**asked, **wrong}, check=False)
        assert code == 1, refused
        said.append(refused)
    with poisoned(builder, "shlex", "quote"):
        code, refused = runner.step(asked, check=False)
    assert (code, "push: defect: ValueError" in refused) == (1, True), refused
    said += [refused, runner.step({"do": "finish"}, check=False)[1]]
    for text in said:
        canaries.look("a job's log", text)
    for name in FORGES_FILES:
        canaries.look("what a job tells its forge", _read(builder.root / FORGES[1:] / name))
    for text in files_of(builder).values():
        canaries.look("a runner's disk after a job", text)
    canaries.settle()


def test_workflows_with_secrets_run_what_is_looked_at_here_and_nothing_else() -> None:
    ran = set()
    for file in (CHECKOUT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            for step in job.get("steps", ()):
                if "secrets." in str(step):
                    told = step.get("with", {})
                    assert told.get("suppress-outputs", True) is True, file.name
                    ran.add(str(step.get("run") or told["command"]))
    looked_at = {"preview", "up", ".venv/bin/python -m operations.drift --stack homelab"}
    assert ran == looked_at


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
    engine: Mapping[str, str], minio: MinioServer, builder: ThrowawayBuilder, tmp_path: Path
) -> None:
    closure = builder.make_closure(60, 30_000_000, seed=2101, name="canaries")
    stack = Stack(engine, tmp_path / "stack", passphrase="a passphrase for tests")
    stack.set(server_settings(minio), bucket="canaries")
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

    for where, poison in POISONS.items():
        stack.set(builders=[{**machine, "pins": [f"/nix/var/nix/gcroots/{where}"]}])
        builder.run(f"ln -sfn {closure} /nix/var/nix/gcroots/{where}")
        with poisoned(builder, *poison):
            failed = stack.up("--debug")
        assert "defect: ValueError" in failed.output, failed.output
        assert failed.code != 0
        canaries.look(f"a push that a defect ends in its {where}", failed.output)

    stack.set(builders=[machine])
    stack.up().succeeded()
    for text in files_of(builder).values():
        canaries.look("the builder's disk and memory after a push", text)

    for operation in ("status", "audit", "drift", "preview_markdown"):
        canaries.look(operation, stack.operate(operation, "--stack", stack.name).output)
    page = tmp_path / "report.html"
    stack.operate("report", "--stack", stack.name, "--output", str(page)).succeeded()
    canaries.look("report", page.read_text())
    canaries.look("state", stack.export())
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        if ".venv" not in file.parts:
            canaries.look("backend and project", _read(file))

    canaries.settle()
