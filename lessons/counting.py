"""FLOPs of matrix products, counted as they run.

`torch.utils.flop_counter` counts the same and more, but imports the compiler first, which takes seconds.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FACTORS_AT = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}
"""Where the two factors stand among an operator's arguments."""


class CountFlops(TorchDispatchMode):
    """`with CountFlops() as counted:` adds up 2 n k m in `counted.flops` for every (n, k) times (k, m)."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, to keep it away from here

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run the operator, and count it if it is a matrix product or torch's attention on a CPU."""
        packet = func._overloadpacket  # type: ignore[attr-defined]
        if packet in FACTORS_AT:
            left, right = (args[place] for place in FACTORS_AT[packet])
            assert isinstance(left, torch.Tensor), left
            assert isinstance(right, torch.Tensor), right
            self.flops += 2 * left.numel() * right.size(-1)
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu:
            q, k = args[:2]
            assert isinstance(q, torch.Tensor), q
            assert isinstance(k, torch.Tensor), k
            self.flops += 4 * q.numel() * k.size(2)
        return func(*args, **(kwargs or {}))
