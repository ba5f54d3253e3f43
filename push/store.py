"""This machine's Nix store: what Nix says of paths, what it signs, verifies and copies.

`nix` is the only program that a push calls. It reads nothing but its own store, and directories
that the push wrote from what that store says.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from formats.error import FormatError
from formats.keys import PublicKey
from formats.narinfo import NarInfo, fingerprint, is_signature
from formats.nix32 import sha256_to_nix32
from formats.printable import SHOWN, printable
from formats.store_path import STORE_DIR, is_store_path
from push.failure import PushError

MODIFIED = 1
"""The exit code of `nix store verify` for it alone (`src/nix/verify.cc`)."""

_MOST_LINKS = 64
_BEGUN = 2
_PIECE = 1 << 16
# A command line takes 2 MiB on Linux, and a quarter of that on other systems.
_ARGUMENT_BYTES = 100_000
_UNTRUSTED = re.compile(r"path '([^']+)' is untrusted")
_MODIFIED = re.compile(r"path '([^']+)' was modified!")
_HINT = re.compile(r" \(use '--show-trace' to show [a-z ]*\)")
_VERSION = re.compile(r"[0-9]+\.[0-9]+[0-9A-Za-z.+_-]*")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class StorePath:
    """What this machine's store says of a path."""

    path: str
    nar_hash: str
    """`sha256:` in nix32."""
    nar_size: int
    references: tuple[str, ...]
    """Base names, sorted."""
    deriver: str | None
    """Base name."""
    signatures: tuple[str, ...]
    """Those that are well-formed: any user may have added any text."""
    content_address: str | None

    @property
    def base_name(self) -> str:
        """The path without its directory."""
        return self.path[len(STORE_DIR) + 1 :]

    @property
    def hash_part(self) -> str:
        """The name of its narinfo, without the ending."""
        return self.base_name[:32]

    @cached_property
    def fingerprint(self) -> str:
        """The text that signatures are over."""
        return fingerprint(self.path, self.nar_hash, self.nar_size, self.references, STORE_DIR)

    def narinfo(
        self,
        url: str,
        compression: str,
        *,
        file_hash: str | None = None,
        file_size: int | None = None,
        signatures: Sequence[str] = (),
    ) -> NarInfo:
        """Return a narinfo for it, all of whose signed facts are this store's."""
        return NarInfo(
            store_path=self.path,
            url=url,
            compression=compression,
            nar_hash=self.nar_hash,
            nar_size=self.nar_size,
            references=self.references,
            file_hash=file_hash,
            file_size=file_size,
            deriver=self.deriver,
            signatures=tuple(signatures),
            content_address=self.content_address,
        )


class NixError(Exception):
    """Nix failed: the message is what it wrote, on one line of bounded length."""


class UnknownPathError(Exception):
    """A path is none of this store's, nor a link to one: the message is half a sentence."""


def follow_link(link: str, store_dir: str = STORE_DIR) -> str:
    """Return the store path that `link` is, lies in, or points to, without looking into the store.

    As Nix does it (`src/libstore/store-api.cc`, `followLinksToStore`): the first path inside the
    store counts, even where it is itself a link, to anywhere or nowhere. `program.links` has the
    same rule for machines that have no Python yet.

    Raises:
        UnknownPathError: it points elsewhere.
    """
    # The present directory may be gone; what is absolute needs none.
    path, links = _normal(link if link.startswith("/") else Path.cwd() / link), 0
    while not path.startswith(f"{store_dir}/"):
        found = _first_link(path)
        links += 1
        if found is None or links > _MOST_LINKS:
            raise UnknownPathError(
                f"'{printable(link, SHOWN)}' is neither a store path nor a link to one"
            )
        place, rest = found
        path = _normal(place.parent / place.readlink() / rest)
    store_path = "/".join(path.split("/")[: store_dir.count("/") + 2])
    if not is_store_path(store_path, store_dir):
        raise UnknownPathError(
            f"'{printable(link, SHOWN)}' is neither a store path nor a link to one"
        )
    return store_path


