"""Memory, time and money of a run before it starts: arithmetic on what a rehearsal with few layers and rows measured.

A micro-step of L layers and R rows takes a + b L + c R + d L R, of seconds and of bytes alike: head and embedding do
not know how many layers there are, and nothing in a layer knows the others. Four measured corners give the four
numbers. How the corners are measured is in `rehearsal`; the plan itself is `plan`'s.

Lesson: lessons/17_one_gpu
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.plan import TrainPlan

# What a device holds beside tensors: bytes, and a factor on the tensors. On a CPU the runtime keeps freed memory in one
# heap, whose holes are never all filled again, and operations take room inside that no tensor shows: 50 MB and 1.42
# were found with glibc from depth 2 to 12 (98 MB to 2.8 GB of tensors), where they are off by 13 % at most. A GPU's
# allocator has pools of its own: what it reserves is a tenth more than what it gives, as a rule.
BESIDE_TENSORS = {"cpu": (50e6, 1.42), "cuda": (0.0, 1.1), "mps": (0.0, 1.1)}
USABLE_SHARE = 0.85  # of the free memory: the rest is for batches that wait, measurements and checkpoints


@dataclass(frozen=True)
class Corner:
    """What a rehearsal with so many layers and rows took, on one rank."""

    layers: int
    rows: int
    micro_seconds: float
    update_seconds: float
    micro_bytes: int
    """Peak of a micro-step when no gradients are there yet, weights and optimizer state included."""
    again_bytes: int
    """Peak of a micro-step that adds to gradients."""
    update_bytes: int
    """Peak of the optimizer's step."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take, on one rank."""

    memory_bytes: float
    step_seconds: float
    num_iterations: int
    total_batch_size: int
    flops_per_step: float

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.step_seconds * self.num_iterations

    def lines(self, free_bytes: float, peak_flops: float | None, price_per_hour: float | None, ranks: int) -> str:
        """The forecast as a person reads it; `peak_flops` and memory are one rank's, the price one device's."""
        speed = f"{self.total_batch_size / self.step_seconds:,.0f} tokens/s, {self.step_seconds:,.2f} s a step"
        if peak_flops:
            share = self.flops_per_step / self.step_seconds / (peak_flops * ranks)
            speed += f", {share:.0%} of {peak_flops * ranks / 1e12:,.1f} TFLOP/s"
        rows = [
            ("memory", f"{self.memory_bytes / 1e9:,.2f} GB a rank, {free_bytes / 1e9:,.1f} GB are free"),
            ("time", f"{duration(self.seconds)} of training at {speed}, without torch.compile"),
        ]
        if price_per_hour is not None:
            cost = price_per_hour * ranks * self.seconds / 3600
            rows.append(("cost", f"${cost:,.2f}: {ranks} x ${price_per_hour:.2f} an hour"))
        return "\n".join(f"  {name:<16} {value}" for name, value in rows)


def duration(seconds: float) -> str:
    """A length in its largest fitting unit."""
    for size, unit in ((86400 * 2, "days"), (7200, "hours"), (120, "minutes")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'hours': 3600, 'minutes': 60}[unit]:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def forecast(plan: TrainPlan, layers: int, state_bytes: int, corners: Sequence[Corner], device: str) -> Forecast:
    """From four corners (two numbers of layers by two of rows) to the run.

    `state_bytes` is the whole optimizer state, which ranks share out while a rehearsal holds all of it.
    """
    micro_seconds = extend(corners, [c.micro_seconds for c in corners], layers, plan.device_batch_size)
    update_seconds = extend(corners, [c.update_seconds for c in corners], layers, corners[0].rows)
    return Forecast(
        memory_bytes(
            corners, layers, plan.device_batch_size, plan.grad_accum_steps, plan.world_size, state_bytes, device
        ),
        plan.grad_accum_steps * micro_seconds + update_seconds,
        plan.num_iterations,
        plan.total_batch_size,
        plan.total_flops / plan.num_iterations,
    )


def memory_bytes(
    corners: Sequence[Corner], layers: int, rows: int, micro_steps: int, ranks: int, state_bytes: int, device: str
) -> float:
    """The most memory that a rank holds above the process after its imports."""
    micro = [c.micro_bytes if micro_steps == 1 else c.again_bytes for c in corners]
    peak = max(
        extend(corners, micro, layers, rows),
        extend(corners, [c.update_bytes for c in corners], layers, corners[0].rows),
    )
    fixed, factor = BESIDE_TENSORS[device]
    return fixed + (peak - state_bytes * (1 - 1 / ranks)) * factor


def extend(corners: Sequence[Corner], values: Sequence[float], layers: int, rows: int) -> float:
    """The value at (layers, rows) of the surface a + b L + c R + d L R through the corners' values.

    A value that falls with size is noise of the clock, and is taken as one that stays.
    """
    few, many = min(c.layers for c in corners), max(c.layers for c in corners)

    def along_rows(at_layers: int) -> float:
        found = sorted((c.rows, value) for c, value in zip(corners, values, strict=True) if c.layers == at_layers)
        return _line(found[0], found[-1], rows)

    return _line((few, along_rows(few)), (many, along_rows(many)), layers)


def _line(first: tuple[int, float], second: tuple[int, float], x: int) -> float:
    (x0, y0), (x1, y1) = first, second
    if x0 == x1:
        assert x == x0, f"measured at {x0} only, asked for {x}"
        return y0
    return y0 + max(y1 - y0, 0.0) / (x1 - x0) * (x - x0)


def rows_that_fit(
    corners: Sequence[Corner], candidates: Sequence[int], layers: int, rows_per_step: int, ranks: int,
    state_bytes: int, free_bytes: float, device: str,
) -> int | None:  # fmt: skip
    """The most rows of `candidates` whose micro-step fits into the usable share of the free memory of one rank."""
    fitting = [
        rows
        for rows in candidates
        if memory_bytes(corners, layers, rows, rows_per_step // rows, ranks, state_bytes, device)
        <= USABLE_SHARE * free_bytes
    ]
    return max(fitting, default=None)


def row_candidates(rows_per_step: int, most_rows: int) -> list[int]:
    """Rows per micro-batch with which a rank's rows of a step divide evenly, the most first."""
    return [rows for rows in range(min(rows_per_step, most_rows), 0, -1) if rows_per_step % rows == 0]
