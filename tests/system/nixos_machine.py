"""Machines that this project's NixOS modules set up, as far as Debian with Nix can be one."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from minio import Minio

from components.binary_cache import anonymous_policy, nix_cache_info
from formats.signing import SecretKey
from tests.system.stack import CHECKOUT
from tests.system.test_cache import s3
from toolbox.minio_server import MinioServer
from toolbox.processes import wait_until
from toolbox.throwaway_builder import ThrowawayBuilder

BUCKET = "nix-cache"
USER = "nix-binary-cache"
QUEUE = f"/nix/var/nix/gcroots/{USER}"
LINK = "/srv/top"
SOURCE = "/srv/nixcache"
EVALUATOR = CHECKOUT / "tests" / "system" / "nixos" / "evaluate.nix"


class Machine:
    """A machine with Nix and this project's Nix files."""

    def __init__(
        self,
        builder: ThrowawayBuilder,
        nix: Mapping[str, object] | None = None,
        beside: str = "{ lib }: { }",
    ) -> None:
        """Take a builder.

        Args:
            builder: where Nix runs.
            nix: what modules are told that the system has of that name.
            beside: another module of the machine, in Nix, as `nixos/evaluate.nix` takes it.
        """
        self.builder = builder
        self._system_nix = nix or {}
        self._beside = beside
        source = builder.root / SOURCE[1:]
        shutil.copytree(CHECKOUT / "nix", source / "nix", dirs_exist_ok=True)
        for room in ("push", "formats"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / room, source / room, ignore=ignored, dirs_exist_ok=True)
        shutil.copy(CHECKOUT / "flake.nix", source)
        shutil.copy(EVALUATOR, source)

    def instantiate(self, what: str, settings: Mapping[str, object], attribute: str = "") -> Any:
        """Evaluate a module with options set, or the flake; raise ToolboxError with Nix's error."""
        command = ["nix-instantiate", "--eval", "--read-write-mode", "--strict", "--json"]
        return json.loads(self._nix(command, what, settings, attribute))

    def build(self, what: str, settings: Mapping[str, object], attribute: str) -> str:
        """Build what an attribute of a module's configuration is made by; return its path."""
        command = ["nix-build", "--no-out-link"]
        return self._nix(command, what, settings, attribute).strip()

    def _nix(
        self, command: list[str], what: str, settings: Mapping[str, object], attribute: str
    ) -> str:
        command += [f"{SOURCE}/{EVALUATOR.name}", "--arg", "source", SOURCE]
        command += ["--argstr", "what", what, "--argstr", "settings", json.dumps(settings)]
        command += ["-A", attribute] if attribute else []
        command += ["--argstr", "nix", json.dumps(self._system_nix)]
        command += ["--arg", "beside", self._beside]
        return self.builder.run(shlex.join(command)).stdout

    def module(self, what: str, **settings: object) -> Any:
        """Return the configuration that an enabled module adds."""
        settings = {"configurationFile": f"{SOURCE}/nix/example-cache.json", **settings}
        return self.instantiate(what, {"enable": True, **settings})

    def write(self, path: str, text: str, owner: str = "") -> None:
        """Write a file on the machine, for everyone or for its owner alone."""
        mine = f"chown {owner} {path} && chmod 400 {path}" if owner else "true"
        script = f"umask 022; mkdir -p $(dirname {path}) && cat >{path} && {mine}"
        self.builder.run(script, input=text)


def cache_json(**changes: object) -> str:
    """Return the example of the stack's output with changes."""
    example = json.loads((CHECKOUT / "nix" / "example-cache.json").read_text())
    return json.dumps({**example, **changes})


def nix_conf_lines(settings: Mapping[str, object]) -> str:
    """Return the lines of nix.conf that NixOS and nix-darwin make of `nix.settings`.

    Source: nixpkgs, `nixos/modules/config/nix.nix`; nix-darwin, `modules/nix/default.nix`, since
    25.05.
    """
    extra = {name: value for name, value in settings.items() if name.startswith("extra-")}
    others = {name: value for name, value in settings.items() if name not in extra}
    return _alphabetically(others) + _alphabetically(extra)


def home_manager_conf(nix: Mapping[str, Any]) -> str:
    """Return what home-manager makes of `nix`, a user's nix.conf.

    Source: home-manager, `modules/misc/nix/default.nix` of 2026.
    """
    return f"{_alphabetically(nix['settings'])}{nix.get('extraOptions', '')}\n"