def _normal(path: str | Path) -> str:
    """Return an absolute path as text without `.`, `..` and slashes that say nothing."""
    # POSIX leaves open what two slashes at the front mean, so Python keeps them.
    return f"/{os.path.normpath(path).lstrip('/')}"


def _first_link(path: str) -> tuple[Path, str] | None:
    """Return the first part of `path` that is a link, and what comes after it."""
    parts = Path(path).parts
    for count in range(2, len(parts) + 1):
        place = Path(*parts[:count])
        if place.is_symlink():
            return place, "/".join(parts[count:])
    return None


class Nix:
    """The `nix` of this machine."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Find it.

        Args:
            environment: of all its processes; `PATH` and `HOME` say where it is looked for.

        Raises:
            PushError: there is none.
        """
        home = environment.get("HOME", "")
        # Where Nix lies on machines whose non-interactive shells do not look for it.
        places = [
            environment.get("PATH", ""),
            "/run/current-system/sw/bin",
            "/nix/var/nix/profiles/default/bin",
            *([f"{home}/.nix-profile/bin", f"{home}/.local/state/nix/profile/bin"] if home else []),
        ]
        path = ":".join(place for place in places if place)
        program = shutil.which("nix", path=path)
        if program is None:
            raise PushError(
                "prepare", "nix is missing on this machine; install it, or add it to PATH"
            )
        self._program = program
        # Since 2.35 Nix aborts where one of them is relative.
        bundles = {
            name: str(Path.cwd() / environment[name])
            for name in ("NIX_SSL_CERT_FILE", "SSL_CERT_FILE")
            if environment.get(name)
        }
        self._environment = {**environment, **bundles, "PATH": path, "LC_ALL": "C"}
        self._begun: dict[tuple[str, ...], subprocess.Popen[str]] = {}

    @property
    def identity(self) -> str:
        """Which file it is, as long as nobody puts another one in its place."""
        file = Path(self._program).stat()
        return f"{os.path.realpath(self._program)} {file.st_mtime_ns} {file.st_size}"

    def version(self) -> str:
        """Return the number of its version.

        Raises:
            NixError: it does not tell.
        """
        match = _VERSION.search(self._run(["--version"]))
        if match is None:
            raise NixError("nix does not tell its version")
        return match[0]

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs nix."""
        return [self._program, "--extra-experimental-features", "nix-command", *arguments]

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment that nix runs in."""
        return {**self._environment, **changes}

    def begin_closure(self, links: Sequence[str]) -> None:
        """Begin to ask what `closure` will be asked of the paths that `links` lead to.

        What cannot be asked so is asked then: nothing fails here.
        """
        with contextlib.suppress(UnknownPathError, OSError):
            groups = _groups(list(dict.fromkeys(map(follow_link, links))))
            # Hardly ever are there more, and then one after the other takes less memory.
            for group, flags in itertools.islice(groups, _BEGUN):
                command = self.command(*_path_info(group, flags))
                self._begun[tuple(command)] = self._started(command)

    def closure(self, paths: Sequence[str]) -> list[StorePath]:
        """Return what the store says of `paths` and of all that they refer to, in no order.

        Raises:
            NixError: one of them is not valid here.
        """
        found: dict[str, StorePath] = {}
        for group, flags in _groups(paths):
            for fact in self._facts(group, flags):
                found[fact.path] = fact
        return list(found.values())

    def _facts(self, paths: Sequence[str], flags: Sequence[str]) -> list[StorePath]:
        for version in ((), ("--json-format", "1")):
            text = self._run(_path_info(paths, (*flags, *version)))
            try:
                return list(_parse_path_info(text))
            except (FormatError, ValueError, KeyError, TypeError, AttributeError):
                continue
        raise NixError("nix path-info answered in a form that this push does not know")

    def verified(
        self, directory: Path, paths: Sequence[StorePath], keys: Sequence[PublicKey]
    ) -> set[str]:
        """Return those of `paths` that one of `keys` has signed.

        What is signed are this store's own facts, signatures of the store's with them. A path's
        content address is left out: Nix believes such a path without looking at its signatures.

        Raises:
            NixError: Nix could not tell.
        """
        stubs = [path.narinfo("nar/stub", "none", signatures=path.signatures) for path in paths]
        write_narinfos(directory, [_without_content_address(stub) for stub in stubs])
        trusted = ("--option", "trusted-public-keys", " ".join(map(str, keys)))
        untrusted: set[str] = set()
        for group, flags in _groups([path.path for path in paths]):
            command = self.command(
                "store", "verify", "--store", f"file://{directory}", "--no-contents",
                "--sigs-needed", "1", *trusted, *flags, *group,
            )  # fmt: skip
            code, _, told = self._ended(command)
            found = set(_UNTRUSTED.findall(_STYLE.sub("", told)))
            if code not in (0, 2) or (code == 2) != bool(found):
                raise NixError(error_in(told))
            untrusted |= found
        return {path.path for path in paths} - untrusted

    def signatures(
        self, directory: Path, paths: Sequence[StorePath], key_file: Path, name: str
    ) -> dict[str, str]:
        """Return the signature, `name:base64`, of the key in a file over what the store says.

        Raises:
            NixError: Nix could not sign.
        """
        # Nix writes no narinfo that lacks a file's hash.
        stubs = [
            path.narinfo("nar/stub", "none", file_hash=path.nar_hash, file_size=path.nar_size)
            for path in paths
        ]
        write_narinfos(directory, stubs)
        for group, flags in _groups([path.path for path in paths]):
            store = f"file://{directory}"
            self._run(
                ["store", "sign", "--store", store, "--key-file", str(key_file), *flags, *group]
            )
        signed = {}
        for path in paths:
            narinfo = read_narinfo(directory, path)
            own = [text for text in narinfo.signatures if text.startswith(f"{name}:")]
            if not own:
                raise NixError(f"Nix did not sign {path.path}; check the signing key")
            signed[path.path] = own[0]
        return signed

    def copy_command(self, paths: Sequence[str], target: str) -> list[list[str]]:
        """Return the command lines that copy paths, without what they refer to, into a store."""
        return [
            self.command("copy", "--no-recursive", *flags, "--to", target, *group)
            for group, flags in _groups(paths)
        ]

    def verify_command(self, paths: Sequence[str]) -> list[list[str]]:
        """Return the command lines that read paths whole, and fail where one is not what it was.

        Nix copies what lies in the store, under the hash that the store's database has, and
        compares the two only where it takes a path in (`src/libstore/binary-cache-store.cc`). They
        end with `MODIFIED` where that is all that they found.
        """
        return [
            self.command("store", "verify", "--no-trust", *flags, *group)
            for group, flags in _groups(paths)
        ]

    def log_size(self, derivation: str, most_stored: int, most: int) -> int | None:
        """Return the bytes of the text of a build log of this machine's, None where it has none.

        Nix would tell by failing at the first that is missing, and would write a log of any size:
        what a build prints again and again takes a thousandth of it in the store. Source: Nix,
        `src/libstore/local-fs-store.cc`, `getBuildLogExact`.

        Args:
            derivation: its base name.
            most_stored: a log that takes more bytes in the store counts as none.
            most: so does one whose text has more.
        """
        logs = Path(self._environment.get("NIX_LOG_DIR") or "/nix/var/log/nix", "drvs")
        for place in (logs / derivation[:2] / derivation[2:], logs / derivation):
            for file in (place, place.with_name(f"{place.name}.bz2")):
                # Not every Python has bz2.
                with contextlib.suppress(OSError, EOFError, ImportError):
                    stored = file.stat().st_size
                    size = stored
                    if file.suffix == ".bz2" and stored <= most_stored:
                        size = _text_size(file, most)
                    return size if stored <= most_stored and size <= most else None
        return None

    def store_elsewhere(self) -> str | None:
        """Return Nix's setting of a store whose files may not lie in `STORE_DIR`; None for others.

        What a daemon has elsewhere nobody tells. Source: Nix, `src/libstore/store-open.cc`, where
        `auto` is a store in the user's home only on a machine that has no state of Nix's.

        Raises:
            NixError: it does not tell.
        """
        # Of before Nix 2.20; later ones know it by this name, too.
        told = re.search(r"(?m)^store = (.*)$", self._run(["show-config"]))
        if told is None:
            raise NixError("nix show-config does not tell the store")
        state = Path(self._environment.get("NIX_STATE_DIR") or "/nix/var/nix")
        # Some versions write the short names as the addresses that they stand for.
        name = told[1].removesuffix("://")
        here = name in ("daemon", "unix", "local") or (told[1] == "auto" and state.is_dir())
        return None if here else told[1]

    def copy_logs(self, directory: Path, derivations: Sequence[str]) -> None:
        """Write build logs where Nix takes `directory` for a cache.

        Args:
            directory: it is made.
            derivations: base names.

        Raises:
            NixError: one cannot be copied, nor those after it.
        """
        for group, _ in _groups([f"{STORE_DIR}/{name}" for name in derivations]):
            self._run(["store", "copy-log", "--to", f"file://{directory}", *group])

    def _run(self, arguments: Sequence[str]) -> str:
        code, output, told = self._ended(self.command(*arguments))
        if code != 0:
            raise NixError(error_in(told))
        return output

    def _ended(self, command: Sequence[str]) -> tuple[int, str, str]:
        """Return a command's exit code, and what it wrote and told."""
        process = self._begun.pop(tuple(command), None) or self._started(command)
        try:
            output, told = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process.returncode, output, told

    def _started(self, command: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=self._environment,
        )


