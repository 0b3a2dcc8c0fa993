"""Attention by products against torch's fused kernel."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from jlm_cli.hf import attention
from jlm_cli.hf.attention import AttentionSpec, by_products, fused, kernel_for


def tensors(tokens: int, seen: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six heads that share two groups of keys."""
    seed = torch.Generator().manual_seed(tokens)
    query = torch.randn(1, 6, tokens, 16, generator=seed)
    key, value = torch.randn(2, 1, 2, seen, 16, generator=seed).unbind()
    return query, key, value


@pytest.mark.parametrize("start", [0, 5, 32, 100])
@pytest.mark.parametrize("tokens", [1, 7, 127, 128, 129, 300])
def test_causal_products_equal_the_fused_kernel(tokens: int, start: int) -> None:
    for spare in (0, 9, 70):  # places behind the last query
        query, key, value = tensors(tokens, start + tokens + spare)
        for spec in (AttentionSpec(), AttentionSpec(0.3)):
            ours = by_products.causal(query, key, value, start, spec)
            difference = ours - fused.causal(query, key, value, start, spec)
            assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("window", [1, 8, 100, 513])
@pytest.mark.parametrize("start", [0, 5, 100])
@pytest.mark.parametrize("tokens", [1, 127, 600])
def test_windows(tokens: int, start: int, window: int) -> None:
    """Of either kernel, against a mask of all places; capped scores against their formula."""
    query, key, value = tensors(tokens, start + tokens + 9)
    ago = torch.arange(start, start + tokens)[:, None] - torch.arange(start + tokens + 9)
    sees = torch.where((ago >= 0) & (ago < window), 0.0, float("-inf"))
    for kernel, cap in ((fused, None), (by_products, None), (by_products, 2.0)):
        found = kernel.causal(query, key, value, start, AttentionSpec(0.3, cap, window))
        scores = 0.3 * query @ key.repeat_interleave(3, 1).transpose(2, 3)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        wanted = (scores + sees).softmax(-1) @ value.repeat_interleave(3, 1)
        assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("window", [8, 64])
def test_products_see_what_a_model_sees(window: int) -> None:
    """In training on CPUs: caps and windows of Gemma 2 are part of the model."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=window,
        attn_logit_softcapping=1.5, query_pre_attn_scalar=1,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).train(False)
    model.set_attn_implementation("eager")
    for part in model.parameters():
        torch.nn.init.normal_(part, std=0.4)
    ids, seen = torch.randint(0, 64, (2, 40)), torch.ones(2, 40, dtype=torch.int64)
    seen[1, :9] = 0
    with torch.no_grad():
        wanted = model(ids, attention_mask=seen).logits
        model.set_attn_implementation(attention.PRODUCTS)
        found = model(ids, attention_mask=seen).logits
    assert (found - wanted)[seen.bool()].abs().max() < 1e-4 * wanted.abs().max()


def test_masked_products_equal_the_fused_kernel() -> None:
    query, key, value = tensors(20, 90)
    sees = torch.zeros(20, 90).masked_fill(torch.ones(20, 90).triu(71).bool(), float("-inf"))
    ours = by_products.masked(query, key, value, sees, AttentionSpec())
    assert (ours - fused.masked(query, key, value, sees, AttentionSpec())).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_of_many_rows(dtype: torch.dtype) -> None:
    """Whose heads share keys."""
    seed = torch.Generator().manual_seed(0)
    query = torch.randn(3, 6, 11, 16, generator=seed)
    key, value = torch.randn(2, 3, 2, 48, 16, generator=seed).unbind()
    hidden = torch.rand(3, 1, 11, 48, generator=seed) < 0.5
    sees = torch.zeros(3, 1, 11, 48).masked_fill(hidden, float("-inf"))
    keys, values = (one.repeat_interleave(3, 1) for one in (key, value))
    wanted = (query @ keys.transpose(2, 3) / 4 + sees).softmax(-1) @ values
    query, key, value, sees = (one.to(dtype) for one in (query, key, value, sees))
    for kernel in (by_products, fused):
        found = kernel.masked(query, key, value, sees, AttentionSpec()).float()
        assert (found - wanted).norm() < (1e-6 if dtype == torch.float32 else 0.01) * wanted.norm()


def test_their_gradients_are_equal() -> None:
    found = []
    for kernel in (by_products, fused):
        query, key, value = (one.requires_grad_() for one in tensors(150, 150))
        loss = kernel.causal(query, key, value, 0, AttentionSpec()).square().sum()
        found.append(torch.autograd.grad(loss, (query, key, value)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_bfloat16_stays_near_float32() -> None:
    query, key, value = (one.to(torch.bfloat16) for one in tensors(200, 200))
    found = by_products.causal(query, key, value, 0, AttentionSpec()).float()
    wanted = fused.causal(query.float(), key.float(), value.float(), 0, AttentionSpec())
    assert (found - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("start", [0, 5, 100])
@pytest.mark.parametrize("spare", [0, 9, 70])
def test_the_fused_kernel_in_bfloat16(start: int, spare: int) -> None:
    """Which on CPUs is shown more places than there are tokens, and must not see them."""
    query, key, value = tensors(90, start + 90 + spare)
    key[:, :, start + 90 :] = 9.0
    wanted = by_products.causal(query, key, value, start, AttentionSpec())
    query, key, value = (one.to(torch.bfloat16) for one in (query, key, value))
    found = fused.causal(query, key, value, start, AttentionSpec()).float()
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_which_kernel_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for amx in (True, False):
        monkeypatch.setattr(attention, "has_amx", lambda amx=amx: amx)
        assert kernel_for(cpu, torch.bfloat16, AttentionSpec()) is (fused if amx else by_products)
        assert kernel_for(cpu, torch.float32, AttentionSpec()) is fused
        assert kernel_for(cpu, torch.float32, AttentionSpec(cap=30.0)) is by_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_another_size_than_keys(dtype: torch.dtype) -> None:
    query, key, value = tensors(40, 64)
    query, key, value = query.to(dtype), key.to(dtype), value[..., :8].to(dtype)
    sees = torch.zeros(1, 1, 40, 64, dtype=dtype)
    wanted = fused.causal(query.float(), key.float(), value.float(), 0, AttentionSpec())
    assert wanted.shape == (1, 6, 40, 8)
    for kernel in (by_products, fused):
        assert kernel.masked(query, key, value, sees, AttentionSpec()).shape == wanted.shape
        found = kernel.causal(query, key, value, 0, AttentionSpec()).float()
        assert (found - wanted).norm() < 0.01 * wanted.norm()
