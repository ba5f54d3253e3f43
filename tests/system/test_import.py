"""Copying another cache, made by a real Nix and served over TLS, into a stack's: `make import`."""

from __future__ import annotations

import lzma
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from formats.keys import PublicKey
from formats.narinfo import NarInfo, narinfo_of
from formats.signing import SecretKey, verified_by
from tests.system.cache_bucket import put_as_of, trust
from tests.system.conftest import builder_settings, server_settings
from tests.system.inventory import Inventory
from tests.system.stack import CHECKOUT, Outcome, Stack
from tests.system.test_retention import days_ago
from toolbox.certificates import make_authority
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

PATHS, OTHERS = 14, 3
BUCKET = "imported"
PLACE = "/srv/old-cache"


@dataclass
class Old:
    """The cache that is copied from."""

    url: str
    ca_file: Path
    directory: Path
    key: SecretKey
    top: str
    other: str
    alone: list[str]
    """Paths that refer to no other."""
    asked: list[str] = field(default_factory=list)
    serves: int | None = None
    """How many NARs it serves; the others wait for `goes_on`. None serves all."""
    goes_on: threading.Event = field(default_factory=threading.Event)
    login: str = ""
    """The header by which it knows who may read; empty where anybody may."""

    def narinfo(self, path: str) -> Path:
        return self.directory / narinfo_of(path)

    def nar(self, path: str) -> Path:
        return self.directory / NarInfo.parse(self.narinfo(path).read_text()).url

    def nars(self) -> list[str]:
        """Return the NARs that were asked for since the last call."""
        asked = [one for one in self.asked if one.startswith("/nar/")]
        self.asked.clear()
        return asked


@pytest.fixture(scope="module")
def old(builder: ThrowawayBuilder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Old]:
    """A cache with a few closures, as people have them: by `nix copy`, compressed with xz."""
    key = SecretKey.generate("old.test-1")
    tops = [
        builder.make_closure(paths, 600_000, seed, f"old-{seed}")
        for paths, seed in ((PATHS, 81), (OTHERS, 82), (1, 83), (1, 84))
    ]
    builder.run(
        f"cat >/srv/old-key && nix --extra-experimental-features nix-command copy --to "
        f"'file://{PLACE}?secret-key=/srv/old-key' {' '.join(tops)}",
        input=key.to_nix(),
    )
    authority = make_authority(tmp_path_factory.mktemp("old"))
    directory = builder.root / PLACE[1:]
    it = Old("", authority.ca_file, directory, key, tops[0], tops[1], tops[2:])
    with _serving(it, authority.server_certificate, authority.server_key) as url:
        it.url = url
        yield it


@contextmanager
def _serving(old: Old, certificate: Path, key: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if old.login not in ("", self.headers.get("Authorization")):
                self.send_error(401)
                return
            old.asked.append(self.path)
            nars = [one for one in old.asked if one.startswith("/nar/")]
            if old.serves is not None and self.path in nars[old.serves :]:
                old.goes_on.wait(60)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            # A client that is killed breaks its connections.
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(old.directory))) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


Import = Callable[..., Outcome]


@pytest.fixture(scope="module")
def stack(
    engine: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    minio: MinioServer,
    builder: ThrowawayBuilder,
) -> Stack:
    """A stack whose builder has pushed nothing."""
    stack = Stack(engine, tmp_path_factory.mktemp("stack") / "imports", "imports")
    stack.set(server_settings(minio), bucket=BUCKET, upstreamKeys=[])
    stack.set(sshPrivateKey=builder.private_key, builders=[builder_settings(builder)])
    stack.up().succeeded()
    return stack


def arguments(stack: Stack, old: Old, *paths: str, keys: str = "") -> list[str]:
    given = ["--from", old.url, "--keys", keys or str(old.key.public_key)]
    return ["--stack", stack.name, *given, "--ca-file", str(old.ca_file), *paths]


def imported(
    stack: Stack, old: Old, *paths: str, keys: str = "", text: str = "", **environment: str
) -> Outcome:
    words = arguments(stack, old, *paths, keys=keys)
    return stack.operate("import_cache", *words, text=text, **environment)


