"""Every command that the documents name and every advice that a command prints is executed.

Word for word, on the state that leads to it: here, typed at a terminal by a person with a Pulumi
CLI, a backend and a server of their own, or by the test that the table names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from formats.signing import SecretKey
from tests.system.clone import Clone
from tests.system.conftest import builder_settings
from tests.system.minio_client import MinioClient
from tests.system.stack import CHECKOUT
from tests.system.terminal import YES, Session, at_terminal
from toolbox.commands import COMMANDS
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

PATHS = 20
BUCKET = "nix-cache"
_OPERATIONS = ".venv/bin/python -m operations"

# A command as it stands in a sentence. `…` is what only the running program knows.
COMMAND = re.compile(
    rf"make (?:{'|'.join(COMMANDS)})\b(?: [A-Z]+=(?:\"[^\"]*\"|[\w…-]+))*"
    r"|pulumi (?:config set --secret [\w…]+|config (?:set|rm) \w+ \w+|state delete '[^']+'"
    r"|preview --json|(?:up|preview|refresh|destroy)\b)(?: --[a-z-]+)*"
    r"|mc (?:admin|anonymous|cp|ilm|mb|rb|rm|version (?:enable|suspend))\b"
)

FIRST_HOUR = "test_first_hour.py::"
EXECUTED = {
    "person": (
        "pulumi stack init homelab",
        "pulumi stack select homelab",
        "pulumi stack select",
        "pulumi config set",
        "pulumi config set --secret minioPassword",
        "stands in plain text; pulumi config set --secret …",
        "stack … has no bucket yet; run make up STACK=…",
        "stack … has no substituter or public keys among its outputs; run make up STACK=…",
        "has pushed nothing yet; give a builder closures, and run make up STACK=…",
    ),
    "test_what_an_audit_finds_is_put_right_by_what_it_advises": (
        'make audit STACK=homelab ARGS="--hash all"',
        ".venv/bin/python -m operations.audit --stack homelab --hash 100 --json audit.json",
        'make empty STACK=homelab ARGS="…"',
        'make empty STACK=… ARGS="…" removes what is wrong',
        "make repair STACK=… puts back what the program declares",
        "make push STACK=… pushes again what its builders have",
        "make repair STACK=…",
        "make push STACK=homelab",
        "make audit",
        "make status STACK=homelab",
        ".venv/bin/python -m operations.status --stack homelab --prometheus cache.prom",
        "make report STACK=homelab",
        "make report STACK=homelab ARGS=--publish",
        "; run make repair STACK=… ",
    ),
    "test_a_bucket_that_is_gone_is_made_again_and_filled_again": (
        "make drift STACK=homelab",
        "make drift",
        "make audit STACK=homelab",
        "make repair STACK=homelab",
        "make repair",
        "make repair STACK=… puts it right",
        "make repair STACK=… makes it again, empty",
        "make push STACK=… pushes again what its builders have",
        "make audit STACK=… says what clients do not get",
        "make check-server STACK=… asks it about all there is",
    ),
    "test_files_on_a_builder_that_was_installed_anew_are_placed_anew": (
        "make push STACK=homelab BUILDER=nixbuilder",
        "make push STACK=… BUILDER=… places them",
    ),
    "test_a_key_is_rotated_and_retired": (
        "pulumi config set --path 'signingKeys[0]' s3.homelab.local-1",
        "pulumi config set --path 'signingKeys[1]' s3.homelab.local-2",
        "pulumi preview",
        "pulumi up --target '**SigningKey**'",
        "pulumi stack output nixos --json > cache.json",
        "pulumi up",
        ".venv/bin/python -m operations.audit --stack homelab",
        "pulumi config rm --path 'signingKeys[0]'",
        "give what pulumi preview --json prints",
    ),
    "test_an_interrupted_up_and_an_old_state_end_whole": (
        "pulumi stack export --file state.json",
        "pulumi stack import --file state.json",
        "pulumi stack import --file … --stack homelab",
        "pulumi cancel --yes homelab",
    ),
    "test_a_lost_state_is_made_again": (
        "umask 077",
        "pulumi stack output --show-secrets signingKeyBackup > signing-keys",
        "pulumi config set --secret adoptedSigningKeys < signing-keys",
        "pulumi config set adoptBucket true",
        "pulumi stack output signingKeyBackup --show-secrets",
        'make pulumi STACK=homelab ARGS="…"',
    ),
    "test_a_stack_is_removed": (
        "pulumi config set protect false && pulumi up",
        "protect is on; pulumi config set protect false, pulumi up, and destroy it then",
        "make empty STACK=homelab",
        "make empty STACK=homelab ARGS=--all",
        "bucket that is not empty; make empty STACK=…… removes them",
        "make up STACK=… sets such rules",
        "pulumi destroy --run-program",
    ),
    "test_a_newcomers_stack_outlives_make_clean": (
        "make clean",
        "mkdir -m 700 ~/nix-cache-stacks",
        "mv .dev/state .dev/passphrase ~/nix-cache-stacks",
        "export PULUMI_BACKEND_URL=file://$HOME/nix-cache-stacks/state",
        "export PULUMI_CONFIG_PASSPHRASE_FILE=$HOME/nix-cache-stacks/passphrase",
        'make pulumi STACK=staging ARGS="destroy --run-program"',
        '(make pulumi STACK=… ARGS="destroy --run-program")',
    ),
    "test_another_stack_is_made_beside_it": (
        "make stack",
        "make stack NAME=staging",
        "a stack is made by make stack NAME=staging",
        "NAME is missing; write make stack NAME=staging",
        "then make it: make stack NAME=…, and set those anew",
        '…make pulumi STACK=… ARGS="config refresh" writes it as it was last '
        'deployed, and make pulumi STACK=… ARGS="stack rm" removes what never was',
        "or make it first: make stack NAME=…",
        'make pulumi STACK=staging ARGS="config set endpoint https://s3.homelab.local"',
        "pulumi stack init staging",
        "pulumi config set --stack staging endpoint https://s3.homelab.local",
        "pulumi config set --stack staging minioUser pulumi",
        "pulumi config set --stack staging --secret minioPassword",
        "is empty or no single line; pulumi config set --secret …",
        "pulumi up --stack staging",
        "pulumi config set --path 'signingKeyDomains[0]' cache.example.org",
        "pulumi config set --secret adoptedSigningKeys < key",
        "pulumi config rm adoptedSigningKeys",
    ),
    f"{FIRST_HOUR}clone": (
        "make up",
        ", then make up. What you set stays",
        "there is no dev stack yet; run make up first",
        "there is no dev server yet; run make up first",
        "an earlier version made …; make clean removes it",
        "make down stops server, builder and client, make clean removes all of it",
    ),
    f"{FIRST_HOUR}test_what_one_sets_is_previewed_and_stays_a_rotation_and_a_retirement_too": (
        'Change it: make pulumi ARGS="config set retentionDays 14"',
        'make pulumi ARGS="config rm …" goes back to that',
        'take it out, then make pulumi ARGS="config set --secret …"',
    ),
    f"{FIRST_HOUR}test_a_second_stack_on_the_same_server_is_never_meant_by_chance": (
        "make stack NAME=staging SERVER=dev",
        "make up STACK=staging",
        "make up STACK=… brings it up",
        "as in make up STACK=…",
    ),
    f"{FIRST_HOUR}test_a_cache_goes_private_and_public_again": (
        'ARGS is missing; write make pulumi ARGS="preview"',
        "then make pulumi ARGS=preview",
        "make pull reads it as its reader does",
        "on a machine with Nix: make pull",
    ),
    f"{FIRST_HOUR}test_a_clients_terminal_fetches_what_was_pushed": (
        "make shell is a client's terminal",
    ),
    "test_long_life.py::move": (
        "mc mb new/nix-cache && mc mirror old/nix-cache new/nix-cache",
        "pulumi config set endpoint https://s3.new.homelab.local",
    ),
    "test_status.py::test_where_builders_may_not_tell_a_refresh_gives_them_the_right": (
        "run pulumi up --refresh --run-program to give builders that right",
    ),
    "test_status.py::"
    "test_a_push_waits_until_the_settings_are_deployed_and_changes_nothing_before": (
        "see pulumi preview, then run pulumi up, or undo the change",
    ),
    "test_left_alone.py::test_a_failing_push_leaves_nobody_in_who_should_be_out": (
        "pulumi up --continue-on-error does the rest",
    ),
    "test_left_alone.py::test_a_builder_that_does_not_answer_is_revoked": (
        "forget them: pulumi state delete '…' --target-dependents --force",
    ),
    "test_left_alone.py::test_a_user_that_another_stack_has_taken_over_stays": (
        "pulumi state delete '…' --target-dependents --force",
        "mc admin policy detach ALIAS …",
    ),
    "test_recovery.py::test_no_bucket_but_the_one_that_was_being_made_is_taken_over": (
        "where it is nobody's, mc rb s3/…",
    ),
    "test_recovery.py::test_users_that_were_being_made_and_are_wanted_no_more_are_removed": (
        "where it is nobody's, mc admin user remove s3 …",
        "where it is nobody's, mc admin policy remove s3 …",
    ),
    "test_recovery.py::test_a_first_up_that_failed_is_what_a_push_tells_to_run_again": (
        "run pulumi up, which pushes, too, or says what keeps it",
    ),
    "test_retention.py::test_rules_that_are_not_in_force_fail_the_deployment_and_are_shown": (
        "the deploying user may set the lifecycle, then run pulumi up --refresh --run-program",
    ),
    "test_cache.py::test_an_object_changed_behind_its_back_is_found_and_put_right": (
        "what this deployment uploaded; run pulumi up --refresh --run-program to put it back",
        "cannot be read: …; run pulumi up --refresh --run-program to put it back",
    ),
    "test_given_users.py::test_a_secret_is_rotated_by_giving_the_new_one": (
        "(pulumi config set --secret givenUserSecrets)",
    ),
    "test_removal.py::test_a_destroy_of_a_protected_stack_is_refused_and_names_the_setting": (
        "or set protect to false and run pulumi up",
    ),
}
"""By the function that does it: the commands of pages, and the sentences that name one."""

MENTIONED = {
    "pulumi …": "any command",
    "pulumi up --replace": "what nobody should do",
    "pulumi up --refresh --run-program": "what make repair runs",
    "make bench-audit": "who measured, and how",
    "make bench-status": "who measured, and how",
    "NAME is …, which is the stack of make up; take another": "names, and advises another name",
    "another make up, down or clean runs in this checkout": "advises to wait",
    "pulumi up failed; see above": "what failed",
    "OPTIONS OF pulumi up": "a usage line",
    "the rights that make check-server STACK=… ": "what shows rights, and gives none",
}
"""What names a command and asks nobody to run it; and why."""


def read(page: str) -> str:
    return (CHECKOUT / page).read_text(encoding="utf-8")


class Person(Clone):
    """A person with a Pulumi CLI, a backend, a server and a builder, in a clone of their own."""

    def __init__(
        self,
        directory: Path,
        engine: Mapping[str, str],
        server: MinioServer,
        builder: ThrowawayBuilder,
    ) -> None:
        super().__init__(directory)
        self.server = server
        self.builder = builder
        self.mc = MinioClient(server, directory)
        self.environment |= {
            **engine,
            # Not file://~, which is not HOME's.
            "PULUMI_BACKEND_URL": f"file://{self.home}",
            "PULUMI_CONFIG_PASSPHRASE": "a passphrase for tests",
        }
        self.environment.pop("SSH_AUTH_SOCK", None)
        self.pull = f"{_OPERATIONS}.pull --stack homelab --over '{builder.command}'"
        self.closure = builder.make_closure(PATHS, 2_000_000, seed=18, name="documented")

    def settings(self, stack: str, **settings: object) -> None:
        """Write settings into a stack's file, as a person with an editor."""
        file = self.directory / f"Pulumi.{stack}.yaml"
        config = yaml.safe_load(file.read_text())
        config.setdefault("config", {}).update(
            {f"nixcache:{name}": value for name, value in settings.items()}
        )
        file.write_text(yaml.safe_dump(config))

    def follow(self, advice: str, shown: str, *answers: tuple[str, str]) -> str:
        """Do what a sentence that a command has shown advises; return what that shows."""
        assert advice in shown, shown
        found = COMMAND.search(advice)
        assert found, advice
        return self.done(found[0], *answers)

    def newcomer(self, command: str, *answers: tuple[str, str]) -> Session:
        """Type a command as somebody who has no Pulumi CLI and no backend."""
        environment = {
            **{k: v for k, v in self.environment.items() if not k.startswith("PULUMI_")},
            "PATH": os.environ["PATH"],
        }
        return at_terminal(command, self.directory, environment, answers)

    def nars(self) -> dict[str, int]:
        """Return the NARs of the bucket, and their sizes."""
        listed = self.mc.run(f"--json ls --recursive s3/{BUCKET}/nar").splitlines()
        return {f"nar/{nar['key']}": nar["size"] for nar in map(json.loads, listed)}


