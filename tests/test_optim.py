"""The optimizer against torch's own AdamW and Muon, alone and on two ranks, stopped and resumed."""

from dataclasses import replace

import pytest
import torch
from tiny import CPU
from two_ranks import RATES, SHAPES, STEPS, gradient, optimizer_of, parameters, results

from nanochat.command import UserError
from nanochat.muon import MuonOptions
from nanochat.optim import MuonAdamW, Rates
from nanochat.runtime import Runtime


def step(
    optimizer: MuonAdamW, weights: dict[str, torch.nn.Parameter], number: int, multiplier: float = 1.0, ranks: int = 1
) -> None:
    for name, parameter in weights.items():
        parameter.grad = torch.stack([gradient(name, number, rank) for rank in range(ranks)]).mean(0)
    optimizer.step(multiplier, momentum=0.9)


@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.9, 0.999)])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_embedding_and_head_are_updated_as_by_torchs_adamw(betas: tuple[float, float], decay: float) -> None:
    rates = Rates(embedding_lr=0.1, unembedding_lr=0.03, adam_weight_decay=decay, adam_betas=betas, adam_eps=1e-8)
    ours = {name: p for name, p in parameters().items() if name in ("wte", "head")}
    theirs = {name: torch.nn.Parameter(p.detach().clone()) for name, p in ours.items()}
    optimizer = MuonAdamW(ours, {"wte": "embedding", "head": "unembedding"}, rates, CPU)
    reference = torch.optim.AdamW(
        [{"params": [theirs["wte"]], "lr": 0.1}, {"params": [theirs["head"]], "lr": 0.03}],
        betas=betas, eps=1e-8, weight_decay=decay,
    )  # fmt: skip
    for number in range(8):
        multiplier = 1 - 0.1 * number
        for group, rate in zip(reference.param_groups, (0.1, 0.03), strict=True):
            group["lr"] = rate * multiplier
        for name, parameter in theirs.items():
            parameter.grad = gradient(name, number, 0)
        step(optimizer, ours, number, multiplier)
        reference.step()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)


