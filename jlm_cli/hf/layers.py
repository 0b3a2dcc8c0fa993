"""Faster layers. A layer that would give anything but what it gave before stays.

The norms of transformers pass over their states six times. On GPUs they become torch's own, which
do so once, and layers of the same states one product (joint.py). On CPUs norms take half as many,
and where bfloat16 is multiplied natively, linear layers go as oneDNN takes them: their weights laid
out once in its own order, the gate of a gated layer applied within the products.
torch's compiler writes these calls of oneDNN, which have no public name yet.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import torch
from accelerate.hooks import add_hook_to_module
from torch.nn import Linear, Module, Parameter, RMSNorm, SiLU, functional
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from jlm_cli.hf import kernels
from jlm_cli.hf.joint import JointGated, join_attention, unhook

_TOKENS = 2048  # in a pass, about: the order is chosen for it
_ROUNDING = {2: 0.01, 4: 1e-5}  # of the norm, by bytes; bfloat16 alone is off by a third of it


class OneDnnLinear(Module):
    """A linear layer of bfloat16 states [..., size], its weights laid out in oneDNN's order."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.laid = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TOKENS)
        self.bias = linear.bias
        self.weight = linear.weight.detach().to("meta")  # some models look at its dtype

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._product(states, "none")

    def swished(self, states: torch.Tensor) -> torch.Tensor:
        return self._product(states, "swish")

    def times(self, states: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            states, factor, self.laid, self.bias, "mul"
        )
        return out

    def _product(self, states: torch.Tensor, then: str) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.laid, self.bias, then, [], ""
        )
        return out


