"""The report: what it draws, what it keeps of those before it, and whose text does no harm."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.retention import PAGE_KEY
from components.text_object import object_resource
from formats.push_status import Lease, PushStatus, format_status
from formats.s3 import ListedObject
from formats.signing import SecretKey
from operations import report
from operations.cache_status import PinnedClosure, Rules, Seen, Status, evaluate
from operations.pulumi_cli import OperationError
from operations.report import check_page, former, page_options
from operations.report_page import (
    MOST_REPORTS,
    Reported,
    figures_of,
    history_of,
    history_with,
    report_page,
)
from program.checks.recorded import OBJECT, Recorded
from tests.unit.formats import told
from tests.unit.operations.test_audit import NOWHERE, stack
from tests.unit.operations.test_status import deployed

NOW = datetime(2026, 11, 27, 9, 30, tzinfo=timezone.utc)
WEEK = Rules(7, 7, 1, at_midnight=True)
FOR_EVER = Rules(None, None, 1, at_midnight=True)
TOLD = replace(told.TOLD, own=7, renewed=7, pushed=0)
SYSTEM = "/nix/store/2w8rqgjhr5wnsw9b6fhxyqzmx5qsknpx-nixos-system-26.05"


def listed(key: str, days_old: float, size: int = 700) -> ListedObject:
    return ListedObject(key, size, "etag", NOW - timedelta(days=days_old))


def entries() -> list[ListedObject]:
    objects = [
        listed(f"_nixcache/status/cache-{user}", days_old)
        for user, days_old in (("one", 0.3), ("two", 5), ("four", 0.1))
    ]
    for number in range(60):
        days_old = (number % 9) * 0.9
        objects.append(listed(f"{number:032}.narinfo", days_old))
        objects.append(listed(f"nar/{number:052}.nar.zst", days_old, (number + 1) * 1_234_567))
    return [*objects, listed(f"{99:032}.narinfo", 40)]


def status_of(
    *, stack: str = "homelab", pins: tuple[PinnedClosure, ...] = (), told: bytes
) -> Status:
    late = replace(TOLD, started_by="path", failures=2)
    part = replace(late, failures=3, before=Lease(NOW - timedelta(days=1), 12, 100))
    seen = Seen(
        entries(),
        {
            "cache-one": told,
            "cache-two": format_status(late),
            "cache-four": format_status(part),
        },
        pins,
        {f"nar/{59:052}.nar.zst": SYSTEM},
    )
    builders = {name: f"cache-{name}" for name in ("one", "two", "three", "four")}
    return evaluate(stack, "https://s3.test/cache", ["k-1"], builders, {}, WEEK, seen, NOW)


def pushed(
    *pushes: tuple[PushStatus | None, float],
    rules: Rules,
    pins: tuple[PinnedClosure, ...] = (),
) -> Status:
    """Return what is known where builders last told of these pushes, so many days ago."""
    names = ["one", "two", "three"][: len(pushes)]
    told = {name: one for name, one in zip(names, pushes, strict=True) if one[0] is not None}
    seen = Seen(
        [listed(f"_nixcache/status/{name}", days_old) for name, (_, days_old) in told.items()],
        {name: format_status(one) for name, (one, _) in told.items() if one is not None},
        pins,
    )
    users = {name: name for name in names}
    return evaluate("homelab", "https://s3.test/cache", ["k-1"], users, {}, rules, seen, NOW)


STATUS = status_of(
    told=format_status(TOLD),
    pins=(
        PinnedClosure("live", (SYSTEM, SYSTEM), 1391, 1_730_000_000),
        PinnedClosure("release", (SYSTEM,), 12, 300_000, {SYSTEM: "its NAR is gone"}),
        PinnedClosure("odd", unreadable="a pin is no text of store paths"),
    ),
)
EVIL = "<img src=x onerror=alert(1)></script><script>document.title='taken over'</script>\x1b[2J"
HOSTILE_STATUS = status_of(
    stack=EVIL, told=EVIL.encode(), pins=(PinnedClosure(EVIL, (EVIL,), lost={EVIL: EVIL}),)
)


class Page(HTMLParser):
    """Elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_it_says_everything_in_both_languages_and_asks_for_nothing() -> None:
    html = report_page(STATUS, history_with([], STATUS))
    shown = Page(html)
    languages = [attributes.get("data-text") for _, attributes in shown.elements]
    assert languages.count("en") == languages.count("zh") > 40
    assert not [tag for tag, _ in shown.elements if tag in ("img", "iframe", "object", "form", "a")]
    assert not [a for _, a in shown.elements if "src" in a or "style" in a]
    for words in ("7 paths", "3.4 GB", "2026-12-05", "nixos-system-26.05", "2 not pushed"):
        assert words in html
    assert report_page(STATUS, history_with([], STATUS)) == html


