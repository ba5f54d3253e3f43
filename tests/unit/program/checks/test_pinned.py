"""What pins cannot keep: what is not there, and what only a retired key has signed."""

from __future__ import annotations

import pytest

from formats.narinfo import NarInfo
from formats.pin import format_pin, pin_key
from formats.signing import SecretKey
from program.checks.pinned import absent, left_behind, targets_before
from program.checks.recorded import BUCKET, OBJECT, STACK, Recorded
from program.checks.s3_client import Server
from program.settings.signing_keys import SigningKeys
from program.settings.stack import parse
from tests.unit.configuration import configuration

OLD, NEW, THEIRS = (SecretKey.generate(name) for name in ("cache-1", "cache-2", "upstream-1"))
TOP, LIBC, FROM_UPSTREAM = (f"{letter * 32}-{letter}" for letter in "abc")


class Bucket(Server):
    """A server whose bucket has these narinfos."""

    narinfos: dict[str, bytes]

    def etag(self, bucket: str, key: str) -> str | None:
        assert bucket == "nix-cache"
        return "etag" if key in self.narinfos else None

    def read(self, bucket: str, key: str, most: int) -> bytes | None:
        assert bucket == "nix-cache"
        content = self.narinfos.get(key)
        return content if content is None or len(content) <= most else None


def narinfo(name: str, *keys: SecretKey, references: tuple[str, ...] = ()) -> bytes:
    """Return a narinfo that these keys signed."""
    made = NarInfo(
        store_path=f"/nix/store/{name}",
        url="nar/1.nar.zst",
        compression="zstd",
        nar_hash=f"sha256:{'0' * 52}",
        nar_size=1,
        references=references,
        file_size=1,
    )
    signatures = [key.sign(made.fingerprint) for key in keys]
    return (made.format() + "".join(f"Sig: {one}\n" for one in signatures)).encode()


def test_a_new_pin_of_what_nobody_has_pushed_is_told() -> None:
    server = Bucket("s3", True, "us-east-1", "deployer", "secret", None)
    object.__setattr__(server, "narinfos", {f"{LIBC[:32]}.narinfo": b""})
    top, libc = f"/nix/store/{TOP}", f"/nix/store/{LIBC}"
    pins = [{"name": "release", "path": top}, {"name": "libc", "path": libc}]

    def words(server: Server | None, recorded: Recorded, **changes: object) -> list[str]:
        settings = parse(configuration(pins=pins, **changes))
        return [sentence.partition(";")[0] for sentence in absent(settings, server, recorded)]

    release = f"pin release: the cache does not have {top}"
    assert words(server, Recorded({})) == [release]
    assert words(None, Recorded({})) == [release, f"pin libc: the cache does not have {libc}"]
    pushing = [{"name": "here", "local": True, "closures": [top]}]
    assert words(server, Recorded({}), builders=pushing) == []
    kept = {"objectName": pin_key("release"), "content": format_pin([top])}
    # What has gone since is told by the status.
    assert words(server, Recorded({"pin": {"type": OBJECT, "outputs": kept}})) == []


A, B, C = (f"/nix/store/{letter * 32}-{letter}" for letter in "abc")


@pytest.mark.parametrize(
    ("known", "there", "expected"),
    [
        ([A], format_pin([C, B, A]).encode(), (C, B, A)),
        ([], format_pin([B, A]).encode(), (B, A)),
        # Somebody has put an older one back.
        ([C, B, A], format_pin([A]).encode(), (C, B, A)),
        ([C, A], format_pin([B, A]).encode(), (B, A, C)),
        ([B], None, (B,)),
        ([B], b"none of a pin's", (B,)),
        ([B], b"\n", (B,)),
    ],
)
def test_a_pin_keeps_what_the_bucket_says_too_where_the_state_is_older(
    known: list[str], there: bytes | None, expected: tuple[str, ...]
) -> None:
    server = Bucket("s3", True, "us-east-1", "deployer", "secret", None)
    object.__setattr__(server, "narinfos", {} if there is None else {pin_key("live"): there})
    link = {"builder": "here", "link": "/nix/var/nix/gcroots/live"}
    pins = [
        {"name": "live", **link, "keepLast": 3},
        {"name": "last", **link},
        {"name": "release", "path": A},
    ]
    settings = parse(configuration(pins=pins, builders=[{"name": "here", "local": True}]))
    kept = {"objectName": pin_key("live"), "content": format_pin(known)}
    recorded = Recorded({"pin": {"type": OBJECT, "outputs": kept}} if known else {})
    # Of one target only the builder has a say.
    assert targets_before(settings, server, recorded) == {"live": expected}


def told(names: tuple[str, ...], *, top: bytes, libc: bytes) -> list[str]:
    """Return what is said when only these keys stay, of a pin whose closure is of two paths."""
    server = Bucket("s3", True, "us-east-1", "deployer", "secret", None)
    object.__setattr__(server, "narinfos", {f"{TOP[:32]}.narinfo": top})
    server.narinfos[f"{LIBC[:32]}.narinfo"] = libc
    pins = [{"name": "release", "path": f"/nix/store/{TOP}"}]
    settings = parse(configuration(pins=pins))
    content = format_pin([f"/nix/store/{TOP}"])
    recorded = Recorded(
        {
            "stack": {
                "type": STACK,
                "outputs": {"publicKeys": [str(OLD.public_key), str(NEW.public_key)]},
            },
            "bucket": {"type": BUCKET, "outputs": {"bucket": "nix-cache"}},
            "pin": {
                "type": OBJECT,
                "outputs": {"objectName": pin_key("release"), "content": content},
            },
        }
    )
    return list(left_behind(settings, SigningKeys(names, {}), server, recorded))


BOTH = narinfo(TOP, OLD, NEW, references=(LIBC, FROM_UPSTREAM, TOP))


@pytest.mark.parametrize("libc", [narinfo(LIBC, OLD), narinfo(LIBC, OLD, THEIRS)])
def test_what_only_the_retired_key_has_signed_is_said(libc: bytes) -> None:
    (sentence,) = told((NEW.name,), top=BOTH, libc=libc)
    assert sentence == (
        f"pin release: only cache-1 has signed /nix/store/{LIBC}, so clients will refuse that, and "
        "no push renews it; push it from a machine that has it, and retire the key then"
    )


def test_what_another_key_has_signed_too_is_nobodys_concern() -> None:
    assert told((NEW.name,), top=BOTH, libc=narinfo(LIBC, NEW)) == []
    assert told((NEW.name,), top=BOTH, libc=b"no narinfo") == []


def test_where_no_key_goes_nothing_is_read() -> None:
    assert told((OLD.name, NEW.name), top=b"", libc=b"") == []


def test_a_signature_under_the_new_keys_name_must_be_its_own() -> None:
    forged = narinfo(LIBC, OLD, SecretKey.generate(NEW.name))
    assert len(told((NEW.name,), top=BOTH, libc=forged)) == 1


def test_what_nobody_trusted_has_signed_leads_nowhere() -> None:
    """Or whoever writes to the bucket decides how long a deployment reads."""
    unsigned = narinfo(TOP, THEIRS, references=(LIBC,))
    assert told((NEW.name,), top=unsigned, libc=narinfo(LIBC, OLD)) == []
