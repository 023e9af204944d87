"""The average of the last weights: the plain mean, put to use and taken back, stored and gone on with."""

import pytest
import torch
from tiny import CPU

from nanochat.averaging import TailAverage
from nanochat.command import UserError
from nanochat.optim import MuonAdamW, Rates


def drift(parameters: dict[str, torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def fresh() -> dict[str, torch.nn.Parameter]:
    return {"a": torch.nn.Parameter(torch.zeros(3, 2)), "b": torch.nn.Parameter(torch.ones(4))}


def test_it_is_the_mean_of_what_was_added_and_goes_again() -> None:
    parameters, seen = fresh(), []
    average = TailAverage(parameters)
    with average.applied():
        assert torch.equal(parameters["b"], torch.ones(4))  # nothing was added: nothing changes
    for step in range(7):
        drift(parameters, step)
        if step >= 2:
            average.add()
            seen.append({name: p.detach().clone() for name, p in parameters.items()})
    with average.applied():
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.detach(), torch.stack([one[name] for one in seen]).mean(0))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, seen[-1][name])


def test_it_is_kept_beside_the_optimizers_state() -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(3, 2))}
    optimizer, resumed = (MuonAdamW(parameters, {"a": "matrix"}, Rates(), CPU) for _ in range(2))
    assert "averaged" not in optimizer.state_dict()
    drift(parameters, 1)
    optimizer.average.add()
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.average.count == 1
    assert torch.equal(resumed.average.means["a"], parameters["a"])
    resumed.load_state_dict(MuonAdamW(parameters, {"a": "matrix"}, Rates(), CPU).state_dict())
    assert resumed.average.state_dict() == {}


def test_weights_come_back_when_what_is_done_with_the_mean_fails() -> None:
    parameters = fresh()
    average = TailAverage(parameters)
    average.add()
    drift(parameters, 1)
    before = parameters["a"].detach().clone()
    with pytest.raises(RuntimeError, match="out of luck"), average.applied():
        raise RuntimeError("out of luck")
    assert torch.equal(parameters["a"], before)


def test_a_stored_average_goes_on_bitwise() -> None:
    parameters = fresh()
    average, resumed = TailAverage(parameters), TailAverage(parameters)
    resumed.load_state_dict(average.state_dict())
    assert resumed.count == 0
    for step in range(3):
        drift(parameters, step)
        average.add()
    state = average.state_dict()
    resumed.load_state_dict(state)
    drift(parameters, 3)
    average.add()
    resumed.add()
    for name in parameters:
        assert torch.equal(average.means[name], resumed.means[name])
        assert not torch.equal(average.means[name], state[f"{name}.average"])
    with average.applied():
        mean = parameters["a"].detach().clone()
    average.settle()
    assert torch.equal(parameters["a"], mean)
    assert average.state_dict() == {}
    del state["b.average"]
    with pytest.raises(UserError, match="the stored average lacks 'b'"):
        resumed.load_state_dict(state)
