"""What a user reads after a mistake, and that nothing changed for it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.system.conftest import StackFactory, server_settings
from tests.system.stack import Stack
from toolbox.minio_server import MinioServer


def refusal(stack: Stack) -> str:
    """Return the one error of an `up` that left nothing behind but the stack itself."""
    outcome = stack.up()
    errors = outcome.refused()
    assert "Traceback" not in outcome.output
    assert 'File "' not in outcome.output
    # The stack itself, and the engine's own provider that reads a stack's outputs.
    kinds = {resource["type"] for resource in stack.resources()}
    assert kinds <= {"pulumi:pulumi:Stack", "pulumi:providers:pulumi"}
    return errors


def test_a_missing_endpoint_is_named(new_stack: StackFactory, minio: MinioServer) -> None:
    stack = new_stack(**{**server_settings(minio), "endpoint": None})
    assert "missing configuration value 'endpoint'" in stack.up().output


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"endpoint": "s3.homelab.local"}, 'endpoint is "s3.homelab.local": write the server'),
        ({"bucket": "Nix_Cache"}, 'bucket is "Nix_Cache": write 3 to 63'),
        ({"retentionDays": 0}, "retentionDays is 0: write a whole number from 1"),
        ({"signingKeys": ["cache.test"]}, 'signingKeys is "cache.test": write the cache'),
        ({"retention": 7}, "retention: is no setting of this program"),
        ({"caCertificateFile": "/nowhere/ca.pem"}, 'caCertificateFile is "/nowhere/ca.pem"'),
        ({"sshPrivateKey": "hunter2"}, "sshPrivateKey: holds no private key"),
        ({"minioPassword": "wrong"}, "minioPassword: the server refuses it; set it anew"),
        ({"minioUser": "nobody"}, 'minioUser is "nobody": the server knows no such user'),
        ({"caCertificateFile": ""}, "the server's certificate is not trusted"),
        (
            {"builders": [{"name": "x", "host": "x", "closures": ["/nix/store/x"]}]},
            'builders[0].closures is "/nix/store/x"',
        ),
        ({"builders": [{"name": "x", "host": "x"}]}, "builders[0].hostKey: is missing"),
        (
            {"builders": [{"name": "x", "local": True}, {"name": "x", "local": True}]},
            'builders[].name is "x": two builders share it',
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    new_stack: StackFactory, minio: MinioServer, change: dict[str, object], expected: str
) -> None:
    stack = new_stack(**{**server_settings(minio), **change})
    assert expected in refusal(stack)
    assert str(change.get("minioPassword", "hunter2")) not in stack.export()


def test_a_fractional_retention_is_refused_by_the_schema(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    stack = new_stack(**server_settings(minio), retentionDays=1.5)
    outcome = stack.up()
    assert "retentionDays" in outcome.refused()
    assert "Traceback" not in outcome.output


def test_a_server_that_does_not_answer_is_named(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    with socket.socket() as taken:
        # Bound and not listening: nothing answers here for as long as the test runs.
        taken.bind(("127.0.0.1", 0))
        endpoint = f"https://127.0.0.1:{taken.getsockname()[1]}"
        stack = new_stack(**{**server_settings(minio), "endpoint": endpoint})
        assert f'endpoint is "{endpoint}": no S3 server answers there' in refusal(stack)
        preview = stack.preview().succeeded()
        assert "could not check the server" in preview.output


def test_a_server_without_tls_is_told_from_one_that_is_down(
    new_stack: StackFactory, minio: MinioServer
) -> None:
    plain = minio.endpoint.replace("https://", "http://")
    stack = new_stack(**{**server_settings(minio), "endpoint": plain, "caCertificateFile": ""})
    assert f'endpoint is "{plain}": the server speaks TLS there' in refusal(stack)


def test_a_failed_push_names_builder_step_and_error_and_the_next_up_tries_again(
    new_stack: StackFactory, minio: MinioServer, tmp_path: Path
) -> None:
    link = tmp_path / "closure"
    stack = new_stack(**server_settings(minio))
    stack.set(
        bucket="failed-push", builders=[{"name": "here", "local": True, "closures": [str(link)]}]
    )
    first = stack.up()
    assert first.code != 0
    assert "here" in first.refused()
    assert "push:" in first.output
    assert "secret-access-key" not in first.output
    second = stack.up()
    assert second.code != 0
    assert "push:" in second.output
    stack.set(builders=[])
    stack.up().succeeded()
    stack.destroy().succeeded()
