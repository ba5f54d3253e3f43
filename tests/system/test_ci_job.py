"""Jobs of a continuous integration system: they use the cache, and fill it while they go on."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from minio import Minio
from minio.credentials.providers import StaticProvider

from components.access import write_policy
from formats.signing import SecretKey
from tests.system.bucket_verifier import verify
from tests.system.cache_bucket import CacheBucket, connections, trust
from tests.system.minio_client import MinioClient
from tests.system.oidc_issuer import Issuer, issuer
from tests.system.stack import CHECKOUT
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

ACTION = yaml.safe_load((CHECKOUT / "action.yml").read_text(encoding="utf-8"))
PAGE = (CHECKOUT / "docs" / "ci.md").read_text(encoding="utf-8")
SOURCE = "/srv/action"
WORKSPACE = "/srv/workspace"
JOB = "/tmp/job"
QUEUE = f"{JOB}/nix-binary-cache-0/queue"
SCRIPT = "/srv/job.sh"
FORGES = "/srv/forge"
FORGES_FILES = ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY")
"""Files in which a step tells its forge something."""

BUILDS = """
let
  made = number: derivation {{
    name = "{name}-${{toString number}}";
    builder = "/bin/sh";
    system = builtins.currentSystem;
    before = if number == 0 then "" else made (number - 1);
    args = [ "-c" "echo $before {name} >$out" ];
  }};
in
made {last}
"""


class Runner:
    """A machine that runs jobs: an action's steps, as its file says."""

    def __init__(self, builder: ThrowawayBuilder, bucket: CacheBucket) -> None:
        self.builder = builder
        self.bucket = bucket
        trust(builder, bucket.server)
        root = builder.root
        for room in ("push", "formats"):
            ignored = shutil.ignore_patterns("__pycache__")
            to = root / SOURCE[1:] / room
            shutil.copytree(CHECKOUT / room, to, ignore=ignored, dirs_exist_ok=True)
        (root / WORKSPACE[1:]).mkdir(exist_ok=True)
        builder.run(f"rm -rf {JOB} {FORGES} ~/.config/nix; mkdir {JOB} {FORGES}")
        (root / WORKSPACE[1:] / "cache.json").write_text(json.dumps(self.cache()))

    def cache(self) -> dict[str, object]:
        server, key = self.bucket.server, str(self.bucket.public_key)
        return {
            "access": "public",
            "substituter": f"{server.endpoint}/{self.bucket.name}",
            "publicKeys": [key],
            "caCertificate": server.ca_file.read_text(),
            "push": {
                "endpoint": server.endpoint,
                "region": "us-east-1",
                "bucket": self.bucket.name,
                "renew": "yes",
                "trusted-key": [key],
            },
            "builders": {"ci": {"accessKeyId": self.bucket.user, "pins": []}},
        }

    @property
    def secrets(self) -> dict[str, str]:
        return {
            "builder": "ci",
            "secret-access-key": self.bucket.secret,
            "signing-key": self.bucket.key.to_nix(),
        }

    def step(self, inputs: Mapping[str, str], check: bool = True) -> tuple[int, str]:
        """Run the action with inputs; return the exit code, and what it said."""
        given = {name: one.get("default", "") for name, one in ACTION["inputs"].items()}
        assert inputs.keys() <= given.keys()
        given |= inputs
        (step,) = [one for one in ACTION["runs"]["steps"] if f"== '{given['do']}'" in one["if"]]
        assert step["working-directory"] == "${{ github.action_path }}"
        names = {
            name: value.removeprefix("${{ inputs.").removesuffix(" }}")
            for name, value in step["env"].items()
        }
        variables = {
            "RUNNER_TEMP": JOB,
            "GITHUB_WORKSPACE": WORKSPACE,
            "GITHUB_RUN_ID": "20",
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_JOB": "build",
            **{name: f"{FORGES}/{name}" for name in FORGES_FILES},
            **{name: given[value] for name, value in names.items()},
        }
        exports = "".join(f"export {name}={shlex.quote(v)}\n" for name, v in variables.items())
        script = f"cd {SOURCE}\n{exports}bash --noprofile --norc -eo pipefail <<'STEP'\n"
        done = self.builder.run(f"{script}{step['run']}\nSTEP\n", check=check)
        return done.returncode, done.stdout + done.stderr

    def whole_job(self, name: str, around: str = "", meanwhile: str = "") -> str:
        """Type `start`, a build and `finish` as GitLab's jobs do; return what they said.

        Args:
            name: what is built is called so.
            around: what a shell does, which runs the script; by default nothing.
            meanwhile: what is typed before `finish`.
        """
        variables = {
            "NIX_BINARY_CACHE_CONFIGURATION": f"{WORKSPACE}/cache.json",
            "NIX_BINARY_CACHE_BUILDER": "ci",
            "NIX_BINARY_CACHE_SECRET_ACCESS_KEY": self.bucket.secret,
            "NIX_BINARY_CACHE_SIGNING_KEY": self.bucket.key.to_nix(),
        }
        exports = "".join(f"export {name}={shlex.quote(v)}\n" for name, v in variables.items())
        expression = shlex.quote(BUILDS.format(name=name, last=0))
        script = (
            f"{exports}export RUNNER_TEMP=${{RUNNER_TEMP:-{JOB}}}\n"
            f"(cd {SOURCE} && python3 -m push.ci_job start); echo start ended with $?\n"
            f"nix-build --no-out-link -E {expression}; echo build ended with $?\n{meanwhile}"
            f"(cd {SOURCE} && python3 -m push.ci_job finish); echo finish ended with $?\n"
        )
        self.builder.run(f"cat >{SCRIPT}", input=script)
        return self.builder.run(f"exec 2>&1\n{around}").stdout

    def build(self, name: str, number: int) -> list[str]:
        """Build so many paths that no store has, as a job does; return them, first to last."""
        script = "nix-build --no-out-link -"
        top = self.builder.run(script, input=BUILDS.format(name=name, last=number - 1)).stdout
        paths = self.builder.run(f"nix-store --query --requisites {top}").stdout.split()
        assert len(paths) == number
        return paths

    def published(self, paths: list[str]) -> set[str]:
        keys = self.bucket.objects().keys()
        return {path for path in paths if f"{Path(path).name[:32]}.narinfo" in keys}


