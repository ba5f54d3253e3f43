from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from components.push_program import archive, push_command
from operations import preview_markdown
from operations.preview_markdown import NoPreviewError, code, failed, render

BUCKET = "nixcache:index:BinaryCache$minio:index/s3Bucket:S3Bucket::nix-cache"
ANOTHER_BUCKET = "nixcache:index:BinaryCache$minio:index/s3Bucket:S3Bucket::another"
LIFECYCLE = "nixcache:index:BinaryCache$minio:index/ilmPolicy:IlmPolicy::nix-cache"
ANOTHER_LIFECYCLE = "nixcache:index:BinaryCache$minio:index/ilmPolicy:IlmPolicy::another"
KEY = "pulumi-python:dynamic/nixcache:SigningKey::cache.test-1"
CLOSURE = "pulumi-python:dynamic/nixcache:Closure::nixbuilder"
COMMAND = "nixcache:index:ClosurePush$command:remote:Command::nixbuilder-push"
OBJECT = "nixcache:index:BinaryCache$minio:index/s3Object:S3Object::nix-cache/nix-cache-info"
OLD, NEW = "/nix/store/" + "0" * 32 + "-system", "/nix/store/" + "1" * 32 + "-system"
LINK = "/run/current-system"


def step(
    operation: str,
    resource: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    touched: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "op": operation,
        "urn": f"urn:pulumi:test::nixcache::{resource}",
        **({} if before is None else {"oldState": {"inputs": before}}),
        **({} if after is None else {"newState": {"inputs": after}}),
        "detailedDiff": touched,
    }


def report(*steps: dict[str, Any], **more: Any) -> str:
    return render({"steps": list(steps), "changeSummary": {"same": 3}, **more})


def rules(days: int) -> dict[str, Any]:
    narinfos = [{"id": f"narinfo-{c}", "filter": c, "expiration": f"{days}d"} for c in "012"]
    return {"rules": [*narinfos, {"id": "nar", "filter": "nar/", "expiration": f"{days + 1}d"}]}


def test_nothing_to_do_is_one_line() -> None:
    assert report() == "### Nothing changes; 3 unchanged\n"


def test_a_protection_that_goes_off_is_not_nothing() -> None:
    note = {"severity": "warning", "message": "warning: protect goes off: nothing then keeps …"}
    text = report(diagnostics=[note])
    assert text.startswith("### No resource changes; 3 unchanged\n")
    assert "- `warning: protect goes off: nothing then keeps …`" in text


def test_the_engines_plugins_have_a_word() -> None:
    text = report(step("create", "pulumi:providers:minio::minio"))
    assert "provider `minio`" in text
    assert "pulumi:" not in text


def test_each_changed_property_is_a_row_with_what_it_was_and_becomes() -> None:
    before = {"content": "StoreDir: /nix/store\nPriority: 40\n", "etag": "a", "objectName": "x"}
    after = {"content": "StoreDir: /nix/store\nPriority: 30\n", "etag": "b", "objectName": "y"}
    text = report(step("update", OBJECT, before, after))
    assert "1 changed; 3 unchanged" in text
    assert "| `content` | `Priority: 40` | `Priority: 30` |" in text
    assert "| `objectName` | `x` | `y` |" in text
    assert "etag" not in text


def test_a_policy_is_compared_as_the_document_it_is() -> None:
    def policy(*actions: str) -> dict[str, Any]:
        return {"policy": json.dumps({"Statement": [{"Action": actions}]})}

    one, two = policy("s3:GetObject", "s3:PutObject"), policy("s3:GetObject", "s3:ListBucket")
    text = report(step("update", OBJECT, one, two))
    assert "| `policy.Statement[].Action` | `s3:PutObject` | `s3:ListBucket` |" in text


@pytest.mark.parametrize("levels", [900, 100_000])
def test_a_policy_that_is_nested_without_end_is_a_text(levels: int) -> None:
    nested = '{"a":' * levels + "1" + "}" * levels
    text = report(step("update", OBJECT, {"policy": nested}, {"policy": "{}"}))
    assert "| `policy` |" in text


