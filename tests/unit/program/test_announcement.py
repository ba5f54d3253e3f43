"""What a preview says in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pytest

from components.binary_cache import anonymous_policy, nix_cache_info
from components.push_program import archive, push_command
from components.retention import expiration_rules
from formats.pin import format_pin, pin_key
from formats.signing import SecretKey
from program.announcement import MOST_LINES, announce, changes, losses, signing
from program.checks.recorded import (
    BUCKET,
    BUCKET_POLICY,
    BUILDERS,
    COMMANDS,
    LIFECYCLE,
    OBJECT,
    SIGNING_KEY,
    STACK,
    USER,
    Recorded,
)
from program.outputs.machines import retention_in_words, substituter
from program.push_settings import push_settings
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings, parse
from tests.unit.configuration import configuration
from tests.unit.recording_mocks import use_recording_mocks

HASH = "77pafcdwgl5m3za7k4lsv8msj9nmjc3c"
OLD, NEW = f"/nix/store/{HASH}-old", f"/nix/store/{HASH}-new"
OLDEST = f"/nix/store/{HASH}-oldest"
LINK = "/run/current-system"
KEYS = SigningKeys(names=("s3.homelab.local-1",), adopted={})


def settings(**changed: object) -> Settings:
    return parse(configuration(**changed))


def deployed(before: Settings, closures: Mapping[str, Sequence[str]] = {}) -> Recorded:
    """Return the state of a stack that was last deployed with the settings `before`."""
    builders = {
        builder.name: {
            "accessKeyId": builder.s3_user,
            **(
                {"lastPush": "pushed", "closures": list(closures[builder.name])}
                if builder.name in closures
                else {}
            ),
        }
        for builder in before.builders
    }
    outputs: dict[str, Any] = {
        "builders": builders,
        "protected": before.protect,
        "retention": retention_in_words(before),
        "substituter": substituter(before),
        "nixos": {"access": before.access, "push": push_settings(before)},
    }
    info = nix_cache_info(before.want_mass_query, before.priority)
    resources = [
        (STACK, outputs),
        (BUCKET, {"bucket": before.bucket}),
        (OBJECT, {"bucketName": before.bucket, "objectName": "nix-cache-info", "content": info}),
        *((COMMANDS[0], {"create": push_command(paths, archive())}) for paths in closures.values()),
        *(
            (SIGNING_KEY, {"key_name": name, "public_key": f"{name}:{'A' * 43}="})
            for name in KEYS.names
        ),
    ]
    rules = expiration_rules(before.rule_days, before.grace_days)
    if rules:
        declared = [{"filter": rule.prefix, "expiration": f"{rule.days}d"} for rule in rules]
        resources.append((LIFECYCLE, {"rules": declared}))
    policy = anonymous_policy(before.bucket, not before.private, before.anonymous_listing)
    if before.bucket_policy:
        resources.append((BUCKET_POLICY, {"policy": policy}))
    made = () if before.given_users else before.builders
    resources += [(USER, {"name": builder.s3_user}) for builder in made]
    parents = {USER: f"{BUILDERS}$"}
    return Recorded(
        {
            f"urn:pulumi:test::nixcache::{parents.get(type_, '')}{type_}::{number}": {
                "type": type_,
                "outputs": outputs,
            }
            for number, (type_, outputs) in enumerate(resources)
        }
    )


def pinning(recorded: Recorded, **pins: Sequence[str]) -> Recorded:
    """Return the same state with these pins, whatever its outputs say."""
    objects = {
        f"urn:{name}": {
            "type": OBJECT,
            "outputs": {
                "bucketName": "nix-cache",
                "objectName": pin_key(name),
                "content": format_pin(paths),
            },
        }
        for name, paths in pins.items()
    }
    return Recorded({**recorded.resources, **objects})


ANOTHER = {"bucket": "another"}


def said(before: Settings, now: Settings, closures: Mapping[str, Sequence[str]] = {}) -> list[str]:
    """Return what is said of going from one configuration to another."""
    return list(changes(now, deployed(before, closures), {}))


def builder(**changed: object) -> dict[str, object]:
    return {"name": "here", "local": True, "closures": [OLD], **changed}


def test_without_a_change_nothing_is_said() -> None:
    same = settings(builders=[builder()])
    assert said(same, same, {"here": [OLD]}) == []


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"priority": 30}, ["nix-cache-info: Priority: 40 → 30"]),
        ({}, {"wantMassQuery": False}, ["nix-cache-info: WantMassQuery: 1 → 0"]),
        (
            {},
            {"retentionDays": 14},
            [
                "retention: An entry expires 14 days after its last push. "
                "Before: An entry expires 7 days after its last push."
            ],
        ),
        ({}, {"anonymousListing": True}, ["access: everyone may list what the bucket holds"]),
        (
            {"anonymousListing": True},
            {},
            ["access: everyone can no longer list what the bucket holds"],
        ),
        (
            {},
            {"access": "private"},
            [
                "access: nobody reads without a credential any more; clients need "
                "nix-cache-reader's (output readerCredentials), and the address "
                "s3://nix-cache?endpoint=https://s3.homelab.local&region=us-east-1"
                "&profile=nix-cache-reader"
            ],
        ),
        (
            {"access": "private"},
            {},
            [
                "access: everyone may read, at https://s3.homelab.local/nix-cache; user "
                "nix-cache-reader goes"
            ],
        ),
        (
            {},
            {"publicUrl": "https://cdn.example.org"},
            [
                "clients: the cache's address changes from https://s3.homelab.local/nix-cache to "
                "https://cdn.example.org; they look for it at the old one until they have the new "
                "one"
            ],
        ),
        (
            {"access": "private"},
            {"access": "private", "region": "eu-1"},
            [
                "clients: the cache's address changes from s3://nix-cache?endpoint="
                "https://s3.homelab.local&region=us-east-1&profile=nix-cache-reader to "
                "s3://nix-cache?endpoint=https://s3.homelab.local&region=eu-1"
                "&profile=nix-cache-reader; they look for it at the old one until they have the "
                "new one"
            ],
        ),
        (
            {"builders": [{"name": "a", "local": True}]},
            {"builders": [{"name": "b", "local": True}]},
            [
                "builder b comes, as user nix-cache-b",
                "builder a goes, and its user nix-cache-a; what it pushed stays until it expires",
            ],
        ),
        (
            {"builders": [{"name": "a", "local": True}]},
            {"builders": [{"name": "b", "local": True, "s3User": "nix-cache-a"}]},
            [],
        ),
    ],
)
def test_a_change_is_one_line(
    before: dict[str, object], now: dict[str, object], words: list[str]
) -> None:
    assert said(settings(**before), settings(**now)) == words


@pytest.mark.parametrize(
    ("before", "now", "keys", "words"),
    [
        ({}, {"retentionDays": 14}, KEYS.names, []),
        ({}, {"expire": False}, KEYS.names, []),
        (
            {},
            {"bucket": "another"},
            KEYS.names,
            ["bucket nix-cache is replaced by another: every entry of the cache is in it"],
        ),
        (
            {},
            {},
            ["s3.homelab.local-2"],
            [
                "signing key s3.homelab.local-1 is deleted: only this state has it, and clients "
                "that trust no other key refuse what it did not sign"
            ],
        ),
        (
            {},
            {"retentionDays": 3},
            KEYS.names,
            [
                "retention is shortened: entries now expire after 3 days instead of 7",
                "retention is shortened: NARs now expire after 4 days instead of 8",
            ],
        ),
        (
            {"expire": False},
            {},
            KEYS.names,
            [
                "retention is shortened: entries that lived for ever now expire after 7 days",
                "retention is shortened: NARs that lived for ever now expire after 8 days",
            ],
        ),
    ],
)
def test_what_goes_for_good_is_told(
    before: dict[str, object], now: dict[str, object], keys: Sequence[str], words: list[str]
) -> None:
    wanted = SigningKeys(names=tuple(keys), adopted={})
    assert list(losses(settings(**now), wanted, deployed(settings(**before)))) == words
    assert list(losses(settings(**now), wanted, Recorded({}))) == []


def test_a_bucket_whose_name_is_taken_back_is_told_as_deleted_and_not_as_replaced() -> None:
    both = {**deployed(settings()).resources, "urn:a": {"type": BUCKET, "outputs": ANOTHER}}
    told = list(losses(settings(), KEYS, Recorded(both)))
    assert told == ["bucket another is deleted, with every entry that is in it"]


def test_a_preview_warns_of_what_goes_for_good_and_an_update_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", told.append)
    known = deployed(settings())
    use_recording_mocks(preview=True)
    announce(settings(bucket="another"), KEYS, known, {})
    assert told == [
        "data would be lost: bucket nix-cache is replaced by another: every entry of the cache is "
        "in it"
    ]
    use_recording_mocks()
    told.clear()
    announce(settings(bucket="another"), KEYS, known, {})
    assert told == []


ONE, TWO, THREE = (f"s3.homelab.local-{number}" for number in (1, 2, 3))


def signed(keys: Sequence[str], **builders: str) -> Recorded:
    """Return the state of a stack with these keys, whose builders sign with one each."""
    outputs = {
        "publicKeys": [f"{key}:{'A' * 43}=" for key in keys],
        "builders": {
            name: {"accessKeyId": f"nix-cache-{name}", "signingKey": key}
            for name, key in builders.items()
        },
    }
    return Recorded({"urn:stack": {"type": STACK, "outputs": outputs}})


def said_of_signing(
    known: Recorded, keys: Sequence[str], *, default: bool = False, **builders: str | None
) -> list[str]:
    """Return what is said of signing where these keys are listed, and builders name these."""
    given = [
        {"name": name, "local": True, **({"signingKey": key} if key else {})}
        for name, key in builders.items()
    ]
    now = settings(builders=given, **({} if default else {"signingKeys": list(keys)}))
    return list(signing(now, SigningKeys(tuple(keys), {}), known))


def test_a_builder_that_signs_with_another_key_from_now_on_is_told() -> None:
    known = signed((ONE, TWO), ci=ONE, nixbuilder=TWO)
    # Whoever revokes the one moves the other, which has no key of its own.
    assert said_of_signing(known, (TWO, THREE), ci=THREE, nixbuilder=None) == [
        f"builder ci signs with {THREE}; before: {ONE}",
        f"builder nixbuilder signs with {THREE}; before: {TWO}",
    ]
    assert said_of_signing(known, (TWO, THREE), ci=THREE, nixbuilder=TWO) == [
        f"builder ci signs with {THREE}; before: {ONE}",
    ]
    both = signed((ONE, TWO), a=TWO, b=TWO)
    assert said_of_signing(both, (ONE, TWO), a=ONE, b=ONE) == [
        f"builders a, b sign with {ONE}; before: {TWO}"
    ]


def test_of_an_ordinary_rotation_the_list_of_keys_says_enough() -> None:
    known = signed((ONE,), ci=ONE, nixbuilder=ONE)
    assert said_of_signing(known, (ONE,), ci=None, nixbuilder=None) == []
    assert said_of_signing(known, (ONE, TWO), ci=None, nixbuilder=None) == []
    assert said_of_signing(known, (ONE, TWO), ci=ONE, nixbuilder=None, new=None) == []
    rotated = signed((ONE, TWO), ci=TWO, nixbuilder=TWO)
    assert said_of_signing(rotated, (TWO,), ci=None, nixbuilder=None) == []
    assert said_of_signing(rotated, (ONE, TWO, THREE), ci=None, nixbuilder=None) == []
    assert said_of_signing(Recorded({}), (ONE,), ci=None) == []


def test_a_key_that_a_builder_leaves_behind_is_told_as_long_as_clients_trust_it() -> None:
    known = signed((ONE, TWO), ci=ONE, nixbuilder=TWO)
    idle = (
        f"key {ONE} signs for no builder any more, and clients trust it until it leaves signingKeys"
    )
    assert said_of_signing(known, (ONE, TWO), nixbuilder=None) == [idle]
    assert said_of_signing(known, (TWO,), nixbuilder=None) == []
    assert said_of_signing(known, (ONE, TWO, THREE), ci=THREE, nixbuilder=TWO) == [
        f"builder ci signs with {THREE}; before: {ONE}",
        idle,
    ]
    # The last one signs whatever comes next.
    assert said_of_signing(known, (ONE, TWO), ci=ONE) == []


def test_a_list_that_is_written_as_if_it_were_unset_is_told_where_it_takes_no_key_away() -> None:
    assert said_of_signing(signed((ONE, TWO)), (ONE, TWO), default=True) == [
        'signingKeys is unset or ["{host}-1"], which means the keys that there are, '
        f"{ONE}, {TWO}; where {ONE} alone is to stay, write that name"
    ]
    # Nobody can mean a key that has gone.
    for keys in ((ONE,), (TWO,), (TWO, THREE)):
        assert said_of_signing(signed(keys), keys, default=True) == []
    assert said_of_signing(signed((ONE, TWO)), (ONE, TWO)) == []


def test_who_signs_is_said_before_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "info", told.append)
    use_recording_mocks(preview=True)
    builders = [{"name": f"b{number}", "local": True, "closures": [OLD]} for number in range(20)]
    keys = SigningKeys((ONE, TWO), {})
    announce(
        settings(builders=builders, signingKeys=[ONE, TWO]), keys, signed((ONE, TWO), b7=ONE), {}
    )
    assert told[0] == f"builder b7 signs with {TWO}; before: {ONE}"


def test_a_protection_that_goes_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", told.append)
    on, off = settings(), settings(protect=False)
    use_recording_mocks(preview=True)
    for before, now in ((on, on), (off, off), (off, on)):
        announce(now, KEYS, deployed(before), {})
    announce(off, KEYS, Recorded({}), {})
    assert told == []
    announce(off, KEYS, deployed(on), {})
    assert told == [
        "protect goes off: nothing then keeps a destroy, or another bucket in the settings, "
        "from deleting bucket nix-cache once it is empty; a destroy deletes the signing keys, too"
    ]


OFF = {"bucketPolicy": False, "publicUrl": "https://cdn.example.org"}
ON = {"publicUrl": "https://cdn.example.org"}
PRIVATE = {"access": "private", "publicUrl": ""}
READER = (
    "clients need nix-cache-reader's (output readerCredentials), and the address s3://nix-cache?"
    "endpoint=https://s3.homelab.local&region=us-east-1&profile=nix-cache-reader"
)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (
            ON,
            OFF,
            [
                "access: bucketPolicy is off, and the policy of bucket nix-cache goes at the end "
                "of the deployment; clients read nothing until you open it by the server's own "
                "means"
            ],
        ),
        (
            {**OFF, **PRIVATE},
            OFF,
            [
                "access: bucketPolicy is off; open bucket nix-cache by the server's own means; "
                "user nix-cache-reader goes"
            ],
        ),
        (
            OFF,
            {**OFF, **PRIVATE},
            [
                "access: bucketPolicy is off; close bucket nix-cache by the server's own means; "
                f"{READER}"
            ],
        ),
        (OFF, ON, ["access: everyone may read, at https://cdn.example.org"]),
        (
            {**OFF, **PRIVATE},
            {**ON, **PRIVATE},
            ["access: nobody reads without a credential any more"],
        ),
        (
            {**ON, **PRIVATE},
            {**OFF, **PRIVATE},
            [
                "access: bucketPolicy is off, and the policy of bucket nix-cache goes at the end "
                "of the deployment; see that the server's own means keep it closed then"
            ],
        ),
        (OFF, OFF, []),
        ({**OFF, **PRIVATE}, {**OFF, **PRIVATE}, []),
        (
            {**ON, **PRIVATE},
            {**ON, "anonymousListing": True},
            [
                "access: everyone may read, at https://cdn.example.org; user nix-cache-reader goes",
                "access: everyone may list what the bucket holds",
            ],
        ),
    ],
)
def test_who_opens_the_bucket_and_who_may_read_then_is_told(
    before: dict[str, object], now: dict[str, object], words: list[str]
) -> None:
    assert said(settings(**before), settings(**now)) == words


def test_a_push_is_told_with_what_was_pushed_before() -> None:
    before = settings(builders=[builder()])
    assert said(before, settings(builders=[builder(closures=[NEW])]), {"here": [OLD]}) == [
        f"builder here pushes {NEW}; before: {OLD}"
    ]
    both = settings(builders=[builder(closures=[OLD, NEW])])
    assert said(before, both, {"here": [OLD]}) == [f"builder here pushes {NEW} for the first time"]


def test_what_a_builder_no_longer_pushes_is_told() -> None:
    before = settings(builders=[builder(closures=[OLD], pins=[NEW])])
    pushed = {"here": [OLD, NEW]}
    gone = f"builder here no longer pushes {NEW}"
    after = [builder()]
    assert said(before, settings(builders=after), pushed) == [
        f"{gone}; what it pushed stays until it expires"
    ]
    # While another takes its place on the way.
    assert said(before, settings(builders=[builder(closures=["/nix/x"])]), pushed)[1:] == [
        f"{gone}; what it pushed stays until it expires"
    ]
    forever = deployed(settings(expire=False, builders=[builder(pins=[NEW])]), pushed)
    lines = list(changes(settings(expire=False, builders=after), forever, {}))
    assert lines == [f"{gone}; what it pushed stays"]
    assert list(changes(settings(builders=after), deployed(before, pushed), {"here": None})) == []


def test_what_was_pushed_does_not_outlive_its_bucket() -> None:
    pin = {"name": "release", "path": OLD}
    two = {"name": "two", "s3User": "two"}
    before = settings(builders=[builder(), builder(**two, pins=[NEW])], pins=[pin])
    known = pinning(deployed(before, {"here": [OLD], "two": [OLD, NEW]}), release=[OLD])
    now = settings(builders=[builder(**two)], bucket="another")
    told = list(changes(now, known, {}))
    assert told[-3:] == [
        f"builder two no longer pushes {NEW}",
        "builder here goes, and its user nix-cache-here",
        "pin release goes",
    ]


def test_a_link_is_told_with_what_it_points_to_and_a_silent_builder_not_at_all() -> None:
    now = settings(builders=[builder(closures=[LINK])])
    known = deployed(now, {"here": [OLD]})
    assert list(changes(now, known, {"here": [NEW]})) == [
        f"builder here pushes {NEW} ({LINK}); before: {OLD}"
    ]
    assert list(changes(now, known, {"here": None})) == []


def test_on_a_first_deployment_only_pushes_and_adopted_keys_are_told() -> None:
    key = SecretKey.generate("s3.homelab.local-1")
    now = settings(builders=[builder()], adoptedSigningKeys=key.to_nix())
    assert list(changes(now, Recorded({}), {})) == [
        f"key s3.homelab.local-1 is adopted; clients trust it as {key.public_key}",
        f"builder here pushes {OLD} for the first time",
    ]
    assert key.to_nix() not in str(list(changes(now, Recorded({}), {})))


def test_that_every_builder_pushes_again_is_told_with_the_reason() -> None:
    before = settings(builders=[builder()])
    now = settings(builders=[builder()], compression="xz")
    assert said(before, now, {"here": [OLD]}) == [
        'every builder pushes again: compression "zstd" → "xz"'
    ]
    known = deployed(before, {"here": [OLD]})
    (command,) = known.outputs(COMMANDS[0])
    (outputs,) = (one["outputs"] for one in known.resources.values() if one["type"] == COMMANDS[0])
    outputs["create"] = command["create"].replace("exec", "exec ", 1)
    assert list(changes(before, known, {})) == [
        "every builder pushes again: the program that pushes changes"
    ]


def test_what_was_deployed_is_told_from_what_is_there_and_not_from_outputs() -> None:
    # A deployment of something else alone has written the outputs, of settings not yet deployed.
    before = settings(builders=[builder()])
    now = settings(access="private", builders=[builder(), builder(name="two")])
    claimed = deployed(now).stack_output("nixos")
    known = deployed(before, {"here": [OLD]})
    stack = next(one["outputs"] for one in known.resources.values() if one["type"] == STACK)
    stack["nixos"] = claimed
    stack["builders"] = {**stack["builders"], "two": {"accessKeyId": "nix-cache-two"}}
    told = list(changes(now, known, {}))
    assert told[0].startswith("access: nobody reads without a credential any more")
    assert "builder two comes, as user nix-cache-two" in told
    # Nor by what nobody knows.
    stack["builders"]["two"] = {}
    assert list(changes(now, known, {})) == told


def test_many_closures_and_many_builders_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [f"/nix/store/{HASH}-{number}" for number in range(9)]
    many = settings(
        builders=[{"name": f"b{number}", "local": True, "closures": paths} for number in range(4)]
    )
    lines = list(changes(many, Recorded({}), {}))
    assert lines[3] == "builder b0 pushes 6 more"
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "info", told.append)
    use_recording_mocks(preview=True)
    announce(many, KEYS, Recorded({}), {})
    assert len(told) == MOST_LINES + 1
    assert told[-1] == f"and {len(lines) - MOST_LINES} more changes; --diff shows them"
    use_recording_mocks()
    told.clear()
    announce(many, KEYS, Recorded({}), {})
    assert told == []


def test_where_a_pin_moves_is_said_and_what_is_let_go() -> None:
    here = builder(closures=[LINK])
    live = {"name": "live", "builder": "here", "link": LINK}
    release = {"name": "release", "path": OLD}
    now = settings(builders=[here], pins=[live, release])
    before = deployed(settings(builders=[here]), {"here": [NEW]})
    followed = {"here": [NEW]}

    def told(
        after: Settings,
        links: Mapping[str, Sequence[str] | None] = followed,
        **pins: Sequence[str],
    ) -> list[str]:
        lines = changes(after, pinning(before, **pins), links)
        return [line for line in lines if line.startswith("pin ")]

    pinned = [f"pin live keeps {NEW}", f"pin release keeps {OLD}"]
    assert told(now) == pinned
    assert told(now, live=[OLD, NEW], release=[OLD]) == [f"pin live keeps {NEW}; before: {OLD}"]
    assert told(now, {"here": None}, live=[OLD, NEW], release=[OLD]) == []
    kept = [NEW, OLD, OLDEST]
    three = {**live, "keepLast": 3}
    assert told(settings(builders=[here], pins=[three, release]), live=kept, release=[OLD]) == []
    assert told(now, live=kept, release=[OLD]) == [
        f"pin live lets go of {OLD}, {OLDEST}; what it keeps no longer ages from its last push"
    ]
    assert told(settings(builders=[here], pins=[live]), live=[NEW], release=[OLD]) == [
        "pin release goes; what it kept ages from its last push"
    ]


def test_who_goes_is_told_also_after_a_deployment_of_something_else_alone() -> None:
    here = builder(s3User="nixbuilder")
    gone = {"name": "gone", "local": True, "s3User": "leaving"}
    known = pinning(deployed(settings(builders=[here, gone]), {"here": [OLD]}), release=[OLD])
    stack = next(one["outputs"] for one in known.resources.values() if one["type"] == STACK)
    del stack["builders"]["gone"]
    stack["pins"] = {}
    assert list(changes(settings(builders=[here]), known, {})) == [
        "user leaving goes, and the builder that has it; what it pushed stays until it expires",
        "pin release goes; what it kept ages from its last push",
    ]


def test_given_users_are_not_said_to_go() -> None:
    given: dict[str, Any] = {"users": "given"}
    before = settings(
        **given,
        access="private",
        readerAccessKeyId="GK9",
        builders=[{"name": "here", "local": True, "accessKeyId": "GK1"}],
    )
    words = said(before, settings(**given))
    assert words == [
        "access: everyone may read, at https://s3.homelab.local/nix-cache",
        "builder here goes, its user GK1 is yours to remove; what it pushed stays until it expires",
    ]


def test_the_day_more_of_a_server_that_does_not_round_up_is_no_shorter_retention() -> None:
    rounds, counts = settings(), settings(expiresAtMidnight=False)
    assert said(rounds, counts) == []
    assert said(counts, counts) == []


def with_address(recorded: Recorded, address: object) -> Recorded:
    """Return a state whose outputs have another address of the cache."""
    (stack,) = (one for one in recorded.resources if recorded.resources[one]["type"] == STACK)
    outputs = {**recorded.resources[stack]["outputs"], "substituter": address}
    return Recorded({**recorded.resources, stack: {"type": STACK, "outputs": outputs}})


@pytest.mark.parametrize("address", [None, {"secret": "x"}, 7])
def test_an_address_that_is_not_known_is_not_compared(address: object) -> None:
    recorded = with_address(deployed(settings()), address)
    assert list(changes(settings(publicUrl="https://cdn.example.org"), recorded, {})) == []


def test_what_a_state_holds_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = with_address(deployed(settings()), "https://\x1b[2J")
    told: list[str] = []
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: True)
    monkeypatch.setattr(pulumi.log, "info", told.append)
    announce(settings(), KEYS, recorded, {})
    assert told
    assert all(line.isprintable() for line in told)
