"""A builder to throw away: Debian with a real Nix behind a real SSH server on loopback.

It is an overlay over a cached base tree, in mount and PID namespaces of its own: whatever ends
its first process, nothing stays mounted and nothing stays running. The network is the
machine's, so the builder reaches a server on loopback.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from toolbox import debian_packages, made_closure
from toolbox.base_tree import DEFAULT_SUITE, NAMED, NAMESPACES, base_tree, named_nix, suites
from toolbox.errors import ToolboxError
from toolbox.processes import (
    Process,
    free_port,
    recorded,
    start,
    wait_for_listener,
)

ATTEMPTS = 5
"""How many ports are tried when another process takes one between choosing and binding it."""

# $1 base tree, $2 directory with over, lower, merged and disk, $3 port, $4 what is laid over the
# tree, if anything.
# Overlay cannot lie on every file system (not on another overlay): memory does instead.
# OpenSSH's first choice of a key exchange takes a client 80 ms, for secrets that outlive loopback.
BOOT = """\
set -eu
cd "$2"
mount --bind "$1" lower
[ -z "$4" ] || mount --bind "$4" over
layers=lowerdir=over:lower,upperdir=disk/upper,workdir=disk/work
mkdir -p disk/upper disk/work
if ! mount -t overlay overlay -o "$layers" merged 2>/dev/null; then
    mount -t tmpfs tmpfs disk
    mkdir disk/upper disk/work
    mount -t overlay overlay -o "$layers" merged
fi
mount -t proc proc merged/proc
mount -t tmpfs -o mode=755 tmpfs merged/dev
for device in null zero full random urandom tty; do
    : >"merged/dev/$device"
    mount --bind "/dev/$device" "merged/dev/$device"
done
mkdir merged/dev/pts merged/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts merged/dev/pts
mount -t tmpfs -o mode=1777 tmpfs merged/dev/shm
ln -s pts/ptmx merged/dev/ptmx
ln -s /proc/self/fd merged/dev/fd
mount -t tmpfs -o mode=755 tmpfs merged/run
mkdir merged/run/sshd
cp host_key merged/etc/ssh/ssh_host_ed25519_key
mkdir -m 700 -p merged/root/.ssh
cp client_key.pub merged/root/.ssh/authorized_keys
exec chroot merged /usr/sbin/sshd -D -e -f /dev/null \\
    -o Port="$3" -o ListenAddress=127.0.0.1 \\
    -o HostKey=/etc/ssh/ssh_host_ed25519_key -o PidFile=none \\
    -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no \\
    -o KbdInteractiveAuthentication=no -o UsePAM=no -o UseDNS=no \\
    -o MaxStartups=100 -o MaxSessions=100 -o KexAlgorithms=curve25519-sha256
