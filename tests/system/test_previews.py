"""What a preview says of builders and closures, on the real engine over real SSH."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from components.push_program import PROGRAM_KEY, archive, bootstrap
from components.text_object import multipart_etag
from operations.preview_markdown import render
from program.links import PREVIEW_PATIENCE_SECONDS, follow_links
from program.settings.builders import BuilderSettings
from tests.system.conftest import StackFactory, builder_settings, server_settings
from tests.system.stack import Stack
from tests.unit.components.test_push_program import as_by_another_zlib
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

LINK = "/root/current-system"


def report(stack: Stack, *arguments: str) -> str:
    """Return the Markdown report of a preview."""
    return render(json.loads(stack.preview("--json", *arguments).succeeded().output))


def point(machine: ThrowawayBuilder, target: str, link: str = LINK) -> None:
    """Let a link on the builder point to `target`."""
    machine.run(f"ln -sfn {target} {link}")


@pytest.fixture(scope="module")
def store_paths(builder: ThrowawayBuilder) -> list[str]:
    """Two closures on the builder."""
    return [builder.make_closure(2, 2_000, seed, f"system-{seed}") for seed in (1, 2)]


@pytest.fixture
def pushing(new_stack: StackFactory, minio: MinioServer, builder: ThrowawayBuilder) -> Stack:
    """A stack with one builder that pushes what a link points to; to bring it up, name a bucket."""
    stack = new_stack(**server_settings(minio), upstreamKeys=[])
    stack.set(sshPrivateKey=builder.private_key, builders=[builder_settings(builder, LINK)])
    return stack


def test_a_preview_says_from_which_store_path_to_which_a_push_goes(
    pushing: Stack, builder: ThrowawayBuilder, store_paths: list[str]
) -> None:
    old, new = store_paths
    point(builder, old)
    pushing.set(bucket="followed")
    assert f"pushes `{old}` (`{LINK}`) for the first time" in report(pushing)
    pushing.up().succeeded()

    assert "Nothing changes" in report(pushing)
    assert "unchanged" in pushing.up("--expect-no-changes").succeeded().output
    with uploaded_as_by_another_zlib(pushing):
        assert "Nothing changes" in report(pushing)

    point(builder, new)
    assert (
        f"- builder `followed-nixbuilder` pushes `{new}` (`{LINK}`); before: `{old}`\n"
        in report(pushing)
    )
    difference = pushing.preview("--diff").succeeded().output
    assert old in difference
    assert new in difference
    assert pushing.changes() == {"update": 2}
    pushing.up().succeeded()
    assert not pushing.changes()


def halves(resource: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a resource's inputs and outputs, as a state has them."""
    return [resource.get("inputs", {}), resource.get("outputs", {})]


@contextmanager
def uploaded_as_by_another_zlib(stack: Stack) -> Iterator[None]:
    """Let the state have the push's program as a machine with another zlib had uploaded it."""
    before = stack.export()
    state = json.loads(stack.run("stack", "export", "--show-secrets").succeeded().output)
    content = as_by_another_zlib()
    uploaded = sent = 0
    for known in (part for one in state["deployment"]["resources"] for part in halves(one)):
        if known.get("objectName") == PROGRAM_KEY:
            known["contentBase64"] = base64.b64encode(content).decode()
            known["etag"] = multipart_etag(content)
            uploaded += 1
        if "stdin" in known:
            text = json.loads(known["stdin"]["plaintext"])
            assert text.startswith(bootstrap(archive()))
            text = text.replace(bootstrap(archive()), bootstrap(content))
            known["stdin"]["plaintext"] = json.dumps(text)
            sent += 1
    assert (uploaded, sent) == (2, 2)
    here, there = (hashlib.sha256(one).hexdigest() for one in (archive(), content))
    text = json.dumps(state)
    assert here in text
    arguments = ("stack", "import", "-s", stack.name)
    stack.run(*arguments, text=text.replace(here, there)).succeeded()
    yield
    stack.run(*arguments, text=before).succeeded()


