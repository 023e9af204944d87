"""Lesson 25: an ablation that can be believed: the same seeds with and without, an interval, and a careful sentence.

A result is a loss or bits per byte: lower is better. Results are kept in a dict `done`, by (change, seed).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Half-width of a 95 % interval in standard errors, by the number of values."""


def run_all(
    train: Callable[[str, int], float], changes: Sequence[str], seeds: Sequence[int], done: dict[tuple[str, int], float]
) -> None:
    """Fill `done` with train(change, seed) of every change and seed that is not there; seed by seed."""
    for seed in seeds:
        for change in changes:
            if (change, seed) not in done:
                done[change, seed] = train(change, seed)


def paired_gains(done: Mapping[tuple[str, int], float], baseline: str, change: str) -> list[float]:
    """How much lower (better) the change is than the baseline of the same seed, for all seeds that both have."""
    seeds = sorted(seed for name, seed in done if name == change and (baseline, seed) in done)
    return [done[baseline, seed] - done[change, seed] for seed in seeds]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of 2 to 10 values (Student's)."""
    half = STUDENT_95[len(values)] * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def verdict(gains: Sequence[float]) -> str:
    """better, worse, or cannot tell."""
    low, high = interval(gains)
    if low > 0:
        return "better"
    return "worse" if high < 0 else "cannot tell"


def seeds_needed(deviation: float, effect: float) -> int | None:
    """The fewest seeds (2 to 10) whose interval's half-width is below `effect`; None where ten are too few."""
    for count, student in STUDENT_95.items():
        if student * deviation / math.sqrt(count) < effect:
            return count
    return None
