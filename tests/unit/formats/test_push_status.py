"""The status that pushes leave: written exactly, read strictly, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.error import FormatError
from formats.keys import PublicKey
from formats.push_status import (
    LARGEST_STATUS,
    STARTED_BY,
    Lease,
    PushStatus,
    format_status,
    parse_status,
    status_key,
    user_of,
)
from tests.unit.formats.told import TOLD

THEN = datetime(2026, 11, 20, 2, 3, 4, tzinfo=timezone.utc)
NOW = datetime(2026, 11, 26, 2, 3, 4, tzinfo=timezone.utc)
COUNTS = st.integers(min_value=0, max_value=1 << 61)


@given(
    st.builds(
        PushStatus,
        started_by=st.sampled_from(STARTED_BY),
        host=st.just("host-1.example"),
        own=COUNTS,
        own_bytes=COUNTS,
        pushed=COUNTS,
        pushed_bytes=COUNTS,
        renewed=COUNTS,
        repaired=COUNTS,
        failures=COUNTS,
        nix=st.just("2.8.0pre1"),
        program=st.just("0.1.0"),
        before=st.none() | st.builds(Lease, st.just(THEN), COUNTS, COUNTS),
        signed_by=st.none() | st.just(str(PublicKey("cache.test-1", bytes(range(32))))),
    )
)
def test_what_is_written_is_read(status: PushStatus) -> None:
    content = format_status(status)
    assert parse_status(content) == status
    assert len(content) < 1000


def test_it_lies_where_no_rule_takes_it_under_the_users_name() -> None:
    assert status_key("nixbuilder") == "_nixcache/status/nixbuilder"
    assert user_of("_nixcache/status/nixbuilder") == "nixbuilder"
    for name in ("", "a/b", "a b", "x" * 129, "\x1b[2J", "ü"):
        assert status_key(name) is None
        assert user_of(f"_nixcache/status/{name}") is None
    assert user_of("nixbuilder") is None


def test_what_a_machine_calls_itself_and_its_nix_is_unknown_where_it_is_strange() -> None:
    status = parse_status(format_status(replace(TOLD, host="a b\x1b[2J", nix="")))
    assert (status.host, status.nix) == ("unknown", "unknown")


def test_a_key_that_is_called_strangely_is_not_told() -> None:
    for name in ("cäche-1", "x" * 300, "a\x1b[2J", ""):
        status = replace(TOLD, signed_by=str(PublicKey(name, bytes(32))))
        assert parse_status(format_status(status)) == TOLD


def test_only_a_push_of_all_that_a_machine_keeps_begins_its_lease_anew() -> None:
    assert TOLD.lease(NOW) == Lease(NOW, 12, 3_400_000_000)
    before = Lease(THEN, 11, 3_000_000)
    for other in (
        replace(TOLD, failures=1, before=before),
        replace(TOLD, started_by="queue", before=before),
        replace(TOLD, started_by="stdin", before=before),
    ):
        assert not other.kept_all
        assert other.lease(NOW) == before
    assert replace(TOLD, failures=1).lease(NOW) is None


def changed(**changes: Any) -> bytes:
    fields = json.loads(format_status(TOLD))
    fields.update(changes)
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{" * 4000,
        b"[" * 4000,
        b'{"own": NaN}',
        format_status(TOLD) + b" " * LARGEST_STATUS,
        format_status(TOLD).replace(b'"own": 12', b'"own": 12, "own": 13'),
        "ü".encode(),
        changed(host="x" * 10_000),
        changed(host="a\x1b[2Jb"),
        changed(host="<script>"),
        changed(host="a\nb"),
        changed(host=""),
        changed(host=7),
        changed(host=None),
        changed(startedBy="root"),
        changed(startedBy=["timer"]),
        changed(own=-1),
        changed(own=1.5),
        changed(own=True),
        changed(own="12"),
        changed(own=1 << 62),
        changed(failures=None),
        changed(nix='2"} 1'),
        changed(program=""),
        changed(signedBy=7),
        changed(signedBy=""),
        changed(signedBy="cache.test-1"),
        changed(signedBy="cache.test-1:AAAA"),
        changed(signedBy=f"\x1b[2J:{'A' * 43}="),
        changed(before=7),
        changed(before={}),
        changed(before={"at": "now", "own": 1, "ownBytes": 1}),
        changed(before={"at": "2026-13-20T02:03:04Z", "own": 1, "ownBytes": 1}),
        changed(before={"at": "2026-11-20T02:03:04Z", "own": "1", "ownBytes": 1}),
    ],
)
def test_what_no_push_writes_is_refused(content: bytes) -> None:
    with pytest.raises(FormatError):
        parse_status(content)


def test_a_field_of_a_later_version_decides_nothing() -> None:
    assert parse_status(changed(mood="good")) == TOLD


def test_a_status_of_an_earlier_version_does_not_tell_which_key_signed() -> None:
    fields = json.loads(format_status(TOLD))
    del fields["signedBy"]
    assert parse_status(json.dumps(fields).encode()) == TOLD
