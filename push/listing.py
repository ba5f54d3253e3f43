"""How to list what is named by hashes: many pages side by side, or not at all. Pure.

The keys are spread evenly, since they are hashes. So the first page tells how many there are, and
the rest can be asked for in even parts of the space of keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from formats.nix32 import NIX32_ALPHABET

PAGE_IN_LOOKS = 30
"""A page of a thousand keys costs a server about as much as so many questions for one object."""

_SHARE_EXPECTED = 0.8
"""How full a page is planned to be, of what the first one has: it leaves room for chance."""

_DIGITS = 5


@dataclass(frozen=True)
class HashedKeys:
    """Keys that a prefix and a hash in nix32 make."""

    prefix: str
    first_digits: int
    """How many values the hash's first digit has: 32, or 2 where 256 bits are 52 digits."""

    def position(self, key: str) -> float:
        """Return where a key lies in the space of its kind, from 0 to 1."""
        value, weight = 0.0, 1.0
        for number, digit in enumerate(key[len(self.prefix) :][:_DIGITS]):
            weight /= self.first_digits if number == 0 else 32
            # What is no digit lies before or among them; where exactly matters little.
            value += weight * max(0, NIX32_ALPHABET.find(digit))
        return min(value, 1.0)

    def key(self, position: float) -> str:
        """Return a text that lies at a position, from 0 to less than 1."""
        digits, base = [], self.first_digits
        for _ in range(_DIGITS):
            digit = min(int(position * base), base - 1)
            digits.append(NIX32_ALPHABET[digit])
            position, base = position * base - digit, 32
        return self.prefix + "".join(digits)

    def pages(self, last_key: str) -> int:
        """Return how many more pages there are, about, after the first, which ends so."""
        seen = self.position(last_key)
        if seen <= 0 or seen >= 1:
            return 1
        return int((1 - seen) / seen / _SHARE_EXPECTED) + 1

    def parts(self, last_key: str, pages: int) -> list[tuple[str, str | None]]:
        """Return where each of so many parts of the rest begins and ends; the last one is open."""
        seen = self.position(last_key)
        starts = [last_key]
        for number in range(1, pages):
            start = self.key(seen + (1 - seen) * number / pages)
            if start > starts[-1]:
                starts.append(start)
        return [
            (start, starts[number + 1] if number + 1 < len(starts) else None)
            for number, start in enumerate(starts)
        ]


NARINFO_KEYS = HashedKeys("", 32)
NAR_KEYS = HashedKeys("nar/", 2)
LOG_KEYS = HashedKeys("log/", 32)


def worth_listing(pages: int, looks: int) -> bool:
    """Tell whether so many more pages cost less than as many questions for single objects."""
    return pages * PAGE_IN_LOOKS <= looks


def most_pages(looks: int) -> int:
    """Return how many more pages are listed before single objects are asked for after all.

    Chance, and keys that are no hashes, make some parts longer than a page. What is listed in vain
    costs at most twice what the questions do.
    """
    return 2 * (looks // PAGE_IN_LOOKS)
