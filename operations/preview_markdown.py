"""Turns what `pulumi preview --json` prints into a Markdown report for a pull request.

Usage: `pulumi preview --json | python -m operations.preview_markdown`, or, to run the preview
too, `python -m operations.preview_markdown --stack NAME` in the project's directory. Exit code 0:
the report is on standard output; 1: so it is, and the preview it is about failed; 2: there was
no preview.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from components.retention import expirations, shortenings
from formats.foreign_json import parse_foreign_json
from operations.command_line import DONE, FOUND, Parser, run
from operations.pulumi_cli import OperationError, read_report

SECRET = "[secret]"
"""How the engine writes a value that is secret (Pulumi CLI, `preview --json`)."""

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What stands for a value that is known only afterwards (pulumi, `plugin.UnknownStringValue`)."""

_NO_PREVIEW = "this is no preview; give what pulumi preview --json prints"
_SHORTENED = r"(?:warning: )?data would be lost: (retention is shortened: [a-zA-Z0-9 ]+)"
_LONGEST_VALUE = 160
_MOST_ROWS = 12
_CLOSURE = "pulumi-python:dynamic/nixcache:Closure"
_SIGNING_KEY = "pulumi-python:dynamic/nixcache:SigningKey"
_BUCKET = "minio:index/s3Bucket:S3Bucket"
_LIFECYCLE = "minio:index/ilmPolicy:IlmPolicy"
_COMMANDS = ("command:remote:Command", "command:local:Command")
_NOUNS = {
    _BUCKET: "bucket",
    "minio:index/s3BucketPolicy:S3BucketPolicy": "bucket policy",
    "minio:index/s3Object:S3Object": "object",
    _LIFECYCLE: "lifecycle",
    "minio:index/iamUser:IamUser": "user",
    "minio:index/iamPolicy:IamPolicy": "policy",
    "minio:index/iamUserPolicyAttachment:IamUserPolicyAttachment": "policy attachment",
    _SIGNING_KEY: "signing key",
    _CLOSURE: "closure",
    "command:remote:Command": "command",
    "command:local:Command": "command",
    "pulumi:providers:minio": "provider",
}
# Operations as `preview --json` names them (pulumi, sdk/go/common/apitype.OpType).
_WORDS = {
    "create": "created",
    "update": "changed",
    "replace": "**replaced**",
    "create-replacement": "**replaced**",
    "delete": "**deleted**",
    "import": "adopted",
    "import-replacement": "**replaced**",
    "discard": "dropped from the state",
}
_PASSED_OVER = frozenset({"same", "read", "refresh", "delete-replaced", "discard-replaced"})
# An object's ETag follows from its content; a push's text names what the closures' words do.
_DERIVED = frozenset({"create", "etag"})
# The engine hides them by itself; a preview made with --show-secrets must not end in a comment.
_SECRET_PROPERTIES = frozenset(
    {
        "adopted_secret_key",
        "connection",
        "minioPassword",
        "password",
        "privateKey",
        "secret",
        "secretKey",
        "secret_key",
        "stdin",
    }
)


class NoPreviewError(OperationError):
    """What was given is no preview's JSON; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Step:
    """What one resource's step of a preview comes to."""

    operation: str
    type: str
    name: str
    before: Mapping[str, Any]
    """Its inputs as the state has them; empty where it is new."""
    after: Mapping[str, Any]
    """Its inputs as the program declares them; empty where it goes."""
    touched: tuple[str, ...]
    """Property paths that the provider says differ, whether or not inputs show it."""

    @property
    def label(self) -> str:
        """What a person calls it, as Markdown."""
        return f"{_NOUNS.get(self.type) or code(self.type)} {code(self.name)}"

    @property
    def word(self) -> str:
        """What becomes of it, as Markdown."""
        return _WORDS.get(self.operation) or code(self.operation)


@dataclass(frozen=True)
class Change:
    """One property of a step: what it was and what it becomes, as Markdown."""

    property: str
    before: str
    after: str


