"""A task's score: the model writes or picks, the task judges; with count and interval.

Lesson: lessons/19_validation
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from nanochat.chat_format import parse_completion, render_prompt
from nanochat.command import UserError
from nanochat.conversation import Conversation
from nanochat.engine import Engine
from nanochat.gpt import GPT, IGNORED_TARGET
from nanochat.report import Score, Stage, wilson
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer


class Problems(Protocol):
    """What is needed of a task here."""

    @property
    def eval_type(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Conversation: ...
    def evaluate(self, problem: Conversation, completion: str) -> bool | float: ...


def evaluate_task(
    task: Problems,
    name: str,
    stage: Stage,
    engine: Engine,
    runtime: Runtime,
    *,
    max_problems: int | None = None,
    batch_size: int = 32,
    num_samples: int = 1,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = 50,
    seed: int = 42,
    on_progress: Callable[[int], object] = lambda count: None,
) -> Score:
    """The mean score over the first `max_problems` problems (all if None), shared out over the ranks.

    A generative problem counts with the mean of its `num_samples` completions. Raises UserError for an empty task.
    """
    count = len(task) if max_problems is None else min(max_problems, len(task))
    if count < 1:
        raise UserError(f"the task {name} has no problem to evaluate")
    mine = range(runtime.rank, count, runtime.world_size)
    total = 0.0
    for start in range(0, len(mine), batch_size):
        problems = [task[index] for index in mine[start : start + batch_size]]
        if task.eval_type == "categorical":
            picks = pick_choices(engine.model, engine.tokenizer, problems)
            answers = [[problem.choices[pick]] for problem, pick in zip(problems, picks, strict=True)]
        else:
            answers = complete(engine, problems, num_samples, max_tokens, temperature, top_k, seed + start)
        for problem, completions in zip(problems, answers, strict=True):
            total += sum(float(task.evaluate(problem, text)) for text in completions) / len(completions)
        on_progress(len(problems) * runtime.world_size)
    [total] = runtime.sum_over_ranks(total)
    low, high = wilson(total, count)
    return Score(name, stage, total / count, count, low, high)


def complete(
    engine: Engine,
    problems: Sequence[Conversation],
    num_samples: int,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> list[list[str]]:
    """What the assistant says to each problem, `num_samples` times: its text, without tool calls and their output."""
    prompts = [fitting_prompt(problem, engine, max_tokens) for problem in problems]
    results = engine.generate_batch(prompts, num_samples, max_tokens, temperature, top_k, seed)
    texts = [said(ids, engine.tokenizer) for ids, _ in results]
    return [texts[start : start + num_samples] for start in range(0, len(texts), num_samples)]


def fitting_prompt(problem: Conversation, engine: Engine, max_tokens: int) -> list[int]:
    """The problem's prompt; of one that fills the context the end, so that one long problem does not stop them all.

    Room is left for an answer of `max_tokens`, at most half of the context.
    """
    prompt = render_prompt(problem, engine.tokenizer)
    if len(prompt) < engine.context_len:
        return prompt
    kept = max(2, engine.context_len - min(max_tokens, engine.context_len // 2))
    return [prompt[0], *prompt[1 - kept :]]


def said(ids: Sequence[int], tokenizer: RustBPETokenizer) -> str:
    """The text parts of a completion's ids."""
    return "".join(part.text for part in parse_completion(ids, tokenizer) if part.type == "text")


def pick_choices(model: GPT, tokenizer: RustBPETokenizer, problems: Sequence[Conversation]) -> list[int]:
    """For each problem the number of the choice whose text has the lowest mean loss as the assistant's answer."""
    rows: list[tuple[list[int], int]] = []
    for problem in problems:
        if not problem.choices:
            raise UserError(
                f"a categorical problem needs choices; this one has none: {problem.messages[0].text[:60]!r}"
            )
        prompt = render_prompt(problem, tokenizer)
        rows += [(prompt + tokenizer.encode(choice), len(prompt)) for choice in problem.choices]
    losses = iter(mean_losses(model, rows))
    return [min(range(n), key=[next(losses) for _ in range(n)].__getitem__) for n in (len(p.choices) for p in problems)]


def mean_losses(model: GPT, rows: Sequence[tuple[list[int], int]], batch_size: int = 64) -> list[float]:
    """For rows of (ids, start) the mean loss in nats of ids[start:]; ids beyond the context are cropped on the left.

    Where nothing is left to count the loss is infinite: an empty choice is never the likeliest. Batches are of similar
    length, so that little is padding; results come in the order of `rows`.
    """
    limit = model.config.sequence_len + 1
    cropped = [(ids[-limit:], max(1, start - max(0, len(ids) - limit))) for ids, start in rows]
    order = sorted(range(len(rows)), key=lambda index: len(cropped[index][0]))
    results = [0.0] * len(rows)
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        width = max(len(cropped[index][0]) for index in batch)
        inputs = torch.zeros(len(batch), width - 1, dtype=torch.long)
        targets = torch.full_like(inputs, IGNORED_TARGET)
        for row, index in enumerate(batch):
            ids, start = cropped[index]
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
        losses = model.token_losses(inputs.to(model.device), targets.to(model.device))
        counts = (targets != IGNORED_TARGET).sum(1)
        means = (losses.sum(1).cpu() / counts).masked_fill(counts == 0, float("inf"))
        for index, mean in zip(batch, means.tolist(), strict=True):
            results[index] = mean
    return results
