"""Rates as functions of the step: pure arithmetic, no state."""


def lr_multiplier(
    step: int, num_iterations: int, warmup_iters: int = 0, warmdown_ratio: float = 0.4, final_fraction: float = 0.0
) -> float:
    """The factor on every learning rate at `step` of 0 .. num_iterations - 1: a trapezoid.

    Rises linearly over `warmup_iters` steps, stays at 1, and falls linearly towards `final_fraction` over the last
    `warmdown_ratio` of the steps. Where the two overlap the lower one counts, so that the rate never jumps.
    """
    rise = (step + 1) / warmup_iters if step < warmup_iters else 1.0
    warmdown_iters = round(warmdown_ratio * num_iterations)
    remaining = num_iterations - step
    if remaining >= warmdown_iters:
        return rise
    return min(rise, final_fraction + (1 - final_fraction) * remaining / warmdown_iters)


def muon_momentum(step: int, ramp_iters: int = 300) -> float:
    """Muon's momentum: from 0.85 to 0.95 over the first steps, while the gradient still turns quickly."""
    share = min(step / ramp_iters, 1.0)
    return 0.85 + 0.1 * share
