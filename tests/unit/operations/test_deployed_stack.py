"""What a stack's settings and outputs come to."""

from __future__ import annotations

from typing import Any

import pytest

from formats.signing import SecretKey
from operations import deployed_stack
from operations.deployed_stack import read_stack
from tests.unit.configuration import configuration

KEYS = [str(SecretKey.generate(f"cache.test-{number}").public_key) for number in (1, 2)]


def test_a_builder_is_known_with_its_user_and_the_key_that_signs_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builders = {
        "a": {
            "accessKeyId": "cache-a",
            "secretAccessKey": "[secret]",
            "signingKey": "cache.test-1",
        },
        # As a stack has it that was deployed before that was told.
        "b": {"accessKeyId": "cache-b", "secretAccessKey": "[secret]"},
    }
    outputs = {"substituter": "https://s3.test/cache", "publicKeys": KEYS, "builders": builders}

    def read_output(*arguments: str) -> Any:
        if arguments[0] == "config":
            given = configuration()
            return {f"nixcache:{name}": {"value": value} for name, value in given.items()}
        return outputs

    monkeypatch.setattr(deployed_stack, "read_output", read_output)
    stack = read_stack("homelab")
    assert stack.builders == {"a": "cache-a", "b": "cache-b"}
    assert stack.signed_by == {"a": "cache.test-1"}
