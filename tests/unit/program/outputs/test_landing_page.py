"""The page for people: what it says, and what it cannot do."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from program.outputs.landing_page import landing_page
from program.outputs.machines import TRUSTING_A_CA, ClientConfiguration

KEYS = (
    "s3.homelab.local-1:MNdV1gE3P3pEpuQMOJC+Jdm7ccXyu3/6Pxcx3DbYYRA=",
    "s3.homelab.local-2:y1aWlAaYz0gPzxoj1OSbt1S1SkpkK0PcWKxbO8gyYXQ=",
)
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
CLIENT = ClientConfiguration("https://s3.homelab.local/nix-cache", KEYS, CA)


class Page(HTMLParser):
    """The parsed page: elements with their attributes, and the text inside each id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {}
        self.raw: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in ("meta", "link"):
            self._open.append((tag, attributes.get("id", "")))
        if "id" in attributes:
            assert attributes["id"] not in self.text, "two elements of one id"
            self.text[attributes["id"]] = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.elements:
            tag = self.elements[-1][0]
            self.raw[tag] = self.raw.get(tag, "") + data
        for _, name in self._open:
            if name:
                self.text[name] += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def page(client: ClientConfiguration = CLIENT, retention_days: int | None = 7) -> Page:
    return Page(landing_page(client, retention_days))


def test_what_a_button_copies_is_what_the_outputs_say_to_the_letter() -> None:
    text = page().text
    assert text["url-text"] == CLIENT.substituter
    assert (text["key-1"], text["key-2"]) == KEYS
    assert text["nixos-text"] == CLIENT.nixos_configuration().rstrip("\n")
    assert text["flake-text"] == CLIENT.flake_nix_config().rstrip("\n")
    assert text["nix-conf-text"] == CLIENT.nix_conf().strip("\n")
    assert text["ca-text"] == CA.rstrip("\n")


def test_every_button_copies_something_that_is_there() -> None:
    shown = page()
    copies = shown.attributes("data-copies")
    assert len(copies) == 7 + len(TRUSTING_A_CA)
    assert set(copies) <= shown.text.keys()


def test_the_policy_lets_only_the_pages_own_style_and_script_run() -> None:
    html = landing_page(CLIENT, 7)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert directives.pop(directive) == f"'sha256-{digest}'"
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_nothing_is_asked_of_another_place() -> None:
    shown = page()
    assert not [tag for tag, _ in shown.elements if tag in ("img", "iframe", "object", "form", "a")]
    assert not shown.attributes("src")
    assert [href.partition(":")[0] for href in shown.attributes("href")] == ["data"]
    assert not [name for _, a in shown.elements for name in a if name.startswith("on")]
    assert not re.search(r"url\(|@import", shown.raw["style"])


def test_whatever_is_said_in_one_language_is_said_in_the_other() -> None:
    languages = page().attributes("data-text")
    assert languages.count("en") == languages.count("zh") > 10


def test_a_value_that_looks_like_markup_is_text() -> None:
    client = ClientConfiguration(
        "https://cache.example/<b>&amp;'\"", ["k-1:<script>alert(1)</script>"], None
    )
    shown = page(client)
    assert shown.text["url-text"] == client.substituter
    assert shown.text["key-1"] == client.public_keys[0]
    assert len([tag for tag, _ in shown.elements if tag == "script"]) == 1


def test_a_public_authority_needs_no_section() -> None:
    assert "ca-text" not in page(ClientConfiguration(CLIENT.substituter, KEYS, None)).text


@pytest.mark.parametrize(
    ("days", "english", "chinese"),
    [
        (1, "lives 1 day after", "保留 1 天"),
        (30, "lives 30 days after", "保留 30 天"),
        (None, "Entries do not expire.", "条目不会过期。"),
    ],
)
def test_it_says_how_long_things_live(days: int | None, english: str, chinese: str) -> None:
    html = landing_page(CLIENT, days)
    assert english in html
    assert chinese in html


def test_the_same_values_make_the_same_page() -> None:
    assert landing_page(CLIENT, 7) == landing_page(CLIENT, 7)
