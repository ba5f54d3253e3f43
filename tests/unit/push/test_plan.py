"""In which order things are done, whatever refers to what and whatever fails."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push.plan import WriteOrder, deal
from push.store import StorePath
from tests.unit.push.paths import graphs, store_path

BYTES_PER_PATH = 100_000
SMALLEST_SHARE = 64_000_000
MOST_PATHS = 500


def cost(path: StorePath) -> int:
    return path.nar_size + BYTES_PER_PATH


def needs_of(paths: Sequence[StorePath]) -> dict[str, list[str]]:
    return {path.path: [f"/nix/store/{name}" for name in path.references] for path in paths}


def depends_on(paths: Sequence[StorePath], causes: set[str]) -> set[str]:
    """Return what refers to one of `causes`, directly or not, of paths with references first."""
    needs, found = needs_of(paths), set(causes)
    for path in paths:
        if set(needs[path.path]) & found:
            found.add(path.path)
    return found - causes


# Batches.


@given(graphs(most=40), st.sampled_from([1, 1_000_000, 500_000_000, 1 << 40]))
def test_each_path_is_dealt_exactly_once_and_no_batch_is_too_large(
    paths: list[StorePath], limit: int
) -> None:
    batches = deal(paths, limit)
    dealt = [path for batch in batches for path in batch]
    assert sorted(dealt, key=lambda path: path.path) == sorted(paths, key=lambda path: path.path)
    assert all(batches)
    for batch in batches:
        assert len(batch) == 1 or sum(path.nar_size for path in batch) <= limit


def test_nothing_is_dealt_into_nothing() -> None:
    assert deal([], 1) == []


@given(graphs(most=40))
def test_small_paths_come_references_first_within_a_batch(paths: list[StorePath]) -> None:
    large = sum(map(cost, paths)) / 8
    order = {path.path: number for number, path in enumerate(paths)}
    for batch in deal(paths, 1 << 40):
        numbers = [order[path.path] for path in batch if cost(path) <= large]
        assert numbers == sorted(numbers)


def test_large_paths_go_first() -> None:
    paths = [store_path(f"p{number}", 1_000_000) for number in range(20)]
    paths.insert(13, store_path("large", 500_000_000))
    assert deal(paths, 1 << 40)[0][0].base_name.endswith("large")


def test_a_path_of_just_an_eighth_is_no_large_one() -> None:
    size = SMALLEST_SHARE
    paths = [store_path(f"p{number}", size - BYTES_PER_PATH) for number in range(8)]
    assert deal(paths, 1 << 40) == [paths[0:6:2], paths[1:6:2], paths[6:7], paths[7:8]]
    larger = [*paths[:7], store_path("p7", size - BYTES_PER_PATH + 8)]
    assert deal(larger, 1 << 40)[0][0] == larger[7]


def test_paths_that_fit_together_to_the_byte_do() -> None:
    first, second, third = (store_path(f"p{number}", 500) for number in range(3))
    assert deal([first, second, third], 1000) == [[first, third], [second]]
    assert deal([first, second, third], 999) == [[first], [second], [third]]
    paths = [store_path(f"p{number}", 400) for number in range(5)]
    assert deal(paths, 1000) == [[paths[0], paths[2]], [paths[1], paths[3]], [paths[4]]]


@pytest.mark.parametrize(("lacking", "batches"), [(1, [[0, 2], [1]]), (0, [[0], [1], [2]])])
def test_a_batch_takes_paths_until_it_has_its_share(lacking: int, batches: list[list[int]]) -> None:
    size = SMALLEST_SHARE - BYTES_PER_PATH - lacking
    paths = [store_path("p0", size), store_path("p1", size), store_path("p2", 1)]
    assert deal(paths, 1 << 40) == [[paths[number] for number in batch] for batch in batches]


def test_a_batch_has_no_more_paths_than_a_command_line_takes() -> None:
    paths = [store_path(f"p{number}", 1) for number in range(2 * MOST_PATHS + 1)]
    assert [len(batch) for batch in deal(paths, 1 << 40)] == [MOST_PATHS, MOST_PATHS, 1]


def test_two_batches_are_dealt_at_once_and_are_alike() -> None:
    paths = [store_path(f"p{number}", 1_000_000) for number in range(60)]
    batches = deal(paths, 1 << 40)
    assert batches == [paths[0::2], paths[1::2]]


def test_the_first_batches_are_large_and_the_last_ones_small() -> None:
    paths = [store_path(f"p{number}", 3_000_000) for number in range(600)]
    sizes = [sum(map(cost, batch)) for batch in deal(paths, 1 << 40)]
    total = sum(map(cost, paths))
    # Each two take a third of what was left before them, but for the smallest share.
    left = total
    for one, other in zip(sizes[0::2], sizes[1::2], strict=True):
        share = max(left / 3, SMALLEST_SHARE)
        if one + other < left:
            assert share <= one <= share + cost(paths[0])
            assert one - cost(paths[0]) <= other <= one
        left -= one + other
    assert left == 0
    assert sizes[0] > 2 * sizes[-1]


def test_a_small_closure_is_two_batches() -> None:
    paths = [store_path(f"p{number}", 1_000_000) for number in range(110)]
    assert len(deal(paths, 1 << 40)) == 2
    assert len(deal([*paths, *(store_path(f"q{n}", 1_000_000) for n in range(30))], 1 << 40)) == 4


# The order of writes.


class Simulation:
    """Publishes a graph at random, and sees that nothing is ever written too early."""

    def __init__(
        self, paths: Sequence[StorePath], pending: set[str], anothers: set[str], seed: int
    ) -> None:
        self.paths = paths
        self._own_needs = needs_of(paths)
        # What another builder made of a path refers to nothing.
        self.needs = self._own_needs | {path: [] for path in anothers}
        self.order = WriteOrder(self.needs, pending)
        self.readable = {path.path for path in paths} - pending
        self.with_nar: set[str] = set()
        self.failed: set[str] = set()
        self.pending = pending
        self._random = random.Random(seed)

    def run(self, fails_at_nar: set[str], fails_at_narinfo: set[str], gone_once: set[str]) -> None:
        events = [(path, "nar") for path in sorted(self.pending)]
        while events:
            path, what = events.pop(self._random.randrange(len(events)))
            if what == "nar":
                events += self._nar(path, fails_at_nar)
            elif path in gone_once:
                # Another push took it away meanwhile: it is compressed anew.
                gone_once.discard(path)
                self.with_nar.discard(path)
                self.needs[path] = self._own_needs[path]
                self.order.begin_anew(path, self.needs[path])
                if path in self.order.unsettled:
                    events.append((path, "nar"))
            elif path in fails_at_narinfo:
                self._fail(path)
            else:
                self._write(path)
                events += [(one, "narinfo") for one in self.order.settle(path)]

    def _nar(self, path: str, fails: set[str]) -> list[tuple[str, str]]:
        if path in fails:
            self._fail(path)
            return []
        self.with_nar.add(path)
        return [(one, "narinfo") for one in self.order.nar_is_there(path)]

    def _write(self, path: str) -> None:
        assert path in self.with_nar, "written before its NAR"
        assert path not in self.readable, "written twice"
        assert path not in self.failed
        assert {one for one in self.needs[path] if one != path} <= self.readable
        self.readable.add(path)

    def _fail(self, path: str) -> None:
        if path in self.order.unsettled:
            self.failed.add(path)
        self.order.fail(path)


subsets = st.sets(st.integers(0, 11))


@given(graphs(), subsets, subsets, subsets, subsets, subsets, st.integers())
def test_a_narinfo_follows_its_nar_and_what_it_refers_to_whatever_fails(
    paths: list[StorePath],
    settled: set[int],
    without_nar: set[int],
    unwritable: set[int],
    gone: set[int],
    anothers: set[int],
    seed: int,
) -> None:
    def chosen(numbers: set[int]) -> set[str]:
        return {path.path for number, path in enumerate(paths) if number in numbers}

    pending = {path.path for path in paths} - chosen(settled)
    simulation = Simulation(paths, pending, chosen(anothers), seed)
    simulation.run(chosen(without_nar), chosen(unwritable), chosen(gone) & pending)
    order = simulation.order
    assert order.unsettled == set()
    # Exactly what refers to a failed path, by way of paths that had to be written, is blocked.
    written = [
        path if simulation.needs[path.path] else replace(path, references=())
        for path in paths
        if path.path in pending
    ]
    assert order.blocked.keys() == depends_on(written, simulation.failed) - simulation.failed
    assert set(order.blocked.values()) <= simulation.failed
    for blocked, cause in order.blocked.items():
        assert blocked in depends_on(written, {cause})
    assert simulation.readable >= {path.path for path in paths} - order.blocked.keys() - (
        chosen(without_nar) | chosen(unwritable)
    )


def order_of(needs: dict[str, list[str]], pending: str) -> WriteOrder:
    return WriteOrder(needs, list(pending))


def test_what_needs_nothing_is_ready_with_its_nar() -> None:
    order = order_of({"a": []}, "a")
    assert order.unsettled == {"a"}
    assert order.nar_is_there("a") == ["a"]
    assert order.settle("a") == []
    assert order.unsettled == set()
    assert order.blocked == {}


def test_what_needs_something_waits_for_it_in_either_order() -> None:
    first, second = order_of({"b": ["a", "b"]}, "ab"), order_of({"b": ["a"]}, "ab")
    assert first.nar_is_there("b") == []
    assert first.nar_is_there("a") == ["a"]
    assert first.settle("a") == ["b"]
    assert second.nar_is_there("a") == ["a"]
    assert second.settle("a") == []
    assert second.nar_is_there("b") == ["b"]


def test_what_is_no_path_of_the_push_is_waited_for_by_nobody() -> None:
    order = order_of({"b": ["upstream", "held"]}, "b")
    assert order.nar_is_there("b") == ["b"]
    assert order.nar_is_there("stranger") == []
    assert order.settle("stranger") == []
    order.fail("stranger")
    order.begin_anew("stranger", ["b"])
    assert order.unsettled == {"b"}
    assert order.blocked == {}


def test_a_path_whose_nar_has_gone_waits_again() -> None:
    order = order_of({"b": ["a"]}, "ab")
    assert order.nar_is_there("b") == []
    order.begin_anew("b", ["a"])
    assert order.nar_is_there("a") == ["a"]
    assert order.settle("a") == []
    assert order.nar_is_there("b") == ["b"]


def test_a_path_that_is_begun_anew_waits_for_what_it_then_refers_to() -> None:
    order = order_of({"c": ["a"], "d": ["c"]}, "abcd")
    assert [order.nar_is_there(path) for path in "acbd"] == [["a"], [], ["b"], []]
    order.begin_anew("c", ["b", "c", "upstream"])
    assert order.settle("a") == []
    assert order.nar_is_there("c") == []
    assert order.settle("b") == ["c"]
    assert order.settle("c") == ["d"]


@pytest.mark.parametrize("lost", ["a", "b"])
def test_a_path_that_is_begun_anew_with_a_need_of_what_failed_is_blocked(lost: str) -> None:
    order = order_of({"b": ["a"], "c": [], "d": ["c"]}, "abcd")
    order.fail("a")
    order.begin_anew("c", ["upstream", lost])
    assert order.nar_is_there("c") == []
    assert order.unsettled == set()
    assert order.blocked == {"b": "a", "c": "a", "d": "a"}
    later = WriteOrder({}, ["c"], order.lost)
    later.begin_anew("c", [lost])
    assert later.blocked == {"c": "a"}


def test_a_path_that_is_settled_or_failed_comes_up_no_more() -> None:
    order = order_of({"b": ["a"], "c": ["b"]}, "abc")
    for path in "abc":
        order.nar_is_there(path)
    assert order.settle("a") == ["b"]
    assert order.settle("a") == []
    assert order.nar_is_there("a") == []
    order.fail("b")
    order.fail("a")
    assert order.nar_is_there("b") == []
    assert order.settle("b") == []
    assert order.blocked == {"c": "b"}
    assert order.unsettled == set()


@pytest.mark.parametrize("first", ["a", "b"])
def test_what_two_failures_block_is_blamed_on_the_first(first: str) -> None:
    order = order_of({"c": ["a", "b"], "d": ["c"]}, "abcd")
    order.fail(first)
    order.fail("b" if first == "a" else "a")
    assert order.blocked == {"c": first, "d": first}


def test_a_blocked_path_is_written_by_nothing_that_comes_later() -> None:
    order = order_of({"c": ["a", "b"]}, "abc")
    for path in "abc":
        order.nar_is_there(path)
    order.fail("a")
    assert order.settle("b") == []


def test_two_paths_that_refer_to_each_other_hold_up_nobody_else() -> None:
    """No store has such; what a bucket says of references is not given to it."""
    order = order_of({"a": ["b"], "b": ["a"]}, "abc")
    assert [order.nar_is_there(path) for path in "abc"] == [[], [], ["c"]]
    order.fail("a")
    assert order.blocked == {"b": "a"}