def modified(told: str) -> set[str]:
    """Return the paths of which `nix store verify` has told that they are not what they were."""
    return set(_MODIFIED.findall(_STYLE.sub("", told)))


def write_narinfos(directory: Path, narinfos: Iterable[NarInfo]) -> None:
    """Write narinfos, made of this store's facts, where Nix takes `directory` for a store.

    Each is a new file, also where something lies under its name, which no link leads away from.

    Raises:
        OSError: one cannot be written.
    """
    directory.mkdir(exist_ok=True)
    for narinfo in narinfos:
        path = directory / f"{narinfo.store_path[len(STORE_DIR) + 1 :][:32]}.narinfo"
        path.unlink(missing_ok=True)
        with path.open("x", encoding="ascii") as file:
            file.write(narinfo.format())


def read_narinfo(directory: Path, path: StorePath) -> NarInfo:
    """Return the narinfo that this machine's Nix wrote for a path.

    It has the store's signatures of the path, which may be any text that a user gave to Nix; one
    that is none is left out, because it would keep clients from reading the others.

    Raises:
        NixError: it says something else than the store did.
    """
    try:
        text = (directory / f"{path.hash_part}.narinfo").read_text(encoding="ascii")
        narinfo = NarInfo.parse("\n".join(filter(_is_sound, text.split("\n"))))
    except (OSError, ValueError):
        raise NixError(f"Nix wrote no narinfo for {path.path}") from None
    if narinfo.fingerprint != path.fingerprint:
        raise NixError(f"{path.path} changed while it was pushed")
    return narinfo


