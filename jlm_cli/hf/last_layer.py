"""What stands behind a model's last attention sees each token by itself. Of a prompt only the last
one's word is wanted, so the others need not go there: nearly a whole layer of products is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeGuard

import torch
from torch.nn import Module
from transformers import PreTrainedModel

from jlm_cli.hf.packing import Tokens
from jlm_cli.hf.transfers import sent


def behind_attention(
    model: PreTrainedModel, step: Callable[[], object], is_over: Callable[[], bool]
) -> list[str]:
    """The names of the parts that a pass calls with one tensor [1, T, size], and no sooner than
    when attention `is_over`, which return such a one; of parts in each other, the outer."""
    sooner: set[Module] = set()
    behind: list[Module] = []
    fitting: set[Module] = set()

    def enter(part: Module, _: object) -> None:
        if is_over():
            behind.append(part)
        else:
            sooner.add(part)

    def leave(part: Module, given: tuple[object, ...], found: object) -> None:
        states = given[0] if len(given) == 1 else None
        if _is_states(states) and _is_states(found) and states.shape[:2] == found.shape[:2]:
            fitting.add(part)

    with ExitStack() as hooks:
        for part in model.modules():
            hooks.callback(part.register_forward_pre_hook(enter).remove)
            hooks.callback(part.register_forward_hook(leave).remove)
        step()
    names = {part: name for name, part in model.named_modules()}
    taken = {model.get_output_embeddings(): ""}  # type: ignore[no-untyped-call]
    for part in behind:
        inside = any(part in outer.modules() for outer in taken)
        if part in fitting and part not in sooner and not inside:
            taken[part] = names[part]
    return list(taken.values())[1:]


def _is_states(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.ndim == 3 and len(value) == 1


@contextmanager
def only(model: PreTrainedModel, behind: Sequence[str], tokens: Tokens) -> Iterator[None]:
    """The head is shown the states of the kept tokens alone, and so are the parts of these names;
    what they return is 0 for the others. A tensor of `logits_to_keep` would be moved to the first
    of several GPUs, where the states are no longer."""
    n_tokens, kept = len(tokens.ids), tokens.kept
    sent_to: dict[torch.device, torch.Tensor] = {}

    def places(device: torch.device) -> torch.Tensor:
        if device not in sent_to:
            sent_to[device] = sent(kept, device)
        return sent_to[device]

    def pick(_: Module, given: tuple[torch.Tensor]) -> torch.Tensor:
        return given[0][:, places(given[0].device)]

    def spread(_: Module, given: object, found: torch.Tensor) -> torch.Tensor:
        whole = found.new_zeros(1, n_tokens, found.shape[-1])
        return whole.index_copy_(1, places(found.device), found)

    with ExitStack() as hooks:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        hooks.callback(head.register_forward_pre_hook(pick).remove)
        for name in behind:
            part = model.get_submodule(name)
            hooks.callback(part.register_forward_pre_hook(pick).remove)
            hooks.callback(part.register_forward_hook(spread).remove)
        yield
