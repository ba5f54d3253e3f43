"""The push as it travels: one file in the bucket, a bootstrap on standard input, a command line."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import formats
import push
from push.bootstrap import KEY

PROGRAM_KEY = KEY
"""Where the push lies in the bucket."""

_PUSH = Path(push.__file__).parent
_FORMATS = Path(formats.__file__).parent
_LEFT_OUT = frozenset(
    {
        "formats/nix_conf.py",
        "formats/signing.py",
        "push/bootstrap.py",
        "push/ci_job.py",
        "push/job_nix.py",
        "push/post_build_hook.py",
        "push/user_nix_conf.py",
        "push/whole_file.py",
    }
)

NEEDED = (
    "_ssl",
    "dataclasses",
    "hmac",
    "http",
    "json",
    "pyexpat",
    "queue",
    "resource",
    "ssl",
    "xml",
)
"""What the push needs of the standard library and some Pythons lack: Debian's python3-minimal, or
those that were made without OpenSSL. They are looked for and not loaded, which takes no time."""

# Single-quoted on one line, without quotes, backslashes and exclamation marks: csh, fish and zsh
# read such a text as sh does.
_FIND_PYTHON = (
    "PATH=$PATH:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:"
    "$HOME/.nix-profile/bin:$HOME/.local/state/nix/profile/bin; "
    "kept=${XDG_CACHE_HOME:-$HOME/.cache}/nix-binary-cache; "
    "try() { "
    '"$1" -IS -c "import sys, zlib; sys.exit(sys.version_info < (3, 10) or not all(any('
    'one.find_spec(name) for one in sys.meta_path) for name in sys.argv[1:]))" '
    f"{' '.join(NEEDED)} "
    "</dev/null >/dev/null 2>&1; "
    "}; "
    "for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 "
    '"$kept/python/bin/python3"; do '
    'try "$python" && exec "$python" -IS -c "$0" "$@"; '
    "done; "
    'mkdir -p "$kept"; '
    "nix --extra-experimental-features nix-command --extra-experimental-features flakes "
    'build --out-link "$kept/python" "nixpkgs#python3" </dev/null >/dev/null 2>&1 || '
    "nix --extra-experimental-features nix-command "
    'build --out-link "$kept/python" -f "<nixpkgs>" python3 </dev/null >/dev/null 2>&1; '
    'try "$kept/python/bin/python3" && exec "$kept/python/bin/python3" -IS -c "$0" "$@"; '
    'echo "push: prepare: this machine has no Python 3.10 or newer with zlib, ssl, xml and all '
    "else of its library, and Nix could not build one; "
    'install it, on NixOS by environment.systemPackages = [ pkgs.python3 ]" >&2; '
    "exit 1"
)

_BOOTSTRAP = "bootstrap"
"""What the archive calls what fetches it."""

# The bootstrap comes before the settings, with its length and its sum: cut off, it does not run.
_LOAD = (
    "import base64, hashlib, sys, zlib; "
    'size, digest = (sys.stdin.buffer.readline().split() + [b"0", b""])[:2]; '
    "text = sys.stdin.buffer.read(int(size)); "
    "hashlib.sha256(text).hexdigest().encode() == digest or "
    'sys.exit("push: fetch: what was sent was cut off; push again"); '
    'exec(compile(zlib.decompress(base64.b64decode(text), -15), "bootstrap", "exec"))'
)


_TOLD_OR_TEXT = re.compile(
    r'(?m:^)(?P<indent> *)(?:#[^\n]*|"""(?s:[^\\]|\\.)*?"""(?m:$))|"""(?s:[^\\]|\\.)*?"""'
)
"""A line of comment, a docstring, or a long text within code, which is passed over as it is."""


def bare(source: str) -> str:
    """Return a module's text without comments and docstrings, each line where it was.

    It takes the form that ruff gives them, and leaves a comment behind code: Python's own tokenizer
    takes thirty times as long, and every preview would wait for it.
    """
    return _TOLD_OR_TEXT.sub(_without_what_is_told, source)


def _without_what_is_told(found: re.Match[str]) -> str:
    text, indent = found[0], found["indent"]
    if indent is None:
        return text
    # An indented docstring may be all that there is of a class.
    stands = f'{indent}""' if indent and text[len(indent)] == '"' else ""
    return stands + "\n" * text.count("\n")


@cache
def archive(uploaded: bytes = b"") -> bytes:
    """Return the push as a zipapp.

    It is compressed, since the engine handles each byte of it a dozen times in a preview. Another
    zlib makes other bytes of the same push, whose sum stands in every command, and machines that
    deploy by turns would let all builders push by turns.

    Args:
        uploaded: what lies at `PROGRAM_KEY` since the last deployment, which stays if it is this
            push.

    Source: PKWARE, "APPNOTE.TXT"; Python's `zipapp`.
    """
    files = {f"push/{path.name}": path for path in _PUSH.glob("*.py")}
    files |= {f"formats/{path.name}": path for path in _FORMATS.glob("*.py")}
    files["__main__.py"] = _PUSH / "__main__.py"
    texts = {
        name: bare(files[name].read_text(encoding="utf-8")).encode()
        for name in files.keys() - _LEFT_OUT
    }
    texts[_BOOTSTRAP] = bootstrap_text().encode()
    in_order = dict(sorted(texts.items()))
    return uploaded if _made_of(uploaded, in_order) else _zipped(in_order)


def _zipped(texts: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        for name, text in texts.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            # As Unix has it, whatever makes it.
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            written.writestr(entry, text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _made_of(zipped: bytes, texts: Mapping[str, bytes]) -> bool:
    """Tell whether an archive is what some zlib makes of these texts, and nothing besides."""
    expected = [(name, len(text), zipfile.ZIP_DEFLATED) for name, text in texts.items()]
    try:
        with zipfile.ZipFile(io.BytesIO(zipped)) as file:
            entries = file.infolist()
            found = [(one.filename, one.file_size, one.compress_type) for one in entries]
            # Two headers for each file, each with its name, and one record at the end.
            size = 22 + sum(76 + 2 * len(one.filename) + one.compress_size for one in entries)
            return (
                (found, len(zipped)) == (expected, size)
                and all(file.read(name) == text for name, text in texts.items())
                and zlib.decompress(_deflated(zipped, _BOOTSTRAP), -15) == texts[_BOOTSTRAP]
            )
    except Exception:  # noqa: BLE001 (broken ones raise whatever comes to what they are given to)
        return False


def _deflated(zipped: bytes, name: str) -> bytes:
    """Return a file of an archive as it lies there, compressed.

    Source: PKWARE, "APPNOTE.TXT", 4.3.7: its name and its bytes follow 30 bytes of a header.
    """
    with zipfile.ZipFile(io.BytesIO(zipped)) as file:
        entry = file.getinfo(name)
    begin = entry.header_offset + 30 + len(name)
    return zipped[begin : begin + entry.compress_size]


@cache
def bootstrap_text() -> str:
    """Return what fetches the push on a builder and becomes it, as Python."""
    parts = (_FORMATS / "sigv4.py", _PUSH / "bootstrap.py")
    head = "from __future__ import annotations\n"
    texts = [bare(path.read_text(encoding="utf-8")).replace(head, "") for path in parts]
    lines = [line for text in (head, *texts) for line in text.split("\n") if line]
    return "".join(f"{line}\n" for line in lines)


def bootstrap(program: bytes) -> str:
    """Return what standard input begins with on a builder: `bootstrap_text`, and its length.

    It is taken out of the archive as it was compressed there, so that it stays what it is for as
    long as that does, and no other zlib lets builders push again.

    Args:
        program: the `archive` in the bucket.
    """
    text = base64.b64encode(_deflated(program, _BOOTSTRAP)).decode()
    return f"{len(text)} {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def push_command(store_paths: Sequence[str], program: bytes) -> str:
    """Return the command line that a builder's login shell is given, whichever shell that is.

    It names what is pushed, and the SHA-256 of what pushes it, so that a preview shows both, and
    nothing that is secret. `bootstrap` and settings come on standard input.

    Args:
        store_paths: what is pushed.
        program: what pushes it: the `archive` in the bucket.
    """
    sha256 = hashlib.sha256(program).hexdigest()
    words = ["sh", "-c", _FIND_PYTHON, _LOAD, sha256, "--config", "-", *store_paths]
    return f"exec {shlex.join(words)}"
