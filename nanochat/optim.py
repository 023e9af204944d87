"""The optimizer: Muon for matrices, AdamW for everything else, state and work shared out over the ranks.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix's gradient and makes it
nearly orthogonal, so that every direction is learned at the same speed. AdamW (arXiv:1711.05101) serves the embedding
and the head. Each rank averages, updates and stores only its share; a state dict holds whole tensors by parameter name
and does not know how many ranks there were.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Rates:
    """Learning rates by role, and the decay of weights per unit of learning rate."""

    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.8, 0.95)
    adam_eps: float = 1e-10


def orthogonalize(gradients: torch.Tensor, dtype: torch.dtype, steps: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values move into about [0.7, 1.2].

    gradients (N, rows, columns), any N; Newton-Schulz with the quintic coefficients of the Muon post, in `dtype`.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = gradients.size(-2) > gradients.size(-1)
    x = (gradients.mT if tall else gradients).to(dtype)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(gradients.dtype)


class MuonAdamW:
    """Updates parameters in place from their `.grad`, averaged over the ranks."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], roles: Mapping[str, str], rates: Rates, runtime: Runtime
    ):
        self.parameters = dict(parameters)
        self.rates = rates
        self.rank, self.world_size, self.dtype = runtime.rank, runtime.world_size, runtime.dtype
        self.steps = 0
        shapes: dict[tuple[int, ...], list[str]] = {}
        self.adam_rates: dict[str, float] = {}
        for name, parameter in self.parameters.items():
            if roles[name] == "matrix":
                shapes.setdefault(tuple(parameter.shape), []).append(name)
            else:
                self.adam_rates[name] = {"embedding": rates.embedding_lr, "unembedding": rates.unembedding_lr}[
                    roles[name]
                ]
        self.matrices = list(shapes.values())  # names of equal shape, in the model's order
        self.momenta = [self._zeros_of_share(len(names), self.parameters[names[0]]) for names in self.matrices]
        self.moments = {name: self._zeros_of_flat_share(self.parameters[name]) for name in self.adam_rates}

    @torch.no_grad()
    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> None:
        """One update; every rate is multiplied by `lr_multiplier`."""
        self.steps += 1
        for names, buffer in zip(self.matrices, self.momenta, strict=True):
            self._muon(names, buffer, self.rates.matrix_lr * lr_multiplier, momentum)
        for name, rate in self.adam_rates.items():
            self._adamw(self.parameters[name], self.moments[name], rate * lr_multiplier)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _muon(self, names: list[str], buffer: torch.Tensor, rate: float, momentum: float) -> None:
        parameters = [self.parameters[name] for name in names]
        gradients = self._my_share(torch.stack([_gradient(p) for p in parameters]), average=True)
        buffer.lerp_(gradients, 1 - momentum)
        update = orthogonalize(gradients.lerp_(buffer, momentum), self.dtype)  # Nesterov
        rows, columns = update.shape[-2:]
        scale = max(1.0, rows / columns) ** 0.5
        weights = self._my_share(torch.stack([p.data for p in parameters]), average=False)
        weights.mul_(1 - rate * self.rates.weight_decay).sub_(update, alpha=rate * scale)
        for parameter, weight in zip(parameters, self._gather(weights), strict=False):
            parameter.copy_(weight)

    def _adamw(self, parameter: torch.nn.Parameter, moments: torch.Tensor, rate: float) -> None:
        beta1, beta2 = self.rates.adam_betas
        gradient = self._my_share(_gradient(parameter).flatten(), average=True)
        first, second = moments
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (second / (1 - beta2**self.steps)).sqrt_().add_(self.rates.adam_eps)
        weights = self._my_share(parameter.data.view(-1), average=False)
        weights.mul_(1 - rate * self.rates.weight_decay)
        weights.addcdiv_(first, denominator, value=-rate / (1 - beta1**self.steps))
        if self.world_size > 1:  # a single rank has updated the parameter itself: its share is a view of it
            parameter.copy_(self._gather(weights)[: parameter.numel()].view_as(parameter))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU, by parameter name. Every rank must call it."""
        state = {"steps": torch.tensor(self.steps)}
        for names, buffer in zip(self.matrices, self.momenta, strict=True):
            for name, momentum in zip(names, self._gather(buffer), strict=False):
                state[f"{name}.momentum"] = momentum.cpu().clone()
        for name, moments in self.moments.items():
            shape, count = self.parameters[name].shape, self.parameters[name].numel()
            for kind, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                state[f"{name}.{kind}"] = self._gather(moment)[:count].view(shape).cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what `state_dict` gave, on any number of ranks. Raises KeyError for a parameter it lacks."""
        self.steps = int(state["steps"])
        for names, buffer in zip(self.matrices, self.momenta, strict=True):
            whole = torch.stack([state[f"{name}.momentum"] for name in names])
            buffer.copy_(self._slice(whole.to(buffer.device)))
        for name, moments in self.moments.items():
            for kind, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                moment.copy_(self._slice(state[f"{name}.{kind}"].flatten().to(moment.device)))

    def _share_size(self, count: int) -> int:
        return -(-count // self.world_size)

    def _zeros_of_share(self, count: int, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros((self._share_size(count), *like.shape), device=like.device)

    def _zeros_of_flat_share(self, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros((2, self._share_size(like.numel())), device=like.device)

    def _padded(self, whole: torch.Tensor) -> torch.Tensor:
        missing = self._share_size(whole.size(0)) * self.world_size - whole.size(0)
        return torch.cat((whole, whole.new_zeros((missing, *whole.shape[1:])))) if missing else whole

    def _slice(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a tensor that every rank has, along the first axis; the last parts are padded."""
        size = self._share_size(whole.size(0))
        return self._padded(whole)[self.rank * size : (self.rank + 1) * size]

    def _my_share(self, whole: torch.Tensor, average: bool) -> torch.Tensor:
        if not average or self.world_size == 1:
            return self._slice(whole)
        padded = self._padded(whole)
        share = torch.empty_like(padded[: self._share_size(whole.size(0))])
        dist.reduce_scatter_tensor(share, padded.contiguous(), op=dist.ReduceOp.SUM)
        return share.div_(self.world_size)

    def _gather(self, share: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return share
        whole = share.new_empty((share.size(0) * self.world_size, *share.shape[1:]))
        dist.all_gather_into_tensor(whole, share.contiguous())
        return whole


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, "step() before backward()"
    return parameter.grad
