"""The picture in the documentation is drawn from the data beside it."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from benchmarks.retention_picture import DATA, PICTURE, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_the_committed_picture_is_what_the_script_draws() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(json.loads(DATA.read_text()))


def test_every_morning_is_told_as_whole_or_broken_for_either_way() -> None:
    data = json.loads(DATA.read_text())
    days = [rect.get("class") for rect in ElementTree.fromstring(draw(data)).iter(f"{SVG}rect")]
    for kind, broken in (("broken", True), ("whole", False)):
        told = sum(
            morning[f"{way}_broken"] is broken
            for morning in data["mornings"]
            for way in ("ours", "recipe")
        )
        assert days.count(kind) == told
