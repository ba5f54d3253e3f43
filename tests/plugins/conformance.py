"""Compare the drop-in plugins with the official ones: `python -m tests.plugins.conformance`.

The official plugins are those in the directory that NIXCACHE_OFFICIAL_PLUGINS names, else those
that the engine has installed in PULUMI_HOME, else their recorded answers in `tests/plugins/data`.
`--record` stores the official plugins' answers there. The report goes to standard output in words
and to build/conformance.json; differences that nobody meant end in exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tests.plugins.contract import CONTRACTS, Contract
from tests.plugins.deliberate import DIFFERENCES
from tests.plugins.plugin_process import CHECKOUT
from tests.plugins.transcript import LineDifference, Transcript, compare

REPORT = CHECKOUT / "build" / "conformance.json"
ELF = b"\x7fELF"


def official(contract: Contract) -> Path | None:
    """The official plugin's binary, if there is one on this machine; a script is a drop-in."""
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    places = [
        home / "plugins" / f"resource-{contract.name}-v{contract.version}",
        home / "bin",
    ]
    named = os.environ.get("NIXCACHE_OFFICIAL_PLUGINS")
    if named:
        places.insert(0, Path(named))
    for place in places:
        binary = place / contract.executable
        if binary.is_file() and binary.read_bytes()[:4] == ELF:
            return binary
    return None


def lines_of(contract: Contract) -> int:
    """Lines of the drop-in's modules, empty ones and docstrings among them."""
    sources = (CHECKOUT / "toolbox" / "plugins" / f"{name}.py" for name in contract.modules)
    return sum(len(source.read_text().splitlines()) for source in sources)


def conform(contract: Contract, *, record: bool) -> tuple[dict[str, object], list[LineDifference]]:
    """What was compared for one plugin, and where the two differ."""
    binary = official(contract)
    if binary:
        print(f"{contract.name}: asking the official plugin", flush=True)
        theirs = contract.record([str(binary)])
        if record:
            about = [
                f"Answers of the official plugin {contract.name} {contract.version}, recorded by",
                "`python -m tests.plugins.conformance --record`.",
            ]
            theirs.write(contract.transcript, about)
    else:
        theirs = Transcript.stored(contract.transcript)
    print(f"{contract.name}: asking the drop-in", flush=True)
    ours = contract.record(contract.drop_in)
    differences = compare(theirs, ours, DIFFERENCES[contract.name])
    if binary and not record:
        stored = Transcript.stored(contract.transcript)
        differences += [
            LineDifference(f"recorded: {gap.key}", gap.official, gap.drop_in, None)
            for gap in compare(theirs, stored, {})
        ]
    about_plugin: dict[str, object] = {
        "name": contract.name,
        "version": contract.version,
        "official": str(binary.name) if binary else "recorded",
        "compared": len(theirs.lines),
        "drop_in_lines": lines_of(contract),
    }
    return about_plugin, differences


def main() -> int:
    """Compare all plugins; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="store the official plugins' answers")
    record = parser.parse_args().record
    plugins, found = [], []
    for contract in CONTRACTS:
        plugin, differences = conform(contract, record=record)
        plugins.append(plugin)
        found += [(contract.name, difference) for difference in differences]
        meant = sum(difference.reason is not None for difference in differences)
        print(
            f"{contract.name} {contract.version}: {plugin['compared']} lines compared with the"
            f" {plugin['official']} plugin, {len(differences) - meant} differences, {meant}"
            f" deliberate ones; the drop-in has {plugin['drop_in_lines']} lines"
        )
    unmeant = [(name, difference) for name, difference in found if difference.reason is None]
    for name, difference in unmeant:
        print(f"\n{name}: {difference.key}", file=sys.stderr)
        print(f"  official: {difference.official}", file=sys.stderr)
        print(f"  drop-in:  {difference.drop_in}", file=sys.stderr)
    REPORT.parent.mkdir(exist_ok=True)
    report = {
        "compared": sum(int(str(plugin["compared"])) for plugin in plugins),
        "differences": [
            {
                "plugin": name,
                "line": difference.key,
                "official": difference.official,
                "drop_in": difference.drop_in,
                "reason": difference.reason,
            }
            for name, difference in found
        ],
        "plugins": plugins,
    }
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return 1 if unmeant else 0


if __name__ == "__main__":
    sys.exit(main())