def _is_sound(line: str) -> bool:
    return not line.startswith("Sig: ") or is_signature(line[len("Sig: ") :])


def error_in(text: str) -> str:
    """Return what a failed Nix wrote, or what it crashed of, on one line of bounded length."""
    told = _HINT.sub("", _STYLE.sub("", text))
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    crashes = [
        line.partition("error: ")[2]
        for line in lines
        if line.startswith(("Exception: ", "terminating due to unexpected", "what(): "))
    ]
    if crashes:
        return printable(crashes[0], 600)
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    told = " ".join(lines[starts[0] :]) if starts else (lines[-1] if lines else "nix failed")
    return printable(told.removeprefix("error:").strip(), 600)


def _without_content_address(narinfo: NarInfo) -> NarInfo:
    return NarInfo(
        store_path=narinfo.store_path,
        url=narinfo.url,
        compression=narinfo.compression,
        nar_hash=narinfo.nar_hash,
        nar_size=narinfo.nar_size,
        references=narinfo.references,
        signatures=narinfo.signatures,
    )


def _text_size(file: Path, most: int) -> int:
    """Return the bytes that a compressed file holds; a number above `most` where it holds more."""
    import bz2  # noqa: PLC0415 (most pushes write no log)

    size = 0
    with bz2.open(file) as text:
        while size <= most and (piece := text.read(_PIECE)):
            size += len(piece)
    return size


