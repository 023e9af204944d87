"""Lesson 25: an ablation that can be believed: the same seeds with and without, an interval, and a careful sentence.

A result is a loss or bits per byte: lower is better. Results are kept in a dict `done`, by (change, seed).

The check calls these by name, and looks at STUDENT_95: run_all, paired_gains, interval, verdict, seeds_needed.
"""

from collections.abc import Callable, Mapping, Sequence

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Half-width of a 95 % interval in standard errors, by the number of values."""


def run_all(
    train: Callable[[str, int], float], changes: Sequence[str], seeds: Sequence[int], done: dict[tuple[str, int], float]
) -> None:
    """Fill `done` with train(change, seed) of every change and seed that is not there; seed by seed.

    Each result is kept as soon as it is there, so that an interrupted ablation goes on where it was.
    """
    raise NotImplementedError("lesson 25: run_all is yours to write")


def paired_gains(done: Mapping[tuple[str, int], float], baseline: str, change: str) -> list[float]:
    """How much lower (better) the change is than the baseline of the same seed, for all seeds that both have."""
    raise NotImplementedError("lesson 25: paired_gains is yours to write")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of 2 to 10 values: mean ± Student's factor x deviation / √n.

    The deviation is that of a sample (n - 1 below the line).
    """
    raise NotImplementedError("lesson 25: interval is yours to write")


def verdict(gains: Sequence[float]) -> str:
    """Say "better" where the whole interval of the gains is above 0, "worse" where it is below, else "cannot tell"."""
    raise NotImplementedError("lesson 25: verdict is yours to write")


def seeds_needed(deviation: float, effect: float) -> int | None:
    """The fewest seeds (2 to 10) whose interval's half-width is below `effect`; None where ten are too few.

    `deviation` is that of the gains from seed to seed.
    """
    raise NotImplementedError("lesson 25: seeds_needed is yours to write")
