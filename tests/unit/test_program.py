"""The program as a whole, on an engine that only records."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pulumi
import pytest

from program.checks import deployment, ownership, readable
from program.checks.s3_client import Server
from tests.unit.configuration import PROJECT_ROOT, configuration, stack_file
from tests.unit.recording_mocks import RecordingMocks, use_recording_mocks
from toolbox.certificates import make_authority


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program for a configuration, with a server that has no bucket yet."""
    monkeypatch.setattr(Server, "lifecycle", lambda *_: None)
    monkeypatch.setattr(pulumi, "get_organization", lambda: "organization")
    # Nothing is applied where nothing is real.
    monkeypatch.setattr(deployment, "conclude", lambda *_: "not read back")
    monkeypatch.setattr(ownership, "check", lambda *_: None)

    def run(**changes: object) -> RecordingMocks:
        values = {f"nixcache:{name}": value for name, value in configuration(**changes).items()}
        monkeypatch.setenv("PULUMI_CONFIG", json.dumps(values))
        mocks = use_recording_mocks()

        @pulumi.runtime.test  # type: ignore[untyped-decorator]
        def program() -> None:
            runpy.run_path(str(PROJECT_ROOT / "__main__.py"), run_name="__main__")

        program()
        return mocks

    return run


def names(mocks: RecordingMocks, type_: str) -> list[str]:
    """Return the names of the recorded resources of a type."""
    return [name for typ, name, _ in mocks.resources if typ == type_]


def described(value: Any) -> pulumi.Output[tuple[str, str]]:
    """Return the type of a stack output's value, and whether it is secret, as the map says it."""
    leaves: list[pulumi.Output[Any]] = []

    def collect(part: Any) -> None:
        for inner in part.values() if isinstance(part, dict) else [part]:
            if isinstance(inner, dict):
                collect(inner)
            else:
                leaves.append(pulumi.Output.from_input(inner))

    async def describe(known: Any) -> tuple[str, str]:
        kind = {
            "str": "string",
            "bool": "boolean",
            "list": "list of strings",
            "dict": "object",
        }[type(known).__name__]
        secrets = {await leaf.is_secret() for leaf in leaves}
        return kind, "in part" if len(secrets) > 1 else "yes" if secrets.pop() else "no"

    collect(value)
    return pulumi.Output.from_input(value).apply(describe)


def test_the_map_lists_all_outputs_with_their_types_and_which_are_secret(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = make_authority(tmp_path).ca_file
    outputs: dict[str, tuple[str, str]] = {}

    def export(name: str, value: Any) -> None:
        described(value).apply(lambda known: outputs.update({name: known}))

    monkeypatch.setattr(pulumi, "export", export)
    builders = [{"name": "here", "local": True}]
    pins = [{"name": "release", "path": "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-release"}]
    run(access="private", builders=builders, caCertificateFile=str(authority), pins=pins)
    monkeypatch.setattr(pulumi.runtime, "is_config_secret", lambda _: True)
    monkeypatch.setattr(readable, "finding", lambda _: None)
    run(
        access="private",
        users="given",
        readerAccessKeyId="GK1",
        givenUserSecrets="GK1:S3CRET\nGK2:S3CRET",
        bucketPolicy=False,
        builders=[{"name": "here", "local": True, "accessKeyId": "GK2"}],
        pins=pins,
    )
    table = (PROJECT_ROOT / "docs" / "architecture.md").read_text().partition("| output |")[2]
    rows = [row.strip("| ").split(" | ") for row in table.partition("\n\n")[0].splitlines()[2:]]
    assert {name.strip("`"): (kind, secret) for name, kind, secret, _ in rows} == outputs


def test_the_homelab_example_declares_what_the_recipe_typed(run: Any) -> None:
    example: dict[str, Any] = dict(stack_file("homelab"))
    store_path = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-nixos-system"
    (builder,) = example["builders"]
    mocks = run(**{**example, "builders": [{**builder, "closures": [store_path]}]})
    assert mocks.inputs("minio:index/s3Bucket:S3Bucket")["bucket"] == "nix-cache"
    assert mocks.inputs("minio:index/iamUser:IamUser")["name"] == "nixbuilder"
    assert mocks.inputs("minio:index/iamPolicy:IamPolicy")["name"] == "nix-cache-write"
    assert names(mocks, "pulumi-python:dynamic/nixcache:SigningKey") == ["s3.homelab.local-1"]
    assert mocks.inputs("command:remote:Command")["create"].endswith(store_path)
    assert mocks.inputs("pulumi:providers:minio")["minioServer"] == "s3.homelab.local"


def test_without_builders_there_is_a_cache_and_a_key(run: Any) -> None:
    mocks = run()
    assert names(mocks, "nixcache:index:BinaryCache") == ["cache"]
    assert names(mocks, "nixcache:index:Safeguard") == ["safeguard"]
    assert not names(mocks, "minio:index/iamUser:IamUser")


def test_a_pin_is_pushed_with_each_push_also_where_it_is_all_that_is_pushed(run: Any) -> None:
    closure, pin = (f"/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-{name}" for name in "cp")
    for closures in ([], [closure]):
        mocks = run(builders=[{"name": "a", "local": True, "closures": closures, "pins": [pin]}])
        command = mocks.inputs("command:local:Command")["create"]
        assert command.endswith(" ".join([" --config -", *closures, pin]))


def test_the_last_key_signs_and_no_other_reaches_a_builder(run: Any) -> None:
    keys = ["s3.homelab.local-1", "s3.homelab.local-2"]
    path = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-x"
    mocks = run(signingKeys=keys, builders=[{"name": "a", "local": True, "closures": [path]}])
    assert sorted(names(mocks, "pulumi-python:dynamic/nixcache:SigningKey")) == keys
    stdin = mocks.inputs("command:local:Command")["stdin"]["value"]
    lines = stdin.splitlines()
    assert [line for line in lines if line.startswith("signing-key=")] == [
        "signing-key=s3.homelab.local-2:secret"
    ]


def test_a_builder_is_given_its_own_key_alone(run: Any) -> None:
    keys = ["s3.homelab.local-1", "s3.homelab.local-2"]
    path = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-x"
    mocks = run(
        signingKeys=keys,
        pins=[{"name": "p", "path": path}],
        builders=[{"name": "a", "local": True, "closures": [path], "signingKey": keys[0]}],
    )
    lines = mocks.inputs("command:local:Command")["stdin"]["value"].splitlines()
    assert [line for line in lines if line.startswith("signing-key=")] == [
        "signing-key=s3.homelab.local-1:secret"
    ]


@pytest.mark.parametrize("pinned", [False, True])
def test_each_push_is_told_whom_clients_trust(run: Any, pinned: bool) -> None:
    """By that it knows its own key for one of them, and what other builders have signed."""
    keys = ["s3.homelab.local-1", "s3.homelab.local-2"]
    path = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-x"
    pushes = {"local": True, "closures": [path]}
    mocks = run(
        signingKeys=keys,
        pins=[{"name": "p", "path": path}] if pinned else [],
        builders=[{"name": "a", **pushes, "signingKey": keys[0]}, {"name": "b", **pushes}],
    )
    given = [inputs for type_, _, inputs in mocks.resources if type_ == "command:local:Command"]
    assert len(given) == 2
    for one in given:
        lines = one["stdin"]["value"].splitlines()
        told = [line.partition("=")[2] for line in lines if line.startswith("trusted-key=")]
        assert [key.partition(":")[0] for key in told] == keys
