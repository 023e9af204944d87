"""One measurement of `bench/pretrain.py`, in a process of its own: a job comes in as JSON, its result goes out as JSON.

The peer is a plain loop around transformers' `NanoChatForCausalLM` with random weights and torch's AdamW (the fused
one, the fastest on a CPU), bfloat16 by autocast. It computes the same architecture as our default one.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from nanochat.command import UserError

if TYPE_CHECKING:
    import torch

    from nanochat.gpt_config import GPTConfig
    from nanochat.runtime import Runtime

Result = dict[str, Any]
SOURCE = "text"
"""Of the text, under the base directory that `pretrain.py` makes."""
IGNORED_TARGET = -1
WORTH_COMPILING = 1_000_000  # tokens: the peer then trains a third faster, and its quality is what is asked


@dataclass(frozen=True)
class Speed:
    """Steps of one contender on random ids."""

    contender: Literal["ours", "transformers"]
    depth: int
    vocab_size: int
    rows: int
    """Of a step."""
    micro: int
    """Rows of a micro-batch."""
    dtype: Literal["float32", "bfloat16"]
    compiled: bool = False
    keeps_memory: bool = True
    """The allocator setting, without which only the peer is measured."""
    seconds: float = 10.0
    """To be timed at least, after the first two steps."""
    sequence_len: int = 512
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class PeerRun:
    """A whole training of the peer on the same batches as ours: AdamW with warm-up, clipped gradients, decay 0.1."""

    depth: int
    vocab_size: int
    tokens: int
    batch_tokens: int
    rate: float
    shape: Literal["linear", "cosine", "trapezoid"]
    """How the rate falls to zero: from the warm-up on in a line or half a wave, or over the last 40 % of the steps."""
    seed: int
    dtype: str = "auto"
    micro: int = 4
    eval_tokens: int = 262_144
    sequence_len: int = 512


@dataclass(frozen=True)
class Checkpoints:
    """Which checkpoints of `base_train` are measured."""

    tag: str
    steps: tuple[int, ...]
    dtype: str = "auto"
    eval_tokens: int = 262_144


# speed


def speed(job: Speed) -> Result:
    """Tokens per second by the median step; the first step; memory, on a CPU above the process after its imports.

    The peak is the GPU's by its maker, or that of square matrix products in the same format and with as many threads.
    """
    import torch

    from nanochat import calibration
    from nanochat.gpt_config import config_for_depth
    from nanochat.runtime import Runtime

    sizes = config_for_depth(job.depth, job.vocab_size, job.sequence_len)
    ours = job.contender == "ours"
    with Runtime.start(job.device, job.dtype, 1, keeps_memory=ours) as runtime:
        try:
            before, step = (_our_step if ours else _peer_step)(job, sizes, runtime)
            found = _timed(job, step, before, runtime)
        except torch.OutOfMemoryError:
            return {"out_of_memory": True}
        found |= {"attention": attention(step, runtime), "peak_flops": calibration.peak_flops(runtime)}
    return {**found, "flops_per_token": sizes.flops_per_token, "threads": torch.get_num_threads()}


def _our_step(job: Speed, sizes: "GPTConfig", runtime: "Runtime") -> tuple[int, Callable[[], object]]:
    """Memory before anything was made, and a step as `base_train` makes it."""
    import torch

    from nanochat.checkpoint_manager import build_model
    from nanochat.optim import MuonAdamW, Rates
    from nanochat.plan import plan_training
    from nanochat.training import accumulate, compiled, gradient_norm

    before = resident()
    plan = plan_training(
        sizes, device_batch_size=job.micro, world_size=1, total_batch_size=job.rows * job.sequence_len,
        num_iterations=1, target_param_data_ratio=0.0, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004,
    )  # fmt: skip
    model = build_model(sizes, runtime)
    model.init_weights(1)
    compiled(model, "on" if job.compiled else "off", plan, runtime)
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), runtime)
    ids = torch.randint(job.vocab_size, (job.micro, job.sequence_len + 1), device=runtime.device)
    batches = iter(lambda: (ids[:, :-1].contiguous(), ids[:, 1:].contiguous()), None)

    def step() -> None:
        accumulate(model, batches, plan.grad_accum_steps, runtime)
        gradient_norm(model, runtime)
        optimizer.step()
        optimizer.zero_grad()

    return before, step


def _peer_step(job: Speed, sizes: "GPTConfig", runtime: "Runtime") -> tuple[int, Callable[[], object]]:
    """The same of the peer."""
    import torch
    from transformers import NanoChatForCausalLM  # noqa: F401

    from nanochat.runtime import keep_freed_memory

    before = resident()
    if job.keeps_memory and job.device == "cpu":
        keep_freed_memory()
    model = peer_model(sizes).to(runtime.device).train()
    optimizer = adamw(model, 1e-3)
    losses_of = torch.compile(peer_losses, dynamic=False) if job.compiled else peer_losses
    ids = torch.randint(job.vocab_size, (job.micro, job.sequence_len + 1), device=runtime.device)
    batches = [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())] * (job.rows // job.micro)

    def step() -> None:
        for inputs, targets in batches:
            (losses_of(model, inputs, targets, runtime.dtype).mean() / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return before, step


def _timed(job: Speed, step: Callable[[], object], before: int, runtime: "Runtime") -> Result:
    """`cpu_share` is how much of its cores the process had while it was timed: on a CPU, below 0.9 others were at work.

    Memory is that of the device.
    """
    import torch

    load = os.getloadavg()[0]
    started = time.perf_counter()
    step()
    runtime.synchronize()
    first = time.perf_counter() - started
    step()
    runtime.synchronize()
    taken: list[float] = []
    cpu = time.process_time()
    while len(taken) < 3 or sum(taken) < job.seconds:
        started = time.perf_counter()
        step()
        runtime.synchronize()
        taken.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    return {
        "tokens_per_second": job.rows * job.sequence_len / median(taken),
        "step_seconds": median(taken),
        "first_seconds": first,
        "memory_bytes": resident("VmHWM") - before if job.device == "cpu" else runtime.peak_memory_bytes(),
        "steps": len(taken),
        "cpu_share": cpu / sum(taken) / torch.get_num_threads(),
        "load": load,
    }


def attention(step: Callable[[], object], runtime: "Runtime") -> str:
    """What a step's attention takes longest in: a kernel on a GPU, torch's operator on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = runtime.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        step()
        runtime.synchronize()
    taken = {
        one.key: one.self_device_time_total if on_gpu else one.self_cpu_time_total
        for one in seen.key_averages()
        if re.search("attention|sdpa|fmha|flash", one.key, re.IGNORECASE)
    }
    return max(taken, key=lambda name: taken[name], default="not seen")


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or at most so far (VmHWM), which unlike ru_maxrss no parent lends."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise UserError("memory is read from /proc/self/status, which this system does not have: run it on Linux")


