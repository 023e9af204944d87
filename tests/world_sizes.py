"""One, two and four processes that train the same tiny models (gloo, CPU): started once, everything done in one go.

`trained()` gives the weights that each number of ranks came to; `test_world_sizes.py` compares them.
"""

import multiprocessing
import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.multiprocessing

from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.muon import MuonOptions
from nanochat.optim import MuonAdamW, Rates
from nanochat.runtime import Runtime

STEPS = 20
ROWS = 8  # of a step, over all ranks
OPTIONS = {
    "newton_schulz": MuonOptions("newton_schulz", variance_beta2=None),
    "all_options": MuonOptions("polar_express", variance_beta2=0.95, cautious=True),
}
TRICKS = {"value_embeddings": True, "residual_scalars": True, "smear": True, "backout": True, "bigram_rows": 29}
Weights = dict[str, torch.Tensor]


def gpt(dtype: torch.dtype, tricks: bool) -> GPT:
    """The real model, with three layers so that stacks of three divide by neither two nor four."""
    more = TRICKS if tricks else {}
    model = GPT(GPTConfig(8, 13, n_layer=3, n_head=2, n_kv_head=1, n_embd=12, **more), dtype)
    model.init_weights(3)
    return model.to(dtype)


# The model's format, Muon's format and options, and whether the model has tricks too.
CASES: dict[str, tuple[torch.dtype, torch.dtype, str, bool]] = {
    "float64": (torch.float64, torch.float64, "newton_schulz", False),
    "float64, all options": (torch.float64, torch.float64, "all_options", True),
    "float32": (torch.float32, torch.float32, "newton_schulz", False),
    "float32, all options": (torch.float32, torch.float32, "all_options", False),
    "bfloat16": (torch.float32, torch.bfloat16, "newton_schulz", False),
}


def steps(case: str, runtime: Runtime, first: int, end: int, before: Weights | None = None) -> Weights:
    """Train from step `first` to before `end`; the weights and, behind `optimizer.`, the optimizer's state."""
    dtype, muon_dtype, options, tricks = CASES[case]
    model = gpt(dtype, tricks)
    rates = Rates(0.02, 0.05, 0.01, 0.1, muon=OPTIONS[options])
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), rates, replace(runtime, dtype=muon_dtype))
    if before is not None:
        optimizer.load_state_dict({k.removeprefix("optimizer."): v for k, v in before.items() if "optimizer." in k})
        model.load_state_dict({k: v for k, v in before.items() if "optimizer." not in k})
    mine = slice(runtime.rank * ROWS // runtime.world_size, (runtime.rank + 1) * ROWS // runtime.world_size)
    losses: list[float] = []
    for step in range(first, end):
        ids = torch.randint(0, 13, (ROWS, 9), generator=torch.Generator().manual_seed(100 + step))[mine]
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        losses += [total / runtime.world_size for total in runtime.sum_over_ranks(loss.item())]
        optimizer.step(1 - step / 40, 0.9, 1 - step / 20)
        optimizer.zero_grad()
    kept = {f"optimizer.{name}": value for name, value in optimizer.state_dict().items()}
    kept["optimizer.losses"] = torch.tensor(losses, dtype=torch.float64)
    return {**{name: value.detach().clone() for name, value in model.state_dict().items()}, **kept}


def _work(rank: int, ports: dict[int, int], folder: str) -> None:
    kept = Path(folder)
    for world_size, first, end in ((1, 0, 7), (2, 7, 14), (4, 0, 0), (1, 14, STEPS)):
        if rank >= world_size:
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports[world_size]))
        with Runtime.start("cpu", "float32", threads=1) as runtime:
            for case in CASES:
                if first == 0 or world_size > 1:
                    torch.save(steps(case, runtime, 0, STEPS), kept / f"{case}: {world_size} {rank}")
                if end:
                    before = torch.load(kept / f"{case}: until {first}") if first else None
                    made = steps(case, runtime, first, end, before)
                    runtime.barrier()
                    if rank == 0:
                        torch.save(made, kept / f"{case}: until {end}")
            runtime.barrier()


@cache
def trained() -> dict[str, Weights]:
    """By case, world size and rank ("float64: 4 0"); a run of one, two and one ranks ends with "float64: until 20"."""
    with ExitStack() as stack:
        free = {size: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for size in (1, 2, 4)}
        ports = {size: server.getsockname()[1] for size, server in free.items()}
    multiprocessing.set_forkserver_preload(["world_sizes"])  # torch is imported once
    with TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(_work, (ports, folder), nprocs=4, start_method="forkserver")
        return {path.name: torch.load(path) for path in Path(folder).iterdir()}