def test_what_is_wrong_is_said_first_and_a_cache_without_anything_is_a_page_too() -> None:
    html = report_page(STATUS, [])
    assert html.index("builder three: it has told of no push yet") < html.index('id="builders"')
    empty = evaluate("empty", "https://s3.test", [], {}, {}, FOR_EVER, Seen([], {}), NOW)
    html = report_page(empty, history_with([], empty))
    for words in ("about to be lost", "No builder is declared", "Nothing expires", "It is empty"):
        assert words in html


FAILED = replace(TOLD, failures=500)
KEPT_BEFORE = replace(FAILED, before=Lease(NOW - timedelta(days=2), 12, 100))
WHOLE = PinnedClosure("live", (SYSTEM,), 12, 100)


@pytest.mark.parametrize(
    ("pushes", "rules", "pins", "kind", "said"),
    [
        ([(TOLD, 1)], WEEK, [WHOLE], "well", "All is well: every builder pushes, every pin is "),
        ([(TOLD, 1)], WEEK, [], "well", "All is well: every builder pushes."),
        ([], WEEK, [WHOLE], "well", "All is well: every pin is whole."),
        ([], WEEK, [], "well", "Nothing to watch: neither a builder nor a pin is declared."),
        (
            [(KEPT_BEFORE, 0)],
            WEEK,
            [WHOLE],
            "doubtful",
            "builder one: 500 not pushed by its last push, on 2026-11-27",
        ),
        (
            [(FAILED, 400), (None, 0)],
            FOR_EVER,
            [],
            "doubtful",
            "builder one: 500 not pushed by its last push, on 2025-10-23\n"
            "builder two: it has told of no push yet",
        ),
        (
            [(TOLD, 400)],
            FOR_EVER,
            [WHOLE],
            "well",
            "Nothing is about to be lost: nothing expires, every pin is whole. The last push of "
            "builder one, on 2025-10-23, left nothing out.",
        ),
        (
            [(TOLD, 1), (TOLD, 400), (TOLD, 2)],
            FOR_EVER,
            [],
            "well",
            "Nothing is about to be lost: nothing expires. No builder's last push left anything "
            "out; the one longest ago is that of two, on 2025-10-23.",
        ),
        ([], FOR_EVER, [], "well", "Nothing is about to be lost: nothing expires."),
    ],
)
def test_only_what_holds_is_said_to_be_well(
    pushes: list[tuple[PushStatus | None, float]],
    rules: Rules,
    pins: list[PinnedClosure],
    kind: str,
    said: str,
) -> None:
    html = report_page(pushed(*pushes, rules=rules, pins=tuple(pins)), [])
    (verdict,) = re.findall(r'<(?:p|ul) class="verdict.*?</(?:p|ul)>', html, re.DOTALL)
    assert f'class="verdict {kind}"' in verdict
    english, chinese = (
        re.findall(f'data-text="{language}">([^<]*)<', verdict) for language in ("en", "zh")
    )
    assert unescape("\n".join(english)).startswith(said)
    assert len(chinese) == len(english)


