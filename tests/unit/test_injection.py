"""Whatever somebody writes into settings, or a server answers: it is text, and never more."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.access import read_policy, without_administration, write_policy
from components.binary_cache import anonymous_policy
from components.builder_credentials import place_command, remove_command
from components.push_program import archive, push_command
from formats.error import FormatError
from formats.keys import PublicKey
from formats.narinfo import NarInfo
from formats.pin import parse_pin
from formats.s3 import parse_error, parse_listing
from operations.preview_markdown import render
from program.checks.server_error import ServerError
from program.links import script
from program.outputs.landing_page import landing_page
from program.outputs.machines import ClientConfiguration, client_configuration, credentials_file
from program.push_settings import push_settings
from program.settings.reader import SettingError
from program.settings.stack import Settings, parse
from push.settings import format_settings
from tests.promises import record
from tests.unit.configuration import HOST_KEY, as_text, configuration
from toolbox.certificates import make_authority

FRAGMENTS = (
    '"', "'", "''", "\\", "\n", "\r\n", "\x00", "\x1b[31m", "\x7f", "\u2028", "\u0085", " ", "\t",
    "$(touch /tmp/owned)", "`touch /tmp/owned`", "${builtins.abort \"x\"}", "$HOME", "%s", "{0}",
    "; rm -rf /", "&& true", "| sh", "> /etc/passwd", "*", "!", "#", "--option", "-oProxyCommand=x",
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;", "]]>",
    "\u043e", "\u212a", "\u200b", "\uff0f", "\u202e", "\ud800", "\U0001f600", "é", "../",
    "//", "%2e%2e",
    '"], "Resource": ["*', "arn:aws:s3:::*", "extra-trusted-public-keys = evil:AAAA", "x" * 10_000,
    "nix-cache", "s3.homelab.local", "https://", "a", "0", "-", ".", ":", "/", "@", "=", "?",
)  # fmt: skip
"""What means something to a shell, Nix, JSON, HTML, a terminal, a path or a reader's eye."""

CONFIGURATION = configuration()
nasty = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), min_size=1, max_size=4
).map("".join)
BASE = PublicKey("s3.homelab.local-1", bytes(32))
PATH = f"/nix/store/{'0' * 32}-top"
REMOTE = {"name": "b", "host": "b.local", "hostKey": HOST_KEY, "closures": [PATH]}

many = settings(max_examples=40, deadline=None, derandomize=True, database=None)
counted: Counter[str] = Counter()
T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def written_down() -> Iterator[None]:
    """Write down how many cases there were."""
    yield
    for name, count in counted.items():
        record("injections", name, count, "refused in one sentence, or carried to the letter")