class OneDnnGated(Module):
    """down(silu(gate(x)) · up(x))"""

    def __init__(self, mlp: Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = (OneDnnLinear(getattr(mlp, name)) for name in _GATED)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.down(self.up.times(states, self.gate.swished(states)))  # type: ignore[no-any-return]


class CpuNorm(RMSNorm):
    """Of states [..., size], with float32 sums. torch's own takes as many passes on a CPU as that
    of transformers; what is fused there is the batch norm, of which each token is a channel here.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        size = states.shape[-1]
        tokens = states.reshape(1, -1, size)
        norms = torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32)[0]
        squares = norms.square_().div_(size)
        assert self.eps is not None
        out = functional.batch_norm(tokens, torch.zeros_like(squares), squares, eps=self.eps)
        return out.mul_(self.weight).view(states.shape)


_GATED = ("gate_proj", "up_proj", "down_proj")


def use_onednn(model: PreTrainedModel) -> None:
    """For a model on a CPU."""
    in_order = model.dtype == torch.bfloat16 and is_supported()
    replace_layers(model, _if_it_works(_onednn if in_order else _normed))


def fuse(model: PreTrainedModel) -> None:
    """For a model on GPUs. By the bytes that they move, norms would else take a seventh of the time
    that all products take."""
    joins = kernels.are_usable(model.device) and model.dtype == torch.bfloat16
    replace_layers(model, _if_it_works(_joined if joins else _fused))


def is_supported() -> bool:
    """Whether torch was built with oneDNN, and it multiplies bfloat16 on this processor."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


Replacing: TypeAlias = Callable[[Module, torch.dtype], Module | None]


def replace_layers(model: PreTrainedModel, replacing: Replacing) -> None:
    """All but the head, which sees few tokens and often has the weights of the input; and but those
    that a model does not call, as Mamba takes the weights of some, or calls in another format."""
    with torch.inference_mode():
        called = _called(model)
        called.discard(model.get_output_embeddings())  # type: ignore[no-untyped-call]
        _replace_below(model, model.dtype, replacing, called)


def _replace_below(
    parent: Module, dtype: torch.dtype, replacing: Replacing, called: set[Module]
) -> None:
    for name, child in list(parent.named_children()):
        found = replacing(child, dtype) if called.issuperset(_weighted(child)) else None
        if found is None:
            _replace_below(child, dtype, replacing, called)
            continue
        hook = getattr(child, "_hf_hook", None)  # takes its states from another GPU
        for part in child.modules():
            unhook(part)
        if hook is not None:
            add_hook_to_module(found, hook)
        setattr(parent, name, found)


def _called(model: PreTrainedModel) -> set[Module]:
    """What a short pass calls with states in the format of its weights; nothing where a model wants
    more than tokens."""
    called: set[Module] = set()

    def hear(part: Module, given: tuple[torch.Tensor, ...]) -> None:
        if given and given[0].dtype == part.weight.dtype:
            called.add(part)

    hooks = [part.register_forward_pre_hook(hear) for part in _weighted(model)]
    with suppress(Exception):
        model(torch.zeros(1, 4, dtype=torch.int64, device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return called


def _weighted(module: Module) -> list[Module]:
    parts = module.modules()
    return [part for part in parts if isinstance(getattr(part, "weight", None), Parameter)]


def _if_it_works(faster: Replacing) -> Replacing:
    """Not so with another torch, or where Triton finds no compiler."""

    def tried(module: Module, dtype: torch.dtype) -> Module | None:
        try:
            return faster(module, dtype)
        except torch.OutOfMemoryError:  # else what is free would change bytes
            raise
        except Exception:
            return None

    return tried


def _onednn(module: Module, dtype: torch.dtype) -> Module | None:
    """A layer that computes the same, or None."""
    if _is_plain(module):
        return _if_equal(OneDnnLinear(module), module, module.weight)  # type: ignore[arg-type]
    if _is_gated(module):
        return _if_equal(OneDnnGated(module), module, module.gate_proj.weight)  # type: ignore[union-attr, arg-type]
    return _normed(module, dtype)


def _normed(module: Module, dtype: torch.dtype) -> Module | None:
    return _if_norm(module, dtype, CpuNorm)


def _joined(module: Module, dtype: torch.dtype) -> Module | None:
    if _is_gated(module):
        gate, up, down = (getattr(module, name) for name in _GATED)
        return _if_equal(JointGated(gate, up, down), module, gate.weight)
    join_attention(module)
    return _fused(module, dtype)


def _fused(module: Module, dtype: torch.dtype) -> Module | None:
    return _if_norm(module, dtype, RMSNorm)


def _if_norm(module: Module, dtype: torch.dtype, kind: type[RMSNorm]) -> Module | None:
    if not _is_norm(module, dtype):
        return None
    norm = kind(len(module.weight), _epsilon(module))  # type: ignore[arg-type]
    norm.weight = module.weight  # type: ignore[assignment]
    return _if_equal(norm, module, module.weight)  # type: ignore[arg-type]


def _is_plain(module: object) -> bool:
    return type(module) is Linear and module.weight.dtype == torch.bfloat16


def _is_gated(module: Module) -> bool:
    plain = all(_is_plain(getattr(module, name, None)) for name in _GATED)
    return plain and isinstance(getattr(module, "act_fn", None), (SiLU, SiLUActivation))


def _is_norm(module: Module, dtype: torch.dtype) -> bool:
    weight, kind = getattr(module, "weight", None), type(module)
    plain = isinstance(weight, torch.Tensor) and weight.dtype == dtype and weight.ndim == 1
    named = kind.__name__.endswith("RMSNorm") and kind is not RMSNorm
    return plain and named and isinstance(_epsilon(module), float)


def _epsilon(module: Module) -> object:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _if_equal(faster: Module, module: Module, weight: torch.Tensor) -> Module | None:
    """For states as the weight, [..., size], takes them."""
    seed = torch.Generator().manual_seed(0)
    states = torch.randn(1, 32, weight.shape[-1], generator=seed).to(weight.device, weight.dtype)
    wanted, found = module(states).float(), faster(states).float()
    most = _ROUNDING[weight.dtype.itemsize] * wanted.norm()
    return faster if (found - wanted).norm() <= most else None
