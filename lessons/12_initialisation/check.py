"""Checks of lesson 12, against the product's model and its arithmetic."""

import math

import pytest
import torch
from torch import nn

from lessons.compare import same
from lessons.learner import load
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

mine = load(12)
V, C, L, H = 300, 64, 3, 4


def product() -> GPT:
    model = GPT(GPTConfig(sequence_len=32, vocab_size=V, n_layer=L, n_head=H, n_kv_head=H, n_embd=C))
    model.init_weights(5)
    return model


def some_ids() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(V, (4, 33), generator=torch.Generator().manual_seed(2))
    return rows[:, :-1], rows[:, 1:]


def test_the_weights_have_the_names_and_shapes_of_nanochat() -> None:
    expected = {name: tuple(weight.shape) for name, weight in product().named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in mine.GPT(V, C, L, H).named_parameters()}
    more = sorted(set(found) - set(expected))
    assert not more, f"weights that should not be there (a bias?): {more[:4]}"
    missing = sorted(set(expected) - set(found))
    assert not missing, f"weights that are missing: {missing[:4]}"
    wrong = {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}
    assert not wrong, f"shapes (yours, expected): {wrong}"


def test_forward_computes_what_nanochat_computes() -> None:
    model, (ids, targets) = mine.GPT(V, C, L, H), some_ids()
    theirs = product()
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.05)
    model.load_state_dict(theirs.state_dict())
    same(model(ids), theirs(ids), "the logits", tolerance=1e-4)
    same(model(ids, targets), theirs(ids, targets), "the loss", tolerance=1e-4)


@pytest.mark.parametrize(("vocab_size", "width", "layers"), [(300, 64, 3), (65_536, 1280, 20), (4096, 256, 4)])
def test_the_parameters_are_counted_on_paper(vocab_size: int, width: int, layers: int) -> None:
    config = GPTConfig(vocab_size=vocab_size, n_layer=layers, n_head=2, n_kv_head=2, n_embd=width)
    found = mine.parameter_count(vocab_size, width, layers)
    assert found == config.num_params, f"V {vocab_size:,}, C {width:,}, {layers} layers: {found:,} is not the count"


def initialised(seed: int = 1) -> dict[str, torch.Tensor]:
    model = mine.GPT(V, C, L, H)
    mine.init_weights(model, seed)
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_projections_into_the_stream_start_at_zero_and_nothing_else_does() -> None:
    for name, weight in initialised().items():
        zero = not weight.any()
        if name.endswith("c_proj.weight"):
            assert zero, f"{name} must be zero"
        else:
            assert not zero, f"{name} must not be zero"


def test_the_deviations_are_those_that_were_asked_for() -> None:
    for name, weight in initialised().items():
        expected = {"transformer.wte.weight": 1.0, "lm_head.weight": 0.001}.get(name, 1 / math.sqrt(C))
        if name.endswith("c_proj.weight"):
            continue
        found = float(weight.std())
        assert found == pytest.approx(expected, rel=0.05), f"{name} has deviation {found:.4g}, expected {expected:.4g}"
        assert abs(float(weight.mean())) < 0.1 * expected, f"{name} is not centred at zero"
        if ".h." in name:
            bound = math.sqrt(3 / C)
            assert weight.abs().max() <= bound, f"{name} goes beyond {bound:.4g}: it must be uniform, not normal"


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = initialised(1)
    elsewhere = torch.get_rng_state()
    again, other = initialised(1), initialised(2)
    untouched = torch.equal(elsewhere, torch.get_rng_state())
    assert untouched, (
        "init_weights seeds or uses the generator of all: others draw from it too, so make one of your own"
    )
    for name in first:
        assert torch.equal(first[name], again[name]), f"{name} depends on more than its seed: pass a generator"
        if first[name].any():
            assert not torch.equal(first[name], other[name]), f"{name} is the same for seeds 1 and 2"
    assert not torch.equal(first["transformer.h.0.attn.c_q.weight"], first["transformer.h.0.attn.c_k.weight"]), (
        "c_q and c_k are equal: do not seed anew for every weight"
    )


def test_forgotten_finds_what_an_initialisation_leaves_out() -> None:
    def forgets(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name == "transformer.h.1.mlp.c_fc.weight":
                parameter.data[1:] = 0.0  # all but a row
            elif name != "lm_head.weight":
                parameter.data.zero_()

    found = mine.forgotten(mine.GPT(V, C, L, H), forgets)
    assert sorted(found) == ["lm_head.weight", "transformer.h.1.mlp.c_fc.weight"], f"forgotten finds {found}"
    found = mine.forgotten(mine.GPT(V, C, L, H), lambda model: mine.init_weights(model, 1))
    assert found == [], f"your init_weights forgets {found}"


def test_on_the_meta_device_a_model_has_shapes_and_no_values() -> None:
    with torch.device("meta"):
        model = mine.GPT(65_536, 1280, 20, 10)
    assert all(weight.is_meta for weight in model.parameters()), "a weight is not on the meta device"


def test_build_makes_the_model_on_meta_and_fills_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Watched(mine.GPT):  # type: ignore[misc, name-defined]
        def __init__(self, *given: int, **named: int):
            super().__init__(*given, **named)
            made.append(all(weight.is_meta for weight in self.parameters()))

    monkeypatch.setattr(mine, "GPT", Watched)
    model = mine.build(V, C, L, H, seed=1)
    assert made, "build must make its model by GPT(...)"
    assert all(made), "the constructor took memory of its own: call it with the meta device"
    for name, weight in model.named_parameters():
        assert weight.device.type == "cpu", f"{name} is on {weight.device}: to_empty gives a model memory on a device"
        assert torch.equal(weight, initialised(1)[name]), f"{name} has not the values of init_weights with that seed"
        assert weight.requires_grad, f"{name} does not want a gradient"


def test_a_fresh_model_knows_nothing_and_says_so() -> None:
    loss = mine.build(V, C, L, H, seed=1)(*some_ids()).item()
    assert loss == pytest.approx(math.log(V), abs=0.01), f"the first loss is {loss:.3f}, and ln {V} = {math.log(V):.3f}"


def test_every_layer_starts_as_nothing() -> None:
    model = mine.build(V, C, L, H, seed=1)
    x = torch.randn(2, 5, C, generator=torch.Generator().manual_seed(1))
    for layer in range(L):
        same(load(10).block(dict(model.named_parameters()), layer, x, H), x, f"the stream after layer {layer}")
