"""A bucket as the program makes it, with a builder's user; the real push fills it."""

from __future__ import annotations

import io
import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from minio import Minio, MinioAdmin
from minio.credentials.credentials import Credentials
from minio.credentials.providers import StaticProvider
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from minio.signer import sign_v4_s3
from minio.time import utcnow

from components.push_program import archive
from formats.keys import PublicKey
from formats.push_status import STATUS_FOLDER
from formats.signing import SecretKey
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

NIX_CACHE_INFO = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"
WRITE_ACTIONS = (
    "s3:AbortMultipartUpload",
    "s3:GetBucketLocation",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
)
SUMMARY = re.compile(
    r"(?:pushed|would push) (?P<pushed>\d+) paths \((?P<pushed_size>[^)]+)\), "
    r"reused (?P<reused>\d+), skipped (?P<skipped>\d+) upstream \((?P<skipped_size>[^)]+)\), "
    r"renewed (?P<renewed>\d+), repaired (?P<repaired>\d+), in (?P<seconds>[\d.]+) s\n"
)


@dataclass(frozen=True)
class Pushed:
    """What one run of the script came to."""

    code: int
    output: str
    """Its standard output."""
    log: str
    """Its standard error."""

    def succeeded(self) -> Mapping[str, str]:
        """Return the fields of its summary, or fail the test with what it wrote."""
        assert self.code == 0, self.log
        summary = SUMMARY.fullmatch(self.output)
        assert summary, self.output
        return summary.groupdict()

    def counts(self) -> dict[str, int]:
        """Return the counts of its summary; fail the test if it failed."""
        fields = self.succeeded()
        names = ("pushed", "reused", "skipped", "renewed", "repaired")
        return {name: int(fields[name]) for name in names}

    def refused(self) -> str:
        """Return the last line of its log; fail the test if it succeeded."""
        assert self.code == 1, self.log
        assert self.output == ""
        return self.log.splitlines()[-1]


class OpenBucket:
    """A bucket that is there, and whoever pushes to it."""

    def __init__(
        self, server: MinioServer, name: str, user: str, secret: str, key: SecretKey
    ) -> None:
        """Take the names as they are."""
        self.name = name
        self.server = server
        self.user = user
        self.secret = secret
        self.key = key
        self.client = client(server)
        self._http = connections(server)

    @property
    def public_key(self) -> PublicKey:
        """The public half of the signing key."""
        return self.key.public_key

    @property
    def trusted(self) -> Sequence[PublicKey]:
        """The keys that clients have."""
        return [self.public_key]

    def ask(self, method: str, key: str) -> urllib3.BaseHTTPResponse:
        """Ask for an object as anybody may."""
        url = f"{self.server.endpoint}/{self.name}/{key}"
        return self._http.request(method, url, retries=False)

    def settings(self, **changes: str | int | Sequence[str] | None) -> str:
        """Return settings for the script; `_` in a name is `-`, None leaves one out."""
        values: dict[str, str | int | Sequence[str] | None] = {
            "endpoint": self.server.endpoint,
            "bucket": self.name,
            "access_key_id": self.user,
            "secret_access_key": self.secret,
            "signing_key": self.key.to_nix(),
            "ca_certificate_file": "/etc/private-ca.pem",
            "renew": "no",
            **changes,
        }
        return "".join(
            f"{name.replace('_', '-')}={value}\n"
            for name, given in values.items()
            if given is not None
            for value in ([given] if isinstance(given, str | int) else given)
        )

    def push(
        self,
        builder: ThrowawayBuilder,
        *paths: str,
        options: str = "",
        environment: str = "",
        changed: str = "",
        **changes: str | int | Sequence[str] | None,
    ) -> Pushed:
        """Push as Pulumi does, but for the bootstrap: settings on standard input.

        `changed` is Python that is run before, to change a clock or a constant of the push.
        """
        trust(builder, self.server)
        command = shlex.join([*place(builder, changed), "--config", "-", *options.split(), *paths])
        ran = builder.run(f"{environment} {command}", input=self.settings(**changes), check=False)
        return Pushed(ran.returncode, ran.stdout, ran.stderr)

    def objects(self) -> dict[str, Object]:
        """Return every object by its key, but for what pushes tell of themselves."""
        listed = self.client.list_objects(self.name, recursive=True)
        objects = {str(one.object_name): one for one in listed}
        return {key: one for key, one in objects.items() if not key.startswith(STATUS_FOLDER)}

    def get(self, key: str) -> bytes:
        """Return an object's content."""
        return self.client.get_object(self.name, key).read()

    def put(self, key: str, content: bytes, *, modified: datetime | None = None) -> None:
        """Write an object, as if at another time if `modified` is given."""
        if modified is None:
            self.client.put_object(self.name, key, io.BytesIO(content), len(content))
            return
        put_as_of(self.server, self._http, self.name, key, content, modified)

    def age(self, days: int, *keys: str) -> None:
        """Make objects look as if they were last written so many days ago."""
        then = utcnow() - timedelta(days=days)
        with ThreadPoolExecutor(4) as workers:
            list(workers.map(lambda key: self.put(key, self.get(key), modified=then), keys))

    def remove(self, *keys: str) -> None:
        """Delete objects."""
        errors = self.client.remove_objects(self.name, [DeleteObject(key) for key in keys])
        assert not list(errors)

    def empty(self) -> None:
        """Delete everything but `nix-cache-info`."""
        self.remove(*(self.objects().keys() - {"nix-cache-info"}))

    def pull(self, builder: ThrowawayBuilder, path: str, *, keys: Sequence[PublicKey] = ()) -> int:
        """Copy a closure from the cache into a new store, verify it, and return its paths.

        The store trusts the given keys alone, or else the bucket's.
        """
        trust(builder, self.server)
        trusted = " ".join(map(str, keys or [self.public_key]))
        pulled = builder.run(
            f"""set -eu
            store=$(mktemp -d)
            export NIX_SSL_CERT_FILE=/etc/private-ca.pem XDG_CACHE_HOME=$store/cache
            export NIX_CONFIG='experimental-features = nix-command
            trusted-public-keys = {trusted}
            substituters ='
            nix copy --to $store --from {self.server.endpoint}/{self.name} {path}
            nix store verify --store $store --sigs-needed 1 --recursive {path}
            nix path-info --store $store --recursive {path} | wc -l
            chmod -R u+w $store; rm -r $store"""
        )
        return int(pulled.stdout)


