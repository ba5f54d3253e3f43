"""A bucket that is adopted: whether what is in it fits the stack that takes it over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pulumi
import pytest

from components.binary_cache import anonymous_policy
from formats.narinfo import NarInfo
from formats.nix32 import nix32_encode
from formats.signing import SecretKey
from program.checks import adoption
from program.checks.bucket_settings import Lifecycle
from program.checks.recorded import SIGNING_KEY, Recorded
from program.checks.s3_client import Server
from program.outputs.landing_page import landing_page
from program.outputs.machines import ClientConfiguration
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import parse
from tests.unit.configuration import configuration

NAME = "s3.homelab.local-1"
OLD, OTHER = SecretKey.generate(NAME), SecretKey.generate(NAME)
ELSEWHERE = SecretKey.generate("cache.example.org-1")


def narinfo(*keys: SecretKey) -> bytes:
    """Return a narinfo with a signature by each key."""
    unsigned = NarInfo(
        store_path="/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-greeting",
        url=f"nar/{'1' * 52}.nar.zst",
        compression="zstd",
        nar_hash=f"sha256:{'0' * 52}",
        nar_size=1,
    )
    signatures = tuple(key.sign(unsigned.fingerprint) for key in keys)
    return replace(unsigned, signatures=signatures).format().encode()


def check(
    monkeypatch: pytest.MonkeyPatch,
    objects: dict[str, bytes],
    adopted: SecretKey | None = None,
    policy: str | None = None,
    kept: SecretKey | None = None,
    **changes: object,
) -> list[str]:
    """Adopt a bucket with these objects, and put a page there; return what was read of them.

    The stack has adopted a key, or its state has kept one, or it will make one.
    """
    read: list[str] = []

    def listed(_server: Server, _bucket: str, after: str = "") -> Iterator[tuple[str, datetime]]:
        return ((key, datetime.now(timezone.utc)) for key in sorted(objects) if key > after)

    def content(_server: Server, _bucket: str, key: str, _most: int) -> bytes | None:
        read.append(key)
        return objects.get(key)

    monkeypatch.setattr(Server, "objects", listed)
    monkeypatch.setattr(Server, "read", content)
    monkeypatch.setattr(Server, "access", lambda *_: policy)
    keys = SigningKeys((NAME,), {NAME: adopted.to_nix()} if adopted else {})
    server = Server("s3", True, "us-east-1", "pulumi", "password", None)
    settings = parse(configuration(**changes))
    adoption.check(settings, keys, server, state(*[kept] if kept else []))
    adoption.check_page(settings, server)
    return read


def state(*keys: SecretKey) -> Recorded:
    """Return a state that has these keys, and no bucket."""
    return Recorded(
        {
            f"urn:{key.name}": {
                "type": SIGNING_KEY,
                "outputs": {"key_name": key.name, "public_key": str(key.public_key)},
            }
            for key in keys
        }
    )


def bucket(*narinfos: bytes) -> dict[str, bytes]:
    return {f"{number:032}.narinfo": text for number, text in enumerate(narinfos)}


@pytest.mark.parametrize(
    ("signed_by", "adopted"),
    [
        ([], None),
        ([ELSEWHERE], None),
        ([OLD], OLD),
        ([OTHER, OLD], OLD),
    ],
    ids=["unsigned", "another name", "the adopted key", "the adopted key among others"],
)
def test_what_clients_can_go_on_using_is_adopted(
    monkeypatch: pytest.MonkeyPatch, signed_by: list[SecretKey], adopted: SecretKey | None
) -> None:
    check(monkeypatch, bucket(narinfo(*signed_by)), adopted)


@pytest.mark.parametrize(
    ("adopted", "setting"), [(None, f'signingKeys is "{NAME}"'), (OTHER, "adoptedSigningKeys")]
)
def test_another_key_of_the_name_that_signed_what_is_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, adopted: SecretKey | None, setting: str
) -> None:
    with pytest.raises(SettingError) as refused:
        check(monkeypatch, bucket(narinfo(ELSEWHERE), narinfo(OLD)), adopted)
    message = str(refused.value)
    assert message.startswith(setting)
    assert "signed by another key of the name" in message
    assert "give that key in adoptedSigningKeys, or write s3.homelab.local-2 in its" in message


def test_a_key_that_the_state_has_kept_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, bucket(narinfo(OLD), narinfo(ELSEWHERE)), kept=OLD)
    check(monkeypatch, bucket(narinfo(OLD)), adopted=OLD, kept=OLD)
    # No other can be adopted in its place, so no remedy says so.
    other = r'signingKeys is "{0}".* by another key of the name {0}.*; take another bucket, or wr'
    with pytest.raises(SettingError, match=other.format(NAME)):
        check(monkeypatch, bucket(narinfo(OTHER)), kept=OLD)


def page(*keys: SecretKey) -> dict[str, bytes]:
    public = [str(key.public_key) for key in keys]
    return {"use.html": landing_page(ClientConfiguration("https://x", public, None), 7).encode()}


NEXT = SecretKey.generate("s3.homelab.local-2")
ANOTHER_NEXT = SecretKey.generate("s3.homelab.local-2")


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (bucket(narinfo(OLD, NEXT)), "what is in the bucket nix-cache is signed by another key of"),
        (page(OLD, NEXT), "the page of the bucket nix-cache names another key of the name s3.home"),
    ],
    ids=["signatures", "the page"],
)
def test_no_other_key_takes_a_name_that_the_stacks_own_bucket_shows(
    monkeypatch: pytest.MonkeyPatch, objects: dict[str, bytes], words: str
) -> None:
    read: list[str] = []

    def content(_server: Server, _bucket: str, key: str, _most: int) -> bytes | None:
        read.append(key)
        return objects.get(key)

    now = datetime.now(timezone.utc)
    monkeypatch.setattr(Server, "objects", lambda *_: ((key, now) for key in sorted(objects)))
    monkeypatch.setattr(Server, "read", content)
    monkeypatch.setattr(Server, "lifecycle", lambda *_: Lifecycle())
    server = Server("s3", True, "us-east-1", "pulumi", "password", None)
    settings = parse(configuration())

    def declared(*names: str, adopted: SecretKey | None = None) -> SigningKeys:
        return SigningKeys(names, {adopted.name: adopted.to_nix()} if adopted else {})

    def check(keys: SigningKeys) -> None:
        adoption.check_new_keys(settings, keys, server, state(OLD))

    both = (OLD.name, NEXT.name)
    # A state from before the second key was added.
    with pytest.raises(SettingError) as refused:
        check(declared(*both))
    assert str(refused.value).startswith(f'signingKeys is "{NEXT.name}": {words}')
    assert "give that key in adoptedSigningKeys, or write s3.homelab.local-3" in str(refused.value)
    with pytest.raises(SettingError, match=r"^adoptedSigningKeys: "):
        check(declared(*both, adopted=ANOTHER_NEXT))
    check(declared(*both, adopted=NEXT))
    check(declared(OLD.name, "s3.homelab.local-3"))
    assert read
    read.clear()
    check(declared(OLD.name))
    assert not read

    # The first has been retired since: what clients trust is the second.
    def known(adopted: SecretKey | None = None, name: str = NEXT.name) -> frozenset[str]:
        return adoption.known_to_clients(settings, declared(name, adopted=adopted), server)

    assert known(NEXT) == {NEXT.name}
    assert known(ANOTHER_NEXT) == known() == known(NEXT, "s3.homelab.local-3") == frozenset()
    monkeypatch.setattr(Server, "lifecycle", lambda *_: None)
    assert known(NEXT) == frozenset()


def test_a_name_is_told_from_one_that_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has names as they are, whatever letters they are made of."""
    named = SecretKey.generate("cache")
    keys = SigningKeys((named.name,), {named.name: named.to_nix()})
    settings = parse(configuration())
    server = Server("s3", True, "us-east-1", "pulumi", "password", None)
    monkeypatch.setattr(Server, "lifecycle", lambda *_: Lifecycle())

    def shown(*there: SecretKey) -> frozenset[str]:
        monkeypatch.setattr(Server, "objects", lambda *_: iter(()))
        monkeypatch.setattr(Server, "read", lambda *_: page(*there)["use.html"])
        adoption.check_new_keys(settings, keys, server, state())
        return adoption.known_to_clients(settings, keys, server)

    others = [SecretKey.generate(f"{start}cache") for start in ("my@", "a/", "b_", "c.", "d-")]
    assert shown(*others) == frozenset()
    assert shown(named, *others) == {named.name}
    with pytest.raises(SettingError, match=r"another key of the name cache, .* or write cache-1"):
        shown(SecretKey.generate(named.name))


