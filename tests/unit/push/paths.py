"""Store paths for tests, and graphs of them."""

from __future__ import annotations

import hashlib

from hypothesis import strategies as st

from formats.nix32 import nix32_encode
from push.store import StorePath


def store_path(
    name: str,
    size: int = 1000,
    *references: StorePath,
    itself: bool = False,
    signatures: tuple[str, ...] = (),
) -> StorePath:
    """Return a path whose hash follows from its name."""
    base = f"{nix32_encode(hashlib.sha256(name.encode()).digest()[:20])}-{name}"
    names = {one.base_name for one in references} | ({base} if itself else set())
    return StorePath(
        path=f"/nix/store/{base}",
        nar_hash=f"sha256:{nix32_encode(hashlib.sha256(b'nar' + name.encode()).digest())}",
        nar_size=size,
        references=tuple(sorted(names)),
        deriver=None,
        signatures=signatures,
        content_address=None,
    )


@st.composite
def graphs(draw: st.DrawFn, most: int = 12) -> list[StorePath]:
    """Closures, references first; a path may refer to itself."""
    made: list[StorePath] = []
    for number in range(draw(st.integers(1, most))):
        references = draw(st.lists(st.sampled_from(made), max_size=4)) if made else []
        size = draw(st.sampled_from([1, 1000, 70_000_000, 3_000_000_000]))
        made.append(store_path(f"p{number}", size, *references, itself=draw(st.booleans())))
    return made