"""

TRIAL = "mount -t tmpfs tmpfs /mnt"


def available() -> str | None:
    """None where a throwaway builder can run, or why it cannot."""
    if not debian_packages.is_debian():
        return "this machine does not run Debian, whose archive the builder is made from"
    if os.geteuid() != 0:
        return "this user is not root, who alone may mount the builder's disk"
    trial = subprocess.run([*NAMESPACES, "sh", "-c", TRIAL], capture_output=True, check=False)
    if trial.returncode != 0:
        return "this machine (a container?) does not let root make mount and PID namespaces"
    return None


@final
class ThrowawayBuilder:
    """One builder with its disk, keys and log in one directory.

    As a context manager it runs inside the block; afterwards its disk is gone. A detached one
    outlives the process, and a later `ThrowawayBuilder` on the same directory finds it
    (`start` is then without effect).
    """

    def __init__(
        self,
        directory: Path,
        *,
        suite: str | None = None,
        packages: Sequence[str] = (),
        detached: bool = False,
    ) -> None:
        """Take a directory; `suite` is bookworm (Nix 2.8), trixie (2.26) or forky (2.34).

        Without one it is forky, or the Nix that the environment names (`named`).
        `packages` are Debian's, besides those that every builder has.
        """
        self.directory = directory.resolve()
        self.suite = suite or suites()[-1]
        self._packages = tuple(packages)
        self.host = "127.0.0.1"
        self.user = "root"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.host_key = _ed25519_key(self.directory / "host_key")
        _ed25519_key(self.directory / "client_key")
        self._detached = detached
        self._popen: subprocess.Popen[bytes] | None = None
        self._record = self.directory / "builder.json"
        self._process = recorded(self._record)

    @property
    def running(self) -> bool:
        """Whether the builder's process is alive."""
        return self._process is not None and self._process.alive()

    @property
    def port(self) -> int:
        """The SSH server's port on loopback.

        Raises:
            ToolboxError: the builder does not run.
        """
        return self._running().port

    @property
    def private_key_file(self) -> Path:
        """The file of the private key, in OpenSSH's format, that `user` logs in with."""
        return self.directory / "client_key"

    @property
    def private_key(self) -> str:
        """The private key itself."""
        return self.private_key_file.read_text()

    @property
    def command(self) -> str:
        """The shell command that runs what is appended to it on the builder."""
        return shlex.join(self._ssh())

    @property
    def log(self) -> Path:
        """What the builder's SSH server wrote."""
        return self.directory / "builder.log"

    @property
    def root(self) -> Path:
        """The builder's root directory as seen from outside; only while it runs."""
        pid = self._running().pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return Path(f"/proc/{children[0]}/root")

    def __enter__(self) -> ThrowawayBuilder:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the builder with a fresh disk and wait until its SSH server lets `user` in.

        Raises:
            ToolboxError: it does not come up.
        """
        if self.running:
            return
        debian_packages.install()
        named = named_nix() if self.suite == NAMED else None
        base = base_tree(DEFAULT_SUITE if named else self.suite, self._packages)
        for _ in range(ATTEMPTS):
            self._discard_disk()
            for name in ("over", "lower", "merged", "disk"):
                (self.directory / name).mkdir()
            if self._start_on(base, named, free_port()):
                return
        raise ToolboxError(f"the throwaway builder did not start; see {self.log}")

    def stop(self) -> None:
        """Kill the builder and remove its disk; without effect when it does not run."""
        if self._process is not None:
            self._process.kill()
        if self._popen is not None:
            self._popen.wait()
        self._popen = self._process = None
        self._record.unlink(missing_ok=True)
        self._discard_disk()

    def run(
        self, script: str, *, input: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `script` in bash on the builder, over SSH, with `input` on standard input.

        Raises:
            ToolboxError: `check` is set and the script fails; the message has what it wrote.
        """
        result = subprocess.run(
            [*self._ssh(), script],
            input=input,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if check and result.returncode != 0:
            raise ToolboxError(
                f"the builder's script failed with exit code {result.returncode}: {script[:200]}\n"
                f"{result.stdout[-2000:]}{result.stderr[-2000:]}"
            )
        return result

    def terminal(self, script: str) -> None:
        """Run `script` on the builder on this terminal, to its end."""
        subprocess.run([*self._ssh("-t"), script], check=False)

    def trust(self, ca_file: Path) -> None:
        """Make the builder's TLS clients, Nix among them, trust the authority in `ca_file`."""
        self.run(
            "cat >/usr/local/share/ca-certificates/private.crt && update-ca-certificates",
            input=ca_file.read_text(),
        )

    def make_closure(self, paths: int, total_bytes: int, seed: int, name: str) -> str:
        """Build a closure of `paths` paths and about `total_bytes`; return its top path.

        The same arguments give the same store paths and contents on every builder. The link
        `/nix/var/nix/gcroots/NAME` points to the top path.
        """
        planned = made_closure.plan(paths, total_bytes, seed)
        source = f"/tmp/{name}"
        outside = self.root / source[1:]
        outside.mkdir(parents=True, exist_ok=True)
        (outside / "generate.pl").write_text(made_closure.GENERATOR)
        (outside / "plan").write_text(made_closure.plan_text(planned))
        (outside / "default.nix").write_text(made_closure.expression(name, seed, planned))
        link = f"/nix/var/nix/gcroots/{name}"
        self.run(
            f"ln -sfn $(nix-build --no-out-link {source} -A {made_closure.TOP}) {link} && "
            f"rm -r {source}"
        )
        return str((self.root / link[1:]).readlink())

    def _start_on(self, base: Path, named: Path | None, port: int) -> bool:
        arguments = [str(base), str(self.directory), str(port), str(named or "")]
        popen, process = start(
            [*NAMESPACES, "sh", "-c", BOOT, "builder", *arguments],
            log=self.log,
            port=port,
            detached=self._detached,
        )
        self._popen, self._process = popen, process
        try:
            up = wait_for_listener(
                popen,
                lambda: self.run("true", check=False).returncode == 0,
                self.log,
                "the throwaway builder",
            )
        except BaseException:
            self.stop()
            raise
        if up:
            process.write(self._record)
        return up

    def _ssh(self, *more: str) -> Sequence[str]:
        known = self.directory / "known_hosts"
        line = f"[{self.host}]:{self.port} {self.host_key}\n"
        # Another thread's ssh may be reading it.
        if not known.exists() or known.read_text() != line:
            known.write_text(line)
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "IdentityFile": self.private_key_file,
            "LogLevel": "ERROR",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": known,
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        target = f"{self.user}@{self.host}"
        return ["ssh", "-F", "none", *flags, *more, "-p", str(self.port), target]

    def _running(self) -> Process:
        if self._process is None or not self._process.alive():
            raise ToolboxError("the throwaway builder does not run; start it first")
        return self._process

    def _discard_disk(self) -> None:
        for name in ("disk", "over", "lower", "merged"):
            if (self.directory / name).exists():
                shutil.rmtree(self.directory / name)


def _ed25519_key(path: Path) -> str:
    """Return the public line of the key in `path`, which is made on the first call."""
    public_path = path.with_name(f"{path.name}.pub")
    if not public_path.exists():
        key = Ed25519PrivateKey.generate()
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        public_path.write_bytes(public + b"\n")
    return public_path.read_text().strip()
