"""Planned closures: the promised size and shape, and the same plan every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox.made_closure import TOP, expression, plan, plan_text

PLAN = "p1 103 p1\np2 44\np3 526 p2\np4 30 p3\nout 297 p1 p4\n"

counts = st.integers(1, 400)
seeds = st.integers(0, 1_000)


@given(counts, st.integers(0, 10_000_000), seeds)
def test_a_plan_has_as_many_paths_and_bytes_as_asked_for(paths: int, spare: int, seed: int) -> None:
    planned = plan(paths, paths + spare, seed)
    assert len({path.output for path in planned}) == paths
    assert sum(path.size for path in planned) == paths + spare
    assert min(path.size for path in planned) > 0


@given(counts, seeds)
def test_every_path_is_reached_from_the_top_and_refers_to_earlier_ones(
    paths: int, seed: int
) -> None:
    planned = plan(paths, 1_000_000, seed)
    references = {path.output: path.references for path in planned}
    order = list(references)
    assert order[-1] == TOP
    for index, path in enumerate(planned):
        assert all(order.index(reference) <= index for reference in path.references)
    reached: set[str] = set()
    waiting = [TOP]
    while waiting:
        output = waiting.pop()
        if output not in reached:
            reached.add(output)
            waiting.extend(references[output])
    assert reached == set(order)


def test_a_large_plan_has_a_chain_fan_in_and_sizes_of_two_orders_of_magnitude() -> None:
    planned = plan(300, 641_000_000, 1)
    order = [path.output for path in planned]
    chained = sum(order[index] in path.references for index, path in enumerate(planned[1:]))
    referrers = [sum(output in path.references for path in planned) for output in order]
    sizes = [path.size for path in planned]
    assert chained > 100
    assert max(referrers) > 30
    assert max(sizes) > 50 * min(sizes)


def test_the_same_arguments_plan_the_same_closure_and_another_seed_another() -> None:
    assert plan(50, 1_000, 7) == plan(50, 1_000, 7)
    assert plan(50, 1_000, 7) != plan(50, 1_000, 8)
    # The store paths of a closure depend on this text: on every Python it must be the same.
    assert plan_text(plan(5, 1_000, 7)) == PLAN


@pytest.mark.parametrize(("paths", "total"), [(0, 10), (10, 9)])
def test_a_closure_that_cannot_be_is_refused(paths: int, total: int) -> None:
    with pytest.raises(ValueError, match="a byte for each"):
        plan(paths, total, 1)


def test_the_expression_names_every_output_and_the_top_first() -> None:
    planned = plan(3, 1_000, 1)
    assert 'outputs = [ "out" "p2" "p1" ];' in expression("three", 255, planned)
    assert 'seed = "ff";' in expression("three", 255, planned)