class Tags(HTMLParser):
    """What a page consists of, and what it says."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(f"{tag} {sorted(name for name, _ in attrs)}")

    def handle_data(self, data: str) -> None:
        self.text += data


TAGS = Tags(landing_page(client_configuration(parse(CONFIGURATION), [str(BASE)]), 7)).tags
HARMLESS = re.compile(r"[^\s\x00-\x1f\x7f-\U0010ffff\"'\\$`<>{}|^]+")
"""What is one word to Nix, in a string of Nix, and to a shell."""
PEM = re.compile(
    r"(-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----\n)*"
)


def reaches_nothing(found: Settings) -> None:
    """Assert that settings which are accepted are text in everything that is made of them."""
    client = client_configuration(found, [str(BASE)])
    assert HARMLESS.fullmatch(client.substituter)
    assert PEM.fullmatch(client.ca_certificate or "")
    # The same text as everybody's, but for the address.
    plain = ClientConfiguration("URL", client.public_keys, client.ca_certificate)
    for text, usual in (
        (client.nix_conf(), plain.nix_conf()),
        (client.nixos_configuration(), plain.nixos_configuration()),
        (client.flake_nix_config(), plain.flake_nix_config()),
    ):
        assert text == usual.replace("URL", client.substituter)
    page = Tags(landing_page(client, found.retention_days))
    assert page.tags[: len(TAGS)] == TAGS or found.ca_certificate
    assert client.substituter in page.text
    users = [builder.s3_user for builder in found.builders]
    for text in (
        without_administration(write_policy(found.bucket, users)),
        read_policy(found.bucket, found.reader_user),
        anonymous_policy(found.bucket, not found.private, found.anonymous_listing),
    ):
        for statement in json.loads(text)["Statement"]:
            for resource in statement.get("Resource", ()):
                assert resource.startswith(f"arn:aws:s3:::{found.bucket}")
                assert not resource.startswith("arn:aws:s3:::*")
            for named in statement.get("Condition", {}).values():
                assert set(named["aws:username"]) <= {*users, found.reader_user}
    lines = format_settings(push_settings(found)).splitlines()
    given_back = dict(line.split("=", 1) for line in lines)
    assert given_back["endpoint"] == str(found.endpoint)
    assert given_back["region"] == found.region
    for builder in found.builders:
        command = push_command(builder.pushed, archive())
        assert shlex.split(command)[-len(builder.pushed) :] == list(builder.pushed)
        asked = shlex.split(script(builder.pushed, "mark"), comments=False)
        assert [asked[at + 1] for at, word in enumerate(asked) if word == "answer"][
            -len(builder.pushed) :
        ] == list(builder.pushed)
        command.encode()
        if builder.credentials_directory is not None:
            for words in (place_command, remove_command):
                assert shlex.split(words(builder.credentials_directory, "p/s b"))[4] == (
                    builder.credentials_directory
                )


def attempt(error: type[Exception], call: Callable[[], T]) -> T | str:
    """Return what a call returns, or the one sentence that it refuses with."""
    try:
        return call()
    except error as refused:
        sentence = str(refused)
    assert sentence.isprintable()
    assert len(sentence) < 1_000
    sentence.encode()
    return sentence


def tried(name: str, **changes: object) -> None:
    """Assert that a configuration is refused in one sentence, or harmless."""
    counted[name] += 1
    found = attempt(
        SettingError,
        lambda: parse(
            {**CONFIGURATION, **{name: as_text(value) for name, value in changes.items()}}
        ),
    )
    if isinstance(found, Settings):
        reaches_nothing(found)


TEXTS = (
    "endpoint", "region", "bucket", "publicUrl", "access", "addressing", "users", "minioUser",
    "writePolicy", "compression", "caCertificateFile", "retentionDays", "priority", "protect",
    "builders", "pins", "signingKeys", "upstreamKeys",
)  # fmt: skip


@pytest.mark.parametrize("setting", TEXTS)
@given(text=nasty)
@many
def test_a_setting_is_refused_in_one_sentence_or_carried_to_the_letter(
    setting: str, text: str
) -> None:
    tried(setting, **{setting: text})


@pytest.mark.parametrize("setting", ["endpoint", "publicUrl", "region"])
@given(text=nasty)
@many
def test_an_address_with_more_behind_it_is_no_address(setting: str, text: str) -> None:
    good = {"endpoint": "https://s3.homelab.local", "publicUrl": "https://c/x", "region": "eu"}
    tried(f"{setting} and more", **{setting: f"{good[setting]}{text}"})


@pytest.mark.parametrize(
    "setting",
    ["name", "host", "user", "hostKey", "privateKeyFile", "s3User", "credentialsDirectory", "port"],
)
@given(text=nasty)
@many
def test_what_is_said_of_a_builder_is_text(setting: str, text: str) -> None:
    tried(f"builders[].{setting}", builders=[{**REMOTE, setting: text}])


@pytest.mark.parametrize("setting", ["closures", "pins"])
@given(text=nasty)
@many
def test_what_a_builder_pushes_is_one_word_of_a_command(setting: str, text: str) -> None:
    tried(f"builders[].{setting}", builders=[{**REMOTE, setting: [f"/nix/var/{text}"]}])


@given(text=nasty)
@many
def test_a_setting_that_there_is_not_is_named_harmlessly(text: str) -> None:
    tried("unknown", builders=[{**REMOTE, text: 1}])
    tried("unknown jump host", builders=[{**REMOTE, "jumpHost": {"host": "a", text: 1}}])


@pytest.mark.parametrize("setting", ["name", "path", "builder", "link"])
@given(text=nasty)
@many
def test_what_is_said_of_a_pin_is_text(setting: str, text: str) -> None:
    pin = {"name": "p", "builder": "b", "link": "/l", setting: text}
    if setting == "path":
        pin = {"name": "p", "path": f"{PATH}{text}"}
    tried(f"pins[].{setting}", builders=[REMOTE], pins=[pin])


@given(text=nasty)
@many
def test_a_key_of_another_cache_is_a_name_and_a_key(text: str) -> None:
    encoded = str(BASE).partition(":")[2]
    for key in (f"{text}:{encoded}", f"{BASE}{text}", f"{text}{BASE}"):
        tried("upstreamKeys of somebody", upstreamKeys=[key])


@given(text=nasty)
@many
def test_what_stands_around_a_certificate_goes_no_further(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    directory = tmp_path_factory.getbasetemp()
    file, pem = directory / "written.pem", make_authority(directory).ca_file.read_text()
    for written in (f"{text}\n{pem}", f"{pem}{text}", f"{pem[:100]}{text}{pem[100:]}"):
        file.write_text(written, encoding="utf-8", errors="replace")
        tried("CA certificate", caCertificateFile=str(file))


@given(text=nasty)
@many
def test_secrets_are_shown_by_no_message(text: str) -> None:
    counted["secrets"] += 1
    secret = f"{text}c4n4ry"
    for setting in ("minioPassword", "adoptedUserSecrets", "adoptedSigningKeys", "sshPrivateKey"):
        changed = {**CONFIGURATION, setting: secret}
        sentence = attempt(SettingError, lambda changed=changed: parse(changed))  # type: ignore[misc]
        assert not isinstance(sentence, str) or "c4n4ry" not in sentence
    assert "c4n4ry" in credentials_file("p", "u", secret)


@given(text=nasty)
@many
def test_what_a_server_says_is_printed_as_text(text: str) -> None:
    counted["server's words"] += 1
    for body in (text, f"<Error><Code>{text}</Code><Message>{text}</Message></Error>"):
        answer = parse_error(body.encode(errors="replace"))
        assert re.fullmatch(r"[A-Za-z0-9]*", answer.code)
        assert not answer.message or answer.message.isprintable()
    assert str(ServerError("endpoint", f"the server answers {text}; see its log")).isprintable()


KEY = f"nar/{'0' * 52}.nar"
NARINFO = (
    f"StorePath: {PATH}\nURL: {KEY}\nCompression: none\nNarHash: sha256:{'0' * 52}\n"
    "NarSize: 1\nReferences: \n"
)


@given(text=nasty, field=st.sampled_from(["StorePath", "URL", "Compression", "NarHash", "Sig"]))
@many
def test_what_a_narinfo_says_is_what_nix_would_write_or_nothing(text: str, field: str) -> None:
    counted["narinfo"] += 1
    for written in (text, f"{PATH}{text}", f"{KEY}{text}"):
        changed = re.sub(rf"(?m)^{field}: .*\n", "", NARINFO) + f"{field}: {written}\n"
        read = attempt(FormatError, partial(NarInfo.parse, changed))
        if isinstance(read, str):
            continue
        assert re.fullmatch(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+", read.store_path)
        assert re.fullmatch(r"[!-~]+", read.url)
        assert changed.count("\n") == len(changed.splitlines())


@given(text=nasty)
@many
def test_a_listing_and_a_pin_name_keys_or_nothing(text: str) -> None:
    counted["listing, pin"] += 1
    entry = (
        f"<Contents><Key>{text}</Key><LastModified>2026-11-26T12:00:00.000Z</LastModified>"
        f"<ETag>{text}</ETag><Size>{text}</Size></Contents>"
    )
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entry}</ListBucketResult>"
    listing = attempt(FormatError, partial(parse_listing, body.encode(errors="replace")))
    for one in () if isinstance(listing, str) else listing.objects:
        assert re.fullmatch(r"[0-9A-Za-z+/=._-]*", one.etag)
    pin = attempt(FormatError, partial(parse_pin, f"{PATH}{text}\n".encode(errors="replace")))
    for path in () if isinstance(pin, str) else pin:
        assert re.fullmatch(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+", path)


@given(text=nasty)
@many
def test_a_report_of_a_preview_has_a_name_as_text(text: str) -> None:
    counted["report"] += 1
    urn = f"urn:pulumi:s::nixcache::minio:index/iamUser:IamUser::{text}"
    step = {
        "op": "create",
        "urn": urn,
        "newState": {"type": "minio:index/iamUser:IamUser", "inputs": {"name": text}, "urn": urn},
    }
    report = render({"steps": [step], "changeSummary": {"create": 1}})
    # Within code, markup is text; a row of the table stays one line.
    outside = re.sub(r"(`+)[^`].*?\1", "", report)
    assert "<script>" not in outside
    assert "<img" not in outside
