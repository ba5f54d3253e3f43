"""JSON that others wrote: what it says, and no deeper than anything that is meant."""

from __future__ import annotations

import json

import pytest

from formats.error import FormatError
from formats.foreign_json import DEEPEST, parse_foreign_json


@pytest.mark.parametrize(
    "value",
    [
        None,
        1.5,
        "text",
        [],
        {},
        {"Statement": [{"Action": ["s3:GetObject"], "Effect": "Allow"}]},
        json.loads("[" * DEEPEST + "]" * DEEPEST),
        json.loads('{"a":' * DEEPEST + "1" + "}" * DEEPEST),
        [[]] * 1000,
    ],
)
def test_what_others_mean_is_read(value: object) -> None:
    assert parse_foreign_json(json.dumps(value)) == value


@pytest.mark.parametrize("levels", [DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}"), ('[1, {"a":', "}]")])
def test_what_is_nested_too_deep_is_refused(levels: int, opened: str, closed: str) -> None:
    for inner in ("1", "[]"):
        with pytest.raises(FormatError, match=f"nested more than {DEEPEST} levels deep"):
            parse_foreign_json(opened * levels + inner + closed * levels)


@pytest.mark.parametrize("text", ["", "<html>", "{", "[" * 10])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="it is not JSON"):
        parse_foreign_json(text)
