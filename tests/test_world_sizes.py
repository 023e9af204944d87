"""One, two and four ranks train to the same weights, and a run may change their number on the way."""

import pytest
import torch
from world_sizes import CASES, STEPS, Weights, trained

pytestmark = pytest.mark.slow
WITHIN = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 1e-4}


def furthest(ours: Weights, theirs: Weights) -> float:
    """The largest difference of any weight; the optimizer's state is not one."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max()) for n in ours if not n.startswith("optimizer."))


def furthest_loss(ours: Weights, theirs: Weights) -> float:
    """The largest difference of a step's loss, over the steps that both have at their ends."""
    both = min(len(ours["optimizer.losses"]), len(theirs["optimizer.losses"]))
    return float((ours["optimizer.losses"][-both:] - theirs["optimizer.losses"][-both:]).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_one_two_and_four_ranks_agree_over_twenty_steps(case: str) -> None:
    found = trained()
    one = found[f"{case}: 1 0"]
    within = WITHIN[case.split(",")[0]]
    for world_size in (2, 4):
        first, *others = (found[f"{case}: {world_size} {rank}"] for rank in range(world_size))
        assert len(first["optimizer.losses"]) == STEPS
        assert furthest_loss(one, first) <= within
        assert furthest(one, first) <= within or case == "bfloat16"  # where a weight may turn while the loss stays
        for other in others:
            assert first.keys() == other.keys()
            assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_goes_from_one_rank_to_two_and_back_is_the_run_that_never_stopped(case: str) -> None:
    within = WITHIN[case.split(",")[0]]
    whole, resumed = (trained()[f"{case}: {end}"] for end in ("1 0", f"until {STEPS}"))
    assert furthest_loss(whole, resumed) <= within
    assert furthest(whole, resumed) <= within or case == "bfloat16"


def test_the_runs_have_learned_something() -> None:
    found = trained()
    for case in CASES:
        assert furthest(found[f"{case}: until 7"], found[f"{case}: until {STEPS}"]) > 0.05
        assert int(found[f"{case}: until {STEPS}"]["optimizer.steps"]) == STEPS