def cached(minio: MinioServer) -> set[str]:
    """Return the keys of the cache's files."""
    root = Inventory(minio).root
    return {
        str(one.object_name)
        for one in root.list_objects(BUCKET, recursive=True)
        if str(one.object_name).endswith(".narinfo") or str(one.object_name).startswith("nar/")
    }


def test_a_cache_that_the_given_key_has_not_signed_is_refused_before_anything_is_written(
    stack: Stack, old: Old, minio: MinioServer
) -> None:
    wrong = str(SecretKey.generate("old.test-1").public_key)
    refused = imported(stack, old, old.top, keys=wrong)
    assert refused.code == 2
    assert (
        f"error: {old.url} has nothing that can be copied: {old.top}: none of the given keys has "
        "signed it (it bears signatures of old.test-1); see that KEYS are its keys"
    ) in refused.output
    refused = imported(stack, old, old.top, keys="old.test-1")
    assert refused.code == 2
    assert "KEYS has 'old.test-1', which is no public key" in refused.output
    assert cached(minio) == set()
    assert old.nars() == []


def test_an_import_that_is_killed_goes_on_where_it_was(
    stack: Stack, old: Old, minio: MinioServer, second_builder: ThrowawayBuilder, tmp_path: Path
) -> None:
    old.nars()
    old.serves = 6
    place = {"TMPDIR": str(tmp_path)}

    def some_arrived() -> bool:
        """Whether all is there that will be: the next NAR is held back."""
        seen = cached(minio)
        arrived = {key for key in seen if key.startswith("nar/")}
        if len(arrived) != old.serves or len(seen) == len(arrived):
            return False
        time.sleep(1)
        return cached(minio) == seen

    command = [sys.executable, "-m", "operations.import_cache"]
    process = subprocess.Popen(
        [*command, *arguments(stack, old, old.top)],
        cwd=stack.project,
        env={**stack.environment, "PYTHONPATH": str(CHECKOUT), **place},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(some_arrived, 60)
    finally:
        process.kill()
        process.wait()
        old.serves = None
        old.goes_on.set()
    there = {key for key in cached(minio) if key.endswith(".narinfo")}
    assert there
    audited = stack.operate("audit", "--stack", stack.name)
    assert audited.code == 0, audited.output
    old.nars()

    assert list(tmp_path.iterdir())
    done = imported(stack, old, "--paths", "-", text=f"{narinfo_of(old.top)}\n", **place)
    assert done.code == 0, done.output
    assert not list(tmp_path.iterdir())
    left = PATHS - len(there)
    assert f"copied {left} paths" in done.output
    assert f"had {len(there)}, left 0 to upstream caches" in done.output
    assert len(old.nars()) == left
    audited = stack.operate("audit", "--stack", stack.name, "--hash", "all")
    assert audited.code == 0, audited.output

    # A client that has only the stack's key, and nothing of the old cache.
    trust(second_builder, minio)
    outputs = stack.outputs()
    pulled = second_builder.run(
        f"""set -eu
        store=$(mktemp -d)
        export NIX_SSL_CERT_FILE=/etc/private-ca.pem XDG_CACHE_HOME=$store/cache
        export NIX_CONFIG='experimental-features = nix-command
        trusted-public-keys = {" ".join(outputs["publicKeys"])}
        substituters ='
        nix copy --to $store --from {outputs["substituter"]} {old.top}
        nix store verify --store $store --sigs-needed 1 --recursive {old.top}
        nix path-info --store $store --recursive {old.top} | wc -l"""
    )
    assert int(pulled.stdout) == PATHS


def test_what_the_cache_has_is_renewed_and_its_builder_takes_it_for_its_own(
    stack: Stack, old: Old, minio: MinioServer, builder: ThrowawayBuilder
) -> None:
    inventory = Inventory(minio)
    for key in cached(minio):
        content = inventory.root.get_object(BUCKET, key).read()
        put_as_of(minio, inventory.http, BUCKET, key, content, days_ago(3))
    old.nars()
    again = imported(stack, old, old.top)
    assert f"copied 0 paths (0 B), had {PATHS}," in again.output
    assert old.nars() == []
    modified = [one.last_modified for one in inventory.root.list_objects(BUCKET, recursive=True)]
    assert min(str(one) for one in modified) > str(days_ago(0.9))
    stack.set(builders=[builder_settings(builder, old.top)])
    stack.up().succeeded()
    (access,) = stack.outputs()["builders"].values()
    assert access["lastPush"].startswith(f"pushed 0 paths (0 B), reused {PATHS},")
    narinfo = NarInfo.parse(inventory.root.get_object(BUCKET, narinfo_of(old.top)).read().decode())
    # Clients that trust the old key go on.
    assert verified_by(narinfo, {old.key.name: old.key.public_key}) == (old.key.name,)
    assert (narinfo.compression, narinfo.deriver) == ("zstd", None)


def test_a_cache_that_wants_a_login_is_given_the_one_of_a_netrc_file_and_it_is_shown_nowhere(
    stack: Stack, old: Old, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cr3t\n")
    old.login = f"Basic {b64encode(b'me:s3cr3t').decode()}"
    try:
        refused = imported(stack, old, old.top)
        assert refused.code == 2
        assert (
            "the other cache wants a login, or another one; name a file that has it with "
            'ARGS="--netrc-file FILE"'
        ) in refused.output
        done = imported(stack, old, old.top, "--netrc-file", str(netrc))
    finally:
        old.login = ""
    assert done.code == 0, done.output
    assert f"had {PATHS}, left 0 to upstream caches" in done.output
    assert "s3cr3t" not in done.output


def test_what_lies_is_not_copied_nor_what_refers_to_it(
    stack: Stack, old: Old, minio: MinioServer
) -> None:
    text = old.narinfo(old.other).read_text()
    lying = next(one for one in NarInfo.parse(text).references if one not in old.other)
    before = cached(minio)
    nar = old.nar(f"/nix/store/{lying}")
    kept = {file: file.read_bytes() for file in (nar, *map(old.narinfo, old.alone))}
    unsigned, anothers = map(old.narinfo, old.alone)
    try:
        # A NAR of the right size, under a narinfo that is signed well.
        content = bytearray(lzma.decompress(nar.read_bytes()))
        content[len(content) // 2] ^= 1
        nar.write_bytes(lzma.compress(content))
        unsigned.write_text(unsigned.read_text().replace("NarSize: ", "NarSize: 1"))
        anothers.write_text(text)
        lied = imported(stack, old, old.other, *old.alone)
    finally:
        for file, original in kept.items():
            file.write_bytes(original)
    assert lied.code == 1
    assert f"not copied: /nix/store/{lying}: its NAR cannot be had: it is not what was signed" in (
        lied.output
    )
    assert "that refer to them" in lied.output
    assert f"not copied: {old.alone[0]}: none of the given keys has signed it" in lied.output
    assert f"not copied: {old.alone[1]}: its narinfo is about another path" in lied.output
    paths = (old.other, f"/nix/store/{lying}", *old.alone)
    assert cached(minio).isdisjoint(map(narinfo_of, paths))
    assert before <= cached(minio)
    assert imported(stack, old, old.other, *old.alone).code == 0
    assert cached(minio) >= set(map(narinfo_of, paths))
    assert stack.operate("audit", "--stack", stack.name, "--hash", "all").code == 0


def test_clients_of_both_keys_take_what_is_copied_in_the_midst_of_a_rotation(
    stack: Stack, old: Old, minio: MinioServer
) -> None:
    root, name = Inventory(minio).root, narinfo_of(old.alone[0])
    first, second = "cache.test-1", "cache.test-2"
    stack.set(signingKeys=[first, second])
    stack.up("--target", "**SigningKey**").succeeded()
    root.remove_object(BUCKET, name)
    assert "copied 1 paths" in imported(stack, old, old.alone[0]).output
    narinfo = NarInfo.parse(root.get_object(BUCKET, name).read().decode())
    keys = {key.name: key for key in map(PublicKey.parse, stack.outputs()["publicKeys"])}
    assert set(verified_by(narinfo, keys)) == {first, second}
