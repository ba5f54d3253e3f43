"""Numbers of things, as a person reads them."""

from __future__ import annotations


def counted(number: int, thing: str, things: str | None = None) -> str:
    """Return how many there are of a thing: `1 narinfo`, `1,234 narinfos`.

    Args:
        number: how many.
        thing: what one of them is called.
        things: what several are called, where that is not the same with an s.
    """
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"
