"""Who may do what, of every call that S3 and MinIO's admin API have: expected against seen."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping

import pytest
from minio.crypto import encrypt

from components.access import write_policy
from tests.promises import attack, record
from tests.system.access_matrix import (
    ABSENT,
    ANYBODY,
    BUILDER,
    CALLS,
    DEPLOYER,
    NO,
    OUTSIDER,
    PRIVATE,
    PUBLIC,
    READER,
    STRANGER,
    YES,
    Call,
)
from tests.system.conftest import server_settings
from tests.system.inventory import Inventory
from tests.system.minio_client import MinioClient
from tests.system.s3_requests import Answer, Requester
from tests.system.stack import CHECKOUT, Stack
from toolbox.minio_server import MinioServer

pytestmark = pytest.mark.system

BUCKET = "nix-cache"
SECRET = "a-secret-of-somebody"
POLICY = CHECKOUT / "docs" / "deployer-policy.json"
KEPT = ("nix-cache-info", "use.html", "_nixcache/push.pyz", "_nixcache", "nar", "log")
DENIED = frozenset({"AccessDenied", "AllAccessDisabled"})
MISSING = frozenset({"InvalidRequest", "MethodNotAllowed", "NotImplemented"})
"""Of these, the first is what a bucket answers that locks nothing."""


@pytest.fixture(scope="module")
def mc(minio: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> MinioClient:
    return MinioClient(minio, tmp_path_factory.mktemp("mc"))


@pytest.fixture(scope="module")
def stack(
    engine: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    minio: MinioServer,
    mc: MinioClient,
) -> Stack:
    """A stack with a builder, deployed by whom the policy of the documents is given to.

    It ends with its server: how stacks are destroyed is tested elsewhere.
    """
    directory = tmp_path_factory.mktemp("matrix")
    mc.run("mb s3/other")
    Inventory(minio).root.put_object("other", "secret", io.BytesIO(b"x"), 1)
    outside = directory / "outside.json"
    outside.write_text(write_policy("other", [OUTSIDER]))
    mc.run(f"admin policy create s3 outside {outside}")
    mc.run(f"admin policy create s3 deploying {POLICY}")
    for user, policy in ((DEPLOYER, "deploying"), (OUTSIDER, "outside"), ("bystander", "readonly")):
        mc.run("admin user add s3", text=f"{user}\n{SECRET}\n")
        mc.run(f"admin policy attach s3 {policy} --user {user}")
    stack = Stack(engine, directory / "stack")
    stack.set(server_settings(minio))
    stack.set(
        minioUser=DEPLOYER,
        minioPassword=SECRET,
        builders=[{"name": "x", "local": True, "s3User": BUILDER}],
    )
    stack.up().succeeded()
    # As a builder that has left the settings, and whom nobody has deleted yet.
    mc.run("admin user add s3", text=f"{STRANGER}\n{SECRET}\n")
    mc.run(f"admin policy attach s3 {BUCKET}-write --user {STRANGER}")
    return stack


def requesters(stack: Stack, minio: MinioServer) -> dict[str, Requester]:
    """Return everybody there is, by role."""
    outputs = stack.outputs()
    builder = outputs["builders"]["x"]
    everybody = {
        ANYBODY: Requester(minio),
        BUILDER: Requester(minio, builder["accessKeyId"], builder["secretAccessKey"]),
        **{role: Requester(minio, role, SECRET) for role in (STRANGER, OUTSIDER, DEPLOYER)},
    }
    if "readerCredentials" in outputs:
        _, user, secret = (
            line.partition(" = ")[2] for line in outputs["readerCredentials"].splitlines()
        )
        everybody[READER] = Requester(minio, user, secret)
    return everybody


def expected(call: Call, role: str, *, public: bool) -> str:
    """Return what ought to come of a call."""
    statements = json.loads(POLICY.read_text())["Statement"]
    granted = {action for statement in statements for action in statement["Action"]}
    may = {*call.may, *(call.in_public if public else ())}
    if call.action in granted:
        may.add(DEPLOYER)
    return NO if role not in may else ABSENT if call.absent else YES


def seen(answer: Answer) -> str:
    """Return what a call came to; whatever is no refusal counts as a right."""
    assert answer.code not in ("SignatureDoesNotMatch", "InvalidAccessKeyId"), answer
    if answer.code in MISSING:
        return ABSENT
    # In a deletion of several objects, each is refused by itself.
    refused = answer.code in DENIED or (answer.status == 403 and not answer.code)
    return NO if refused else YES


class Court:
    """Lets roles make calls, and puts back what whoever may has changed."""

    def __init__(self, minio: MinioServer) -> None:
        """Note what the deployment keeps in the bucket."""
        self._root = Inventory(minio).root
        self._asker = Requester(minio, minio.root_user, minio.root_password)
        self._policy = self._root.get_bucket_policy(BUCKET)
        self._lifecycle = self._asker.ask("GET", f"/{BUCKET}", [("lifecycle", "")]).body
        self._kept = {key: self._content(key) for key in KEPT}

    def judge(self, role: str, who: Requester) -> dict[str, str]:
        """Return what each call of a role came to, by the call's name."""
        for ending in ("", "-1", "-2", "-3", "-4"):
            self._asker.ask("PUT", f"/{BUCKET}/log/{role}{ending}.drv", body=b"x")
        values = {
            "role": role,
            "user": who.user or "nobody",
            "secret": who.secret,
            "bucket": BUCKET,
            "upload": self._upload(role),
            "spare": self._upload(role),
        }

        def filled(text: str) -> str:
            for name, value in values.items():
                text = text.replace(f"{{{name}}}", value)
            return text

        came = {}
        for call in CALLS:
            body = filled(call.body).encode()
            answer = who.ask(
                call.method,
                filled(call.path),
                [(name, filled(value)) for name, value in call.query.items()],
                {name: filled(value) for name, value in call.headers.items()},
                encrypt(body, who.secret) if call.sealed and who.user else body,
            )
            came[call.name] = seen(answer)
            if role == DEPLOYER and call.method not in ("GET", "HEAD"):
                self._put_back()
        assert self.changed() == []
        return came

    def changed(self) -> list[str]:
        """Return what of the deployment's own is not as it was."""
        found = [key for key, content in self._kept.items() if self._content(key) != content]
        lifecycle = self._asker.ask("GET", f"/{BUCKET}", [("lifecycle", "")]).body
        return [*found, *(["lifecycle"] if lifecycle != self._lifecycle else [])]

    def _put_back(self) -> None:
        self._root.set_bucket_policy(BUCKET, self._policy)
        lifecycle = [("lifecycle", "")]
        assert self._asker.ask("PUT", f"/{BUCKET}", lifecycle, body=self._lifecycle).status == 200
        for key, (status, content) in self._kept.items():
            method = "PUT" if status == 200 else "DELETE"
            self._asker.ask(method, f"/{BUCKET}/{key}", body=content)

    def _content(self, key: str) -> tuple[int, bytes]:
        answer = self._asker.ask("GET", f"/{BUCKET}/{key}")
        return answer.status, answer.body if answer.status == 200 else b""

    def _upload(self, role: str) -> str:
        answer = self._asker.ask("POST", f"/{BUCKET}/log/{role}.drv", [("uploads", "")])
        found = re.search(rb"<UploadId>([^<]+)<", answer.body)
        assert found, answer
        return found[1].decode()


