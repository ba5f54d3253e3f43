"""A Nix of stone: it knows a few paths by heart, and answers in this process what is asked."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nacl.bindings import crypto_sign

from formats.keys import PublicKey, split_key
from formats.narinfo import NarInfo
from formats.nix32 import nix32_encode
from formats.signing import verified_by
from push.store import StorePath

SUFFIXES = {"zstd": ".zst", "xz": ".xz", "none": ""}


class FailedError(Exception):
    """Nix fails."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(f"error: {text}\n" if code == 1 else text)
        self.code = code


class Key:
    """A key in a file, that signs as Nix does: without a look at whether its halves fit."""

    def __init__(self, file: str) -> None:
        """Read the file."""
        self.name, self.raw = split_key(Path(file).read_text(), 64, "secret")

    def sign(self, text: str) -> str:
        """Return a signature."""
        signature = crypto_sign(text.encode(), self.raw)[:64]
        return f"{self.name}:{base64.b64encode(signature).decode()}"


@dataclass(frozen=True)
class Ran:
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str

    def communicate(self) -> tuple[str, str]:
        """Return what it wrote."""
        return self.stdout, self.stderr

    def kill(self) -> None:
        """Do nothing more: it has ended."""

    def wait(self) -> int:
        """Return the exit code."""
        return self.returncode


@dataclass
class StoneNix:
    """What stands in for the module `subprocess`, where the push runs Nix."""

    paths: dict[str, StorePath] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    """What Nix says when it comes to a path."""
    contents: dict[str, str] = field(default_factory=dict)
    """What is in a path; where nothing is said, its name."""
    damaged: set[str] = field(default_factory=set)
    """Paths whose files are not what they were when Nix took them in."""
    unreadable: str = ""
    """What Nix says where it is to compare them."""
    logs: dict[str, bytes] = field(default_factory=dict)
    """Build logs by the derivation's base name."""
    store: str = "daemon"
    """The setting."""
    asked: list[str] = field(default_factory=list)
    """Command lines."""
    DEVNULL = PIPE = -1

    def run(self, command: Sequence[str], **_: object) -> Ran:
        """Run a command line to its end."""
        arguments = list(command[1:])
        self.asked.append(" ".join(arguments))
        paths = [one for one in arguments if one.startswith("/nix/store/")]
        named = dict(pairwise(arguments))
        store = Path(named.get("--store", "file:///").removeprefix("file://"))
        try:
            if "--version" in arguments:
                return Ran(0, "nix (Nix) 2.34.8\n", "")
            if "show-config" in arguments:
                return Ran(0, f"show-trace = false\nstore = {self.store}\nsubstitute = true\n", "")
            if "path-info" in arguments:
                return Ran(0, json.dumps(self._closure(paths)), "")
            if "sign" in arguments:
                _sign(store, Key(named["--key-file"]), paths)
            elif "--no-trust" in arguments:
                self._read_whole(paths)
            elif "verify" in arguments:
                keys = named["trusted-public-keys"].split()
                _verify(store, [PublicKey.parse(key) for key in keys], paths)
            elif "copy-log" in arguments:
                self._copy_logs(Path(named["--to"].removeprefix("file://")), paths)
            elif "copy" in arguments:
                self._copy(named["--to"], paths)
        except FailedError as error:
            return Ran(error.code, "", str(error))
        return Ran(0, "", "")

    Popen = run

    def nar(self, path: str) -> bytes:
        """Return a path's NAR, such as it is."""
        return self.contents.get(path, path).encode() * 10

    def _closure(self, paths: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        left = list(paths)
        while left:
            path = left.pop()
            if path in found:
                continue
            if path not in self.paths:
                raise FailedError(f"path '{path}' is not valid")
            known = self.paths[path]
            references = [f"/nix/store/{name}" for name in known.references]
            found[path] = {
                "narHash": known.nar_hash,
                "narSize": known.nar_size,
                "references": references,
                "signatures": list(known.signatures),
                "ca": known.content_address,
                "deriver": known.deriver and f"/nix/store/{known.deriver}",
            }
            left += references
        return found

    def _read_whole(self, paths: Sequence[str]) -> None:
        if self.unreadable:
            raise FailedError(self.unreadable)
        told = [f"path '{path}' was modified! expected hash" for path in self.damaged & {*paths}]
        if told:
            raise FailedError("\n".join(told))

    def _copy_logs(self, directory: Path, derivations: Sequence[str]) -> None:
        for path in derivations:
            name = path.removeprefix("/nix/store/")
            if name not in self.logs:
                raise FailedError(f"build log for '{path}' is not available")
            (directory / "log").mkdir(parents=True, exist_ok=True)
            (directory / "log" / name).write_bytes(self.logs[name])

    def _copy(self, target: str, paths: Sequence[str]) -> None:
        url = urlsplit(target)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        directory = Path(url.path)
        key = Key(asked["secret-key"])
        for path in paths:
            if path in self.fails:
                raise FailedError(self.fails[path])
            known = self.paths[path]
            for name in known.references:
                if f"/nix/store/{name}" not in paths:
                    assert (directory / f"{name[:32]}.narinfo").exists(), "no stub"
            content = self.nar(path)
            digest = nix32_encode(hashlib.sha256(content).digest())
            narinfo = known.narinfo(
                f"nar/{digest}.nar{SUFFIXES[asked['compression']]}",
                asked["compression"],
                file_hash=f"sha256:{digest}",
                file_size=len(content),
            )
            (directory / "nar").mkdir(exist_ok=True)
            (directory / narinfo.url).write_bytes(content)
            signatures = dict.fromkeys([*known.signatures, key.sign(narinfo.fingerprint)])
            text = narinfo.format() + "".join(f"Sig: {one}\n" for one in signatures)
            (directory / f"{path[11:43]}.narinfo").write_text(text)


def _sign(directory: Path, key: Key, paths: Iterable[str]) -> None:
    for path in paths:
        file = directory / f"{path[11:43]}.narinfo"
        text = file.read_text()
        file.write_text(f"{text}Sig: {key.sign(NarInfo.parse(text).fingerprint)}\n")


def _verify(directory: Path, keys: Iterable[PublicKey], paths: Iterable[str]) -> None:
    trusted = {key.name: key for key in keys}
    untrusted = [
        path
        for path in paths
        if not verified_by(
            NarInfo.parse((directory / f"{path[11:43]}.narinfo").read_text()), trusted
        )
    ]
    if untrusted:
        raise FailedError("".join(f"path '{path}' is untrusted\n" for path in untrusted), 2)
