"""What stands behind a model's last attention sees each token by itself. Of a prompt only the last
one's word is wanted, so the others need not go there: nearly a whole layer of products is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch.nn import Module
from transformers import PreTrainedModel

from jlm_cli.hf.packing import Tokens
from jlm_cli.hf.transfers import sent


def behind_attention(
    model: PreTrainedModel, n_tokens: int, step: Callable[[], object], is_over: Callable[[], bool]
) -> list[str]:
    """The names of the parts that a pass over so many tokens calls with one tensor [1, T, size], no
    sooner than when attention `is_over` and before the head, and that return such a one, at every
    call; of parts in each other, the outer."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    behind: list[Module] = []
    others = {part for part in model.modules() if head in part.modules()}

    def enter(part: Module, given: tuple[object, ...], named: dict[str, object]) -> None:
        fits = len(given) == 1 and not named and _is_states(given[0], n_tokens)
        if head in behind or not is_over() or not fits:
            others.add(part)
        behind.append(part)

    def leave(part: Module, _: object, found: object) -> None:
        if not _is_states(found, n_tokens):
            others.add(part)

    with ExitStack() as hooks:
        for part in model.modules():
            hooks.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(leave).remove)
        step()
    names = {part: name for name, part in model.named_modules()}
    taken: dict[Module, str] = {}
    for part in behind:
        inside = any(part in outer.modules() for outer in taken)
        if part not in others and not inside:
            taken[part] = names[part]
    return list(taken.values())


def _is_states(value: object, n_tokens: int) -> bool:
    """[1, T, size]"""
    return isinstance(value, torch.Tensor) and value.ndim == 3 and value.shape[:2] == (1, n_tokens)


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
        if given[0].shape[:2] != (1, n_tokens):  # a GPU would not survive an index beyond
            raise RuntimeError("its last layer sees something else than its tokens")
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
