"""What is removed from a bucket, and what is said where some of it is not."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from formats.s3 import ListedVersion
from operations import empty
from operations.bucket import Bucket, Credential
from operations.pulumi_cli import OperationError
from program.checks.server_error import ServerError
from program.settings.stack import Settings, parse
from tests.unit.configuration import configuration
from tests.unit.push.s3_stand_in import BUCKET, Raw, Reply, Seen, StandIn, error, serving, xml

ODD = [
    "nar/\x01",
    "\x0b.narinfo",
    "a\rb",
    "a\nb",
    "a\tb",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "\ufffe",
    " lead",
    "trail ",
]
"""What XML cannot hold, or programs that read it change."""
PLAIN = ["a b", "a+b", "a%20b", "q'\"<>&.txt", "]]>", "&amp;", "\u6f22", "\U0001f600.txt"]


def refusal(status: int, code: str, message: str = "") -> Reply:
    """Return a refusal as S3's client takes it: it says that it is XML."""
    return replace(error(status, code, message), headers={"Content-Type": "application/xml"})


class Emptied(StandIn):
    """A server from which objects are removed, each but those that it keeps."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.put(name, b"x")
        self.kept: set[str] = set()
        self.script = self.removing
        self.removed: list[str] = []
        """Names and versions as they were asked for."""

    def removing(self, seen: Seen) -> Reply | Raw | None:
        if "versions" in seen.query:
            return refusal(501, "NotImplemented")
        if seen.method == "DELETE":
            self.removed.append(seen.key + seen.query.get("versionId", ""))
            if seen.key in self.kept:
                return refusal(403, "AccessDenied", "kept")
            self.objects.pop(seen.key, None)
            return Reply(204)
        if "delete" not in seen.query:
            return None
        try:
            root = ElementTree.fromstring(seen.body)
        except ElementTree.ParseError:
            return refusal(400, "MalformedXML")
        keys = [one.text or "" for one in root.iter() if one.tag.endswith("}Key")]
        for key in keys:
            if key not in self.kept:
                self.objects.pop(key, None)
        refused = "".join(
            f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>kept</Message></Error>"
            for key in keys
            if key in self.kept
        )
        return xml("DeleteResult", refused)

    def settings(self) -> Settings:
        return parse(configuration(endpoint=self.url, bucket=BUCKET))

    def bucket(self) -> Bucket:
        return Bucket(self.settings(), Credential("u", "p"))


@pytest.fixture
def server() -> Iterator[Emptied]:
    """A bucket with names of all kinds."""
    stand_in = Emptied(*ODD, *PLAIN)
    with serving(stand_in):
        yield stand_in


def versions(names: Collection[str]) -> list[ListedVersion]:
    return [ListedVersion(name, None, 1, current=True) for name in names]


@pytest.mark.parametrize("name", [*ODD, *PLAIN])
def test_an_object_goes_whatever_it_is_called_and_no_other(server: Emptied, name: str) -> None:
    before = server.objects.keys() - {name}
    (removal,) = server.bucket().remove(versions([name]))
    assert (removal.gone, removal.refused) == (1, {})
    assert server.objects.keys() == before
    assert len(server.seen) == 1


def test_what_one_request_can_remove_is_removed_by_one(server: Emptied) -> None:
    removals = list(server.bucket().remove(versions([*ODD, *PLAIN])))
    assert sum(one.gone for one in removals) == len(ODD + PLAIN)
    assert not server.objects
    assert [one.method for one in server.seen] == ["POST", *["DELETE"] * len(ODD)]


def test_of_an_odd_name_the_version_goes_that_was_asked_for(server: Emptied) -> None:
    (removal,) = server.bucket().remove([ListedVersion("a\rb", "-2", 1, current=False)])
    assert (removal.gone, server.removed) == (1, ["a\rb-2"])


def test_what_the_server_keeps_is_named_and_keeps_no_other_from_going(server: Emptied) -> None:
    server.kept = {"a b", "a\rb"}
    removals = list(server.bucket().remove(versions([*ODD, *PLAIN])))
    assert server.objects.keys() == server.kept
    assert sum(one.gone for one in removals) == len(ODD + PLAIN) - 2
    assert [one.refused for one in removals if one.refused] == [{"a b": "kept"}, {"a\rb": "kept"}]


def test_a_page_that_answers_for_one_name_keeps_no_other_from_going(server: Emptied) -> None:
    page = Reply(400, {"Content-Type": "text/html"}, b"<html>bad request</html>")
    server.script = lambda one: page if one.key == ODD[0] else server.removing(one)
    removals = list(server.bucket().remove(versions([*ODD, *PLAIN])))
    assert server.objects.keys() == {ODD[0]}
    assert [name for one in removals for name in one.refused] == [ODD[0]]


def test_a_bucket_that_is_gone_by_then_is_named(server: Emptied) -> None:
    server.script = lambda _: refusal(404, "NoSuchBucket")
    for name in ("a b", "a\rb"):
        with pytest.raises(ServerError, match=f"there is no bucket {BUCKET}"):
            list(server.bucket().remove(versions([name])))


def emptied(server: Emptied, monkeypatch: pytest.MonkeyPatch, *names: str) -> int | None:
    """Empty the bucket as a person does who types its name."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{BUCKET}\n"))
    return empty.empty_one("test", server.settings(), names, ())


def test_a_bucket_of_odd_names_is_empty_afterwards(
    server: Emptied, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert emptied(server, monkeypatch) == 0
    assert capsys.readouterr().out == f"removed {len(ODD + PLAIN)} objects from bucket {BUCKET}\n"
    assert not server.objects


def test_one_odd_name_is_removed_and_its_twin_stays(
    server: Emptied, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(server.objects)
    assert emptied(server, monkeypatch, "a\rb") == 0
    assert before - server.objects.keys() == {"a\rb"}


def test_what_stays_is_named_with_the_reason_and_how_many_went(
    server: Emptied, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.kept = {"a b", "a\rb"}
    with pytest.raises(OperationError) as told:
        emptied(server, monkeypatch)
    count = len(ODD + PLAIN)
    assert str(told.value).startswith(
        f"the server removed {count - 2} of {count} objects and not a b, a?b (kept); let "
    )


def test_what_ends_it_half_way_is_told_with_how_many_went(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Emptied(*(f"nar/{number:04}" for number in range(1500)))

    def script(seen: Seen) -> Reply | Raw | None:
        if seen.method == "POST" and len(server.objects) < 1500:
            return refusal(503, "SlowDown")
        return server.removing(seen)

    server.script = script
    with serving(server):
        with pytest.raises(OperationError) as told:
            emptied(server, monkeypatch)
        assert len(server.objects) == 500
    assert "SlowDown" in str(told.value)
    assert "at least 1,000 of 1,500 objects went before that" in str(told.value)
