"""Answers of servers that may be anybody's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.error import FormatError
from formats.s3 import (
    LARGEST_ANSWER,
    LARGEST_COPY,
    MOST_PARTS,
    SMALLEST_PART,
    CopiedObject,
    ErrorAnswer,
    ListedObject,
    Listing,
    completion,
    parse_begun_upload,
    parse_completed_upload,
    parse_copied,
    parse_copy,
    parse_error,
    parse_etag,
    parse_listing,
    parse_uploads,
    parse_versions,
)

SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
WHEN = datetime(2026, 11, 26, 12, 30, 15, tzinfo=timezone.utc)


def contents(
    key: str = "nar/a.nar",
    size: str = "7",
    etag: str = "&quot;abc&quot;",
    modified: str = "2026-11-26T12:30:15.123Z",
) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><ETag>{etag}</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def listing(*entries: str, truncated: str = "false", space: str = SPACE) -> bytes:
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult {space}>'
    more = f"<IsTruncated>{truncated}</IsTruncated><EncodingType>url</EncodingType>"
    return f"{head}{more}{''.join(entries)}</ListBucketResult>".encode()


def test_a_page_is_read() -> None:
    prefix = "<CommonPrefixes><Prefix>x%2F</Prefix></CommonPrefixes>"
    page = parse_listing(listing(contents(), contents("a%20b%2Bc", "0"), prefix, truncated="true"))
    assert page == Listing(
        (
            ListedObject("nar/a.nar", 7, "abc", WHEN),
            ListedObject("a b+c", 0, "abc", WHEN),
        ),
        truncated=True,
        last_key="x/",
    )


def test_a_page_of_nothing_has_no_last_key() -> None:
    assert parse_listing(listing()) == Listing((), truncated=False, last_key=None)


@pytest.mark.parametrize("space", ["", 'xmlns="urn:other"', 'xmlns:a="urn:b"'])
def test_namespaces_do_not_matter(space: str) -> None:
    assert len(parse_listing(listing(contents(), space=space)).objects) == 1


@pytest.mark.parametrize("key", ["a%20b", "a+b"])
def test_keys_are_decoded_only_where_the_page_says_so(key: str) -> None:
    plain = listing(contents(key)).replace(b"<EncodingType>url</EncodingType>", b"")
    assert parse_listing(plain).objects[0].key == key
    assert parse_listing(plain).last_key == key


@pytest.mark.parametrize(
    ("encoded", "name"),
    [
        ("a+b", "a b"),
        ("a%20b", "a b"),
        ("a%2Bb", "a+b"),
        ("log/x-g%2B%2B.drv", "log/x-g++.drv"),
        ("log%2Fx-g%2B%2B.drv", "log/x-g++.drv"),
        ("a%252Fb", "a%2Fb"),
        ("a%252Bb", "a%2Bb"),
        ("+lead", " lead"),
        ("%E6%BC%A2", "\u6f22"),
        ("%01x", "\x01x"),
        ("cr%0Dx", "cr\rx"),
        ("%7Et*", "~t*"),
        ("~t%2A", "~t*"),
    ],
)
def test_a_name_is_what_it_was_whichever_way_a_server_writes_it(encoded: str, name: str) -> None:
    page = parse_listing(listing(contents(encoded), truncated="true"))
    assert (page.objects[0].key, page.last_key) == (name, name)
    folder = f"<CommonPrefixes><Prefix>{encoded}/</Prefix></CommonPrefixes>"
    assert parse_listing(listing(folder)).last_key == f"{name}/"
    versions = parse_versions(
        "<ListVersionsResult><EncodingType>url</EncodingType>"
        f"<Version><Key>{encoded}</Key><VersionId>a+b%20c</VersionId></Version>"
        f"<NextKeyMarker>{encoded}</NextKeyMarker>"
        "<NextVersionIdMarker>a+b%20c</NextVersionIdMarker></ListVersionsResult>".encode()
    )
    # Only names are encoded.
    assert (versions.versions[0].key, versions.next_key) == (name, name)
    assert versions.versions[0].id == versions.next_id == "a+b%20c"


@pytest.mark.parametrize(
    "entry",
    [
        contents(size="-1"),
        contents(size="a[$(touch /tmp/owned)]"),
        contents(size="1" * 19),
        contents(size="1e3"),
        contents(size=" 7"),
        contents(size="7 "),
        contents(size="7\n"),
        contents(size="\u0667"),
        contents(size=""),
        contents(size="<x/>7"),
        contents(key=""),
        contents(etag=""),
        contents(etag="a b"),
        contents(etag="x" * 129),
        contents(modified=""),
        contents(modified="yesterday"),
        contents(modified="2026-13-26T12:30:15Z"),
        contents(modified="2026-11-26 12:30:15"),
        contents(modified="2026-11-26T12:30:15+01:00"),
        "<Contents/>",
        "<Contents><Key>x</Key></Contents>",
        "<contents><Key>x</Key></contents>",
    ],
)
def test_an_entry_that_is_none_is_as_good_as_absent(entry: str) -> None:
    page = parse_listing(listing(entry, contents("good")))
    assert [one.key for one in page.objects] == ["good"]


def test_the_last_key_is_that_of_any_entry_so_that_the_listing_goes_on() -> None:
    page = parse_listing(listing(contents("b"), contents("z", size="-1"), contents("c")))
    assert page.last_key == "z"
    assert [one.key for one in page.objects] == ["b", "c"]


def test_the_largest_size_is_larger_than_any_object() -> None:
    (one,) = parse_listing(listing(contents(size="9" * 18))).objects
    assert one.size == 10**18 - 1


@pytest.mark.parametrize("key", ["a%0Ab", "a%00b", "..%2F..%2Fetc", "%ff", "%", "a%zz", "\u20ac"])
def test_odd_keys_are_keys_and_nothing_else(key: str) -> None:
    (one,) = parse_listing(listing(contents(key))).objects
    assert isinstance(one.key, str)
    assert one.key


@pytest.mark.parametrize("value", ["TRUE", "1", "yes", " true", ""])
def test_only_true_is_true(value: str) -> None:
    assert parse_listing(listing(truncated=value)).truncated is False


BOMB = b'<!DOCTYPE a [<!ENTITY b "cccccccccc">]><ListBucketResult>&b;</ListBucketResult>'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"<ListBucketResult>",
        b"<ListBucketResult/><ListBucketResult/>",
        b"<listbucketresult/>",
        b"<Error><Code>X</Code></Error>",
        b"<html><body>Not found</body></html>",
        b"\xff\xfe",
        b"<ListBucketResult>\xff</ListBucketResult>",
        b"<ListBucketResult>\x00</ListBucketResult>",
        b"<ListBucketResult>&undefined;</ListBucketResult>",
        b"<ListBucketResult>&#0;</ListBucketResult>",
        b"<ListBucketResult>&#xD800;</ListBucketResult>",
        b"<x:ListBucketResult/>",
        BOMB,
        b"<!-- x --><ListBucketResult/>",
        b"<ListBucketResult><![CDATA[x]]></ListBucketResult>",
        BOMB.decode().encode("utf-16"),
        '<?xml version="1.0" encoding="UTF-16"?><ListBucketResult/>'.encode("utf-16"),
        b'<?xml version="1.0" encoding="UTF-7"?><ListBucketResult>+ADwAIQ-</ListBucketResult',
        b'<?xml version="1.0"?><?xml version="1.0"?><ListBucketResult/>',
        b" " * (LARGEST_ANSWER + 1),
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    parsers: list[Callable[[bytes], object]] = [
        parse_listing,
        parse_copy,
        parse_begun_upload,
        parse_completed_upload,
        parse_uploads,
    ]
    for parse in parsers:
        with pytest.raises(FormatError, match=r"^an answer (is|declares) "):
            parse(body)


def test_another_encoding_that_an_answer_claims_is_not_believed() -> None:
    body = b'<?xml version="1.0" encoding="ISO-8859-1"?>' + listing(contents("\u00e9"))[39:]
    assert parse_listing(body).objects[0].key == "\u00e9"


def test_an_answer_just_as_large_as_any_is_read() -> None:
    body = listing()
    assert parse_listing(body + b" " * (LARGEST_ANSWER - len(body))).objects == ()


def test_an_answer_with_more_elements_than_any_is_refused() -> None:
    """It would take a hundred times its size in memory."""
    with pytest.raises(FormatError, match=r"^an answer has too many elements$"):
        parse_listing(listing("<a/>" * 1_000_000))
    nested = b"<ListBucketResult>" + b"<a>" * 500_000 + b"</a>" * 500_000 + b"</ListBucketResult>"
    with pytest.raises(FormatError, match=r"^an answer has too many elements$"):
        parse_listing(nested)


def test_a_page_of_a_thousand_with_everything_in_it_is_read() -> None:
    owner = "<Owner><ID>x</ID><DisplayName>y</DisplayName></Owner>"
    checksum = "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>FULL</ChecksumType>"
    restore = "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress></RestoreStatus>"
    more = f"{owner}{checksum}{restore}</Contents>"
    entries = [contents(str(n)).replace("</Contents>", more) for n in range(1000)]
    assert len(parse_listing(listing(*entries)).objects) == 1000


@given(st.binary(max_size=200))
def test_no_bytes_break_a_parser(body: bytes) -> None:
    for parse in (parse_listing, parse_copy, parse_begun_upload, parse_uploads):
        with pytest.raises(FormatError):
            parse(body)
    assert parse_error(body) == ErrorAnswer("", "")


@given(
    st.text(max_size=100), st.sampled_from(["Key", "Size", "ETag", "LastModified", "IsTruncated"])
)
def test_no_text_of_a_listing_breaks_the_parser(text: str, name: str) -> None:
    from xml.sax.saxutils import escape  # noqa: PLC0415

    body = listing(f"<Contents><{name}>{escape(text)}</{name}></Contents>")
    try:
        page = parse_listing(body)
    except FormatError:
        return
    assert page.objects == ()


# ETags, copies, uploads in parts.


@pytest.mark.parametrize(
    ("text", "etag"),
    [
        ('"d41d8cd98f00b204e9800998ecf8427e"', "d41d8cd98f00b204e9800998ecf8427e"),
        ("d41d8cd98f00b204e9800998ecf8427e-12", "d41d8cd98f00b204e9800998ecf8427e-12"),
        ('"a+/=._-Z"', "a+/=._-Z"),
        ("x" * 128, "x" * 128),
    ],
)
def test_an_etag_is_what_servers_of_s3s_kind_send(text: str, etag: str) -> None:
    assert parse_etag(text) == etag


@pytest.mark.parametrize("text", ["", '""', '"', "a b", "a\n", 'W/"a"', "x" * 129, "\u0663", "a,b"])
def test_an_etag_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"^an ETag has characters that no ETag has$"):
        parse_etag(text)


@pytest.mark.parametrize("name", ["CopyObjectResult", "CopyPartResult"])
def test_a_copy_has_an_etag(name: str) -> None:
    body = f"<{name} {SPACE}><ETag>&quot;abc&quot;</ETag></{name}>".encode()
    assert parse_copy(body) == "abc"
    with pytest.raises(FormatError):
        parse_copy(f"<{name}/>".encode())


@pytest.mark.parametrize(
    ("text", "when"),
    [("2026-11-26T12:30:15.123Z", WHEN), ("yesterday", None), ("", None), (None, None)],
)
def test_a_copy_may_tell_when_it_was_written(text: str | None, when: datetime | None) -> None:
    told = "" if text is None else f"<LastModified>{text}</LastModified>"
    body = f"<CopyObjectResult {SPACE}>{told}<ETag>abc</ETag></CopyObjectResult>".encode()
    assert parse_copied(body) == CopiedObject("abc", when)


def test_an_upload_has_an_id() -> None:
    name = "InitiateMultipartUploadResult"
    body = f"<{name} {SPACE}><UploadId>a.b_c~d=+/-Z</UploadId></{name}>".encode()
    assert parse_begun_upload(body) == "a.b_c~d=+/-Z"
    for bad in ("", "a b", "a&amp;b", "x" * 1025, "a\n"):
        with pytest.raises(FormatError, match=r"^an upload has no id$"):
            parse_begun_upload(f"<{name}><UploadId>{bad}</UploadId></{name}>".encode())


def test_what_was_joined_may_have_an_etag() -> None:
    name = "CompleteMultipartUploadResult"
    assert parse_completed_upload(f"<{name}><ETag>a-2</ETag></{name}>".encode()) == "a-2"
    assert parse_completed_upload(f"<{name}/>".encode()) is None
    assert parse_completed_upload(f"<{name}><ETag>a b</ETag></{name}>".encode()) is None
    with pytest.raises(FormatError):
        parse_completed_upload(b"<Error><Code>InternalError</Code></Error>")


def test_uploads_that_were_begun_are_listed_without_those_that_are_none() -> None:
    def upload(key: str, name: str, begun: str) -> str:
        return (
            f"<Upload><Key>{key}</Key><UploadId>{name}</UploadId><Initiated>{begun}</Initiated>"
            "</Upload>"
        )

    entries = [
        upload("nar/a", "one", "2026-11-26T12:30:15Z"),
        upload("nar/b", "a b", "2026-11-26T12:30:15Z"),
        upload("nar/c", "two", "now"),
        "<Upload/>",
        upload("", "three", "2026-11-26T12:30:15.5Z"),
    ]
    name = "ListMultipartUploadsResult"
    body = f"<{name} {SPACE}>{''.join(entries)}</{name}>".encode()
    assert parse_uploads(body) == (("nar/a", "one", WHEN), ("", "three", WHEN))


def test_parts_are_numbered_from_one() -> None:
    assert completion(["a", "b"]) == (
        b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>a</ETag></Part>"
        b"<Part><PartNumber>2</PartNumber><ETag>b</ETag></Part></CompleteMultipartUpload>"
    )


# Refusals.


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("<Error><Code>A1</Code><Message>b c</Message></Error>", ErrorAnswer("A1", "b c")),
        (f"<Error {SPACE}><Code>A</Code></Error>", ErrorAnswer("A", "")),
        ("<Error><Message>b</Message></Error>", ErrorAnswer("", "")),
        ("<Error><Code>a b</Code></Error>", ErrorAnswer("", "")),
        (f"<Error><Code>{'A' * 65}</Code></Error>", ErrorAnswer("", "")),
        (f"<Error><Code>{'A' * 64}</Code></Error>", ErrorAnswer("A" * 64, "")),
        ("<Error><Code>A</Code><Message> \u202eb\n </Message></Error>", ErrorAnswer("A", "b")),
        (
            f"<Error><Code>A</Code><Message>{'x' * 300}</Message></Error>",
            ErrorAnswer("A", "x" * 200),
        ),
        ("<html/>", ErrorAnswer("", "")),
        ("", ErrorAnswer("", "")),
    ],
)
def test_a_refusal_is_a_word_and_a_printable_sentence(body: str, answer: ErrorAnswer) -> None:
    assert parse_error(body.encode()) == answer


def test_the_bounds_are_those_of_s3() -> None:
    assert (LARGEST_COPY, SMALLEST_PART, MOST_PARTS) == (5 * 2**30, 5 * 2**20, 10_000)
