"""ClosurePush: what builders are given, and what travels to them."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess

import pulumi
import pulumi_command as command
import pytest

from components.access import (
    Credential,
)
from components.closure_push import (
    FETCH_SCRIPT,
    PUSH_SCRIPT,
    PUSH_SCRIPT_KEY,
    BuilderPush,
    ClosurePush,
    ClosurePushArgs,
    bare_script,
    push_settings,
    script_command,
)
from components.retention import expiration_rules
from tests.unit.configuration import HOST_KEY
from tests.unit.recording_mocks import SECRET, RecordingMocks, settled, use_recording_mocks

STORE_PATH = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting"


@pytest.fixture
def engine() -> RecordingMocks:
    """An engine that records."""
    return use_recording_mocks()


def pushed(connection: command.remote.ConnectionArgs | None) -> pulumi.Output[str]:
    """Declare a push with every secret recognisable; return what it prints."""
    credential = Credential(
        access_key_id=pulumi.Output.from_input("nixbuilder"),
        secret_access_key=pulumi.Output.from_input("S3CRET-USER"),
    )
    args = ClosurePushArgs(
        builders={
            "laptop": BuilderPush(
                closures=[STORE_PATH], credential=credential, connection=connection
            )
        },
        endpoint="https://s3.homelab.local",
        bucket="nix-cache",
        signing_keys=["s3.homelab.local-1:S3CRET-OLD", "s3.homelab.local-2:S3CRET-NEW"],
        upstream_keys=["cache.nixos.org-1"],
        ca_certificate="-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n",
    )
    return ClosurePush("builders", args).summaries["laptop"]


def test_a_push_says_what_it_pushes_and_gives_secrets_on_standard_input_only(
    engine: RecordingMocks,
) -> None:
    connection = command.remote.ConnectionArgs(host="builder", host_key=HOST_KEY)
    settled(lambda: pushed(connection))
    inputs = engine.inputs("command:remote:Command")
    stdin = inputs.pop("stdin")
    settings = stdin["value"]
    assert SECRET in stdin.values()
    (program,) = [inputs for _, name, inputs in engine.resources if name == "builders-push.sh"]
    assert program["objectName"] == PUSH_SCRIPT_KEY
    checksum = hashlib.sha256(program["content"].encode()).hexdigest()
    assert inputs["create"].endswith(f" push.sh {checksum} --config - {STORE_PATH}")
    assert "S3CRET" not in json.dumps(inputs)
    script, _, given = settings.partition("\0")
    assert script == bare_script(FETCH_SCRIPT)
    lines = given.splitlines()
    assert "secret-access-key=S3CRET-USER" in lines
    assert "upstream-key=cache.nixos.org-1" in lines
    assert [line for line in lines if line.startswith("signing-key=")][-1].endswith("S3CRET-NEW")
    (ca,) = [line for line in lines if line.startswith("ca-certificate=")]
    assert base64.b64decode(ca.partition("=")[2]).startswith(b"-----BEGIN CERTIFICATE")
    assert "parallelism=1" in lines
    assert not [line for line in lines if line.startswith("compression-level=")]


def test_a_script_travels_without_comments_and_does_the_same() -> None:
    def usage(*command_: str, stdin: str = "") -> str:
        done = subprocess.run(command_, capture_output=True, check=True, text=True, input=stdin)
        return done.stdout

    bare = bare_script(PUSH_SCRIPT)
    assert "\n#" not in bare
    travelled = usage("sh", "-c", script_command(["--help"]), stdin=f"{bare}\0")
    assert travelled.split() == usage("bash", str(PUSH_SCRIPT), "--help").split()


def test_no_lifecycle_rule_takes_push_sh_away() -> None:
    rules = expiration_rules(7, 1)
    assert rules
    assert not [rule for rule in rules if PUSH_SCRIPT_KEY.startswith(rule.prefix)]


def test_this_machine_pushes_without_ssh(engine: RecordingMocks) -> None:
    settled(lambda: pushed(None))
    assert "command:remote:Command" not in engine.types()
    assert engine.inputs("command:local:Command")["create"].endswith(STORE_PATH)


def test_a_setting_with_a_line_break_cannot_smuggle_another_in() -> None:
    with pytest.raises(ValueError, match=r"^bucket has a line break$"):
        push_settings({"bucket": "a\nendpoint=https://elsewhere"}, {})


def run_on_a_builder(argument: str, standard_input: str) -> subprocess.CompletedProcess[str]:
    """Run a script's command line as a builder's login shell would."""
    return subprocess.run(
        ["sh", "-c", script_command([argument])],
        input=standard_input,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_script_gets_its_arguments_as_words_and_the_settings_behind_it() -> None:
    link = "/nix/var/nix/profiles/per-user/o'neill/my profile"
    script = "printf '%s\\n' \"$@\"; cat"
    done = run_on_a_builder(link, f"{script}\0bucket=nix-cache\n")
    assert done.stdout.splitlines() == [link, "bucket=nix-cache"]


def test_a_script_hears_of_every_job_of_its_own() -> None:
    # The job has ended by the time that the command in the foreground does.
    job = "true & ended=$!; tail --pid=$ended -f /dev/null; wait -n -p pid; echo $((pid == ended))"
    done = run_on_a_builder("/link", f"set -m\n{job}\n\0")
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_script_that_arrives_incomplete_runs_nothing() -> None:
    done = run_on_a_builder("/link", "echo begun\n")
    assert done.returncode != 0
    assert done.stdout + done.stderr == ""