@pytest.fixture(scope="module")
def person(
    engine: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    minio: MinioServer,
    builder: ThrowawayBuilder,
) -> Person:
    """A person whose stack homelab is deployed and has pushed once."""
    made = Person(tmp_path_factory.mktemp("documented"), engine, minio, builder)
    server = {
        "endpoint": minio.endpoint,
        "minioUser": minio.root_user,
        "caCertificateFile": str(minio.ca_file),
    }
    pushing = builder_settings(builder, made.closure)
    made.settings(
        "homelab",
        **server,
        builders=[{**pushing, "closures": []}],
        upstreamKeys=[],
        signingKeyDomains=["s3.homelab.local"],
    )
    made.done("pulumi stack init homelab")
    made.done("pulumi stack select homelab")
    made.done("pulumi config set --secret minioPassword", ("value", f"{minio.root_password}\r"))
    made.settings("homelab", sshPrivateKey=builder.private_key)
    plain = made.refused("pulumi preview")
    assert "stands in plain text; pulumi config set --secret sshPrivateKey" in plain
    made.done(f"pulumi config set --secret sshPrivateKey < {builder.private_key_file}")
    never = made.refused("make push STACK=homelab")
    assert "stack homelab has no bucket yet; run make up STACK=homelab" in never
    never = made.refused("make audit STACK=homelab")
    made.follow("run make up STACK=homelab", never, YES)
    nothing = made.refused(made.pull)
    made.settings("homelab", builders=[pushing])
    made.follow("give a builder closures, and run make up STACK=homelab", nothing, YES)
    assert f"pulled {PATHS} paths" in made.done(made.pull)
    return made


