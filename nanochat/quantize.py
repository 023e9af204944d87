"""Models for inference: their matrices in the form that the machine reads fastest, in as few bits as asked for.

A step that makes one token per row does little but read weights, so that its time is that of their bytes. int8 has a
scale for each output channel; int4 a scale and a zero for each group of 32 inputs, its head in int8. Their kernels are
torch's, and win with few rows; with more rows the same rounded values are multiplied in the model's own format, which
they are held in too.

Shapes: N tokens, I inputs, O outputs.

Lesson: lessons/17_one_gpu
"""

import copy
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import nn

from nanochat.command import UserError
from nanochat.gpt import GPT, Block, Linear
from nanochat.gpt_config import Weights

GROUP = 32
TRIED_ROWS = (1, 2, 4, 8, 16)
REPEATS = 5
ADVANTAGE_OF_THREADS = 1.25
"""What one thread measures is this much too little in favour of the integer kernels: with more of them dense products
wait for memory, and integers for themselves."""
M = TypeVar("M", bound=nn.Module)
_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Dense(nn.Module):
    """A matrix in one number format, laid out for oneDNN where that multiplies bfloat16 on a CPU."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.outputs, self.inputs = weight.shape
        on_cpu = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        self.laid_out = on_cpu and _onednn_multiplies_bfloat16()
        self.held = torch.ops.mkldnn._reorder_linear_weight(weight, 16) if self.laid_out else weight

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (O, I), made anew where it is laid out for oneDNN."""
        return self.held.to_dense() if self.laid_out else self.held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O)."""
        if self.laid_out:
            y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.held, None, "none", [], None)
            return y
        return F.linear(x, self.held)


class Quantized(nn.Module):
    """A matrix of rounded values: for up to `few_rows` tokens by an integer kernel, for more of them as `dense`."""

    def __init__(self, dense: Dense, kernel: Callable[[torch.Tensor], torch.Tensor] | None):
        super().__init__()
        self.dense, self.kernel = dense, kernel
        self.few_rows = 0

    @property
    def weight(self) -> torch.Tensor:
        """The rounded values (O, I)."""
        return self.dense.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O)."""
        inputs = x.size(-1)
        if self.kernel is None or x.numel() > self.few_rows * inputs:
            made: torch.Tensor = self.dense(x)
            return made
        return self.kernel(x.view(-1, inputs)).view(*x.shape[:-1], -1)


def prepare(model: GPT, weights: Weights | None = None, few_rows: int | None = None) -> GPT:
    """A model that computes what `model` does, with weights of its own in another form; for inference only.

    It shares the tables (embedding, tricks) with `model`. Without `weights`, and beside int8 and int4, numbers are in
    the format that `model` multiplies in. `few_rows` is how many tokens at most go through the integer kernels;
    without it that is measured, so that two runs may differ in rounding. Raises UserError for a format that is
    unknown or does not fit the model's widths.
    """
    if weights is not None and weights not in get_args(Weights):
        raise UserError(f"--weights={weights} is unknown; allowed are {', '.join(get_args(Weights))}")
    dtype = _FLOATS.get(weights or "", model.dtype)
    of_layers = {"int8": _int8, "int4": _int4}.get(weights or "", _dense)
    of_head = _int8 if weights == "int4" else of_layers
    with torch.no_grad():
        made = _twin(model)
        made.dtype = dtype
        made.transformer = _twin(model.transformer)
        made.transformer.h = nn.ModuleList(
            _block(block, lambda weight: of_layers(weight, dtype)) for block in model.transformer.h
        )
        made.lm_head = of_head(model.lm_head.weight, dtype)  # type: ignore[assignment]
        _choose_kernels([layer for layer in made.modules() if isinstance(layer, Quantized)], few_rows)
    return made


def _block(source: nn.Module, matrix: Callable[[torch.Tensor], nn.Module]) -> Block:
    """A layer with other forms of the matrices of `source`."""
    assert isinstance(source, Block), f"a layer is a Block, not {type(source)}"
    made = _twin(source)
    made.attn, made.mlp = attention, mlp = _twin(source.attn), _twin(source.mlp)
    attention.c_qkv = matrix(torch.cat([attention.c_q.weight, attention.c_k.weight, attention.c_v.weight]))
    del attention.c_q, attention.c_k, attention.c_v
    attention.c_proj = matrix(attention.c_proj.weight)  # type: ignore[assignment]
    for name, layer in source.mlp.named_children():
        assert isinstance(layer, Linear), f"a matrix is a Linear, not {type(layer)}"
        setattr(mlp, name, matrix(layer.weight))
    return made


def _twin(module: M) -> M:
    """A module with the same parts, that may be given others; a new one would fill in weights only to lose them."""
    made = copy.copy(module)
    for parts in ("_modules", "_parameters", "_buffers"):
        made.__dict__[parts] = dict(module.__dict__[parts])
    made.training = False
    return made


