"""Rates, momentum and decay as functions of the step: pure arithmetic, no state.

python -m nanochat.schedule --num_iterations=1000 --warmup_iters=20
python -m nanochat.schedule --shape=cosine --plot

Lesson: lessons/14_optimizers
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat import command, paths
from nanochat.command import UserError

Shape = Literal["trapezoid", "cosine"]
DecayShape = Literal["constant", "linear", "cosine"]


def lr_multiplier(
    step: int,
    num_iterations: int,
    warmup_iters: int = 0,
    warmdown_ratio: float = 0.4,
    final_fraction: float = 0.0,
    shape: Shape = "trapezoid",
) -> float:
    """The factor on every learning rate at `step` of 0 .. num_iterations - 1.

    It rises linearly over `warmup_iters` steps. A trapezoid stays at 1 and falls linearly towards `final_fraction`
    over the last `warmdown_ratio` of the steps (arXiv:2405.18392); where the two overlap the lower one counts, so that
    the rate never jumps. A cosine falls from the warm-up on by half a wave (arXiv:1608.03983).
    """
    rise = (step + 1) / warmup_iters if step < warmup_iters else 1.0
    if shape == "cosine":
        falling = num_iterations - warmup_iters
        share = max(0, step - warmup_iters) / falling if falling > 0 else 0.0
        return rise * (final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * min(share, 1.0))) / 2)
    warmdown_iters = round(warmdown_ratio * num_iterations)
    remaining = num_iterations - step
    if remaining >= warmdown_iters:
        return rise
    return min(rise, final_fraction + (1 - final_fraction) * remaining / warmdown_iters)


def muon_momentum(
    step: int,
    ramp_iters: int = 300,
    num_iterations: int | None = None,
    warmdown_ratio: float = 0.4,
    final_momentum: float = 0.95,
) -> float:
    """Muon's momentum: from 0.85 to 0.95 over the first steps, while the gradient still turns quickly.

    Given `num_iterations` it moves on to `final_momentum` over the last `warmdown_ratio` of them.
    """
    momentum = 0.85 + 0.1 * min(step / ramp_iters, 1.0)
    if num_iterations is None:
        return momentum
    fallen = 1 - lr_multiplier(step, num_iterations, 0, warmdown_ratio)
    return momentum + fallen * (final_momentum - momentum)


def decay_multiplier(step: int, num_iterations: int, shape: DecayShape = "constant") -> float:
    """The factor on weight decay at `step`: 1 throughout, or falling from 1 towards 0 over the whole run."""
    if shape == "constant":
        return 1.0
    share = step / num_iterations
    return 1 - share if shape == "linear" else (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Config:
    """Which schedule, and how it is shown."""

    num_iterations: int = 1000
    """Steps."""
    shape: Shape = "trapezoid"
    """Of the rates."""
    warmup_iters: int = 0
    """Steps in which the rates rise."""
    warmdown_ratio: float = 0.4
    """Share of the steps in which a trapezoid falls."""
    final_fraction: float = 0.0
    """Where the rates end, as a share of their highest."""
    decay: DecayShape = "constant"
    """Of weight decay."""
    final_momentum: float = 0.95
    """Muon's momentum at the end of the warm-down."""
    plot: bool = False
    """Draw the curves instead of printing some of their values."""
    out: Path | None = None
    """The picture; unset: schedule.png under the base directory."""


def values(config: Config, step: int) -> dict[str, float]:
    """What holds at `step`."""
    c = config
    return {
        "learning rate": lr_multiplier(
            step, c.num_iterations, c.warmup_iters, c.warmdown_ratio, c.final_fraction, c.shape
        ),
        "Muon's momentum": muon_momentum(step, 300, c.num_iterations, c.warmdown_ratio, c.final_momentum),
        "weight decay": decay_multiplier(step, c.num_iterations, c.decay),
    }


def draw(config: Config, path: Path) -> None:
    """The three curves over the steps as one PNG."""
    # Figure without pyplot: no global state, no window, no choice of backend
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = range(0, config.num_iterations, max(1, config.num_iterations // 2000))
    points = [values(config, step) for step in steps]
    figure = Figure(figsize=(12, 3.4), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, name in enumerate(points[0], start=1):
        axes = figure.add_subplot(1, len(points[0]), place)
        axes.plot(steps, [point[name] for point in points], color="#1f4e8c")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(*((0.8, 1.0) if "momentum" in name else (-0.03, 1.03)))
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        canvas.print_png(file)
    part.replace(path)


def main(config: Config) -> None:
    """Print or draw."""
    c = config
    if c.num_iterations < 1 or c.warmup_iters < 0:
        raise UserError(
            f"a schedule has 1 step or more and a warm-up of 0 or more, got {c.num_iterations} and {c.warmup_iters}"
        )
    for flag, share in (
        ("warmdown_ratio", c.warmdown_ratio), ("final_fraction", c.final_fraction),
        ("final_momentum", c.final_momentum),
    ):  # fmt: skip
        if not 0 <= share <= 1:
            raise UserError(f"--{flag} is a share in 0..1, got {share:g}")
    if c.plot:
        path = c.out or paths.base_dir() / "schedule.png"
        draw(c, path)
        print(f"drew {path}")
        return
    shown = sorted({round(share * (c.num_iterations - 1) / 10) for share in range(11)})
    print("step".rjust(8), *(name.rjust(16) for name in values(c, 0)))
    for step in shown:
        print(f"{step:8,}", *(f"{value:16.4f}" for value in values(c, step).values()))


if __name__ == "__main__":
    command.run(main, Config)
