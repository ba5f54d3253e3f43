"""Settings: what is accepted, and what every refusal says."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi
import pytest

from components.retention import GRACE_DAYS, RETENTION_DAYS
from formats.signing import SecretKey
from program.settings.stack import (
    ADOPTED_BUCKET,
    BUILT_IN_POLICIES,
    CACHE_NIXOS_ORG,
    Endpoint,
    Settings,
    load,
    parse,
)
from tests.unit.configuration import HOST_KEY, configuration, refusal, stack_file
from toolbox.certificates import make_authority


def builder(**changes: object) -> dict[str, object]:
    """Return a builder's settings with `changes`; a change to None leaves one out."""
    values: dict[str, object] = {"name": "nixbuilder", "host": "10.0.0.2", "hostKey": HOST_KEY}
    values |= changes
    return {name: value for name, value in values.items() if value is not None}


def generated_key(directory: Path, passphrase: str = "") -> Path:
    """Return the file of a private key made by ssh-keygen itself."""
    file = directory / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(file)], check=True
    )
    return file


@pytest.mark.parametrize(
    ("named", "adopted"), [("nix-cache", True), ("mistyped", False), (None, False)]
)
def test_a_repair_has_the_bucket_that_it_names_adopted_and_no_other(
    monkeypatch: pytest.MonkeyPatch, named: str | None, adopted: bool
) -> None:
    if named is not None:
        monkeypatch.setenv(ADOPTED_BUCKET, named)
    values = {f"{pulumi.get_project()}:{k}": v for k, v in configuration().items()}
    monkeypatch.setenv("PULUMI_CONFIG", json.dumps(values))
    assert load().adopt_bucket is adopted


def test_two_upstream_keys_of_one_name_are_refused() -> None:
    keys = [str(SecretKey.generate("cache.example-1").public_key) for _ in range(2)]
    message = refusal(upstreamKeys=keys)
    assert message.startswith('upstreamKeys is "cache.example-1": two keys have this name')


def test_defaults_of_the_schema_are_a_complete_stack() -> None:
    settings = parse(configuration())
    assert settings.bucket == "nix-cache"
    assert settings.public_url == "https://s3.homelab.local/nix-cache"
    assert settings.signing_keys.settle(()).names == ("s3.homelab.local-1",)
    assert settings.retention_days == 7
    assert settings.upstream_keys == (CACHE_NIXOS_ORG,)
    assert settings.builders == ()


def test_homelab_example_is_the_recipe() -> None:
    settings = parse(configuration(**stack_file("homelab")))
    assert str(settings.endpoint) == "https://s3.homelab.local"
    assert settings.signing_keys.settle(()).names == ("s3.homelab.local-1",)
    (only,) = settings.builders
    assert (only.s3_user, settings.write_policy) == ("nixbuilder", "nix-cache-write")
    assert only.closures == ("/run/current-system",)


def test_dev_stack_lacks_only_what_this_machine_adds() -> None:
    assert parse(configuration(**stack_file("dev"))).protect is False


def test_secrets_are_in_no_representation(tmp_path: Path) -> None:
    key = generated_key(tmp_path)
    settings = parse(configuration(sshPrivateKey=key.read_text(), builders=[builder()]))
    assert settings.builders[0].private_key == key.read_text()
    assert "correct horse" not in repr(settings)
    assert "PRIVATE KEY" not in repr(settings)


def test_names_on_the_server_are_the_buckets_own_so_that_stacks_can_share_it() -> None:
    settings = parse(configuration(bucket="staging-cache", builders=[builder(name="ci")]))
    assert settings.builders[0].s3_user == "staging-cache-ci"
    assert settings.write_policy == "staging-cache-write"


def test_a_builders_user_has_a_name() -> None:
    assert refusal(builders=[builder(s3User="")]).startswith('builders[0].s3User is "": write 3 ')


def test_a_private_key_file_takes_the_place_of_the_shared_key(tmp_path: Path) -> None:
    key = generated_key(tmp_path)
    settings = parse(configuration(builders=[builder(privateKeyFile=str(key))]))
    assert settings.builders[0].private_key == key.read_text()


def test_a_stack_and_the_library_keep_entries_as_long_where_nobody_says_otherwise() -> None:
    settings = parse(configuration())
    assert (settings.retention_days, settings.grace_days) == (RETENTION_DAYS, GRACE_DAYS)


def test_no_expiry_is_no_retention() -> None:
    assert parse(configuration(expire=False)).retention_days is None