@pytest.mark.parametrize("total", [200, 6_000])
def test_what_signed_last_is_found_wherever_its_narinfos_stand(
    monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    """Without more requests: those for pages of the listing take the place of some for narinfos."""
    requests: list[str] = []
    old, new = narinfo(OLD), narinfo(OLD, NEXT)
    names = [f"{nix32_encode(hashlib.sha1(b'%d' % n).digest())}.narinfo" for n in range(total)]
    begin = datetime(2026, 11, 28, tzinfo=timezone.utc)
    written = {
        **dict.fromkeys(names, begin),
        **dict.fromkeys((f"nar/{name}" for name in names), begin + timedelta(days=1)),
    }

    def listed(_server: Server, _bucket: str, after: str = "") -> Iterator[tuple[str, datetime]]:
        for number, key in enumerate(sorted(key for key in written if key > after)):
            if number % 1_000 == 0:
                requests.append(f"after {after}")
            yield key, written[key]

    def content(_server: Server, _bucket: str, key: str, _most: int) -> bytes | None:
        requests.append(key)
        return (old if written.get(key) == begin else new) if key in names else None

    monkeypatch.setattr(Server, "objects", listed)
    monkeypatch.setattr(Server, "read", content)
    server = Server("s3", True, "us-east-1", "pulumi", "password", None)
    keys = SigningKeys((OLD.name, NEXT.name), {})

    def check() -> int:
        requests.clear()
        adoption.check_new_keys(parse(configuration()), keys, server, state(OLD))
        assert len({*requests}) == len(requests)
        return len(requests)

    # The page is read too.
    assert check() <= 1 + 65
    ordered = sorted(names)
    pushed_last = [ordered[total // 2 + 1]], ordered[-total // 2 :], ordered[::9]
    for some in pushed_last[1:] if total > 1_000 else pushed_last:
        written.update(
            dict.fromkeys(names, begin), **dict.fromkeys(some, begin + timedelta(hours=1))
        )
        with pytest.raises(SettingError, match=f'"{NEXT.name}": what is in the bucket nix-cache'):
            check()
        assert len(requests) <= 1 + 65


def test_a_few_of_many_narinfos_are_read_and_what_is_none_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = bucket(*[b"no narinfo"] * 1_000, b"\xff")
    read = check(monkeypatch, {**many, "x/y.narinfo": narinfo(OLD), "nar/a": b""})
    # Seven pages further on were asked for in the place of as many.
    assert len([key for key in read if key.endswith(".narinfo")]) == 64 - 7


def test_somebody_elses_page_is_not_replaced_unless_that_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = {"use.html": b"<!doctype html><title>My photos</title>"}
    with pytest.raises(SettingError, match=r"its use.html is somebody else's page"):
        check(monkeypatch, page)
    check(monkeypatch, page, confirmSharedBucket=True)
    check(monkeypatch, page, access="private")
    client = ClientConfiguration("https://elsewhere/nix-cache", ["a-1:x"], None)
    check(monkeypatch, {"use.html": landing_page(client, 7).encode()})


def granting(*actions: str) -> str:
    return json.dumps({"Statement": [{"Effect": "Allow", "Action": list(actions)}]})


def test_rights_of_others_do_not_go_unless_that_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for canned in (anonymous_policy("nix-cache", True, True), granting("s3:GetBucketLocation")):
        check(monkeypatch, {}, policy=canned)
    more = granting("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
    with pytest.raises(SettingError, match=r"its policy grants s3:DeleteObject, s3:PutObject, and"):
        check(monkeypatch, {}, policy=more)
    for odd in ("no JSON", "[]", '{"Statement": [1]}', '{"Statement": [{"NotAction": "s3:*"}]}'):
        with pytest.raises(SettingError, match=r"its policy grants something unusual, and"):
            check(monkeypatch, {}, policy=odd)
    check(monkeypatch, {}, policy=more, confirmSharedBucket=True)
    with pytest.raises(SettingError, match=r"its policy grants s3:DeleteObject, s3:PutObject, and"):
        check(monkeypatch, {}, policy=more, access="private")


def statement(**changes: object) -> dict[str, object]:
    """Return the statement of terraform's public-read policy, changed."""
    reading = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}
    return {**reading, "Resource": "arn:aws:s3:::nix-cache/*", **changes}


def said(monkeypatch: pytest.MonkeyPatch, *statements: object, **changes: Any) -> list[str]:
    """Return what is said of adopting a bucket whose policy has these statements."""
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "info", told.append)
    monkeypatch.setattr(pulumi.log, "warn", told.append)
    policy = json.dumps({"Statement": statements}) if statements else None
    check(monkeypatch, {}, policy=policy, **changes)
    return told


MC_DOWNLOAD = (
    {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetBucketLocation", "s3:ListBucket"],
        "Resource": ["arn:aws:s3:::nix-cache"],
    },
    statement(Principal={"AWS": ["*"]}, Action=["s3:GetObject"]),
)
"""What `mc anonymous set download` writes (RELEASE.2025-08-13)."""


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"Effect": "Deny", "Action": "s3:DeleteObject"}, "denies s3:DeleteObject"),
        (
            {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}},
            "s3:GetObject under a condition",
        ),
        ({"Principal": {"AWS": "arn:aws:iam::1:user/a"}}, "s3:GetObject for some users alone"),
        ({"Principal": 7, "Resource": {"a": 7}}, "s3:GetObject for some users alone"),
        ({"Principal": {"CanonicalUser": "1"}}, "s3:GetObject for some users alone"),
        (
            {"Resource": ["arn:aws:s3:::nix-cache/public/*"]},
            "s3:GetObject for some objects alone",
        ),
    ],
)
def test_a_bucket_that_is_not_open_to_everyone_is_opened_only_with_a_confirmation(
    monkeypatch: pytest.MonkeyPatch, limit: dict[str, object], words: str
) -> None:
    limited = statement(**limit)
    for access in ("public", "private"):
        with pytest.raises(SettingError) as refused:
            said(monkeypatch, statement(), limited, access=access)
        assert f"its policy limits who may do what ({words}), and the" in str(refused.value)
        assert "set confirmSharedBucket to true" in str(refused.value)
    assert said(monkeypatch, limited, confirmSharedBucket=True) == [
        f"bucket nix-cache: its policy goes, which limits who may do what ({words})",
        "access: everyone may read all of bucket nix-cache from now on; its policy of before does "
        "not say so",
    ]


