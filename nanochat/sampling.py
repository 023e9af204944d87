"""From logits to the next ids.

Shapes: B rows, V vocabulary.
"""

import torch


def sample(
    logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> torch.Tensor:
    """One id per row (B,) of logits (B, V): the likeliest at temperature 0, else drawn from the `top_k` likeliest.

    A `top_k` of None or 0 draws from all. An id whose logit is -inf is never drawn.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k and top_k < logits.size(-1):
        values, ids = logits.topk(top_k, dim=-1)
        return ids.gather(1, _draw(values, temperature, generator)).squeeze(1)
    return _draw(logits, temperature, generator).squeeze(1)


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator | None) -> torch.Tensor:
    below_the_best = logits - logits.amax(dim=-1, keepdim=True)  # at most 0: no temperature makes it overflow
    return torch.multinomial((below_the_best / temperature).softmax(dim=-1), 1, generator=generator)
