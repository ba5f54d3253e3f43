"""Links: followed where there are any, on each builder for itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from program import links
from program.links import follow_links
from program.settings.stack import parse
from tests.unit.configuration import HOST_KEY, configuration
from tests.unit.recording_mocks import use_recording_mocks

OLD = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-system"
LINK = "/run/current-system"


@pytest.fixture(autouse=True)
def _engine() -> None:
    use_recording_mocks()


def followed(
    *builders: Mapping[str, object], store_dir: str = "/nix/store"
) -> dict[str, list[str] | None]:
    """Follow the links of builders given as settings."""
    return follow_links(parse(configuration(builders=list(builders))).builders, store_dir)


def test_a_store_path_is_no_link_and_needs_no_connection() -> None:
    unreachable = {"name": "far", "host": "192.0.2.1", "hostKey": HOST_KEY, "closures": [OLD]}
    assert followed(unreachable) == {}


def test_a_link_on_this_machine_is_followed_to_its_store_path(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / Path(OLD).name / "bin").mkdir(parents=True)
    (tmp_path / "system").symlink_to(store / Path(OLD).name)
    (tmp_path / "profile").symlink_to(tmp_path / "system")
    links = [str(tmp_path / "profile"), str(tmp_path / "system" / "bin")]
    here = {"name": "here", "local": True, "closures": links}
    assert followed(here, store_dir=str(store)) == {"here": [f"{store}/{Path(OLD).name}"] * 2}


def test_a_pin_is_followed_as_a_closure_is(tmp_path: Path) -> None:
    (tmp_path / "store" / Path(OLD).name).mkdir(parents=True)
    (tmp_path / "pin").symlink_to(tmp_path / "store" / Path(OLD).name)
    here = {"name": "here", "local": True, "pins": [str(tmp_path / "pin")]}
    assert followed(here, store_dir=str(tmp_path / "store")) == {
        "here": [f"{tmp_path}/store/{Path(OLD).name}"]
    }


@pytest.mark.parametrize("link", ["/nowhere/at/all", "/usr/bin/env"])
def test_a_link_to_no_store_path_is_not_followed(link: str) -> None:
    assert followed({"name": "here", "local": True, "closures": [link]}) == {"here": None}


def test_a_builder_that_refuses_the_connection_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "store" / Path(OLD).name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "store" / Path(OLD).name)
    builders: list[Mapping[str, object]] = [
        {"name": "down", "host": "127.0.0.1", "port": 1, "hostKey": HOST_KEY, "closures": [LINK]},
        {"name": "here", "local": True, "closures": [str(tmp_path / "link")]},
    ]
    assert followed(*builders, store_dir=str(tmp_path / "store")) == {
        "down": None,
        "here": [f"{tmp_path}/store/{Path(OLD).name}"],
    }


def test_patience_is_less_than_a_preview_is_allowed() -> None:
    assert links.PATIENCE_SECONDS < 5