@pytest.mark.parametrize(
    ("url", "server", "tls"),
    [
        ("https://s3.homelab.local", "s3.homelab.local", True),
        ("https://s3.homelab.local:9000/", "s3.homelab.local:9000", True),
        ("http://127.0.0.1:9000", "127.0.0.1:9000", False),
        ("https://[::1]:9000", "[::1]:9000", True),
    ],
)
def test_an_endpoint_is_split_as_the_provider_wants_it(url: str, server: str, tls: bool) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.server, endpoint.tls) == (server, tls)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3.homelab.local",
        "s3.homelab.local:9000",
        "ftp://s3.homelab.local",
        "https://",
        "https://s3.homelab.local/nix-cache",
        "https://s3.homelab.local?x=1",
        "https://user:pw@s3.homelab.local",
        "https://s3.homelab.local:port",
        "https://s3.homelab.local:99999",
        "https://s3 homelab",
        "https://[::1",
    ],
)
def test_a_malformed_endpoint_is_refused(url: str) -> None:
    message = refusal(endpoint=url)
    assert message.startswith("endpoint is ")
    assert "\n" not in message


def test_a_missing_endpoint_is_named() -> None:
    assert refusal(endpoint=None).startswith("endpoint: is missing")


@pytest.mark.parametrize(
    "bucket",
    [
        *("ab", "a" * 64, "Nix-Cache", "nix_cache", "-nix", "nix-", "nix..cache", "nix.-cache"),
        *("192.168.0.1", "xn--nix", "nix-s3alias", "nix cache", ""),
    ],
)
def test_a_bucket_name_against_the_rules_of_s3_is_refused(bucket: str) -> None:
    assert refusal(bucket=bucket).startswith("bucket is ")


@pytest.mark.parametrize("days", [0, -1, 1.5, "week", True, 1e9])
def test_a_retention_that_is_no_number_of_days_is_refused(days: object) -> None:
    message = refusal(retentionDays=days)
    assert message.startswith("retentionDays is ")
    assert "whole number from 1 to" in message


def test_an_unknown_setting_is_refused() -> None:
    assert refusal(retentiondays="7").startswith("retentiondays: is no setting of this program")


def test_an_unknown_setting_of_a_builder_is_refused() -> None:
    assert "builders[0].hostkey: is no setting" in refusal(builders=[builder(hostkey="x")])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": None}, "builders[0].name: is missing"),
        ({"name": "Nix Builder"}, 'builders[0].name is "Nix Builder"'),
        ({"host": None}, "builders[0].host: is missing"),
        ({"host": "-oProxyCommand=x"}, 'builders[0].host is "-oProxyCommand=x"'),
        ({"port": 70000}, "builders[0].port is 70000"),
        ({"hostKey": None}, "builders[0].hostKey: is missing"),
        ({"hostKey": "ssh-ed25519 nonsense"}, "builders[0].hostKey is "),
        ({"hostKey": HOST_KEY[:-4]}, "builders[0].hostKey is "),
        ({"hostKey": HOST_KEY + "AAAA"}, "builders[0].hostKey is "),
        ({"hostKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAAA=="}, "builders[0].hostKey is "),
        ({"hostKey": "ecdsa-sha2-nistp256 " + HOST_KEY.split()[1]}, "builders[0].hostKey is "),
        ({"s3User": "a b"}, 'builders[0].s3User is "a b"'),
        ({"closures": ["hello"]}, 'builders[0].closures is "hello"'),
        ({"closures": ["/nix/store/hello"]}, 'builders[0].closures is "/nix/store/hello"'),
        ({"closures": ["/a\nb"]}, 'builders[0].closures is "/a\\nb"'),
        ({"closures": ["/a!b"]}, 'builders[0].closures is "/a!b"'),
        ({"pins": ["/a\\'b"]}, 'builders[0].pins is "/a\\\\\'b"'),
        ({"closures": "/run/current-system"}, "builders[0].closures is "),
        ({"pins": ["hello"]}, 'builders[0].pins is "hello"'),
        ({"pins": ["/nix/store/hello"]}, 'builders[0].pins is "/nix/store/hello"'),
        ({"privateKeyFile": "/nowhere/key"}, 'builders[0].privateKeyFile is "/nowhere/key"'),
        ({"jumpHost": "bastion"}, "builders[0].jumpHost is "),
        ({"jumpHost": {"host": "bastion"}}, "builders[0].jumpHost.hostKey: is missing"),
        ({"jumpHost": {"host": "b", "hostKey": HOST_KEY, "x": 1}}, "builders[0].jumpHost.x: is no"),
        ({"local": True}, "builders[0].host: is no setting"),
    ],
)
def test_a_builder_that_cannot_work_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert refusal(builders=[builder(**changes)]).startswith(expected)


