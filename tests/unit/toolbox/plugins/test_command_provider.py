from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from toolbox.plugins.command_provider import (
    LOCAL,
    Tasks,
    connection_failures,
    type_failures,
    with_defaults,
)
from toolbox.plugins.property_values import UNKNOWN, Secret
from toolbox.plugins.resource_provider import ResourceError


def test_what_is_cancelled_has_ended_when_cancel_returns() -> None:
    begun, ended = threading.Event(), threading.Event()

    async def slow_to_end() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(10_000):
                await asyncio.sleep(0)
            ended.set()

    tasks = Tasks()
    with ThreadPoolExecutor() as threads:
        running = threads.submit(tasks.run, slow_to_end())
        begun.wait(30)
        tasks.cancel()
        assert ended.is_set()
        with pytest.raises(ResourceError, match="cancelled"):
            running.result(30)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"creat": "x"}, "creat"),
        ({"create": 1}, "create"),
        ({"create": True}, "create"),
        ({"interpreter": "sh"}, "interpreter"),
        ({"interpreter": ["sh", 1]}, "interpreter[1]"),
        ({"environment": {"A": 1}}, "environment[A] value"),
        ({"addPreviousOutputInEnv": "no"}, "addPreviousOutputInEnv"),
        ({"triggers": "a"}, "triggers"),
    ],
)
def test_a_fault_in_arguments_is_named(arguments: dict[str, Any], place: str) -> None:
    ((named, reason),) = type_failures(arguments, LOCAL, "local.CommandInputs")
    assert named == place
    assert "local.CommandInputs" in reason


def test_arguments_that_are_not_known_yet_are_no_fault() -> None:
    arguments = dict.fromkeys(LOCAL, UNKNOWN)
    assert type_failures(arguments, LOCAL, "local.CommandInputs") == []
    inside = {"interpreter": [UNKNOWN], "environment": {"A": UNKNOWN}}
    assert type_failures(inside, LOCAL, "local.CommandInputs") == []


@pytest.mark.parametrize(
    ("connection", "reason"),
    [
        ("builder", "must be a 'remote.Connection'"),
        ({}, "host: Missing required field"),
        ({"host": "a", "hostname": "a"}, "hostname: Unrecognized field"),
        ({"host": "a", "dialErrorLimit": 1.5}, "dialErrorLimit: Field"),
        ({"host": "a", "proxy": {}}, "proxy: An error occurred decoding 'Connection.proxy'"),
        (
            {"host": "a", "proxy": {"host": "b", "proxy": {"host": "c"}}},
            "Unrecognized field 'proxy'",
        ),
    ],
)
def test_a_fault_in_a_connection_is_named(connection: object, reason: str) -> None:
    ((place, text),) = connection_failures(connection)
    assert place == "connection"
    assert reason in text


def test_a_connection_and_its_proxy_get_defaults_and_secrets() -> None:
    whole = with_defaults(
        {"host": "a", "privateKey": "k", "proxy": {"host": "b", "user": "u", "password": "p"}}
    )
    assert whole == {
        "host": "a",
        "user": "root",
        "port": 22,
        "privateKey": Secret("k"),
        "dialErrorLimit": 10,
        "perDialTimeout": 15,
        "proxy": {
            "host": "b",
            "user": "u",
            "port": 22,
            "password": Secret("p"),
            "dialErrorLimit": 10,
            "perDialTimeout": 15,
        },
    }