@pytest.mark.parametrize(
    ("days_old", "shown"), [(-90 / 86_400, "just written"), (0.5, "12 hours"), (40, "40 days")]
)
def test_what_a_server_with_another_clock_has_just_written_is_not_older_than_nothing(
    days_old: float, shown: str
) -> None:
    seen = Seen([listed(f"{1:032}.narinfo", days_old)], {})
    status = evaluate("homelab", "https://s3.test/cache", ["k-1"], {}, {}, WEEK, seen, NOW)
    page = report_page(status, [])
    assert shown in page
    assert not re.search(r"(?<![\w-])-[0-9]", page[page.index("<main>") : page.index("<section")])


def test_what_is_found_and_what_is_doubtful_are_told_apart() -> None:
    html = report_page(STATUS, [])
    builders = html[html.index('<table class="cards">') :]
    assert html.index('class="verdict ill"') < html.index('class="verdict doubtful"')
    assert "builder four: 3 not pushed by its last push, on 2026-11-27" in html
    assert "构建机 four：最近一次推送（2026-11-27）有 3 项未推送" in html
    marks = re.findall(r'<th scope="row"(?: class="(\w+)")?>(\w+)</th>', builders)[:4]
    assert marks == [("", "one"), ("late", "two"), ("unsure", "three"), ("unsure", "four")]


def test_a_key_that_clients_do_not_trust_is_told_in_both_languages() -> None:
    keys = [SecretKey.generate(f"k-{number}").public_key for number in (1, 2)]
    status = replace(
        pushed((replace(TOLD, signed_by=str(keys[0])), 1), rules=WEEK), public_keys=(str(keys[1]),)
    )
    html = report_page(status, [])
    assert "builder one: its last push signed with k-1, which clients do not trust" in html
    assert "构建机 one：最近一次推送由 k-1 签名，而客户端不信任它" in html
    other = replace(status, public_keys=(str(replace(keys[0], data=bytes(32))),))
    assert "builder one: its last push signed with another key named k-1" in report_page(other, [])
    assert "构建机 one：最近一次推送由另一个名为 k-1 的密钥签名" in report_page(other, [])


def test_a_builder_that_pushes_and_renews_nothing_is_told_in_both_languages() -> None:
    told = format_status(replace(TOLD, own=40))
    html = report_page(status_of(told=told), [])
    assert "builder one: its pushes have not renewed all it keeps for 4 of the 7 days" in html
    assert "构建机 one：已有 4 天，它的推送没有续期其保留的全部内容（条目保留 7 天）" in html


def test_nobody_elses_text_is_markup() -> None:
    html = report_page(HOSTILE_STATUS, history_with([], HOSTILE_STATUS))
    shown = Page(html)
    tags = [tag for tag, _ in shown.elements]
    assert (tags.count("script"), tags.count("img")) == (2, 0)
    assert len(history_of(html, HOSTILE_STATUS)) == 1
    assert "\x1b" not in "".join(shown.words)


def test_the_page_keeps_the_figures_of_those_before_it_one_a_day() -> None:
    days = [NOW - timedelta(days=day) for day in range(MOST_REPORTS + 50, 0, -1)]
    history: list[Reported] = []
    for day in days:
        history = history_with(history, replace(STATUS, at=day))
    history = history_with(history, replace(STATUS, at=NOW - timedelta(hours=2)))
    history = history_with(history, STATUS)
    assert len(history) == MOST_REPORTS
    assert history[-1] == Reported(NOW, STATUS.entries, STATUS.nar_bytes)
    page = report_page(STATUS, history)
    assert history_of(page, STATUS) == history
    assert "now" in page