def render(preview: Mapping[str, Any]) -> str:
    """Return the Markdown report of a preview.

    Args:
        preview: the object that `pulumi preview --json` prints. Secrets are hidden in it, and
            those that this program declares stay hidden if it was made with `--show-secrets`.

    Raises:
        NoPreviewError: it has no steps.
    """
    steps = _steps(preview)
    moving = [step for step in steps if step.operation not in _PASSED_OVER]
    sections = [f"### {_headline(preview, moving)}"]
    lost = [loss for step in steps for loss in _losses(step, steps)]
    lost += _shortened_by_adoption(preview, steps)
    losses = [f"- ⚠️ {loss}" for loss in lost]
    if losses:
        sections.append("\n".join(["**Data would be lost:**", *losses]))
    stays = "" if _bucket_goes(steps) else "; what it pushed stays until it expires"
    closures = [f"- {line}" for line in _closures_in_words(moving, stays)]
    if closures:
        sections.append("\n".join(["**Closures:**", *closures]))
    messages = [f"- {line}" for line in _messages(preview)]
    if messages:
        sections.append("\n".join(["**Messages:**", *messages]))
    rows = [row for step in moving for row in _rows(step)]
    if rows:
        head = ["| | resource | property | before | after |", "| --- | --- | --- | --- | --- |"]
        sections.append("\n".join([*head, *map(_row, rows)]))
    return "\n\n".join(sections) + "\n"


def failed(preview: Mapping[str, Any]) -> bool:
    """Return whether the preview ended in an error, so that its steps are not all there."""
    return any(note.get("severity") == "error" for note in preview.get("diagnostics") or ())


def code(text: str) -> str:
    """Return `text` as a Markdown code span that no text can leave.

    Source: CommonMark 0.31, "Code spans".
    """
    shown = " ".join("".join(c if c.isprintable() or c == "\n" else "�" for c in text).split("\n"))
    fence = "`"
    while fence in shown:
        fence += "`"
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _row(cells: Iterable[str]) -> str:
    """Return a table's row: in a cell, and nowhere else, a pipe is escaped in a code span too.

    Source: GitHub Flavored Markdown, "Tables".
    """
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _steps(preview: Mapping[str, Any]) -> list[Step]:
    if not isinstance(preview, Mapping) or not isinstance(preview.get("steps"), list):
        raise NoPreviewError(_NO_PREVIEW)
    return [_step(step) for step in preview["steps"]]


def _step(step: Mapping[str, Any]) -> Step:
    _, _, types, name = step["urn"].split("::", 3)
    return Step(
        step["op"],
        types.rpartition("$")[2],
        name,
        (step.get("oldState") or {}).get("inputs") or {},
        (step.get("newState") or {}).get("inputs") or {},
        tuple(step.get("detailedDiff") or step.get("replaceReasons") or ()),
    )


def _headline(preview: Mapping[str, Any], moving: Sequence[Step]) -> str:
    words = [step.word.strip("*") for step in moving]
    counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(words)]
    # Not every unchanged resource has a step: the summary alone counts them all.
    unchanged = (preview.get("changeSummary") or {}).get("same", 0)
    nothing = "No resource changes" if _loses_protection(preview) else "Nothing changes"
    return f"{', '.join(counts) or nothing}; {unchanged} unchanged"


def _loses_protection(preview: Mapping[str, Any]) -> bool:
    """Tell whether the program says that `protect` goes off: no resource has it as a property."""
    notes = (str(note.get("message", "")) for note in preview.get("diagnostics") or ())
    return any(re.match(r"(warning: )?protect goes off: ", text) for text in notes)