def test_a_builder_that_has_gone_silent_is_one_warning_and_no_change(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    stack = new_stack(**server_settings(minio), upstreamKeys=[], bucket="silent")
    with ThrowawayBuilder(tmp_path / "builder") as machine:
        point(machine, machine.make_closure(1, 1_000, 1, "system"))
        stack.set(sshPrivateKey=machine.private_key, builders=[builder_settings(machine, LINK)])
        stack.up().succeeded()
    text = report(stack)
    assert text.startswith("### Nothing changes")
    (warning,) = [line for line in text.splitlines() if "warning: " in line]
    assert "builder nixbuilder: 127.0.0.1 cannot be asked" in warning
    assert "what it last pushed stands" in warning
    stack.up("--expect-no-changes").succeeded()


def test_a_builder_that_never_stops_talking_is_not_listened_to(
    pushing: Stack, builder: ThrowawayBuilder, store_paths: list[str]
) -> None:
    point(builder, store_paths[0])
    # It talks once, and then is itself again.
    builder.run("cat > ~/.bashrc", input="rm ~/.bashrc\nyes\n")
    text = report(pushing)
    assert "127.0.0.1 said more than 1,048,576 characters" in text
    assert store_paths[0] not in text


def test_another_host_key_is_a_warning_and_nothing_is_asked(
    pushing: Stack,
    builder: ThrowawayBuilder,
    second_builder: ThrowawayBuilder,
    store_paths: list[str],
) -> None:
    point(builder, store_paths[0])
    other = second_builder.host_key
    pushing.set(builders=[{**builder_settings(builder, LINK), "hostKey": other}])
    text = report(pushing)
    assert "warning: builder nixbuilder: 127.0.0.1 cannot be asked (Host key is not trusted" in text
    assert store_paths[0] not in text


def test_a_builder_is_asked_through_its_jump_host(
    pushing: Stack,
    builder: ThrowawayBuilder,
    second_builder: ThrowawayBuilder,
    store_paths: list[str],
) -> None:
    point(builder, store_paths[0])
    public_key = (builder.directory / "client_key.pub").read_text()
    second_builder.run("cat >> /root/.ssh/authorized_keys", input=public_key)
    jump = {
        "host": second_builder.host,
        "port": second_builder.port,
        "hostKey": second_builder.host_key,
    }
    pushing.set(builders=[{**builder_settings(builder, LINK), "jumpHost": jump}])
    assert f"pushes `{store_paths[0]}`" in report(pushing)

    pushing.set(
        builders=[
            {
                **builder_settings(builder, LINK),
                "jumpHost": {**jump, "hostKey": builder.host_key},
            }
        ]
    )
    assert "cannot be asked (Host key is not trusted" in report(pushing)


def test_store_paths_need_no_connection(
    pushing: Stack, builder: ThrowawayBuilder, store_paths: list[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = {**builder_settings(builder, store_paths[0]), "port": taken.getsockname()[1]}
        pushing.set(builders=[nowhere])
        text = report(pushing)
    assert f"pushes `{store_paths[0]}` for the first time" in text
    assert "warning: builder" not in text


def test_a_store_path_in_the_place_of_a_link_is_pushed_only_if_it_is_another(
    pushing: Stack, builder: ThrowawayBuilder, store_paths: list[str]
) -> None:
    old, new = store_paths
    point(builder, old)
    pushing.set(bucket="by-store-path")
    pushing.up().succeeded()
    pushing.set(builders=[builder_settings(builder, old)])
    assert pushing.changes() == {"delete": 1}
    assert "**Closures:**" not in report(pushing)
    pushing.up().succeeded()
    pushing.set(builders=[builder_settings(builder, new)])
    assert pushing.changes() == {"update": 1}
    assert f"- builder `by-store-path-nixbuilder` pushes `{new}`; before: `{old}`\n" in report(
        pushing
    )


def test_ten_builders_are_asked_side_by_side_within_five_seconds(
    builder: ThrowawayBuilder, store_paths: list[str]
) -> None:
    point(builder, store_paths[0])
    with ExitStack() as sockets:
        ports = [builder.port] * 7
        for _ in range(3):
            # Its connections are accepted by the kernel, and nothing ever answers on them.
            silent = sockets.enter_context(socket.socket())
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            ports.append(silent.getsockname()[1])
        builders = [
            BuilderSettings(
                name=f"b{number}",
                s3_user="user",
                closures=(LINK,),
                host=builder.host,
                port=port,
                host_key=builder.host_key,
                private_key=builder.private_key,
            )
            for number, port in enumerate(ports)
        ]
        began = time.monotonic()
        answers = follow_links(builders, "/nix/store")
        took = time.monotonic() - began
    answered = {f"b{number}": [store_paths[0]] for number in range(7)}
    assert answers == answered | {f"b{number}": None for number in range(7, 10)}
    # One after the other the silent ones alone would take three times as long.
    assert took < 2 * PREVIEW_PATIENCE_SECONDS


def test_the_report_marks_what_a_change_would_lose_and_never_shows_a_secret(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), bucket="reported")
    stack.set(builders=[{"name": "here", "local": True}])
    assert "| created | bucket `reported` |" in report(stack)
    stack.up().succeeded()
    outputs = stack.outputs()

    stack.set(bucket="renamed", signingKeys=["cache.test-2"], retentionDays=3, priority=30)
    stack.set(confirmKeyReplacement=True)
    shown = stack.preview().succeeded().output
    assert "warning: data would be lost: bucket reported is replaced by renamed" in shown
    assert "warning: data would be lost: signing key cache.test-1 is deleted" in shown
    assert "lost: retention is shortened: entries now expire after 3 days instead of 7" in shown
    text = report(stack, "--show-secrets")
    assert "data would be lost: " not in text
    assert "⚠️ bucket `reported` is replaced by another" in text
    assert "⚠️ signing key `cache.test-1` is deleted" in text
    assert "⚠️ retention is shortened: entries now expire after 3 days instead of 7" in text
    assert "`nix-cache-info: Priority: 40 → 30`" in text
    stack.set(bucket="reported")
    same_bucket = report(stack, "--show-secrets")
    assert "| `content` | `Priority: 40` | `Priority: 30` |" in same_bucket
    for secret in (
        minio.root_password,
        outputs["signingKeyBackup"],
        outputs["builders"]["here"]["secretAccessKey"],
    ):
        assert secret not in text + same_bucket
    stack.set(retentionDays=7, priority=40)
    stack.destroy().succeeded()
