"""Faster layers: the same numbers, and only where they are the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from accelerate import dispatch_model
from conftest import Loaded
from torch.nn import GELU, Linear, Module, Parameter, RMSNorm, SiLU

from jlm_cli.hf.layers import CpuNorm, OneDnnGated, OneDnnLinear, fuse, is_supported, use_onednn
from jlm_cli.hf.trial import make_engine
from jlm_cli.hf_engine import PackedEngine

SUPPORTED = is_supported()


def count(model: Module, kind: type[Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_a_judge_says_the_same_and_is_no_further_from_float32(builtin: Loaded) -> None:
    exact = builtin.model
    plain = copy.deepcopy(exact).to(torch.bfloat16)
    laid = copy.deepcopy(plain)
    use_onednn(laid)
    layers = exact.config.num_hidden_layers
    assert count(laid, CpuNorm) == 2 * layers + 1
    layers = layers if SUPPORTED else 0
    assert (count(laid, OneDnnGated), count(laid, OneDnnLinear)) == (layers, 7 * layers)
    assert isinstance(laid.get_output_embeddings(), Linear)
    ids = torch.tensor(builtin.vocabulary.encode(["Which answer is better? " * 9])[0].ids)[None]
    with torch.inference_mode():
        wanted, before, after = (
            model(ids).logits.float().log_softmax(-1) for model in (exact, plain, laid)
        )
    assert (after - wanted).norm() <= 1.2 * (before - wanted).norm()
    assert isinstance(make_engine(laid, builtin.vocabulary), PackedEngine)


def test_layers_of_float32_stay_in_their_order(released: Loaded) -> None:
    model = copy.deepcopy(released.model).float()
    use_onednn(model)
    assert count(model, OneDnnLinear) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("replace, kind", [(fuse, RMSNorm), (use_onednn, CpuNorm)])
def test_norms_are_fused_in_any_format(
    released: Loaded, dtype: torch.dtype, replace: Callable[..., None], kind: type[RMSNorm]
) -> None:
    plain = copy.deepcopy(released.model).to(dtype)
    fused = copy.deepcopy(plain)
    replace(fused)
    assert count(fused, kind) == 2 * plain.config.num_hidden_layers + 1
    assert replace is use_onednn or count(fused, OneDnnLinear) == 0
    ids = torch.tensor(released.vocabulary.encode(["Which answer is better? " * 9])[0].ids)[None]
    with torch.inference_mode():
        exact, before, after = (
            model(ids).logits.float().log_softmax(-1) for model in (released.model, plain, fused)
        )
    assert (after - exact).norm() <= 1.2 * (before - exact).norm() + 1e-6 * exact.norm()


def test_a_norm_of_a_model_over_several_devices_still_fetches_its_states(released: Loaded) -> None:
    model = copy.deepcopy(released.model)
    dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    hook = model.model.norm._hf_hook
    fuse(model)
    assert isinstance(model.model.norm, RMSNorm) and model.model.norm._hf_hook is hook


class Mlp(Module):
    """A gated layer as models write it, with another activation or a factor in some."""

    def __init__(self, act: Module, factor: float = 1.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(64, 96), Linear(64, 96, bias=False)
        self.down_proj, self.act_fn, self.factor = Linear(96, 64, bias=False), act, factor

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.act_fn(self.gate_proj(states) * self.factor)
        out: torch.Tensor = self.down_proj(gate * self.up_proj(states))
        return out


class PlainRMSNorm(Module):
    """As models write it; some add one to their weights."""

    def __init__(self, more: float = 0.0) -> None:
        super().__init__()
        self.weight, self.more, self.variance_epsilon = Parameter(torch.rand(64)), more, 1e-5

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        exact = states.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.more) * exact.to(states.dtype)


class Model(Module):
    """The little that is asked of a model."""

    dtype, device = torch.bfloat16, torch.device("cpu")

    def __init__(self, part: Module) -> None:
        super().__init__()
        self.part, self.head = part.to(torch.bfloat16), Linear(64, 64).to(torch.bfloat16)

    def forward(self, ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        states = torch.ones(*ids.shape, 64, dtype=torch.bfloat16)
        return self.head(self.part(states))  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> Module:
        return self.head


@pytest.mark.parametrize(
    "part, faster",
    [
        (Mlp(SiLU()), OneDnnGated),
        (Mlp(GELU()), None),
        (Mlp(SiLU(), 1.5), None),
        (PlainRMSNorm(), CpuNorm),
        (PlainRMSNorm(more=1.0), None),
    ],
)
def test_only_a_layer_that_is_nothing_more_is_replaced(
    part: Module, faster: type[Module] | None
) -> None:
    model = Model(copy.deepcopy(part))
    states = torch.randn(1, 40, 64).to(torch.bfloat16)
    with torch.inference_mode():
        before = model.part(states).float()
        use_onednn(model)  # type: ignore[arg-type]
        after = model.part(states).float()
    works = SUPPORTED or faster is CpuNorm
    assert type(model.part) is (faster if faster and works else type(part))
    assert count(model, OneDnnLinear) == (3 * SUPPORTED if isinstance(part, Mlp) else 0)
    assert (after - before).norm() <= 0.01 * before.norm()