def test_matrices_are_updated_as_by_torchs_muon() -> None:
    """torch's Muon multiplies in bfloat16; its momentum, decay and scale of tall matrices are these."""
    runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    rates = Rates(matrix_lr=0.02, weight_decay=0.1, muon=MuonOptions(variance_beta2=None))
    ours = {name: p for name, p in parameters().items() if SHAPES[name][1] == "matrix"}
    theirs = {name: torch.nn.Parameter(p.detach().clone()) for name, p in ours.items()}
    optimizer = MuonAdamW(ours, dict.fromkeys(ours, "matrix"), rates, runtime)
    reference = torch.optim.Muon(theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True)
    for number in range(6):
        for name, parameter in theirs.items():
            parameter.grad = gradient(name, number, 0)
        step(optimizer, ours, number)
        reference.step()
    for name, parameter in ours.items():
        moved = (parameters()[name] - theirs[name]).norm()
        assert (parameter - theirs[name]).norm() < 0.06 * moved, name  # bfloat16 alone differs by 0.03


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_scalar_is_updated_by_adamw_and_does_not_decay(momentum: float) -> None:
    ours, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5])) for _ in range(2))
    optimizer = MuonAdamW(
        {"gain": ours}, {"gain": "scalar"}, Rates(weight_decay=0.5, adam_weight_decay=0.5, scalar_lr=0.07), CPU
    )
    reference = torch.optim.AdamW([theirs], lr=0.07, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    for number in range(5):
        ours.grad = torch.randn(3, generator=torch.Generator().manual_seed(number))
        theirs.grad = ours.grad.clone()
        optimizer.step(momentum=momentum)
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_multiplier_of_decay_is_one_of_the_rates_decay() -> None:
    found = []
    for decay, multiplier in ((0.2, 0.5), (0.1, 1.0)):
        weights = parameters()
        roles = {name: role for name, (_, role) in SHAPES.items()}
        optimizer = MuonAdamW(weights, roles, Rates(weight_decay=decay, adam_weight_decay=decay), CPU)
        for name, parameter in weights.items():
            parameter.grad = gradient(name, 0, 0)
        optimizer.step(decay_multiplier=multiplier)
        found.append(weights)
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


def slow_muon_with_options(
    weight: torch.Tensor, gradients: list[torch.Tensor], rate: float, decay: float
) -> torch.Tensor:
    """Polar factor by singular values, rows or columns evened out, cautious decay: in float64, one value at a time."""
    weight, buffer = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    tall = weight.size(0) >= weight.size(1)
    squares = torch.zeros(max(weight.shape), dtype=torch.float64)
    for gradient_ in gradients:
        buffer = 0.9 * buffer + 0.1 * gradient_.double()
        u, _, v = torch.linalg.svd(0.9 * buffer + 0.1 * gradient_.double(), full_matrices=False)
        update = u @ v
        size = update.norm()
        for place in range(len(squares)):
            line = update[place] if tall else update[:, place]
            squares[place] = 0.95 * squares[place] + 0.05 * line.square().mean()
            line /= squares[place].sqrt()
        update *= size / update.norm()
        grows = weight * update < 0  # subtracting the update
        weight = weight - rate * decay * torch.where(grows, 0.0, weight)
        weight = weight - rate * max(1, weight.size(0) / weight.size(1)) ** 0.5 * update
    return weight.float()


def test_every_option_at_once_is_what_a_slow_muon_does() -> None:
    """Polar Express comes to the polar factor but for about a tenth: the comparison is of what all steps moved."""
    weights = parameters()
    options = MuonOptions("polar_express", variance_beta2=0.95, cautious=True)
    matrices = {name: weights[name] for name in "abcd"}
    rates = Rates(matrix_lr=0.02, weight_decay=2.0, muon=options)
    optimizer = MuonAdamW(matrices, dict.fromkeys(matrices, "matrix"), rates, CPU)
    for number in range(STEPS):
        step(optimizer, matrices, number)
    for name, weight in matrices.items():
        before = parameters()[name].detach()
        gradients = [gradient(name, number, 0) for number in range(STEPS)]
        expected = slow_muon_with_options(before, gradients, 0.02, 2.0)
        assert (weight - expected).norm() < 0.1 * (before - expected).norm(), name


def slow_muon(
    weight: torch.Tensor, gradients: list[torch.Tensor], rate: float, momentum: float, decay: float
) -> torch.Tensor:
    """One matrix, one line per thought, in float64."""
    weight, buffer = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient_ in gradients:
        g = gradient_.double()
        buffer = momentum * buffer + (1 - momentum) * g
        x = momentum * buffer + (1 - momentum) * g
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        rows, columns = weight.shape
        weight = weight - rate * decay * weight - rate * max(1, rows / columns) ** 0.5 * x
    return weight.float()


def test_every_matrix_is_updated_as_by_a_slow_muon() -> None:
    weights = parameters()
    rates = replace(RATES, muon=MuonOptions(variance_beta2=None))
    optimizer = MuonAdamW(weights, {name: role for name, (_, role) in SHAPES.items()}, rates, CPU)
    for number in range(STEPS):
        step(optimizer, weights, number)
    for name in ("a", "b", "c", "d"):
        gradients = [gradient(name, number, 0) for number in range(STEPS)]
        expected = slow_muon(parameters()[name].detach(), gradients, RATES.matrix_lr, 0.9, RATES.weight_decay)
        torch.testing.assert_close(weights[name].detach(), expected, atol=1e-4, rtol=0)


def test_a_state_that_was_stored_continues_bitwise() -> None:
    weights = parameters()
    optimizer = optimizer_of(weights, CPU)
    for number in range(3):
        step(optimizer, weights, number)
    state = optimizer.state_dict()
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in weights.items()}
    for number in range(3, 6):
        step(optimizer, weights, number)
    resumed = optimizer_of(copies, CPU)
    resumed.load_state_dict(state)
    for number in range(3, 6):
        step(resumed, copies, number)
    for name in weights:
        assert torch.equal(weights[name], copies[name]), name
    for name, value in optimizer.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_state_is_a_copy_and_lists_what_each_parameter_has() -> None:
    weights = parameters()
    optimizer = optimizer_of(weights, CPU)
    step(optimizer, weights, 0)
    state = optimizer.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    step(optimizer, weights, 1)
    assert all(torch.equal(kept[name], value) for name, value in state.items())
    assert set(state) == {
        "steps", "a.momentum", "b.momentum", "c.momentum", "d.momentum",
        "a.variance", "b.variance", "c.variance", "d.variance",
        "wte.exp_avg", "wte.exp_avg_sq", "head.exp_avg", "head.exp_avg_sq",
    }  # fmt: skip
    assert state["wte.exp_avg"].shape == (7, 3)


