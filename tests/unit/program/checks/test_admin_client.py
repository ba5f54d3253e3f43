"""MinIO's admin API: whether what answers is one, and what its answers say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from minio import MinioAdmin
from minio.error import MinioAdminException
from urllib3.exceptions import MaxRetryError

from components.access import read_policy
from program.checks.admin_client import Admin
from program.checks.s3_client import Server
from program.checks.server_error import ServerError

SERVER = Server("s3", True, "us-east-1", "pulumi", "password", None)
POLICY = read_policy("nix-cache", "reader")
WRAPPED = json.dumps({"PolicyName": "p", "Policy": json.loads(POLICY), "CreateDate": "2026"})
RUSTFS = json.dumps({"policy_name": "p", "policy": json.loads(POLICY)})
XML = "<Error><Code>NoSuchKey</Code></Error>"


def refused(status: int, body: str) -> MinioAdminException:
    return MinioAdminException(str(status), body)


def code(word: str) -> str:
    return json.dumps({"Code": word, "Message": "words that differ from server to server"})


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the server answer with a text, or refuse with an exception, whatever it is asked."""

    def set_(what: str | Exception) -> None:
        def told(*_: object) -> str:
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr(MinioAdmin, "policy_info", told)
        monkeypatch.setattr(MinioAdmin, "user_info", told)

    return set_


@pytest.mark.parametrize(
    "what", [POLICY, WRAPPED, RUSTFS, refused(404, code("XMinioAdminNoSuchPolicy"))]
)
def test_an_answer_of_minios_kind_is_its_admin_api(
    answer: Any, what: str | MinioAdminException
) -> None:
    answer(what)
    Admin(SERVER).check()


@pytest.mark.parametrize(
    "what",
    [
        "",
        "<!doctype html>",
        "[]",
        '{"Statements": "none"}',
        refused(404, XML),
        refused(404, XML.replace("NoSuchKey", "NoSuchResource")),
        refused(400, XML),
        refused(403, XML),
        refused(501, ""),
    ],
)
def test_anything_else_is_none_and_the_remedy_is_to_give_the_users(
    answer: Any, what: str | MinioAdminException
) -> None:
    answer(what)
    with pytest.raises(ServerError, match=r"no MinIO admin API.* set users to given") as error:
        Admin(SERVER).check()
    assert error.value.subject == "users"


def test_a_server_that_does_not_answer_is_no_other_server(answer: Any) -> None:
    answer(MaxRetryError(None, "/", Exception("refused")))  # type: ignore[arg-type]
    with pytest.raises(ServerError, match=r"no S3 server answers there") as error:
        Admin(SERVER).check()
    assert not error.value.reachable


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
