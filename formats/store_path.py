"""Store paths (Nix manual, "Store path"; `src/libstore/path.cc`)."""

from __future__ import annotations

import re

from formats.nix32 import NIX32_ALPHABET

STORE_DIR = "/nix/store"
"""Where stores are that share anything with others; a cache is for one such directory."""

STORE_PATH_HASH_LENGTH = 32
"""Length in characters of a store path's hash part: 20 bytes in nix32."""

# Nix refuses names that are, or begin like, a relative path (`checkName`).
_BASE_NAME = re.compile(
    rf"[{NIX32_ALPHABET}]{{{STORE_PATH_HASH_LENGTH}}}"
    r"-(?!\.{1,2}(?:-|$))[0-9A-Za-z+\-._?=]{1,211}",
    re.ASCII,
)


def is_base_name(text: str) -> bool:
    """Tell whether `text` is a store path without its directory: hash, hyphen and name."""
    return bool(_BASE_NAME.fullmatch(text))


def is_store_path(path: str, store_dir: str = STORE_DIR) -> bool:
    """Tell whether `path` names a path directly in `store_dir`, hash and name well-formed."""
    prefix = f"{store_dir}/"
    return path.startswith(prefix) and bool(_BASE_NAME.fullmatch(path[len(prefix) :]))
