"""What Nix says, and what links lead to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.keys import PublicKey
from formats.narinfo import NarInfo
from push.failure import PushError
from push.store import (
    Nix,
    NixError,
    StorePath,
    UnknownPathError,
    error_in,
    follow_link,
    read_narinfo,
    references_first,
    write_narinfos,
)
from tests.unit.push.paths import graphs, store_path

HASH = "0" * 32
PATH = f"/nix/store/{HASH}-hello"
SIGNATURE = f"cache.nixos.org-1:{'A' * 86}=="
KEY = PublicKey("cache.nixos.org-1", bytes(32))


# Links.


@pytest.fixture
def link(tmp_path: Path) -> Callable[[str, str], str]:
    def make(name: str, target: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
        return str(tmp_path / name)

    return make


Link = Callable[[str, str], str]


@pytest.mark.parametrize("inside", ["", "/", "/bin/hello", "//", "/./bin", "/bin/../lib"])
def test_a_store_path_is_what_lies_in_it(inside: str) -> None:
    """Nothing of it is looked at: it may be a link, dangling or leading out, or not exist."""
    assert follow_link(PATH + inside) == PATH
    assert follow_link(f"//nix/./store//{HASH}-hello{inside}") == PATH


def test_links_are_followed_to_the_first_store_path(link: Link) -> None:
    first = link("first", PATH)
    second = link("second", first)
    relative = link("third", "second/share/..")
    directory = link("directory", ".")
    assert [follow_link(one) for one in (first, second, relative)] == [PATH] * 3
    assert follow_link(f"{directory}/directory/first/bin") == PATH


def test_a_link_is_followed_from_where_it_lies(link: Link, tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    link("profiles/system-1-link", PATH)
    system = link("profiles/system", "system-1-link")
    up = link("up", "profiles/../profiles/system")
    assert follow_link(system) == follow_link(up) == PATH


def test_a_relative_path_is_taken_from_where_the_push_runs(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link("result", PATH)
    monkeypatch.chdir(tmp_path)
    assert follow_link("result") == follow_link("./result") == PATH


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/nix/store",
        "/nix/store/",
        "/etc/hostname",
        f"/nix/store/{HASH}",
        f"/nix/store/{HASH}-",
        f"/nix/store/{'e' * 32}-hello",
        "/nix/store/.links/abc",
        "/nix/store/../../etc/passwd",
        f"/gnu/store/{HASH}-hello",
        "/nowhere/at/all",
        "a\x00b",
        "\x1b[31m/x",
    ],
)
def test_what_is_no_store_path_and_no_link_to_one_is_named(path: str) -> None:
    with pytest.raises(UnknownPathError, match="is neither a store path nor a link") as e:
        follow_link(path)
    assert str(e.value).isprintable()


def test_a_circle_of_links_leads_nowhere(link: Link) -> None:
    one = link("one", "two")
    link("two", "one")
    with pytest.raises(UnknownPathError):
        follow_link(one)


def test_a_path_too_long_to_be_one_is_an_error_of_its_own() -> None:
    with pytest.raises(OSError, match="too long"):
        follow_link("/" + "x" * 5000)


# What Nix lists.


class ScriptedNix(Nix):
    """Nix, but what it says is what a test says."""

    def __init__(self, tmp_path: Path, script: str, **variables: str) -> None:
        program = tmp_path / "nix"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        super().__init__({"PATH": f"{tmp_path}:/usr/bin:/bin", **variables})


def entry(**changes: object) -> dict[str, object]:
    return {
        "path": PATH,
        "narHash": "sha256-" + "A" * 43 + "=",
        "narSize": 1,
        "references": [],
        **changes,
    }


def listed(tmp_path: Path, answer: object) -> list[StorePath]:
    file = tmp_path / "answer"
    file.write_text(answer if isinstance(answer, str) else json.dumps(answer))
    return ScriptedNix(tmp_path, f"cat {file}").closure([PATH])


def test_both_forms_of_the_answer_say_the_same(tmp_path: Path) -> None:
    more = {
        "deriver": f"/nix/store/{HASH}-hello.drv",
        "references": [PATH, f"/nix/store/{'1' * 32}-x"],
        "signatures": [SIGNATURE],
        "ca": "text:sha256:x",
        "registrationTime": 7,
    }
    as_list = listed(tmp_path, [entry(**more)])
    as_object = listed(tmp_path, {PATH: entry(**more)})
    assert as_list == as_object
    assert as_list == [
        StorePath(
            path=PATH,
            nar_hash=f"sha256:{'0' * 52}",
            nar_size=1,
            references=(f"{HASH}-hello", f"{'1' * 32}-x"),
            deriver=f"{HASH}-hello.drv",
            signatures=(SIGNATURE,),
            content_address="text:sha256:x",
        )
    ]
    assert as_list[0].base_name == f"{HASH}-hello"
    assert as_list[0].hash_part == HASH
    assert as_list[0].fingerprint == (
        f"1;{PATH};sha256:{'0' * 52};1;{PATH},/nix/store/{'1' * 32}-x"
    )


@pytest.mark.parametrize("absent", [None, ""])
def test_what_nix_does_not_know_is_nothing(tmp_path: Path, absent: str | None) -> None:
    (path,) = listed(tmp_path, [entry(deriver=absent, ca=absent, signatures=None)])
    assert (path.deriver, path.content_address, path.signatures) == (None, None, ())


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "cache.nixos.org-1:AAAA",
        "cache.nixos.org-1:!!!",
        f"{SIGNATURE}\nNarHash: sha256:{'1' * 52}",
        f"{SIGNATURE}\n",
        f" {SIGNATURE}",
        f"\u00fc{SIGNATURE}",
        f"a:{SIGNATURE}",
        "",
    ],
)
def test_a_signature_that_is_none_counts_for_nothing(tmp_path: Path, text: str) -> None:
    """Any user may add any text to a path of the store."""
    (path,) = listed(tmp_path, [entry(signatures=[text, SIGNATURE])])
    assert path.signatures == (SIGNATURE,)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "{",
        "null",
        "7",
        [7],
        [{}],
        [entry(path="/etc/passwd")],
        [entry(path=None)],
        [entry(narSize=0)],
        [entry(narSize=-1)],
        [entry(narSize="1")],
        [entry(narHash="md5:x")],
        [entry(narHash=None)],
        [entry(references=None)],
        {PATH: None},
        {"hello": entry()},
    ],
)
def test_an_answer_of_another_form_is_named(tmp_path: Path, answer: object) -> None:
    with pytest.raises(NixError, match="answered in a form that this push does not know"):
        listed(tmp_path, answer)


def test_a_form_that_must_be_asked_for_is_asked_for(tmp_path: Path) -> None:
    answer = json.dumps({PATH: entry()})
    nix = ScriptedNix(tmp_path, f"case $* in *json-format*) echo '{answer}';; *) echo '[7]';; esac")
    assert [path.path for path in nix.closure([PATH])] == [PATH]


def test_what_was_begun_is_not_asked_again(tmp_path: Path, link: Link) -> None:
    nix = ScriptedNix(tmp_path, f"echo $* >>{tmp_path}/asked; echo '[]'")
    nix.begin_closure([link("result", PATH), PATH, f"{PATH}.drv"])
    assert nix.closure([PATH, f"{PATH}.drv"]) == []
    assert len((tmp_path / "asked").read_text().splitlines()) == 2
    # What is asked later may have another answer.
    assert nix.closure([PATH]) == []
    assert len((tmp_path / "asked").read_text().splitlines()) == 3


def test_what_cannot_be_begun_fails_when_it_is_asked(tmp_path: Path) -> None:
    nix = ScriptedNix(tmp_path, "echo error: there is none >&2; exit 1")
    nix.begin_closure(["/nowhere", PATH])
    nix.begin_closure([PATH])
    with pytest.raises(NixError, match="there is none"):
        nix.closure([PATH])


def test_a_derivation_is_asked_for_as_a_path(tmp_path: Path) -> None:
    nix = ScriptedNix(tmp_path, f"echo $* >>{tmp_path}/asked; echo '[]'")
    assert nix.closure([PATH, f"{PATH}.drv"]) == []
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2
    assert asked[0].endswith(f"--json {PATH}")
    assert "--derivation" not in asked[0]
    assert " --derivation " in asked[1]
    assert all("--option substitute false" in line for line in asked)
    commands = nix.copy_command([f"{PATH}.drv", PATH], "file:///x")
    assert [("--derivation" in command, command[-1]) for command in commands] == [
        (False, PATH),
        (True, f"{PATH}.drv"),
    ]
    assert all("--no-recursive" in command for command in commands)


def test_no_command_line_is_longer_than_systems_take(tmp_path: Path) -> None:
    paths = [f"/nix/store/{HASH}-{number:05}" for number in range(10_000)]
    commands = ScriptedNix(tmp_path, "").copy_command(paths, "file:///x")
    known = set(paths)
    assert [one for command in commands for one in command if one in known] == paths
    sizes = [sum(len(one) + 1 for one in command if one in known) for command in commands]
    assert max(sizes) <= 100_000
    assert min(sizes[:-1]) > 99_000


def test_a_failure_of_nix_is_what_it_said(tmp_path: Path) -> None:
    nix = ScriptedNix(tmp_path, "echo \"error: path '$6' is not valid\" >&2; exit 1")
    with pytest.raises(NixError, match=r"^path '.*' is not valid$"):
        nix.closure([PATH])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nix failed"),
        ("\n\n", "nix failed"),
        ("warning: x\nsomething\n", "something"),
        ("warning: x\nerror: a\n  b\n", "a b"),
        ("\x1b[31;1merror:\x1b[0m path '\x1b[35;1mx\x1b[0m'\n", "path 'x'"),
        ("Exception: nix::Error: error: out of memory\nerror: (again)\n", "out of memory"),
        (
            "terminating due to unexpected unrecoverable internal error: disk\nx\n",
            "disk",
        ),
        ("error: a\x07b\u202ec", "a?b?c"),
    ],
)
def test_what_nix_wrote_is_one_line(text: str, said: str) -> None:
    assert error_in(text) == said


@given(st.text())
def test_whatever_nix_writes_is_one_printable_line_of_bounded_length(text: str) -> None:
    said = error_in(text)
    assert said.isprintable()
    assert len(said) <= 600


@pytest.mark.parametrize("variable", ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"])
def test_nix_gets_absolute_names_of_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.chdir(tmp_path)
    says = f'echo "error: ${variable}" >&2; exit 1'
    with pytest.raises(NixError, match=f"^{tmp_path}/ca.pem$"):
        ScriptedNix(tmp_path, says, **{variable: "ca.pem"}).closure([PATH])


def test_a_machine_without_nix_is_told_so() -> None:
    with pytest.raises(PushError, match="prepare: nix is missing on this machine; install it"):
        Nix({"PATH": "/nowhere", "HOME": "/nowhere"})


def test_nix_is_found_where_shells_do_not_look(tmp_path: Path) -> None:
    for place in (".nix-profile/bin", ".local/state/nix/profile/bin"):
        program = tmp_path / place / "nix"
        program.parent.mkdir(parents=True)
        program.write_text("")
        program.chmod(0o755)
        command = Nix({"PATH": "/nowhere", "HOME": str(tmp_path)}).command("x")
        assert command[0] == str(program)
        program.unlink()


# What Nix signs and verifies.


def test_a_narinfo_that_nix_wrote_is_read_without_signatures_that_are_none(
    tmp_path: Path,
) -> None:
    path = store_path("a", signatures=(SIGNATURE,))
    text = path.narinfo("nar/x.nar", "none", signatures=[SIGNATURE]).format()
    file = tmp_path / f"{path.hash_part}.narinfo"
    file.write_text(f"{text}Sig: cache.test-1:!!!\nSig: x\n")
    assert read_narinfo(tmp_path, path).signatures == (SIGNATURE,)
    file.write_text(f"{text}NarSize: 7\n")
    with pytest.raises(NixError, match="Nix wrote no narinfo for"):
        read_narinfo(tmp_path, path)
    file.write_text(text.replace("NarSize: 1000", "NarSize: 1001"))
    with pytest.raises(NixError, match="changed while it was pushed"):
        read_narinfo(tmp_path, path)
    file.unlink()
    with pytest.raises(NixError, match="Nix wrote no narinfo for"):
        read_narinfo(tmp_path, path)


def verified(tmp_path: Path, paths: Sequence[StorePath], script: str) -> set[str]:
    return ScriptedNix(tmp_path, script).verified(tmp_path / "stubs", paths, [KEY])


def test_what_is_not_untrusted_is_verified(tmp_path: Path) -> None:
    one, other = store_path("a"), store_path("b")
    told = f"echo \"path '{one.path}' is untrusted\" >&2; exit 2"
    assert verified(tmp_path, [one, other], told) == {other.path}
    assert verified(tmp_path, [one, other], "exit 0") == {one.path, other.path}


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "exit 2",
        "exit 3",
        "kill -9 $$",
        f"echo \"path '{PATH}' is untrusted\" >&2; exit 0",
    ],
)
def test_where_nix_could_not_tell_nothing_is_verified(tmp_path: Path, script: str) -> None:
    with pytest.raises(NixError):
        verified(tmp_path, [store_path("a")], script)


def test_what_is_verified_is_without_content_addresses(tmp_path: Path) -> None:
    """Nix believes a path that has one without looking at its signatures."""
    path = StorePath(PATH, f"sha256:{'0' * 52}", 1, (), None, (SIGNATURE,), "text:sha256:x")
    verified(tmp_path, [path], f'echo "$*" >{tmp_path}/asked')
    stub = (tmp_path / "stubs" / f"{HASH}.narinfo").read_text()
    assert "CA:" not in stub
    assert NarInfo.parse(stub).signatures == (SIGNATURE,)
    asked = (tmp_path / "asked").read_text()
    assert f"--option trusted-public-keys {KEY}" in asked
    assert asked.rstrip().endswith(PATH)


def test_a_key_that_does_not_sign_is_named(tmp_path: Path) -> None:
    nix = ScriptedNix(tmp_path, "exit 0")
    with pytest.raises(NixError, match=r"Nix did not sign .*; check the signing key"):
        nix.signatures(tmp_path / "stubs", [store_path("a")], tmp_path / "key", "cache.test-1")


def test_stubs_are_written_where_nix_takes_them_for_a_store(tmp_path: Path) -> None:
    paths = [store_path("a"), store_path("b")]
    write_narinfos(tmp_path / "new", (path.narinfo("nar/stub", "none") for path in paths))
    write_narinfos(tmp_path / "new", [])
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(
        f"{path.hash_part}.narinfo" for path in paths
    )


def test_no_link_leads_a_stub_to_another_file(tmp_path: Path) -> None:
    path, precious = store_path("a"), tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / f"{path.hash_part}.narinfo").symlink_to(precious)
    for _ in range(2):
        write_narinfos(tmp_path, [path.narinfo("nar/stub", "none")])
        assert precious.read_text() == "precious"
        assert f"StorePath: {path.path}" in (tmp_path / f"{path.hash_part}.narinfo").read_text()


# The order of a closure.


@given(graphs(most=20), st.randoms())
def test_references_come_first(paths: list[StorePath], random: object) -> None:
    shuffled = sorted(paths, key=lambda path: path.path)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ordered = references_first({path.path: path for path in shuffled})
    assert sorted(path.path for path in ordered) == sorted(path.path for path in paths)
    seen: set[str] = set()
    for path in ordered:
        assert {name for name in path.references if name != path.base_name} <= seen
        seen.add(path.base_name)


def test_a_chain_of_any_length_is_ordered() -> None:
    chain = [store_path("p0")]
    for number in range(1, 5000):
        chain.append(store_path(f"p{number}", 1, chain[-1]))
    assert references_first({path.path: path for path in reversed(chain)}) == chain
