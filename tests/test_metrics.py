"""The figures against scikit-learn, against brute force, and against their own identities."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from jlm_cli import metrics
from jlm_cli.metrics import Tally, longest_answer, summary_of, tally_of
from jlm_cli.records import VERDICTS

VERDICT = st.sampled_from(VERDICTS)
PAIRS = st.lists(st.tuples(VERDICT, VERDICT), min_size=1, max_size=60)


def table(pairs: list[tuple[Any, Any]]) -> np.ndarray[Any, Any]:
    counts = np.zeros((3, 3))
    for row, column in pairs:
        counts[VERDICTS.index(row), VERDICTS.index(column)] += 1
    return counts


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_class_metrics_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    gold, verdict = zip(*pairs, strict=True)
    counts = table(pairs)
    wanted = precision_recall_fscore_support(gold, verdict, average="macro", zero_division=0)
    found = [metrics.precision(counts), metrics.recall(counts), metrics.f1(counts)]
    assert [float(value) for value in found] == pytest.approx(list(wanted[:3]))
    equal = sum(a == b for a, b in pairs) / len(pairs)
    assert float(metrics.agreement(counts)) == pytest.approx(equal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappa = cohen_kappa_score(gold, verdict)
    ours = float(metrics.kappa(counts))
    assert (np.isnan(ours) and np.isnan(kappa)) or ours == pytest.approx(kappa)


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_reliability_identities(pairs: list[tuple[str, str]]) -> None:
    moves = table(pairs)
    total = metrics.consistency(moves) + metrics.bias_first(moves) + metrics.bias_second(moves)
    assert float(total) == pytest.approx(1)
    # the same judgments, had every input been given in the other order
    other = {"1": "2", "2": "1", "tie": "tie"}
    mirrored = table([(other[r], other[v]) for v, r in pairs])
    assert float(metrics.bias_first(mirrored)) == pytest.approx(float(metrics.bias_first(moves)))
    renamed = table([(other[v], other[r]) for v, r in pairs])
    assert float(metrics.bias_first(renamed)) == pytest.approx(float(metrics.bias_second(moves)))
    assert float(metrics.consistency(renamed)) == pytest.approx(float(metrics.consistency(moves)))


@pytest.mark.parametrize(
    ("given_", "swapped", "bias"),
    [
        ("1", "2", "first"),
        ("1", "tie", "first"),
        ("tie", "2", "first"),
        ("2", "1", "second"),
        ("2", "tie", "second"),
        ("tie", "1", "second"),
    ],
)
def test_every_move_counts_once(given_: str, swapped: str, bias: str) -> None:
    moves = table([(given_, swapped)])
    first, second = float(metrics.bias_first(moves)), float(metrics.bias_second(moves))
    assert (first, second) == ((1, 0) if bias == "first" else (0, 1))
    assert float(metrics.delta_bias(moves)) == 1


def test_intervals_are_seeded_and_hold_the_value() -> None:
    counts = table([("1", "1")] * 60 + [("2", "1")] * 25 + [("tie", "2")] * 15)
    found = metrics.figures(metrics.OBJECTIVE, counts)
    assert found == metrics.figures(metrics.OBJECTIVE, counts)
    low, high = found["agreement"]["ci95"]
    assert found["agreement"]["value"] == 0.6
    assert low < 0.6 < high and high - low == pytest.approx(0.192, abs=0.03)


def test_no_rows_give_no_numbers() -> None:
    found = metrics.figures(metrics.OBJECTIVE, np.zeros((3, 3)))
    assert found["f1"] == {"value": None, "ci95": [None, None]}
    assert summary_of(Tally(), swap=True) == {"verdicts": {"1": 0, "2": 0, "tie": 0}}


def test_longest_answer_ties_within_three_characters() -> None:
    assert longest_answer(["abcd", "a"]) == "tie"
    assert longest_answer(["abcde", "a"]) == "1"
    assert longest_answer(["a", "abcde"]) == "2"


def record(verdict: str, gold: Any, swapped: str, answers: list[str]) -> dict[str, Any]:
    combined = verdict if verdict == swapped else "tie"
    return {
        "verdict": verdict,
        "gold": gold,
        "flags": [],
        "swapped": {"verdict": swapped},
        "combined": {"verdict": combined},
        "sample": {"answers": answers, "models": ["a", "b"]},
    }


def test_summary_of_records() -> None:
    records = [
        record("1", "1", "1", ["long answer", "no"]),
        record("1", [3, 7], "2", ["long answer", "no"]),
        record("2", None, "2", ["a", "b"]),
        {"error": {"code": "bad-json", "message": "…"}},
    ]
    tally = tally_of(records)
    found = summary_of(tally, swap=True)
    assert (tally.n_judged, tally.n_error, dict(tally.errors)) == (3, 1, {"bad-json": 1})
    assert found["verdicts"] == {"1": 2, "2": 1, "tie": 0}
    assert found["objective"]["agreement"]["value"] == 0.5
    assert found["objective"]["n"] == 2
    assert found["objective"]["confusion"]["2"] == {"1": 1, "2": 0, "tie": 0}
    assert found["reliability"]["consistency"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["reliability"]["bias_first"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["combined"]["accuracy"]["value"] == 0.5
    assert found["win_rate"]["a"]["value"] == 0.5
    assert found["baselines"]["longest_answer"]["agreement"]["value"] == 0.5
    assert set(found["baselines"]) == {"longest_answer", "first_answer", "majority"}


def test_bootstrap_covers_the_truth() -> None:
    """Of intervals from many draws of one population about 95 % hold its agreement."""
    draw, truth, held = random.Random(0), 0.7, 0
    for _ in range(200):
        hits = sum(draw.random() < truth for _ in range(150))
        counts = table([("1", "1")] * hits + [("1", "2")] * (150 - hits))
        low, high = metrics.figures({"agreement": metrics.agreement}, counts)["agreement"]["ci95"]
        held += low <= truth <= high
    assert 180 <= held <= 199
