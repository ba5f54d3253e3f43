"""What a change of the list of signing keys means to clients."""

from __future__ import annotations

import pytest

from formats.signing import SecretKey
from program.checks.key_rotation import describe, refuse_a_step_back
from program.settings.reader import SettingError
from program.settings.stack import Settings, parse
from tests.unit.configuration import configuration

ONE, TWO, THREE = (SecretKey.generate(f"s3.homelab.local-{number}") for number in (1, 2, 3))


def settings(*keys: SecretKey, adopted: SecretKey | None = None) -> Settings:
    """Return a stack's settings with keys of these names."""
    return parse(
        configuration(
            signingKeys=[key.name for key in keys],
            adoptedSigningKeys=adopted.to_nix() if adopted else "",
        )
    )


def refusal(before: list[SecretKey], now: Settings) -> str:
    """Return what a stack is refused with when clients trust the keys `before`."""
    with pytest.raises(SettingError) as error:
        refuse_a_step_back([key.public_key for key in before], now)
    return str(error.value)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ([], ["a-1"], "a-1 starts being trusted and signs"),
        (["a-1"], ["a-1", "a-2"], "a-1 stays trusted, a-2 starts being trusted and signs"),
        (["a-1", "a-2"], ["a-2"], "a-2 stays trusted and signs, a-1 stops being trusted"),
        (["a-1"], ["b-1"], "b-1 starts being trusted and signs, a-1 stops being trusted"),
        (["a-1", "b-1"], ["b-1", "a-1"], "b-1 stays trusted, a-1 stays trusted and signs"),
    ],
)
def test_every_change_is_said_in_words(before: list[str], now: list[str], words: str) -> None:
    assert describe(before, now) == f"signing keys: {words}"


def test_no_change_is_not_talked_about() -> None:
    assert describe(["a-1", "a-2"], ["a-1", "a-2"]) is None


def test_a_key_may_be_appended_and_the_oldest_retired() -> None:
    refuse_a_step_back([ONE.public_key], settings(ONE, TWO))
    refuse_a_step_back([ONE.public_key, TWO.public_key], settings(TWO))
    refuse_a_step_back([], settings(TWO))


def test_a_retired_name_is_not_given_to_a_new_key() -> None:
    message = refusal([TWO], settings(ONE, TWO))
    assert message.startswith(f'signingKeys is "{ONE.name}": this stack has had {TWO.name}')
    assert "such as s3.homelab.local-3" in message


def test_all_keys_cannot_give_way_to_an_older_one() -> None:
    assert f'"{ONE.name}"' in refusal([TWO, THREE], settings(ONE))


def test_a_key_that_existed_before_may_have_a_lower_integer() -> None:
    refuse_a_step_back([TWO.public_key], settings(ONE, TWO, adopted=ONE))


def test_adopting_the_stacks_own_key_changes_nothing() -> None:
    refuse_a_step_back([ONE.public_key], settings(ONE, adopted=ONE))


def test_an_adopted_key_does_not_take_the_name_of_another() -> None:
    other = SecretKey.generate(ONE.name)
    message = refusal([ONE], settings(ONE, adopted=other))
    assert message.startswith(f"adoptedSigningKeys: clients trust another key named {ONE.name}")
    assert other.to_nix().partition(":")[2] not in message