def test_what_an_audit_finds_is_put_right_by_what_it_advises(person: Person) -> None:
    (gone, _), (changed, size), *_ = person.nars().items()
    other = person.directory / "other"
    other.write_bytes(b"x" * size)
    person.mc.run(f"cp {other} s3/{BUCKET}/{changed}")
    person.mc.run(f"rm s3/{BUCKET}/{gone} s3/{BUCKET}/nix-cache-info")
    person.mc.run("admin user add s3", text=f"{BUCKET}-nixbuilder\nanother-secret\n")
    person.builder.run("rm -rf /root/.cache/nix-binary-cache")
    found = person.refused('make audit STACK=homelab ARGS="--hash all"')
    (advice,) = re.findall(r'make empty STACK=homelab ARGS="[^"]+" removes what is wrong', found)
    assert changed in advice
    person.follow(advice, found, ("name to remove", f"{BUCKET}\r"))
    assert changed not in person.nars()
    refused = person.refused("make push STACK=homelab")
    assert "run make repair STACK=NAME with the stack's name, which mends users" in refused
    person.follow("make repair STACK=homelab puts back what the program declares", found, YES)
    person.follow("make push STACK=homelab pushes again what its builders have", found)
    audited = person.done(
        ".venv/bin/python -m operations.audit --stack homelab --hash 100 --json audit.json"
    )
    assert "\n0 findings" in audited
    assert "a deployment on " in person.done("make status STACK=homelab")
    person.done(".venv/bin/python -m operations.status --stack homelab --prometheus cache.prom")
    assert "build/report-homelab.html" in person.done("make report STACK=homelab")
    person.settings("homelab", pageFigures=True)
    person.done("make report STACK=homelab ARGS=--publish")


