"""What is known of a cache, as text: a screen, JSON, and metrics for Prometheus. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any

from formats.printable import printable
from operations.cache_status import DAYS_AHEAD, BuilderState, PinnedClosure, Status
from program.outputs.counted import counted
from program.outputs.figures import size_in_words

_NAMED = 8
_MINUTES = ((1440, "day", "天"), (60, "hour", "小时"), (1, "minute", "分钟"))

STARTED_BY = {
    "deployment": "a deployment",
    "timer": "its timer",
    "path": "a new generation",
    "service": "a service",
    "queue": "its queue of builds",
    "stdin": "a stream of paths",
    "ci": "a CI job",
    "command": "a command",
}
"""What started a push, in words, by what `formats.push_status` calls it."""


def screen(status: Status) -> str:
    """Return what people see: one screen, the findings and notices last."""
    lines = [f"{status.stack}: {status.substituter}, {_moment(status.at)}", ""]
    lines += _table(
        ("builder", "last push", "by", "came to", "keeps", "expires from"),
        [_builder_row(builder, status) for builder in status.builders],
        "no builder is declared",
    )
    lines.append("")
    if status.pins:
        lines += _table(
            ("pin", "paths", "bytes", "keeps"),
            [_pin_row(pin) for pin in status.pins],
            "",
        )
        lines.append("")
    lines += _facts(status)
    told = [*(f"! {one}" for one in status.findings), *(f"- {one}" for one in status.notices)]
    if told:
        lines += ["", *told]
    # Names of objects and of stacks are anybody's text.
    return "\n".join(printable(line).rstrip() for line in lines)


def _facts(status: Status) -> Iterator[str]:
    yield _fact(
        "cache",
        f"{counted(status.entries, 'entry', 'entries')}, {counted(status.nars, 'NAR')} with "
        f"{size_in_words(status.nar_bytes)}",
    )
    if status.rules.retention_days is None:
        yield _fact("expires", "nothing, ever")
    elif status.oldest is not None:
        due = status.rules.due(status.oldest)
        assert due is not None
        yield _fact("expires", ", ".join(_expiring(status)))
        yield _fact(
            "oldest lease", f"begun {_day(status.oldest)}, ends {_moment(max(due, status.at))}"
        )
    yield _fact("keys", "; ".join(_keys(status)) or "none")
    if status.former:
        yield _fact("also told", f"{_names(status.former)}: no builder of this stack")


def _keys(status: Status) -> Iterator[str]:
    """Yield what each key does, the latest first."""
    for place, key in enumerate(reversed(status.keys)):
        signs_for = [one.name for one in status.builders if one.signed_by == key]
        if len(signs_for) == len(status.builders) and (signs_for or not place):
            yield f"{key} signs"
        elif signs_for:
            yield f"{key} signs for {_names(signs_for)}"
        else:
            yield f"{key} is trusted"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _fact(name: str, text: str) -> str:
    return f"{name:14}{text}"


def _expiring(status: Status) -> Iterator[str]:
    """Yield how many entries go on each of the next days, if nothing pushes."""
    today = status.at.date()
    by_day = {one.day: one.entries for one in status.expiring if one.entries}
    ahead = [today + timedelta(days=number) for number in range(DAYS_AHEAD + 1)]
    soon = [day for day in ahead if by_day.get(day)]
    for day in soon:
        yield f"{by_day[day]:,} {'today' if day == today else _day(day)}"
    later = sum(count for day, count in by_day.items() if day > ahead[-1])
    if later:
        yield f"{later:,} later"
    if not by_day:
        yield "nothing"


def _builder_row(builder: BuilderState, status: Status) -> Sequence[str]:
    if builder.last_push is None:
        return builder.name, "none told", "", "", "", ""
    when = _ago(status.at - builder.last_push)
    told = builder.status
    if told is None:
        return builder.name, when, "", "cannot be read", "", ""
    by = STARTED_BY[told.started_by]
    outcome = f"{told.failures:,} not pushed" if told.failures else f"{told.pushed:,} pushed"
    if told.renewed and not told.failures:
        outcome += f", {told.renewed:,} renewed"
    lease = builder.lease
    keeps = (
        "" if lease is None else f"{counted(lease.own, 'path')}, {size_in_words(lease.own_bytes)}"
    )
    expires = "never" if builder.expires is None else _day(builder.expires)
    return builder.name, when, f"{by} on {told.host}", outcome, keeps, expires if lease else ""


def _pin_row(pin: PinnedClosure) -> Sequence[str]:
    if pin.unreadable:
        return pin.name, "", "", "cannot be read"
    kept = pin.targets[0].rpartition("/")[2] if pin.targets else "nothing yet"
    if len(pin.targets) > 1:
        kept += f", {len(pin.targets) - 1} before it"
    paths = f"{pin.paths:,}"
    if pin.lost:
        paths += f", {len(pin.lost):,} lost"
    return pin.name, paths, size_in_words(pin.nar_bytes), kept


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], where_empty: str) -> Iterable[str]:
    if not rows:
        return [where_empty]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def _day(day: date) -> str:
    return day.strftime("%Y-%m-%d")


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _ago(age: timedelta) -> str:
    words = age_in_words(age)
    return "just now" if words is None else f"{words[0]} ago"


def age_in_words(age: timedelta) -> tuple[str, str] | None:
    """Return an age in English and in Chinese, None where it is less than a minute.

    Less than nothing is that, too: a server's clock may be ahead of this one.
    """
    minutes = int(age.total_seconds()) // 60
    for length, unit, chinese in _MINUTES:
        if (count := minutes // length) > 0:
            return counted(count, unit), f"{count:,} {chinese}"
    return None


def as_json(status: Status) -> str:
    """Return everything, for machines."""
    fields = asdict(status)
    fields |= {"findings": status.findings, "notices": status.notices}
    return f"{json.dumps(fields, indent=2, default=_json)}\n"


def _json(value: Any) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(type(value).__name__)


@dataclass(frozen=True)
class _Sample:
    name: str
    value: float
    labels: Mapping[str, str]


class _Metrics:
    """Metrics in Prometheus' text format, each with its samples together."""

    def __init__(self, stack: str) -> None:
        self._stack = stack
        self._meaning: dict[str, str] = {}
        self._samples: list[_Sample] = []

    def add(self, name: str, meaning: str, value: float, **labels: str) -> None:
        self._meaning[name] = meaning
        self._samples.append(_Sample(name, value, {"stack": self._stack, **labels}))

    def moment(self, name: str, meaning: str, value: datetime | None, **labels: str) -> None:
        """Add a time, where there is one: a metric that is missing is no metric of 1970."""
        if value is not None:
            self.add(f"{name}_timestamp_seconds", meaning, value.timestamp(), **labels)

    def text(self) -> str:
        lines = []
        for name, meaning in self._meaning.items():
            full = f"nix_binary_cache_{name}"
            lines += [f"# HELP {full} {meaning}", f"# TYPE {full} gauge"]
            for sample in self._samples:
                if sample.name == name:
                    labels = ",".join(f'{key}="{_label(v)}"' for key, v in sample.labels.items())
                    lines.append(f"{full}{{{labels}}} {_number(sample.value)}")
        return "".join(f"{line}\n" for line in lines)