class CacheBucket(OpenBucket):
    """A bucket of its own on a server, with a user that may write to it and a signing key."""

    def __init__(self, server: MinioServer, name: str) -> None:
        """Make the bucket, `nix-cache-info`, anonymous download, the user and its policy."""
        super().__init__(
            server,
            name,
            user=f"{name}-builder",
            secret='a secret of the builder, with \\ and "',
            key=SecretKey.generate("cache.test-1"),
        )
        self.admin = MinioAdmin(
            endpoint=server.endpoint.removeprefix("https://"),
            credentials=StaticProvider(server.root_user, server.root_password),
            http_client=urllib3.PoolManager(ca_certs=str(server.ca_file)),
        )
        self.client.make_bucket(name)
        self.client.set_bucket_policy(
            name, _policy(["s3:GetObject"], name, Principal={"AWS": ["*"]})
        )
        self.put("nix-cache-info", NIX_CACHE_INFO)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as policy:
            policy.write(_policy(WRITE_ACTIONS, name))
            policy.flush()
            self.admin.policy_add(self.user, policy.name)
        self.admin.user_add(self.user, self.secret)
        self.admin.attach_policy([self.user], user=self.user)


def client(server: MinioServer) -> Minio:
    """Return an S3 client with the server's root credential."""
    return Minio(
        server.endpoint.removeprefix("https://"),
        access_key=server.root_user,
        secret_key=server.root_password,
        region="us-east-1",
        http_client=connections(server),
    )


def connections(server: MinioServer) -> urllib3.PoolManager:
    """Return connections to the server, kept for as many threads as any test has."""
    return urllib3.PoolManager(ca_certs=str(server.ca_file), maxsize=8)


def put_as_of(
    server: MinioServer,
    http: urllib3.PoolManager,
    bucket: str,
    key: str,
    content: bytes,
    modified: datetime,
) -> None:
    """Write an object as the server's root, as if at another time.

    A replica's time is taken as it is; the SDK cannot send these headers.
    """
    url = urlsplit(f"{server.endpoint}/{bucket}/{key}")
    now, payload = utcnow(), "UNSIGNED-PAYLOAD"
    headers = sign_v4_s3(
        method="PUT",
        url=url,
        region="us-east-1",
        headers={
            "Host": url.netloc,
            "x-amz-content-sha256": payload,
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
            "x-minio-source-mtime": modified.strftime("%Y-%m-%dT%H:%M:%S.000000000Z"),
            "x-minio-source-replication-request": "true",
        },
        credentials=Credentials(server.root_user, server.root_password),
        content_sha256=payload,
        date=now,
    )
    answer = http.request(
        "PUT",
        url.geturl(),
        body=content,
        headers={name: str(value) for name, value in headers.items()},
    )
    assert answer.status == 200, answer.data


def trust(builder: ThrowawayBuilder, server: MinioServer) -> None:
    """Put the authority of the server where the settings say that it is."""
    (builder.root / "etc" / "private-ca.pem").write_bytes(server.ca_file.read_bytes())


def place(builder: ThrowawayBuilder, changed: str = "") -> list[str]:
    """Put the push on a builder, and return the command that runs it."""
    (builder.root / "run" / "push.pyz").write_bytes(archive())
    if not changed:
        return ["python3", "-I", "/run/push.pyz"]
    start = "import sys; sys.path.insert(0, '/run/push.pyz')"
    run = "import os; from push.cli import main; os._exit(main(sys.argv[1:]))"
    return ["python3", "-I", "-c", f"{start}\n{changed}\n{run}"]


def leftovers(builder: ThrowawayBuilder) -> list[Path]:
    """Return the directories that pushes left on a builder."""
    places = (builder.root / place for place in ("run", "dev/shm", "var/tmp", "tmp"))
    return [directory for place in places for directory in place.glob("nixcache-push*")]


@contextmanager
def small_disk(builder: ThrowawayBuilder, size: int) -> Iterator[str]:
    """Mount a disk of so many bytes on a builder; the value is where."""
    place = builder.run(
        f"place=$(mktemp -d) && mount -t tmpfs -o size={size} tmpfs $place && echo $place"
    ).stdout.strip()
    try:
        yield place
    finally:
        builder.run(f"umount {place} && rmdir {place}")


def _policy(actions: Sequence[str], bucket: str, **more: object) -> str:
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources, **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