def test_a_bucket_that_is_gone_is_made_again_and_filled_again(person: Person) -> None:
    person.mc.run(f"rb --force s3/{BUCKET}")
    assert "make repair STACK=homelab makes it again, empty" in person.refused("pulumi preview")
    found = person.refused("make drift STACK=homelab")
    person.follow("make repair STACK=homelab puts it right", found, YES)
    nothing = person.refused(person.pull)
    assert "make audit STACK=homelab says what clients do not get" in nothing
    assert "closure-missing" in person.refused("make audit STACK=homelab")
    lost = person.refused("make drift STACK=homelab")
    pushed = person.follow("make push STACK=homelab pushes again what its builders have", lost)
    assert f"nixbuilder: pushed {PATHS} paths" in pushed
    person.done("make check-server STACK=homelab")


def test_files_on_a_builder_that_was_installed_anew_are_placed_anew(person: Person) -> None:
    file = person.directory / "Pulumi.homelab.yaml"
    before = file.read_text()
    (pushing,) = yaml.safe_load(before)["config"]["nixcache:builders"]
    directory = "/var/lib/nix-binary-cache"
    person.settings("homelab", builders=[{**pushing, "credentialsDirectory": directory}])
    person.done("make up STACK=homelab", YES)
    person.builder.run(f"rm -r {directory}")
    pushed = person.done("make push STACK=homelab BUILDER=nixbuilder")
    assert "nixbuilder: its credential files are placed anew" in pushed
    assert person.builder.run(f"ls {directory}").stdout.split() == [
        "secret-access-key",
        "signing-key",
    ]
    file.write_text(before)
    person.done("make up STACK=homelab", YES)


