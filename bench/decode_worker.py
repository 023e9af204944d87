"""One contender's measurements for `bench/decode.py`, in a process of its own.

It takes a `Job` as JSON and prints its result as JSON. All contenders have the same random weights, draw from the 50
likeliest ids at temperature 1, and give ids, not text. What an answer could end with has a logit of nothing, so that
no answer ends early.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from nanochat import hardware

if TYPE_CHECKING:
    from nanochat.gpt import GPT

TOP_K = 50
NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.h": "model.layers",
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

Result = dict[str, Any]
Generate = Callable[[list[list[int]], int], list[list[int]]]
"""From prompts of equal length, and how many ids are wanted, to the new ids."""


@dataclass(frozen=True)
class Job:
    """What to measure. `ours.<weights>` and `transformers.<dtype>` generate; `bandwidth` reads memory."""

    contender: str
    depth: int = 4
    vocab_size: int = 32_768
    sequence_len: int = 2048
    shapes: tuple[tuple[int, int, int], ...] = ()
    """Of each generation: rows, tokens of a prompt, new tokens."""
    repeats: int = 3
    """Generations of each shape, after one that does not count; the median does."""
    first_token_prompt: int = 0
    """Tokens of the prompt whose first answering id is timed beside one forward pass; 0: none."""
    step_rows: tuple[int, ...] = ()
    """Of decode steps that are timed part by part."""


def as_line(job: Job) -> str:
    """The job as a worker takes it."""
    return json.dumps(asdict(job))


def random_model(job: Job) -> "GPT":
    """Ours, with random weights in which no matrix is zero."""
    import torch

    from nanochat.gpt import GPT
    from nanochat.gpt_config import config_for_depth
    from nanochat.tokenizer_base import SPECIAL_TOKENS

    model = GPT(config_for_depth(job.depth, job.vocab_size, job.sequence_len))
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        model.lm_head.weight[-len(SPECIAL_TOKENS) :] = 0
    return model.eval()


class Ids:
    """In a tokenizer's place: the last ids are the control tokens."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def get_vocab_size(self) -> int:
        """How many ids there are."""
        return self.vocab_size

    def encode_special(self, name: str) -> int:
        """The id of a control token."""
        from nanochat.tokenizer_base import SPECIAL_TOKENS

        return self.vocab_size - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(name)


def ours(job: Job, weights: str) -> tuple[Generate, Result]:
    """Our engine."""
    import torch

    from nanochat.engine import Engine
    from nanochat.quantize import Quantized, prepare

    model = random_model(job)
    if weights in ("int8", "int4"):
        model.dtype = torch.bfloat16
    started = time.perf_counter()
    prepared = prepare(model, weights)  # type: ignore[arg-type]
    told: Result = {"prepare_seconds": time.perf_counter() - started}
    prepared.cast_(prepared.dtype)
    parts = [part for part in prepared.modules() if isinstance(part, Quantized)]
    if parts:
        told["few_rows"] = {f"{part.dense.outputs}x{part.dense.inputs}": part.few_rows for part in parts}
    engine = Engine(prepared, Ids(job.vocab_size))  # type: ignore[arg-type]

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        answers = engine.generate_batch(prompts, max_tokens=new, temperature=1.0, top_k=TOP_K, seed=0)
        return [ids for ids, _ in answers]

    if job.first_token_prompt:
        told["first_token"] = first_token(job, generate, prepared)
    if job.step_rows:
        told["steps"] = {str(rows): step_parts(prepared, rows, job) for rows in job.step_rows}
    return generate, told


def transformers(job: Job, dtype: str) -> tuple[Generate, Result]:
    """transformers' `generate` on the same weights; says how far its logits are from ours."""
    import torch
    from transformers import NanoChatConfig, NanoChatForCausalLM

    model = random_model(job)
    sizes = model.config
    theirs = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=sizes.vocab_size, hidden_size=sizes.n_embd, intermediate_size=sizes.mlp_dim,
            num_hidden_layers=sizes.n_layer, num_attention_heads=sizes.n_head, num_key_value_heads=sizes.n_kv_head,
            max_position_embeddings=sizes.sequence_len, rms_norm_eps=sizes.norm_eps,
            final_logit_softcapping=sizes.logit_softcap, pad_token_id=0, bos_token_id=None, eos_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_base},
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict({their_name(name): value for name, value in model.state_dict().items()}, strict=False)
    ids = torch.tensor(some_prompts(2, 16, job.vocab_size, 0))
    with torch.inference_mode():
        off = float((theirs(ids).logits - model(ids)).abs().max())
    assert off < 1e-3, f"the weights were not taken over: logits differ by {off}"
    theirs.to(getattr(torch, dtype))

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        given = torch.tensor(prompts)
        with torch.inference_mode():
            made = theirs.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=True, temperature=1.0,
                top_k=TOP_K, top_p=1.0, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        answers: list[list[int]] = made[:, given.size(1) :].tolist()
        return answers

    return generate, {"logits_off": off}


def their_name(name: str) -> str:
    """Our parameter's name in transformers."""
    for mine, other in NAMES.items():
        name = name.replace(mine, other)
    return name


