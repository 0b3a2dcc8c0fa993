"""The head of a model, exact in the tokens that are asked for.

In 16 bits a logit of 26 is rounded to eighths: two scores are often equally likely then, and each
likelihood is off by a few per cent. So the asked tokens' logits are computed once more, in float32
from the same states and weights; the other thousands are only added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
from torch.nn import Linear, Module, Parameter, functional
from transformers import PreTrainedModel

Change = Callable[[torch.Tensor], torch.Tensor]
_CLOSE = 0.03  # 16 bits round by less
_LOGITS_AT_ONCE = 64  # rows of logits turned into log-probabilities at a time, to bound memory


@dataclass
class Exact:
    """Logits of some tokens in float32, beside those that the head gave; `changes` are what the
    model may do with them."""

    columns: torch.Tensor
    changes: Sequence[Change]
    _given: torch.Tensor | None = None  # the head's logits of these tokens
    _own: torch.Tensor | None = None

    def log_p(self, logits: torch.Tensor, at: Any) -> torch.Tensor:
        """[n, columns] for the places `at` of a pass's logits [..., vocabulary]; as rounded as they
        are where they are not the head's, nor any known change of them."""
        rows = logits[at]
        if self._own is None or self._given is None:
            return log_p(rows, self.columns)
        found = rounded = rows[:, self.columns].float()
        # several GPUs bring the last one's logits to the first
        given, own = (
            one[at].to(rows.device, non_blocking=True) for one in (self._given, self._own)
        )
        for change in self.changes:  # the choice is the device's, which is not waited for
            is_it = torch.isclose(change(given), rounded, _CLOSE, _CLOSE, equal_nan=True).all()
            found = torch.where(is_it, change(own), found)
        return log_p(rows, self.columns, found)

    def hear(self, head: Module, given: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        if logits.dtype == torch.float32 or not _is_plain(head):
            return
        states, columns = (one.to(head.weight.device) for one in (given[0], self.columns))
        weight, bias = head.weight[columns], head.bias
        mine = None if bias is None else bias[columns].float()
        # autocast may round after all
        self._own = functional.linear(states.float(), weight.float(), mine).float()
        self._given = logits[..., columns].float()


def _is_plain(head: Module) -> TypeGuard[Linear]:
    """Whole weights that are numbers: neither quantized nor shared between processes."""
    if type(head) is not Linear or type(head.weight) is not Parameter:
        return False
    return head.weight.ndim == 2 and head.weight.is_floating_point()


def _changes_of(model: PreTrainedModel) -> list[Change]:
    """What transformers' models do with their heads' logits: most nothing, Gemma, Cohere, Granite
    and others what their config says; which of these it is, is seen from the logits."""
    config = model.config.get_text_config()
    changes: list[Change] = [lambda logits: logits]
    if cap := getattr(config, "final_logit_softcapping", None):
        changes.append(lambda logits: cap * torch.tanh(logits / cap))
    for name in ("logit_scale", "logits_scaling"):
        factor = getattr(config, name, None)
        if isinstance(factor, int | float) and factor:
            changes += [partial(torch.mul, other=by) for by in (factor, 1 / factor)]
    return changes


@contextmanager
def exact(model: PreTrainedModel, columns: torch.Tensor) -> Iterator[Exact]:
    found = Exact(columns, _changes_of(model))
    hook = model.get_output_embeddings().register_forward_hook(found.hear)  # type: ignore[no-untyped-call]
    try:
        yield found
    finally:
        hook.remove()


def log_p(
    logits: torch.Tensor, columns: torch.Tensor, own: torch.Tensor | None = None
) -> torch.Tensor:
    """[n, vocabulary] → float32 [n, columns], normalised over the vocabulary. `own` [n, columns]
    stand in for those logits."""
    parts = []
    for at in range(0, len(logits), _LOGITS_AT_ONCE):
        rows = logits[at : at + _LOGITS_AT_ONCE].float()
        if own is not None:
            rows[:, columns] = own[at : at + _LOGITS_AT_ONCE]
        parts.append(rows.log_softmax(-1)[:, columns])
    return torch.cat(parts)
