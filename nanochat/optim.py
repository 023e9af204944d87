"""The optimizer: Muon for matrices, AdamW for everything else, state and work shared out over the ranks.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix's gradient and makes it
nearly orthogonal, so that every direction is learned at the same speed; its arithmetic is in `muon`. AdamW
(arXiv:1711.05101) serves embeddings, the head and scalars. Each rank averages, updates and stores only its share; a
state dict holds whole tensors by parameter name and does not know how many ranks there were.

Any number of ranks comes to the same losses and weights but for rounding: over 20 steps within 1e-9 in float64 and
1e-5 in float32 (3e-5 with all `tricks`). Where Muon multiplies in bfloat16 the losses stay within 1e-4, while single
weights part by more.

Lessons: lessons/14_optimizers, lessons/18_two_processes
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from nanochat.averaging import TailAverage
from nanochat.command import UserError
from nanochat.muon import MuonOptions, decay_, even_out_, orthogonalize, variance_shape
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Rates:
    """Learning rates by role, and the decay of weights per unit of learning rate."""

    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    weight_decay: float = 0.0
    """Of matrices. The rates of embeddings are ten times theirs, and so would be their decay."""
    adam_betas: tuple[float, float] = (0.8, 0.95)
    adam_eps: float = 1e-10
    adam_weight_decay: float = 0.0
    """Of embeddings and head; scalars do not decay."""
    scalar_lr: float = 0.02
    muon: MuonOptions = field(default_factory=MuonOptions)


@dataclass
class _Share:
    """Parameters that are updated together, as one tensor that ranks share out along its first axis.

    A stack of equal matrices, or one other parameter laid flat; `state` is this rank's part, by the name it is kept by.
    """

    names: list[str]
    role: str
    state: dict[str, torch.Tensor]


@dataclass
class _Moving:
    """A tensor that the ranks are still exchanging."""

    tensor: torch.Tensor
    work: dist.Work | None = None

    def wait(self) -> torch.Tensor:
        """The tensor, arrived."""
        if self.work is not None:
            self.work.wait()  # gloo knows wait() alone, and no get_future()
        return self.tensor


class MuonAdamW:
    """Updates parameters in place from their `.grad`, averaged over the ranks."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], roles: Mapping[str, str], rates: Rates, runtime: Runtime
    ):
        self.parameters = dict(parameters)
        self.rates = rates
        self.rank, self.world_size, self.dtype = runtime.rank, runtime.world_size, runtime.dtype
        self.steps = 0
        self.average = TailAverage(self.parameters)  # of weights after steps, where the loop adds any
        self.shares: list[_Share] = []
        stacks: dict[tuple[int, ...], list[str]] = {}
        for name, parameter in self.parameters.items():
            if roles[name] == "matrix":
                stacks.setdefault(tuple(parameter.shape), []).append(name)
            else:
                assert roles[name] in ("embedding", "unembedding", "scalar"), f"no role is called {roles[name]}"
                state = {kind: self._zeros((parameter.numel(),), parameter) for kind in ("exp_avg", "exp_avg_sq")}
                self.shares.append(_Share([name], roles[name], state))
        for shape, names in stacks.items():  # in the model's order
            like = self.parameters[names[0]]
            state = {"momentum": self._zeros((len(names), *shape), like)}
            if rates.muon.variance_beta2 is not None:
                state["variance"] = self._zeros((len(names), *variance_shape(*shape)), like)
            self.shares.append(_Share(names, "matrix", state))

    @torch.no_grad()
    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95, decay_multiplier: float = 1.0) -> None:
        """One update; every rate is multiplied by `lr_multiplier`, weight decay by `decay_multiplier` too."""
        self.steps += 1
        arriving: Iterable[_Moving] = (self._average(share) for share in self.shares)
        if self.world_size > 1:
            arriving = list(arriving)  # all are under way before the first one is used
        leaving = []
        for share, moving in zip(self.shares, arriving, strict=True):
            gradient = moving.wait()
            if share.role == "matrix":
                first = self.rank * gradient.size(0)
                own = [self.parameters[name].data for name in share.names[first : first + gradient.size(0)]]
                self._muon(share.state, own, gradient, lr_multiplier, momentum, decay_multiplier)
                weights = gradient if self.world_size == 1 else _filled(gradient, own)
            else:
                weights = self._slice(self.parameters[share.names[0]].data.view(-1))
                self._adamw(share, weights, gradient, lr_multiplier, decay_multiplier)
            leaving.append(self._gather(weights))
        if self.world_size == 1:
            return  # the parameters themselves were updated
        for share, moving in zip(self.shares, leaving, strict=True):
            self._put(share, moving.wait())

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _muon(
        self,
        state: dict[str, torch.Tensor],
        weights: list[torch.Tensor],
        gradients: torch.Tensor,
        lr_multiplier: float,
        momentum: float,
        decay_multiplier: float,
    ) -> None:
        """Update some matrices. `gradients` is their stack, with zeros behind it where ranks have unequal parts."""
        options = self.rates.muon
        buffer = state["momentum"].lerp_(gradients, 1 - momentum)
        update = orthogonalize(gradients.lerp_(buffer, momentum), self.dtype, options.method)  # Nesterov
        if options.variance_beta2 is not None:
            even_out_(update, state["variance"], options.variance_beta2)
        rows, columns = update.shape[-2:]
        rate = self.rates.matrix_lr * lr_multiplier
        changes = list(update[: len(weights)])
        for weight, change in zip(weights, changes, strict=True):
            decay_(weight, change, rate * self.rates.weight_decay * decay_multiplier, options.cautious)
        if weights:
            torch._foreach_sub_(weights, changes, alpha=rate * max(1.0, rows / columns) ** 0.5)

    def _adamw(
        self,
        share: _Share,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        lr_multiplier: float,
        decay_multiplier: float,
    ) -> None:
        beta1, beta2 = self.rates.adam_betas
        rates = {
            "embedding": self.rates.embedding_lr,
            "unembedding": self.rates.unembedding_lr,
            "scalar": self.rates.scalar_lr,
        }
        rate = rates[share.role] * lr_multiplier
        decay = 0.0 if share.role == "scalar" else self.rates.adam_weight_decay * decay_multiplier
        state = share.state
        torch._fused_adamw_(  # what torch.optim.AdamW(fused=True) calls: one pass instead of seven
            [weights],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [torch.tensor(float(self.steps), device=weights.device)],
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=self.rates.adam_eps,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU, by parameter name. Every rank must call it."""
        state = {"steps": torch.tensor(self.steps)}
        for share in self.shares:
            for kind, part in share.state.items():
                whole = self._gather(part).wait()
                if share.role != "matrix":
                    [name] = share.names
                    whole = whole[: self.parameters[name].numel()].view(1, *self.parameters[name].shape)
                for name, value in zip(share.names, whole, strict=False):
                    state[f"{name}.{kind}"] = value.cpu().clone()
        return state | self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what `state_dict` gave, on any number of ranks. Raises UserError for what it lacks."""
        wanted = [f"{name}.{kind}" for share in self.shares for kind in share.state for name in share.names]
        for name in ("steps", *wanted):
            if name not in state:
                raise UserError(
                    f"the stored state of the optimizer lacks {name!r}: "
                    "go on with the architecture and the options of Muon that the run was started with"
                )
        self.steps = int(state["steps"])
        self.average.load_state_dict(state)
        for share in self.shares:
            for kind, part in share.state.items():
                whole = _whole(share, (state[f"{name}.{kind}"].to(part) for name in share.names))
                part.copy_(self._slice(whole))

    def _average(self, share: _Share) -> _Moving:
        """This rank's part of the gradient, the mean of all ranks'."""
        whole = _whole(share, (_gradient(self.parameters[name]) for name in share.names))
        if self.world_size == 1:
            return _Moving(whole)
        padded = self._padded(whole) / self.world_size
        part = torch.empty_like(padded[: padded.size(0) // self.world_size])
        return _Moving(part, dist.reduce_scatter_tensor(part, padded, op=dist.ReduceOp.SUM, async_op=True))

    def _gather(self, part: torch.Tensor) -> _Moving:
        """All parts, in the order of ranks, with the padding behind them."""
        if self.world_size == 1:
            return _Moving(part)
        whole = part.new_empty((part.size(0) * self.world_size, *part.shape[1:]))
        return _Moving(whole, dist.all_gather_into_tensor(whole, part.contiguous(), async_op=True))

    def _put(self, share: _Share, whole: torch.Tensor) -> None:
        """Write a share's new weights, of all ranks, into its parameters."""
        if share.role == "matrix":
            for name, weight in zip(share.names, whole, strict=False):
                self.parameters[name].copy_(weight)
        else:
            parameter = self.parameters[share.names[0]]
            parameter.copy_(whole[: parameter.numel()].view_as(parameter))

    def _zeros(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """This rank's part of zeros of `shape`."""
        return torch.zeros((-(-shape[0] // self.world_size), *shape[1:]), device=like.device, dtype=like.dtype)

    def _padded(self, whole: torch.Tensor) -> torch.Tensor:
        """With zeros behind it, so that ranks have equal parts."""
        missing = -whole.size(0) % self.world_size
        return torch.cat((whole, whole.new_zeros((missing, *whole.shape[1:])))) if missing else whole

    def _slice(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a tensor that every rank has."""
        if self.world_size == 1:
            return whole
        return self._padded(whole).tensor_split(self.world_size)[self.rank]


def _whole(share: _Share, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The stack of a share's matrices, or its only tensor laid flat (a view where that can be)."""
    found = list(tensors)
    return torch.stack(found) if share.role == "matrix" else found[0].reshape(-1)


def _filled(stack: torch.Tensor, matrices: list[torch.Tensor]) -> torch.Tensor:
    """The stack (N, R, C) with these matrices in its first places."""
    for place, matrix in zip(stack, matrices, strict=False):
        place.copy_(matrix)
    return stack


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, "step() before backward()"
    return parameter.grad
