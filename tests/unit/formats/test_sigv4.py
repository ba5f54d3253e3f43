"""Signed requests: against what AWS publishes, and against MinIO's signer."""

from __future__ import annotations

from datetime import datetime, timezone
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3

from formats.sigv4 import UNSIGNED_PAYLOAD, Signer, encoded_path, encoded_query

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
WHEN = datetime(2013, 5, 24, tzinfo=timezone.utc)
AWS = Signer("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
HOST = "examplebucket.s3.amazonaws.com"


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "payload", "names", "signature"),
    [
        (
            "GET",
            "/test.txt",
            (),
            {"Range": "bytes=0-9"},
            EMPTY,
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test$file.text",
            (),
            {
                "Date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
            },
            "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET",
            "/",
            (("lifecycle", ""),),
            {},
            EMPTY,
            "host;x-amz-content-sha256;x-amz-date",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET",
            "/",
            (("prefix", "J"), ("max-keys", "2")),
            {},
            EMPTY,
            "host;x-amz-content-sha256;x-amz-date",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
    ids=["get an object", "put an object", "get the lifecycle", "list objects"],
)
def test_the_signatures_are_those_that_aws_publishes(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    query: tuple[tuple[str, str], ...],
    headers: dict[str, str],
    payload: str,
    names: str,
    signature: str,
) -> None:
    """ "Signature Calculations for the Authorization Header", which signs the body's sum."""
    monkeypatch.setattr("formats.sigv4.UNSIGNED_PAYLOAD", payload)
    signed = AWS.signed(method, HOST, path, query, headers, WHEN)
    assert signed["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    assert signed["x-amz-date"] == "20130524T000000Z"


keys = st.text(st.characters(codec="utf-8", exclude_characters="/?#"), min_size=1, max_size=20)
values = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]),
    keys,
    st.dictionaries(st.sampled_from(["prefix", "start-after", "uploadId", "uploads"]), values),
    st.dictionaries(
        st.sampled_from(["content-type", "x-amz-copy-source", "X-Amz-Metadata-Directive"]),
        st.text("abc /=-", max_size=10).map(str.split).map(" ".join),
    ),
    st.sampled_from(["us-east-1", "eu-west-1"]),
)
def test_the_signatures_are_those_of_minios_signer(
    method: str, key: str, query: dict[str, str], headers: dict[str, str], region: str
) -> None:
    host, secret = "s3.example:9000", "a secret \u00e9"
    path = f"/cache/{key}"
    pairs = tuple(query.items())
    ours = Signer("me", secret, region).signed(method, host, path, pairs, headers, WHEN)
    text = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    theirs = sign_v4_s3(
        method=method,
        url=urlsplit(f"https://{host}{quote(path, safe='/~')}?{text}"),
        region=region,
        headers={
            **headers,
            "Host": host,
            "x-amz-content-sha256": UNSIGNED_PAYLOAD,
            "x-amz-date": "20130524T000000Z",
        },
        credentials=Credentials("me", secret),
        content_sha256=UNSIGNED_PAYLOAD,
        date=WHEN,
    )
    assert ours["authorization"] == theirs["Authorization"]


def test_a_session_token_is_sent_and_signed() -> None:
    signer = Signer("me", "secret", "us-east-1", "token")
    signed = signer.signed("GET", HOST, "/", (), {}, WHEN)
    assert signed["x-amz-security-token"] == "token"
    assert "x-amz-date;x-amz-security-token," in signed["authorization"]
    assert "x-amz-security-token" not in AWS.signed("GET", HOST, "/", (), {}, WHEN)


def test_headers_are_in_lower_case_and_without_blanks_around() -> None:
    signed = AWS.signed("GET", HOST, "/", (), {"Content-Type": "  text/xml "}, WHEN)
    assert signed["content-type"] == "text/xml"
    assert "Content-Type" not in signed
    assert signed["host"] == HOST
    assert signed["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


def test_what_stands_in_a_request_is_encoded_once() -> None:
    assert encoded_path("/cache/nar/a b+c%\u00e9~_.-$") == "/cache/nar/a%20b%2Bc%25%C3%A9~_.-%24"
    assert encoded_query([("b", "x y/z"), ("a", "+&="), ("a", "")]) == "a=&a=%2B%26%3D&b=x%20y%2Fz"
    assert encoded_query([]) == ""


def test_no_representation_shows_the_secret() -> None:
    signer = Signer("me", "hidden", "us-east-1", "token")
    assert "hidden" not in repr(signer)
    assert "token" not in repr(signer)
    assert "hidden" not in str(signer.signed("GET", HOST, "/", (), {}, WHEN))
