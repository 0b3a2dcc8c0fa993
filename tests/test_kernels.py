"""Kernels that need a GPU: what takes their place here computes as they do."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from conftest import Loaded
from torch import nn
from transformers.models.llama import modeling_llama

from jlm_cli import devices, hf
from jlm_cli.encoding import Lines, Prompt
from jlm_cli.engine import Judge
from jlm_cli.hf import kernels, rotary
from jlm_cli.hf.joint import Joint, JointGated, JointPart
from jlm_cli.hf.layers import fuse
from jlm_cli.hf_engine import PackedEngine
from jlm_cli.modes import Reading, View
from jlm_cli.prompts import load


def turn(query: torch.Tensor, key: torch.Tensor, *waves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In place, of both halves by the first half's waves."""
    half = waves[0].shape[-1] // 2
    cos, sin = (one[:, None, :, :half] for one in waves)
    for states in (query, key):
        first, second = states[..., :half].clone(), states[..., half:].clone()
        states[..., :half] = first * cos - second * sin
        states[..., half:] = second * cos + first * sin
    return query, key


def gate(states: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(states.float()).to(factor.dtype) * factor


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which kernels were called."""
    names: list[str] = []
    fake = ModuleType("jlm_cli.hf.layer_kernel")
    for name, compute in (("turn", turn), ("silu_times", gate)):

        def kernel(
            *given: torch.Tensor, name: str = name, compute: Callable[..., Any] = compute
        ) -> Any:
            names.append(name)
            return compute(*given)

        setattr(fake, name, kernel)
    monkeypatch.setitem(sys.modules, "jlm_cli.hf.layer_kernel", fake)
    monkeypatch.setattr(hf, "layer_kernel", fake, raising=False)
    monkeypatch.setattr(kernels, "are_usable", lambda *_: True)
    yield names


def test_a_judge_says_the_same_with_turned_queries(
    builtin: Loaded, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its family's own function is back in its place behind each pass."""
    own = modeling_llama.apply_rotary_pos_emb
    text = "[Question]\nWhat is two and two?\n\n[Answer]\nFour.\n\n### Response:"
    ids = tuple(builtin.vocabulary.encode([text])[0].ids)
    prompts = [Prompt(ids, View(load("judgelm"), (1, 2)))]
    wanted, *others = (
        Judge(engine, Lines(builtin.vocabulary), reason=True, new_tokens=8).judge(prompts)[0]
        for engine in engines_of(builtin, monkeypatch)
    )
    assert modeling_llama.apply_rotary_pos_emb is own
    assert taken.count("turn") > 2 * len(builtin.model.model.layers)
    for found in others:
        assert isinstance(found, Reading) and isinstance(wanted, Reading)
        assert (found.line.text, found.reason) == (wanted.line.text, wanted.reason)
        assert found.line.p == pytest.approx(wanted.line.p, abs=2e-5)


def engines_of(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackedEngine]:
    """As the model turns, in a few passes, and by the kernel."""
    for faster, are_there in (
        (None, False),
        (rotary._by_halves, False),
        (rotary.by_kernel, True),
    ):
        monkeypatch.setattr(kernels, "are_usable", lambda *_, there=are_there: there)
        engine = PackedEngine(loaded.model, loaded.vocabulary)
        assert engine._rotary.modules == [modeling_llama]
        if faster is None:
            engine._rotary = rotary.RotaryPatch((), rotary._by_halves)
        else:
            assert engine._rotary.faster is faster
        yield engine


def test_layers_of_the_same_states_are_one_product(builtin: Loaded, taken: list[str]) -> None:
    """Gated in one pass; queries, keys and values as they are alone."""
    plain = copy.deepcopy(builtin.model).to(torch.bfloat16)
    model = copy.deepcopy(plain)
    fuse(model)
    assert sum(isinstance(part, JointGated) for part in model.modules()) == len(model.model.layers)
    taken.clear()
    ids = torch.tensor(builtin.vocabulary.encode(["Which answer is better? " * 9])[0].ids)[None]
    with torch.inference_mode():
        exact, before, after = (
            one(ids).logits.float().log_softmax(-1) for one in (builtin.model, plain, model)
        )
    assert taken == ["silu_times"] * len(model.model.layers)
    products = sum(isinstance(part, nn.Linear) for part in model.modules())
    assert products == 4 * len(model.model.layers) + 1
    assert (after - exact).norm() <= 1.2 * (before - exact).norm()


def test_a_part_of_a_joint_product_can_be_taken_again() -> None:
    """And in any order; what is kept is of the latest states alone."""
    layers = [nn.Linear(8, size) for size in (4, 6, 2)]
    joint = Joint(layers)
    parts = [JointPart(joint, n, layer) for n, layer in enumerate(layers)]
    states, others = torch.randn(2, 1, 5, 8)
    with torch.inference_mode():
        for n in (0, 2, 1, 1):
            torch.testing.assert_close(parts[n](states), layers[n](states))
        torch.testing.assert_close(parts[0](others), layers[0](others))
        torch.testing.assert_close(parts[2](states), layers[2](states))
    for n in (0, 1, 2):
        parts[n](others)
    assert joint._states is None and not joint._left


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "family, usual", [("Llama", True), ("Qwen3", True), ("Cohere", False), ("GPTNeo", False)]
)
def test_only_what_turns_as_llama_does_is_turned_faster(
    taken: list[str], family: str, usual: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohere turns neighbours; some models do not turn."""
    monkeypatch.setattr(kernels, "are_usable", lambda *_: there)
    more = {"attention_types": [[["global"], 2]]} if family == "GPTNeo" else {}
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32, intermediate_size=32, num_layers=2, num_hidden_layers=2, vocab_size=99,
        num_attention_heads=4, num_heads=4, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    found = rotary.RotaryPatch.of(model).modules
    assert [one.__name__ for one in found] == usual * [type(model).__module__]


def test_other_ways_to_turn_stay_the_models_own(
    builtin: Loaded, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part of each head, or with places elsewhere; and all of them, without a compiler."""
    own = modeling_llama.apply_rotary_pos_emb
    taken.clear()
    query, key = torch.randn(2, 1, 2, 7, 8).unbind()
    waves = torch.randn(2, 1, 7, 8).unbind()
    turned = functools.partial(rotary._rotated, own, rotary.by_kernel)
    assert turned(query.clone(), key.clone(), *waves) is not None
    assert taken == ["turn"]
    wanted = own(query, key, *waves, 1)
    assert torch.equal(turned(query, key, *waves, 1)[0], wanted[0])
    part = [one[..., :4] for one in waves]

    def turns_a_part(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return query, query

    turned = functools.partial(rotary._rotated, turns_a_part, rotary.by_kernel)
    assert turned(query, key, *part)[0] is query
    assert taken == ["turn"]

    def fails(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    usual = [modeling_llama]
    assert rotary.RotaryPatch.of(builtin.model) == rotary.RotaryPatch(usual, rotary.by_kernel)
    monkeypatch.setattr(sys.modules["jlm_cli.hf.layer_kernel"], "turn", fails)
    assert rotary.RotaryPatch.of(builtin.model) == rotary.RotaryPatch(usual, rotary._by_halves)


def test_a_run_is_gone_on_with_on_the_same_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "version_of_kernels", lambda: "3.6.0")
    for dtype in ("bfloat16", "float16"):
        assert devices.Compute("cuda", dtype, 4096).settings()["kernels"] == "3.6.0"
        assert "kernels" not in devices.Compute("cpu", dtype, 4096).settings()