KEYS = ("cache.test-1:AAAA", "cache.test-2:BBBB")
KNOWN = replace(STATUS, public_keys=KEYS)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (KNOWN, True),
        (replace(KNOWN, stack="organization/nixcache/homelab"), True),
        (replace(KNOWN, stack="staging"), False),
        (replace(KNOWN, stack="staging", substituter="https://s3.test/staging"), False),
        # It has moved, or has a public URL now, or its first keys are retired.
        (replace(KNOWN, substituter="https://cache.test"), True),
        (replace(KNOWN, substituter="https://cache.test", public_keys=KEYS[1:]), True),
        (replace(KNOWN, public_keys=()), True),
        # Another checkout's stack of the same name.
        (replace(KNOWN, substituter="https://cache.test", public_keys=("x-1:A",)), False),
        (replace(KNOWN, substituter="https://cache.test", public_keys=()), False),
    ],
)
def test_a_report_takes_over_the_figures_of_its_own_cache_alone(other: Status, same: bool) -> None:
    history = history_with([], replace(KNOWN, at=NOW - timedelta(days=1)))
    page = report_page(KNOWN, history)
    assert history_of(page, other) == (history if same else [])


def test_a_page_of_before_is_known_by_its_head() -> None:
    history = history_with([], STATUS)
    entry = {"at": "2026-11-27T09:30:00Z", "entries": STATUS.entries, "narBytes": STATUS.nar_bytes}
    page = (
        '<h1>homelab</h1>\n<p class="quiet">https://s3.test/cache<span class="moment">…</span></p>'
        f'\n<script type="application/json" id="reports">{json.dumps([entry])}</script>\n'
    )
    assert history_of(page, KNOWN) == history
    for change in ({"stack": "staging"}, {"substituter": "https://s3.test/cache2"}):
        assert history_of(page, replace(KNOWN, **change)) == []  # type: ignore[arg-type]


def test_one_file_for_two_stacks_mixes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    status = STATUS
    monkeypatch.setattr(report, "read_deployed", lambda *_, **__: (stack(), Recorded({})))
    monkeypatch.setattr(report, "status_of", lambda *_: status)
    for day, name in ((3, "one"), (2, "two"), (1, "two")):
        status = replace(STATUS, stack=name, at=NOW - timedelta(days=day))
        assert report.main(["--stack", name, "--output", str(file)]) == 0
    kept = former(file, status)
    assert [one.at for one in kept] == [NOW - timedelta(days=2), NOW - timedelta(days=1)]


def test_one_absurd_figure_costs_no_other_whoever_wrote_it() -> None:
    good = history_with([], replace(STATUS, at=NOW - timedelta(days=2)))
    absurd = replace(STATUS, at=NOW - timedelta(days=1), nar_bytes=5 * (10**18 - 1))
    history = history_with(history_with(good, absurd), STATUS)
    page = report_page(STATUS, history)
    assert history_of(page, STATUS) == history
    assert len(history) == 3
    spoilt = page.replace(f'"narBytes":{history[1].nar_bytes}', f'"narBytes":{1 << 62}')
    assert spoilt != page
    assert history_of(spoilt, STATUS) == [history[0], history[2]]


@pytest.mark.parametrize(
    "reports",
    [
        "[",
        "7",
        "{}",
        "[7]",
        "[{}]",
        "[" * 100_000,
        json.dumps([{"at": "now", "entries": 1, "narBytes": 1}]),
        json.dumps([{"at": "2026-11-27T09:30:00Z", "entries": -1, "narBytes": 1}]),
        json.dumps([{"at": "2026-11-27T09:30:00Z", "entries": 1, "narBytes": "<b>"}]),
        json.dumps([{"at": "2026-11-27T09:30:00Z", "entries": True, "narBytes": 1}]),
        '{"reports":[]}',
        '{"stack":"homelab","substituter":"https://s3.test/cache"}',
        '{"stack":"homelab","substituter":"https://s3.test/cache","reports":7}',
        '{"stack":"homelab","substituter":"https://s3.test/cache","reports":[7]}',
        '{"stack":"homelab","publicKeys":{},"reports":[]}',
    ],
)
def test_a_former_report_that_somebody_changed_is_none(reports: str, tmp_path: Path) -> None:
    page = report_page(STATUS, history_with([], STATUS))
    changed = re.sub(r'(id="reports">)[^<]*', lambda found: found[1] + reports, page)
    file = tmp_path / "report.html"
    file.write_text(changed, encoding="utf-8")
    assert former(file, STATUS) == []
    assert former(tmp_path, STATUS) == []
    assert former(tmp_path / "none.html", STATUS) == []


