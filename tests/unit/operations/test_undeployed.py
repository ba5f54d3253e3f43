"""Which settings keep a part of a stack from being deployed, since the rest is not."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from components.retention import expiration_rules
from formats.pin import format_pin, pin_key
from formats.signing import SecretKey
from operations.pulumi_cli import OperationError
from operations.undeployed import refuse_undeployed, undeployed
from program import placed
from program.checks import readable
from program.checks.recorded import LIFECYCLE, OBJECT, SIGNING_KEY, STACK, USER, Recorded
from program.outputs import machines
from program.push_settings import push_settings
from program.settings.stack import Settings, parse
from push.settings import format_settings
from tests.unit.configuration import configuration

PREFIX = "urn:pulumi:homelab::nixcache::"
KEYS = {name: SecretKey.generate(name) for name in ("cache.test-1", "cache.test-2")}
A, B = (f"/nix/store/{letter * 32}-{letter}" for letter in "ab")
LINK, OTHER = "/run/current-system", "/run/booted-system"
SSH = {"name": "far", "host": "far.test", "insecureHostKey": True, "closures": [LINK, OTHER, A]}
OWN = {"name": "own", "local": True, "pins": []}
PUSHING = {"name": "near", "local": True, "closures": [A]}
PINS = [{"name": "release", "path": A}, {"name": "live", "builder": "far", "link": LINK}]
BASE: dict[str, object] = {
    "signingKeys": ["cache.test-1"],
    "signingKeyDomains": ["cache.test"],
    "builders": [SSH, OWN, PUSHING],
    "pins": PINS,
}
TARGETS = {LINK: B, OTHER: A}


def settings_of(changes: Mapping[str, object] = {}, /) -> Settings:
    return parse(configuration(**{**BASE, **changes}))


def deployed(changes: Mapping[str, object] = {}, /, signed_by: str | None = None) -> Recorded:
    """Return the state that a whole deployment of settings leaves.

    Args:
        changes: the settings.
        signed_by: the key that pushes have been given; None is the last one.
    """
    settings = settings_of(changes)
    names = settings.signing_keys.names
    public = [str(KEYS[name].public_key) for name in names]
    client = machines.client_configuration(settings, public)
    users = {builder.name: builder.s3_user for builder in settings.builders}
    builders: dict[str, Any] = {}
    resources: dict[str, dict[str, Any]] = {}

    def add(kind: str, name: str, type_: str, /, **outputs: object) -> None:
        resources[f"{PREFIX}{kind}::{name}"] = {"type": type_, "outputs": outputs}

    for name in names:
        kind = "pulumi-python:dynamic/nixcache:SigningKey"
        secret, key = KEYS[name].to_nix(), str(KEYS[name].public_key)
        add(kind, name, SIGNING_KEY, key_name=name, secret_key=secret, public_key=key)
    for builder in settings.builders:
        user, key = builder.s3_user, builder.signing_key or names[-1]
        secret = settings.given_user_secrets.get(user, f"secret of {user}")
        access: dict[str, Any] = {"accessKeyId": user, "secretAccessKey": secret, "signingKey": key}
        builders[builder.name] = access
        if not settings.given_users:
            add(f"nixcache:index:BuilderAccess${USER}", user, USER, name=user)
        signs = KEYS[signed_by or key].to_nix()
        place = "local" if builder.local else "remote"
        if builder.credentials_directory is not None:
            name = f"{placed.places([builder])[builder.name]}-files"
            kind = f"{placed.CREDENTIALS}$command:{place}:Command"
            triggers = [builder.host, builder.credentials_directory]
            add(kind, name, f"command:{place}:Command", triggers=triggers, stdin=f"x\n{signs}\n")
        if not builder.pushed:
            continue
        closures = [TARGETS.get(path, path) for path in builder.pushed]
        access |= {"lastPush": "pushed 1", "closures": closures}
        if closures != list(builder.pushed):
            kind = "pulumi-python:dynamic/nixcache:Closure"
            add(kind, user, kind, links=list(builder.pushed), store_paths=closures)
        given: dict[str, Any] = {**push_settings(settings)}
        if settings.ca_certificate is not None:
            given["ca-certificate"] = base64.b64encode(settings.ca_certificate.encode()).decode()
        given |= {"access-key-id": user, "secret-access-key": secret, "signing-key": signs}
        add(
            f"nixcache:index:ClosurePush$command:{place}:Command",
            f"{user}-push",
            f"command:{place}:Command",
            create=f"exec sh -c 'a --config - b' - --config - {' '.join(closures)}",
            stdin="7 sum\nprogram" + format_settings(given) + format_settings({"bucket": "x"}),
        )
        stdin = resources[next(reversed(resources))]["outputs"]
        stdin["stdin"] = stdin["stdin"].replace("bucket=x", f"bucket={settings.bucket}")
    pins = {}
    for pin in settings.pins:
        pins[pin.name] = [TARGETS.get(pin.path, pin.path)]
        kept = format_pin(pins[pin.name])
        add("x", pin.name, OBJECT, objectName=pin_key(pin.name), content=kept, bucketName="b")
    if settings.rule_days is not None:
        rules = [
            {"filter": rule.prefix, "expiration": f"{rule.days}d"}
            for rule in expiration_rules(settings.rule_days, settings.grace_days)
        ]
        add("lifecycle", "x", LIFECYCLE, bucket=settings.bucket, rules=rules)
    outputs: dict[str, Any] = {
        "substituter": machines.substituter(settings),
        "publicKeys": public,
        "retention": machines.retention_in_words(settings),
        "protected": settings.protect,
        "builders": builders,
        "pins": pins,
        "nixos": machines.modules_configuration(settings, client, users),
        **machines.policies_to_give(settings),
    }
    if settings.ca_certificate is not None:
        outputs["caCertificate"] = settings.ca_certificate
    if not settings.bucket_policy:
        outputs[readable.OUTPUT] = "everyone reads"
    if settings.private and settings.given_users:
        reader = settings.reader_user
        secret = settings.given_user_secrets[reader]
        outputs["readerCredentials"] = machines.credentials_file("reader", reader, secret)
    add(STACK, "nixcache-homelab", STACK, **outputs)
    return Recorded(resources)


def given(secret: str = "one", **changes: object) -> dict[str, object]:
    """Return settings of a private cache whose users are made elsewhere."""
    users = [{**OWN, "accessKeyId": "own-key"}, {**PUSHING, "accessKeyId": "near-key"}]
    return {
        "users": "given",
        "access": "private",
        "builders": users,
        "pins": [],
        "readerAccessKeyId": "reader-key",
        "givenUserSecrets": f"own-key:{secret}\nnear-key:{secret}\nreader-key:{secret}",
        **changes,
    }


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {}),
        ({}, {"publicUrl": "https://s3.homelab.local/nix-cache/"}),
        ({}, {"endpoint": "https://s3.homelab.local/"}),
        ({"signingKeys": ["cache.test-1", "cache.test-2"]}, {"signingKeys": ["{host}-1"]}),
        ({"builders": [SSH]}, {"builders": [{**SSH, "port": 22, "pins": [], "user": "root"}]}),
        # How a builder is reached, what nobody is told and what asks no push.
        ({}, {"builders": [{**SSH, "host": "moved.test", "port": 2222}, OWN, PUSHING]}),
        ({}, {"graceDays": 3, "priority": 30, "pageFigures": True, "writePolicy": "another"}),
        ({"pins": [*PINS[:1], {**PINS[1], "keepLast": 3}]}, {"pins": [*PINS[:1], PINS[1]]}),
        (given(), given()),
        ({"bucketPolicy": False, "publicUrl": "https://c.test"},) * 2,
    ],
)
def test_what_is_only_written_otherwise_or_tells_nobody_is_not_refused(
    before: dict[str, object], now: dict[str, object]
) -> None:
    refuse_undeployed("homelab", settings_of(now), deployed(before))


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"signingKeys": [*KEYS]}, ['signingKeys is ["cache.test-1", "cache.test-2"]']),
        ({"signingKeys": [*KEYS]}, {"signingKeys": ["cache.test-2"]}, None),
        ({}, {"publicUrl": "https://new.test"}, ["publicUrl is https://new.test"]),
        ({}, {"endpoint": "https://new.test"}, ["endpoint is https://new.test"]),
        ({}, {"region": "eu-1"}, ["region is eu-1"]),
        ({}, {"addressing": "virtual"}, ["addressing is virtual"]),
        ({"addressing": "virtual"}, {}, ["addressing is path"]),
        ({}, {"retentionDays": 30}, ["retentionDays is 30"]),
        ({}, {"expire": False}, ["expire is false"]),
        ({"expire": False}, {}, ["expire is true"]),
        ({}, {"protect": False}, ["protect is false"]),
        ({}, {"access": "private"}, ["access is private"]),
        ({}, {"bucketPolicy": False, "publicUrl": "https://s3.homelab.local/nix-cache"}, None),
        ({}, {"compression": "xz"}, ["compression is xz"]),
        ({}, {"compressionLevel": 9}, ["compressionLevel is 9"]),
        ({}, {"parallelism": 8}, ["parallelism is 8"]),
        ({}, {"stagingLimit": 1 << 21}, [f"stagingLimit is {1 << 21}"]),
        ({}, {"partSize": 6 << 20}, [f"partSize is {6 << 20}"]),
        ({}, {"upstreamKeys": []}, ["upstreamKeys is []"]),
        ({}, {"logs": True}, ["logs is true"]),
        ({"listings": True}, {}, ["listings is false"]),
        ({}, {"builders": [SSH, OWN]}, ["builders lacks near"]),
        ({"builders": [SSH, OWN]}, {}, ["builders has near"]),
        ({}, {"builders": [SSH, {**OWN, "name": "new"}, PUSHING]}, None),
        (
            {},
            {"builders": [SSH, OWN, {**PUSHING, "closures": [A, B]}]},
            ["builder near pushes other closures or pins"],
        ),
        (
            {},
            {"builders": [{**SSH, "closures": [OTHER, LINK, A]}, OWN, PUSHING]},
            ["builder far pushes other closures or pins", "pin live keeps something else"],
        ),
        (
            {},
            {"builders": [SSH, {**OWN, "closures": [A]}, PUSHING]},
            ["builder own pushes other closures or pins"],
        ),
        (
            {},
            {
                "builders": [
                    SSH,
                    OWN,
                    {**PUSHING, "local": False, "host": "h", "insecureHostKey": True},
                ]
            },
            ["builder near pushes other closures or pins"],
        ),
        (
            {},
            {"builders": [SSH, {**OWN, "credentialsDirectory": "/var/lib/x-y"}, PUSHING]},
            ["builder own has another credentialsDirectory"],
        ),
        (
            {"signingKeys": [*KEYS]},
            {
                "signingKeys": [*KEYS],
                "builders": [SSH, {**OWN, "signingKey": "cache.test-1"}, PUSHING],
            },
            ["builder own is to sign with cache.test-1 and does not yet"],
        ),
        ({}, {"pins": PINS[1:]}, ["pins lacks release"]),
        ({"pins": PINS[1:]}, {}, ["pins has release"]),
        ({}, {"pins": [{**PINS[0], "path": B}, PINS[1]]}, [f"pin release keeps {B}"]),
        (
            {},
            {"pins": [PINS[0], {**PINS[1], "link": OTHER}]},
            ["builder far has other pins", "pin live keeps something else"],
        ),
        (given(), given("another"), ["givenUserSecrets has other secrets"]),
        (
            given(),
            given(
                readerAccessKeyId="other-key",
                givenUserSecrets="own-key:one\nnear-key:one\nother-key:one",
            ),
            ["readerAccessKeyId is other-key"],
        ),
    ],
)
def test_what_clients_builders_or_pushes_would_be_told_is_named(
    before: dict[str, object], now: dict[str, object], words: list[str] | None
) -> None:
    settings, state = settings_of(now), deployed(before)
    found = undeployed(settings, state)
    assert found == words if words is not None else found
    with pytest.raises(OperationError) as refused:
        refuse_undeployed("homelab", settings, state)
    assert str(refused.value) == (
        f"stack homelab: the settings are not deployed as they are ({', '.join(found)}), and this "
        "would put a part of them in force; see pulumi preview, then run pulumi up, or undo the "
        "change"
    )
    for secret in ("one", "another", KEYS["cache.test-1"].to_nix()):
        assert f":{secret}" not in str(refused.value)


def test_a_private_ca_that_comes_or_goes_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(trustme.CA().cert_pem.bytes())
    with_ca = {"caCertificateFile": str(file)}
    assert undeployed(settings_of(with_ca), deployed(with_ca)) == []
    came = undeployed(settings_of(with_ca), deployed())
    assert came == [f"caCertificateFile is {file}"]
    gone = undeployed(settings_of(), deployed(with_ca))
    assert gone == ["caCertificateFile is empty"]


def test_between_the_steps_of_a_rotation_pushes_that_would_sign_with_the_new_key_are_named() -> (
    None
):
    """`up --target '**SigningKey**'` has written the outputs, and given no push the new key."""
    both: dict[str, object] = {"signingKeys": [*KEYS]}
    state = deployed(both, "cache.test-1")
    found = undeployed(settings_of(both), state)
    assert found == [
        f"builder {name} is to sign with cache.test-2 and does not yet" for name in ("far", "near")
    ]
    own: dict[str, object] = {
        **both,
        "builders": [{**OWN, "credentialsDirectory": "/var/lib/x-y"}],
        "pins": [],
    }
    placed_before = deployed(own, "cache.test-1")
    (one,) = undeployed(settings_of(own), placed_before)
    assert one == "builder own is to sign with cache.test-2 and does not yet"
    assert undeployed(settings_of(own), deployed(own)) == []


def test_a_link_that_points_elsewhere_since_is_what_a_push_is_for() -> None:
    state = deployed()
    (closure,) = (urn for urn in state.resources if "nixcache:Closure::" in urn)
    outputs = state.resources[closure]["outputs"]
    moved = {**outputs, "store_paths": [A, A, A]}
    resources = {**state.resources, closure: {"type": "x", "outputs": moved}}
    refuse_undeployed("homelab", settings_of(), Recorded(resources))


def test_a_user_of_a_builder_that_only_outputs_know_is_not_there_yet() -> None:
    """A deployment of a part writes the outputs of all, and makes nobody."""
    state = deployed()
    without = {urn: one for urn, one in state.resources.items() if not urn.endswith("-own")}
    assert undeployed(settings_of(), Recorded(without)) == ["builders has own"]


def test_an_older_state_is_compared_as_far_as_it_tells() -> None:
    settings = parse(configuration())
    assert undeployed(settings, Recorded({})) == []
    keys = [str(SecretKey.generate("s3.homelab.local-1").public_key)]
    stack = {"type": STACK, "outputs": {"publicKeys": keys, "substituter": settings.public_url}}
    assert undeployed(settings, Recorded({f"{PREFIX}x::y": stack})) == []


def test_keys_that_cannot_be_are_a_sentence() -> None:
    settings = parse(configuration(signingKeys=["another.test-1"]))
    with pytest.raises(OperationError, match=r"stack homelab: signingKeys is .*its domain is not"):
        refuse_undeployed("homelab", settings, Recorded({}))
