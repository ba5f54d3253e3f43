"""Files for a builder's own pushes: what is declared, and what the command lines do."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pulumi
import pulumi_command as command
import pytest

from components.builder_credentials import (
    BuilderCredentials,
    BuilderCredentialsArgs,
    place_command,
    remove_command,
)
from tests.unit.configuration import HOST_KEY
from tests.unit.recording_mocks import SECRET, RecordingMocks, settled, use_recording_mocks

OWNER = "nixcache/homelab builder/var/lib/nix-binary-cache"

LINES = "S3CRET-USER\ns3.homelab.local-1:S3CRET-KEY\n"


@pytest.fixture
def engine() -> RecordingMocks:
    return use_recording_mocks()


def declare(connection: command.remote.ConnectionArgs | None) -> None:
    def program() -> pulumi.Output[str]:
        args = BuilderCredentialsArgs(
            directory="/var/lib/nix-binary-cache",
            secret_access_key="S3CRET-USER",
            signing_key="s3.homelab.local-1:S3CRET-KEY",
            connection=connection,
        )
        return BuilderCredentials("nixbuilder", args).urn

    settled(program)


def sh(tmp_path: Path, line: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command line as if by the user `uid`."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (programs / "id").chmod(0o755)
    return subprocess.run(
        ["sh", "-c", line],
        input=LINES,
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_secrets_are_on_standard_input_only(engine: RecordingMocks) -> None:
    declare(command.remote.ConnectionArgs(host="builder", host_key=HOST_KEY))
    inputs = engine.inputs("command:remote:Command")
    stdin = inputs.pop("stdin")
    assert SECRET in stdin.values()
    assert stdin["value"] == LINES
    assert "S3CRET" not in json.dumps(inputs)


def test_another_machine_or_directory_is_another_set_of_files(engine: RecordingMocks) -> None:
    declare(command.remote.ConnectionArgs(host="builder", host_key=HOST_KEY))
    assert engine.inputs("command:remote:Command")["triggers"] == [
        "builder",
        "/var/lib/nix-binary-cache",
    ]


def test_this_machine_needs_no_ssh(engine: RecordingMocks) -> None:
    declare(None)
    assert engine.inputs("command:local:Command")["stdin"]["value"] == LINES
    assert "command:remote:Command" not in engine.types()


def test_files_are_placed_for_root_alone_and_placing_them_again_changes_nothing(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "credentials"
    for _ in range(2):
        assert sh(tmp_path, place_command(str(directory), OWNER)).returncode == 0
        files = {path.name: path.read_text() for path in directory.iterdir()}
        assert files == {
            "secret-access-key": "S3CRET-USER\n",
            "signing-key": "s3.homelab.local-1:S3CRET-KEY\n",
            ".placed-by": f"{OWNER}\n",
        }
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_removing_leaves_what_is_not_ours_and_is_done_once_or_twice(tmp_path: Path) -> None:
    directory = tmp_path / "credentials"
    sh(tmp_path, place_command(str(directory), OWNER))
    (directory / "other").touch()
    for _ in range(2):
        assert sh(tmp_path, remove_command(str(directory), OWNER)).returncode == 0
        assert [path.name for path in directory.iterdir()] == ["other"]
    (directory / "other").unlink()
    assert sh(tmp_path, remove_command(str(directory), OWNER)).returncode == 0
    assert not directory.exists()
    assert sh(tmp_path, remove_command(str(directory), OWNER)).returncode == 0


def test_who_is_not_root_places_nothing_and_is_told_why(tmp_path: Path) -> None:
    directory = tmp_path / "credentials"
    done = sh(tmp_path, place_command(str(directory), OWNER), uid=1000)
    assert done.returncode == 1
    assert "only root can place them" in done.stderr
    assert not directory.exists()


def test_what_another_resource_of_the_stack_has_placed_since_stays(tmp_path: Path) -> None:
    directory = tmp_path / "credentials"
    moved = "nixcache/homelab 10.0.0.7/var/lib/nix-binary-cache"
    sh(tmp_path, place_command(str(directory), OWNER))
    assert sh(tmp_path, place_command(str(directory), moved)).returncode == 0
    before = {path.name: path.read_text() for path in directory.iterdir()}
    assert sh(tmp_path, remove_command(str(directory), OWNER)).returncode == 0
    assert {path.name: path.read_text() for path in directory.iterdir()} == before
    sh(tmp_path, remove_command(str(directory), moved))
    assert not directory.exists()


def test_another_stacks_files_are_neither_replaced_nor_removed(tmp_path: Path) -> None:
    directory = tmp_path / "credentials"
    sh(tmp_path, place_command(str(directory), OWNER))
    other = OWNER.replace("homelab", "staging")
    placed = sh(tmp_path, place_command(str(directory), other))
    assert placed.returncode == 1
    assert "are those of the stack nixcache/homelab; name another directory" in placed.stderr
    sh(tmp_path, remove_command(str(directory), other))
    assert (directory / "signing-key").exists()


@pytest.mark.parametrize("name", ["hosts", ".hidden", "two words"])
def test_a_directory_with_other_things_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    (directory / name).touch()
    placed = sh(tmp_path, place_command(str(directory), OWNER))
    assert placed.returncode == 1
    assert f"{directory} holds other things, such as {name.split(maxsplit=1)[0]}" in placed.stderr
    assert directory.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in directory.iterdir()] == [name]


def test_a_link_is_not_followed_to_somewhere_else(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    link = tmp_path / "credentials"
    link.symlink_to(elsewhere)
    placed = sh(tmp_path, place_command(str(link), OWNER))
    assert placed.returncode == 1
    assert "is a link" in placed.stderr
    assert elsewhere.stat().st_mode & 0o777 == 0o755


def test_a_directory_of_another_user_is_not_taken(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    if os.geteuid() == 0:
        os.chown(directory, 65534, 65534)
    else:
        directory = Path("/usr")
    mode = directory.stat().st_mode
    placed = sh(tmp_path, place_command(str(directory), OWNER))
    assert placed.returncode == 1
    assert f"{directory} is not root's; name another" in placed.stderr
    assert directory.stat().st_mode == mode


def test_a_directory_from_before_files_said_whose_they_are_is_taken(tmp_path: Path) -> None:
    directory = tmp_path / "credentials"
    directory.mkdir(mode=0o755)
    for name in ("secret-access-key", "signing-key", ".signing-key.new"):
        (directory / name).touch()
    assert sh(tmp_path, place_command(str(directory), OWNER)).returncode == 0
    assert (directory / "secret-access-key").read_text() == "S3CRET-USER\n"


def with_sudo(tmp_path: Path, answer: str) -> None:
    """Put a sudo before others that answers so, or becomes root."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sudo").write_text(f"#!/bin/sh\n{answer}\n")
    (programs / "sudo").chmod(0o755)