def test_a_state_that_lacks_a_parameter_is_refused() -> None:
    optimizer = optimizer_of(parameters(), CPU)
    state = optimizer.state_dict()
    del state["b.momentum"]
    with pytest.raises(UserError, match=r"the optimizer lacks 'b\.momentum': go on with the architecture and the opt"):
        optimizer.load_state_dict(state)


def test_evened_out_matrices_keep_their_variance_and_continue_bitwise() -> None:
    rates = Rates(muon=MuonOptions(variance_beta2=0.9))
    weights = {name: p for name, p in parameters().items() if name in "abcd"}
    roles = dict.fromkeys(weights, "matrix")
    optimizer = MuonAdamW(weights, roles, rates, CPU)
    step(optimizer, weights, 0)
    state = optimizer.state_dict()
    assert state["a.variance"].shape == (6, 1)
    assert state["d.variance"].shape == (1, 5)
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in weights.items()}
    resumed = MuonAdamW(copies, roles, rates, CPU)
    resumed.load_state_dict(state)
    step(optimizer, weights, 1)
    step(resumed, copies, 1)
    assert all(torch.equal(weights[name], copies[name]) for name in weights)
    del state["a.variance"]
    with pytest.raises(UserError, match=r"lacks 'a\.variance'"):
        resumed.load_state_dict(state)


def test_zero_grad_forgets_and_a_step_without_gradients_is_a_mistake_of_ours() -> None:
    weights = parameters()
    optimizer = optimizer_of(weights, CPU)
    step(optimizer, weights, 0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in weights.values())
    with pytest.raises(AssertionError, match="before backward"):
        optimizer.step()


def one_rank() -> tuple[dict[str, torch.nn.Parameter], MuonAdamW]:
    """What two ranks should come to: each step with the mean of their gradients."""
    weights = parameters()
    optimizer = optimizer_of(weights, CPU)
    for number in range(STEPS):
        step(optimizer, weights, number, 1 - 0.1 * number, ranks=2)
    return weights, optimizer


def test_two_ranks_come_to_the_weights_of_one() -> None:
    weights, _ = one_rank()
    first, second = (found["weights"] for found in results())
    for name, parameter in weights.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], parameter.detach(), atol=1e-6, rtol=0)


def test_a_state_saved_by_two_ranks_goes_on_in_one() -> None:
    weights, optimizer = one_rank()
    first, second = results()
    assert all(torch.equal(value, second["optimizer"][name]) for name, value in first["optimizer"].items())
    loaded = {name: torch.nn.Parameter(value.clone()) for name, value in first["weights"].items()}
    resumed = optimizer_of(loaded, CPU)
    resumed.load_state_dict(first["optimizer"])
    for number in (STEPS, STEPS + 1):
        step(resumed, loaded, number)
        step(optimizer, weights, number)
    for name, parameter in weights.items():
        torch.testing.assert_close(loaded[name], parameter, atol=1e-6, rtol=0)


def test_a_state_saved_by_one_rank_is_cut_for_each_of_two() -> None:
    _, optimizer = one_rank()
    state = optimizer.state_dict()
    shares = []
    for rank in range(2):
        part = optimizer_of(parameters(), Runtime(torch.device("cpu"), torch.float32, rank, 2))
        part.load_state_dict(state)
        shares.append(part)
    [equal] = [
        torch.cat([part.shares[number].state["momentum"] for part in shares])  # a, b, c and one that pads
        for number, share in enumerate(shares[0].shares)
        if share.names == ["a", "b", "c"]
    ]
    assert equal.shape == (4, 6, 4)
    assert torch.equal(equal[:3], torch.stack([state[f"{name}.momentum"] for name in "abc"]))
    [flat] = [
        torch.cat([part.shares[number].state["exp_avg"] for part in shares])
        for number, share in enumerate(shares[0].shares)
        if share.names == ["wte"]
    ]
    assert torch.equal(flat[:21].view(7, 3), state["wte.exp_avg"])