def test_a_push_is_given_closures_and_then_pins_each_once() -> None:
    settings = parse(configuration(builders=[builder(closures=["/a", "/b"], pins=["/b", "/c"])]))
    assert settings.builders[0].pushed == ("/a", "/b", "/c")
    here = {"name": "here", "local": True, "pins": ["/c"]}
    assert parse(configuration(builders=[here])).builders[0].pushed == ("/c",)


def test_an_insecure_host_key_has_to_be_asked_for() -> None:
    settings = parse(configuration(builders=[builder(hostKey=None, insecureHostKey=True)]))
    assert settings.builders[0].host_key is None


def test_an_rsa_host_key_is_refused_for_what_the_provider_does_with_it() -> None:
    numbers = (b"ssh-rsa", b"\1\0\1", bytes(257))
    data = b"".join(len(number).to_bytes(4, "big") + number for number in numbers)
    key = f"ssh-rsa {base64.b64encode(data).decode()}"
    assert "ssh-ed25519" in refusal(builders=[builder(hostKey=key)])


@pytest.mark.parametrize(
    ("second", "setting"),
    [
        (builder(), "builders[].name"),
        (builder(name="other", s3User="nix-cache-nixbuilder"), "builders[].s3User"),
    ],
)
def test_two_builders_that_share_a_name_are_refused(
    second: dict[str, object], setting: str
) -> None:
    assert refusal(builders=[builder(), second]).startswith(f"{setting} is ")


def test_a_private_key_that_is_none_is_refused_without_being_shown(tmp_path: Path) -> None:
    key = generated_key(tmp_path)
    public = key.with_suffix(".pub").read_text()
    damaged = key.read_text().replace("b3BlbnNzaC1rZXk", "c3BlbnNzaC1rZXk")
    for text in ("hunter2", public, damaged):
        message = refusal(sshPrivateKey=text)
        assert message.startswith("sshPrivateKey: holds ")
        assert text.strip() not in message


def test_a_private_key_with_a_passphrase_is_sent_to_the_agent(tmp_path: Path) -> None:
    key = generated_key(tmp_path, "passphrase")
    assert "SSH agent" in refusal(sshPrivateKey=key.read_text())


def test_a_ca_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    assert refusal(caCertificateFile=str(tmp_path / "none.pem")).startswith("caCertificateFile is ")
    file = tmp_path / "ca.pem"
    file.write_text("hello")
    assert "holds no certificate" in refusal(caCertificateFile=str(file))


def test_a_password_is_never_part_of_a_message() -> None:
    assert "two\nlines" not in refusal(minioPassword="two\nlines")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("compression", "gzip"),
        ("writePolicy", "not a name"),
        ("compressionLevel", 30),
        ("graceDays", 0),
        ("parallelism", -1),
        ("parallelism", 0),
        ("parallelism", 1000),
        ("stagingLimit", 5),
        ("priority", -1),
        ("protect", "maybe"),
        ("upstreamKeys", ["cache.nixos.org-1"]),
        ("partSize", 1_000_000),
        ("publicUrl", "s3.homelab.local"),
        ("signingKeys", "s3.homelab.local-1"),
        ("builders", {"name": "x"}),
        ("builders", ["x"]),
    ],
)
def test_a_value_outside_a_settings_range_is_refused(setting: str, value: object) -> None:
    assert refusal(**{setting: value}).startswith(setting)


def test_a_secret_key_given_as_an_upstream_key_is_not_shown() -> None:
    secret = SecretKey.generate("cache.example-1")
    message = refusal(upstreamKeys=[secret.to_nix()])
    assert message.startswith('upstreamKeys is "cache.example-1:...": write the whole public key')


def test_settings_are_values() -> None:
    assert isinstance(parse(configuration()), Settings)
    assert parse(configuration()) == parse(configuration())


@pytest.mark.parametrize("policy", sorted(BUILT_IN_POLICIES))
def test_a_policy_that_every_server_has_is_nobodys_to_rewrite(policy: str) -> None:
    assert refusal(writePolicy=policy).startswith(f'writePolicy is "{policy}": MinIO itself has')


