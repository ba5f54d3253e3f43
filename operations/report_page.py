"""What is known of a cache as a picture: one HTML page that asks for nothing else. Pure.

The figures of former reports are in the page itself, so that one file is all there is to keep.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from formats.error import FormatError
from formats.http_date import parse_iso_time
from formats.printable import printable
from operations.cache_status import (
    BuilderState,
    Day,
    PinnedClosure,
    Rules,
    Status,
    changed_setting,
    late_by,
)
from operations.status_text import STARTED_BY, age_in_words
from program.outputs.figures import Figures, size_in_words
from program.outputs.page import STYLE, both, document, section

LARGEST_PAGE = 1 << 22
"""Bytes of the largest former report that is read."""

MOST_REPORTS = 400
"""How many former reports a page keeps the figures of: one a day, for more than a year."""

_STYLE = STYLE + Path(__file__).with_name("report_page.css").read_text(encoding="utf-8")
_HISTORY = re.compile(r'<script type="application/json" id="reports">([^<]*)</script>')
_DAYS_SHOWN = 14
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_LARGEST_NUMBER = 1 << 62

_NONE = both("none", "无")

_STARTED_BY_IN_CHINESE = {
    "deployment": "部署",
    "timer": "定时器",
    "path": "新的系统世代",
    "service": "服务",
    "queue": "构建队列",
    "stdin": "路径流",
    "ci": "CI 任务",
    "command": "命令",
}


@dataclass(frozen=True)
class Reported:
    """The figures of one report."""

    at: datetime
    entries: int
    nar_bytes: int


def history_of(page: str, status: Status) -> list[Reported]:
    """Return the figures that a former report of the same cache keeps, the oldest first.

    An entry that is none is left out: one that somebody has spoilt does not cost the others.

    Args:
        page: the former report; where it is none, or another cache's, there are no figures.
        status: what is known of the cache.
    """
    match = _HISTORY.search(page)
    try:
        kept = json.loads(match[1]) if match else {}
    except (ValueError, RecursionError):
        return []
    if isinstance(kept, list):
        # Pages of before say in their heads alone whose they are.
        kept = {"reports": kept} if _head(status) in page else {}
    elif not isinstance(kept, dict) or not _is_of(kept, status):
        return []
    found = kept.get("reports")
    return list(_entries(found if isinstance(found, list) else []))[-MOST_REPORTS:]


def _is_of(kept: Mapping[str, Any], status: Status) -> bool:
    """Tell whether figures are of the same stack's same cache.

    Its keys stay where it gets another URL or server. Another checkout's stack of that name, such
    as dev, has neither.
    """
    own, keys = _whose(status), kept.get("publicKeys")
    return kept.get("stack") == own["stack"] and (
        kept.get("substituter") == own["substituter"]
        or (isinstance(keys, list) and any(key in keys for key in status.public_keys))
    )


def _whose(status: Status) -> dict[str, Any]:
    return {
        # The same with its full name, which has slashes.
        "stack": status.stack.rpartition("/")[2],
        "substituter": status.substituter,
        "publicKeys": list(status.public_keys),
    }


def _head(status: Status) -> str:
    return f'<h1>{_text(status.stack)}</h1>\n<p class="quiet">{_text(status.substituter)}<'


def _entries(found: Iterable[Any]) -> Iterator[Reported]:
    for one in found:
        with suppress(ValueError, TypeError, AttributeError):
            yield _reported(one)


def _reported(fields: Mapping[str, Any]) -> Reported:
    entries, nar_bytes = fields.get("entries"), fields.get("narBytes")
    for number in (entries, nar_bytes):
        if type(number) is not int or not 0 <= number < _LARGEST_NUMBER:
            raise FormatError("a report has no such figure")
    assert isinstance(entries, int)
    assert isinstance(nar_bytes, int)
    return Reported(parse_iso_time(str(fields.get("at"))), entries, nar_bytes)


def history_with(before: Sequence[Reported], status: Status) -> list[Reported]:
    """Return the figures of all reports with this one: of a day, the last one stays."""
    # Sizes are whatever a server says; what is written here has to be read again.
    entries, nar_bytes = (
        min(number, _LARGEST_NUMBER - 1) for number in (status.entries, status.nar_bytes)
    )
    now = Reported(status.at.replace(microsecond=0), entries, nar_bytes)
    by_day = {one.at.date(): one for one in before if one.at < now.at}
    by_day[now.at.date()] = now
    return [by_day[day] for day in sorted(by_day)][-MOST_REPORTS:]


def figures_of(status: Status) -> Figures:
    """Return what the page for people shows of a cache."""
    return Figures(status.at, status.entries, status.nar_bytes, status.newest or status.at)


def report_page(status: Status, history: Sequence[Reported]) -> str:
    """Return the HTML text of a report.

    Args:
        status: what is known of the cache.
        history: the figures of all reports, this one among them and last.
    """
    name = printable(status.stack)
    return document(
        (f"{name}: the state of the cache", f"{name}：缓存状态"),
        name,
        f'{_text(status.substituter)}<span class="moment">{_moment(status.at)}</span>',
        "".join([*_sections(status, history), _kept(status, history)]),
        _STYLE,
    )


def _sections(status: Status, history: Sequence[Reported]) -> Iterator[str]:
    yield _tiles(status)
    yield _verdict(status)
    yield section(
        "builders",
        ("Builders", "构建机"),
        (
            "When each last pushed, as the server says; what it came to, as the builder says.",
            "最近推送时间由服务器记录；推送结果由构建机自己报告。",
        ),
        _builders(status),
    )
    yield section(
        "expiring",
        ("What expires when", "何时过期"),
        (
            "If nothing pushes from now on. NARs outlive the entries that name them.",
            "假设此后不再有推送。NAR 比引用它的条目保留得更久。",
        ),
        _by_day(_ahead(status), ("Nothing expires.", "没有条目会过期。")),
    )
    yield section(
        "age",
        ("How old it is", "写入时间"),
        (
            "By the day on which it was last written: pushed, or its lease begun anew.",
            "按最后一次写入（推送或续期）的日期统计。",
        ),
        _by_day(_past(status), ("It is empty.", "缓存为空。")),
    )
    yield section(
        "growth",
        ("Growth", "增长"),
        (
            "From the reports before this one, at most one a day.",
            "取自历次报告，每天至多一份。",
        ),
        _growth(history),
    )
    yield section(
        "closures",
        ("Largest closures", "最大的闭包"),
        (
            "What builders keep, before compression, and what pins keep, compressed. A path may be "
            "in several.",
            "构建机保留的（压缩前）与 pin 保留的（压缩后）。同一路径可能出现在多处。",
        ),
        _closures(status),
    )
    if status.largest:
        yield section(
            "nars",
            ("Largest NARs", "最大的 NAR"),
            (
                "Their store paths are known where a pin keeps them.",
                "仅当某个 pin 保留它时才知道对应的 store 路径。",
            ),
            _nars(status),
        )


def _tiles(status: Status) -> str:
    soon = status.expiring_by(status.at.date() + timedelta(days=1)).entries
    oldest = _NONE if status.oldest is None else _age(status.at - status.oldest)
    tiles = (
        (f"{status.entries:,}", ("store paths", "个 store 路径")),
        (size_in_words(status.nar_bytes), ("compressed", "压缩后大小")),
        (f"{soon:,}", ("expire by tomorrow", "到明天为止过期")),
        (oldest, ("oldest entry", "最早的条目")),
    )
    shown = "".join(
        f"<div><dt>{both(*meaning)}</dt><dd>{value}</dd></div>\n" for value, meaning in tiles
    )
    return f'<dl class="figures">\n{shown}</dl>\n'


def _age(age: timedelta) -> str:
    return both(*(age_in_words(age) or ("just written", "刚刚写入")))


def _verdict(status: Status) -> str:
    """Return what is wrong, and what is not as it should be; where nothing is, what holds."""
    findings = zip(status.findings, _findings_in_chinese(status), strict=True)
    notices = zip(status.notices, _notices_in_chinese(status), strict=True)
    said = _sentences("ill", findings) + _sentences("doubtful", notices)
    return said or f'<p class="verdict well">{both(*map(_text, _what_holds(status)))}</p>\n'


def _sentences(kind: str, sentences: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li>{both(_text(one), _text(other))}</li>\n" for one, other in sentences)
    return f'<ul class="verdict {kind}">\n{items}</ul>\n' if items else ""


def _what_holds(status: Status) -> tuple[str, str]:
    """Return what is so where there is neither a finding nor a notice."""
    for_ever = status.rules.retention_days is None
    holds = []
    if for_ever:
        holds.append(("nothing expires", "没有条目会过期"))
    elif status.builders:
        holds.append(("every builder pushes", "所有构建机都在推送"))
    if status.pins:
        holds.append(("every pin is whole", "所有 pin 都完整"))
    if not holds:
        return (
            "Nothing to watch: neither a builder nor a pin is declared.",
            "没有需要关注的：未声明构建机，也没有 pin。",
        )
    english, chinese = ", ".join(one for one, _ in holds), "，".join(one for _, one in holds)
    if not for_ever:
        return f"All is well: {english}.", f"一切正常：{chinese}。"
    pushed = _pushed_for_ever(status.builders)
    return (
        f"Nothing is about to be lost: {english}.{pushed[0]}",
        f"没有内容即将丢失：{chinese}。{pushed[1]}",
    )


def _pushed_for_ever(builders: Sequence[BuilderState]) -> tuple[str, str]:
    """Return what is known of pushes where no lease tells who has stopped.

    How long ago is too long, whoever reads the date knows.
    """
    pushed = [(one.last_push, one.name) for one in builders if one.last_push is not None]
    if not pushed:
        return "", ""
    first, name = min(pushed)
    on = _plain_date(first)
    if len(pushed) == 1:
        return (
            f" The last push of builder {name}, on {on}, left nothing out.",
            f"构建机 {name} 最近一次推送在 {on}，没有遗漏。",
        )
    return (
        f" No builder's last push left anything out; the one longest ago is that of {name}, on "
        f"{on}.",
        f"各构建机最近一次推送都没有遗漏；其中最早的是 {name}，在 {on}。",
    )


def _findings_in_chinese(status: Status) -> Iterator[str]:
    """Yield what `Status.findings` has, in its order."""
    for builder in status.builders:
        if builder.overdue:
            yield _builder_in_chinese(builder, status)
    for pin in status.pins:
        if pin.unreadable:
            yield f"pin {pin.name} 无法读取，刷新部署即可恢复"
        elif pin.lost:
            more = f"（另有 {len(pin.lost) - 1} 个）" if len(pin.lost) > 1 else ""
            yield f"pin {pin.name} 不完整：缺少 {next(iter(pin.lost))}{more}"


def _notices_in_chinese(status: Status) -> Iterator[str]:
    """Yield what `Status.notices` has, in its order."""
    for builder in status.noticed:
        yield _builder_in_chinese(builder, status)
    for builder, key, same_name in status.distrusted:
        signed = f"由另一个名为 {key} 的密钥签名，而客户端信任的不是它"
        if not same_name:
            signed = f"由 {key} 签名，而客户端不信任它"
        yield f"构建机 {builder.name}：最近一次推送{signed}；请改用 {builder.signed_by}"
    if status.pending is not None:
        yield _undeployed_in_chinese(status.pending, status.rules)


def _undeployed_in_chinese(meant: Rules, rules: Rules) -> str:
    if rules.retention_days is None:
        holds = "没有条目会过期"
    elif meant.retention_days == rules.retention_days:
        holds = f"NAR 比其条目多保留 {rules.grace_days} 天"
    else:
        holds = f"条目保留 {rules.retention_days} 天"
    return f"设置中 {changed_setting(meant, rules).replace(' is ', ' 为 ')}，尚未部署；{holds}"


def _builder_in_chinese(builder: BuilderState, status: Status) -> str:
    if builder.last_push is None:
        what = "尚未报告任何推送"
    elif builder.status is None:
        what = "它报告的推送结果无法读取"
    elif not builder.overdue:
        on = _plain_date(builder.last_push)
        what = f"最近一次推送（{on}）有 {builder.status.failures:,} 项未推送"
    elif builder.lease is None:
        what = "没有已知的推送保留了它的全部内容"
    else:
        old = builder.not_renewed_since
        count, in_hours = late_by(status.at - (old or builder.lease.at))
        late, lived = f"{count:,} {'小时' if in_hours else '天'}", status.rules.retention_days
        what = f"已有 {late}没有推送保留它的全部内容（条目保留 {lived} 天）"
        if old is not None:
            what = (
                f"已有 {late}，它的推送没有续期其保留的全部内容（条目保留 {lived} 天）；"
                "请把现在的输出交给它，并再推送一次"
            )
    return f"构建机 {builder.name}：{what}"


def _builders(status: Status) -> str:
    if not status.builders:
        return _empty(("No builder is declared.", "没有声明构建机。"))
    rows = "".join(_builder(builder, status) for builder in status.builders)
    head = (
        ("builder", "构建机"),
        ("last push", "最近推送"),
        ("keeps", "保留"),
        ("expires from", "开始过期"),
    )
    return _table("cards", head, rows)


def _builder(builder: BuilderState, status: Status) -> str:
    told, lease = builder.status, builder.lease
    if builder.last_push is None:
        push = both("none told", "未报告")
    elif told is None:
        push = f"{_moment(builder.last_push)}{_small(both('cannot be read', '无法读取'))}"
    else:
        english, chinese = STARTED_BY[told.started_by], _STARTED_BY_IN_CHINESE[told.started_by]
        host = _text(told.host)
        what = both(f"by {english} on {host}", f"由 {host} 上的{chinese}触发")
        outcome = _outcome(told.failures, told.pushed, told.renewed)
        push = f"{_moment(builder.last_push)}{_small(what)}{_small(outcome)}"
    keeps = _NONE
    if lease is not None:
        paths = both(f"{lease.own:,} paths", f"{lease.own:,} 个路径")
        keeps = f"{paths}{_small(size_in_words(lease.own_bytes))}"
    if status.rules.rule_days is None:
        expires = both("never", "永不")
    else:
        expires = _NONE if builder.expires is None else _moment(builder.expires, exact=False)
    kind = "late" if builder.overdue else "unsure" if builder.doubtful else ""
    mark = f' class="{kind}"' if kind else ""
    return _row(
        f'<th scope="row"{mark}>{_text(builder.name)}</th>',
        (push, ("last push", "最近推送")),
        (keeps, ("keeps", "保留")),
        (expires, ("expires from", "开始过期")),
    )


def _outcome(failures: int, pushed: int, renewed: int) -> str:
    if failures:
        return both(f"{failures:,} not pushed", f"{failures:,} 项未推送")
    return both(f"{pushed:,} pushed, {renewed:,} renewed", f"推送 {pushed:,}，续期 {renewed:,}")


@dataclass(frozen=True)
class _Row:
    """What a row of days shows."""

    label: str
    """As markup."""
    day: Day


def _ahead(status: Status) -> list[_Row]:
    """Return what expires, each of the next days and the rest."""
    last = status.at.date() + timedelta(days=_DAYS_SHOWN)
    rows = [_Row(_date(one.day), one) for one in status.expiring if one.day <= last]
    rest = [one for one in status.expiring if one.day > last]
    return rows + ([_Row(both("later", "更晚"), _sum(rest))] if rest else [])


def _past(status: Status) -> list[_Row]:
    """Return what was written, each of the last days and the rest, the newest first."""
    first = status.at.date() - timedelta(days=_DAYS_SHOWN)
    rows = [_Row(_date(one.day), one) for one in reversed(status.written) if one.day >= first]
    rest = [one for one in status.written if one.day < first]
    return rows + ([_Row(both("before", "更早"), _sum(rest))] if rest else [])


def _sum(days: Sequence[Day]) -> Day:
    return Day(
        days[0].day,
        sum(one.entries for one in days),
        sum(one.nars for one in days),
        sum(one.nar_bytes for one in days),
    )


def _by_day(rows: Sequence[_Row], where_empty: tuple[str, str]) -> str:
    if not rows:
        return _empty(where_empty)
    most = max(row.day.entries for row in rows)
    largest = max(row.day.nar_bytes for row in rows)
    head = (("day", "日期"), ("entries", "条目"), ("NARs", "NAR"))
    body = "".join(
        _row(
            f'<th scope="row">{row.label}</th>',
            (_bar(row.day.entries, most, "entries", f"{row.day.entries:,}"), head[1]),
            (
                _bar(row.day.nar_bytes, largest, "bytes", size_in_words(row.day.nar_bytes)),
                head[2],
            ),
        )
        for row in rows
    )
    return _table("bars", head, body)


def _closures(status: Status) -> str:
    rows: list[tuple[int, str]] = []
    largest = max(
        [
            *(one.lease.own_bytes for one in status.builders if one.lease is not None),
            *(pin.nar_bytes for pin in status.pins),
            0,
        ]
    )
    head = (("whose", "归属"), ("paths", "路径"), ("size", "大小"))
    for builder in status.builders:
        if builder.lease is not None:
            name = both(f"builder {_text(builder.name)}", f"构建机 {_text(builder.name)}")
            rows.append(_closure_row(name, builder.lease.own, builder.lease.own_bytes, largest))
    for pin in status.pins:
        name = both(f"pin {_text(pin.name)}", f"pin {_text(pin.name)}")
        rows.append(_closure_row(name + _pinned(pin), pin.paths, pin.nar_bytes, largest))
    if not rows:
        return _empty(("Nobody has told of one yet.", "尚无报告。"))
    body = "".join(row for _, row in sorted(rows, key=lambda row: -row[0]))
    return _table("bars", head, body)


def _pinned(pin: PinnedClosure) -> str:
    if not pin.targets:
        return ""
    return _small(_text(pin.targets[0].rpartition("/")[2][33:]))


def _closure_row(name: str, paths: int, size: int, largest: int) -> tuple[int, str]:
    return size, _row(
        f'<th scope="row">{name}</th>',
        (f"{paths:,}", ("paths", "路径")),
        (_bar(size, largest, "bytes", size_in_words(size)), ("size", "大小")),
    )


def _nars(status: Status) -> str:
    largest = status.largest[0].size
    head = (("name", "名称"), ("written", "写入"), ("size", "大小"))
    body = "".join(
        _row(
            f'<th scope="row" class="name">{_text(_nar_name(one.name, one.store_path))}</th>',
            (_date(one.written.date()), head[1]),
            (_bar(one.size, largest, "bytes", size_in_words(one.size)), head[2]),
        )
        for one in status.largest
    )
    return _table("bars", head, body)


def _nar_name(name: str, store_path: str | None) -> str:
    """Return what a NAR is called: its path's name, or else how its hash begins."""
    if store_path is not None:
        return store_path.rpartition("/")[2][33:]
    return f"{name.removeprefix('nar/')[:12]}…"


