"""What each change of a setting does to the server and to this machine: all of it, in one table.

The real engine deploys each row after the one before it, and the server is looked at before and
after: users, their secrets and policies, buckets with their access, lifecycle and objects, files of
credentials, and the keys of the state. What a row does not name has not been touched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.ssh_server import SshServer
from tests.system.cache_bucket import put_as_of
from tests.system.conftest import server_settings
from tests.system.inventory import Inventory, difference, keys_of
from tests.system.minio_client import MinioClient
from tests.system.stack import Stack
from tests.system.test_retention import days_ago
from toolbox.minio_server import MinioServer

NEW, NOW, GONE = "created", "changed", "deleted"
PAGE = {"object table/use.html": NOW}
KEY_FILES = {"file one/signing-key": NOW, "file two/signing-key": NOW}


@dataclass(frozen=True)
class Row:
    """One change of one setting."""

    setting: str
    change: str
    """From what to what, in words."""
    settings: Mapping[str, object]
    does: Mapping[str, str] = field(default_factory=dict)
    """What becomes of what on the server, on this machine and in the state."""
    refused: str | None = None
    """What the refusal says; None where the change is carried out."""
    before: str = ""
    """A name of `PREPARATIONS`: what somebody does before."""


def builders(
    first: Mapping[str, object] = {}, second: Mapping[str, object] = {}
) -> dict[str, object]:
    """Return the two builders of the table, with changes to them."""
    one = {**FIRST, **first}
    two = {"name": "two", "at": "127.0.0.1", "directory": "two", **second}
    return {"builders": [one, two]}


FIRST = {"name": "one", "at": "local", "directory": "one"}
SECRET = "a-secret-of-somebody-else"
ONE, TWO = {"s3User": "table-one"}, {"s3User": "table-two"}
SECRETS = {"file one/secret-access-key": NOW, "file two/secret-access-key": NOW}
POLICY = {"policy table-write": NOW}


def user(name: str, what: str) -> dict[str, str]:
    return {f"user {name}": what}


def files(directory: str, what: str) -> dict[str, str]:
    names = (".placed-by", "secret-access-key", "signing-key")
    return {f"file {directory}/{name}": what for name in names}


def moved(bucket: str, what: str, objects: int = 2) -> dict[str, str]:
    """Return what a bucket is made of, users and policies with it."""
    names = ("nix-cache-info", "use.html")[:objects]
    return {
        f"bucket {bucket}": what,
        f"access to {bucket}": what,
        f"lifecycle of {bucket}": what,
        f"policy {bucket}-write": what,
        **{f"object {bucket}/{name}": what for name in names},
        **user(f"{bucket}-one", what),
        **user(f"{bucket}-two", what),
    }


TABLE = [
    Row("name", "one → other, its user kept", builders({**ONE, "name": "other"}, TWO)),
    Row("name", "two builders exchange theirs",
        builders({**ONE, "name": "two"}, {**TWO, "name": "one"})),
    Row("name", "and back", builders()),
    Row("name", "two → new, its user with it", builders({}, {"name": "new"}),
        {**user("table-two", GONE), **user("table-new", NEW), **POLICY,
         "file two/secret-access-key": NOW}),
    Row("name", "new → two", builders(),
        {**user("table-new", GONE), **user("table-two", NEW), **POLICY,
         "file two/secret-access-key": NOW}),
    Row("s3User", "table-two → mine", builders({}, {"s3User": "mine"}),
        {**user("table-two", GONE), **user("mine", NEW), **POLICY,
         "file two/secret-access-key": NOW}),
    Row("s3User", "two builders exchange theirs", builders({"s3User": "mine"}, ONE), SECRETS),
    Row("s3User", "mine → somebody else's", builders({"s3User": "alice"}, ONE),
        refused="the server has a user alice already, which this stack did not make"),
    Row("s3User", "mine → the deployment's own", builders({"s3User": "root-of-the-cache"}),
        refused="a builder or the reader has this user"),
    Row("s3User", "back to the defaults", builders(),
        {**user("mine", GONE), **user("table-two", NEW), **POLICY, **SECRETS}),
    Row("local", "true → host, the same machine", builders({"at": "127.0.0.1"}),
        {"file one/.placed-by": NOW}),
    Row("host", "127.0.0.1 → localhost", builders({"at": "localhost"}),
        {"file one/.placed-by": NOW}),
    Row("port", "another of the same server", builders({"at": "localhost", "ssh": 1})),
    Row("user", "root → deploy", builders({"at": "localhost", "user": "deploy"})),
    Row("local", "host → true", builders(), {"file one/.placed-by": NOW}),
    Row("credentialsDirectory", "one → three", builders({"directory": "three"}),
        {**files("one", GONE), **files("three", NEW)}),
    Row("credentialsDirectory", "three → none", builders({"directory": None}),
        files("three", GONE)),
    Row("credentialsDirectory", "none → one with other things", builders({"directory": "taken"}),
        refused="holds other things, such as hosts"),
    Row("credentialsDirectory", "none → /etc", builders({"directory": "/etc"}),
        refused="others need this directory"),
    Row("credentialsDirectory", "none → that of another builder",
        builders({"directory": "two", "at": "127.0.0.1"}),
        refused="has it on the same machine"),
    Row("credentialsDirectory", "none → one", builders(), files("one", NEW)),
    Row("credentialsDirectory", "two builders exchange theirs",
        builders({"directory": "two"}, {"directory": "one"}),
        {**SECRETS, "file one/.placed-by": NOW, "file two/.placed-by": NOW}),
    Row("credentialsDirectory", "and back", builders(),
        {**SECRETS, "file one/.placed-by": NOW, "file two/.placed-by": NOW}),
    Row("builders", "two leaves", {"builders": [FIRST]},
        {**user("table-two", GONE), **POLICY, **files("two", GONE)}),
    Row("builders", "two comes back", builders(),
        {**user("table-two", NEW), **POLICY, **files("two", NEW)}),
    Row("builders", "all leave", {"builders": []},
        {**user("table-one", GONE), **user("table-two", GONE), **POLICY, **files("one", GONE),
         **files("two", GONE)}),
    Row("builders", "all come back", builders(),
        {**user("table-one", NEW), **user("table-two", NEW), **POLICY, **files("one", NEW),
         **files("two", NEW)}),
    Row("writePolicy", "table-write → writers", {"writePolicy": "writers"},
        {"policy table-write": GONE, "policy writers": NEW}),
    Row("writePolicy", "writers → somebody else's", {"writePolicy": "by-hand"},
        refused="the server has a policy by-hand already, which this stack did not make"),
    Row("writePolicy", "writers → readwrite", {"writePolicy": "readwrite"},
        refused="MinIO itself has this policy"),
    Row("writePolicy", "back to the default", {"writePolicy": None},
        {"policy table-write": NEW, "policy writers": GONE}),
    Row("publicUrl", "unset → a CDN", {"publicUrl": "https://cdn.example.org/nix"}, PAGE),
    Row("publicUrl", "another CDN, protected",
        {"publicUrl": "https://cdn.example.com", "protect": True}, PAGE),
    Row("publicUrl", "unset", {"publicUrl": None}, PAGE),
    Row("endpoint", "another name of the host", {"endpoint": "localhost"}, PAGE),
    Row("endpoint", "and back", {"endpoint": "127.0.0.1"}, PAGE),
    Row("bucket", "another, protected", {"bucket": "table2"},
        refused="is protected, and would be deleted"),
    Row("protect", "true → false", {"protect": False, "bucket": "table"}),
    Row("access", "public → private", {"access": "private"},
        {"access to table": NOW, **user("table-reader", NEW), "policy table-reader": NEW,
         "object table/use.html": GONE}),
    Row("access", "private → public, a builder with the reader's user",
        {"access": "public", **builders({"s3User": "table-reader"})},
        refused="it is the user of the cache's reader"),
    Row("access", "private → public", {"access": "public", **builders()},
        {"access to table": NOW, **user("table-reader", GONE), "policy table-reader": GONE,
         "object table/use.html": NEW}),
    Row("access", "public → private, and there is a reader", {"access": "private"}, before="reader",
        refused="the server has a user table-reader already"),
    Row("anonymousListing", "false → true", {"access": "public", "anonymousListing": True},
        {"access to table": NOW}),
    Row("anonymousListing", "true → false", {"anonymousListing": False}, {"access to table": NOW}),
    Row("pageFigures", "false → true, and nothing is published", {"pageFigures": True}),
    Row("expire", "true → false", {"expire": False}, {"lifecycle of table": GONE, **PAGE}),
    Row("expire", "false → true, beside other things", {"expire": True}, before="photos",
        refused="objects would expire that are no files of a cache: 1 (photos/ (1))"),
    Row("expire", "false → true", {"expire": True}, {"lifecycle of table": NEW, **PAGE},
        before="no photos"),
    Row("retentionDays", "7 → 30", {"retentionDays": 30}, {"lifecycle of table": NOW, **PAGE}),
    Row("retentionDays", "30 → 7, most entries older", {"retentionDays": 7}, before="old entries",
        refused="100% of the cache's entries would expire at once"),
    Row("retentionDays", "30 → 7, confirmed",
        {"retentionDays": 7, "confirmShorterRetention": True},
        {"lifecycle of table": NOW, **PAGE, f"object table/{'0' * 32}.narinfo": GONE}),
    Row("graceDays", "1 → 3", {"graceDays": 3, "confirmShorterRetention": None},
        before="empty",
        does={"lifecycle of table": NOW}),
    Row("bucket", "another, this one not empty", {"bucket": "table2"}, before="an entry",
        refused="this stack's bucket table holds 1 objects of the cache"),
    Row("bucket", "somebody else's", {"bucket": "not-ours"}, before="empty",
        refused="the server has a bucket of that name, which is not this stack's"),
    Row("bucket", "another, this one empty", {"bucket": "table2"},
        {**moved("table", GONE), **moved("table2", NEW), **SECRETS}),
    Row("bucket", "and back", {"bucket": "table"},
        {**moved("table2", GONE), **moved("table", NEW), **SECRETS}),
    Row("priority", "40 → 30", {"priority": 30}, {"object table/nix-cache-info": NOW}),
    Row("signingKeys", "a second one appended", {"signingKeys": ["{host}-1", "{host}-2"]},
        {"key 127.0.0.1-2": NEW, **PAGE, **KEY_FILES}),
    Row("signingKeys", "unset", {"signingKeys": None}),
    Row("signingKeys", "the first one removed", {"signingKeys": ["{host}-2"], "protect": True},
        {"key 127.0.0.1-1": GONE, **PAGE}),
    Row("signingKeys", "all removed", {"signingKeys": ["{host}-3"]},
        refused="no key stays that clients trust"),
    Row("signingKeys", "the first one again", {"signingKeys": ["{host}-1", "{host}-2"]},
        refused="this stack has had 127.0.0.1-2"),
    Row("signingKeys", "all removed, confirmed",
        {"signingKeys": ["{host}-3"], "confirmKeyReplacement": True},
        {"key 127.0.0.1-2": GONE, "key 127.0.0.1-3": NEW, **PAGE, **KEY_FILES}),
    Row("signingKeyDomains", "another domain's key",
        {"signingKeys": ["{host}-3", "mine-1"], "signingKeyDomains": ["mine"],
         "confirmKeyReplacement": None},
        {"key mine-1": NEW, **PAGE, **KEY_FILES}),
    Row("expiresAtMidnight", "true → false", {"expiresAtMidnight": False},
        {"lifecycle of table": NOW}),
    Row("expiresAtMidnight", "false → true", {"expiresAtMidnight": True},
        {"lifecycle of table": NOW}),
    Row("bucketPolicy", "true → false", {"bucketPolicy": False, "publicUrl": "https://localhost:1"},
        {"access to table": GONE, **PAGE}),
    Row("bucketPolicy", "false → true", {"bucketPolicy": True, "publicUrl": None},
        {"access to table": NEW, **PAGE}),
    Row("users", "minio → given, those that this stack made",
        {"users": "given", "givenUserSecrets": f"table-one:{SECRET}\ntable-two:{SECRET}",
         **builders({"accessKeyId": "table-one"}, {"accessKeyId": "table-two"})},
        refused="this stack made that user, and deletes it now that users is given"),
    Row("users", "minio → given", before="given",
        settings={"users": "given", "givenUserSecrets": f"GK-1:{SECRET}\nGK-2:{SECRET}",
                  **builders({"accessKeyId": "GK-1"}, {"accessKeyId": "GK-2"})},
        does={**user("table-one", GONE), **user("table-two", GONE), "policy table-write": GONE,
              **SECRETS}),
    Row("users", "given → minio", {"users": None, "givenUserSecrets": None, **builders()},
        {**user("table-one", NEW), **user("table-two", NEW), "policy table-write": NEW,
         **SECRETS}),
    Row("upstreamKeys", "none", {"upstreamKeys": []}),
    Row("compression", "zstd → xz", {"compression": "xz"}),
    Row("protect", "true → false", {"protect": False}),
]  # fmt: skip


class Walk:
    """The stack that goes from row to row."""

    def __init__(
        self, stack: Stack, server: MinioServer, directory: Path, ssh: SshServer, mc: MinioClient
    ) -> None:
        self.stack = stack
        self.directory = directory
        self._server = server
        self._ssh = ssh
        self._mc = mc
        self._inventory = Inventory(server)
        self._secrets: dict[str, str] = {}

    def set(self, settings: Mapping[str, object]) -> None:
        """Change settings, written as the rows have them."""
        changes = dict(settings)
        rows = changes.get("builders")
        if isinstance(rows, list):
            changes["builders"] = [self._builder(row) for row in rows]
        if "endpoint" in changes:
            changes["endpoint"] = f"https://{changes['endpoint']}:{self._server.port}"
        self.stack.set(changes)

    def _builder(self, row: Mapping[str, Any]) -> dict[str, object]:
        names = ("name", "s3User", "accessKeyId", "user")
        known = {name: row[name] for name in names if name in row}
        if row["directory"] is not None:
            directory = self.directory / str(row["directory"]).lstrip("/")
            known["credentialsDirectory"] = "/etc" if row["directory"] == "/etc" else str(directory)
        if row["at"] == "local":
            return {**known, "local": True}
        port = self._ssh.ports[row.get("ssh", 0)]
        return {**known, "host": row["at"], "port": port, "hostKey": self._ssh.host_key}

    def prepare(self, what: str) -> None:
        """Do what somebody does."""
        root = self._inventory.root
        if what == "reader":
            self._mc.run("admin user add s3", text=f"table-reader\n{SECRET}\n")
        elif what == "given":
            for name in ("GK-1", "GK-2"):
                self._mc.run("admin user add s3", text=f"{name}\n{SECRET}\n")
                self._mc.run(f"admin policy attach s3 readwrite --user {name}")
        elif what == "photos":
            root.put_object("table", "photos/1.jpg", io.BytesIO(b"x"), 1)
        elif what == "no photos":
            root.remove_object("table", "photos/1.jpg")
        elif what == "an entry":
            root.put_object("table", f"{'1' * 32}.narinfo", io.BytesIO(b"x"), 1)
        elif what == "old entries":
            key = f"{'0' * 32}.narinfo"
            put_as_of(self._server, self._inventory.http, "table", key, b"x", days_ago(10))
        elif what == "empty":
            for entry in root.list_objects("table"):
                if str(entry.object_name).endswith(".narinfo"):
                    root.remove_object("table", str(entry.object_name))

    def look(self) -> dict[str, str]:
        """Return what there is, directories of credentials by their last name."""
        found = self._inventory.take(self._secrets, [self.directory])
        found |= keys_of(self.stack)
        return {
            name.replace(f"file {self.directory}/", "file "): what for name, what in found.items()
        }

    def learn_secrets(self) -> None:
        """Let the next looks see whether a user's secret stays."""
        builders = self.stack.outputs()["builders"].values()
        self._secrets = {access["accessKeyId"]: access["secretAccessKey"] for access in builders}


