"""Closure: what is known of a builder's links, and what a silent builder changes: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from components.closure import ClosureProvider
from program import links
from program.links import resolve
from program.settings.stack import parse
from tests.unit.configuration import HOST_KEY, configuration
from tests.unit.recording_mocks import use_recording_mocks

OLD = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-system"
NEW = "/nix/store/wsapfasykqjyaw5h4glxcsgprzxp7bjd-system"
LINK = "/run/current-system"


@pytest.fixture(autouse=True)
def _engine() -> None:
    use_recording_mocks()


def resolved(
    *builders: Mapping[str, object], store_dir: str = "/nix/store"
) -> dict[str, list[str]]:
    """Resolve the closures of builders given as settings."""
    return resolve(parse(configuration(builders=list(builders))).builders, store_dir)


def test_a_store_path_needs_no_connection() -> None:
    unreachable = {"name": "far", "host": "192.0.2.1", "hostKey": HOST_KEY, "closures": [OLD]}
    assert resolved(unreachable) == {"far": [OLD]}


def test_a_link_on_this_machine_is_followed_to_its_store_path(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / Path(OLD).name / "bin").mkdir(parents=True)
    (tmp_path / "system").symlink_to(store / Path(OLD).name)
    (tmp_path / "profile").symlink_to(tmp_path / "system")
    links = [str(tmp_path / "profile"), str(tmp_path / "system" / "bin")]
    here = {"name": "here", "local": True, "closures": links}
    assert resolved(here, store_dir=str(store)) == {"here": [f"{store}/{Path(OLD).name}"] * 2}


def test_a_pin_is_followed_as_a_closure_is(tmp_path: Path) -> None:
    (tmp_path / "store" / Path(OLD).name).mkdir(parents=True)
    (tmp_path / "pin").symlink_to(tmp_path / "store" / Path(OLD).name)
    here = {"name": "here", "local": True, "pins": [str(tmp_path / "pin")]}
    assert resolved(here, store_dir=str(tmp_path / "store")) == {
        "here": [f"{tmp_path}/store/{Path(OLD).name}"]
    }


@pytest.mark.parametrize("link", ["/nowhere/at/all", "/usr/bin/env"])
def test_a_link_to_no_store_path_leaves_the_builder_out(link: str) -> None:
    assert resolved({"name": "here", "local": True, "closures": [link]}) == {}


def test_a_builder_that_refuses_the_connection_leaves_the_others_alone() -> None:
    builders: list[Mapping[str, object]] = [
        {"name": "down", "host": "127.0.0.1", "port": 1, "hostKey": HOST_KEY, "closures": [LINK]},
        {"name": "up", "host": "192.0.2.1", "hostKey": HOST_KEY, "closures": [OLD]},
    ]
    assert resolved(*builders) == {"up": [OLD]}


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


def test_patience_is_less_than_a_preview_is_allowed() -> None:
    assert links.PATIENCE_SECONDS < 5