def test_a_user_that_is_not_root_becomes_it_by_sudo(tmp_path: Path) -> None:
    with_sudo(
        tmp_path,
        'while [ "$1" = -n ] || [ "$1" = -- ]; do shift; done; id() { echo 0; }\n'
        'printf "#!/bin/sh\\necho 0\\n" >"${0%/*}/id"; exec "$@"',
    )
    directory = tmp_path / "credentials"
    placed = sh(tmp_path, place_command(str(directory), OWNER, sudo=True), uid=1000)
    assert placed.returncode == 0, placed.stderr
    assert (directory / "secret-access-key").read_text() == "S3CRET-USER\n"
    assert sh(tmp_path, remove_command(str(directory), OWNER, sudo=True)).returncode == 0
    assert not directory.exists()


def test_a_sudo_that_asks_for_a_password_is_one_sentence(tmp_path: Path) -> None:
    with_sudo(tmp_path, "echo 'sudo: Ein Passwort ist notwendig' >&2; exit 1")
    refused = sh(tmp_path, place_command(str(tmp_path / "new"), OWNER, sudo=True), uid=1000)
    assert refused.returncode == 1
    assert refused.stderr == (
        "credentialsDirectory: sudo asks this user for a password; let it run sh without one "
        "(NOPASSWD in sudoers), or log in as root\n"
    )
    assert not (tmp_path / "new").exists()


