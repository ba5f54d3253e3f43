"""The Nix files under a real Nix, and what their units run against a real server.

No NixOS boots here. The modules are evaluated with `nixos/evaluate.nix` in the place of nixpkgs;
the units' programs then run as the units say, as their user and without privileges, and
systemd-analyze reads the units.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from minio import Minio

from components.push_program import archive
from formats.nix_conf import PATIENCE
from formats.signing import SecretKey
from tests.system.booted_systemd import unit_text
from tests.system.nixos_machine import (
    BUCKET,
    LINK,
    QUEUE,
    SOURCE,
    USER,
    Machine,
    PushingMachine,
    cache_json,
    home_manager_conf,
    make_cache,
    narinfos,
    nix_conf_lines,
)
from tests.system.stack import CHECKOUT
from toolbox.errors import ToolboxError
from toolbox.minio_server import MinioServer
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def machine(builder: ThrowawayBuilder) -> Machine:
    return Machine(builder)


def test_every_nix_file_is_one(machine: Machine) -> None:
    files = sorted(
        str(path.relative_to(CHECKOUT))
        for path in [CHECKOUT / "flake.nix", *(CHECKOUT / "nix").glob("*.nix")]
    )
    assert len(files) >= 5
    for file in files:
        machine.builder.run(f"nix-instantiate --parse {SOURCE}/{file}")


def test_the_flake_has_modules_a_package_a_shell_and_checks(machine: Machine) -> None:
    modules = machine.instantiate("flake", {}, "nixosModules")
    assert {name: path.rpartition("-")[2] for name, path in modules.items()} == {
        "client": "client.nix",
        "builder": "builder.nix",
    }
    # As the clients' page imports them.
    for of_system, file in (("darwinModules", "-darwin.nix"), ("homeModules", "-home-manager.nix")):
        assert machine.instantiate("flake", {}, f"{of_system}.client").endswith(file)
    for system in ("x86_64-linux", "aarch64-linux"):
        shell = machine.instantiate("flake", {}, f"devShells.{system}.default.packages")
        assert ["pulumi-python"] in shell
        checks = machine.instantiate("flake", {}, f"checks.{system}")
        assert sorted(checks) == ["modules", "push"]
    packages = machine.instantiate("flake", {}, "packages")
    assert sorted(packages) == sorted(
        f"{machine}-{system}" for machine in ("x86_64", "aarch64") for system in ("linux", "darwin")
    )
    for of_system in packages.values():
        assert of_system["default"].endswith("-nix-binary-cache-push")


def nix_value(value: object) -> str:
    """Return a JSON value as Nix writes it."""
    if isinstance(value, list):
        return " ".join(["[", *map(nix_value, value), "]"])
    if isinstance(value, dict):
        return " ".join(["{", *(f"{name} = {nix_value(value[name])};" for name in value), "}"])
    return json.dumps(value)


@pytest.mark.parametrize("module", ["client", "builder"])
def test_the_documented_options_are_the_modules(machine: Machine, module: str) -> None:
    page = (CHECKOUT / "docs" / "nixos.md").read_text()
    table = page.partition(f"| option of `{module}` |")[2].partition("\n\n")[0]
    expected = []
    for name, option in machine.instantiate("options", {}, module).items():
        default = "required"
        if "defaultText" in option:
            default = f"`{option['defaultText']}`"
        elif "default" in option:
            default = f"`{nix_value(option['default'])}`"
        expected.append(f"| `{name}` | {default} | {' '.join(option['description'].split())} |")
    assert sorted(table.splitlines()[2:]) == sorted(expected)


def test_a_client_adds_substituter_and_keys_to_what_it_has(machine: Machine) -> None:
    added = machine.module("client")
    example = json.loads((CHECKOUT / "nix" / "example-cache.json").read_text())
    assert added["nix"]["settings"] == {
        "extra-substituters": [example["substituter"]],
        "extra-trusted-public-keys": example["publicKeys"],
        **PATIENCE,
    }
    assert added["security"]["pki"]["certificates"] == []
    assert added["systemd"] == {}


def test_a_client_waits_for_this_cache_alone_where_its_nix_can(
    builder: ThrowawayBuilder,
) -> None:
    newer = Machine(builder, {"package": {"version": "2.35.2"}})
    settings = newer.module("client")["nix"]["settings"]
    assert settings["extra-substituters"] == ["https://s3.homelab.local/nix-cache?retry-attempts=3"]
    assert settings["connect-timeout"] == PATIENCE["connect-timeout"]
    assert "download-attempts" not in settings
    for machine in (Machine(builder), newer):
        settings = machine.module(
            "client", fallback=False, connectTimeout=None, downloadAttempts=None
        )["nix"]["settings"]
        assert sorted(settings) == ["extra-substituters", "extra-trusted-public-keys"]
        assert settings["extra-substituters"] == ["https://s3.homelab.local/nix-cache"]


@pytest.mark.parametrize(
    "package",
    [
        {"pname": "lix", "version": "2.93.3"},
        {"pname": "determinate-nix", "version": "3.13.2"},
        # Whatever calls itself Nix and counts as these do.
        {"version": "2.94.0"},
        {"version": "3.0.0"},
        # home-manager's may be null.
        None,
    ],
)
def test_a_client_says_to_no_other_nix_what_it_may_not_know(
    builder: ThrowawayBuilder, package: Mapping[str, str] | None
) -> None:
    settings = Machine(builder, {"package": package}).module("client")["nix"]["settings"]
    assert settings["extra-substituters"] == ["https://s3.homelab.local/nix-cache"]
    assert settings["download-attempts"] == PATIENCE["download-attempts"]


def test_a_mac_sets_what_nixos_sets(machine: Machine) -> None:
    added = machine.module("darwin", priority=30)
    assert added["nix"] == machine.module("client", priority=30)["nix"]
    assert "systemd" not in added


def test_what_home_manager_writes_is_what_nixos_writes(machine: Machine) -> None:
    added = machine.module("home-manager", priority=30)
    nixos = machine.module("client", priority=30)["nix"]["settings"]
    assert home_manager_conf(added["nix"]) == nix_conf_lines(nixos)
    assert "systemd" not in added


CLIENTS = ("client", "darwin", "home-manager")
OWN_KEY = "own.example-1:MNdV1gE3P3pEpuQMOJC+Jdm7ccXyu3/6Pxcx3DbYYRA="
OWN_LISTS = f"""
{{ lib }}: {{
  nix.settings.substituters = [ "https://own.example" ];
  nix.settings.trusted-public-keys = [ "{OWN_KEY}" ];
  nix.extraOptions = "keep-outputs = true";
}}
"""


@pytest.mark.parametrize("module", CLIENTS)
def test_nix_has_the_cache_beside_the_lists_that_somebody_has_set(
    builder: ThrowawayBuilder, module: str
) -> None:
    machine = Machine(builder, beside=OWN_LISTS)
    nix = machine.module(module)["nix"]
    if module == "home-manager":
        conf = home_manager_conf(nix)
    else:
        conf = f"{nix_conf_lines(nix['settings'])}{nix['extraOptions']}\n"
    machine.write("/srv/conf/nix.conf", conf)
    show = "NIX_CONF_DIR=/srv/conf nix --extra-experimental-features nix-command show-config"
    lines = machine.builder.run(show).stdout.splitlines()
    shown = {name: value for name, _, value in (line.partition(" = ") for line in lines)}
    example = json.loads((CHECKOUT / "nix" / "example-cache.json").read_text())
    urls = [url.removesuffix("/") for url in shown["substituters"].split()]
    assert urls == ["https://own.example", example["substituter"]]
    assert sorted(shown["trusted-public-keys"].split()) == sorted([OWN_KEY, *example["publicKeys"]])
    assert shown["keep-outputs"] == "true"


@pytest.mark.parametrize("module", CLIENTS)
@pytest.mark.parametrize("theirs", ["lib.mkDefault", "", "lib.mkForce"])
def test_a_value_that_somebody_else_has_set_stays(
    builder: ThrowawayBuilder, module: str, theirs: str
) -> None:
    others = {"connect-timeout": 5, "fallback": False, "download-attempts": 7}
    beside = "".join(
        f"nix.settings.{name} = {theirs} {json.dumps(value)}; " for name, value in others.items()
    )
    machine = Machine(builder, beside=f"{{ lib }}: {{ {beside}}}")
    settings = machine.module(module)["nix"]["settings"]
    assert {name: settings[name] for name in PATIENCE} == others
    if theirs == "lib.mkDefault":
        # What is set here by name was meant for this machine, a default for any.
        by_name = {"connectTimeout": 9, "fallback": True, "downloadAttempts": 2}
        settings = machine.module(module, **by_name)["nix"]["settings"]
        assert [settings[name] for name in others] == list(by_name.values())


BY_HAND = (
    "leave the module out, and let the file that the machine's Nix reads, /etc/nix/nix.custom.conf "
    "with Determinate Nix, include what `pulumi stack output nixConf` prints."
)
NO_HOOK = "leave the hook out, and name in paths what is to be pushed."


@pytest.mark.parametrize(
    ("module", "option", "remedy"),
    [
        ("client", "client.enable", BY_HAND),
        ("darwin", "client.enable", BY_HAND),
        ("home-manager", "client.enable", BY_HAND),
        ("builder", "builder.postBuildHook", NO_HOOK),
    ],
)
def test_where_the_system_leaves_nix_alone_what_would_set_something_is_refused(
    builder: ThrowawayBuilder, module: str, option: str, remedy: str
) -> None:
    hook = {"postBuildHook": True} if module == "builder" else {}
    with pytest.raises(ToolboxError) as refused:
        Machine(builder, {"enable": False}).module(module, **hook)
    assert (
        f"services.nix-binary-cache.{option} is true, but nix.enable is false, "
        f"so that no setting reaches Nix; {remedy}"
    ) in str(refused.value)
    assert Machine(builder, {"enable": True}).module(module, **hook)["nix"]


def test_a_builder_that_only_pushes_sets_nothing_of_nix(builder: ThrowawayBuilder) -> None:
    assert "nix" not in Machine(builder, {"enable": False}).module("builder")


def test_a_mac_trusts_the_private_authority_and_its_daemon_has_the_credential(
    machine: Machine,
) -> None:
    private = {**json.loads(PRIVATE), "caCertificate": "PEM"}
    machine.write("/srv/private-ca.json", json.dumps(private))
    added = machine.module(
        "darwin", configurationFile="/srv/private-ca.json", credentialsFile="/run/secrets/reader"
    )
    assert added["security"]["pki"]["certificates"] == ["PEM"]
    daemon = added["launchd"]["daemons"]["nix-daemon"]["serviceConfig"]
    assert daemon["EnvironmentVariables"] == {"AWS_SHARED_CREDENTIALS_FILE": "/run/secrets/reader"}


def test_a_client_trusts_the_private_authority(machine: Machine) -> None:
    machine.write("/srv/ca.json", cache_json(caCertificate="PEM"))
    added = machine.module("client", configurationFile="/srv/ca.json")
    assert added["security"]["pki"]["certificates"] == ["PEM"]


def test_a_clients_priority_is_part_of_the_url_of_either_kind(machine: Machine) -> None:
    machine.write("/srv/private.json", PRIVATE)
    public = machine.module("client", priority=30)
    private = machine.module(
        "client", priority=30, configurationFile="/srv/private.json", credentialsFile="/run/c"
    )
    assert public["nix"]["settings"]["extra-substituters"] == [
        "https://s3.homelab.local/nix-cache?priority=30"
    ]
    assert private["nix"]["settings"]["extra-substituters"] == [
        "s3://nix-cache?endpoint=https://s3&profile=reader&priority=30"
    ]


def test_a_client_of_a_private_cache_gives_the_credential_to_the_daemon_and_to_root(
    machine: Machine,
) -> None:
    machine.write("/srv/private.json", PRIVATE)
    systemd = machine.module(
        "client", configurationFile="/srv/private.json", credentialsFile="/run/secrets/reader"
    )["systemd"]
    assert systemd["services"]["nix-daemon"]["environment"] == {
        "AWS_SHARED_CREDENTIALS_FILE": "/run/secrets/reader"
    }
    assert "L /root/.aws/credentials - - - - /run/secrets/reader" in systemd["tmpfiles"]["rules"]


UNSEEN = ", and the units see nothing in /home, /root, /run/user, /tmp, /var/tmp; "
NO_LINK = f"{UNSEEN}name a link below /nix/var/nix/gcroots or /nix/var/nix/profiles."


@pytest.mark.parametrize(
    ("what", "settings", "message"),
    [
        ("client", {"configurationFile": "/srv/private.json"}, "credentialsFile is missing"),
        ("client", {"credentialsFile": "/nix/store/a"}, "credentialsFile is in the Nix store"),
        ("client", {"connectTimeout": 0}, "connectTimeout is of another type"),
        ("darwin", {"configurationFile": "/srv/private.json"}, "credentialsFile is missing"),
        (
            "home-manager",
            {"configurationFile": "/srv/private.json"},
            "a user's configuration cannot give it a credential; use the module of the machine",
        ),
        ("client", {"priority": "first"}, "priority is of another type"),
        ("builder", {"name": "laptop"}, 'name is "laptop": the stack has no builder of that name'),
        ("builder", {"name": "laptop"}, "write one of nixbuilder."),
        ("builder", {"signingKeyFile": "/nix/store/a"}, "signingKeyFile is in the Nix store"),
        (
            "builder",
            {"settings": {"signing-key": "k:x"}},
            "settings.signing-key would be in the Ni",
        ),
        *(
            (
                "builder",
                {"settings": {name: "/nix/store/a"}},
                f"settings.{name} is in the Nix store, which everyone can read; name a file "
                "outside it, as a text.",
            )
            for name in ("signing-key-file", "secret-access-key-file", "session-token-file")
        ),
        ("builder", {"package": "push"}, "package is of another type"),
        (
            "builder",
            {"paths": ["/run/current-system", "/home/a/b"]},
            f'.paths has "/home/a/b"{NO_LINK}',
        ),
        ("builder", {"paths": ["/root/result"]}, f'.paths has "/root/result"{NO_LINK}'),
        ("builder", {"paths": ["/run/user/1000/r"]}, f'.paths has "/run/user/1000/r"{NO_LINK}'),
        ("builder", {"paths": ["/var/tmp/r"]}, f'.paths has "/var/tmp/r"{NO_LINK}'),
        ("builder", {"settings": {"path": "/tmp/r"}}, f'.settings.path has "/tmp/r"{NO_LINK}'),
        (
            "builder",
            {"configurationFile": "/srv/hidden.json"},
            f'The pins that the stack has for nixbuilder have "/tmp/pin"{NO_LINK}',
        ),
        (
            "builder",
            {"settings": {"ca-certificate-file": "/home/a/ca.pem"}},
            f'.settings.ca-certificate-file is "/home/a/ca.pem"{UNSEEN}name a file elsewhere.',
        ),
    ],
)
def test_an_option_that_cannot_work_is_refused(
    machine: Machine, what: str, settings: Mapping[str, object], message: str
) -> None:
    machine.write("/srv/private.json", PRIVATE)
    pinned = {"nixbuilder": {"accessKeyId": "nixbuilder", "pins": ["/srv/pin", "/tmp/pin"]}}
    machine.write("/srv/hidden.json", cache_json(builders=pinned))
    with pytest.raises(ToolboxError, match="error:") as refused:
        machine.module(what, **settings)
    assert message in str(refused.value)


def test_every_push_of_a_builder_renews_the_pins_that_the_stack_has_for_it(
    machine: Machine,
) -> None:
    pinned = {"nixbuilder": {"accessKeyId": "nixbuilder", "pins": ["/srv/pin"]}}
    machine.write("/srv/pins.json", cache_json(builders=pinned))
    settings = {"enable": True, "configurationFile": "/srv/pins.json", "paths": ["/srv/system"]}
    services = machine.instantiate("builder", settings, "systemd.services")
    file = services["nix-binary-cache-push"]["serviceConfig"]["ExecStart"].split()[-1]
    lines = machine.builder.run(f"grep ^path= {file}").stdout.splitlines()
    assert lines == ["path=/srv/system", "path=/srv/pin"]


def test_a_place_whose_name_only_begins_like_a_hidden_one_is_pushed(machine: Machine) -> None:
    paths = ["/homes/a", "/tmpfiles", "/var/lib/root", "/nix/var/nix/profiles/per-user/root/tmp"]
    assert machine.module("builder", paths=paths)


@pytest.mark.parametrize("nothing", [{"paths": []}, {"settings": {"path": []}}])
def test_where_there_is_nothing_to_push_only_the_queue_is(
    machine: Machine, nothing: Mapping[str, object]
) -> None:
    systemd = machine.module("builder", postBuildHook=True, **nothing)["systemd"]
    queue = ["nix-binary-cache-push-queue"]
    assert [list(systemd[kind]) for kind in ("services", "paths")] == [queue, queue]
    assert "timers" not in systemd
    assert "systemd" not in machine.module("builder", **nothing)
    pinned = {"nixbuilder": {"accessKeyId": "nixbuilder", "pins": ["/srv/pin"]}}
    machine.write("/srv/only-pins.json", cache_json(builders=pinned))
    pins = machine.module("builder", configurationFile="/srv/only-pins.json", paths=[])["systemd"]
    assert "nix-binary-cache-push" in pins["services"]
    assert "nix-binary-cache-push" in pins["timers"]


# In the place of one that this machine does not have.
PROGRAM = {"service": {"ExecStart": "/bin/true"}, "path": {}, "timer": {}}


def test_systemd_understands_the_units_and_finds_little_to_attack(
    machine: Machine, tmp_path: Path
) -> None:
    systemd = machine.module("builder", postBuildHook=True)["systemd"]
    units = []
    for kind in ("service", "path", "timer"):
        for name, unit in systemd[f"{kind}s"].items():
            units.append(tmp_path / f"{name}.{kind}")
            units[-1].write_text(unit_text(kind, unit, **PROGRAM[kind]))
    assert len(units) == 7
    verify = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    # Two settings are of systemd 254; NixOS has had a later one since 24.05.
    complaints = [
        line
        for line in verified.stderr.splitlines()
        if "RestartSteps" not in line and "RestartMaxDelaySec" not in line
    ]
    assert (verified.returncode, complaints) == (0, [])
    for unit in units:
        if unit.suffix == ".service":
            security = ["systemd-analyze", "security", "--offline=true", "--threshold=20"]
            subprocess.run([*security, str(unit)], check=True, capture_output=True)


PRIVATE = cache_json(
    access="private", substituter="s3://nix-cache?endpoint=https://s3&profile=reader"
)


@pytest.fixture(scope="module")
def cache(minio: MinioServer) -> Minio:
    """Make a bucket that is a cache on the server; return a client of the server."""
    return make_cache(minio)


@pytest.fixture(scope="module")
def pushing(builder: ThrowawayBuilder, minio: MinioServer, cache: Minio) -> PushingMachine:
    assert cache.bucket_exists(BUCKET)
    return PushingMachine(builder, minio, SecretKey.generate("cache.test-1"))


def test_the_package_is_what_travels_compiled_and_runs_by_itself(pushing: PushingMachine) -> None:
    program = f"{pushing.package}/lib/nix-binary-cache-push"
    files = set(pushing.builder.run(f"cd {program} && find . -name '*.py*'").stdout.split())
    with zipfile.ZipFile(io.BytesIO(archive())) as travels:
        # What fetches it is for builders that are sent it.
        expected = {f"./{name}" for name in travels.namelist() if name != "bootstrap"}
    assert {file for file in files if file.endswith(".py")} == expected
    compiled = {re.sub(r"__pycache__/(.+)\.cpython-\d+\.pyc", r"\1.py", file) for file in files}
    assert compiled == expected
    assert len(files) == 2 * len(expected)
    told = pushing.builder.run(
        "mkdir -p /srv/evil && echo 'raise SystemExit(7)' >/srv/evil/json.py && cd /srv/evil\n"
        f"PYTHONPATH=/srv/evil PATH= {pushing.package}/bin/nix-binary-cache-push --help"
    )
    assert told.stdout.startswith("Usage: nix-binary-cache-push")


def test_what_the_builders_service_pushed_a_client_of_the_module_takes(
    pushing: PushingMachine, second_builder: ThrowawayBuilder
) -> None:
    top = pushing.builder.make_closure(12, 200_000, seed=9, name="service")
    pushing.builder.run(f"ln -sfn {top} {LINK}")
    pushed = pushing.start("nix-binary-cache-push")
    assert pushed.returncode == 0, pushed.stderr
    assert re.fullmatch(r"pushed 12 paths .*\n", pushed.stdout)

    client = Machine(second_builder)
    client.write("/srv/cache.json", pushing.builder.run("cat /srv/cache.json").stdout)
    added = client.module("client", configurationFile="/srv/cache.json")
    settings = added["nix"]["settings"]
    client.builder.run("cat >>/etc/nix/nix.conf", input=nix_conf_lines(settings))
    (authority,) = added["security"]["pki"]["certificates"]
    client.write("/usr/local/share/ca-certificates/nixos.crt", authority)
    client.builder.run(f"update-ca-certificates && nix-store --realise {top}")


def test_the_services_second_run_has_nothing_to_do(pushing: PushingMachine) -> None:
    pushing.builder.run(f"ln -sfn {pushing.build_with_hook('again')} {LINK}")
    assert pushing.start("nix-binary-cache-push").stdout.startswith("pushed 1 paths")
    assert pushing.start("nix-binary-cache-push").stdout.startswith("pushed 0 paths")


def test_a_build_leaves_a_link_and_the_queues_service_pushes_it(
    pushing: PushingMachine, cache: Minio
) -> None:
    built = pushing.build_with_hook("queued")
    assert built in pushing.queue()
    assert pushing.builder.run(f"nix-store --query --roots {built}").stdout
    assert not narinfos(cache, built)
    done = pushing.start("nix-binary-cache-push-queue")
    assert done.returncode == 0, done.stderr
    assert len(narinfos(cache, built)) == 1
    assert pushing.queue() == []
    assert pushing.start("nix-binary-cache-push-queue").stdout == ""


def test_what_cannot_be_pushed_now_waits_in_the_queue(
    pushing: PushingMachine, minio: MinioServer, cache: Minio
) -> None:
    built = pushing.build_with_hook("waiting")
    pushing.set_secret("another")
    assert pushing.start("nix-binary-cache-push-queue").returncode == 1
    assert built in pushing.queue()
    pushing.set_secret(minio.root_password)
    assert pushing.start("nix-binary-cache-push-queue").returncode == 0
    assert len(narinfos(cache, built)) == 1


def test_a_path_that_is_gone_does_not_hold_up_the_queue(
    pushing: PushingMachine, cache: Minio
) -> None:
    gone = f"/nix/store/{'0' * 32}-gone"
    pushing.builder.run(f"ln -s {gone} {QUEUE}/ && chown -h {USER} {QUEUE}/*")
    built = pushing.build_with_hook("beside")
    done = pushing.start("nix-binary-cache-push-queue")
    assert done.returncode == 1
    assert gone in done.stderr
    assert pushing.queue() == [gone]
    assert len(narinfos(cache, built)) == 1
    pushing.builder.run(f"rm {QUEUE}/*")


def test_a_build_does_not_fail_where_there_is_no_queue(pushing: PushingMachine) -> None:
    pushing.builder.run(f"mv {QUEUE} {QUEUE}.away")
    try:
        built = pushing.build_with_hook("unqueued")
        hook = pushing.builder.run(f"OUT_PATHS='{built} /nix/store/*' {pushing.hook}")
    finally:
        pushing.builder.run(f"mv {QUEUE}.away {QUEUE}")
    assert f"push: queue: {built} is not queued in {QUEUE} (No such file" in hook.stderr
    assert "push: queue: '/nix/store/*' is no store path, and not queued" in hook.stderr