def _losses(step: Step, steps: Sequence[Step]) -> Iterator[str]:
    gone = step.operation in ("delete", "replace", "create-replacement")
    verb = "deleted" if step.operation == "delete" else "replaced by another"
    # A bucket of another name is another resource: one is made, or adopted, and one is deleted.
    coming = {one.operation for one in steps if one.type == _BUCKET} & {"create", "import"}
    if gone and step.type == _BUCKET:
        bucket = code(str(step.before.get("bucket", step.name)))
        if coming or step.operation != "delete":
            yield f"bucket {bucket} is replaced by another: every entry of the cache is in it"
        else:
            yield f"bucket {bucket} is deleted, with every entry that is in it"
    if gone and step.type == _SIGNING_KEY:
        key = code(str(step.before.get("key_name", step.name)))
        yield (
            f"signing key {key} is {verb}: only this state has it, and clients that trust no "
            "other key refuse what it did not sign"
        )
    if step.type == _LIFECYCLE and step.after and "import" not in coming:
        former = step.before
        if "create" in coming:
            # What held for the bucket before; without one, nothing was promised.
            told = (one.before for one in steps if one.type == _LIFECYCLE and one.before)
            former = next(told, step.after)
        before, after = (expirations(inputs.get("rules") or ()) for inputs in (former, step.after))
        yield from shortenings(before, after)


def _shortened_by_adoption(preview: Mapping[str, Any], steps: Sequence[Step]) -> Iterator[str]:
    """Yield what the program says of an adopted bucket's own rules, which no step has."""
    if any(step.type == _BUCKET and step.operation == "import" for step in steps):
        for note in preview.get("diagnostics") or ():
            text = " ".join(str(note.get("message", "")).split())
            found = re.fullmatch(_SHORTENED, text)
            if found is not None:
                yield found[1]


def _bucket_goes(steps: Sequence[Step]) -> bool:
    """Tell whether what was pushed goes with its bucket."""
    return any(
        step.type == _BUCKET and step.operation in ("delete", "replace", "create-replacement")
        for step in steps
    )


def _closures_in_words(moving: Sequence[Step], stays: str) -> Iterator[str]:
    closures = {step.name: step for step in moving if step.type == _CLOSURE}
    pushes = {
        step.name.removesuffix("-push"): step
        for step in moving
        if step.type in _COMMANDS and step.name.endswith("-push")
    }
    for name in sorted({*closures, *pushes}):
        for words in _told(closures.get(name), pushes.get(name), stays):
            yield f"builder {code(name)} {words}"


def _told(closure: Step | None, push: Step | None, stays: str) -> Iterator[str]:
    """Say what one builder is to push: its links are a closure's, store paths stand in the push."""
    if closure is not None and closure.after:
        last = list(closure.before.get("store_paths", ()))
        yield from _pushed(closure.after["links"], closure.after["store_paths"], last, stays)
    elif push is not None and not push.after:
        yield f"pushes nothing any more{stays}"
    elif push is not None:
        before, after = _pushed_paths(push.before), _pushed_paths(push.after)
        if before == after:
            another = push.before.get("create") != push.after.get("create")
            why = "the push itself changes" if another else "the push's settings change"
            yield f"pushes the same closures again: {why}"
        else:
            yield from _pushed(after, after, before, stays)


def _pushed_paths(command: Mapping[str, Any]) -> Sequence[str]:
    """Return the store paths that a push's command line ends with."""
    words = shlex.split(str(command.get("create", "")))
    return [word for word in words if word.startswith("/")]


def _pushed(
    links: Sequence[str], targets: Sequence[str], last: Sequence[str], stays: str
) -> Iterator[str]:
    told = set()
    for number, (link, target) in enumerate(zip(links, targets, strict=True)):
        path = code(target) if link == target else f"{code(target)} ({code(link)})"
        if target in last:
            yield f"keeps {path}"
        elif number < len(last) and last[number] not in targets:
            told.add(last[number])
            yield f"pushes {path}; before: {code(last[number])}"
        else:
            yield f"pushes {path} for the first time"
    for path in last:
        if path not in targets and path not in told:
            yield f"no longer pushes {code(path)}{stays}"


