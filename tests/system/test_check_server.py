"""What a server is asked before it is used: a real MinIO, and one that lies about one need each."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping

import pytest

from components.binary_cache import anonymous_policy
from operations.check_server import probing
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from program.checks.server_needs import DIFFERS, REFUSED, WORKS, Result, conclusion
from program.settings.stack import Settings, parse
from tests.system.conftest import StackFactory, server_settings
from tests.system.reverse_proxy import Lie, reverse_proxy
from tests.system.stack import CHECKOUT
from tests.system.test_cache import s3
from tests.unit.configuration import configuration
from toolbox.minio_server import MinioServer

pytestmark = pytest.mark.system


def settings_of(minio: MinioServer, url: str, **changes: object) -> Settings:
    given = {**server_settings(minio), "endpoint": url, "bucket": "asked", **changes}
    if url.startswith("http://"):
        given["caCertificateFile"] = ""
    return parse(configuration(**given))


def server_of(settings: Settings, ca_file: str | None = None) -> Server:
    return Server(
        settings.endpoint.server,
        settings.endpoint.tls,
        settings.region,
        settings.minio_user,
        settings.minio_password,
        ca_file,
    )


def asked(minio: MinioServer, lie: Lie, **changes: object) -> dict[str, Result]:
    """Return the results, by need, of a server that lies."""
    with reverse_proxy(minio, lie=lie) as url:
        settings = settings_of(minio, url, **changes)
        with probing(settings, server_of(settings)) as (probe, made):
            found = [made, *probe.results()]
    assert buckets(minio) == set()
    return {result.need: result for result in found}


def buckets(minio: MinioServer) -> set[str]:
    """Return the scratch buckets that there are."""
    root = s3(minio, minio.root_user, minio.root_password)
    return {bucket.name for bucket in root.list_buckets() if "-check-" in bucket.name}


def test_minio_does_all_that_is_needed(new_stack: StackFactory, minio: MinioServer) -> None:
    stack = new_stack(**server_settings(minio), bucket="asked")
    done = stack.operate("check_server", "--stack", "test").succeeded()
    assert done.output.splitlines()[-1] == f"{minio.endpoint}: every promise can be kept"
    assert minio.root_password not in done.output
    report = json.loads(stack.operate("check_server", "--stack", "test", "--json").output)
    assert report["kept"] is True
    verdicts = {need["need"]: need["verdict"] for need in report["needs"]}
    assert len(verdicts) >= 24
    assert set(verdicts.values()) == {WORKS}, verdicts
    renews = next(need for need in report["needs"] if need["need"] == "a copy renews")
    assert renews["answered"] == "its expiry moved by 3 days after 3"
    assert buckets(minio) == set()
    policy = stack.operate("check_server", "--stack", "test", "--policy").succeeded()
    allowed = [
        statement["Action"]
        for statement in json.loads(policy.output)["builders"]["Statement"]
        if statement["Effect"] == "Allow"
    ]
    assert [actions for actions in allowed if "s3:PutObject" in actions]


def copies(headers: Mapping[str, str]) -> bool:
    return "x-amz-copy-source" in {name.lower() for name in headers}


def copies_a_part(headers: Mapping[str, str]) -> bool:
    return "x-amz-copy-source-range" in {name.lower() for name in headers}


def refusing(when: Callable[[str, str, Mapping[str, str]], bool], status: int, code: str) -> Lie:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    return lambda method, target, headers: (status, body) if when(method, target, headers) else None


@pytest.mark.parametrize(
    ("lie", "need", "verdict", "conclusion_"),
    [
        (
            refusing(lambda _m, target, _h: target.startswith("/minio/"), 404, "NoSuchKey"),
            "MinIO's admin API",
            REFUSED,
            'it can be used with the settings users: "given"',
        ),
        (
            refusing(lambda m, t, _h: m == "PUT" and "?policy" in t, 501, "NotImplemented"),
            "policy that opens",
            REFUSED,
            "it can be used with the settings bucketPolicy: false",
        ),
        (
            refusing(lambda _m, _t, h: copies(h) and not copies_a_part(h), 501, "NotImplemented"),
            "copy onto itself",
            REFUSED,
            "it can be used with the settings expire: false",
        ),
        (
            lambda _m, _t, h: (
                (200, b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
                if copies(h) and not copies_a_part(h)
                else None
            ),
            "a copy renews",
            DIFFERS,
            "it cannot be used: copy of what is gone",
        ),
        (
            refusing(lambda _m, _t, h: copies_a_part(h), 403, "Denied"),
            "copy in parts",
            REFUSED,
            "it can be used with the settings expire: false",
        ),
        (
            refusing(lambda m, t, _h: m == "POST" and "uploads" in t, 501, "NotImplemented"),
            "upload in parts",
            REFUSED,
            "it cannot be used: upload in parts",
        ),
        (
            refusing(lambda m, t, _h: m == "PUT" and "?lifecycle" in t, 400, "MalformedXML"),
            "lifecycle rules",
            REFUSED,
            "it can be used with the settings expire: false",
        ),
        (
            lambda m, t, _h: (
                (200, b"<ListBucketResult/>") if m == "GET" and "list-type" in t else None
            ),
            "list by prefix",
            DIFFERS,
            "it cannot be used: wrong secret, unknown user, list by prefix, list from a key on",
        ),
        (
            refusing(lambda m, t, _h: m == "PUT" and "/log/" in t, 403, "AccessDenied"),
            "write and read",
            REFUSED,
            "it cannot be used: write and read",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 25 else "",
)
def test_a_server_that_lacks_one_thing_is_told_by_that_line(
    minio: MinioServer, lie: Lie, need: str, verdict: str, conclusion_: str
) -> None:
    found = asked(minio, lie)
    assert found[need].verdict == verdict
    assert found[need].means
    assert not found[need].kept
    assert conclusion(found.values()) == conclusion_


def test_what_is_lacking_is_no_matter_where_the_settings_do_without(minio: MinioServer) -> None:
    def lie(method: str, target: str, _: Mapping[str, str]) -> tuple[int, bytes] | None:
        if target.startswith("/minio/") or (method == "PUT" and "?policy" in target):
            return 501, b"<Error><Code>NotImplemented</Code></Error>"
        return None

    found = asked(
        minio, lie, users="given", bucketPolicy=False, publicUrl="https://cache.example.org"
    )
    assert conclusion(found.values()) == "every promise can be kept"


def test_where_no_bucket_can_be_made_objects_are_asked_about_in_the_stacks(
    minio: MinioServer,
) -> None:
    root = s3(minio, minio.root_user, minio.root_password)
    lie = refusing(lambda m, t, _h: m == "PUT" and "/asked-check-" in t, 403, "AccessDenied")
    with reverse_proxy(minio, lie=lie) as url:
        settings = settings_of(minio, url)
        refused = probing(settings, server_of(settings))
        with pytest.raises(ServerError, match=r"lets it make no bucket"), refused:
            pass
    root.make_bucket("asked")
    found = asked(minio, lie)
    assert (found["make a bucket"].verdict, found["make a bucket"].kept) == (REFUSED, True)
    assert found["copy onto itself"].verdict == WORKS
    assert "lifecycle rules" not in found
    assert not list(root.list_objects("asked", recursive=True))
    root.remove_bucket("asked")


def test_a_bucket_that_is_lent_is_asked_about_and_stays_as_it_was(minio: MinioServer) -> None:
    root = s3(minio, minio.root_user, minio.root_password)
    settings = settings_of(minio, minio.endpoint)
    server = server_of(settings, str(minio.ca_file))
    root.make_bucket("lent")
    with probing(settings, server, "lent") as (probe, made):
        found = [made, *probe.results()]
    assert {result.verdict for result in found} == {WORKS}
    assert not list(root.list_objects("lent", recursive=True))
    assert root.get_bucket_lifecycle("lent") is None
    assert server.access("lent") is None
    root.put_object("lent", "photo.jpg", io.BytesIO(b"x"), 1)
    refused = probing(settings, server, "lent")
    with pytest.raises(ServerError, match=r"lent is not there, or has objects"), refused:
        pass
    root.remove_object("lent", "photo.jpg")
    server.set_access("lent", anonymous_policy("lent", True, False))
    refused = probing(settings, server, "lent")
    with pytest.raises(ServerError, match=r"lent has a policy, which would be lost"), refused:
        pass
    assert server.access("lent") is not None
    root.delete_bucket_policy("lent")
    root.remove_bucket("lent")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_made_is_removed_where_somebody_interrupts(
    new_stack: StackFactory, minio: MinioServer, number: signal.Signals
) -> None:
    copying, answered = threading.Event(), threading.Event()

    def lie(_m: str, _t: str, headers: Mapping[str, str]) -> None:
        if copies(headers):
            copying.set()
            answered.wait(10)

    with reverse_proxy(minio, lie=lie) as url:
        stack = new_stack(**{**server_settings(minio), "endpoint": url, "caCertificateFile": None})
        # A shell starts what runs in the background deaf to interruptions, and tests may run there.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [sys.executable, "-m", "operations.check_server", "--stack", "test"],
            cwd=stack.project,
            env={**stack.environment, "PYTHONPATH": str(CHECKOUT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        signal.signal(signal.SIGINT, heard)
        assert copying.wait(60)
        assert len(buckets(minio)) == 1
        os.kill(process.pid, number)
        answered.set()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert buckets(minio) == set()


def test_an_up_to_a_new_bucket_is_refused_with_the_line_of_the_probe(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    lie = refusing(lambda _m, _t, h: copies(h), 501, "NotImplemented")
    with reverse_proxy(minio, lie=lie) as url:
        given = {**server_settings(minio), "endpoint": url, "caCertificateFile": None}
        stack = new_stack(**given, bucket="no-copies")
        refused = stack.up().refused()
        assert (
            f'endpoint is "{url}": copy onto itself: refused (HTTP 501 NotImplemented); no lease '
            "can be renewed: entries go while closures still need them; make check-server STACK="
            "test asks it about all there is"
        ) in refused
        root = s3(minio, minio.root_user, minio.root_password)
        assert not list(root.list_objects("no-copies", recursive=True))
        stack.set(expire=False)
        stack.up().succeeded()
        stack.destroy().succeeded()