@pytest.mark.parametrize(
    "changes",
    [
        {"builders": [{"name": "here", "local": True, "s3User": "pulumi"}]},
        {"access": "private", "minioUser": "nix-cache-reader"},
    ],
    ids=["a builder", "the reader"],
)
def test_the_deploying_user_is_no_user_of_the_stacks_own(changes: dict[str, object]) -> None:
    assert refusal(**changes).startswith("minioUser is ")


@pytest.mark.parametrize(
    "directory",
    ["/etc", "/root", "/srv", "/var/lib", "/var/run", "/usr/local/bin", "/usr/share", "/nix/var"],
)
def test_a_directory_that_others_need_is_not_made_roots_alone(directory: str) -> None:
    builder = {"name": "here", "local": True, "credentialsDirectory": directory}
    message = refusal(builders=[builder])
    assert message.startswith(f'builders[0].credentialsDirectory is "{directory}": others need')


def machines(*changes: Mapping[str, object]) -> list[dict[str, object]]:
    """Return builders with their credentials in one directory."""
    directory = {"credentialsDirectory": "/var/lib/nix-binary-cache"}
    return [{"name": f"b{number}", **directory, **change} for number, change in enumerate(changes)]


FAR: dict[str, object] = {"host": "far", "hostKey": HOST_KEY}


@pytest.mark.parametrize(
    "builders",
    [
        machines({"local": True}, {"local": True}),
        machines(FAR, FAR),
        machines(FAR, {**FAR, "host": "the-same"}),
        machines(
            {"host": "far", "insecureHostKey": True}, {"host": "far", "insecureHostKey": True}
        ),
        machines({"local": True}, {"host": "127.0.0.1", "insecureHostKey": True}),
        machines({"host": "::1", "insecureHostKey": True}, {"local": True}),
        machines(
            {"host": "far", "insecureHostKey": True}, {"host": "FAR", "insecureHostKey": True}
        ),
    ],
    ids=[
        "this machine",
        "one host",
        "one host key",
        "one host that nobody checks",
        "this machine by its address",
        "this machine by its address of version 6",
        "one host written otherwise",
    ],
)
def test_two_builders_of_one_machine_do_not_share_a_directory(
    builders: list[dict[str, object]],
) -> None:
    message = refusal(builders=builders)
    assert message.startswith("builders[1].credentialsDirectory is ")
    assert "the builder b0 has it on the same machine" in message


@pytest.mark.parametrize("host", ["127.0.0.2", "127.1.2.3", "::ffff:127.0.0.2"])
def test_containers_with_addresses_of_loopback_are_machines_of_their_own(host: str) -> None:
    builders = machines({"local": True}, {"host": host, "insecureHostKey": True})
    assert len(parse(configuration(builders=builders)).builders) == 2


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "::1", "0:0::0:1"])
def test_this_machine_is_known_by_its_own_names(host: str) -> None:
    builders = machines({"local": True}, {"host": host, "insecureHostKey": True})
    assert "the builder b0 has it on the same machine" in refusal(builders=builders)


def test_machines_behind_one_name_are_told_apart_by_their_ports() -> None:
    insecure = {"host": "far", "insecureHostKey": True}
    builders = machines(insecure, {**insecure, "port": 2201}, {"local": True})
    assert len(parse(configuration(builders=builders)).builders) == 3


@pytest.mark.parametrize("host", ["builder.local:2222", "10.0.0.2:22", "[fd00::7]:22", "fd00::7x"])
def test_a_port_in_a_host_is_sent_to_its_own_setting(host: str) -> None:
    remedy = "write a host name or an address only, and the port in port"
    jump = {"host": host, "hostKey": HOST_KEY}
    for changes, setting in (({"host": host}, "host"), ({"jumpHost": jump}, "jumpHost.host")):
        message = refusal(builders=[builder(**changes)])
        assert message.startswith(f"builders[0].{setting} is ")
        assert message.endswith(f": {remedy}")


@pytest.mark.parametrize("host", ["builder.local", "my_host", "10.0.0.2", "fd00::7", "::1"])
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    jump = {"host": host, "hostKey": HOST_KEY}
    (only,) = parse(configuration(builders=[builder(host=host, jumpHost=jump)])).builders
    assert only.jump_host is not None
    assert (only.host, only.jump_host.host) == (host, host)


