"""Text of others, as a message may show it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from formats.printable import listed, printable


@given(st.text(), st.integers(0, 20))
def test_nothing_steers_a_terminal_or_goes_on_without_end(text: str, longest: int) -> None:
    shown = printable(text, longest)
    assert shown.isprintable()
    assert len(shown) == min(len(text), longest)
    assert len(printable(text)) == len(text)


def test_what_can_be_printed_stays() -> None:
    assert printable("Főtanúsítvány 缓存 …") == "Főtanúsítvány 缓存 …"
    assert printable("\x1b[31mred\r\n\u202e") == "?[31mred???"


def test_words_are_told_up_to_a_number() -> None:
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a, b"
    assert listed(["a"] * 10) == ", ".join("a" * 10)
    assert (
        listed([f"{number}" for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    )
    assert listed(["x" * 1_000, "\n"]) == f"{'x' * 80}, ?"