def test_who_may_read_a_bucket_from_its_adoption_on_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everyone = {**statement(), "Sid": "PublicRead"}
    for opened in ([everyone], MC_DOWNLOAD, [statement(Principal={"AWS": "*"})]):
        assert said(monkeypatch, *opened) == []
        assert said(monkeypatch, *opened, access="private") == [
            "access: bucket nix-cache is open, and nobody reads it without a credential any more"
        ]
    # What a private cache of this program has.
    closed = json.loads(anonymous_policy("nix-cache", False, False))["Statement"]
    none: list[object] = []
    for shut in (closed, none):
        assert said(monkeypatch, *shut, access="private") == []
        (sentence,) = said(monkeypatch, *shut)
        assert sentence.startswith("access: everyone may read all of bucket nix-cache from now on")


def test_what_the_caches_own_description_says_otherwise_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "info", told.append)
    info = b"StoreDir: /nix/store\nPriority: 10\x1b[2J\n"
    check(monkeypatch, {"nix-cache-info": info}, access="private")
    assert told == ["nix-cache-info: Priority: 10?[2J → 40"]


def test_a_cache_of_another_store_is_not_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"it is a cache for a store at /opt/hpc/store, and"):
        check(monkeypatch, {"nix-cache-info": b"StoreDir: /opt/hpc/store\nPriority: 40\n"})
    for info in (b"StoreDir: /nix/store\n", b"Priority: 40\n", b"\xff", b""):
        check(monkeypatch, {"nix-cache-info": info})