@pytest.fixture(scope="module")
def walk(
    minio: MinioServer, engine: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Walk]:
    directory = tmp_path_factory.mktemp("table")
    mc = MinioClient(minio, directory)
    mc.run("admin user add s3", text=f"alice\n{SECRET}\n")
    mc.run("mb s3/not-ours")
    (directory / "policy.json").write_text(
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"],'
        ' "Resource": ["arn:aws:s3:::*"]}]}'
    )
    mc.run(f"admin policy create s3 by-hand {directory}/policy.json")
    stack = Stack(engine, directory / "stack")
    stack.set(server_settings(minio))
    stack.set(bucket="table", signingKeys=None, signingKeyDomains=None)
    with ExitStack() as servers:
        ssh = servers.enter_context(SshServer(ports=2))
        places = directory / "credentials"
        (places / "taken").mkdir(parents=True)
        (places / "taken" / "hosts").touch()
        it = Walk(stack, minio, places, ssh, mc)
        stack.set(sshPrivateKey=ssh.private_key)
        it.set(builders())
        stack.up().succeeded()
        yield it
        stack.set(protect=False)
        stack.up()
        stack.destroy()


def test_no_change_of_a_setting_touches_what_it_does_not_name(
    walk: Walk, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, wrong = [], []
    settings: dict[str, object] = {}
    walk.learn_secrets()
    now = walk.look()
    for number, row in enumerate(TABLE, 1):
        if row.before:
            walk.prepare(row.before)
            now = walk.look()
        walk.set(row.settings)
        outcome = walk.stack.up()
        before, now = now, walk.look()
        found = difference(before, now)
        for name in [name for name, what in found.items() if what == GONE]:
            if name.startswith("user "):
                # It has no secret either.
                found.pop(name.replace("user ", "secret of "), None)
        if row.refused is None and outcome.code == 0:
            settings |= row.settings
            if any(name.startswith("user ") for name in found):
                walk.learn_secrets()
                now = walk.look()
        else:
            # What was refused is taken back, so that each row changes one thing.
            walk.set({name: settings.get(name, DEFAULTS.get(name)) for name in row.settings})
        done = re.findall(r"^ +([+~-]+ ?\d+) (?:cre|upd|del|rep)", outcome.output, re.MULTILINE)
        seen = ", ".join(f"{what} {name}" for name, what in found.items()) or "-"
        refused = "refused; " if outcome.code else ""
        engine = " ".join(done) or "-"
        lines.append(f"{number:2} {row.setting:20} {row.change:42} {engine:12} {refused}{seen}")
        as_said = row.refused is None or row.refused in outcome.output
        as_expected = found == dict(row.does) and (outcome.code != 0) == (row.refused is not None)
        if not as_said or not as_expected:
            expected = row.refused or dict(row.does)
            wrong.append(f"{lines[-1]}\nexpected {expected}\n{outcome.output}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert len(TABLE) >= 40
    assert not wrong, "\n\n".join(wrong)


DEFAULTS: dict[str, object] = {**builders(), "bucket": "table", "protect": False}
