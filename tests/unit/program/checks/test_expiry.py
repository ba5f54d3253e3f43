"""What a lifecycle would take of a bucket that is adopted with rules of its own."""

from __future__ import annotations

from datetime import datetime, timezone

import pulumi
import pytest

from components.retention import ExpirationRule, expiration_rules
from program.checks import expiry
from program.checks.bucket_settings import Lifecycle
from program.checks.recorded import STACK, Recorded
from program.checks.s3_client import Server
from program.settings.stack import Settings, parse
from tests.unit.configuration import configuration
from tests.unit.recording_mocks import use_recording_mocks

ENTRIES = "data would be lost: retention is shortened: entries"
NARS = "data would be lost: retention is shortened: NARs"


def told(
    monkeypatch: pytest.MonkeyPatch,
    *rules: ExpirationRule,
    entries: int = 1,
    preview: bool = True,
    adopted: bool = True,
) -> list[str]:
    """Return what is said of a bucket that has these rules, and the program's of 7 days next."""
    use_recording_mocks(preview=preview)
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    now = datetime.now(timezone.utc)
    names = [f"{number:032}.narinfo" for number in range(entries)]
    monkeypatch.setattr(Server, "objects", lambda *_: ((name, now) for name in names))
    monkeypatch.setattr(Server, "read", lambda *_: None)
    server = Server("s3", True, "us-east-1", "pulumi", "password", None)
    settings = parse(configuration())
    expiry.check(settings, server, Lifecycle(rules), adopted=adopted)
    return said


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            (),
            [
                f"{ENTRIES} that lived for ever now expire after 7 days",
                f"{NARS} that lived for ever now expire after 8 days",
            ],
        ),
        (
            expiration_rules(30, 1),
            [
                f"{ENTRIES} now expire after 7 days instead of 30",
                f"{NARS} now expire after 8 days instead of 31",
            ],
        ),
        ((ExpirationRule("all", "", 7),), []),
        (
            (ExpirationRule("nar", "nar/", 5),),
            [f"{ENTRIES} that lived for ever now expire after 7 days"],
        ),
        (expiration_rules(3, 1), []),
    ],
    ids=["none", "longer", "one for everything", "NARs alone", "shorter"],
)
def test_what_an_adopted_bucket_loses_is_told_by_its_own_rules(
    monkeypatch: pytest.MonkeyPatch, rules: tuple[ExpirationRule, ...], words: list[str]
) -> None:
    assert told(monkeypatch, *rules) == words


def test_nothing_is_lost_where_nothing_is_and_the_state_tells_of_the_stacks_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told(monkeypatch, entries=0) == []
    assert told(monkeypatch, adopted=False) == []
    assert told(monkeypatch, preview=False) == []


def test_who_pushes_unasked_is_to_be_told_that_entries_expire_from_now_on() -> None:
    names = ("laptop", "new", "pushed")
    builders = [{"name": name, "local": True} for name in names]
    path = f"/nix/store/{'a' * 32}-x"
    settings = parse(configuration(builders=[*builders[:2], {**builders[2], "closures": [path]}]))

    def told(renew: str, settings: Settings = settings) -> str | None:
        nixos = {"push": {"renew": renew}, "builders": {"laptop": {}, "pushed": {}}}
        state = Recorded({"urn:stack": {"type": STACK, "outputs": {"nixos": nixos}}})
        return expiry.renewals_begin(settings, state)

    assert told("no") == (
        "expire goes on: pushes that no deployment starts renew nothing until they go by the new "
        "output nixos; give it to laptop, CI jobs and builders with a timer, or what they push is "
        "gone 7 days after it was written"
    )
    assert told("yes") is None
    assert told("no", parse(configuration(expire=False))) is None
    assert expiry.renewals_begin(settings, Recorded({})) is None
