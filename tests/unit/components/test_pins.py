"""Pins as objects of the bucket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from components.pins import Pins, PinsArgs, targets_now
from formats.pin import parse_pin
from tests.unit.recording_mocks import settled, use_recording_mocks

PATHS = [f"/nix/store/{letter * 32}-system" for letter in "abcdf"]


def test_a_pin_is_an_object_of_the_programs_own_folder() -> None:
    engine = use_recording_mocks()
    args = PinsArgs(bucket_name="cache", bucket="cache", targets={"live": PATHS[:2]})
    settled(lambda: Pins("pins", args).urn)
    assert "cache/_nixcache/pins/live" in [name for _, name, _ in engine.resources]
    declared = engine.inputs("minio:index/s3Object:S3Object")
    assert (declared["bucketName"], declared["objectName"]) == ("cache", "_nixcache/pins/live")
    assert parse_pin(declared["content"].encode()) == tuple(PATHS[:2])


@given(st.lists(st.sampled_from(PATHS), min_size=1, max_size=12), st.integers(1, 4))
def test_the_last_targets_are_kept_the_newest_first_and_each_once(
    history: list[str], keep_last: int
) -> None:
    kept: list[str] = []
    for path in history:
        kept = targets_now(path, kept, keep_last)
    assert kept[0] == history[-1]
    assert len(kept) == len(set(kept)) <= keep_last
    assert kept == list(dict.fromkeys(reversed(history)))[: len(kept)]


def test_a_link_that_nobody_has_followed_yet_moves_no_pin() -> None:
    assert targets_now("/run/current-system", PATHS[:1], 2) == PATHS[:1]
    assert targets_now("/run/current-system", [], 2) == []