def test_a_disk_that_was_full_stops_no_later_deployment(tmp_path: Path) -> None:
    directory = tmp_path / "credentials"
    for made in (place_command, remove_command):
        directory.mkdir(exist_ok=True)
        # As it was written at once, and a disk had no room for it.
        (directory / ".placed-by").write_text("")
        assert sh(tmp_path, made(str(directory), OWNER)).returncode == 0
    assert not directory.exists()

    sh(tmp_path, place_command(str(directory), OWNER))
    (directory / ".placed-by").write_text(OWNER[:12])
    refused = sh(tmp_path, place_command(str(directory), OWNER))
    assert refused.returncode == 1
    assert f"are those of the stack {OWNER[:12]}; name another directory" in refused.stderr


def test_an_update_for_which_there_is_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    directory = tmp_path / "credentials"
    sh(tmp_path, place_command(str(directory), OWNER))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    update = f"trap '' XFSZ; ulimit -f 0; {place_command(str(directory), OWNER)}"
    assert sh(tmp_path, update).returncode != 0
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert {name: text for name, text in after.items() if not name.endswith(".new")} == before
    assert sh(tmp_path, place_command(str(directory), OWNER)).returncode == 0
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_files_that_somebody_put_there_before_get_no_secret(tmp_path: Path) -> None:
    directory, victim = tmp_path / "credentials", tmp_path / "victim"
    directory.mkdir(mode=0o755)
    victim.write_text("mine")
    (directory / ".secret-access-key.new").symlink_to(victim)
    (directory / ".signing-key.new").touch(mode=0o666)
    with (directory / ".signing-key.new").open() as held:
        assert sh(tmp_path, place_command(str(directory), OWNER)).returncode == 0
        assert held.read() == ""
    assert victim.read_text() == "mine"
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_what_a_directory_lies_in_stays_open_to_others(tmp_path: Path) -> None:
    directory = tmp_path / "opt" / "nix" / "credentials"
    assert sh(tmp_path, place_command(str(directory), OWNER)).returncode == 0
    made = (directory, directory.parent, directory.parent.parent)
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700, 0o755, 0o755]