def test_a_key_is_rotated_and_retired(person: Person) -> None:
    person.done("pulumi config set --path 'signingKeys[0]' s3.homelab.local-1")
    person.done("pulumi config set --path 'signingKeys[1]' s3.homelab.local-2")
    previewed = person.done("pulumi preview")
    assert "s3.homelab.local-1 stays trusted, s3.homelab.local-2 starts" in previewed
    person.done("pulumi up --target '**SigningKey**'", YES)
    person.done("pulumi stack output nixos --json > cache.json")
    assert "s3.homelab.local-2:" in (person.directory / "cache.json").read_text()
    person.done("pulumi up", YES)
    audited = person.done(".venv/bin/python -m operations.audit --stack homelab")
    assert "verified, 0 bad; the only trusted key of 0" in audited
    person.done("pulumi config rm --path 'signingKeys[0]'")
    previewed = person.done("pulumi preview")
    assert "s3.homelab.local-1 stops being trusted" in previewed
    report = person.done(f"pulumi preview --json | {_OPERATIONS}.preview_markdown")
    assert "signing key `s3.homelab.local-1` is deleted" in report
    person.done("pulumi up", YES)


def test_an_interrupted_up_and_an_old_state_end_whole(person: Person) -> None:
    person.done("pulumi stack export --file state.json")
    person.settings("homelab", priority=30)
    interrupted = person.type("pulumi up --yes --skip-preview", ("Updating", "\x03\x03"))
    assert interrupted.code != 0
    # There may be a lock, or none.
    person.type("pulumi cancel --yes homelab")
    person.done("pulumi stack import --file state.json --stack homelab")
    (attributes,) = (person.home / ".pulumi" / "stacks").rglob("homelab.json.attrs")
    attributes.write_bytes(b"")
    assert "EOF" in person.refused("pulumi preview")
    person.done("make repair STACK=homelab", YES)
    assert "30" in person.mc.run(f"cat s3/{BUCKET}/nix-cache-info")


