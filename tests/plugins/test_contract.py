from __future__ import annotations

import re

import pytest

from tests.plugins.contract import CONTRACTS, Contract
from tests.plugins.deliberate import DIFFERENCES
from tests.plugins.transcript import LineDifference, Transcript, compare

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=CONTRACTS, ids=[contract.name for contract in CONTRACTS])
def contract(request: pytest.FixtureRequest) -> Contract:
    assert isinstance(request.param, Contract)
    return request.param


@pytest.fixture(scope="module")
def differences(contract: Contract) -> list[LineDifference]:
    official = Transcript.stored(contract.transcript)
    return compare(official, contract.record(contract.drop_in), DIFFERENCES[contract.name])


def test_a_drop_in_answers_as_the_official_plugin_but_where_it_is_said_why(
    differences: list[LineDifference],
) -> None:
    assert [difference for difference in differences if difference.reason is None] == []


def test_every_deliberate_difference_is_one_still(
    contract: Contract, differences: list[LineDifference]
) -> None:
    keys = [difference.key for difference in differences]
    unused = [
        pattern
        for pattern in DIFFERENCES[contract.name]
        if not any(re.fullmatch(pattern, key) for key in keys)
    ]
    assert unused == []
