"""Causal attention: our backward beside torch's in float64."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nanochat import attention
from nanochat.gpt import GPT
from nanochat.gpt_config import config_for_depth


def qkv(tokens: int, dtype: torch.dtype, heads: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    drawn = [F.rms_norm(torch.randn(2, heads, tokens, 64, generator=generator), (64,)) for _ in range(3)]
    return [x.to(dtype).requires_grad_() for x in drawn]


def gradients(tensors: list[torch.Tensor], y: torch.Tensor) -> list[torch.Tensor]:
    along = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, along)]


@pytest.mark.parametrize("tokens", [256, 300, 512, 700])
def test_gradients_in_bfloat16_are_as_near_to_float64_as_torchs(tokens):
    tensors = qkv(tokens, torch.bfloat16)
    y = attention.attend(*tensors, None, causal=True)
    assert "CausalAttention" in type(y.grad_fn).__name__
    ours = gradients(tensors, y)
    theirs = gradients(tensors, F.scaled_dot_product_attention(*tensors, is_causal=True))
    wide = [x.detach().double().requires_grad_() for x in tensors]
    exact = gradients(wide, F.scaled_dot_product_attention(*wide, is_causal=True))
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        error, allowed = ((x.double() - true).norm() / true.norm() for x in (mine, other))
        assert error < 2.5 * allowed < 0.02


def test_the_largest_scores_do_not_overflow():
    """Queries that equal their keys have scores of sqrt(D)."""
    drawn = torch.randn(1, 1, 1, 128, generator=torch.Generator().manual_seed(3))
    same = F.rms_norm(drawn, (128,)).expand(1, 2, 512, 128).bfloat16()
    tensors = [same.clone().requires_grad_() for _ in range(3)]
    found = gradients(tensors, attention.attend(*tensors, None, causal=True))
    expected = gradients(tensors, F.scaled_dot_product_attention(*tensors, is_causal=True))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(("tokens", "dtype"), [(64, torch.bfloat16), (512, torch.float32)])
def test_short_rows_and_float32_are_torchs(tokens, dtype):
    tensors = qkv(tokens, dtype)
    y = attention.attend(*tensors, None, causal=True)
    assert "CausalAttention" not in type(y.grad_fn).__name__
    assert torch.equal(y, F.scaled_dot_product_attention(*tensors, is_causal=True))


def test_compiled_the_blocks_are_one_operator_with_the_same_gradients():
    from functorch.compile import nop
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def noted(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.code)
        return nop(graph, inputs)

    tensors = qkv(512, torch.bfloat16)
    compiled = torch.compile(attention.attend, backend=aot_autograd(fw_compiler=nop, bw_compiler=noted))
    found = gradients(tensors, compiled(*tensors, None, causal=True))
    assert [graph.count("nanochat.causal_attention_backward") for graph in graphs] == [1]
    for one, other in zip(found, gradients(tensors, attention.attend(*tensors, None, causal=True)), strict=True):
        assert torch.equal(one, other)


def test_without_compilation_nothing_of_the_compiler_is_imported():
    program = (
        "import sys, torch\nfrom nanochat.attention import attend\n"
        "q = torch.ones(1, 1, 256, 32, dtype=torch.bfloat16, requires_grad=True)\n"
        "attend(q, q, q, None, causal=True).sum().backward()\n"
        "print(q.grad is not None, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_model_in_bfloat16_has_the_gradients_of_float32():
    config = config_for_depth(2, vocab_size=300, sequence_len=256)
    idx = torch.randint(300, (2, 257), generator=torch.Generator().manual_seed(1))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        model = GPT(config, dtype)
        model.init_weights(1)
        with torch.no_grad():
            for block in model.transformer.h:
                block.attn.c_proj.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
        model(idx[:, :-1], idx[:, 1:]).backward()
        found.append(model.transformer.h[0].attn.c_k.weight.grad)
    assert (found[0] - found[1]).norm() < 0.03 * found[1].norm()