def _path_info(paths: Sequence[str], flags: Sequence[str]) -> list[str]:
    # Without the option, Nix would ask substituters for a path that it does not have.
    alone = ("--option", "substitute", "false")
    return ["path-info", "--recursive", *alone, *flags, "--json", *paths]


def _groups(paths: Sequence[str]) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Yield command lines' worth of paths, each with the flags that make Nix take them as paths.

    A derivation stands for its outputs, which old versions of Nix build, unless told otherwise;
    any other path told so stands for its derivation.
    """
    for flags, chosen in (
        ((), [path for path in paths if not path.endswith(".drv")]),
        (("--derivation",), [path for path in paths if path.endswith(".drv")]),
    ):
        group: list[str] = []
        size = 0
        for path in chosen:
            if group and size + len(path) + 1 > _ARGUMENT_BYTES:
                yield group, flags
                group, size = [], 0
            group.append(path)
            size += len(path) + 1
        if group:
            yield group, flags


def _parse_path_info(text: str) -> Iterator[StorePath]:
    """Yield what `nix path-info --json` says: a list up to Nix 2.18, then an object by path."""
    answer = json.loads(text)
    entries: list[tuple[str, Any]] = (
        [(entry["path"], entry) for entry in answer]
        if isinstance(answer, list)
        else list(answer.items())
    )
    for path, entry in entries:
        if not is_store_path(path, STORE_DIR) or not isinstance(entry, dict):
            raise FormatError("nix path-info names something that is no valid store path")
        size = entry["narSize"]
        if not isinstance(size, int) or size <= 0:
            raise FormatError("nix path-info gives a size that is none")
        deriver = entry.get("deriver")
        yield StorePath(
            path=path,
            nar_hash=sha256_to_nix32(entry["narHash"]),
            nar_size=size,
            references=tuple(sorted(map(_base_name, entry["references"]))),
            deriver=_base_name(deriver) if deriver else None,
            signatures=tuple(filter(is_signature, entry.get("signatures") or ())),
            content_address=entry.get("ca") or None,
        )


def _base_name(path: str) -> str:
    return path.rpartition("/")[2]


def references_first(paths: Mapping[str, StorePath]) -> list[StorePath]:
    """Return paths so that none comes before one that it refers to."""
    ordered: dict[str, StorePath] = {}
    for start in sorted(paths):
        pending = [(start, iter(()) if start in ordered else _needed(paths, start))]
        while pending:
            path, references = pending[-1]
            reference = next(references, None)
            if reference is None:
                pending.pop()
                ordered.setdefault(path, paths[path])
            elif reference not in ordered:
                pending.append((reference, _needed(paths, reference)))
    return list(ordered.values())


def _needed(paths: Mapping[str, StorePath], path: str) -> Iterator[str]:
    needed = (f"{STORE_DIR}/{name}" for name in paths[path].references)
    return iter([one for one in needed if one != path and one in paths])
