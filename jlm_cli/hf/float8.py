"""Linear layers in float8, which GPUs from Ada and Hopper on multiply twice as fast as bfloat16:
`--quantize fp8`.

Numbers are e4m3 of arXiv 2209.05433, with three bits behind the point: a product is off by 4 %.
Each output of a layer has a scale of its own, made once, and so has each token, made anew for
every layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias, TypeGuard

import torch
from torch.nn import Linear, Module, functional
from torch.nn.functional import ScalingType
from transformers import PreTrainedModel

from jlm_cli.errors import ModelError
from jlm_cli.hf import kernels
from jlm_cli.hf.joint import JointGated
from jlm_cli.hf.layers import replace_layers
from jlm_cli.hub import first_line

_FLOAT8 = torch.float8_e4m3fn
_MOST = torch.finfo(_FLOAT8).max
_LEAST = 1e-12  # of a scale, for rows of zeros
_WHOLE = 16  # the kernels' step in both widths of a layer
_ANOTHER = 0.5  # of the norm of log-probabilities; usual is a hundredth

Float8Rows: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # rows in float8, and their scales
Quantizing: TypeAlias = Callable[[torch.Tensor], Float8Rows]


class Float8Linear(Module):
    """A linear layer of bfloat16 states [..., size] that multiplies in float8 (e4m3), each row and
    each column of the weights with a scale of its own."""

    def __init__(self, linear: Linear, quantizing: Quantizing) -> None:
        super().__init__()
        weight, scales = to_float8(linear.weight.detach())
        self.weight_t = weight.t(), scales.t().contiguous()
        self.bias = linear.bias
        self.weight = linear.weight.detach().to("meta")  # some models look at its dtype
        self._quantizing = quantizing

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.of_rows(self._quantizing(states.reshape(-1, states.shape[-1])), states)

    def of_rows(self, rows: Float8Rows, like: torch.Tensor) -> torch.Tensor:
        """Of rows in float8, which were states [..., size]; the result is like those."""
        product = _product if like.is_cuda else _wide_product
        out = product(rows, self.weight_t, self.bias, like.dtype)
        return out.view(*like.shape[:-1], out.shape[-1])


class Float8Gated(Module):
    """down(silu(gate(x)) · up(x)), in float8 as soon as it is gated."""

    def __init__(self, whole: JointGated, quantizing: Quantizing) -> None:
        super().__init__()
        self.both, self.down = (Float8Linear(one, quantizing) for one in (whole.both, whole.down))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(states).chunk(2, dim=-1)
        rows = _gated(*(one.view(-1, one.shape[-1]) for one in (gate, up)))
        return self.down.of_rows(rows, gate)


def _product(
    rows: Float8Rows, weight_t: Float8Rows, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """[n, size] by [size, out] → [n, out]; their scales are [n, 1] and [1, out]."""
    how = ScalingType.RowWise
    return functional.scaled_mm(
        *(rows[0], weight_t[0], rows[1], how, weight_t[1], how),
        bias=bias,
        output_dtype=dtype,
        use_fast_accum=True,
    )


def _wide_product(
    rows: Float8Rows, weight_t: Float8Rows, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """The same on a CPU, by numbers that hold each float8 exactly."""
    out = (rows[0].to(dtype) @ weight_t[0].to(dtype)) * rows[1] * weight_t[1]
    return (out if bias is None else out + bias).to(dtype)


def use_float8(model: PreTrainedModel) -> None:
    """All linear layers but the head, whose widths the kernels take. Raises ModelError where a
    model has none, or its predictions change too much."""
    quantizing = _kernel(model.device)

    def quantized(module: Module, _: torch.dtype) -> Module | None:
        if isinstance(module, JointGated) and _is_taken(module.both) and _is_taken(module.down):
            return Float8Gated(module, quantizing)
        return Float8Linear(module, quantizing) if _is_taken(module) else None

    try:
        whole = _shares(model)
        replace_layers(model, quantized)
        off = float((_shares(model) - whole).norm() / whole.norm())
    except RuntimeError as error:  # of memory, or where Triton finds no compiler
        raise ModelError(f"--quantize fp8: {first_line(error)}") from error
    if not any(isinstance(module, Float8Linear) for module in model.modules()):
        raise ModelError("--quantize fp8: this model has no linear layer that float8 kernels take")
    if not off <= _ANOTHER:  # nor is it a number
        raise ModelError(
            f"--quantize fp8: changes too much of what this model predicts ({off:.2f} of it, at "
            f"most {_ANOTHER}); use --quantize 8bit for less memory"
        )


def _is_taken(module: Module) -> TypeGuard[Linear]:
    """Whether kernels take a layer's widths."""
    return type(module) is Linear and not any(size % _WHOLE for size in module.weight.shape)


def _shares(model: PreTrainedModel) -> torch.Tensor:
    """What a short pass says comes next, as log-probabilities."""
    ids = torch.arange(8, device=model.device)[None]
    with torch.inference_mode():
        logits: torch.Tensor = model(ids, use_cache=False).logits
        return logits.float().log_softmax(-1)


def to_float8(rows: torch.Tensor) -> Float8Rows:
    """[n, size] → float8 [n, size], float32 [n, 1]."""
    wide = rows.float()
    scales = (wide.abs().amax(-1, keepdim=True) / _MOST).clamp(min=_LEAST)
    return (wide / scales).to(_FLOAT8), scales


def _kernel(device: torch.device) -> Quantizing:
    """The same in one pass over the rows, where Triton is there; torch's six take longer than the
    product that they prepare."""
    if not kernels.are_usable(device):
        return to_float8
    from jlm_cli.hf.float8_kernel import to_float8_at_once

    return functools.partial(to_float8_at_once, dtype=_FLOAT8, most=_MOST, least=_LEAST)


def _gated(gate: torch.Tensor, up: torch.Tensor) -> Float8Rows:
    from jlm_cli.hf.float8_kernel import gated_to_float8_at_once

    return gated_to_float8_at_once(gate, up, _FLOAT8, _MOST, _LEAST)