def table(seen_by: Mapping[str, Mapping[str, str]]) -> str:
    """Return the cells as text: a line a call, a column a role."""
    lines = [f"{'':44}" + "".join(f"{role:>10}" for role in seen_by)]
    lines += [
        f"{call.name:44}" + "".join(f"{came[call.name]:>10}" for came in seen_by.values())
        for call in CALLS
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("access", ["public", "private"])
def test_everybody_may_do_what_is_expected_and_nothing_else(
    stack: Stack, minio: MinioServer, access: str
) -> None:
    public = access == "public"
    stack.set(access=access)
    stack.up().succeeded()
    court = Court(minio)
    everybody = requesters(stack, minio)
    assert set(everybody) == set(PUBLIC if public else PRIVATE)
    came = {role: court.judge(role, who) for role, who in everybody.items()}
    print(f"\n{access} cache\n{table(came)}")
    wrong = [
        f"{role}: {call.name}: expected {wanted}, seen {came[role][call.name]}"
        for role in came
        for call in CALLS
        for wanted in [expected(call, role, public=public)]
        if came[role][call.name] != wanted
    ]
    record("cells", access, sum(map(len, came.values())), "as expected" if not wrong else "not")
    assert wrong == [], "\n".join(wrong)


NAMES = (
    "//nix-cache-info",
    "/./nix-cache-info",
    "/x/../nix-cache-info",
    "/nix-cache-info/",
    "/nix-cache-info\0",
    "/nix-cache-info/xl.meta",
    "//_nixcache/push.pyz",
    "/_nixcache//push.pyz",
    "/x/../_nixcache/push.pyz",
    "/../nix-cache/nix-cache-info",
    "/../.minio.sys/config/config.json",
)
"""Paths that are, or look like, those of what the deployment keeps in the bucket."""


def test_a_builder_writes_what_the_deployment_keeps_by_no_other_name(
    stack: Stack, minio: MinioServer
) -> None:
    court = Court(minio)
    builder = requesters(stack, minio)[BUILDER]
    for name in NAMES:
        answer = builder.ask("PUT", f"/{BUCKET}{name}", body=b"evil")
        assert 400 <= answer.status < 500, (name, answer)
        assert court.changed() == [], name
        attack(f"a builder writes {name!r}", f"refused: HTTP {answer.status}, {answer.code}")


def test_a_secret_that_leaked_is_replaced(stack: Stack, minio: MinioServer) -> None:
    """As docs/security.md says: another user for a builder, and another secret for the reader."""
    stack.set(protect=True)
    stack.up().succeeded()
    leaked = requesters(stack, minio)
    urn = next(
        resource["urn"]
        for resource in stack.resources()
        if resource["type"].endswith(":IamUser") and resource["urn"].endswith("-reader")
    )
    forget = ("state", "delete", urn, "--target-dependents", "--force")
    stack.run(*forget, "--yes", "-s", stack.name).succeeded()
    stack.set(builders=[{"name": "x", "local": True, "s3User": "another"}])
    stack.up().succeeded()
    now = requesters(stack, minio)
    for role in (BUILDER, READER):
        get = ("GET", f"/{BUCKET}/nix-cache-info")
        assert leaked[role].ask(*get).code in ("InvalidAccessKeyId", "SignatureDoesNotMatch")
        assert now[role].ask(*get).status == 200
        attack(f"the {role}'s secret that leaked is used", "refused once another is in its place")
