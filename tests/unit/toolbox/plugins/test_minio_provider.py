from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest
from minio.lifecycleconfig import Expiration

from toolbox.plugins import planned_state
from toolbox.plugins.minio_provider import Server, expiration_of, unique_id
from toolbox.plugins.planned_state import Attribute, Schema
from toolbox.plugins.policy_equivalence import equivalent
from toolbox.plugins.property_values import UNKNOWN, Properties, Secret
from toolbox.plugins.resource_provider import ResourceError

SCHEMA: Schema = {
    "name": Attribute(required=True, replaces=True),
    "kind": Attribute(default="plain"),
    "on": Attribute("boolean", default=False),
    "note": Attribute(),
    "other": Attribute(conflicts=("note",)),
    "mark": Attribute(computed=True),
    "word": Attribute(computed=True, secret=True),
    "labels": Attribute("map"),
    "parts": Attribute(
        "list", items={"id": Attribute(required=True), "seen": Attribute(output=True)}
    ),
    "born": Attribute(output=True),
}
STATE: Properties = {
    "name": "a",
    "kind": "plain",
    "on": False,
    "note": "n",
    "other": None,
    "mark": "m",
    "word": "w",
    "labels": {"k": "v"},
    "parts": [{"id": "1", "seen": "yes"}],
    "born": "b",
}


def planned(**inputs: object) -> Properties:
    return planned_state.plan(STATE, {"name": "a", **inputs}, SCHEMA)


def test_a_new_resource_does_not_know_yet_what_is_computed() -> None:
    new = planned_state.plan(None, {"name": "a", "parts": [{"id": "1"}]}, SCHEMA)
    assert new == {
        "name": "a",
        "kind": "plain",
        "on": False,
        "note": None,
        "other": None,
        "mark": UNKNOWN,
        "word": UNKNOWN,
        "labels": None,
        "parts": [{"id": "1", "seen": UNKNOWN}],
        "born": UNKNOWN,
    }


def test_a_computed_attribute_that_is_left_out_is_kept() -> None:
    assert planned()["mark"] == "m"
    assert planned(mark="x")["mark"] == "x"


def test_an_attribute_that_is_left_out_is_removed() -> None:
    assert planned()["note"] is None
    assert planned()["labels"] == {}


def test_a_removed_attribute_is_stored_as_an_empty_one() -> None:
    assert planned_state.settle(STATE, planned(), SCHEMA)["note"] == ""


def test_leaving_out_what_is_empty_already_is_no_change() -> None:
    state = {**STATE, "note": "", "labels": {}}
    inputs = {"name": "a", "parts": [{"id": "1"}]}
    plan = planned_state.plan(state, inputs, SCHEMA)
    assert planned_state.diff(state, plan, SCHEMA, delete_before_replace=True).details == {}


def test_a_change_of_a_replacing_attribute_replaces() -> None:
    given = {"name": "b", "note": "n", "labels": {"k": "v"}, "parts": [{"id": "1"}]}
    plan = planned_state.plan(STATE, given, SCHEMA)
    difference = planned_state.diff(STATE, plan, SCHEMA, delete_before_replace=True)
    assert difference.details == {"name": "UPDATE_REPLACE"}
    assert difference.delete_before_replace


def test_an_update_never_deletes_before_it_replaces() -> None:
    plan = planned(note="x", labels={"k": "v"}, parts=[{"id": "1"}])
    difference = planned_state.diff(STATE, plan, SCHEMA, delete_before_replace=True)
    assert difference.details == {"note": "UPDATE"}
    assert not difference.delete_before_replace


def test_a_check_names_every_fault_and_where_it_is() -> None:
    news = {"nmae": "a", "note": 1, "other": "o", "parts": [{"id": "1", "x": 1}], "born": "now"}
    _, failures = planned_state.check("thing", news, SCHEMA)
    places = {reason.rpartition("'thing.")[2].rstrip("'.") for _, reason in failures}
    assert places == {"nmae", "note", "other", "parts[0].x", "born", "name"}


def test_a_check_adds_defaults_and_says_which() -> None:
    inputs, failures = planned_state.check("thing", {"name": "a", "note": None}, SCHEMA)
    assert failures == []
    assert inputs == {"name": "a", "kind": "plain", "__defaults": ["kind"]}


def test_a_check_marks_secrets() -> None:
    inputs, _ = planned_state.check("thing", {"name": "a", "word": "w"}, SCHEMA)
    assert inputs["word"] == Secret("w")


