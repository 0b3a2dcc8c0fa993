"""Linear layers of the same states as one product: queries, keys and values, and both halves of a
gated layer. On GPUs fewer and larger products take the host and the device less time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.hooks import remove_hook_from_module
from torch.nn import Linear, Module, Parameter

from jlm_cli.hf import kernels

_ATTENTION = ("q_proj", "k_proj", "v_proj")


class Joint(Module):
    """Some linear layers' product, made when the first of them is called, and kept until each has
    taken its part of it."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        super().__init__()
        self.linear = joined(parts)
        self._sizes = [part.out_features for part in parts]
        self._states: torch.Tensor | None = None
        self._left: dict[int, torch.Tensor] = {}

    def part(self, n: int, states: torch.Tensor) -> torch.Tensor:
        """[..., size of the n-th]; it may be changed in place."""
        if states is not self._states or n not in self._left:
            self._left = {}  # of a pass that was broken off, perhaps
            parts = self.linear(states).split(self._sizes, dim=-1)
            self._states, self._left = states, dict(enumerate(parts))
        found = self._left.pop(n)
        if not self._left:
            self._states = None
        return found


class JointPart(Module):
    """One of these layers; the first one has the product."""

    def __init__(self, joint: Joint, n: int, like: Linear) -> None:
        super().__init__()
        self._joint = joint if n == 0 else None
        self._part = joint.part
        self._n = n
        self.weight = like.weight.detach().to("meta")  # some models look at its dtype

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._part(self._n, states)


class JointGated(Module):
    """down(silu(gate(x)) · up(x)), gated in one pass."""

    def __init__(self, gate: Linear, up: Linear, down: Linear) -> None:
        super().__init__()
        self.both, self.down = joined([gate, up]), down

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(states).chunk(2, dim=-1)
        return self.down(kernels.silu_times(gate, up))  # type: ignore[no-any-return]


def joined(parts: Sequence[Linear]) -> Linear:
    """Of one or more layers, the outputs one after the other."""
    first = parts[0]
    whole = Linear(first.in_features, 1, bias=first.bias is not None, device="meta")
    whole.weight = Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
    if first.bias is not None:
        bias = torch.cat([part.bias for part in parts])
        whole.bias = Parameter(bias, requires_grad=False)
    whole.out_features = len(whole.weight)
    return whole


def join_attention(module: Module) -> None:
    """Queries, keys and values of a module that has them as plain layers of the same kind; any
    other stays as it is."""
    parts = [getattr(module, name, None) for name in _ATTENTION]
    layers = [part for part in parts if type(part) is Linear]
    alike = {(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in layers}
    if len(layers) < len(parts) or len(alike) > 1:
        return
    joint = Joint(layers)
    for n, (name, layer) in enumerate(zip(_ATTENTION, layers, strict=True)):
        unhook(layer)
        setattr(module, name, JointPart(joint, n, layer))


def unhook(module: Module) -> None:
    """Of accelerate, which binds a module's forward to itself: it would keep its weights. Where a
    whole layer lies on one GPU, its parts need not take their states from another."""
    if hasattr(module, "_hf_hook"):
        remove_hook_from_module(module)
        vars(module).pop("forward", None)
