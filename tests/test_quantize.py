"""Prepared models beside the models they are made of: the same function, up to what their format rounds."""

import math

import pytest
import torch
from tiny import CPU, random_model, tiny_model, tiny_tokenizer

from nanochat import quantize
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.gpt_config import ARCHITECTURES, GPTConfig
from nanochat.loss_eval import evaluate_loss
from nanochat.quantize import Dense, Quantized, prepare, round_to_int4, round_to_int8

SIZES = {"sequence_len": 64, "vocab_size": 97, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
SWITCHES = [*ARCHITECTURES.values(), {"window_pattern": "SL"}, {"n_kv_head": 4}]


def some_ids(rows: int, tokens: int, vocab_size: int = 97) -> torch.Tensor:
    return torch.randint(0, vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(1))


def some_matrix(outputs: int = 48, inputs: int = 64) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(2))


def quantized_parts(model: GPT) -> list[Quantized]:
    return [part for part in model.modules() if isinstance(part, Quantized)]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda given: "-".join(given) or "default")
def test_in_float32_a_prepared_model_is_the_model(switches: dict[str, object]) -> None:
    model = random_model(GPTConfig(**{**SIZES, **switches}))
    prepared = prepare(model, "float32")
    ids = some_ids(2, 40)
    with torch.inference_mode():
        torch.testing.assert_close(prepared(ids), model(ids), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            prepared.token_losses(ids[:, :-1], ids[:, 1:]), model.token_losses(ids[:, :-1], ids[:, 1:])
        )


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda given: "-".join(given) or "default")
def test_in_float32_a_prepared_model_says_what_the_model_says(switches: dict[str, object]) -> None:
    tokenizer = tiny_tokenizer()
    model = random_model(GPTConfig(**{**SIZES, "vocab_size": tokenizer.get_vocab_size(), **switches}))
    prompts = [tokenizer.encode(text) for text in ("The sky", "What is 137 * 46?", "W")]
    said = [
        Engine(each, tokenizer).generate_batch(prompts, max_tokens=12, temperature=0)
        for each in (model, prepare(model, "float32"))
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize(("weights", "off_at_most"), [("bfloat16", 0.02), ("int8", 0.02), ("int4", 0.25)])
@pytest.mark.parametrize("few_rows", [0, 1000])
def test_a_format_costs_no_more_than_its_rounding(weights: str, off_at_most: float, few_rows: int) -> None:
    model = random_model(GPTConfig(**SIZES))
    ids = some_ids(2, 40)
    with torch.inference_mode():
        right, found = model(ids), prepare(model, weights, few_rows)(ids)  # type: ignore[arg-type]
    off = (found - right).square().mean().sqrt() / right.std()
    assert 1e-4 < off < off_at_most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("form", [quantize._int8, quantize._int4])
def test_the_integer_kernels_multiply_the_rounded_values(form, rows: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    matrix = form(some_matrix(), dtype)
    x = torch.randn(1, rows, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    right = x.float() @ matrix.weight.float().T
    for few_rows in (0, rows):
        matrix.few_rows = few_rows
        found = matrix(x)
        assert (found.shape, found.dtype) == ((1, rows, 48), dtype)
        atol = 1e-4 if dtype == torch.float32 else 0.2  # 64 products of about 1, each rounded to 8 bits
        torch.testing.assert_close(found.float(), right, atol=atol, rtol=0)


def test_int8_is_off_by_half_a_step_at_most_and_keeps_zero() -> None:
    weight = some_matrix()
    weight[3] = 0
    integers, scales = round_to_int8(weight, torch.float32)
    assert integers.dtype == torch.int8
    assert ((integers * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()
    assert (integers[3] == 0).all()
    assert (integers[weight.abs().amax(1) > 0].abs().amax(1) == 127).all()


def test_int8_rounds_by_the_scale_that_is_kept() -> None:
    """Rounding by an exact scale and keeping it in bfloat16 would add 0.4 % to all values of a channel."""
    weight = some_matrix()
    integers, scales = round_to_int8(weight, torch.bfloat16)
    inside = integers.abs() < 127  # the largest may be cut off by as much as the scale was rounded down
    assert ((integers * scales.float()[:, None] - weight).abs() <= scales.float()[:, None] * 0.5001)[inside].all()


def test_int4_is_off_by_half_a_step_at_most_in_every_group() -> None:
    weight = some_matrix()
    weight[3, 32:] = 0.25
    integers, scales, zeros = round_to_int4(weight, torch.float32)
    assert scales.shape == zeros.shape == (48, 2)
    assert (integers.min(), integers.max()) == (0, 15)
    back = (integers.view(48, 2, 32) - 8) * scales.unsqueeze(2) + zeros.unsqueeze(2)
    assert ((back - weight.view(48, 2, 32)).abs() <= scales.unsqueeze(2) * 0.5001 + 1e-6).all()


def test_rows_beyond_the_few_are_multiplied_densely() -> None:
    matrix = quantize._int8(some_matrix(), torch.float32)
    assert isinstance(matrix, Quantized)
    asked = []
    kernel = matrix.kernel
    assert kernel is not None
    matrix.kernel = lambda x: (asked.append(len(x)), kernel(x))[1]  # type: ignore[func-returns-value]
    matrix.few_rows = 2
    for rows in (1, 2, 3):
        matrix(torch.ones(1, rows, 64))
    assert asked == [1, 2]


@pytest.mark.parametrize(("kernel_time", "dense_time", "few_rows"), [(1, 5, 4), (1, 100, 16), (2, 1, 0)])
def test_the_faster_kernel_is_found_by_measuring(
    monkeypatch: pytest.MonkeyPatch, kernel_time: int, dense_time: int, few_rows: int
) -> None:
    """By a clock that only the products move: the kernel by so much for each row, the dense one by so much in all."""
    now = [0.0]
    monkeypatch.setattr(quantize, "_clock", lambda device: now[0])
    model = prepare(tiny_model(), "int8", few_rows=7)
    assert {part.few_rows for part in quantized_parts(model)} == {7}
    parts = quantized_parts(model)
    for part in parts:
        part.kernel = lambda x: now.__setitem__(0, now[0] + kernel_time * len(x)) or x  # type: ignore[func-returns-value]
        part.dense.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + dense_time))
    quantize._choose_kernels(parts, None)
    assert {part.few_rows for part in parts} == {few_rows}


def test_where_torch_has_no_integer_kernel_the_same_values_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(), some_ids(1, 20)
    with torch.inference_mode():
        right = prepare(model, "int8", 0)(ids)
        monkeypatch.setattr(quantize, "_has_kernel", lambda *_: False)
        prepared = prepare(model, "int8")
        assert all(part.kernel is None for part in quantized_parts(prepared))
        torch.testing.assert_close(prepared(ids), right, atol=0, rtol=0)


def test_an_operator_that_torch_does_not_know_has_no_kernel() -> None:
    assert not quantize._has_kernel("aten::_weight_int3pack_mm", "cpu")
    assert quantize._has_kernel("aten::_weight_int8pack_mm", "cpu")
    assert not quantize._has_kernel("aten::_weight_int4pack_mm", "cpu")


def test_bfloat16_is_the_same_with_and_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = some_matrix().bfloat16()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    first = Dense(weight)
    monkeypatch.setattr(quantize, "_onednn_multiplies_bfloat16", lambda: False)
    second = Dense(weight)
    assert not second.laid_out
    torch.testing.assert_close(first(x), second(x), atol=0.1, rtol=0)
    assert torch.equal(first.weight, second.weight)


def test_the_given_model_stays_as_it_is_and_lends_its_tables() -> None:
    model = random_model(GPTConfig(**SIZES, **ARCHITECTURES["fast"]))  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare(model, "float32")
    ids = some_ids(1, 20)
    with torch.inference_mode():
        said = prepared(ids)
    assert prepared.transformer.wte is model.transformer.wte
    assert prepared.tricks is model.tricks
    assert prepared.device == model.device
    assert {name: value.clone() for name, value in model.state_dict().items()}.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for block in model.transformer.h:
            for parameter in block.parameters():
                parameter.zero_()
    with torch.inference_mode():
        assert torch.equal(prepared(ids), said)


def test_bits_per_byte_of_int8_are_those_of_bfloat16_and_int4_costs_more() -> None:
    """On text that the model itself draws, so that what rounding loses shows in full."""
    model = random_model(GPTConfig(**SIZES))
    with torch.inference_mode():
        ids = some_ids(64, 33)
        drawn = torch.distributions.Categorical(logits=model(ids[:, :-1]))
        torch.manual_seed(0)
        batches = [(ids[:, :-1], drawn.sample())]
    token_bytes = torch.full((97,), 3).numpy()
    forms = {"as it is": model}
    forms |= {weights: prepare(model, weights) for weights in ("float32", "bfloat16", "int8", "int4")}  # type: ignore[arg-type]
    model.dtype = torch.float32
    bpb = {name: evaluate_loss(form, batches, token_bytes, CPU).bpb for name, form in forms.items()}
    assert math.isclose(bpb["as it is"], bpb["float32"], rel_tol=1e-6)
    assert abs(bpb["bfloat16"] - bpb["float32"]) < 0.002 * bpb["float32"]
    assert abs(bpb["int8"] - bpb["bfloat16"]) < 0.002 * bpb["float32"]
    assert bpb["int4"] > bpb["int8"]


def test_what_a_person_may_get_wrong_is_said() -> None:
    with pytest.raises(UserError, match=r"--weights=int3 is unknown; allowed are float32, bfloat16, int8, int4"):
        prepare(tiny_model(), "int3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a matrix of 144 x 48; take --weights=int8"):
        prepare(random_model(GPTConfig(64, 97, 1, 4, 4, 48)), "int4")