def test_a_check_leaves_unknown_values_to_the_update() -> None:
    inputs, failures = planned_state.check("thing", {"name": UNKNOWN, "parts": UNKNOWN}, SCHEMA)
    assert failures == []
    assert inputs["parts"] is UNKNOWN


def test_a_refresh_keeps_to_the_inputs_that_were_given() -> None:
    outputs = {**STATE, "note": "drifted", "parts": [{"id": "2", "seen": "yes"}, {"id": "3"}]}
    given = {"name": "a", "note": "n", "parts": [{"id": "1", "__defaults": []}], "__defaults": []}
    assert planned_state.inputs_now(given, outputs, SCHEMA) == {
        "name": "a",
        "note": "drifted",
        "parts": [{"id": "2"}],
    }


def test_an_import_takes_what_is_neither_empty_nor_a_default() -> None:
    found = planned_state.inputs_now({}, {**STATE, "labels": {}, "on": True}, SCHEMA)
    assert found == {
        "name": "a",
        "on": True,
        "note": "n",
        "mark": "m",
        "word": Secret("w"),
        "parts": [{"id": "1", "__defaults": []}],
        "__defaults": [],
    }


STATEMENT: dict[str, object] = {
    "Effect": "Allow",
    "Principal": {"AWS": ["*"]},
    "Action": ["s3:GetObject", "s3:PutObject"],
    "Resource": "arn:aws:s3:::a/*",
    "Condition": {"StringEquals": {"k": ["a", "b"]}},
}


def policy(*statements: dict[str, object]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


@pytest.mark.parametrize(
    "change",
    [
        {"Action": ["s3:PutObject", "s3:GetObject"]},
        {"Principal": {"AWS": "*"}},
        {"Resource": ["arn:aws:s3:::a/*"]},
        {"Condition": {"StringEquals": {"k": ["b", "a"]}}},
        {"Sid": ""},
    ],
)
def test_a_policy_may_be_written_in_many_ways(change: dict[str, object]) -> None:
    assert equivalent(policy(STATEMENT), policy({**STATEMENT, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"Action": ["s3:GetObject"]},
        {"Effect": "Deny"},
        {"Principal": "*"},
        {"Resource": "arn:aws:s3:::b/*"},
        {"Condition": {"StringEquals": {"k": ["a"]}}},
        {"Sid": "x"},
    ],
)
def test_a_policy_that_says_something_else_is_another(change: dict[str, object]) -> None:
    assert not equivalent(policy(STATEMENT), policy({**STATEMENT, **change}))


def test_statements_may_come_in_any_order() -> None:
    denial = {**STATEMENT, "Effect": "Deny"}
    assert equivalent(policy(STATEMENT, denial), policy(denial, STATEMENT))


@pytest.mark.parametrize("text", ["", "x", "[]", "3", '{"Statement": [3]}'])
def test_what_is_no_policy_is_equivalent_to_none(text: str) -> None:
    assert not equivalent(policy(STATEMENT), text)


@pytest.mark.parametrize(
    ("text", "expiration"),
    [
        ("7d", Expiration(days=7)),
        ("007days", Expiration(days=7)),
        ("2030-01-31", Expiration(date=datetime(2030, 1, 31, tzinfo=timezone.utc))),
        ("DeleteMarker", Expiration(expired_object_delete_marker=True)),
        ("0d", None),
        ("7", None),
        ("-7d", None),
        ("2030-02-31", None),
        ("", None),
    ],
)
def test_an_expiration_is_days_or_a_date_or_the_word(
    text: str, expiration: Expiration | None
) -> None:
    assert expiration_of(text) == expiration


def test_ids_made_in_one_moment_differ() -> None:
    assert len({unique_id("x-") for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"minioServer": "https://s3.example:9000"}, "minio:minioServer is 'https://s3.example"),
        ({"minioServer": "s3.example:9000", "minioSsl": "perhaps"}, "minio:minioSsl is 'perhaps'"),
        (
            {"minioServer": "a:1", "minioSsl": "true", "minioCacertFile": "/no/such/file"},
            "open /no/such/file",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ResourceError, match=named):
        Server(settings)


def test_missing_credentials_are_named_when_they_are_needed() -> None:
    server = Server({"minioServer": "127.0.0.1:1", "minioUser": "u"})
    with (
        pytest.raises(ResourceError, match="unable to look: minio:minioPassword not set"),
        server.asked("unable to look"),
    ):
        pass
