"""Items spread over workers: results in order, dead workers, poison items, the driver's end."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from ldm.cluster import AHEAD, TRIES, spread, worker_places
from tests.ldm.fake_ray import FakeRay


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """A cluster of two nodes with a CPU each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fake = FakeRay({"CPU": 1.0}, {"CPU": 1.0})
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def squares(ends: dict[int, int], errors: dict[int, Exception], seen: list[int]) -> Any:
    def work(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            seen.append(number)
            if number in errors:
                raise errors[number]
            if ends.get(number, 0) > 0:
                ends[number] -= 1
                raise KeyboardInterrupt
            yield number * number

    return lambda: work


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_results_come_in_the_order_of_the_items(two: FakeRay, count: int) -> None:
    seen: list[int] = []
    assert list(spread(squares({}, {}, seen), range(count), "auto")) == [n * n for n in range(count)]
    assert sorted(seen) == list(range(count))
    assert len(two.workers) == min(count, 2)
    assert all(id(worker) in two.dead for worker in two.workers)  # none outlives the work


def test_a_generator_may_give_several_results_or_none_for_an_item(two: FakeRay) -> None:
    def make() -> Any:
        return lambda numbers: (number for number in numbers for _ in range(number))

    assert list(spread(make, [2, 0, 3], "auto")) == list(spread(make, [2, 0, 3], "")) == [2, 2, 3, 3, 3]


@pytest.mark.parametrize("ends", [{0: 1}, {5: 2}, {0: 1, 1: 1, 9: TRIES - 1}])
def test_what_ends_its_worker_by_chance_is_given_to_another(two: FakeRay, ends: dict[int, int]) -> None:
    seen: list[int] = []
    assert list(spread(squares(dict(ends), {}, seen), range(10), "auto")) == [n * n for n in range(10)]
    assert len(seen) == 10 + sum(ends.values())  # nothing else was begun twice


def test_an_item_that_ends_every_worker_is_lost_alone(two: FakeRay) -> None:
    lost: list[str] = []
    make = squares({4: 99}, {6: TypeError("six\n is bad")}, [])
    assert list(spread(make, range(8), "auto", lambda n, why: lost.append(why) or -n)) == [
        0, 1, 4, 9, -4, 25, -6, 49,
    ]  # fmt: skip
    assert lost == [f"ended {TRIES} workers: the worker is dead", "six is bad"]


def test_without_a_place_for_them_lost_items_are_an_error_after_all_others(two: FakeRay) -> None:
    results: list[int] = []
    with pytest.raises(
        ValueError, match="^2 of 6 parts .* failed; the same command tries them again: 1: a; 2: b$"
    ):
        results.extend(spread(squares({}, {1: ValueError("a"), 2: OSError("b")}, []), range(6), "auto"))
    assert results == [0, 9, 16, 25]


def test_wrong_settings_end_the_work_at_once(two: FakeRay) -> None:
    def make() -> Any:
        raise ValueError("no such network")

    with pytest.raises(ValueError, match="^no such network$"):
        list(spread(make, range(9), "auto"))

    def ended() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(
        ValueError, match="--ray auto: loading the networks ended 3 workers: the worker is dead$"
    ):
        list(spread(ended, range(9), "auto"))


def test_a_slow_item_lets_the_others_run_ahead_only_so_far(two: FakeRay) -> None:
    seen: list[int] = []
    results = spread(squares({}, {}, seen), range(100), "auto")
    assert next(results) == 0
    assert len(seen) <= AHEAD * 2 + 1


@pytest.mark.parametrize(
    ("threads", "nodes", "places"),
    [
        ("1", [{"CPU": 3.0}], [{"num_cpus": 1}] * 3),
        ("4", [{"CPU": 8.0}, {"CPU": 2.0}], [{"num_cpus": 4}, {"num_cpus": 4}, {"num_cpus": 2}]),
        (None, [{"CPU": 8.0}, {"CPU": 2.0}], [{"num_cpus": 8}, {"num_cpus": 2}]),
        ("1", [{"CPU": 64.0}, {"CPU": 16.0, "GPU": 2.0}], [{"num_gpus": 1, "num_cpus": 0}] * 2),
    ],
)
def test_a_worker_has_a_gpu_or_the_threads_of_the_command(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, nodes: list[Any], places: list[Any]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert worker_places(FakeRay(*nodes).nodes()) == places


def test_a_cluster_of_nothing_and_a_missing_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay({"memory": 1.0}))
    with pytest.raises(ValueError, match="--ray auto: the cluster has neither GPUs nor CPUs"):
        list(spread(squares({}, {}, []), [1], "auto"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="the library ray is missing; pip install ray==2"):
        list(spread(squares({}, {}, []), [1], "auto"))
    assert list(spread(squares({}, {}, []), [], "auto")) == []


@pytest.mark.parametrize("bad", [{}, {5: 99}, {4: 99, 5: 1}])
@pytest.mark.parametrize("errors", [{}, {0: ValueError("zero")}])
def test_a_block_with_a_bad_item_is_done_item_by_item(
    two: FakeRay, bad: dict[int, int], errors: dict[int, Exception]
) -> None:
    seen: list[int] = []
    lost = lambda n, why: (n, why)  # noqa: E731
    results = list(spread(squares(dict(bad), errors, seen), range(11), "auto", lost, block=4))
    wanted: list[Any] = [n * n for n in range(11)]
    for number in [n for n, times in bad.items() if times >= TRIES]:
        wanted[number] = number, f"ended {TRIES} workers: the worker is dead"
    for number in errors:
        wanted[number] = number, "zero"
    assert results == wanted
    assert max(map(seen.count, {8, 9, 10})) == 1  # nothing of other blocks is done again