def test_whose_signatures_clients_will_not_know_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", told.append)
    check(monkeypatch, bucket(narinfo(ELSEWHERE)))
    (sentence,) = told
    assert "is also signed by cache.example.org-1, which this stack does not have" in sentence
    check(monkeypatch, bucket(narinfo(ELSEWHERE)), upstreamKeys=[str(ELSEWHERE.public_key)])
    check(monkeypatch, bucket(narinfo(OLD), narinfo()), OLD)
    assert told == [sentence]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-secret-from-before", "line 1 is no user:secret"),
        ("nixbuilder:short", "line 1 is no user:secret"),
        (
            "\nsomebody:a-secret-from-before",
            "line 2 has a user that no builder is, nor the reader of a private cache; take it",
        ),
        (
            "nixbuilder:a-secret-from-before\nnixbuilder:a-secret-from-before",
            "line 2 has the user of a line before it",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named_without_its_text(text: str, expected: str) -> None:
    builder = {"name": "here", "local": True, "s3User": "nixbuilder"}
    with pytest.raises(pulumi.RunError) as refusal:
        parse(configuration(builders=[builder], adoptedUserSecrets=text))
    assert f"adoptedUserSecrets: {expected}" in str(refusal.value)
    assert "a-secret-from-before" not in str(refusal.value)
    assert "short" not in str(refusal.value)


def test_actions_that_a_policy_grants_do_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actions = [f"s3:{number}" * 100 for number in range(99)]
    with pytest.raises(SettingError) as refused:
        check(monkeypatch, {}, policy=granting("\x1b[2J\x9b", *actions))
    message = str(refused.value)
    assert message.isprintable()
    assert "its policy grants ?[2J?, s3:0s3:0" in message
    assert " and 90 more, and the cache's would take its place; grant it elsewhere" in message
    assert len(message) < 1_500