def test_a_deleted_or_replaced_bucket_is_marked_as_lost_data() -> None:
    for operation in ("delete", "replace"):
        text = report(step(operation, BUCKET, {"bucket": "nix-cache"}))
        assert "**Data would be lost:**\n- ⚠️ bucket `nix-cache` is " in text


@pytest.mark.parametrize("operation", ["create", "import"])
def test_a_bucket_of_another_name_is_told_as_the_replacement_that_it_is(operation: str) -> None:
    steps = (
        step(operation, ANOTHER_BUCKET, None, {"bucket": "another"}),
        step(operation, ANOTHER_LIFECYCLE, None, rules(3)),
        step("delete", LIFECYCLE, rules(7)),
        step("delete", BUCKET, {"bucket": "nix-cache"}),
    )
    text = report(*steps)
    assert "- ⚠️ bucket `nix-cache` is replaced by another: every entry of the cache is" in text
    # What the rules of an adopted one were no step tells.
    assert ("retention is shortened" in text) is (operation == "create")


def test_what_an_adopted_bucket_loses_by_its_rules_is_told_by_the_program() -> None:
    steps = (
        step("import", BUCKET, None, {"bucket": "nix-cache"}),
        step("create", LIFECYCLE, None, rules(7)),
    )
    assert "lost" not in report(*steps)
    words = "retention is shortened: entries now expire after 7 days instead of 30"
    note = {"severity": "warning", "message": f"warning: data would be lost: {words}"}
    text = report(*steps, diagnostics=[note])
    assert f"**Data would be lost:**\n- ⚠️ {words}\n" in text
    assert text.count(words) == 1


def test_a_bucket_of_another_name_whose_entries_live_as_long_shortens_nothing() -> None:
    text = report(
        step("create", ANOTHER_BUCKET, None, {"bucket": "another"}),
        step("create", ANOTHER_LIFECYCLE, None, rules(7)),
        step("delete", LIFECYCLE, rules(7)),
        step("delete", BUCKET, {"bucket": "nix-cache"}),
    )
    assert "retention is shortened" not in text


def test_a_deleted_or_replaced_key_is_marked_as_lost_data() -> None:
    for operation in ("delete", "replace"):
        text = report(step(operation, KEY, {"key_name": "cache.test-1"}))
        assert "- ⚠️ signing key `cache.test-1` is " in text


def test_a_shorter_retention_is_marked_and_a_longer_one_is_not() -> None:
    shorter = report(step("update", LIFECYCLE, rules(7), rules(3)))
    assert "- ⚠️ retention is shortened: entries now expire after 3 days instead of 7" in shorter
    assert "NARs now expire after 4 days instead of 8" in shorter
    assert "| `rules[].expiration`, 3 times | `7d` | `3d` |" in shorter
    assert "lost" not in report(step("update", LIFECYCLE, rules(3), rules(7)))


def test_a_first_expiry_is_marked_in_a_bucket_that_exists_and_not_in_a_new_one() -> None:
    created = step("create", LIFECYCLE, None, rules(7))
    assert "entries that lived for ever now expire after 7 days" in report(created)
    assert "lost" not in report(step("create", BUCKET, None, {"bucket": "x"}), created)


def test_an_ordinary_creation_or_deletion_is_no_loss() -> None:
    text = report(step("create", BUCKET, None, {"bucket": "x"}), step("delete", OBJECT, {}))
    assert "lost" not in text
    assert "| created | bucket `nix-cache` |" in text
    assert "| **deleted** | object `nix-cache/nix-cache-info` |" in text


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (None, NEW, f"pushes `{NEW}` (`{LINK}`) for the first time"),
        (OLD, NEW, f"pushes `{NEW}` (`{LINK}`); before: `{OLD}`"),
        (OLD, None, "pushes nothing any more; what it pushed stays until it expires"),
    ],
)
def test_a_closure_is_told_in_words(before: str | None, after: str | None, words: str) -> None:
    known: list[dict[str, Any] | None] = [
        None if target is None else {"links": [LINK], "store_paths": [target]}
        for target in (before, after)
    ]
    operation = "create" if before is None else "delete" if after is None else "update"
    pushed = [one and {"create": push_command(one["store_paths"], archive())} for one in known]
    steps = (step(operation, CLOSURE, *known), step(operation, COMMAND, *pushed))
    assert f"- builder `nixbuilder` {words}\n" in report(*steps)


