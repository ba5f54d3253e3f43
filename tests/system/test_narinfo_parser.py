"""`formats` against the real Nix: thousands of narinfos are read as Nix reads them, or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from formats.error import FormatError
from formats.narinfo import NarInfo
from formats.nix32 import NIX32_ALPHABET, sha256_to_nix32
from toolbox.throwaway_builder import ThrowawayBuilder

pytestmark = pytest.mark.system

COUNT = 6000
AT_ONCE = 1000
NIX = (
    "nix --extra-experimental-features nix-command "
    "--extra-experimental-features git-hashing --extra-experimental-features blake3-hashes"
)
NIX32, BASE16, BASE64 = "1" * 52, "aB" * 32, f"{'A' * 42}Q="
SIGNATURE = f"{'A' * 86}=="
OTHER = f"{'1' * 32}-b"

# Values as Nix writes them, as it takes them, and as it takes them for something else or for none.
VALUES: dict[str, Sequence[str]] = {
    "URL": ["nar/x.nar.zst", "nar/x.nar", "https://x/y", "../x", "a b", "", " nar/x"],
    "Compression": ["zstd", "none", "xz", "br", "bzip9", "", "z std"],
    "NarHash": [
        *[f"sha256:{NIX32}"] * 6,
        *[f"sha256:{BASE16}", f"sha256:{BASE64}", f"sha256-{BASE64}", f"sha256-{BASE16}"],
        *[f"sha256-{NIX32}", f"sha256:{'z' * 52}", f"sha256:{'e' * 52}", "sha256:", "", NIX32],
        *[f"sha512:{'0' * 103}", f"md5:{'0' * 26}", f" sha256:{NIX32}", f"SHA256:{NIX32}"],
    ],
    "NarSize": [
        *["10", "1", "120", "2300000000", "5368709121", "9223372036854775808"],
        *["9999999999999999999", "18446744073709551615", "18446744073709551616"],
        *["007", "0", "000", "+5", "-5", "0x5", "5.0", "1e3", " 5", "5 ", "5\t", "", "1_0"],
    ],
    "FileHash": [f"sha256:{NIX32}", f"sha256:{BASE16}", f"sha256-{BASE64}", "", "md5:x"],
    "FileSize": ["5", "0", "007", "9999999999999999999", "", "-1", "18446744073709551616"],
    "References": [
        *["", OTHER, f"{OTHER} {'0' * 32}-a", f"{OTHER} {OTHER}", f"{'0' * 32}-{'a' * 211}"],
        *[f"{'0' * 32}-.a", f"{'0' * 32}-...", f"{'0' * 32}-+-._?=Z9", f"{'0' * 32}-x.drv"],
        *[" ", f"{OTHER}  {OTHER}", f"{OTHER} ", f" {OTHER}", f"{OTHER}\t{OTHER}", "x"],
        *[f"/nix/store/{OTHER}", f"{'0' * 32}-..", f"{'0' * 32}-.-a", f"{'0' * 32}-..-a"],
        *[f"{'0' * 32}-{'a' * 212}", f"{'e' * 32}-a", f"{'0' * 31}-a", f"{'0' * 32}-a/b"],
    ],
    "Deriver": [f"{OTHER}.drv", OTHER, "unknown-deriver", "", "x", f"/nix/store/{OTHER}", " "],
    "Sig": [
        *[f"cache.test-1:{SIGNATURE}", f"a:{SIGNATURE}", f"~!:{SIGNATURE}"],
        *["", "abc", "a:!!!", "a:AAAA", f":{SIGNATURE}", f"a:b:{SIGNATURE}", f" a:{SIGNATURE}"],
        *[f"a:{'A' * 85}B==", f"a:{SIGNATURE} ", f"a:{'A' * 88}"],
    ],
    "CA": [
        *["", f"text:sha256:{NIX32}", f"fixed:sha256:{NIX32}", f"fixed:r:sha256:{NIX32}"],
        *[f"fixed:md5:{'0' * 26}", f"fixed:r:sha1:{'0' * 32}", f"fixed:sha512:{'0' * 103}"],
        *[f"fixed:git:sha1:{'0' * 32}", f"fixed:blake3:{'0' * 52}", f"fixed:sha256:{BASE16}"],
        *["x", "text:x", f"text:md5:{'0' * 26}", f"fixed:sha256-{BASE64}", f"fixed:x:{NIX32}"],
        *[f"fixed:sha256:{'z' * 52}", f"fixed:sha512:{NIX32}", f" text:sha256:{NIX32}"],
    ],
    "Mood": ["fine", "", "a: b", "x" * 500],
}
REQUIRED = ("URL", "NarHash", "NarSize")
SEPARATORS = [*[": "] * 40, ":", ":_", ":  ", ":\t", " : ", ":\n"]
INSERTED = [
    "\n",
    "\r",
    "\t",
    " ",
    ":",
    "\x00",
    "\x7f",
    "_",
    "0",
    "a",
    "A",
    "\u00e9",
    "\n\n",
    "Sig:",
]


class Generator:
    """Makes narinfos, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def narinfo(self, number: int) -> tuple[str, str]:
        """Return a store path of its own, and a narinfo that may be for it."""
        digits = "".join(NIX32_ALPHABET[number >> (5 * place) & 31] for place in range(32))
        path = f"/nix/store/{digits}-a"
        lines = [f"StorePath{self._separator()}{self._store_path(path, digits)}"]
        for name in VALUES:
            if name in REQUIRED or self._random.random() < 0.6:
                lines += [self._line(name) for _ in range(self._times(name))]
        if self._random.random() < 0.1:
            self._random.shuffle(lines)
        text = "".join(f"{line}\n" for line in lines)
        return path, self._spoiled(text) if self._random.random() < 0.15 else text

    def _line(self, name: str) -> str:
        values = VALUES[name]
        # Mostly what Nix writes, or nothing would be left to compare.
        value = values[0] if self._random.random() < 0.7 else self._random.choice(values)
        return f"{name}{self._separator()}{value}"

    def _separator(self) -> str:
        return self._random.choice(SEPARATORS) if self._random.random() < 0.1 else ": "

    def _store_path(self, path: str, digits: str) -> str:
        odd = [f"/nix/store//{digits}-a", f"/nix/./store/{digits}-a", f"{path}/", f"{path} "]
        return path if self._random.random() < 0.95 else self._random.choice(odd)

    def _times(self, name: str) -> int:
        if name in ("Sig", "Mood"):
            return self._random.choice([0, 1, 1, 2, 3])
        return 2 if self._random.random() < 0.02 else 1

    def _spoiled(self, text: str) -> str:
        place = self._random.randrange(len(text) + 1)
        removed = self._random.choice([0, 0, 1, 3, 40])
        return text[:place] + self._random.choice(INSERTED) + text[place + removed :]


