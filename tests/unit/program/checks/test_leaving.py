"""What a deployment takes away, or leaves where it reaches nothing any more."""

from __future__ import annotations

import json
from typing import Any

import pulumi
import pytest

from formats.keys import PublicKey
from program.checks import deployment, key_rotation, leaving, recorded
from program.checks.recorded import COMMANDS, Recorded
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings, parse
from tests.unit.configuration import HOST_KEY, configuration
from tests.unit.recording_mocks import use_recording_mocks

ANOTHER_KEY = f"{HOST_KEY[:-2]}FE"
DIRECTORY = "/var/lib/nix-binary-cache"


def known(port: int = 22, key: str | None = HOST_KEY, host: str = "ci.local") -> Recorded:
    """Return a state with the files of one builder."""
    urn = f"urn:pulumi:t::nixcache::nixcache:index:BuilderCredentials${COMMANDS[0]}"
    connection = {"host": host, "port": float(port), "hostKey": key, "privateKey": "a-secret"}
    outputs = {"triggers": [host, DIRECTORY], "connection": connection}
    return Recorded({f"{urn}::{host}{DIRECTORY}-files": {"type": COMMANDS[0], "outputs": outputs}})


def wanted(*builders: dict[str, Any]) -> Settings:
    """Return settings with builders that have files in the directory."""
    common = {"host": "ci.local", "hostKey": HOST_KEY, "credentialsDirectory": DIRECTORY}
    listed = [{"name": f"b{n}", **common, **builder} for n, builder in enumerate(builders)]
    for builder in listed:
        if builder.get("insecureHostKey"):
            del builder["hostKey"]
    return parse(configuration(builders=json.dumps(listed)))


@pytest.mark.parametrize(
    ("state", "builders"),
    [
        (known(), [{}]),
        # The same machine, whatever its port.
        (known(2201), [{}]),
        # Nothing was known of it but a port.
        (known(key=None), [{}]),
        (known(), [{"insecureHostKey": True}]),
        # What the other is called gets files of its own in that directory.
        (known(), [{"hostKey": ANOTHER_KEY}, {"host": "other.local"}]),
        # What goes is removed.
        (known(host="former.local"), [{}]),
        (known(), []),
    ],
)
def test_what_stays_a_builders_or_is_removed_is_not_left_behind(
    state: Recorded, builders: list[dict[str, Any]]
) -> None:
    assert list(leaving.stranded(wanted(*builders), state)) == []


@pytest.mark.parametrize(
    ("state", "builder", "begins"),
    [
        (known(), {"hostKey": ANOTHER_KEY}, "another host key than when its files were placed in "),
        (known(2201), {"hostKey": ANOTHER_KEY}, "another port than when its files were placed in "),
        (known(2201, None), {}, "another port than when its files were placed in "),
    ],
)
def test_files_on_a_machine_that_another_one_has_taken_the_name_of_are_told(
    state: Recorded, builder: dict[str, Any], begins: str
) -> None:
    (sentence,) = leaving.stranded(wanted(builder), state)
    assert sentence.startswith(f"builder b0 has {begins}{DIRECTORY} on ci.local")
    assert (" port 2201:" in sentence) is (begins.startswith("another port"))
    assert "secret-access-key, signing-key, .placed-by stay there" in sentence
    assert HOST_KEY not in sentence
    assert "a-secret" not in sentence


def test_a_preview_tells_them_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_recording_mocks(preview=True)
    monkeypatch.setattr(recorded, "read", known)
    monkeypatch.setattr(key_rotation, "check", lambda *_: SigningKeys((), {}))
    deployment.begin(wanted({"hostKey": ANOTHER_KEY}), None)
    assert "stay there, also after a destroy" in caplog.text


def test_a_key_that_goes_is_told_with_those_whom_nobody_hands_another() -> None:
    closures = [f"/nix/store/{'a' * 32}-x"]
    builders = [
        {"name": "laptop", "local": True},
        {"name": "pushed", "local": True, "closures": closures},
        {"name": "placed", "local": True, "credentialsDirectory": DIRECTORY},
        {"name": "new", "local": True},
    ]
    settings = parse(configuration(builders=json.dumps(builders)))
    names: dict[object, object] = {one["name"]: {} for one in builders if one["name"] != "new"}
    stack = {"type": recorded.STACK, "outputs": {"builders": names}}
    state = Recorded({"urn:stack": stack})
    both = ["c.test-1", "c.test-2"]
    assert leaving.holders(settings, state, both, both[1:]) == (
        "c.test-1 stops being trusted, and no deployment hands a key to laptop: see that each, "
        "and each CI job, signs with one that stays, since clients refuse what only the other has "
        "signed"
    )
    assert leaving.holders(settings, state, both, both) is None
    assert leaving.holders(settings, state, both[:1], both) is None
    reached = parse(configuration(builders=json.dumps(builders[1:])))
    assert leaving.holders(reached, state, both, both[1:]) is None
    assert leaving.holders(settings, Recorded({}), both, both[1:]) is None


def test_a_preview_and_an_update_tell_of_both_a_key_that_goes_and_leases_that_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    monkeypatch.setattr(key_rotation, "check", lambda *_: SigningKeys(("c.test-2",), {}))
    monkeypatch.setattr(
        key_rotation, "trusted_before", lambda _: [PublicKey("c.test-1", bytes(32))]
    )
    monkeypatch.setattr(deployment, "_ask_server", lambda _, settled: settled)
    outputs = {"builders": {"a": {}}, "nixos": {"push": {"renew": "no"}, "builders": {"a": {}}}}
    state = Recorded({"urn:stack": {"type": recorded.STACK, "outputs": outputs}})
    monkeypatch.setattr(recorded, "read", lambda: state)
    settings = parse(configuration(builders=json.dumps([{"name": "a", "local": True}])))
    for preview in (True, False):
        use_recording_mocks(preview)
        deployment.begin(settings, None)
        (leases,) = (sentence for sentence in said if sentence.startswith("expire goes on: "))
        (key,) = (sentence for sentence in said if sentence.startswith("c.test-1 stops being"))
        assert "give it to a, CI jobs" in leases
        assert "no deployment hands a key to a: " in key
        said.clear()
