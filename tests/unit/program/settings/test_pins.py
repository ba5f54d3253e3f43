"""The setting `pins`: what it means, and what is refused."""

from __future__ import annotations

import pytest

from program.settings.pins import PinSettings
from program.settings.reader import SettingError
from program.settings.stack import Settings, parse
from tests.unit.configuration import configuration

PATH = "/nix/store/77pafcdwgl5m3za7k4lsv8msj9nmjc3c-release"
LINK = "/run/current-system"


def settings(*pins: object) -> Settings:
    here = {"name": "here", "local": True, "closures": ["/srv/a"], "pins": ["/srv/b"]}
    return parse(configuration(builders=[here], pins=list(pins)))


def test_a_pin_keeps_a_store_path_of_anybodys_or_what_a_builders_link_points_to() -> None:
    found = settings(
        {"name": "release-24", "path": PATH},
        {"name": "live", "builder": "here", "link": LINK, "keepLast": 3},
        {"name": "live-too", "builder": "here", "link": "/srv/a"},
    )
    assert found.pins == (
        PinSettings(name="release-24", path=PATH),
        PinSettings(name="live", path=LINK, builder="here", keep_last=3),
        PinSettings(name="live-too", path="/srv/a", builder="here"),
    )
    # What a pin follows is pushed, once.
    (builder,) = found.builders
    assert builder.pushed == ("/srv/a", "/srv/b", LINK)


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        ("release", r'pins\[0\] is "release": write an object with a name, and path or link'),
        ({"path": PATH}, r"pins\[0\]\.name: is missing"),
        ({"name": "../evil", "path": PATH}, r"pins\[0\]\.name is .*: write 1 to 63 lower-case"),
        ({"name": "a/b", "path": PATH}, r"pins\[0\]\.name is .*: write 1 to 63 lower-case"),
        ({"name": "x" * 64, "path": PATH}, r"pins\[0\]\.name is .*: write 1 to 63 lower-case"),
        ({"name": "p", "path": LINK}, r"pins\[0\]\.path is .*: write /nix/store/<hash>-<name>"),
        ({"name": "p", "path": f"{PATH}/bin"}, r"pins\[0\]\.path is .* and no more"),
        ({"name": "p", "path": PATH, "link": LINK}, r"pins\[0\]\.link: is no setting"),
        ({"name": "p", "path": PATH, "keepLast": 2}, r"pins\[0\]\.keepLast: is no setting"),
        ({"name": "p", "link": LINK}, r"pins\[0\]\.builder: is missing"),
        ({"name": "p", "builder": "here"}, r"pins\[0\]\.link: is missing"),
        ({"name": "p", "builder": "gone", "link": LINK}, r'builder is "gone": no element of'),
        ({"name": "p", "builder": "here", "link": "a"}, r"pins\[0\]\.link is .*absolute link"),
        ({"name": "p", "builder": "here", "link": LINK, "keepLast": 0}, r"from 1 to 100"),
        ({"name": "p", "builder": "here", "link": LINK, "keepLast": 101}, r"from 1 to 100"),
    ],
)
def test_a_pin_that_is_none_is_refused_with_the_remedy(pin: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings(pin)


def test_two_pins_of_one_name_are_refused() -> None:
    pin = {"name": "p", "path": PATH}
    with pytest.raises(SettingError, match=r"pins\[\]\.name is \"p\": two pins share it"):
        settings(pin, pin)