def read_by_nix(builder: ThrowawayBuilder, paths: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return what Nix reads in the store of the test, by path; fail where it refuses one."""
    command = f"xargs {NIX} path-info --json --json-format 1 --store file:///tmp/narinfos"
    read: dict[str, dict[str, object]] = {}
    for start in range(0, len(paths), AT_ONCE):
        chosen = "\n".join(paths[start : start + AT_ONCE])
        ran = builder.run(command, input=chosen, check=False)
        assert ran.returncode == 0, f"Nix refuses what formats accepts: {ran.stderr[-600:]}"
        read |= json.loads(ran.stdout)
    return read


def as_nix_shows(narinfo: NarInfo) -> dict[str, object]:
    """Return what Nix would say of a narinfo, in forms that can be compared."""
    return {
        "narHash": sha256_to_nix32(narinfo.nar_hash),
        "narSize": narinfo.nar_size,
        "references": sorted({f"/nix/store/{name}" for name in narinfo.references}),
        "deriver": narinfo.deriver and f"/nix/store/{narinfo.deriver}",
        "signatures": sorted(set(narinfo.signatures)),
        "ca": narinfo.content_address,
        "url": narinfo.url,
        "compression": narinfo.compression,
        "downloadHash": narinfo.file_hash and sha256_to_nix32(narinfo.file_hash),
        "downloadSize": narinfo.file_size or None,
    }


def as_shown(entry: dict[str, object]) -> dict[str, object]:
    """Return what Nix says, in the same forms."""
    shown: dict[str, object] = {
        name: entry.get(name) or None
        for name in ("narSize", "deriver", "ca", "url", "compression", "downloadSize")
    }
    for name in ("narHash", "downloadHash"):
        value = entry.get(name)
        shown[name] = sha256_to_nix32(str(value)) if value else None
    for name in ("references", "signatures"):
        values = entry.get(name)
        assert values is None or isinstance(values, list)
        shown[name] = sorted(values or [])
    return shown


def test_what_formats_reads_is_just_what_nix_reads(builder: ThrowawayBuilder) -> None:
    """What `formats` refuses, Nix may read: it is as good as absent, and pushed again."""
    generator = Generator(seed=2026)
    store = builder.root / "tmp" / "narinfos"
    store.mkdir()
    (store / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    accepted: dict[str, NarInfo] = {}
    for number in range(COUNT):
        path, text = generator.narinfo(number)
        try:
            narinfo = NarInfo.parse(text)
        except FormatError:
            continue
        if narinfo.store_path != path:
            continue
        accepted[path] = narinfo
        (store / f"{path[11:43]}.narinfo").write_text(text, encoding="utf-8", newline="")
    # Enough of both, or the test says nothing.
    assert COUNT / 10 < len(accepted) < COUNT * 9 / 10
    read = read_by_nix(builder, list(accepted))
    assert read.keys() == accepted.keys()
    differing = {
        path: (as_nix_shows(narinfo), as_shown(read[path]))
        for path, narinfo in accepted.items()
        if as_nix_shows(narinfo) != as_shown(read[path])
    }
    assert differing == {}
    print(f"of {COUNT} narinfos formats refuses {COUNT - len(accepted)}, and reads the others so")