def _growth(history: Sequence[Reported]) -> str:
    if len(history) < 2:
        return _empty(
            (
                "This is the first report. Make one now and then, and a line begins here.",
                "这是第一份报告。定期生成报告后，这里会出现曲线。",
            )
        )
    return "".join(
        (
            '<div class="lines">\n',
            _line(
                history,
                lambda one: one.nar_bytes,
                size_in_words,
                ("NARs, compressed", "NAR（压缩后）"),
                "bytes",
            ),
            _line(
                history,
                lambda one: one.entries,
                lambda count: f"{count:,}",
                ("store paths", "store 路径"),
                "entries",
            ),
            "</div>\n",
        )
    )


def _line(
    history: Sequence[Reported],
    value: Callable[[Reported], int],
    shown: Callable[[int], str],
    caption: tuple[str, str],
    kind: str,
) -> str:
    """Return a line over time, from zero up: its ends are told in words."""
    first, last = history[0], history[-1]
    span = max((last.at - first.at).total_seconds(), 1.0)
    top = _ceiling(max(value(one) for one in history))
    points = [
        (100 * (one.at - first.at).total_seconds() / span, 40 - 38 * value(one) / top)
        for one in history
    ]
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    words = both(
        f"{shown(value(first))} on {_plain_date(first.at)}, {shown(value(last))} now",
        f"{_plain_date(first.at)} 为 {shown(value(first))}，现在为 {shown(value(last))}",
    )
    return (
        f'<figure class="line">\n<figcaption><span>{both(*caption)}</span>'
        f'<span class="top">{shown(top)}</span></figcaption>\n'
        f'<svg class="{kind}" viewBox="0 0 100 40" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="area" d="M0,40 L{line.replace(" ", " L")} L100,40 Z"/>'
        f'<polyline points="{line}"/></svg>\n<p>{words}</p>\n</figure>\n'
    )


