"""Closure: what is known of a builder's links, and what a silent builder changes: nothing."""

from __future__ import annotations

from components.closure import ClosureProvider

OLD = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-system"
NEW = "/nix/store/wsapfasykqjyaw5h4glxcsgprzxp7bjd-system"
LINK = "/run/current-system"


def test_a_builder_that_does_not_answer_changes_nothing() -> None:
    olds = {"links": [LINK], "store_paths": [OLD]}
    checked = ClosureProvider().check(olds, {"links": [LINK], "store_paths": None})
    assert checked.inputs["store_paths"] == [OLD]
    assert not ClosureProvider().diff("id", olds, checked.inputs).changes


def test_a_builder_that_never_answered_pushes_what_its_links_point_to_then() -> None:
    checked = ClosureProvider().check({}, {"links": [LINK], "store_paths": None})
    assert checked.inputs["store_paths"] == [LINK]


def test_other_links_forget_what_the_old_ones_pointed_to() -> None:
    olds = {"links": [LINK], "store_paths": [OLD]}
    checked = ClosureProvider().check(olds, {"links": ["/other"], "store_paths": None})
    assert checked.inputs["store_paths"] == ["/other"]


def test_a_link_that_points_elsewhere_is_a_change() -> None:
    olds = {"links": [LINK], "store_paths": [OLD]}
    news = ClosureProvider().check(olds, {"links": [LINK], "store_paths": [NEW]}).inputs
    provider = ClosureProvider()
    assert provider.diff("id", olds, news).changes
    assert provider.update("id", olds, news).outs == {"links": [LINK], "store_paths": [NEW]}