def as_prometheus(status: Status) -> str:
    """Return metrics for node_exporter's textfile collector.

    Source: Prometheus, "Exposition formats" and "Metric and label naming".
    """
    metrics = _Metrics(status.stack)
    metrics.moment("status", "When the cache was looked at.", status.at)
    metrics.add("entries", "Store paths that the cache has (narinfos).", status.entries)
    metrics.add("nars", "NARs that the cache has.", status.nars)
    metrics.add("nar_bytes", "Bytes of all NARs, compressed.", status.nar_bytes)
    if status.rules.retention_days is not None:
        days = timedelta(days=status.rules.retention_days)
        metrics.add(
            "retention_seconds", "How long an entry lives after a push.", days.total_seconds()
        )
        for number in (1, DAYS_AHEAD):
            due = status.expiring_by(status.at.date() + timedelta(days=number))
            metrics.add(
                "expiring_entries",
                "Entries that expire within so many days, if nothing pushes.",
                due.entries,
                days=str(number),
            )
    metrics.moment("oldest_entry", "When the oldest entry was last written.", status.oldest)
    metrics.moment("newest_entry", "When an entry was last written.", status.newest)
    for builder in status.builders:
        _builder_metrics(metrics, builder)
    for pin in status.pins:
        metrics.add("pin_paths", "Store paths that a pin keeps.", pin.paths, pin=pin.name)
        metrics.add("pin_lost_paths", "Store paths that a pin lacks.", len(pin.lost), pin=pin.name)
        metrics.add(
            "pin_complete", "Whether a pin has all it keeps.", not pin.incomplete, pin=pin.name
        )
    return metrics.text()


def _builder_metrics(metrics: _Metrics, builder: BuilderState) -> None:
    name = builder.name
    metrics.moment(
        "last_push", "When a builder last told of a push.", builder.last_push, builder=name
    )
    metrics.add(
        "builder_overdue",
        "Whether no push of a builder has kept all it has for half of the retention and 26 hours.",
        builder.overdue,
        builder=name,
    )
    if builder.status is not None:
        told = builder.status
        metrics.add(
            "last_push_failures",
            "What a builder's last push should have pushed and did not.",
            told.failures,
            builder=name,
        )
        metrics.add(
            "last_push_info",
            "What a builder's last push was.",
            1,
            builder=name,
            host=told.host,
            started_by=told.started_by,
            nix=told.nix,
            program=told.program,
        )
    if builder.lease is not None:
        metrics.moment(
            "last_complete_push",
            "When a builder last kept all it has.",
            builder.lease.at,
            builder=name,
        )
        metrics.add("own_paths", "Store paths that it keeps.", builder.lease.own, builder=name)
        metrics.add(
            "own_nar_bytes",
            "Bytes of their NARs, before compression.",
            builder.lease.own_bytes,
            builder=name,
        )
    metrics.moment("expiry", "When what it keeps begins to expire.", builder.expires, builder=name)


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
