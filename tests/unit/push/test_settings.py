"""The settings: what is read, what is refused, and what no message shows."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.keys import PublicKey
from formats.signing import SecretKey
from push.failure import PushError
from push.settings import (
    SETTINGS,
    YES_NO,
    PushSettings,
    Setting,
    cache_directory,
    format_settings,
    read,
    usage,
)
from tests.unit.push.client import SIGNING_KEY, settings_for

ENDPOINT = "https://s3.example"
PUBLIC_KEY = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def refused(endpoint: str = ENDPOINT, **changes: object) -> str:
    with pytest.raises(PushError) as caught:
        settings_for(endpoint, **changes)
    message = str(caught.value)
    assert message.startswith("settings: ")
    assert message.isprintable()
    return message.removeprefix("settings: ")


def test_what_is_not_given_has_its_default() -> None:
    settings = settings_for(ENDPOINT)
    assert settings == PushSettings(
        scheme="https",
        host="s3.example",
        port=443,
        region="us-east-1",
        bucket="cache",
        access_key_id="builder",
        secret_access_key="a secret",
        signing_key=SIGNING_KEY,
        trusted_keys=(SecretKey.parse(SIGNING_KEY).public_key,),
        ca_certificate=None,
        upstream_keys=(),
        compression="zstd",
        compression_level=0,
        parallelism=1,
        staging_limit=2_147_483_648,
        part_size=67_108_864,
        renew=True,
        logs=False,
        listings=False,
        paths=(),
    )
    assert settings.public_key.name == "cache.test-1"
    assert settings.public_key.data.hex().startswith("d75a980182b10ab7")
    assert (settings.signer.access_key_id, settings.signer.region) == ("builder", "us-east-1")


def test_every_setting_that_is_given_counts() -> None:
    own = SecretKey.parse(SIGNING_KEY).public_key
    text = format_settings(
        {
            "endpoint": "http://[::1]:9000/",
            "region": "eu-west-1",
            "bucket": "b-1.x",
            "access-key-id": "me",
            "secret-access-key": "s=s # s",
            "signing-key": ["other-1:" + SIGNING_KEY.partition(":")[2], SIGNING_KEY],
            "trusted-key": [str(own), PUBLIC_KEY],
            "ca-certificate": base64.b64encode(PEM.encode()).decode(),
            "upstream-key": [PUBLIC_KEY, PUBLIC_KEY],
            "compression": "xz",
            "compression-level": 9,
            "parallelism": 2,
            "staging-limit": 1,
            "part-size": 5_242_880,
            "renew": YES_NO[False],
            "logs": YES_NO[True],
            "listings": YES_NO[True],
            "path": ["/a", "/b"],
        }
    )
    settings = read(text.split("\n"), ["/c"])
    key = PublicKey.parse(PUBLIC_KEY)
    assert settings == PushSettings(
        scheme="http",
        host="::1",
        port=9000,
        region="eu-west-1",
        bucket="b-1.x",
        access_key_id="me",
        secret_access_key="s=s # s",
        signing_key=SIGNING_KEY,
        trusted_keys=(key, own),
        ca_certificate=PEM,
        upstream_keys=(key, key),
        compression="xz",
        compression_level=9,
        parallelism=2,
        staging_limit=1,
        part_size=5_242_880,
        renew=False,
        logs=True,
        listings=True,
        paths=("/c", "/a", "/b"),
    )
    assert settings.endpoint == "http://[::1]:9000"


def key(name: str, *, another: bool = False) -> SecretKey:
    """Return the key of a name, always the same, or another of that name."""
    return SecretKey(name, hashlib.sha256(f"{name}{another}".encode()).digest())


def with_keys(signs: SecretKey, *trusted: str) -> PushSettings:
    """Return the settings of a push that signs with a key, and knows these to be trusted."""
    text = format_settings(
        {
            "endpoint": ENDPOINT,
            "bucket": "cache",
            "access-key-id": "me",
            "secret-access-key": "a secret",
            "signing-key": signs.to_nix(),
            "trusted-key": [str(key(name).public_key) for name in trusted],
        }
    )
    return read(text.split("\n"))


@pytest.mark.parametrize(
    ("signs", "trusted", "why"),
    [
        # A key that was retired, a builder's own too.
        (key("c.test-1"), ["c.test-2"], "c.test-1 is none that clients trust, c.test-2; "),
        (key("c.test-2"), ["c.test-1", "c.test-3"], "c.test-2 is none that clients trust, "),
        # Of the time before the keys were lost, or of another stack.
        (
            key("c.test-1", another=True),
            ["c.test-1"],
            "c.test-1 is another key than clients trust by that name; ",
        ),
        (
            key("c.test-2", another=True),
            ["c.test-1", "c.test-2"],
            "c.test-2 is another key than clients trust by that name; ",
        ),
        (key("d.test-9"), ["c.test-1"], "d.test-9 is none that clients trust, c.test-1; "),
        # Names that have no integer say nothing of what came first.
        (key("odd"), ["c.test-1"], "odd is none that clients trust, c.test-1; "),
        (key("c.test-9"), ["odd"], "c.test-9 is none that clients trust, odd; "),
    ],
)
def test_a_key_whose_signatures_clients_would_refuse_signs_nothing(
    signs: SecretKey, trusted: list[str], why: str
) -> None:
    with pytest.raises(PushError) as caught:
        with_keys(signs, *trusted)
    told = str(caught.value)
    assert told.startswith(f"settings: the signing key {why}"), told
    assert "give this machine, or the job, the key that the stack has it sign with now" in told
    assert "the stack's new output nixos" in told
    encoded = signs.to_nix().partition(":")[2]
    assert not any(encoded[at : at + 8] in told for at in range(len(encoded) - 8))


@pytest.mark.parametrize(
    ("signs", "trusted", "newer"),
    [
        ("c.test-1", [], False),
        ("c.test-1", ["c.test-1"], False),
        # A rotation: the new list is there first, then the key; or the other way round.
        ("c.test-1", ["c.test-1", "c.test-2"], False),
        ("c.test-2", ["c.test-1", "c.test-2"], False),
        ("c.test-2", ["c.test-1"], True),
        # The old one is retired; here that is not known yet, or not even the rotation.
        ("c.test-2", ["c.test-2"], False),
        ("c.test-3", ["c.test-1"], True),
        # A key that leaked is replaced in one step, or by another of a builder's own.
        ("c.test-3", ["c.test-1", "c.test-2"], True),
        ("c.test-1", ["c.test-1", "c.test-2", "c.test-3"], False),
        # Keys of two domains, the newer of which has just begun.
        ("d.test-1", ["c.test-7", "d.test-1"], False),
        ("d.test-2", ["c.test-7", "d.test-1"], True),
    ],
)
def test_no_step_of_a_rotation_keeps_a_builder_from_pushing(
    signs: str, trusted: list[str], newer: bool
) -> None:
    settings = with_keys(key(signs), *trusted)
    assert settings.public_key == settings.trusted_keys[-1] == key(signs).public_key
    assert {one.name for one in settings.trusted_keys} == {*trusted, signs}
    told = f"the signing key {signs} is newer than all of trusted-key; give this machine"
    assert (settings.notice or "").startswith(told) is newer
    assert (settings.notice is not None) is newer


def test_blank_lines_comments_and_line_ends_say_nothing() -> None:
    lines = [
        "\n",
        "   \n",
        "# endpoint=https://other\n",
        "  # comment\r\n",
        f"endpoint={ENDPOINT}\r\n",
        "bucket=cache\n",
        "access-key-id=builder\n",
        "secret-access-key=a secret\n",
        f"signing-key= {SIGNING_KEY} \n",
        "signing-key=\n",
        "region=\n",
        "upstream-key=\n",
        "compression=xz\n",
        "compression=none\n",
    ]
    settings = read(lines)
    assert settings.compression == "none"
    assert settings.region == "us-east-1"
    assert settings.upstream_keys == ()
    assert settings.signing_key == SIGNING_KEY


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "authority"),
    [
        ("https://s3.example", "s3.example", 443, "s3.example"),
        ("https://s3.example:443/", "s3.example", 443, "s3.example"),
        ("https://s3.example:80", "s3.example", 80, "s3.example:80"),
        ("http://s3.example:80", "s3.example", 80, "s3.example"),
        ("http://S3.Example.:9000", "S3.Example.", 9000, "S3.Example.:9000"),
        ("http://127.0.0.1:65535", "127.0.0.1", 65535, "127.0.0.1:65535"),
        ("https://[2001:db8::1]", "2001:db8::1", 443, "[2001:db8::1]"),
        ("https://[::1]:8443", "::1", 8443, "[::1]:8443"),
        ("https://_s3._tcp.my_host-1.local_", "_s3._tcp.my_host-1.local_", 443, None),
        ("https://minio", "minio", 443, "minio"),
        (f"https://{'a' * 63}.b", f"{'a' * 63}.b", 443, None),
    ],
)
def test_an_endpoint_is_host_and_port(
    endpoint: str, host: str, port: int, authority: str | None
) -> None:
    settings = settings_for(endpoint)
    assert (settings.host, settings.port) == (host, port)
    assert settings.authority == (authority or host)
    assert settings.endpoint == f"{settings.scheme}://{settings.authority}"


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "s3.example",
        "ftp://s3.example",
        "HTTPS://s3.example",
        "https://",
        "https://s3.example/path",
        "https://s3.example?x",
        "https://s3.example:0",
        "https://s3.example:65536",
        "https://s3.example:999999",
        "https://s3.example:",
        "https://a..b",
        "https://.a",
        "https://-a",
        "https://a-.b",
        "https://a b",
        "https://a\tb",
        "https://" + "a" * 64,
        "https://" + "a.b" * 100,
        "https://[::1",
        "https://[]",
        "https://[::::]",
        "https://[1.2.3.4]",
        "https://[fe80::1%25eth0]",
        "https://::1",
        "https://\u00fcber.example",
    ],
)
def test_an_endpoint_that_is_none_is_refused_before_anything_is_sent(endpoint: str) -> None:
    assert refused(endpoint).endswith("; set it to https://host[:port]")


def test_a_password_in_an_endpoint_is_not_shown() -> None:
    message = refused("https://me:pass@word@s3.example")
    assert message == (
        "endpoint 'https://...@s3.example' is not valid; set it to https://host[:port]"
    )
    assert "pass" not in refused("https://me:" + "pass" * 100 + "@s3.example")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("region", "a b", "region 'a b' is not valid; set it to the server's region"),
        ("region", "x" * 65, f"region '{'x' * 65}' is not valid; set it to the server's region"),
        ("region", "x" * 300, f"region '{'x' * 200}' is not valid; set it to the server's region"),
        ("region", "\x1b[31m", "region '?[31m' is not valid; set it to the server's region"),
        ("bucket", "", "bucket is missing; set it to the bucket's name"),
        ("bucket", "Cache", "bucket 'Cache' is not valid; set it to the bucket's name"),
        ("bucket", "ab", "bucket 'ab' is not valid; set it to the bucket's name"),
        ("bucket", "a" * 64, f"bucket '{'a' * 64}' is not valid; set it to the bucket's name"),
        ("bucket", "a/b", "bucket 'a/b' is not valid; set it to the bucket's name"),
        ("access_key_id", "", "access-key-id is missing; set it to the builder's user"),
        ("access_key_id", "a b", "access-key-id 'a b' is not valid; set it to the builder's user"),
        (
            "compression",
            "bzip2",
            "compression 'bzip2' is not valid; set it to one of zstd, xz, none",
        ),
        ("compression_level", "20", "compression-level '20' is not from 0 to 19"),
        ("compression_level", "-1", "compression-level '-1' is not from 0 to 19"),
        (
            "compression_level",
            "1.5",
            "compression-level '1.5' is not valid; set it to a whole number from 0 to 19",
        ),
        (
            "compression_level",
            "\u0663",
            "compression-level '\u0663' is not valid; set it to a whole number from 0 to 19",
        ),
        ("parallelism", "0", "parallelism '0' is not from 1 to 999"),
        ("parallelism", "1000", "parallelism '1000' is not from 1 to 999"),
        ("staging_limit", "0", "staging-limit '0' is not from 1 to 1125899906842623 bytes"),
        (
            "staging_limit",
            "1125899906842624",
            "staging-limit '1125899906842624' is not from 1 to 1125899906842623 bytes",
        ),
        (
            "staging_limit",
            "2G",
            "staging-limit '2G' is not valid; "
            "set it to a whole number from 1 to 1125899906842623 bytes",
        ),
        (
            "staging_limit",
            "9" * 20,
            "staging-limit '99999999999999999999' is not valid; "
            "set it to a whole number from 1 to 1125899906842623 bytes",
        ),
        ("part_size", "5242879", "part-size '5242879' is not from 5242880 to 5368709120 bytes"),
        (
            "part_size",
            "5368709121",
            "part-size '5368709121' is not from 5242880 to 5368709120 bytes",
        ),
        ("renew", "true", "renew 'true' is not valid; set it to yes or no"),
        (
            "secret_access_key",
            "",
            "secret-access-key is missing or malformed; set it to the secret of the user",
        ),
        (
            "secret_access_key",
            "a\tb",
            "secret-access-key is missing or malformed; set it to the secret of the user",
        ),
        (
            "secret_access_key",
            "a\udc80",
            "secret-access-key is missing or malformed; set it to the secret of the user",
        ),
        ("signing_key", "", "signing-key is missing; set it to name:base64"),
        (
            "signing_key",
            PUBLIC_KEY,
            "a signing key is not a secret key: the part after the colon of a secret key holds "
            "64 bytes, not 32; this is a public key; set it to what nix key generate-secret wrote",
        ),
        (
            "signing_key",
            "name:!!!!",
            "a signing key is not a secret key: the part after the colon of a secret key is not "
            "base64; set it to what nix key generate-secret wrote",
        ),
        (
            "upstream_key",
            "cache.nixos.org-1",
            "upstream-key 'cache.nixos.org-1' is no public key; "
            "write the whole key, name:base64, so that its signatures can be verified",
        ),
        (
            "upstream_key",
            SIGNING_KEY,
            "upstream-key 'cache.test-1:...' is no public key; "
            "write the whole key, name:base64, so that its signatures can be verified",
        ),
        (
            "ca_certificate",
            "!!",
            "ca-certificate is not PEM in base64; encode the whole file on one line",
        ),
        (
            "ca_certificate",
            "bm90",
            "ca-certificate is not PEM in base64; encode the whole file on one line",
        ),
        (
            "ca_certificate",
            "/w==",
            "ca-certificate is not PEM in base64; encode the whole file on one line",
        ),
        (
            "ca_certificate_file",
            "/dev/null",
            "ca-certificate-file is not PEM; name the CA certificates",
        ),
        (
            "ca_certificate_file",
            "/nowhere",
            "ca-certificate-file '/nowhere' cannot be read; name a readable file",
        ),
        ("shoe_size", "43", "unknown setting 'shoe-size'; see --help"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_the_remedy(
    setting: str, value: str, message: str
) -> None:
    assert refused(**{setting: value}) == message


@pytest.mark.parametrize("setting", ["endpoint", "bucket", "access_key_id"])
def test_what_has_no_default_must_be_given(setting: str) -> None:
    values: dict[str, object] = {"endpoint": ENDPOINT, "bucket": "cache", "access_key_id": "me"}
    values[setting] = None
    lines = [
        f"{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None
    ]
    with pytest.raises(PushError, match=f"{setting.replace('_', '-')} is missing; set it to"):
        read([*lines, "secret-access-key=s", f"signing-key={SIGNING_KEY}"])


@pytest.mark.parametrize(
    "line",
    [
        "abcdefgh",
        "signing-key cache.test-1:nWGxne9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A==",
        "nWGxne9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A==",
        " secret-access-key=hidden",
        "secret-access-key : hidden=",
        "=hidden",
        "\x1b[31m=hidden",
    ],
)
def test_a_line_that_is_no_setting_is_refused_and_not_shown(line: str) -> None:
    with pytest.raises(PushError) as caught:
        read([f"endpoint={ENDPOINT}", line])
    assert re.fullmatch(
        r"settings: a line (is not of the form name=value|does not begin with the name of a "
        "setting); see --help",
        str(caught.value),
    )


@given(st.text(min_size=1), st.sampled_from([setting.name for setting in SETTINGS]))
def test_no_value_breaks_the_reader(value: str, name: str) -> None:
    valid = {
        "endpoint": ENDPOINT,
        "bucket": "cache",
        "access-key-id": "builder",
        "secret-access-key": "a secret",
        "signing-key": SIGNING_KEY,
    }
    lines = [f"{one}={text}" for one, text in {**valid, name: value.replace("/", "")}.items()]
    try:
        settings = read(lines)
    except PushError:
        return
    settings.authority.encode("ascii")
    settings.secret_access_key.encode()


# Files.


def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from a file\r\n")
    (tmp_path / "key").write_text(f"\n {SIGNING_KEY}\n\n")
    absolute = settings_for(
        ENDPOINT,
        secret_access_key="ignored",
        secret_access_key_file=tmp_path / "secret",
        signing_key=None,
        signing_key_file=tmp_path / "key",
    )
    assert absolute.secret_access_key == "from a file"
    assert absolute.signing_key == SIGNING_KEY
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    relative = settings_for(
        ENDPOINT,
        secret_access_key=None,
        secret_access_key_file="secret",
        signing_key_file="key",
    )
    assert relative == absolute


def test_certificates_may_have_comments_in_any_encoding(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(b"# caf\xe9\n" + PEM.encode())
    in_64 = base64.b64encode(file.read_bytes()).decode()
    assert settings_for(ENDPOINT, ca_certificate_file=file).ca_certificate == f"# caf\n{PEM}"
    assert settings_for(ENDPOINT, ca_certificate=in_64).ca_certificate == f"# caf\n{PEM}"


@pytest.mark.parametrize("content", [b"\xff", b"x" * ((1 << 20) + 1)])
def test_a_file_that_is_no_text_of_a_bearable_length_is_named(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    assert refused(secret_access_key_file=file) == (
        f"secret-access-key-file '{file}' cannot be read; name a readable file"
    )


def test_a_secret_of_several_lines_is_none(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hidden\nhidden\n")
    assert "hidden" not in refused(secret_access_key_file=file)


def test_no_representation_shows_a_secret() -> None:
    settings = settings_for(ENDPOINT)
    for text in (repr(settings), str(settings), repr(settings.signer)):
        assert "a secret" not in text
        assert "nWGxne9WmC6h" not in text


# The text that deployments write.


@pytest.mark.parametrize("value", ["a\nb", "a\rb"])
def test_a_value_with_a_line_break_is_never_written(value: str) -> None:
    with pytest.raises(ValueError, match=r"^secret-access-key has a line break$"):
        format_settings({"secret-access-key": value})
    with pytest.raises(ValueError, match=r"^path has a line break$"):
        format_settings({"path": ["/a", value]})


def test_only_settings_are_written() -> None:
    with pytest.raises(ValueError, match=r"^shoe-size is no setting of the push$"):
        format_settings({"shoe-size": 43})
    values: dict[str, str | int | Sequence[str] | None] = {"region": None, "path": []}
    assert format_settings(values) == ""
    assert format_settings({"parallelism": 3, "path": ["/a"]}) == "parallelism=3\npath=/a\n"


def test_help_lists_every_setting_once_with_its_default() -> None:
    text = usage()
    for setting in SETTINGS:
        assert len(re.findall(rf"(?m)^  {setting.name} ", text)) == 1
        assert setting.default is None or f"({setting.default})" in " ".join(text.split())
    assert max(map(len, text.split("\n"))) <= 100
    assert "; may repeat" in text


def test_help_is_a_table_of_98_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"{'a' * 35} {'b' * 36}"
    settings = (Setting("one", words, "1"), Setting("two", words, repeats=True))
    monkeypatch.setattr("push.settings.SETTINGS", settings)
    assert usage().split("\n") == [
        f"  one                     {words}",
        "                          (1)",
        f"  two                     {'a' * 35}",
        f"                          {'b' * 36}; may repeat",
    ]


def test_the_cache_directory_is_the_one_of_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_directory() == Path("/var/cache/me/nix-binary-cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == Path("/home/me/.cache/nix-binary-cache")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path("/home/me/.cache/nix-binary-cache")
    monkeypatch.setenv("HOME", "relative")
    assert cache_directory() is None
    monkeypatch.delenv("HOME")
    assert cache_directory() is None


def test_a_short_lived_credential_has_a_token_that_goes_with_every_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("eyJhbGciOi.x_y-z=\n")
    given_ways = ({"session_token": "eyJhbGciOi.x_y-z="}, {"session_token_file": str(token)})
    for way in given_ways:
        given_settings = settings_for(ENDPOINT, **way)
        headers = given_settings.signer.signed("GET", "s3", "/", (), {}, datetime.now(timezone.utc))
        assert headers["x-amz-security-token"] == "eyJhbGciOi.x_y-z="
        assert "x-amz-security-token" in headers["authorization"]
        assert "eyJ" not in repr(given_settings)
    assert settings_for(ENDPOINT).session_token is None
    said = refused(session_token="a b")
    assert "session-token is malformed; set it to the token that came with the secret" in said
    assert "a b" not in said
