"""What stands behind the last attention: found, shown the kept tokens alone, and the same there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from conftest import Loaded
from test_hf_engine import SMALL, lines_of, prompts_of, small
from torch.nn import Linear, Module, Sequential

from jlm_cli.hf.last_layer import behind_attention
from jlm_cli.hf.packing import shared_start
from jlm_cli.hf.trial import make_engine
from jlm_cli.hf_engine import PackedEngine
from jlm_cli.scoreline import LineDistribution

OUT, NORM, MLP, LAST = "self_attn.o_proj", "post_attention_layernorm", "mlp", "norm"
FAMILIES = {
    "Llama": [OUT, NORM, MLP, LAST],
    "Mixtral": [OUT, NORM, MLP, LAST],
    "Gemma2": [OUT, NORM, "pre_feedforward_layernorm", MLP, "post_feedforward_layernorm", LAST],
    "Phi": ["self_attn.dense", "resid_dropout", MLP, "final_layernorm"],  # its first norm is sooner
}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_sees_what_is_kept_and_says_the_same(released: Loaded, family: str) -> None:
    engine = make_engine(small(family), released.vocabulary)
    assert isinstance(engine, PackedEngine)
    last = f"layers.{engine.model.config.num_hidden_layers - 1}."
    names = [name.removeprefix("model.").removeprefix(last) for name in engine.behind]
    assert names == FAMILIES[family]
    part, prompts = engine.model.get_submodule(engine.behind[0]), prompts_of(released)
    sizes: list[int] = []
    forward: Callable[[torch.Tensor], torch.Tensor] = part.forward

    def counted(states: torch.Tensor) -> torch.Tensor:
        sizes.append(states.shape[1])
        return forward(states)

    part.forward = counted
    thin, first = lines_of(engine, prompts, released.tokens), list(sizes)
    engine.behind = ()
    whole, second = lines_of(engine, prompts, released.tokens), sizes[len(first) :]
    assert first[1:] == second[1:]  # drafts, all of which are kept
    shared = sum(map(shared_start, sorted(prompts), sorted(prompts)[1:]))
    assert second[0] - first[0] == sum(map(len, prompts)) - shared - len(prompts)
    for row, other in zip(thin, whole, strict=True):
        assert isinstance(row, LineDistribution) and isinstance(other, LineDistribution)
        assert row.p == pytest.approx(other.p, abs=1e-6)
        assert row.outcome() == pytest.approx(other.outcome(), abs=1e-6)


class Attending(Module):
    """Layers that take their attention to be over after a certain one, and their head."""

    def __init__(self) -> None:
        super().__init__()
        self.sooner, self.flat, self.named, self.inner, self.behind_head = (
            Linear(4, 4) for _ in range(5)
        )
        self.block, self.pair = Sequential(Linear(4, 4), self.inner), Pair()
        self.ends = Sequential(Linear(4, 4), Linear(4, 4))
        self.is_over = False

    def get_output_embeddings(self) -> Module:
        return self.ends[1]

    def step(self) -> None:
        states = self.sooner(torch.ones(1, 3, 4))
        self.is_over = True
        states = self.sooner(self.pair(self.block(states), states))
        states = self.named(input=self.flat(states) + self.flat(states[0]))
        self.behind_head(self.ends(states) + self.inner(states[0]))


class Pair(Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one + other


def test_parts_of_other_layers_and_other_shapes_are_left() -> None:
    """What an earlier layer has too, what takes two tensors, or one by its name, or once of another
    shape, what is in another part, or has the head in it, or stands behind it."""
    model = Attending()
    found = behind_attention(model, 3, model.step, lambda: model.is_over)  # type: ignore[arg-type]
    assert found == ["block", "ends.0"]
    hooks = (model._forward_hooks, model.block._forward_pre_hooks, model.ends[1]._forward_hooks)
    assert not any(hooks)


def test_a_last_layer_that_takes_something_else_is_read_whole(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are packed all the same."""
    monkeypatch.setattr("jlm_cli.hf.trial.behind_attention", lambda *_: ["model.rotary_emb"])
    engine = make_engine(small("Llama"), released.vocabulary)
    assert isinstance(engine, PackedEngine) and not engine.behind


@pytest.mark.parametrize("family", ["Bert", "BertGeneration"])
def test_a_head_within_a_part_is_found(released: Loaded, family: str) -> None:
    """Tokens are picked once."""
    kind = "BertLMHead" if family == "Bert" else "BertGenerationDecoder"
    config = getattr(transformers, f"{family}Config")(**SMALL, is_decoder=True)
    model = getattr(transformers, f"{kind}{'Model' if family == 'Bert' else ''}")(config).eval()
    engine = make_engine(model, released.vocabulary)
    assert isinstance(engine, PackedEngine)
    head = engine.model.get_output_embeddings()
    parts = [engine.model.get_submodule(name) for name in engine.behind]
    assert not any(head in part.modules() for part in parts)
