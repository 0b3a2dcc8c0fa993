"""Liger's kernels, which need a GPU: what takes their place here computes as they do."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Loaded
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama

from jlm_cli import devices, kernels
from jlm_cli.encoding import Lines, Prompt
from jlm_cli.engine import Judge
from jlm_cli.hf_engine import PackedEngine
from jlm_cli.layers import GatedOnce, fuse
from jlm_cli.modes import Reading, View
from jlm_cli.prompts import load

CPU = torch.device("cpu")


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

    def kernel(name: str, compute: Callable[..., Any]) -> Any:
        def apply(*given: torch.Tensor) -> Any:
            names.append(name)
            return compute(*given)

        return type(name, (), {"apply": staticmethod(apply)})

    for module, name, compute in (
        ("rope", "LigerRopeFunction", turn),
        ("swiglu", "LigerSiLUMulFunction", gate),
    ):
        fake = ModuleType(module)
        setattr(fake, name, kernel(module, compute))
        monkeypatch.setitem(sys.modules, f"liger_kernel.ops.{module}", fake)
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for where in ("jlm_cli.kernels.are_usable", "jlm_cli.hf_engine.are_usable"):
        monkeypatch.setattr(where, lambda *_: True)
    kernels._turns_the_same.cache_clear()
    yield names
    kernels._turns_the_same.cache_clear()


def test_a_judge_says_the_same_with_turned_queries(
    builtin: Loaded, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its family's own function is back in its place behind each pass."""
    own = modeling_llama.apply_rotary_pos_emb
    text = "[Question]\nWhat is two and two?\n\n[Answer]\nFour.\n\n### Response:"
    ids = tuple(builtin.vocabulary.encode([text])[0].ids)
    prompts = [Prompt(ids, View(load("judgelm"), (1, 2)))]
    engine = PackedEngine(builtin.model, builtin.vocabulary)
    judge = Judge(engine, Lines(builtin.vocabulary), reason=True, new_tokens=8)
    found = judge.judge(prompts)[0]
    assert modeling_llama.apply_rotary_pos_emb is own
    assert taken.count("rope") > 2 * len(builtin.model.model.layers)
    taken.clear()
    monkeypatch.setattr("jlm_cli.hf_engine.are_usable", lambda *_: False)
    wanted = judge.judge(prompts)[0]
    assert isinstance(found, Reading) and isinstance(wanted, Reading) and not taken
    assert (found.line.text, found.reason) == (wanted.line.text, wanted.reason)
    assert found.line.p == pytest.approx(wanted.line.p, abs=2e-5)


def test_gates_are_passed_over_once(builtin: Loaded, taken: list[str]) -> None:
    plain = copy.deepcopy(builtin.model).to(torch.bfloat16)
    model = copy.deepcopy(plain)
    fuse(model)
    assert sum(isinstance(part, GatedOnce) for part in model.modules()) == len(model.model.layers)
    taken.clear()
    ids = torch.tensor(builtin.vocabulary.encode(["Which answer is better? " * 9])[0].ids)[None]
    with torch.inference_mode():
        exact, before, after = (
            one(ids).logits.float().log_softmax(-1) for one in (builtin.model, plain, model)
        )
    assert taken == ["swiglu"] * len(model.model.layers)
    assert (after - exact).norm() <= 1.2 * (before - exact).norm()


def test_only_what_turns_as_llama_does_is_turned_by_them(
    taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohere turns neighbours, others a part of each head; some machines have no compiler."""
    own = modeling_llama.apply_rotary_pos_emb
    assert kernels._turns_the_same(own, CPU, torch.bfloat16)
    assert not kernels._turns_the_same(modeling_cohere.apply_rotary_pos_emb, CPU, torch.bfloat16)
    taken.clear()
    query, key = torch.randn(2, 1, 2, 7, 8).unbind()
    waves = torch.randn(2, 1, 7, 8).unbind()
    assert kernels._turned(own, query.clone(), key.clone(), *waves) is not None
    assert taken == ["rope"]
    wanted = own(query, key, *waves, 1)
    assert torch.equal(kernels._turned(own, query, key, *waves, 1)[0], wanted[0])
    part = [one[..., :4] for one in waves]

    def turns_a_part(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return query, query

    assert kernels._turned(turns_a_part, query, key, *part)[0] is query
    assert taken == ["rope"]

    def fails(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    kernels._turns_the_same.cache_clear()
    monkeypatch.setattr(sys.modules["liger_kernel.ops.rope"].LigerRopeFunction, "apply", fails)
    assert not kernels._turns_the_same(own, CPU, torch.bfloat16)


def test_a_run_is_gone_on_with_on_the_same_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "version_of_kernels", lambda: "0.8.5")
    assert devices.Compute("cuda", "bfloat16", 4096).settings()["kernels"] == "0.8.5"
    assert "kernels" not in devices.Compute("cpu", "bfloat16", 4096).settings()
