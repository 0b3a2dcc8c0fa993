"""Linear layers in float8."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import Loaded
from test_hf_engine import prompts_of, small

from jlm_cli.errors import ModelError
from jlm_cli.hf import float8, kernels
from jlm_cli.hf.float8 import Float8Linear, to_float8, use_float8
from jlm_cli.hf.layers import fuse, use_onednn


def test_rows_keep_their_size_to_three_bits() -> None:
    """Each by its own scale; zeros stay zeros."""
    rows = torch.randn(5, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rows *= torch.tensor([1e-3, 1, 100, 0, 1e4])[:, None]
    found, scales = to_float8(rows)
    back = found.float() * scales
    assert scales.shape == (5, 1) and not back[3].any()
    assert ((back - rows.float()).abs() <= rows.float().abs() / 16 + scales * 2**-10).all()
    assert torch.equal(back.abs().amax(1), rows.float().abs().amax(1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 7, 64), (1, 1, 64), (2, 3, 64)])
def test_a_layer_is_near_the_whole_one(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    whole = torch.nn.Linear(64, 48, bias=bias).to(torch.bfloat16)
    states = torch.randn(shape).to(torch.bfloat16)
    with torch.inference_mode():
        wanted, found = whole(states), Float8Linear(whole, to_float8)(states)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert (found - wanted).float().norm() <= 0.06 * wanted.float().norm()


@pytest.mark.parametrize("joins, n_layers", [(False, 7), (True, 4)])
def test_joined_layers_are_narrowed_once(
    builtin: Loaded, monkeypatch: pytest.MonkeyPatch, joins: bool, n_layers: int
) -> None:
    """Queries, keys and values, what they bring, both gates, and what these bring, in one pass with
    the gating. The head stays whole."""
    n_narrowed = 0

    def counted(rows: torch.Tensor) -> Any:
        nonlocal n_narrowed
        n_narrowed += 1
        return to_float8(rows)

    def gated(gate: torch.Tensor, up: torch.Tensor) -> Any:
        return counted(torch.nn.functional.silu(gate.float()) * up.float())

    monkeypatch.setattr(float8, "_kernel", lambda _: counted)
    monkeypatch.setattr(float8, "_gated", gated)
    plain: Any = copy.deepcopy(builtin.model).to(torch.bfloat16)
    model: Any = copy.deepcopy(plain)
    if joins:  # as on a GPU
        monkeypatch.setattr(kernels, "are_usable", lambda _: True)
        monkeypatch.setattr(
            kernels, "silu_times", lambda gate, up: torch.nn.functional.silu(gate) * up
        )
    fuse(model)
    use_float8(model)
    layers = [one for one in model.modules() if isinstance(one, Float8Linear)]
    assert len(layers) == n_layers * len(model.model.layers)
    assert not isinstance(model.lm_head, Float8Linear)
    ids = torch.tensor(builtin.vocabulary.encode(["Which answer is better?"])[0].ids)[None]
    n_narrowed = 0
    with torch.inference_mode():
        found, wanted = (one(ids).logits.float().log_softmax(-1) for one in (model, plain))
    assert n_narrowed == n_layers * len(model.model.layers)
    assert 0 < (found - wanted).norm() <= 0.2 * wanted.norm()


def test_a_model_without_such_layers_is_refused() -> None:
    """GPT-2's are no linear layers; others can have odd widths."""
    small = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99)
    model: Any = transformers.GPT2LMHeadModel(small)
    with pytest.raises(
        ModelError, match="--quantize fp8: this model has no linear layer that float8"
    ):
        use_float8(model)


def test_a_model_that_would_be_another_one_is_refused(
    builtin: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a wrong kernel, or one that does not compile."""

    def fails(_: torch.Tensor) -> Any:
        raise RuntimeError("Failed to find C compiler")

    def wrong(rows: torch.Tensor) -> Any:
        found, scales = to_float8(rows)
        return found, scales * float("nan")

    for kernel, said in ((fails, "Failed to find C compiler"), (wrong, "changes too much of what")):
        monkeypatch.setattr(float8, "_kernel", lambda _, kernel=kernel: kernel)
        model: Any = copy.deepcopy(builtin.model).to(torch.bfloat16)
        with pytest.raises(ModelError, match=f"--quantize fp8: .*{said}"):
            use_float8(model)


def test_weights_that_were_replaced_go() -> None:
    """Also where accelerate has hooked in, for a model on several GPUs."""
    model: Any = small("Llama", hidden_size=64, head_dim=32).to(torch.bfloat16)
    for module in list(model.modules()):
        if isinstance(module, torch.nn.Linear):
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    layers = [one for one in model.model.modules() if isinstance(one, torch.nn.Linear)]
    seen, n_layers = [weakref.ref(one.weight) for one in layers], len(layers)
    del layers, module
    use_float8(model)
    narrow = [one for one in model.modules() if isinstance(one, Float8Linear)]
    assert len(narrow) == n_layers and all(hasattr(one, "_hf_hook") for one in narrow)
    assert not any(one() is not None for one in seen)


def test_weights_that_were_joined_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from under accelerate's hooks, and with no look for garbage."""
    monkeypatch.setattr(kernels, "are_usable", lambda _: True)
    monkeypatch.setattr(kernels, "silu_times", lambda gate, up: torch.nn.functional.silu(gate) * up)
    model: Any = small("Llama", hidden_size=64, head_dim=32).to(torch.bfloat16)
    for module in list(model.modules()):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    joined = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    seen = [
        weakref.ref(one.weight)
        for name, one in model.named_modules()
        if name.rpartition(".")[2] in joined
    ]
    del module
    gc.disable()
    try:
        fuse(model)
        assert len(seen) == 5 * len(model.model.layers)
        assert not any(one() is not None for one in seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("prepare", [use_onednn, use_float8])
def test_weights_that_a_model_takes_itself_stay(prepare: Any, released: Loaded) -> None:
    """As Mamba takes those of one layer, without calling it."""
    model: Any = small("Mamba", hidden_size=256).to(torch.bfloat16)
    ids = torch.tensor([prompts_of(released)[0]])
    with torch.inference_mode():
        wanted = model(ids).logits.float().log_softmax(-1)
        prepare(model)
        found = model(ids).logits.float().log_softmax(-1)
    assert type(model.backbone.layers[0].mixer.dt_proj) is torch.nn.Linear
    assert (found - wanted).norm() <= 0.1 * wanted.norm()