def _ceiling(value: int) -> int:
    """Return a round number that is not less."""
    if value <= 1:
        return 1
    unit = 10 ** int(math.log10(value))
    return next(top for n in (1, 1.5, 2, 3, 4, 5, 7.5, 10, 20) if (top := int(n * unit)) >= value)


def _bar(value: int, most: int, kind: str, label: str) -> str:
    """Return a bar with its value beside it; the value is what is read."""
    share = 100 * value / most if most else 0.0
    width = max(share, 0.8) if value else 0.0
    return (
        f'<span class="bar"><svg class="{kind}" viewBox="0 0 100 1" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect class="track" width="100" height="1"/>'
        f'<rect width="{width:.2f}" height="1"/></svg><span class="value">{label}</span></span>'
    )


def _table(kind: str, head: Iterable[tuple[str, str]], body: str) -> str:
    cells = "".join(f'<th scope="col">{both(*one)}</th>' for one in head)
    return (
        f'<table class="{kind}">\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>\n'
        "</table>\n"
    )


def _row(head: str, *cells: tuple[str, tuple[str, str]]) -> str:
    shown = "".join(
        f'<td><span class="label" aria-hidden="true">{both(*label)}</span>'
        f'<span class="cell">{text}</span></td>'
        for text, label in cells
    )
    return f"<tr>{head}{shown}</tr>\n"


def _empty(words: tuple[str, str]) -> str:
    return f'<p class="nothing">{both(*words)}</p>\n'


def _small(text: str) -> str:
    return f'<span class="small">{text}</span>'


def _moment(moment: datetime, *, exact: bool = True) -> str:
    machine, shown = moment.strftime(_TIME), moment.strftime("%Y-%m-%d %H:%M UTC")
    return f'<time datetime="{machine}">{shown if exact else shown[:10]}</time>'


def _date(day: date) -> str:
    return f'<time datetime="{day.isoformat()}">{day.isoformat()}</time>'


def _plain_date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _text(text: str) -> str:
    """Return markup for a text, whoever wrote it."""
    return escape(printable(text))


def _kept(status: Status, history: Sequence[Reported]) -> str:
    reports = [
        {"at": one.at.strftime(_TIME), "entries": one.entries, "narBytes": one.nar_bytes}
        for one in history
    ]
    text = json.dumps({**_whose(status), "reports": reports}, separators=(",", ":"))
    # Names are anybody's text, and here nothing but a < is markup.
    text = text.replace("<", r"\u003c")
    return f'<script type="application/json" id="reports">{text}</script>\n'