def test_what_a_builder_no_longer_pushes_is_told() -> None:
    def links(*paths: str) -> dict[str, Any]:
        return {"links": [f"/links{path}" for path in paths], "store_paths": list(paths)}

    gone = "- builder `nixbuilder` no longer pushes"
    pins = step("update", CLOSURE, links("/a", "/b", "/c"), links("/d", "/b"))
    text = report(pins)
    assert "- builder `nixbuilder` pushes `/d` (`/links/d`); before: `/a`\n" in text
    assert f"{gone} `/c`; what it pushed stays until it expires" in text
    assert f"{gone} `/a`" not in text
    paths = [{"create": push_command(known, archive())} for known in (["/a", "/b"], ["/b"])]
    text = report(step("update", COMMAND, *paths))
    assert f"{gone} `/a`; what it pushed stays until it expires" in text
    # The message of the program that says so is not repeated.
    note = {"severity": "info", "message": "builder nixbuilder no longer pushes /c; it stays"}
    assert "Messages" not in report(pins, diagnostics=[note])


@pytest.mark.parametrize("operation", ["delete", "replace"])
def test_what_was_pushed_does_not_outlive_its_bucket(operation: str) -> None:
    bucket = step(operation, BUCKET, {"bucket": "nix-cache"})
    push = step("delete", COMMAND, {"create": push_command(["/nix/store/a"], archive())}, None)
    text = report(bucket, push)
    assert "- builder `nixbuilder` pushes nothing any more\n" in text
    assert "stays until" not in text


@pytest.mark.parametrize(
    ("operation", "before", "after", "words"),
    [
        ("create", [], ["/nix/store/a"], "pushes `/nix/store/a` for the first time"),
        ("update", ["/nix/store/a"], ["/nix/store/b"], "pushes `/nix/store/b`; before: `/nix/sto"),
        ("update", ["/nix/store/a"], ["/nix/store/a", "/nix/store/b"], "keeps `/nix/store/a`\n"),
        ("delete", ["/nix/store/a"], [], "pushes nothing any more"),
    ],
)
def test_store_paths_are_told_in_words_too(
    operation: str, before: list[str], after: list[str], words: str
) -> None:
    known = [
        {"create": push_command(paths, archive())} if paths else None for paths in (before, after)
    ]
    assert f"- builder `nixbuilder` {words}" in report(step(operation, COMMAND, *known))


def test_the_same_closures_are_pushed_again_for_a_reason() -> None:
    now = {"create": push_command(["/nix/store/a"], archive())}
    before = {"create": now["create"].replace(" --config", "0 --config")}
    again = "- builder `nixbuilder` pushes the same closures again: "
    assert f"{again}the push itself changes\n" in report(step("update", COMMAND, before, now))
    assert f"{again}the push's settings change\n" in report(step("update", COMMAND, now, now))


def test_a_link_that_makes_way_for_its_store_path_takes_no_push_away() -> None:
    gone = step("delete", CLOSURE, {"links": [LINK], "store_paths": ["/nix/store/a"]}, None)
    assert "Closures:" not in report(gone)
    same = {"create": push_command(["/nix/store/a"], archive())}
    assert "Closures:" not in report(gone, step("same", COMMAND, same, same))
    new = {"create": push_command(["/nix/store/b"], archive())}
    text = report(gone, step("update", COMMAND, same, new))
    assert "- builder `nixbuilder` pushes `/nix/store/b`; before: `/nix/store/a`\n" in text


def test_a_credential_that_is_placed_anew_is_no_push() -> None:
    files = "nixcache:index:BuilderCredentials$command:remote:Command::nixbuilder-files"
    given = {"create": "sh -c place place-credentials /var/lib/nix-binary-cache"}
    assert "Closures:" not in report(step("update", files, given, {**given, "stdin": "[secret]"}))