def round_to_int8(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (O, I) in int8 and scales (O,) in `dtype`, whose products are next to `weight`."""
    wide = weight.float()
    scales = (wide.abs().amax(1) / 127).clamp_min(1e-12).to(dtype)
    return (wide / scales.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8), scales


def round_to_int4(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers 0 to 15 (O, I) in int32, scales and zeros (O, I / 32) in `dtype`: (integer - 8) x scale + zero."""
    groups = weight.float().view(weight.size(0), -1, GROUP)
    low, high = groups.amin(2), groups.amax(2)
    scales = ((high - low) / 15).clamp_min(1e-12).to(dtype)
    zeros = (low + 8 * scales.float()).to(dtype)
    integers = ((groups - zeros.float().unsqueeze(2)) / scales.float().unsqueeze(2)).round_() + 8
    return integers.clamp_(0, 15).to(torch.int32).view(weight.shape), scales, zeros


def _dense(weight: torch.Tensor, dtype: torch.dtype) -> nn.Module:
    return Dense(weight.to(dtype, copy=True))


def _int8(weight: torch.Tensor, dtype: torch.dtype) -> nn.Module:
    integers, scales = round_to_int8(weight, dtype)
    dense = Dense((integers.float() * scales.float().unsqueeze(1)).to(dtype))
    if not _has_kernel("aten::_weight_int8pack_mm", weight.device.type):
        return Quantized(dense, None)
    product = torch.ops.aten._weight_int8pack_mm.default
    return Quantized(dense, lambda x: product(x, integers, scales))


def _int4(weight: torch.Tensor, dtype: torch.dtype) -> nn.Module:
    outputs, inputs = weight.shape
    if inputs % GROUP or outputs % 16:
        raise UserError(
            f"--weights=int4 needs widths that {GROUP} divides, and this model has a matrix of {outputs} x {inputs}; "
            "take --weights=int8"
        )
    integers, scales, zeros = round_to_int4(weight, dtype)
    groups = (integers.view(outputs, -1, GROUP) - 8) * scales.float().unsqueeze(2) + zeros.float().unsqueeze(2)
    dense = Dense(groups.view(weight.shape).to(dtype))
    steps = torch.stack((scales, zeros), dim=-1).transpose(0, 1).contiguous()  # (I / 32, O, 2)
    if weight.device.type == "cpu" and _has_kernel("aten::_weight_int4pack_mm_for_cpu", "cpu"):
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 2)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    elif weight.device.type == "cuda" and dtype == torch.bfloat16:  # two integers a byte, the first one high
        tiles = next(tiles for tiles in (8, 4, 2) if inputs % (16 * tiles) == 0)
        pairs = (integers[:, ::2] << 4 | integers[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
        product = torch.ops.aten._weight_int4pack_mm.default
    else:
        return Quantized(dense, None)
    return Quantized(dense, lambda x: product(x, packed, GROUP, steps))


def _choose_kernels(layers: Sequence[Quantized], few_rows: int | None) -> None:
    """Set every layer's `few_rows`, alike for those of one shape: with many weights the cache holds less of each."""
    shapes: dict[tuple[int, int], list[Quantized]] = {}
    for layer in layers:
        if layer.kernel is not None:
            shapes.setdefault((layer.dense.inputs, layer.dense.outputs), []).append(layer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads wait for each other, and that would be all there is to see
    for alike in shapes.values():
        found = _rows_until_dense_is_faster(alike) if few_rows is None else few_rows
        for layer in alike:
            layer.few_rows = found
    torch.set_num_threads(threads)


def _rows_until_dense_is_faster(layers: Sequence[Quantized]) -> int:
    """The most rows of those tried with which the integer kernel takes less time than the dense product."""
    dense = layers[0].dense
    found = 0
    for rows in TRIED_ROWS:
        x = torch.ones(rows, dense.inputs, dtype=dense.held.dtype, device=dense.held.device)
        seconds: dict[int, list[float]] = {rows: [], 0: []}
        for _ in range(REPEATS + 1):
            for few_rows, taken in seconds.items():
                started = _clock(x.device)
                for layer in layers:
                    layer.few_rows = few_rows
                    layer(x)
                taken.append(_clock(x.device) - started)
        if min(seconds[rows][1:]) >= ADVANTAGE_OF_THREADS * min(seconds[0][1:]):
            break
        found = rows
    return found


def _clock(device: torch.device) -> float:
    """Seconds that the device has worked; on a CPU those of this thread, which other processes do not lengthen."""
    if device.type != "cuda":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _has_kernel(operator: str, device_type: str) -> bool:
    """Whether this build of torch has an operator for a type of device; False where it does not know the operator."""
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, device_type.upper()))
    except RuntimeError:
        return False


def _onednn_multiplies_bfloat16() -> bool:
    return bool(
        torch.backends.mkldnn.is_available()
        and _has_kernel("mkldnn::_linear_pointwise", "cpu")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