def _messages(preview: Mapping[str, Any]) -> Iterator[str]:
    for note in preview.get("diagnostics") or ():
        text = " ".join(str(note.get("message", "")).split())
        if re.match(r"(builder \S+ (no longer )?pushes |(warning: )?data would be lost: )", text):
            # The sections on closures and on losses have it.
            continue
        yield code(re.sub(r"^(warning|error): ", r"\1: ", text))


def _rows(step: Step) -> Iterator[Sequence[str]]:
    changes = _changes(step) if step.before and step.after else []
    first = changes[0] if changes else Change("", "", "")
    yield (step.word, step.label, first.property, first.before, first.after)
    for change in changes[1:_MOST_ROWS]:
        yield ("", "", change.property, change.before, change.after)
    if len(changes) > _MOST_ROWS:
        yield ("", "", f"and {len(changes) - _MOST_ROWS} more", "", "")


def _changes(step: Step) -> list[Change]:
    """Return what differs, property by property; alike elements of a list only once."""
    before, after = dict(_leaves(step.before)), dict(_leaves(step.after))
    alike: Counter[Change] = Counter()
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) != after.get(path) and _root(path) not in _DERIVED:
            name = code(re.sub(r"\[\d+\]", "[]", path))
            for old, new in _runs_that_differ(before.get(path, ()), after.get(path, ())):
                alike[Change(name, _shown(old), _shown(new))] += 1
    seen = {_root(path) for path in {*before, *after} if before.get(path) != after.get(path)}
    # A secret looks the same before and after, and what only the server has is no input.
    for root in dict.fromkeys(map(_root, step.touched)):
        if (SECRET,) in (before.get(root), after.get(root)) and root not in seen:
            alike[Change(code(root), SECRET, "another secret")] += 1
        elif not seen and root not in _DERIVED:
            alike[Change(code(root), "", "differs on the server")] += 1
    return [
        change
        if count == 1
        else Change(f"{change.property}, {count} times", change.before, change.after)
        for change, count in alike.items()
    ]


def _root(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the paths and the lines of what is no object; JSON in a text counts as such.

    A list of texts is one leaf, and so is a text of many lines: both are compared by runs.
    """
    name = path.rpartition(".")[2]
    if name in _SECRET_PROPERTIES:
        yield path, (SECRET,)
        return
    if isinstance(value, str) and value.startswith("{"):
        with suppress(ValueError):
            value = parse_foreign_json(value)
    if isinstance(value, Mapping):
        for key, element in value.items():
            if not str(key).startswith("__"):
                yield from _leaves(element, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and not all(isinstance(element, str) for element in value):
        for index, element in enumerate(value):
            yield from _leaves(element, f"{path}[{index}]")
    elif isinstance(value, list):
        yield path, tuple(value)
    elif isinstance(value, str):
        yield path, tuple(value.splitlines())
    elif value is not None:
        yield path, (json.dumps(value),)


def _runs_that_differ(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str]]:
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for tag, i, j, k, end in matcher.get_opcodes():
        if tag != "equal":
            yield "\n".join(old[i:j]), "\n".join(new[k:end])


def _shown(text: str) -> str:
    if text == UNKNOWN:
        return "known after the deployment"
    if len(text) > _LONGEST_VALUE:
        return f"{code(text[:_LONGEST_VALUE])}… ({len(text):,} characters)"
    return code(text) if text else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on a stack's preview, or on the one on standard input; return the exit code."""
    parser = Parser("preview-markdown", "", __doc__, stack_required=False)
    stack = parser.parse_args(arguments).stack
    return run(lambda: _report(stack))


def _report(stack: str | None) -> int:
    preview = _given() if stack is None else read_report("preview", "--stack", stack)[0]
    sys.stdout.write(render(preview))
    return FOUND if failed(preview) else DONE


def _given() -> Any:
    try:
        return parse_foreign_json(sys.stdin.read())
    except ValueError:
        raise NoPreviewError(_NO_PREVIEW) from None


if __name__ == "__main__":
    sys.exit(main())
