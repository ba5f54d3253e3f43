"""What a change of the list of signing keys means to clients."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest

from formats.signing import SecretKey
from program.checks import key_rotation
from program.checks.key_rotation import describe, refuse_a_step_back
from program.checks.recorded import SIGNING_KEY, STACK, Recorded
from program.settings.reader import SettingError
from program.settings.signing_keys import SigningKeys
from program.settings.stack import parse
from tests.unit.configuration import configuration
from tests.unit.recording_mocks import use_recording_mocks

ONE, TWO, THREE = (SecretKey.generate(f"s3.homelab.local-{number}") for number in (1, 2, 3))


def settings(*keys: SecretKey, adopted: SecretKey | None = None) -> SigningKeys:
    """Return keys of these names."""
    return SigningKeys(
        tuple(key.name for key in keys), {adopted.name: adopted.to_nix()} if adopted else {}
    )


def state(
    *kept: SecretKey,
    told: tuple[SecretKey, ...] | None = None,
    retired: tuple[SecretKey, ...] = (),
) -> Recorded:
    """Return a state with the keys `kept`, whose last deployment made clients trust `told`.

    Clients trusted the keys `retired` before.
    """
    resources: dict[str, dict[str, Any]] = {
        key.name: {
            "type": SIGNING_KEY,
            "outputs": {"key_name": key.name, "public_key": str(key.public_key)},
        }
        for key in kept
    }
    if told is not None:
        keys = [str(key.public_key) for key in told]
        gone = [str(key.public_key) for key in retired]
        outputs = {"publicKeys": keys, "retiredKeys": gone}
        resources["stack"] = {"type": STACK, "outputs": outputs}
    return Recorded(resources)


def check(recorded: Recorded, *keys: SecretKey, **changes: object) -> tuple[str, ...]:
    """Let a deployment with keys of these names be checked; return the names that it has."""
    use_recording_mocks()
    if keys:
        changes["signingKeys"] = [key.name for key in keys]
    return key_rotation.check(parse(configuration(**changes)), recorded).names


def refusal(before: list[SecretKey], now: SigningKeys) -> str:
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


def test_a_name_that_was_retired_long_ago_is_not_given_to_another_key() -> None:
    elsewhere, other = SecretKey.generate("b.test-1"), SecretKey.generate(TWO.name)
    for now in ((ONE, TWO), (elsewhere, TWO)):
        with pytest.raises(SettingError, match=r"this stack has had s3.homelab.local-2; .*local-3"):
            check(state(now[0], told=(now[0],), retired=(TWO,)), *now)
    known = state(ONE, told=(ONE,), retired=(TWO,))
    with pytest.raises(SettingError, match=r"clients trust another key named s3.homelab.local-2"):
        check(known, ONE, TWO, adoptedSigningKeys=other.to_nix())
    assert check(known, ONE, THREE) == (ONE.name, THREE.name)
    assert check(known, ONE, TWO, adoptedSigningKeys=TWO.to_nix()) == (ONE.name, TWO.name)


def test_a_key_that_the_state_still_has_was_never_retired_whatever_the_outputs_say() -> None:
    known = state(ONE, TWO, THREE, told=(ONE,), retired=(TWO, THREE))
    assert check(known, ONE, TWO) == (ONE.name, TWO.name)
    assert key_rotation.retired_now(known, settings(ONE, TWO)) == [str(THREE.public_key)]
    # Another key of its name stays refused, and so does one that is gone.
    other = SecretKey.generate(TWO.name)
    with pytest.raises(SettingError, match=r"clients trust another key named s3.homelab.local-2"):
        check(known, ONE, TWO, adoptedSigningKeys=other.to_nix())
    with pytest.raises(SettingError, match=r"this stack has had s3.homelab.local-3"):
        check(state(ONE, THREE, told=(ONE,), retired=(TWO, THREE)), ONE, TWO)


def test_what_is_retired_is_remembered_until_it_comes_back() -> None:
    known = state(ONE, TWO, told=(ONE, TWO), retired=(THREE,))
    assert key_rotation.retired_now(known, settings(TWO)) == [
        str(key.public_key) for key in (ONE, THREE)
    ]
    assert key_rotation.retired_now(known, settings(ONE, TWO, THREE)) == []


def test_a_key_of_a_deployment_that_failed_is_not_made_again_under_its_name() -> None:
    failed = state(ONE, TWO, told=(ONE,))
    retired = key_rotation.retired_now(failed, settings(ONE))
    assert retired == [str(TWO.public_key)]
    with pytest.raises(SettingError, match=r"this stack has had s3.homelab.local-2; .*local-3"):
        check(state(ONE, told=(ONE,), retired=(TWO,)), ONE, TWO)
    # One that goes on is the key that is there.
    assert check(failed, ONE, TWO) == (ONE.name, TWO.name)
    assert key_rotation.retired_now(failed, settings(ONE, TWO)) == []


def test_all_that_clients_trust_goes_only_where_that_is_confirmed() -> None:
    known = state(ONE, told=(ONE,))
    with pytest.raises(
        SettingError, match=r'signingKeys is \["s3.homelab.local-2"\]: no key stays'
    ):
        check(known, TWO)
    assert check(known, TWO, confirmKeyReplacement=True) == (TWO.name,)
    assert check(known, ONE, TWO) == (ONE.name, TWO.name)
    assert check(state(ONE, TWO, told=(ONE, TWO)), TWO) == (TWO.name,)


def test_an_adopted_key_that_the_bucket_shows_counts_as_one_that_clients_trust() -> None:
    wanted = parse(configuration(signingKeys=[TWO.name], adoptedSigningKeys=TWO.to_nix()))
    asked: list[SigningKeys] = []

    def shown(*names: str) -> Callable[[SigningKeys], Collection[str]]:
        def answer(keys: SigningKeys) -> Collection[str]:
            asked.append(keys)
            return names

        return answer

    use_recording_mocks()
    with pytest.raises(SettingError, match="no key stays that clients trust"):
        key_rotation.check(wanted, state(ONE), shown())
    assert key_rotation.check(wanted, state(ONE), shown(TWO.name)).names == (TWO.name,)
    assert len(asked) == 2
    # Where one stays, nobody need ask.
    assert key_rotation.check(wanted, state(ONE, TWO), shown()).names == (TWO.name,)
    assert len(asked) == 2


def test_another_key_does_not_take_the_name_of_one_that_the_state_has_lost() -> None:
    lost = state(TWO, told=(ONE, TWO))
    with pytest.raises(SettingError, match=r'"s3.homelab.local-1": .* the state has lost it'):
        check(lost, ONE, TWO)
    assert check(lost, TWO) == (TWO.name,)
    adopted = {"adoptedSigningKeys": ONE.to_nix()}
    assert check(lost, ONE, TWO, **adopted) == (ONE.name, TWO.name)


def test_a_key_without_a_number_is_followed_by_numbered_ones_and_its_name_is_not_given_again() -> (
    None
):
    first, second = SecretKey.generate("mycache"), SecretKey.generate("mycache-1")
    listed = {"signingKeyDomains": ["mycache"]}
    adopted = {**listed, "adoptedSigningKeys": first.to_nix()}
    assert check(state(), first, **adopted) == (first.name,)
    both = state(first, told=(first,))
    assert check(both, first, second, **listed) == (first.name, second.name)
    assert check(state(first, second), second, **listed) == (second.name,)
    assert [key.name for key in key_rotation.trusted_before(state(second, first))] == [
        first.name,
        second.name,
    ]
    known = state(second, told=(second,), retired=(first,))
    with pytest.raises(SettingError, match='"mycache": write the cache'):
        check(known, first, second, **listed)
    other = SecretKey.generate("mycache").to_nix()
    with pytest.raises(SettingError, match="clients trust another key named mycache"):
        check(known, first, second, **listed, adoptedSigningKeys=other)
    assert check(known, first, second, **adopted) == (first.name, second.name)
    lost = state(told=(first,))
    with pytest.raises(SettingError, match=r"from its backup, or write mycache-1 in its place"):
        check(lost, first, **listed)


def test_a_first_deployment_that_failed_has_settled_its_keys_already() -> None:
    cdn = {"publicUrl": "https://cdn.example.org"}
    assert check(state(), **cdn) == ("cdn.example.org-1",)
    assert check(state(ONE), **cdn) == (ONE.name,)


def test_the_cache_is_not_its_own_upstream() -> None:
    with pytest.raises(SettingError, match="this is a key of the cache itself"):
        check(state(ONE, told=(ONE,)), upstreamKeys=[str(ONE.public_key)])
    assert check(state(ONE, told=(ONE,)), upstreamKeys=[str(TWO.public_key)]) == (ONE.name,)


def test_another_caches_key_of_the_same_name_is_told_from_the_caches_own() -> None:
    other = str(SecretKey.generate(ONE.name).public_key)
    adopted = {"adoptedSigningKeys": ONE.to_nix()}
    for known, changes in (
        (state(ONE, told=(ONE,)), {}),
        (state(ONE), {}),
        (state(told=(ONE,)), {}),
        (state(), adopted),
    ):
        with pytest.raises(SettingError, match="this is a key of the cache itself"):
            check(known, upstreamKeys=[str(ONE.public_key)], **changes)
        with pytest.raises(SettingError) as refused:
            check(known, upstreamKeys=[other], **changes)
        assert str(refused.value) == (
            f'upstreamKeys is "{ONE.name}": a key of this cache has the same name, and Nix keeps '
            "one key of a name; list a domain in signingKeyDomains, such as cache.example.org, and "
            "name this cache's key after it in signingKeys"
        )


def test_a_key_that_is_not_made_yet_is_known_by_its_name_alone() -> None:
    for known, names in ((state(), (ONE,)), (state(ONE, told=(ONE,)), (ONE, TWO))):
        with pytest.raises(SettingError) as refused:
            check(known, *names, upstreamKeys=[str(names[-1].public_key)])
        assert str(refused.value) == (
            f'upstreamKeys is "{names[-1].name}": this cache will make a key of that name, and Nix '
            "keeps one key of a name; leave it out, or, if it is another cache's, list a domain in "
            "signingKeyDomains, such as cache.example.org, and name this cache's key after it in "
            "signingKeys"
        )


def test_what_is_advised_against_a_name_that_two_caches_have_is_taken() -> None:
    other = str(SecretKey.generate(ONE.name).public_key)
    named = SecretKey.generate("cache.example.org-1")
    changes: dict[str, object] = {
        "upstreamKeys": [other],
        "signingKeyDomains": ["cache.example.org"],
    }
    assert check(state(), named, **changes) == (named.name,)
    # Clients have the old name yet, and follow where that is confirmed.
    changes["confirmKeyReplacement"] = True
    assert check(state(ONE, told=(ONE,)), named, **changes) == (named.name,)


def test_a_builders_own_key_is_one_of_the_stacks() -> None:
    builder = {"name": "a", "local": True, "signingKey": ONE.name}
    assert check(state(), ONE, TWO, builders=[builder]) == (ONE.name, TWO.name)
    with pytest.raises(SettingError) as refused:
        check(state(ONE, TWO, told=(ONE, TWO)), TWO, builders=[builder])
    assert str(refused.value) == (
        f'builders[0].signingKey is "{ONE.name}": signingKeys has no such key; append it there, or '
        f"write one of {TWO.name}"
    )