def some_prompts(rows: int, tokens: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts that share nothing."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = torch.randint(0, vocab_size - 16, (rows, tokens), generator=generator).tolist()
    return prompts


def generations(job: Job, generate: Generate) -> list[Result]:
    """For each shape: tokens a second with the reading of the prompts, and without it."""
    found = []
    for rows, prompt_tokens, new in job.shapes:
        whole, first = [], []
        for repeat in range(job.repeats + 1):
            for wanted, taken in ((new, whole), (1, first)):
                prompts = some_prompts(rows, prompt_tokens, job.vocab_size, seed=2 * repeat + (wanted == 1))
                started = time.perf_counter()
                answers = generate(prompts, wanted)
                taken.append(time.perf_counter() - started)
                lengths = {len(answer) for answer in answers}
                assert lengths == {wanted}, f"answers of {lengths} ids, not {wanted}"
        seconds, reading = median(whole[1:]), median(first[1:])
        found.append(
            {
                "rows": rows,
                "prompt_tokens": prompt_tokens,
                "new_tokens": new,
                "tokens_per_second": rows * new / seconds,
                "decoded_per_second": rows * (new - 1) / max(seconds - reading, 1e-9),
                "first_token_seconds": reading,
            }
        )
    return found


def first_token(job: Job, generate: Generate, model: "GPT") -> Result:
    """The first id behind a long prompt beside one forward pass over as many ids, in turns; medians."""
    import torch

    tokens = job.first_token_prompt
    seconds: dict[str, list[float]] = {"engine": [], "forward": []}
    for repeat in range(2 * job.repeats + 2):
        [prompt] = some_prompts(1, tokens, job.vocab_size, seed=100 + repeat)
        started = time.perf_counter()
        generate([prompt], 1)
        between = time.perf_counter()
        with torch.inference_mode():
            model.lm_head(model.hidden(torch.tensor([prompt]))[:, -1])
        seconds["engine"].append(between - started)
        seconds["forward"].append(time.perf_counter() - between)
    engine, forward = (median(seconds[name][1:]) for name in ("engine", "forward"))
    return {"prompt_tokens": tokens, "engine_seconds": engine, "forward_seconds": forward, "ratio": engine / forward}


def step_parts(model: "GPT", rows: int, job: Job, held: int = 128, repeats: int = 30) -> Result:
    """Milliseconds of a decode step's parts, medians: the layers' matrices, the head, all of the forward pass."""
    import torch

    from nanochat.decoder import Decoder
    from nanochat.kv_cache import Chunk, KVCache, Reading

    decoder = Decoder(model)
    cache = KVCache(model.config, model.device, model.dtype, slots=rows)
    ids = torch.tensor(some_prompts(rows, held, job.vocab_size, 0))
    x = torch.randn(rows, model.config.n_embd).to(model.dtype)

    def matrices() -> None:
        for layer in decoder.layers:
            layer.project(x)
            layer.c_proj(x)
            layer.mlp_out(layer.mlp_in(x))

    def attention() -> None:
        reading = Reading(cache, [held] * rows)
        sizes = model.config
        q = torch.ones(rows, sizes.n_head, sizes.head_dim, dtype=model.dtype)
        k = torch.ones(rows, sizes.n_kv_head, sizes.head_dim, dtype=model.dtype)
        for number in range(sizes.n_layer):
            reading.attend(number, q, k, k)

    with torch.inference_mode():
        for slot in range(rows):
            decoder.hidden(ids[slot], Reading(cache, (), [Chunk(slot, 0, held)]))
        parts: dict[str, Callable[[], object]] = {
            "matrices": matrices,
            "attention": attention,
            "head": lambda: decoder.raw_logits(x),
            "hidden": lambda: decoder.hidden(ids[:, 0], Reading(cache, [held] * rows)),
        }
        taken: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(repeats + 1):
            for name, part in parts.items():
                started = time.perf_counter()
                part()
                taken[name].append(time.perf_counter() - started)
    return {f"{name}_ms": median(seconds[1:]) * 1e3 for name, seconds in taken.items()}


def read_bandwidth(repeats: int, megabytes: int = 1024) -> float:
    """Bytes a second at which all threads read what no cache holds."""
    import torch

    held = torch.ones(megabytes << 18)
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        held.sum()
        taken.append(time.perf_counter() - started)
    return held.nbytes / median(taken[1:])


def measure(job: Job) -> Result:
    """All that the job asks for."""
    from nanochat.runtime import Runtime

    with Runtime.start("cpu", "float32"):
        if job.contender == "bandwidth":
            return {"bytes_per_second": read_bandwidth(job.repeats)}
        who, form = job.contender.split(".")
        generate, told = {"ours": ours, "transformers": transformers}[who](job, form)
        return {**told, "generations": generations(job, generate), "memory_bytes": hardware.peak_memory_bytes()}


def main(arguments: Sequence[str]) -> None:
    """Read the job, print the result."""
    job = Job(**json.loads(arguments[0]))
    print(json.dumps(measure(job)))


if __name__ == "__main__":
    import scripts  # noqa: F401  how long threads wait for each other is set there, before torch is imported

    main(sys.argv[1:])