@pytest.fixture
def bucket(minio: MinioServer, request: pytest.FixtureRequest) -> CacheBucket:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return CacheBucket(minio, f"ci-{name}")


@pytest.mark.parametrize("name", ["cache.test-0", "cache.test-1"])
def test_a_key_that_clients_do_not_trust_takes_nothing_from_them(
    builder: ThrowawayBuilder, bucket: CacheBucket, name: str
) -> None:
    """A forge still has a key that was retired, or one of before the keys were lost."""
    runner = Runner(builder, bucket)
    runner.step(runner.secrets)
    (path,) = runner.build(f"trusted-{name[-1]}", 1)
    runner.step({"do": "finish", "fail-on-push-error": "true"})
    before = {key: one.etag for key, one in bucket.objects().items()}
    other = {**runner.secrets, "signing-key": SecretKey.generate(name).to_nix()}
    code, said = runner.step(other, check=False)
    assert code == 1
    assert f"push: settings: the signing key {name} is " in said
    assert "the key that the stack has it sign with now (docs/ci.md)" in said
    runner.step({"do": "finish"}, check=False)
    assert {key: one.etag for key, one in bucket.objects().items()} == before
    assert bucket.pull(builder, path) == 1


def test_what_a_job_builds_is_pushed_while_it_goes_on_and_nothing_is_left(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    runner.step(runner.secrets)
    paths = runner.build("meanwhile", 12)
    # The process in the background looks every two seconds; the job goes on all the time.
    queue = builder.root / JOB[1:] / "nix-binary-cache-0" / "queue"
    assert wait_until(lambda: not list(queue.iterdir()), 60)
    assert runner.published(paths) == set(paths)
    more = runner.build("at-the-end", 3)
    code, said = runner.step({"do": "finish"})
    assert code == 0
    assert "pushed 12 paths" in said or said.count("pushed ") >= 2, said
    assert runner.published(more) == set(more)
    assert verify(bucket).problems == []
    assert builder.run(f"ls -A {JOB}").stdout == ""
    assert builder.run("cat ~/.config/nix/nix.conf").stdout == ""
    assert bucket.secret not in said
    assert runner.bucket.key.to_nix() not in said


def test_a_job_takes_from_the_cache_what_another_one_built(
    builder: ThrowawayBuilder, second_builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    first, second = Runner(builder, bucket), Runner(second_builder, bucket)
    first.step(first.secrets)
    paths = first.build("shared", 3)
    assert first.step({"do": "finish"})[0] == 0
    # Without a builder it only reads.
    second.step({})
    # No machine here knows the private CA by itself.
    said = second_builder.run(
        "nix-build --no-out-link -", input=BUILDS.format(name="shared", last=2)
    ).stderr
    assert f"copying path '{paths[-1]}' from" in said
    assert "building" not in said
    assert second.step({"do": "finish"})[0] == 0
    assert second_builder.run("cat ~/.config/nix/nix.conf").stdout == ""


@pytest.mark.parametrize(
    "around",
    [
        pytest.param(
            f"install -d -o 1001 /srv/home; HOME=/srv/home bash {SCRIPT}", id="another user's home"
        ),
        pytest.param(
            "echo cores = 1 >/srv/first.conf; "
            f"NIX_USER_CONF_FILES=/srv/first.conf:/srv/second.conf bash {SCRIPT}",
            id="files that a variable names",
        ),
        pytest.param(
            f"unshare --mount bash -c 'mount -t tmpfs -o noexec none {JOB}; bash {SCRIPT}'",
            id="nothing is run where temporary files lie",
        ),
        pytest.param(
            f"mkdir '{JOB}/a  b#c'; RUNNER_TEMP='{JOB}/a  b#c' bash {SCRIPT}; rmdir '{JOB}/a  b#c'",
            id="temporary files in a directory with an odd name",
        ),
    ],
)
def test_wherever_nix_has_its_settings_what_a_job_builds_is_pushed(
    builder: ThrowawayBuilder, bucket: CacheBucket, around: str
) -> None:
    runner = Runner(builder, bucket)
    said = runner.whole_job(f"somewhere-{bucket.name}", around)
    assert said.count(" ended with 0\n") == 3, said
    assert "what this job builds is pushed\n" in said
    assert [key for key in bucket.objects() if key.endswith(".narinfo")], said
    assert builder.run(f"ls -A {JOB}").stdout == ""
    files = "cat ~/.config/nix/nix.conf /srv/*.conf || true"
    assert "nix-binary-cache" not in builder.run(files).stdout


DAEMON = """\
groupadd --system --force nixbld
nix-daemon >/dev/null 2>&1 </dev/null & daemon=$!
until [ -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.05; done
export NIX_REMOTE=daemon
"""


@pytest.mark.parametrize(
    ("around", "why"),
    [
        pytest.param(
            f"{DAEMON}unshare --mount bash -c 'mount -t tmpfs none /root; bash {SCRIPT}'",
            "-post-build-hook",
            id="the daemon of another container",
        ),
        pytest.param(
            "mkdir -p ~/.config/nix; echo post-build-hook = /bin/true >~/.config/nix/nix.conf\n"
            f"bash {SCRIPT}",
            "the post-build-hook is '/bin/true' already",
            id="a hook of the user's",
        ),
        pytest.param(
            f"NIX_CONFIG='post-build-hook = /bin/true' bash {SCRIPT}",
            "the post-build-hook is '/bin/true' already",
            id="a hook that a variable sets",
        ),
        pytest.param(
            f"{DAEMON}chmod -R a+rX /srv; chown nobody {JOB} {WORKSPACE}\n"
            "install -d -o nobody /srv/nobody\n"
            f"HOME=/srv/nobody setpriv --reuid=nobody --clear-groups bash {SCRIPT}",
            "ignoring the client-specified setting 'post-build-hook'",
            id="a user whom the daemon does not trust",
        ),
    ],
)
def test_where_nothing_is_queued_a_job_is_told_builds_go_on_and_finish_says_so_again(
    builder: ThrowawayBuilder, bucket: CacheBucket, around: str, why: str
) -> None:
    runner = Runner(builder, bucket)
    stop = 'code=$?; [ -z "${daemon-}" ] || kill $daemon; exit $code'
    said = runner.whole_job(f"unqueued-{bucket.name}", f"{around}\n{stop}")
    assert said.count("push: settings: what this job builds is not queued: ") == 2, said
    assert said.count(why) >= 2, said
    assert "the cache is set up\nstart ended with 0\n" in said, said
    assert "build ended with 0\n" in said, said
    assert "finish ended with 1\n" in said, said
    assert "name what is to be pushed at finish" in said
    # A file that a daemon does not see would keep it from every cache.
    assert "(77)" not in said.partition("start ended")[2]
    assert builder.run(f"ls -A {JOB}").stdout == ""


def test_what_a_job_that_was_killed_has_left_fails_nobodys_build(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    runner.step(runner.secrets)
    # What a forge's runner does before the next job.
    builder.run(f"rm -r {JOB}/*")
    runner.build("after-a-killed-job", 1)
    runner.step(runner.secrets)
    (path,) = runner.build("after-that", 1)
    assert runner.step({"do": "finish"})[0] == 0
    assert runner.published([path]) == {path}
    assert builder.run("cat ~/.config/nix/nix.conf").stdout == ""


def test_a_build_that_goes_on_when_the_job_finishes_is_not_failed(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    runner.step(runner.secrets)
    began, gate, ended = (builder.root / "srv" / name for name in ("began", "gate", "ended"))
    expression = BUILDS.format(name="long", last=0).replace(
        "echo $before", "echo >/srv/began; read -r line </srv/gate; echo"
    )
    builder.run("mkfifo /srv/gate; cat >/srv/long.nix", input=expression)
    build = "nix-build --no-out-link /srv/long.nix >/srv/long.log 2>&1; echo $? >/srv/ended"
    builder.run(f"nohup bash -c '{build}' >/dev/null 2>&1 </dev/null &")
    assert wait_until(began.exists, 60)
    assert runner.step({"do": "finish"})[0] == 0
    gate.write_text("go on\n")
    assert wait_until(lambda: ended.exists() and bool(ended.read_text()), 60)
    assert ended.read_text() == "0\n", (builder.root / "srv" / "long.log").read_text()


def pushers(builder: ThrowawayBuilder) -> int:
    """Return how many processes push in the background."""
    found = (builder.root / "proc").glob("[0-9]*/cmdline")
    return sum(b"push.ci_job\0run" in read_or_nothing(file) for file in found)


def read_or_nothing(file: Path) -> bytes:
    try:
        return file.read_bytes()
    # Of a process that has ended meanwhile.
    except OSError:
        return b""


def test_the_next_job_in_its_place_ends_one_that_did_not_finish(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    assert wait_until(lambda: not pushers(builder), 60)
    place = f"CI_RUNNER_ID=7 CI_CONCURRENT_ID=0 TMPDIR={JOB} bash {SCRIPT}"
    for job in ("1", "2"):
        runner.whole_job(f"in-place-{job}")
        builder.run(f"sed -i 's/^export RUNNER_TEMP.*/export CI_JOB_ID={job}/' {SCRIPT}")
        if job == "1":
            builder.run(f"sed -i /finish/d {SCRIPT}; {place} >&2")
    assert pushers(builder) == 1
    said = builder.run(f"exec 2>&1\n{place}").stdout
    assert "push: settings: a job here ended without finish; what it had queued" in said
    assert said.count(" ended with 0\n") == 3, said
    assert pushers(builder) == 0
    assert builder.run(f"ls -A {JOB}; cat ~/.config/nix/nix.conf").stdout == ""


def test_a_job_that_nobody_finishes_leaves_no_secret_when_its_time_is_over(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    unfinished = f"sed -i /finish/d {SCRIPT}; CI_JOB_TIMEOUT=1 bash {SCRIPT}"
    for hook in ("NIX_CONFIG='post-build-hook = /bin/true' ", ""):
        said = runner.whole_job(f"timed-out-{bool(hook)}", unfinished.replace("CI_", f"{hook}CI_"))
        assert said.count(" ended with 0\n") == 2, said
        # On a busy machine the time is over before the build, which the hook may say as well.
        assert ("what this job builds is not queued" in said) == bool(hook)
        assert wait_until(lambda: not pushers(builder), 60)
        assert builder.run(f"ls -A {JOB}").stdout == ""
    said = runner.step({"do": "finish"})[1]
    assert "nix-binary-cache-0' is gone, and what the job had queued with it" in said


def test_whoever_takes_the_place_of_a_job_that_is_over_gets_nothing_of_its_hook(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    runner.step(runner.secrets)
    (hook,) = re.findall(
        r"^post-build-hook = (.+)$", builder.run("cat ~/.config/nix/nix.conf").stdout, re.MULTILINE
    )
    assert runner.step({"do": "finish"})[0] == 0
    place = f"{JOB}/nix-binary-cache-0"
    builder.run(
        f"mkdir -p /srv/roots; chmod 1777 {JOB}; setpriv --reuid=nobody --clear-groups "
        f"sh -c 'mkdir {place} && ln -s /srv/roots {place}/queue'"
    )
    # As a daemon does that was started meanwhile.
    build = f"nix-build --no-out-link --option post-build-hook {hook} -"
    for name in ("by-a-link", "by-a-directory"):
        said = builder.run(build, input=BUILDS.format(name=name, last=0)).stderr
        assert f"is not queued in {place}/queue (it is another user's)" in said
        builder.run(f"rm -r {place}/queue; mkdir {place}/queue")
    assert builder.run(f"ls -A /srv/roots {place}/queue").stdout.split() == [
        "/srv/roots:",
        f"{place}/queue:",
    ]


def test_a_push_that_fails_fails_the_job_only_where_it_is_asked_to(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    for asked, expected in (("false", 0), ("true", 1)):
        runner.step({**runner.secrets, "secret-access-key": "wrong"})
        runner.build(f"refused-{asked}", 2)
        code, said = runner.step({"do": "finish", "fail-on-push-error": asked}, check=False)
        assert code == expected, said
        assert "::warning title=Nix binary cache::not everything was pushed" in said
        assert "push: " in said
    assert builder.run(f"ls -A {JOB}").stdout == ""


def test_what_a_job_could_not_push_is_pushed_by_the_next_one_on_its_machine(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    runner.step({**runner.secrets, "secret-access-key": "wrong"})
    paths = runner.build("a-hole", 2)
    said = runner.step({"do": "finish"})[1]
    assert "push: queue: 2 paths are not pushed; this user's next job here that pushes" in said
    runner.step(runner.secrets)
    # Nix builds nothing twice.
    assert runner.build("a-hole", 2) == paths
    assert runner.step({"do": "finish", "fail-on-push-error": "true"})[0] == 0
    assert runner.published(paths) == set(paths)
    assert builder.run("cat ~/.config/nix/nix-binary-cache-*-unpushed").stdout == ""


def test_a_job_that_only_reads_ends_no_other_and_signs_nothing_with_its_key(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    strangers = builder.make_closure(1, 3000, seed=66, name="strangers")
    said = runner.whole_job(
        "beside-a-reader",
        f"sed -i '/^export RUNNER_TEMP/d' {SCRIPT}; TMPDIR={JOB} bash {SCRIPT}",
        f"(unset NIX_BINARY_CACHE_BUILDER; cd {SOURCE}; python3 -m push.ci_job start; "
        f"python3 -m push.ci_job finish {strangers}; echo the other ended with $?)\n",
    )
    assert said.count(" ended with 0\n") == 3, said
    assert "the other ended with 1\n" in said, said
    assert "another job of this user's goes on, whose hook stands in" in said
    assert runner.published([strangers]) == set()
    assert len([key for key in bucket.objects() if key.endswith(".narinfo")]) == 1
    assert builder.run(f"ls -A {JOB}").stdout == ""


@pytest.mark.parametrize(
    ("happens", "is_over", "said"),
    [
        (f"chmod 0770 {QUEUE}", f"chmod 0700 {QUEUE}", "(others can write to it)"),
        (
            f"cd {JOB}; i=0; while : 2>/dev/null >fill.$i; do i=$((i+1)); done",
            f"rm -f {JOB}/fill.*",
            "(No space left on device)",
        ),
        (f"mv {SOURCE}/push {SOURCE}/away", f"mv {SOURCE}/away {SOURCE}/push", None),
    ],
    ids=["another mode", "a full disk", "no checkout"],
)
def test_what_is_not_queued_for_a_while_fails_the_job_only_where_it_is_asked_to(
    builder: ThrowawayBuilder, bucket: CacheBucket, happens: str, is_over: str, said: str | None
) -> None:
    runner = Runner(builder, bucket)
    builder.run(f"mount -t tmpfs -o nr_inodes=60 none {JOB}")
    try:
        for number, asked in enumerate(("false", "true")):
            runner.step(runner.secrets)
            builder.run(happens)
            name = f"missed-{said is None}-{len(happens)}"
            built = builder.run(
                "nix-build --no-out-link -", input=BUILDS.format(name=name, last=number)
            )
            builder.run(is_over)
            code, told = runner.step({"do": "finish", "fail-on-push-error": asked}, check=False)
            assert code == (said is not None and asked == "true"), told
            assert bool(runner.published([built.stdout.strip()])) == (said is None)
            assert ("not all that was built was queued" in told) == (said is not None)
            assert said is None or said in told
    finally:
        builder.run(f"umount {JOB}")


def test_links_are_pushed_at_the_end_where_nix_does_not_let_the_job_set_a_hook(
    builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    runner = Runner(builder, bucket)
    top = builder.make_closure(3, 3000, seed=5, name="linked")
    builder.run(f"ln -sfn {top} {WORKSPACE}/result")
    runner.step(runner.secrets)
    code, said = runner.step({"do": "finish", "paths": "result\n"})
    assert (code, "pushed 3 paths" in said) == (0, True), said
    assert verify(bucket).problems == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"configuration": "none.json"}, "CONFIGURATION 'none.json' cannot be read; name the file"),
        ({"builder": "laptop"}, "BUILDER 'laptop' is no builder of the stack; write one of ci"),
        ({"signing-key": ""}, "SIGNING_KEY is empty; give the job that secret, or no builder"),
        ({"secret-access-key": ""}, "SECRET_ACCESS_KEY is empty; give the job that secret"),
        ({"signing-key": "a:b"}, "a signing key is not a secret key"),
        ({"session-token": "a b"}, "session-token is malformed; set it to the token that came"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_built(
    builder: ThrowawayBuilder, bucket: CacheBucket, change: Mapping[str, str], said: str
) -> None:
    runner = Runner(builder, bucket)
    code, output = runner.step({**runner.secrets, **change}, check=False)
    assert code == 1
    assert said in output
    assert output.count("\n") == 1
    assert builder.run(f"ls -A {JOB}").stdout == ""
    assert builder.run("test ! -e ~/.config/nix/nix.conf").returncode == 0


# Without the key.


def test_a_builder_signs_what_a_job_without_the_key_copied_to_it(
    builder: ThrowawayBuilder, equipped_builder: ThrowawayBuilder, bucket: CacheBucket
) -> None:
    job = equipped_builder
    page = PAGE.partition("## Without the key\n")[2]
    typed = re.findall(
        r"^([#$]) (.+)", "".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL)), re.MULTILINE
    )
    on_builder = [command for who, command in typed if who == "#"]
    (copy, add_root) = [command for who, command in typed if who == "$"]
    assert on_builder.pop() == "systemctl restart nix-daemon"
    daemon = (
        "[ ! -e /run/daemon ] || { kill $(cat /run/daemon); "
        "while kill -0 $(cat /run/daemon) 2>/dev/null; do sleep 0.05; done; }\n"
        "nohup nix-daemon >/dev/null 2>&1 </dev/null & echo $! >/run/daemon\n"
        "for _ in $(seq 100); do\n"
        "nix --extra-experimental-features nix-command store info --store daemon && exit\n"
        "sleep 0.1; done; exit 1"
    )
    # A machine of several users, on which the job may log in.
    builder.run(
        "useradd --create-home --password '*' --shell /bin/bash ci; groupadd --system nixbld\n"
        f"cp -r /root/.ssh /home/ci/ && chown -R ci: /home/ci/.ssh\n{daemon}"
    )
    job.run("umask 077; mkdir -p ~/.ssh; cat >~/.ssh/ci", input=builder.private_key)
    job.run(
        "cat >~/.ssh/config",
        input=f"Host nixbuilder\nHostName {builder.host}\nPort {builder.port}\n"
        "IdentityFile ~/.ssh/ci\nUserKnownHostsFile ~/.ssh/builder\n",
    )
    known = f"[{builder.host}]:{builder.port} {builder.host_key}\n"
    job.run("cat >~/.ssh/builder", input=known)
    expression = BUILDS.format(name="copied", last=2)
    built = f"""export NIX_CONFIG='experimental-features = nix-command'
mkdir -p {WORKSPACE} && cd {WORKSPACE} && nix-build - >&2 <<'END'
{expression}
END
"""
    refused = job.run(f"{built}{copy}", check=False).stderr
    assert "lacks a signature by a trusted key" in refused
    for command in on_builder:
        builder.run(command)
    builder.run(daemon)
    job.run(f"{built}{copy}\n{add_root}")
    pinned = "/nix/var/nix/profiles/ci/main"
    assert builder.run(f"stat -c %U {pinned}").stdout == "ci\n"
    builder.run("nix-store --gc")
    pushed = bucket.push(builder, pinned, renew="yes")
    assert pushed.counts()["pushed"] == 3
    assert verify(bucket).problems == []
    assert bucket.pull(job, job.run(f"readlink {WORKSPACE}/result").stdout.strip()) == 3


# Short-lived credentials.


@pytest.fixture(scope="module")
def trusted_issuer() -> Iterator[Issuer]:
    with issuer() as running:
        yield running


SHORT_LIVED = "short-lived"
"""The bucket of the jobs that have such credentials."""


@dataclass(frozen=True)
class Federated:
    """A server that trusts the issuer, as the page's commands have it."""

    server: MinioServer
    role: str
    """What the server calls whom its jobs are."""


def command_line(process: Path) -> str:
    """Return the command of a process of `/proc`, which may end meanwhile."""
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


@pytest.fixture(scope="module")
def federated(
    trusted_issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federated]:
    directory = tmp_path_factory.mktemp("federated")
    typed = PAGE.partition("## Short-lived credentials\n")[2].partition("```console\n")[2]
    commands = re.sub(r"^\$ ", "", typed.partition("```")[0], flags=re.MULTILINE)
    at_the_forge = commands.replace("https://git.homelab.local", trusted_issuer.url)
    assert at_the_forge != commands
    printed = {"builders": json.loads(write_policy(SHORT_LIVED, None)), "reader": {}}
    with MinioServer(directory) as server:
        client = MinioClient(server, directory, home=server)
        (process,) = (
            one for one in Path("/proc").glob("[0-9]*") if f"{directory}/" in command_line(one)
        )
        # A person has a terminal, which mc wants where it restarts a server, and types slower than
        # that begins: MinIO replaces its own process, which the kernel then tells other things.
        said = client.shell(
            f"as_before() {{ cmp -s {process}/auxv before; }}\n"
            f"make() {{ printf %s {shlex.quote(json.dumps(printed))}; }}\n"
            f'mc() {{ case "$*" in *restart*) cp {process}/auxv before; command mc --json "$@"; '
            'SECONDS=0; while as_before; do [ "$SECONDS" -lt 60 ]; done; mc ready home ;; '
            '*) command mc "$@" ;; esac; }\n'
            f"{at_the_forge}",
            directory,
        )
        (role,) = re.findall(r"arn:minio:iam:\S+", said)
        yield Federated(server, role)


def on_github(builder: ThrowawayBuilder, server: Federated, trusted: Issuer) -> dict[str, str]:
    """Return the inputs that the page's steps give to the action."""
    text = next(
        one for one in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "id-token" in one
    )
    first, second = yaml.safe_load(text)["steps"]
    variables = {
        "ENDPOINT": server.server.endpoint,
        "ROLE_ARN": server.role,
        "CURL_CA_BUNDLE": "/etc/private-ca.pem",
        "GITHUB_OUTPUT": f"{FORGES}/GITHUB_OUTPUT",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of the runner",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{trusted.url}/token?of=a-job",
    }
    assert first["env"].keys() == {"ENDPOINT", "ROLE_ARN"}
    exports = "".join(f"export {name}={shlex.quote(v)}\n" for name, v in variables.items())
    step = f"{exports}bash --noprofile --norc -eo pipefail <<'STEP'\n{first['run']}\nSTEP\n"
    said = builder.run(step).stdout.splitlines()
    lines = builder.run(f"cat {FORGES}/GITHUB_OUTPUT").stdout.splitlines()
    outputs = {name: value for name, _, value in (line.partition("=") for line in lines)}
    # Nothing is seen that is not masked.
    assert said == [f"::add-mask::{value}" for value in outputs.values()]
    given = {
        name: re.sub(
            r"\$\{\{ steps\.credential\.outputs\.(\w+) \}\}", lambda m: outputs[m[1]], value
        )
        for name, value in second["with"].items()
    }
    return {name: value for name, value in given.items() if "secrets." not in value}


def test_a_job_pushes_with_a_credential_that_its_forges_token_was_exchanged_for(
    builder: ThrowawayBuilder, federated: Federated, trusted_issuer: Issuer
) -> None:
    endpoint = federated.server.endpoint
    bucket = CacheBucket(federated.server, SHORT_LIVED)
    runner = Runner(builder, bucket)
    exchange = PAGE.partition("```sh\n")[2].partition("```")[0]

    def credential(token: str) -> dict[str, str]:
        variables = {"ID_TOKEN": token, "ROLE_ARN": federated.role, "ENDPOINT": endpoint}
        exports = "".join(f"export {name}={shlex.quote(v)}\n" for name, v in variables.items())
        shown = "env | grep ^NIX_BINARY_CACHE_"
        ca = "export CURL_CA_BUNDLE=/etc/private-ca.pem"
        lines = builder.run(f"{ca}\n{exports}{exchange}{shown}").stdout.splitlines()
        pairs = [line.partition("=")[::2] for line in lines]
        return {n.removeprefix("NIX_BINARY_CACHE_").lower().replace("_", "-"): v for n, v in pairs}

    got = credential(trusted_issuer.token("repo:home/infra:ref:refs/heads/main"))
    runner.step({**runner.secrets, **on_github(builder, federated, trusted_issuer)})
    paths = runner.build("short-lived", 4)
    code, said = runner.step({"do": "finish"})
    assert code == 0, said
    assert runner.published(paths) == set(paths)
    assert verify(bucket).problems == []

    # Its rights are a builder's, and without the token it is nobody.
    client = Minio(
        endpoint.partition("//")[2],
        credentials=StaticProvider(
            got["access-key-id"], got["secret-access-key"], got["session-token"]
        ),
        http_client=connections(federated.server),
    )
    with pytest.raises(Exception, match="AccessDenied"):
        client.remove_object(SHORT_LIVED, "nix-cache-info")
    token = got["session-token"]
    for number, (change, said) in enumerate(
        (
            ({"session-token": ""}, "set session-token to the token that came with "),
            ({"session-token": f"{token[:-8]}AAAAAAAA"}, "session-token to those of one short-"),
            ({"secret-access-key": "another"}, "session-token to those of one short-lived"),
            # As MinIO answers what is over, whose access key it has forgotten by then.
            ({"access-key-id": "ABCDEFGHIJKLMNOPQRST"}, "the short-lived credential is over: "),
        )
    ):
        runner.step({**runner.secrets, **got, **change})
        runner.build(f"nobody-{number}", 1)
        finish = {"do": "finish", "fail-on-push-error": "true"}
        assert said in runner.step(finish, check=False)[1]

    refused = credential(trusted_issuer.token("job", audience="another"))
    assert refused == {"access-key-id": "", "secret-access-key": "", "session-token": ""}