def test_figures_are_published_where_a_page_shows_them() -> None:
    check_page(stack(pageFigures=True), Recorded({}))
    for changes, why in (({}, "set pageFigures to true"), ({"access": "private"}, "no page")):
        with pytest.raises(OperationError, match=why):
            check_page(stack(**changes), Recorded({}))
    state = Recorded(
        {
            f"urn::{name}": {"type": OBJECT}
            for name in ("a/nix-cache-info", "b/use.html", "a/use.html", "cache-use.html")
        }
    )
    assert list(page_options(state, "a")) == ["--target=urn::a/use.html"]
    assert not list(page_options(state, "c"))
    figures = figures_of(STATUS)
    assert (figures.at, figures.entries) == (NOW, STATUS.entries)


@pytest.mark.parametrize(
    ("settings", "pending"),
    [
        ({"retentionDays": 30}, "retentionDays is 30"),
        ({"expire": "false"}, "expire is false"),
        ({"publicUrl": "https://new.test"}, "publicUrl is https://new.test"),
        ({"bucket": "another"}, f"publicUrl is {NOWHERE}/another"),
    ],
)
def test_no_page_promises_what_is_not_deployed(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, object],
    pending: str,
) -> None:
    name = object_resource("nix-cache", PAGE_KEY)
    page = {f"urn::{name}": {"type": OBJECT, "outputs": {}}}
    state = Recorded({**deployed(7).resources, **page})
    state.resources["urn:stack"]["outputs"]["substituter"] = f"{NOWHERE}/nix-cache"
    changed = stack(pageFigures=True, **settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "read_deployed", lambda *_, **__: (changed, state))
    monkeypatch.setattr(report, "status_of", lambda *_: STATUS)
    monkeypatch.setattr(report, "on_terminal", lambda *_: pytest.fail("it deployed"))
    assert report.main(["--stack", "homelab", "--publish"]) == 2
    assert capsys.readouterr().err == (
        f"error: stack test: the settings are not deployed as they are ({pending}), and this would "
        "put a part of them in force; see pulumi preview, then run pulumi up, or undo the change\n"
    )
    assert not list(tmp_path.iterdir())
    # What the page does not tell keeps nothing from being published.
    check_page(stack(pageFigures=True, graceDays=3), deployed(7))


def test_nothing_else_is_deployed_where_no_page_is_there_to_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    known = stack(pageFigures=True), Recorded({})
    monkeypatch.setattr(report, "read_deployed", lambda *_, **__: known)
    monkeypatch.setattr(report, "on_terminal", lambda *_: pytest.fail("it deployed"))
    assert report.main(["--stack", "homelab", "--publish"]) == 2
    assert "its cache has no page use.html yet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_report_is_put_below_the_stacks_last_name_or_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "read_deployed", lambda *_, **__: (stack(), Recorded({})))
    monkeypatch.setattr(report, "status_of", lambda *_: STATUS)
    assert report.main(["--stack", "organization/nixcache/homelab"]) == 0
    assert [file.name for file in Path("build").iterdir()] == ["report-homelab.html"]
    shutil.rmtree("build")
    Path("build").touch()
    assert report.main(["--stack", "homelab"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "report-homelab.html cannot be written: Not a directory" in told


def test_a_pipe_is_no_former_report_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert former(tmp_path / "pipe", STATUS) == []