def test_a_damaged_ca_certificate_is_told_by_its_setting(tmp_path: Path) -> None:
    good = make_authority(tmp_path).ca_file.read_text()
    begin, first, *rest = good.strip().split("\n")
    file = tmp_path / "written.pem"
    for bad in (
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "\n".join([begin, *rest, ""]),
        "\n".join([begin, first[:-1], *rest, ""]),
        good + "\n".join([begin, f"!{first[1:]}", *rest, ""]),
        "\n".join([begin, f"!{first[1:]}", *rest, good]),
    ):
        file.write_text(bad)
        assert refusal(caCertificateFile=str(file)) == (
            f'caCertificateFile is "{file}": holds a damaged certificate; name the CA\'s PEM file, '
            "whole"
        )
    file.write_text(good + good.replace("\n", "\r\n"))
    parse(configuration(caCertificateFile=str(file)))


def test_a_bucket_that_minio_keeps_for_itself_is_refused() -> None:
    assert refusal(bucket="minio") == (
        'bucket is "minio": MinIO keeps this name for itself; write another'
    )
    assert refusal(bucket=".minio.sys").startswith("bucket is ")
    assert parse(configuration(bucket="minio-cache")).bucket == "minio-cache"


def test_a_bucket_may_be_called_minio_where_users_are_made_elsewhere() -> None:
    assert parse(configuration(bucket="minio", users="given")).bucket == "minio"


@pytest.mark.parametrize(
    "directory",
    [
        *("/dev/shm", "/run/keys", "/run/lock", "/run/sshd", "/var/run/keys", "/run/user"),
        *("/var/mail", "/var/spool", "/var/empty", "/var/lock", "/etc/ssh", "/etc/nix"),
        *("/home/ada", "/Users/ada", "/proc/sys", "/sys/kernel", "/usr/local/sbin"),
    ],
)
def test_a_directory_of_persons_the_kernel_or_services_is_not_made_roots_alone(
    directory: str,
) -> None:
    here = {"name": "here", "local": True, "credentialsDirectory": directory}
    message = refusal(builders=[here])
    assert message.startswith(f'builders[0].credentialsDirectory is "{directory}": others need')
    suggested = {**here, "credentialsDirectory": message.rpartition(" ")[2]}
    assert parse(configuration(builders=[suggested])).builders[0].credentials_directory


@pytest.mark.parametrize(
    "directory",
    [
        *("/var/lib/nix-binary-cache", "/etc/nix-binary-cache", "/etc/nix/cache", "/run/nix-cache"),
        *("/root/cache", "/home/ada/cache", "/opt/cache", "/run/keys/cache", "/var/lib/a/b"),
    ],
)
def test_a_directory_of_its_own_is_taken(directory: str) -> None:
    here = {"name": "here", "local": True, "credentialsDirectory": directory}
    assert parse(configuration(builders=[here])).builders[0].credentials_directory == directory


@pytest.mark.parametrize(
    "region", ["us/east", "us east", "us,east", "eu=1", "r" * 65, "Zürich", ""]
)
def test_a_region_that_no_signature_carries_is_told_by_its_setting(region: str) -> None:
    assert refusal(region=region).startswith("region is ")


@pytest.mark.parametrize("user", ["root,x", "root x", "root=x", "", "root\n"])
def test_a_user_that_no_signature_carries_is_told_by_its_setting(user: str) -> None:
    assert refusal(minioUser=user).startswith("minioUser is ")


def test_what_no_users_name_may_have_is_told() -> None:
    assert refusal(minioUser="root/x,y") == (
        'minioUser is "root/x,y": no request can be signed by a name with , or =; write the user'
    )


@pytest.mark.parametrize(
    ("user", "region"),
    [
        ("minioadmin", "us-east-1"),
        ("GK3515373e4c851ebaad366558", "garage"),
        ("AKIAIOSFODNN7EXAMPLE", "eu-central-003"),
        ("2f1c8a90d1b3c4e5f60718293a4b5c6d", "auto"),
        ("ada.lovelace+cache@example.org", "RegionOne"),
        ("svc_cache-1", "my_region"),
        ("homelab/cache/deployer", "eu.homelab.local"),
        ("/", "r" * 64),
    ],
)
def test_users_and_regions_of_real_servers_are_taken(user: str, region: str) -> None:
    settings = parse(configuration(minioUser=user, region=region))
    assert (settings.minio_user, settings.region) == (user, region)


def test_a_reader_of_a_public_cache_is_refused_as_what_is_without_effect() -> None:
    given = {"users": "given", "readerAccessKeyId": "GK2"}
    assert refusal(**given) == (
        "readerAccessKeyId: is without effect, since access is public: everyone reads; leave it out"
    )
    assert parse(configuration(**given, access="private")).reader_user == "GK2"
