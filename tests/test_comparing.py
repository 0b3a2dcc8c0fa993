"""Judges side by side: on the verdicts that the protocol measures, in whatever order they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Jlm, pair, read_rows, write_rows


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def compared(jlm: Jlm, *words: str) -> dict[str, Any]:
    done = jlm("metrics", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("protocol", ["judgelm", "pandalm", "rewardbench"])
def test_the_difference_is_that_of_the_headline(tmp_path: Path, jlm: Jlm, protocol: str) -> None:
    """The first judge is right in the given order and turns with it; the second is steadier."""
    about = {"gold": "1", "category": "c"}
    turning = [{"verdict": "1", "swapped": {"verdict": "2"}} for _ in range(20)]
    steady = [{"verdict": v, "swapped": {"verdict": v}} for v in ["1"] * 12 + ["2"] * 8]
    for name, rows in (("a", turning), ("b", steady)):
        write_rows(tmp_path / f"{name}.jsonl", [pair(n, **about, **r) for n, r in enumerate(rows)])
    found = compared(jlm, "a.jsonl", "b.jsonl", "--protocol", protocol)
    one = found["comparison"]["against"]["b"]
    gain = one["difference"]["agreement"]["value"]
    path = {
        "judgelm": ("objective", "agreement"),
        "pandalm": ("combined", "accuracy"),
        "rewardbench": ("rewardbench", "accuracy"),
    }[protocol]
    headline = [found["judges"][judge][path[0]][path[1]]["value"] for judge in "ab"]
    assert gain == pytest.approx(headline[1] - headline[0])
    assert gain == (-0.4 if protocol == "judgelm" else 0.6)
    assert one["mcnemar"]["only_other_right"] == (0 if protocol == "judgelm" else 12)


def test_ids_that_repeat_in_one_file_are_told_apart_by_models(tmp_path: Path, jlm: Jlm) -> None:
    some = [pair(n, models=["a", "b"], verdict="1") for n in range(10)]
    more = [pair(n, models=["a", "b"], verdict="1") for n in range(10)]
    more += [pair(n, models=["a", "c"], verdict="2") for n in range(10)]
    write_rows(tmp_path / "some.jsonl", some)
    for name, rows in (("more", more), ("turned", more[::-1])):
        write_rows(tmp_path / f"{name}.jsonl", rows)
        for words in (("some.jsonl", f"{name}.jsonl"), (f"{name}.jsonl", "some.jsonl")):
            done = jlm("metrics", *words, "--json")
            found = json.loads(done.out)["comparison"]
            (against,) = found["against"].values()
            assert against["same_verdict"]["agreement"]["value"] == 1
            assert against["same_verdict"]["n"] == found["n"] == 10
            assert f"10 rows of {name} are not among those of all judges" in done.err


def test_gold_of_any_judge_counts(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "bare.jsonl", [{"id": n, "verdict": "1"} for n in range(8)])
    rows = [{"id": n, "verdict": "2", "gold": "1" if n % 2 else "2"} for n in range(8)]
    write_rows(tmp_path / "known.jsonl", rows)
    gains = []
    for words in (("bare.jsonl", "known.jsonl"), ("known.jsonl", "bare.jsonl")):
        found = compared(jlm, *words, "--html", "report.html")
        (against,) = found["comparison"]["against"].values()
        gains.append(against["mcnemar"]["only_first_right"])
        assert against["difference"]["n"] == 8
    assert gains == [4, 4]
    assert "Agreement with gold" in (tmp_path / "report.html").read_text()
    done = jlm("metrics", "bare.jsonl", "known.jsonl", "--disagreements", "d.jsonl")
    assert "Δ agreement" in done.out and "Δ n" not in done.out
    differ = read_rows(tmp_path / "d.jsonl")
    assert [row["gold"] for row in differ] == ["1" if row["id"] % 2 else "2" for row in differ]


def test_rows_of_one_question_change_sides_together(tmp_path: Path, jlm: Jlm) -> None:
    """200 rows, but 8 questions: seven go one way, one the other."""
    for name in "ab":
        rows = [
            {
                "id": f"{question} {n}",
                "question": f"Q{question}",
                "answers": ["one", "two"],
                "gold": "1",
                "verdict": "1" if (question == 0) == (name == "a") else "2",
            }
            for question in range(8)
            for n in range(25)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    found = compared(jlm, "a.jsonl", "b.jsonl")["comparison"]["against"]["b"]["mcnemar"]
    assert (found["only_first_right"], found["only_other_right"]) == (25, 175)
    assert found["p"] == pytest.approx(2 * 9 / 2**8, abs=1e-4)


def test_a_failed_judgment_differs_from_none(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "a.jsonl", [pair(n, verdict="1") for n in range(4)])
    failed = {"mode": "judge", "error": {"code": "too-long", "message": "…"}}
    rows = [pair(0, verdict="2"), pair(1, verdict="1"), {"id": 2, **failed}, {"id": 3, **failed}]
    write_rows(tmp_path / "b.jsonl", rows)
    words = ("metrics", "a.jsonl", "b.jsonl", "--html", "r.html", "--disagreements", "d.jsonl")
    assert jlm(*words).code == 0
    assert 'value="judges differ"> judges differ <small>1<' in (tmp_path / "r.html").read_text()
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 1


def test_disagreements_are_about_the_verdicts_that_are_compared(tmp_path: Path, jlm: Jlm) -> None:
    """The same judge in one order and in both differs from itself in no verdict of the first."""
    swapped = [{"verdict": "2" if n % 2 else "1"} for n in range(10)]
    one = [pair(n, verdict="1", scores=[9, 1]) for n in range(10)]
    write_rows(tmp_path / "one.jsonl", one)
    both = [{**row, "swapped": other} for row, other in zip(one, swapped, strict=True)]
    write_rows(tmp_path / "both.jsonl", both)
    done = jlm("metrics", "one.jsonl", "both.jsonl", "--disagreements", "d.jsonl")
    assert done.code == 0 and (tmp_path / "d.jsonl").read_text() == ""
    other = [{**row, "verdict": "2", "scores": [1, 9]} for row in both[:1]] + both[1:]
    write_rows(tmp_path / "both.jsonl", other)
    assert jlm("metrics", "one.jsonl", "both.jsonl", "--disagreements", "d.jsonl").code == 0
    (row,) = read_rows(tmp_path / "d.jsonl")
    said = {name: (judge["verdict"], judge["scores"]) for name, judge in row["judges"].items()}
    assert said == {"one": ("1", [9, 1]), "both": ("2", [1, 9])}


def test_a_class_that_one_judge_names_counts_in_both_means(tmp_path: Path, jlm: Jlm) -> None:
    """A judge whose few errors are ties is better in F1 than one that errs more often; a tie alone
    is too rare for an interval."""
    golds = ["1", "2"] * 100
    wrong = [("2" if gold == "1" else "1") if n < 90 else gold for n, gold in enumerate(golds)]
    for ties in (1, 25):
        tied = ["tie" if n < ties else gold for n, gold in enumerate(golds)]
        for name, verdicts in (("a", wrong), ("b", tied)):
            rows = [pair(n, gold=golds[n], verdict=said) for n, said in enumerate(verdicts)]
            write_rows(tmp_path / f"{name}.jsonl", rows)
        found = compared(jlm, "a.jsonl", "b.jsonl")
        gain = found["comparison"]["against"]["b"]["difference"]["f1"]
        assert gain["value"] > 0
        for one in (gain, found["judges"]["b"]["objective"]["f1"]):
            low, high = one["ci95"]
            assert (low is None and high is None) if ties == 1 else low <= one["value"] <= high
    assert found["judges"]["a"]["objective"]["f1"]["ci95"][0] is not None


def test_answers_in_the_other_order_are_turned_without_models_too(tmp_path: Path, jlm: Jlm) -> None:
    """Their lengths tell; gold that says something else all the same is told of."""
    there = [pair(n, answers=["Long enough.", "Short."], gold="1", verdict="1") for n in range(40)]
    turned = [pair(n, answers=["Short.", "Long enough."], gold="2", verdict="2") for n in range(40)]
    write_rows(tmp_path / "a.jsonl", there)
    write_rows(tmp_path / "b.jsonl", turned)
    found = compared(jlm, "a.jsonl", "b.jsonl")["comparison"]["against"]["b"]
    assert found["same_verdict"]["agreement"]["value"] == 1 and "n_other_gold" not in found
    assert found["difference"]["agreement"]["value"] == 0
    write_rows(tmp_path / "b.jsonl", [{**row, "gold": "tie"} for row in turned[:3]] + turned[3:])
    done = jlm("metrics", "a.jsonl", "b.jsonl", "--json")
    assert json.loads(done.out)["comparison"]["against"]["b"]["n_other_gold"] == 3
    assert "b: other gold than that of a in 3 of the rows" in done.err


def test_consistency_is_compared_on_rows_of_its_own(tmp_path: Path, jlm: Jlm) -> None:
    for name, other in (("a", "1"), ("b", "2")):
        rows = [pair(n, verdict="1", swapped={"verdict": other}) for n in range(4)]
        write_rows(tmp_path / f"{name}.jsonl", [*rows, pair(9, gold="1", verdict="1")])
    gain = compared(jlm, "a.jsonl", "b.jsonl")["comparison"]["against"]["b"]["difference"]
    assert gain["n"] == 1 and (gain["consistency"]["value"], gain["consistency"]["n"]) == (-1, 4)