def _alphabetically(settings: Mapping[str, object]) -> str:
    return "".join(
        f"{name} = {' '.join(value) if isinstance(value, list) else json.dumps(value)}\n"
        for name, value in sorted(settings.items())
    )


class PushingMachine(Machine):
    """A machine that the builder module sets up to push to a real server."""

    def __init__(self, builder: ThrowawayBuilder, server: MinioServer, key: SecretKey) -> None:
        super().__init__(builder)
        self.write("/srv/cache.json", stack_output(server, key))
        # What systemd's users, tmpfiles and credentials are on NixOS.
        builder.run(
            f"echo {USER}:x:900:900::/:/bin/sh >>/etc/passwd; echo {USER}:x:900: >>/etc/group\n"
            f"install -d -o {USER} -g {USER} {QUEUE} /var/cache/{USER}"
        )
        self.set_secret(server.root_password)
        self.write("/run/credentials/signing-key", key.to_nix(), owner=USER)
        builder.run("setsid nix-daemon >/var/log/nix-daemon.log 2>&1 </dev/null &")
        socket = "test -S /nix/var/nix/daemon-socket/socket"
        assert wait_until(lambda: builder.run(socket, check=False).returncode == 0, 20)
        self.settings = {
            "enable": True,
            "configurationFile": "/srv/cache.json",
            "paths": [LINK],
            "postBuildHook": True,
        }
        self.package = self.build("builder", self.settings, "environment.systemPackages")
        self.services = self.instantiate("builder", self.settings, "systemd.services")
        self.hook = self.instantiate("builder", self.settings, "nix.settings.post-build-hook")

    def set_secret(self, secret: str) -> None:
        """Change the S3 user's secret that the services are given."""
        self.write("/run/credentials/secret-access-key", secret, owner=USER)

    def start(self, unit: str) -> subprocess.CompletedProcess[str]:
        """Run a service's program as its unit says: user, environment, and no privileges."""
        service = self.services[unit]
        user = service["serviceConfig"]["User"]
        specifiers = {"%C": "/var/cache", "%t": "/run", "%N": unit}
        environment = {"CREDENTIALS_DIRECTORY": "/run/credentials", "PATH": "/nowhere"}
        for name, value in service["environment"].items():
            environment[name] = re.sub("%.", lambda found: specifiers[found[0]], value)
        command = [
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
            *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
            *service["serviceConfig"]["ExecStart"].split(),
        ]
        self.builder.run(f"install -d -m 700 -o {user} {environment['XDG_RUNTIME_DIR']}")
        return self.builder.run(shlex.join(command), check=False)

    def build_with_hook(self, name: str) -> str:
        """Build a path that is new, with the post-build hook, and return it."""
        expression = (
            f'derivation {{ name = "{name}"; system = builtins.currentSystem; '
            f'builder = "/bin/sh"; args = [ "-c" "echo {name} > $out" ]; }}'
        )
        command = ["nix-build", "--no-out-link", "--option", "post-build-hook", self.hook]
        return self.builder.run(shlex.join([*command, "--expr", expression])).stdout.strip()

    def queue(self) -> list[str]:
        """Return the store paths that wait to be pushed."""
        names = self.builder.run(f"ls -A {QUEUE}").stdout.split()
        return [f"/nix/store/{name}" for name in names]


def stack_output(server: MinioServer, key: SecretKey) -> str:
    """Return what a stack on a server would put out."""
    push = json.loads(cache_json())["push"]
    trusted = [str(key.public_key)]
    return cache_json(
        substituter=f"{server.endpoint}/{BUCKET}",
        publicKeys=trusted,
        caCertificate=server.ca_file.read_text(),
        push={**push, "endpoint": server.endpoint, "upstream-key": [], "trusted-key": trusted},
        builders={"nixbuilder": {"accessKeyId": server.root_user}},
    )


def make_cache(minio: MinioServer) -> Minio:
    """Make a bucket that is a cache on the server; return a client of the server."""
    client = s3(minio, minio.root_user, minio.root_password)
    client.make_bucket(BUCKET)
    client.set_bucket_policy(BUCKET, anonymous_policy(BUCKET, download=True, listing=False))
    info = nix_cache_info(True, 40).encode()
    client.put_object(BUCKET, "nix-cache-info", io.BytesIO(info), len(info))
    return client


def narinfos(cache: Minio, store_path: str) -> list[str]:
    """Return the names of the narinfos that the cache has of a store path: one or none."""
    prefix = store_path.removeprefix("/nix/store/").partition("-")[0]
    return [str(entry.object_name) for entry in cache.list_objects(BUCKET, prefix)]
