"""Checks of lesson 25, against numpy's deviation and against thousands of ablations whose truth is known."""

import math
import random

import numpy
import pytest

from lessons.learner import load

mine = load(25)


def test_runs_are_made_seed_by_seed_and_none_twice() -> None:
    made: list[tuple[str, int]] = []

    def train(change: str, seed: int) -> float:
        made.append((change, seed))
        return len(made) * 1.0

    done = {("base", 2): 0.5}
    mine.run_all(train, ["base", "new"], [1, 2], done)
    assert ("base", 2) not in made, f"base of seed 2 was there already; trained were {made}"
    assert made == [("base", 1), ("new", 1), ("new", 2)], f"all changes of a seed, then the next; trained were {made}"
    expected = {("base", 2): 0.5, ("base", 1): 1.0, ("new", 1): 2.0, ("new", 2): 3.0}
    assert done == expected, f"done is {done}, expected {expected}"


def test_an_interrupted_ablation_keeps_what_it_has() -> None:
    def train(change: str, seed: int) -> float:
        if seed == 2:
            raise KeyboardInterrupt
        return 1.0

    done: dict[tuple[str, int], float] = {}
    with pytest.raises(KeyboardInterrupt):
        mine.run_all(train, ["base", "new"], [1, 2], done)
    assert done == {("base", 1): 1.0, ("new", 1): 1.0}, (
        f"interrupted in seed 2, done must hold both runs of seed 1 and nothing else; it holds {done}"
    )


def test_gains_are_paired_by_seed() -> None:
    done = {("base", 1): 2.0, ("base", 2): 3.0, ("base", 3): 9.0, ("new", 2): 2.5, ("new", 1): 1.9, ("new", 7): 0.0}
    found = mine.paired_gains(done, "base", "new")
    assert [round(gain, 9) for gain in found] == [0.1, 0.5], (
        f"seeds 1 and 2 are in both: gains 0.1 and 0.5, not {found}"
    )


def test_the_interval_is_students() -> None:
    for values in ([0.1, 0.3], [0.2, 0.1, 0.4], [1.0, 1.0, 1.0, 1.0], [0.5, -0.1, 0.2, 0.3, 0.9]):
        half = mine.STUDENT_95[len(values)] * numpy.std(values, ddof=1) / math.sqrt(len(values))
        expected = numpy.mean(values) - half, numpy.mean(values) + half
        found = mine.interval(values)
        assert numpy.allclose(found, expected), f"of {values}: {found}, expected {tuple(map(float, expected))}"


def test_the_interval_holds_the_truth_19_times_of_20() -> None:
    generator = random.Random(1)
    for count in (3, 5):
        trials = 3000
        intervals = [mine.interval([generator.gauss(0.3, 1.0) for _ in range(count)]) for _ in range(trials)]
        share = sum(low <= 0.3 <= high for low, high in intervals) / trials
        assert 0.935 < share < 0.965, f"with {count} seeds the truth was in {share:.1%} of the intervals, expected 95 %"


def test_the_verdict_claims_only_what_the_interval_does() -> None:
    for gains, expected in (
        ([0.10, 0.11, 0.09], "better"), ([-0.10, -0.11, -0.09], "worse"), ([0.1, -0.1, 0.05], "cannot tell"),
        ([0.3, 0.01, 0.1], "cannot tell"),
    ):  # fmt: skip
        found = mine.verdict(gains)
        assert found == expected, f"gains {gains}: {found!r}, expected {expected!r}"


def test_seeds_needed() -> None:
    for deviation, effect in ((0.01, 0.1), (0.01, 0.02), (0.01, 0.009), (0.01, 0.001)):
        halves = {n: factor * deviation / math.sqrt(n) for n, factor in mine.STUDENT_95.items()}
        expected = next((n for n, half in halves.items() if half < effect), None)
        found = mine.seeds_needed(deviation, effect)
        assert found == expected, f"deviation {deviation}, effect {effect}: {found}, expected {expected}"
