"""Links: followed where there are any, on each builder for itself."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from program import links
from program.links import follow_links
from program.settings.stack import parse
from push.store import UnknownPathError, follow_link
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


def test_a_store_path_that_is_itself_a_link_is_that_store_path(tmp_path: Path) -> None:
    store_path = tmp_path / "store" / Path(OLD).name
    store_path.parent.mkdir()
    store_path.symlink_to("/etc/hosts")
    (tmp_path / "link").symlink_to(store_path)
    here = {"name": "here", "local": True, "closures": [str(tmp_path / "link")]}
    assert followed(here, store_dir=str(tmp_path / "store")) == {"here": [str(store_path)]}


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


def answered(paths: Sequence[str], store_dir: str) -> list[str]:
    """Return what a shell answers that is asked where paths lead."""
    asked = links.script(paths, "MARK", store_dir)
    ran = subprocess.run(["sh"], input=asked, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return links.answers(ran.stdout, "MARK")


PLACES = ("x", "y z", "*", "d/x", "d/$(e)", "store/link")
INSIDE = f"store/{Path(OLD).name}"
WAYS = st.lists(
    st.sampled_from([INSIDE, INSIDE, f"../{INSIDE}", "..", ".", "", "d", *PLACES]),
    min_size=1,
    max_size=3,
).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    tree=st.dictionaries(st.sampled_from(PLACES), st.tuples(WAYS, st.booleans()), min_size=3),
    asked=st.lists(WAYS, min_size=1, max_size=8),
)
def test_a_shell_follows_links_as_the_push_does(
    tmp_path_factory: pytest.TempPathFactory,
    tree: Mapping[str, tuple[str, bool]],
    asked: Sequence[str],
) -> None:
    root = tmp_path_factory.mktemp("tree")
    store = f"{root}/store"
    for directory in ("d", "store"):
        (root / directory).mkdir()
    for place, (target, absolute) in tree.items():
        (root / place).symlink_to(f"{root}/{target}" if absolute else target or ".")
    paths = [f"{slashes}{root}/{path}" for path in (*tree, *asked) for slashes in ("", "/")]

    def led_to(path: str) -> str:
        try:
            return follow_link(path, store)
        except UnknownPathError:
            return ""

    found = [answer and led_to(answer) for answer in answered(paths, store)]
    assert found == [led_to(path) for path in paths]


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert answered([str(tmp_path / "one")], str(tmp_path / "store")) == [""]


def test_what_a_login_shell_says_is_no_answer() -> None:
    output = f"Welcome!\nMARK\n{OLD}\nOK MARK {OLD}\nMARK /nix/store/real\n"
    assert links.answers(output, "MARK") == ["/nix/store/real"]


def test_patience_is_less_than_a_preview_is_allowed() -> None:
    assert links.PREVIEW_PATIENCE_SECONDS < 5 < links.PATIENCE_SECONDS