def test_a_push_whose_settings_change_is_told_and_its_secrets_are_not() -> None:
    inputs = {"create": "bash", "stdin": "[secret]", "connection": "[secret]"}
    text = report(step("update", COMMAND, inputs, inputs, {"stdin": {"kind": "update"}}))
    assert "builder `nixbuilder` pushes the same closures again" in text
    assert "| `stdin` | [secret] | another secret |" in text


def test_a_preview_made_with_secrets_shown_gives_a_report_without_them() -> None:
    before = {"secret": "hunter1", "stdin": "hunter2", "connection": {"privateKey": "hunter3"}}
    after = {"secret": "hunter4", "stdin": "hunter5", "connection": {"privateKey": "hunter6"}}
    touched: dict[str, Any] = {"secret": {}, "stdin": {}, "connection.privateKey": {}}
    assert "hunter" not in report(step("update", COMMAND, before, after, touched))


def test_messages_are_passed_on_and_an_error_makes_the_preview_a_failed_one() -> None:
    note = {"severity": "error", "message": "error: preview failed\n"}
    assert "- `error: preview failed`" in report(diagnostics=[note])
    assert failed({"diagnostics": [note]})
    assert not failed({"diagnostics": [{"severity": "warning", "message": ""}]})


@given(st.text())
def test_no_text_leaves_its_code_span(text: str) -> None:
    span = code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    inside = span[len(fence) : -len(fence)]
    assert "\n" not in span
    assert fence not in inside
    assert not outside(span)


def outside(markdown: str) -> str:
    """Return what stands in no code span (CommonMark 0.31, "Code spans")."""
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown)


def cells(row: str) -> list[str]:
    """Return a table's row as a reader has it (GitHub Flavored Markdown, "Tables")."""
    return [one.replace("\\|", "|").strip() for one in re.split(r"(?<!\\)\|", row)[1:-1]]


NASTY = "a:b:|@org/team `` <b>x</b> ![y](https://z.test)\\|`"


@given(st.text(st.sampled_from("|\\`@<a:$")))
@example(NASTY)
def test_every_value_is_code_whatever_it_is_the_value_of(text: str) -> None:
    steps = [
        step(operation, f"x:{text}::{text}", {text: f"{text}1"}, {text: f"{text}2"}, {text: {}})
        for operation in ("create", "update", text or "-")
    ]
    notes = [{"severity": "warning", "message": f"warning: {text}"}]
    lines = report(*steps, diagnostics=notes).splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ")]
    assert {len(row) for row in rows} == {5}
    words = {word for row in rows[2:] for word in map(outside, row)}
    assert {word.strip() for word in words} <= {"", "created", "changed"}
    for line in lines:
        assert not {*"@<["} & {*outside(line)}


def test_a_resource_that_is_not_known_is_called_by_its_whole_type_as_code() -> None:
    (row,) = report(step("create", f"{NASTY}::x")).splitlines()[4:]
    assert cells(row)[1] == f"{code(NASTY)} `x`"


def test_a_pipe_is_escaped_in_a_table_and_nowhere_else() -> None:
    note = {"severity": "warning", "message": "warning: a|b"}
    text = report(step("update", OBJECT, {"a|b": "c|d"}, {"a|b": "e"}), diagnostics=[note])
    assert "- `warning: a|b`\n" in text
    assert "| `a\\|b` | `c\\|d` | `e` |" in text
    gone = report(step("delete", BUCKET, {"bucket": "a|b"}))
    assert "bucket `a|b` is deleted" in gone


def test_what_is_no_preview_is_refused() -> None:
    with pytest.raises(NoPreviewError):
        render({"version": 3})


@pytest.mark.parametrize(
    ("given", "exit_code", "printed"),
    [
        ('{"steps": [], "diagnostics": []}', 0, "### Nothing changes"),
        ('{"steps": [], "diagnostics": [{"severity": "error", "message": "no"}]}', 1, "`no`"),
        ("error: no stack", 2, ""),
        ("[]", 2, ""),
        ("[" * 100_000 + "]" * 100_000, 2, ""),
    ],
)
def test_the_exit_code_tells_a_failed_preview(
    given: str,
    exit_code: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    assert preview_markdown.main([]) == exit_code
    assert printed in capsys.readouterr().out
