from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from toolbox.plugins.property_diff import differences
from toolbox.plugins.property_values import (
    UNKNOWN,
    Secret,
    decode_properties,
    encode_properties,
    has_unknown,
    plain,
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer()),
    st.text(),
    st.just(UNKNOWN),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), inner.map(Secret)),
    max_leaves=8,
)
PROPERTIES = st.dictionaries(st.text(), VALUES)


@given(PROPERTIES)
def test_properties_come_back_from_the_wire_as_they_were(properties: dict[str, Any]) -> None:
    assert decode_properties(encode_properties(properties)) == properties


@given(PROPERTIES)
def test_plain_properties_have_no_secret_left(properties: dict[str, Any]) -> None:
    assert not has_secret(plain(properties))


def has_secret(value: Any) -> bool:
    members = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    return isinstance(value, Secret) or any(has_secret(member) for member in members)


def test_a_secret_does_not_show_itself() -> None:
    assert "word" not in repr(Secret("word"))


def test_an_unknown_is_found_wherever_it_is() -> None:
    assert has_unknown({"a": [{"b": Secret(UNKNOWN)}]})
    assert not has_unknown({"a": [{"b": Secret("known")}]})


@given(PROPERTIES)
def test_properties_do_not_differ_from_themselves(properties: dict[str, Any]) -> None:
    assert differences(properties, properties) == {}


def test_differences_are_named_by_their_paths() -> None:
    old = {"a": 1, "gone": 1, "list": [1, {"x": 1}, 3], "map": {"k": 1, "odd.key": 1}, "s": "x"}
    new = {
        "a": 2,
        "come": 1,
        "list": [1, {"x": 2}],
        "map": {"k": 1, "odd.key": 2},
        "s": Secret("x"),
    }
    assert differences(old, new) == {
        "a": "UPDATE",
        "come": "ADD",
        "gone": "DELETE",
        "list[1].x": "UPDATE",
        "list[2]": "DELETE",
        'map["odd.key"]': "UPDATE",
        "s": "UPDATE",
    }


def test_true_is_not_one() -> None:
    assert differences({"a": True}, {"a": 1}) == {"a": "UPDATE"}
