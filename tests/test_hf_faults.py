"""What goes wrong inside a model: memory runs out, a row's numbers are none."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from conftest import Loaded

from jlm_cli import prompts
from jlm_cli.encoding import Lines, Prompt
from jlm_cli.engine import Judge
from jlm_cli.errors import RowError
from jlm_cli.hf.memory import is_out_of_memory
from jlm_cli.hf.row_by_row import CachedEngine, PlainEngine
from jlm_cli.hf.writing import Writer
from jlm_cli.hf_engine import PackedEngine
from jlm_cli.modes import Reading, View

TEXTS = [
    f"[Question]\nWhat is {n}?\n\n{'It is. ' * n}{'ß' * (n == 2)}\n### Response:" for n in range(6)
]
POISONED = 2  # the row with a letter that no other row has


def prompts_of(loaded: Loaded) -> list[Prompt]:
    view = View(prompts.load("judgelm"), (1, 2))
    encodings = loaded.vocabulary.encode(TEXTS)
    return [Prompt((*loaded.vocabulary.bos, *found.ids), view) for found in encodings]


def judge_of(loaded: Loaded, model: Any, kind: type[Writer], reason: bool = False) -> Judge:
    engine: Any = kind(model, loaded.vocabulary)
    return Judge(engine, Lines(loaded.vocabulary), reason=reason, new_tokens=3)


def said(result: Reading | RowError) -> Any:
    assert isinstance(result, Reading)
    return result.line.text, result.line.p.tolist(), result.line.mass


@pytest.mark.parametrize("kind", [PackedEngine, CachedEngine, PlainEngine])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_without_numbers_is_an_error_and_its_neighbours_stay(
    released: Loaded, kind: type[Writer], value: float
) -> None:
    (letter,) = set(released.vocabulary.encode(["aß"])[0].ids) - set(
        released.vocabulary.encode(["a"])[0].ids
    )
    poisoned = copy.deepcopy(released.model)
    with torch.no_grad():
        poisoned.model.embed_tokens.weight[letter] = value
    given = prompts_of(released)
    assert [letter in prompt.ids for prompt in given] == [n == POISONED for n in range(6)]
    whole = judge_of(released, released.model, kind).judge(given)
    judge = judge_of(released, poisoned, kind)
    found = judge.judge(given)
    bad = found[POISONED]
    assert isinstance(bad, RowError) and bad.code in ("nan", "no-score")
    for row in set(range(6)) - {POISONED}:
        (text, p, mass), wanted = said(found[row]), said(whole[row])
        if kind is not PackedEngine:
            assert (text, p, mass) == wanted
        # packed, the pass is shorter without the row's draft, and float32 sums end otherwise
        assert text == wanted[0] and p == pytest.approx(wanted[1], abs=1e-6)
    # of the next batch, a shorter row lies where the poisoned one did: none of it must be left
    for again in judge.judge([given[1]] * 3 + [given[5]])[:3]:
        assert said(again)[0] == said(whole[1])[0]


def test_what_running_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 55)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    for text in (
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
        "Triton Error [CUDA]: out of memory",
    ):
        assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize("reason", [False, True])
@pytest.mark.parametrize(("most", "split"), [(4, True), (1, True), (0, None)])
def test_memory_runs_out(
    released: Loaded, monkeypatch: pytest.MonkeyPatch, most: int, split: bool | None, reason: bool
) -> None:
    """Batches that do not fit are halved; a row that does not fit alone is an error record."""
    given = prompts_of(released)
    whole = judge_of(released, released.model, PackedEngine, reason).judge(given)
    judge = judge_of(released, released.model, PackedEngine, reason)
    forward = type(released.model).forward

    @functools.wraps(forward)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(judge.engine, PackedEngine)
        if judge.engine._latest is not None and judge.engine._latest.blocks.rows > most:
            torch.empty(1 << 55)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(released.model), "forward", refusing)
    found = judge.judge(given)
    if split is None:
        assert all(isinstance(r, RowError) and r.code == "out-of-memory" for r in found)
        return
    for before, after in zip(whole, found, strict=True):
        assert isinstance(before, Reading) and isinstance(after, Reading)
        assert "split-batch" in after.flags and after.line.text == before.line.text
        assert after.line.p == pytest.approx(before.line.p, abs=2e-5)
        assert after.reason == before.reason