def test_a_directory_in_the_place_of_a_file_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "credentials"
    (directory / "signing-key").mkdir(parents=True)
    refused = sh(tmp_path, place_command(str(directory), OWNER))
    assert refused.returncode == 1
    assert f"{directory}/signing-key is a directory; remove it" in refused.stderr
    assert [path.name for path in directory.iterdir()] == ["signing-key"]
    file = tmp_path / "file"
    file.write_text("mine")
    refused = sh(tmp_path, place_command(str(file), OWNER))
    assert f"{file} is no directory; name another" in refused.stderr
    assert file.read_text() == "mine"


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "signing-key").write_text("another's")
    (tmp_path / "link").symlink_to(elsewhere)
    assert sh(tmp_path, remove_command(str(tmp_path / "link"), OWNER)).returncode == 0
    assert (elsewhere / "signing-key").read_text() == "another's"


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775, 0o757, 0o770])
def test_a_directory_that_others_may_write_to_is_left_as_it_is(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "shm"
    directory.mkdir()
    directory.chmod(mode)
    placed = sh(tmp_path, place_command(str(directory), OWNER))
    assert placed.returncode == 1
    assert placed.stderr == (
        f"credentialsDirectory: others may write to {directory}; name a directory of its own, or, "
        f"if it is one, run chmod go-w {directory}\n"
    )
    assert directory.stat().st_mode & 0o7777 == mode
    assert list(directory.iterdir()) == []


def test_a_directory_whose_rights_are_taken_away_as_advised_is_taken(tmp_path: Path) -> None:
    directory = tmp_path / "own"
    directory.mkdir()
    directory.chmod(0o775)
    advice = sh(tmp_path, place_command(str(directory), OWNER)).stderr
    command_line = advice.partition(", run ")[2]
    assert subprocess.run(shlex.split(command_line), check=True).returncode == 0
    assert sh(tmp_path, place_command(str(directory), OWNER)).returncode == 0


def test_whoever_may_write_to_a_directory_does_not_make_it_this_programs(tmp_path: Path) -> None:
    directory = tmp_path / "shm"
    directory.mkdir()
    directory.chmod(0o1777)
    (directory / ".placed-by").write_text(f"{OWNER}\n")
    placed = sh(tmp_path, place_command(str(directory), OWNER))
    assert placed.returncode == 1
    assert f"others may write to {directory}; name a directory of its own" in placed.stderr
    assert directory.stat().st_mode & 0o7777 == 0o1777
    assert [path.name for path in directory.iterdir()] == [".placed-by"]


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory", "theirs"])
def test_what_says_whose_files_they_are_is_a_file_of_roots(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "own"
    directory.mkdir(mode=0o755)
    file = directory / ".placed-by"
    (tmp_path / "said").write_text(f"{OWNER}\n")
    if kind in ("link", "dangling"):
        file.symlink_to(tmp_path / ("said" if kind == "link" else "nowhere"))
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    else:
        if os.geteuid() != 0:
            pytest.skip("only root may give a file away")
        file.write_text(f"{OWNER}\n")
        os.chown(file, 65534, 65534)
    placed = sh(tmp_path, place_command(str(directory), OWNER))
    assert placed.returncode == 1
    assert placed.stderr == (f"credentialsDirectory: {file} is no file of root's; remove it\n")
    assert directory.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in directory.iterdir()] == [".placed-by"]


def exchanging(tmp_path: Path, directory: Path, elsewhere: Path, program: str) -> None:
    """Have a link to elsewhere take a directory's place as soon as a program has run."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    real = shutil.which(program)
    assert real
    (programs / program).write_text(
        f'#!/bin/sh\n{real} "$@"\n'
        f"if [ -d {directory} ] && [ ! -L {directory} ]; then\n"
        f"  mv {directory} {directory}.old && ln -s {elsewhere} {directory}\nfi\n"
    )
    (programs / program).chmod(0o755)


def test_a_link_that_takes_the_directorys_place_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    elsewhere, directory = tmp_path / "elsewhere", tmp_path / "credentials"
    elsewhere.mkdir(mode=0o755)
    exchanging(tmp_path, directory, elsewhere, "mkdir")
    placed = sh(tmp_path, place_command(str(directory), OWNER))
    assert placed.returncode == 1
    assert placed.stderr == (
        f"credentialsDirectory: {directory} is a link; name the directory itself\n"
    )
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    assert not list(elsewhere.iterdir())


def test_nothing_is_removed_through_a_link_that_takes_its_place_meanwhile(tmp_path: Path) -> None:
    elsewhere, directory = tmp_path / "elsewhere", tmp_path / "credentials"
    for made in (elsewhere, directory):
        assert sh(tmp_path, place_command(str(made), OWNER)).returncode == 0
    exchanging(tmp_path, directory, elsewhere, "basename")
    assert sh(tmp_path, remove_command(str(directory), OWNER)).returncode == 0
    assert directory.is_symlink()
    assert len(list(elsewhere.iterdir())) == 3


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_a_link_above_the_directory_is_the_machines_own(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"this machine has no {shell}")
    (tmp_path / "moved").mkdir()
    (tmp_path / "var").symlink_to("moved")
    directory = tmp_path / "var" / "a b" / "credentials"
    for made in (place_command, remove_command):
        line = made(str(directory), OWNER).replace("sh", shell, 1)
        done = sh(tmp_path, line)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "moved/a b/credentials/signing-key").exists() == (made is place_command)
    assert not directory.exists()
