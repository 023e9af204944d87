"""Judges the steps of a run by two numbers each, the loss and the length of the gradient: may it be used, is it odd?

Pure arithmetic: every rank is given the same numbers and comes to the same judgement without a word.

Lesson: lessons/16_train_depth_4
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

PATIENCE = 5  # steps in a row that may be skipped
WINDOW, ENOUGH = 128, 32  # losses remembered, and how many make a median
SIGMAS, SHARE = 6.0, 0.05  # a spike is so many robust deviations, and such a share of the median, above the median


@dataclass(frozen=True)
class Judgement:
    """Of one step. `words` goes behind the step line and is empty for an ordinary step."""

    usable: bool = True
    roll_back: bool = False
    words: str = ""
    facts: dict[str, float | int | str] = field(default_factory=dict)


@dataclass
class StepGuard:
    """Remembers what it takes to judge the next step; `state` and `restore` carry it over a resume."""

    skipped: int = 0
    in_a_row: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def judge(self, loss: float, gradient_norm: float) -> Judgement:
        """A step whose loss or gradient is not finite is skipped; too many in a row ask for an earlier checkpoint.

        A loss far above the median of those before is called a spike: used, but told. Its measure is the median
        distance from the median, times 1.4826 (the deviation of a normal distribution).
        """
        facts: dict[str, float | int | str] = {"gradient_norm": gradient_norm, "skipped_steps": self.skipped}
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            facts["skipped_steps"] = self.skipped
            what = "loss" if not math.isfinite(loss) else "gradient"
            words = f" | {what} not finite: step skipped, {self.in_a_row} in a row, {self.skipped} in all"
            return Judgement(False, self.in_a_row >= PATIENCE, words, facts)
        self.in_a_row = 0
        words = ""
        if len(self.losses) >= ENOUGH:
            middle = median(self.losses)
            sigma = 1.4826 * median(abs(seen - middle) for seen in self.losses)
            if loss > middle + max(SIGMAS * sigma, SHARE * abs(middle)):
                words = f" | spike: loss {loss:.4f} where the last {len(self.losses)} had a median of {middle:.4f}"
                facts["spike_over_median"] = loss - middle
        self.losses.append(loss)
        return Judgement(True, False, words, facts)

    def state(self) -> dict[str, object]:
        """What JSON can hold of it."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "losses": list(self.losses)}

    def restore(self, state: dict[str, object]) -> None:
        """Take up what `state` gave."""
        skipped, in_a_row, losses = state["skipped"], state["in_a_row"], state["losses"]
        assert isinstance(skipped, int), f"skipped is {skipped!r}"
        assert isinstance(in_a_row, int), f"in_a_row is {in_a_row!r}"
        assert isinstance(losses, list), f"losses is {losses!r}"
        self.skipped, self.in_a_row, self.losses = skipped, in_a_row, deque(losses, maxlen=WINDOW)