def test_a_lost_state_is_made_again(person: Person) -> None:
    person.done("umask 077 && pulumi stack output --show-secrets signingKeyBackup > signing-keys")
    backup = (person.directory / "signing-keys").read_text()
    assert backup == person.done("pulumi stack output signingKeyBackup --show-secrets")
    shutil.rmtree(person.home / ".pulumi")
    password = f"{person.server.root_password}\r"
    person.done("pulumi stack init homelab")
    person.done("pulumi config set --secret minioPassword", ("value", password))
    person.done("pulumi config set --secret adoptedSigningKeys < signing-keys")
    person.done("pulumi config set adoptBucket true")
    person.done("pulumi up", YES)
    assert "\n0 findings" in person.done(".venv/bin/python -m operations.audit --stack homelab")
    told = person.done(
        'make pulumi STACK=homelab ARGS="stack output signingKeyBackup --show-secrets"'
    )
    assert told == f"stack homelab\n{backup}"


def test_a_stack_is_removed(person: Person) -> None:
    typed = ("name to remove", f"{BUCKET}\r")
    protected = person.refused("pulumi destroy --run-program")
    assert "protect is on; pulumi config set protect false, pulumi up, and destroy it" in protected
    person.done("pulumi config set protect false && pulumi up", YES)
    person.mc.run(f"version enable s3/{BUCKET}")
    keeps = person.refused("make drift STACK=homelab")
    person.follow("make up STACK=homelab sets such rules", keeps, YES)
    person.done("make empty STACK=homelab", typed)
    kept = person.refused("pulumi destroy --run-program")
    person.follow("make empty STACK=homelab ARGS=--all removes them", kept, typed)
    person.done("pulumi destroy --run-program", YES)
    assert person.mc.run("ls s3") == ""


def test_a_newcomers_stack_outlives_make_clean(person: Person) -> None:
    person.newcomer("make stack NAME=staging").succeeded()
    person.settings(
        "staging",
        endpoint=person.server.endpoint,
        minioUser=person.server.root_user,
        caCertificateFile=str(person.server.ca_file),
        protect=False,
    )
    password = ("value", f"{person.server.root_password}\r")
    secret = 'make pulumi STACK=staging ARGS="config set --secret minioPassword"'
    person.newcomer(secret, password).succeeded()
    person.newcomer("make up STACK=staging", YES).succeeded()
    refused = person.newcomer("make clean")
    assert refused.code != 0
    assert '(make pulumi STACK=staging ARGS="destroy --run-program")' in refused.output
    assert (person.directory / ".dev" / "passphrase").exists()

    person.newcomer("mkdir -m 700 ~/nix-cache-stacks").succeeded()
    person.newcomer("mv .dev/state .dev/passphrase ~/nix-cache-stacks").succeeded()
    told = (
        "export PULUMI_BACKEND_URL=file://$HOME/nix-cache-stacks/state && "
        "export PULUMI_CONFIG_PASSPHRASE_FILE=$HOME/nix-cache-stacks/passphrase && "
    )
    person.newcomer(f"{told}make clean").succeeded()
    assert not (person.directory / ".dev").exists()
    person.newcomer(f"{told}make drift STACK=staging").succeeded()
    destroy = 'make pulumi STACK=staging ARGS="destroy --run-program"'
    person.newcomer(f"{told}{destroy}", YES).succeeded()
    assert "nix-cache-staging" not in person.mc.run("ls s3")
    (person.directory / "Pulumi.staging.yaml").unlink()


