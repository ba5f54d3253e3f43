"""MinIO's admin API: whether what answers is one, and what its answers say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from minio import MinioAdmin
from urllib3 import HTTPResponse, PoolManager
from urllib3.exceptions import ProtocolError

from components.access import read_policy, same_policy, users_of
from program.checks.admin_client import Admin
from program.checks.s3_client import Answer, Server, unreachable
from program.checks.server_error import ServerError

SERVER = Server("s3", True, "us-east-1", "pulumi", "password", None)
POLICY = read_policy("nix-cache", "reader")
WRAPPED = json.dumps({"PolicyName": "p", "Policy": json.loads(POLICY), "CreateDate": "2026"})
RUSTFS = json.dumps({"policy_name": "p", "policy": json.loads(POLICY)})
NESTED = ('{"Statement":' * 900 + "{}" + "}" * 900, "[" * 100_000 + "]" * 100_000)
"""As deep as Python's parser goes and what walks through it does not, and deeper."""
XML = "<Error><Code>NoSuchKey</Code></Error>"


def refused(status: int, body: str) -> Answer:
    return Answer(status, {}, body.encode())


def code(word: str) -> str:
    return json.dumps({"Code": word, "Message": "words that differ from server to server"})


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the server answer with a text, or refuse, or not answer, whatever it is asked."""

    def set_(what: str | Answer | ServerError) -> None:
        def told(*_: object) -> Answer:
            if isinstance(what, ServerError):
                raise what
            return what if isinstance(what, Answer) else Answer(200, {}, what.encode())

        monkeypatch.setattr(Server, "ask", told)

    return set_


@pytest.mark.parametrize(
    "what", [POLICY, WRAPPED, RUSTFS, refused(404, code("XMinioAdminNoSuchPolicy"))]
)
def test_an_answer_of_minios_kind_is_its_admin_api(answer: Any, what: str | Answer) -> None:
    answer(what)
    Admin(SERVER).check()


@pytest.mark.parametrize(
    "what",
    [
        "",
        "<!doctype html>",
        "[]",
        '{"Statements": "none"}',
        *NESTED,
        *(refused(400, text) for text in NESTED),
        Answer(200, {}, b'{"Statement": "\xff"}'),
        refused(404, XML),
        refused(404, XML.replace("NoSuchKey", "NoSuchResource")),
        refused(400, XML),
        refused(403, XML),
        refused(501, ""),
    ],
)
def test_anything_else_is_none_and_the_remedy_is_to_give_the_users(
    answer: Any, what: str | Answer
) -> None:
    answer(what)
    with pytest.raises(ServerError, match=r"no MinIO admin API.* set users to given") as error:
        Admin(SERVER).check()
    assert error.value.subject == "users"


def test_a_server_that_does_not_answer_is_no_other_server(answer: Any) -> None:
    answer(unreachable(ProtocolError("refused")))
    with pytest.raises(ServerError, match=r"no S3 server answers there") as error:
        Admin(SERVER).check()
    assert not error.value.reachable


@pytest.mark.parametrize("virtual", [False, True])
def test_the_api_is_never_in_a_buckets_host_name(
    monkeypatch: pytest.MonkeyPatch, virtual: bool
) -> None:
    asked: list[tuple[str, str, str]] = []

    def request(_pool: object, method: str, url: str, *, headers: Any, **_: Any) -> Any:
        asked.append((method, url, headers["host"]))
        return HTTPResponse(POLICY.encode(), status=200)

    monkeypatch.setattr(PoolManager, "request", request)
    Admin(replace(SERVER, virtual_hosts=virtual)).check()
    where = "https://s3/minio/admin/v3/info-canned-policy?name=readwrite"
    assert asked == [("GET", where, "s3")]


def test_the_deploying_user_may_lack_the_right_to_see_policies(answer: Any) -> None:
    answer(refused(403, code("AccessDenied")))
    with pytest.raises(ServerError, match=r"allow it admin:GetPolicy"):
        Admin(SERVER).check()


def test_an_error_of_the_admin_api_is_told_by_its_code(answer: Any) -> None:
    answer(refused(503, code("XMinioServerNotInitialized")))
    with pytest.raises(ServerError, match=r"answers XMinioServerNotInitialized, when asked to see"):
        Admin(SERVER).check()


@pytest.mark.parametrize(
    "body",
    [
        code("XMinioAdminNoSuchUser"),
        code("NoSuchResource"),
        "<Error><Code>NoSuchResource</Code><Message>user 'nobody' does not exist</Message></Error>",
    ],
)
def test_a_user_that_is_not_there_is_told_by_either_servers_code(answer: Any, body: str) -> None:
    answer(refused(404, body))
    assert Admin(SERVER).user_status("nobody") is None


def test_a_policy_comes_out_of_what_a_server_wraps_it_in(answer: Any) -> None:
    for text in (POLICY, WRAPPED, RUSTFS):
        answer(text)
        assert json.loads(str(Admin(SERVER).policy("p"))) == json.loads(POLICY)


def test_a_users_policies_and_groups_are_told_by_their_names(answer: Any) -> None:
    admin = Admin(SERVER)
    answer(Answer(200, {}, b'{"status": "enabled", "policyName": "one,two"}'))
    assert admin.rights_of("alice") == {"one", "two"}
    answer(Answer(200, {}, b'{"status": "enabled", "policyName": "one", "memberOf": ["staff"]}'))
    assert admin.rights_of("alice") == {"one", "staff"}
    for text in (b'{"status": "enabled"}', b'{"status": "enabled", "policyName": ""}'):
        answer(Answer(200, {}, text))
        assert admin.rights_of("alice") == frozenset()
    answer(refused(404, code("XMinioAdminNoSuchUser")))
    assert admin.rights_of("alice") == frozenset()


@pytest.mark.parametrize("body", ["[]", "none", '"enabled"', *NESTED])
def test_a_user_that_is_told_in_another_way_is_no_user_of_minios(answer: Any, body: str) -> None:
    answer(body)
    with pytest.raises(ServerError, match=r"another answer came"):
        Admin(SERVER).user_status("somebody")


@pytest.mark.parametrize("text", NESTED)
def test_a_policy_that_is_nested_without_end_is_none_of_ours(answer: Any, text: str) -> None:
    answer(text)
    told = Admin(SERVER).policy("p")
    assert told is not None
    assert not same_policy(told, POLICY)
    assert users_of(told, "nix-cache") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"policyMappings": 1}',
        '{"policyMappings": ["users"]}',
        '{"policyMappings": [{"users": 1}]}',
        *NESTED[1:],
    ],
)
def test_holders_that_are_told_in_another_way_are_none_of_minios(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(MinioAdmin, "get_policy_entities", lambda *_: text)
    with pytest.raises(ServerError, match=r"another answer came"):
        Admin(SERVER).holders("p")