# the peer


def peer_model(sizes: "GPTConfig") -> Any:
    """transformers' model of our sizes, with its own random weights. No id is padding, or it would never be learned."""
    from transformers import NanoChatConfig, NanoChatForCausalLM

    return NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=sizes.vocab_size, hidden_size=sizes.n_embd, intermediate_size=sizes.mlp_dim,
            num_hidden_layers=sizes.n_layer, num_attention_heads=sizes.n_head, num_key_value_heads=sizes.n_kv_head,
            max_position_embeddings=sizes.sequence_len, rms_norm_eps=sizes.norm_eps, use_cache=False,
            pad_token_id=None, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def adamw(model: Any, rate: float) -> "torch.optim.AdamW":
    """Every matrix decays."""
    import torch

    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def peer_losses(model: Any, inputs: "torch.Tensor", targets: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """The loss in nats of each target of (B, T), flat, 0 where it is -1."""
    import torch
    import torch.nn.functional as F

    with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=inputs).logits
    flat = targets.reshape(-1)
    return F.cross_entropy(logits.float().flatten(0, 1), flat, ignore_index=IGNORED_TARGET, reduction="none")


class PeerInOurPlace:
    """The peer with the few verbs by which `loss_eval` measures a model, in float32."""

    def __init__(self, model: Any):
        self.model, self.training = model, True

    def eval(self) -> None:
        self.model.eval()

    def train(self, mode: bool) -> None:
        self.model.train(mode)

    def token_losses(self, inputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """(B, T) in nats."""
        import torch

        with torch.no_grad():
            return peer_losses(self.model, inputs, targets, torch.float32).view_as(targets)


def peer_run(job: PeerRun) -> Result:
    """Train the peer; its bpb."""
    import torch

    from nanochat.dataloader import DocumentLoader
    from nanochat.gpt_config import config_for_depth
    from nanochat.runtime import Runtime
    from nanochat.schedule import Shape, lr_multiplier
    from nanochat.tokenizer import get_tokenizer

    started = time.perf_counter()
    with Runtime.start("cpu", job.dtype, job.seed) as runtime:
        model = peer_model(config_for_depth(job.depth, job.vocab_size, job.sequence_len)).train()
        optimizer = adamw(model, job.rate)
        loader = DocumentLoader(get_tokenizer(), job.micro, job.sequence_len, runtime, "train", SOURCE, seed=job.seed)
        steps = round(job.tokens / job.batch_tokens)
        losses_of = torch.compile(peer_losses, dynamic=False) if job.tokens >= WORTH_COMPILING else peer_losses
        warmup = round(0.05 * steps)
        falling = {"linear": 1.0, "cosine": 0.0, "trapezoid": 0.4}[job.shape]
        for step in range(steps):
            for _ in range(job.batch_tokens // (job.micro * job.sequence_len)):
                inputs, targets = next(loader)
                losses = losses_of(model, inputs, targets, runtime.dtype)
                (losses.sum() / job.batch_tokens).backward()
            shape: Shape = "cosine" if job.shape == "cosine" else "trapezoid"
            for group in optimizer.param_groups:
                group["lr"] = job.rate * lr_multiplier(step, steps, warmup, falling, shape=shape)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        bpb = validation_bpb(PeerInOurPlace(model), job.sequence_len, job.eval_tokens, runtime)
    return {"bpb": bpb, "tokens": steps * job.batch_tokens, "seconds": time.perf_counter() - started}


def validation_bpb(model: Any, sequence_len: int, eval_tokens: int, runtime: "Runtime") -> float:
    """Bits per byte of the first tokens of the validation shard, in rows as the model was trained in."""
    import numpy

    from nanochat.dataloader import DocumentLoader, one_epoch
    from nanochat.loss_eval import evaluate_loss
    from nanochat.tokenizer import get_tokenizer

    tokenizer = get_tokenizer()
    rows = min(16, max(1, eval_tokens // sequence_len))
    loader = DocumentLoader(tokenizer, rows, sequence_len, runtime, "val", SOURCE)
    lengths = numpy.array(tokenizer.token_bytes(), dtype=numpy.int64)
    return evaluate_loss(model, one_epoch(loader, eval_tokens // (rows * sequence_len)), lengths, runtime).bpb


def checkpoints(job: Checkpoints) -> Result:
    """The bpb of each step."""
    from nanochat.checkpoint_manager import load_model
    from nanochat.runtime import Runtime

    found = {}
    with Runtime.start("cpu", job.dtype) as runtime:
        for step in job.steps:
            model, _, _ = load_model("base", runtime, job.tag, step, for_training=True)
            found[str(step)] = validation_bpb(model, model.config.sequence_len, job.eval_tokens, runtime)
    return {"bpb": found}


# the process


JOBS = {"Speed": (Speed, speed), "PeerRun": (PeerRun, peer_run), "Checkpoints": (Checkpoints, checkpoints)}


def as_line(job: Speed | PeerRun | Checkpoints) -> str:
    """A job as it is handed over."""
    return json.dumps({"job": type(job).__name__, **asdict(job)})


def main() -> None:
    """Do the job that the command line holds."""
    fields = json.loads(sys.argv[1])
    kind, work = JOBS[fields.pop("job")]
    print(json.dumps(work(kind(**fields))))  # type: ignore[operator]


if __name__ == "__main__":
    main()
