"""Loss and bits per byte against the plainest computation that there is."""

import math

import numpy
import pytest
import torch
from tiny import CPU, tiny_model, tiny_tokenizer
from two_ranks import batches, results

from nanochat.gpt import GPT
from nanochat.loss_eval import LossResult, evaluate_loss
from nanochat.training import Batch

LENGTHS = numpy.array(tiny_tokenizer().token_bytes())
BOS = tiny_tokenizer().get_bos_token_id()


@torch.no_grad()
def plain(model: GPT, given: list[Batch]) -> LossResult:
    """Token by token."""
    nats = text_nats = 0.0
    count = size = 0
    for inputs, targets in given:
        for row, wanted in zip(inputs, targets.tolist(), strict=True):
            log_probabilities = model(row.unsqueeze(0))[0].double().log_softmax(-1)
            for position, target in enumerate(wanted):
                if target == -1:
                    continue
                loss = -float(log_probabilities[position, target])
                nats, count = nats + loss, count + 1
                if LENGTHS[target] > 0:
                    text_nats, size = text_nats + loss, size + int(LENGTHS[target])
    return LossResult(nats / count, text_nats / math.log(2) / size, count)


def with_specials() -> list[Batch]:
    """Control tokens among the targets, of no bytes; and tokens that are not counted."""
    given = batches(0) + batches(1)
    for inputs, targets in given:
        targets[1, 2:5] = inputs[1, 3:6] = BOS
    return given


def test_loss_and_bits_per_byte_are_those_of_a_plain_computation() -> None:
    """Control tokens count in the loss; in bits per byte neither their nats nor their bytes, which are none."""
    model = tiny_model(n_layer=1)
    found, expected = evaluate_loss(model, with_specials(), LENGTHS, CPU), plain(model, with_specials())
    assert found.tokens == expected.tokens
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.bpb == pytest.approx(expected.bpb, rel=1e-6)


def test_a_model_that_knows_nothing_needs_the_bits_of_an_even_guess() -> None:
    model = tiny_model(n_layer=1)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    ids = torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(1))  # of one byte each
    found = evaluate_loss(model, [(ids[:, :-1], ids[:, 1:])], LENGTHS, CPU)
    assert found.loss == pytest.approx(math.log(300), rel=1e-6)
    assert found.bpb == pytest.approx(math.log2(300), rel=1e-6)


def test_where_nothing_is_counted_there_is_no_number_and_no_error() -> None:
    model = tiny_model(n_layer=1)
    inputs = torch.zeros(2, 8, dtype=torch.long)
    for given in ([], [(inputs, torch.full((2, 8), -1))]):
        found = evaluate_loss(model, given, LENGTHS, CPU)
        assert (found.tokens, math.isnan(found.loss), math.isnan(found.bpb)) == (0, True, True)
    specials = evaluate_loss(model, [(inputs, torch.full((2, 8), BOS))], LENGTHS, CPU)
    assert (specials.tokens, math.isfinite(specials.loss), math.isnan(specials.bpb)) == (16, True, True)


def test_progress_is_told_per_batch_and_the_models_mode_is_left_as_it_was() -> None:
    model, told = tiny_model(n_layer=1), []
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    for training in (True, False):
        model.train(training)
        evaluate_loss(model, batches(0), LENGTHS, CPU, on_progress=lambda: told.append(1))
        assert model.training == training
    assert len(told) == 4
    assert all(p.grad is None for p in model.parameters())


def test_two_ranks_measure_what_one_does() -> None:
    """Though one has two batches and the other one."""
    expected = evaluate_loss(tiny_model(n_layer=1), batches(0) + batches(1)[:1], LENGTHS, CPU)
    for found in results():
        assert found["evaluated"].tokens == expected.tokens
        assert found["evaluated"].loss == pytest.approx(expected.loss, rel=1e-6)
        assert found["evaluated"].bpb == pytest.approx(expected.bpb, rel=1e-6)
