"""Builders that lack what others have, or whose login shell is another, push all the same.

What is run is what `pulumi up` runs: the command line that a login shell is given, and the script
that follows links before a preview.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from components.builder_credentials import place_command, remove_command
from components.closure_push import summary_of
from components.push_program import PROGRAM_KEY, archive
from program.links import follow_links
from program.settings.stack import parse
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import SUMMARY, CacheBucket, Pushed
from tests.system.test_fetch_push import push
from tests.unit.configuration import configuration
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

PATHS = 2
KEPT = "/root/.cache/nix-binary-cache"
HIDDEN = "/srv/hidden"
LINKED = f"/nix/store/{'1' * 32}-a-link-itself"

# Where each shell looks however it is started, and a greeting: bytes that are no UTF-8, a line that
# looks like an answer, and no end of the last line.
GREETINGS = {
    "fish": (".config/fish/config.fish", r"printf 'Gr\xfc\xdf\n/nix/store/greeting\nHi'"),
    "tcsh": (".cshrc", r"printf 'Gr\374\337\n/nix/store/greeting\nHi'"),
    "zsh": (".zshenv", r"printf 'Gr\374\337\n/nix/store/greeting\nHi'"),
}


@pytest.fixture(scope="module")
def machine(equipped_builder: ThrowawayBuilder) -> ThrowawayBuilder:
    """A builder with a user for each shell, who is root by another name."""
    for shell, (file, greeting) in GREETINGS.items():
        equipped_builder.run(
            "useradd --non-unique --uid 0 --gid 0 --create-home --password '*' "
            f"--shell /usr/bin/{shell} {shell}\n"
            f"cp -r /root/.ssh /home/{shell}/ && mkdir -p $(dirname /home/{shell}/{file})\n"
            f"cat >/home/{shell}/{file}",
            input=f"{greeting}\n",
        )
    return equipped_builder


@pytest.fixture(scope="module")
def closure(machine: ThrowawayBuilder) -> str:
    return machine.make_closure(PATHS, 2000, seed=80, name="odd")


@pytest.fixture
def bucket(minio: MinioServer, request: pytest.FixtureRequest) -> CacheBucket:
    """A bucket with the push in it."""
    bucket = CacheBucket(minio, f"odd-{abs(hash(request.node.name)) % 10**9}")
    bucket.put(PROGRAM_KEY, archive())
    return bucket


@contextmanager
def logged_in(machine: ThrowawayBuilder, user: str) -> Iterator[None]:
    """Log in as another user meanwhile."""
    machine.user, before = user, machine.user
    try:
        yield
    finally:
        machine.user = before


@contextmanager
def hidden(machine: ThrowawayBuilder, *programs: str) -> Iterator[None]:
    """Take programs, by patterns of their names, away from where they are looked for meanwhile."""
    places = " ".join(f"/usr/bin/{program}" for program in programs)
    machine.run(f"mkdir {HIDDEN} && mv {places} {HIDDEN}/")
    try:
        yield
    finally:
        machine.run(f"mv {HIDDEN}/* /usr/bin/ && rmdir {HIDDEN}; rm -rf {KEPT} ~/.nix-profile")


def succeeded(pushed: Pushed) -> str:
    """Return what a deployment shows of a push that must have succeeded."""
    assert pushed.code == 0, pushed.log
    return summary_of(pushed.output)


@pytest.mark.parametrize("shell", GREETINGS)
def test_links_are_followed_whatever_the_login_shell_is_and_says(
    machine: ThrowawayBuilder, closure: str, shell: str
) -> None:
    machine.run(
        f"ln -sfn {closure} /root/top && ln -sfn top /root/again\n"
        f"ln -sfn /etc {LINKED}; ln -sfn {LINKED} '/root/to a link'"
    )
    settings = {
        "name": shell,
        "host": machine.host,
        "port": machine.port,
        "user": shell,
        "hostKey": machine.host_key,
    }
    links = ["/root/again", closure, "/root/to a link", "/root/top/references"]
    stack = configuration(
        sshPrivateKey=machine.private_key,
        builders=[
            {**settings, "closures": links},
            {**settings, "name": "other", "closures": ["/root/top", "/etc/hostname"]},
        ],
    )
    assert follow_links(parse(stack).builders) == {
        shell: [closure, closure, LINKED, closure],
        "other": None,
    }


@pytest.mark.parametrize("shell", GREETINGS)
def test_a_push_succeeds_whatever_the_login_shell_is_and_says(
    machine: ThrowawayBuilder, closure: str, bucket: CacheBucket, shell: str
) -> None:
    with logged_in(machine, shell):
        line = succeeded(push(machine, bucket, closure))
    found = SUMMARY.search(f"{line}\n")
    assert found, line
    assert int(found["pushed"]) == PATHS


def test_where_there_is_no_python_nix_builds_one_that_is_kept(
    machine: ThrowawayBuilder, closure: str, bucket: CacheBucket
) -> None:
    machine.run(
        "mkdir -p /srv/nixpkgs && cat >/srv/nixpkgs/default.nix",
        input="{ ... }: { python3 = derivation {\n"
        '  name = "python3"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c"\n'
        f'  "/bin/mkdir -p $out/bin; /bin/ln -s {HIDDEN}/python3 $out/bin/python3" ];\n'
        "}; }\n",
    )
    with hidden(machine, "python3*"):
        environment = "NIX_PATH=nixpkgs=/srv/nixpkgs"
        assert succeeded(push(machine, bucket, closure, environment)).startswith("pushed 2 paths")
        built = machine.run(f"readlink {KEPT}/python").stdout.strip()
        assert machine.run(f"nix-store --query --roots {built}").stdout
        machine.run("nix-collect-garbage")
        again = push(machine, bucket, closure, "NIX_PATH=nixpkgs=/nowhere")
        assert succeeded(again).startswith("pushed 0 paths")


def test_where_nix_cannot_build_a_python_one_sentence_says_what_to_do(
    machine: ThrowawayBuilder, closure: str, bucket: CacheBucket
) -> None:
    with hidden(machine, "python3*"):
        refused = push(machine, bucket, closure, "NIX_PATH=nixpkgs=/nowhere").refused()
    assert refused == (
        "push: prepare: this machine has no Python 3.10 or newer with zlib, ssl, xml and all else "
        "of its library, and Nix could not build one; install it, on NixOS by "
        "environment.systemPackages = [ pkgs.python3 ]"
    )


def test_a_nix_that_only_the_users_profile_has_is_found(
    machine: ThrowawayBuilder, closure: str, bucket: CacheBucket
) -> None:
    with hidden(machine, "nix*"):
        machine.run(f"mkdir -p ~/.nix-profile/bin && ln -s {HIDDEN}/* ~/.nix-profile/bin/")
        assert machine.run("command -v nix", check=False).returncode != 0
        assert succeeded(push(machine, bucket, closure)).startswith("pushed 2 paths")


# Users that are not root.


@pytest.fixture(scope="module")
def user(machine: ThrowawayBuilder) -> str:
    """A user of no rights who reaches the Nix daemon, as on a machine of several users."""
    machine.run(
        "useradd --create-home --password '*' --shell /bin/bash ann\n"
        "cp -r /root/.ssh /home/ann/ && chown -R ann: /home/ann/.ssh\n"
        "groupadd --system nixbld; nohup nix-daemon >/dev/null 2>&1 </dev/null &\n"
        "for _ in $(seq 100); do [ -S /nix/var/nix/daemon-socket/socket ] && exit; sleep 0.1; done"
    )
    return "ann"


def test_a_user_that_reaches_the_daemon_pushes(
    machine: ThrowawayBuilder, closure: str, bucket: CacheBucket, user: str
) -> None:
    with logged_in(machine, user):
        assert machine.run("id -u; test ! -w /nix/store").stdout != "0\n"
        line = succeeded(push(machine, bucket, closure))
        assert "pushed 2 paths" in line
        assert "reused 2" in succeeded(push(machine, bucket, closure))
    assert verify(bucket).problems == []


def test_credentials_are_placed_by_sudo_where_it_asks_for_nothing(
    machine: ThrowawayBuilder, user: str
) -> None:
    directory, owner = "/var/lib/by-sudo", "nixcache/homelab nixbuilder/var/lib/by-sudo"
    place = place_command(directory, owner, sudo=True)
    with logged_in(machine, user):
        refused = machine.run(place, input="secret\nkey\n", check=False)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines() == [
        "credentialsDirectory: sudo asks this user for a password; let it run sh without one "
        "(NOPASSWD in sudoers), or log in as root"
    ]
    machine.run("umask 337; echo 'ann ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/ann")
    with logged_in(machine, user):
        machine.run(place, input="secret\nkey\n")
        assert machine.run(f"cat {directory}/signing-key", check=False).returncode != 0
    assert machine.run(f"cat {directory}/*-key; stat -c %U:%a {directory}").stdout == (
        "secret\nkey\nroot:700\n"
    )
    with logged_in(machine, user):
        machine.run(remove_command(directory, owner, sudo=True))
    assert machine.run(f"test ! -e {directory}").returncode == 0