def test_another_stack_is_made_beside_it(person: Person) -> None:
    address = "https://s3.homelab.local"
    file = person.directory / "Pulumi.staging.yaml"
    # Who has neither CLI nor backend has the toolbox's.
    person.newcomer("make stack NAME=staging").succeeded()
    person.newcomer(f'make pulumi STACK=staging ARGS="config set endpoint {address}"').succeeded()
    other = person.refused("make stack NAME=staging")
    assert "Pulumi.staging.yaml is encrypted with another passphrase; " in other
    config = {"nixcache:endpoint": address}
    file.write_text(yaml.safe_dump({"config": config}))
    kept = person.follow("then make it: make stack NAME=staging, and set those anew", other)
    assert "Pulumi.staging.yaml keeps endpoint\n" in kept
    assert "Pulumi.staging.yaml wants minioUser and minioPassword: see docs/settings.md" in kept
    file.unlink()
    lost = person.refused("make stack NAME=staging")
    assert "a stack staging already, without its Pulumi.staging.yaml; make pulumi" in lost
    never = 'make pulumi STACK=staging ARGS="stack rm" removes what never was'
    person.follow(never, lost, ("confirm", "staging\r"))
    person.done("make stack NAME=staging")
    person.done("pulumi stack rm --yes staging")

    person.done("pulumi stack init staging")
    (by_hand,) = re.findall(r"```yaml\n(.*?)```", read("docs/environments.md"), re.DOTALL)
    person.done("pulumi stack rm --yes staging")
    missing = person.refused("make up STACK=staging")
    assert missing.startswith("error: there is no stack staging; write the name of one that is ")
    person.follow("or make it first: make stack NAME=staging", missing)
    made = yaml.safe_load(file.read_text())
    assert yaml.safe_load(by_hand)["config"] == made["config"]
    person.done(f"pulumi config set --stack staging endpoint {address}")
    person.done("pulumi config set --stack staging minioUser pulumi")
    secret = "pulumi config set --stack staging --secret minioPassword"
    person.done(secret, ("value", "\r"))
    person.done("pulumi stack select staging")
    empty = person.refused("pulumi preview")
    assert "minioPassword: is empty or no single line" in empty
    password = ("value", f"{person.server.root_password}\r")
    person.done("pulumi config set --secret minioPassword", password)
    server = person.server
    person.settings(
        "staging",
        endpoint=server.endpoint,
        minioUser=server.root_user,
        caCertificateFile=str(server.ca_file),
        signingKeys=["cache.example.org-1"],
    )
    person.done("pulumi config set --path 'signingKeyDomains[0]' cache.example.org")
    key = SecretKey.generate("cache.example.org-1")
    (person.directory / "key").write_text(key.to_nix())
    person.done("pulumi config set --secret adoptedSigningKeys < key")
    person.done("pulumi up --stack staging", YES)
    deployed = yaml.safe_load(file.read_text())["config"]
    file.unlink()
    lost = person.refused("make stack NAME=staging")
    person.follow('make pulumi STACK=staging ARGS="config refresh" writes it as it was last', lost)
    again = yaml.safe_load(file.read_text())["config"]
    assert {name: again[name] for name in deployed} == deployed
    person.done("pulumi preview --expect-no-changes")
    person.done("pulumi config rm adoptedSigningKeys")
    assert str(key.public_key) in person.done("pulumi stack output publicKeys")
