"""The paper's tables from the records of each command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Done, Jlm, pair, read_rows, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from jlm_cli.ranking import n_moved, ranking_of


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def summary(done: Done) -> dict[str, Any]:
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


def ranked(row_id: Any, scores: list[float], **more: Any) -> dict[str, Any]:
    """A record of `jlm rank`."""
    texts = [f"answer {n} " * (n + 1) for n in range(len(scores))]
    sample = {"question": f"Question {row_id}?", "answers": texts, "reference": None}
    names = [f"m{n}" for n in range(len(scores))]
    sample |= {"models": more.pop("models", names), "category": None}
    record = {"id": row_id, "line": 1, "mode": "rank", "scores": scores, "expected": scores}
    return {
        **record,
        "ranking": ranking_of(scores),
        "flags": [],
        "gold": None,
        "sample": sample,
        **more,
    }


def pair_of(row: dict[str, Any], first: int, second: int, verdict: str) -> dict[str, Any]:
    """A record of `jlm judge` for two of a ranking's answers."""
    sample = row["sample"]
    names = sample["models"] and [sample["models"][first], sample["models"][second]]
    texts = [sample["answers"][first], sample["answers"][second]]
    return {
        "id": row["id"],
        "mode": "judge",
        "verdict": verdict,
        "sample": {"question": sample["question"], "answers": texts, "models": names},
    }


def all_pairs(row: dict[str, Any], merit: list[float]) -> list[dict[str, Any]]:
    rows = []
    for n, (first, second) in enumerate(itertools.combinations(range(len(merit)), 2)):
        if n % 2:  # a judgment may name them in any order
            first, second = second, first
        one, two = merit[first], merit[second]
        rows.append(pair_of(row, first, second, "1" if one > two else "2" if two > one else "tie"))
    return rows


@pytest.mark.parametrize("models", [["a", "b", "c"], None], ids=["by model", "by text"])
def test_rank_against_pairs(tmp_path: Path, jlm: Jlm, models: Any) -> None:
    """Table 10: one ranking that is the same, one with two places exchanged, one turned round."""
    scores: dict[str, list[float]] = {
        "same": [9, 5, 3],
        "two": [9, 5, 3],
        "three": [9, 5, 3],
        "ties": [7, 7, 3],
    }
    merit = {"same": [3, 2, 1], "two": [3, 1, 2], "three": [1, 3, 2], "ties": [2, 2, 1]}
    rows = [
        ranked(name, [float(score) for score in scores[name]], models=models) for name in scores
    ]
    write_rows(tmp_path / "rank.jsonl", rows)
    pairs = [pair for row in rows for pair in all_pairs(row, [float(m) for m in merit[row["id"]]])]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    words = ["metrics", "rank.jsonl", "--gold", "pairs.jsonl", "--protocol", "rank"]
    found = summary(jlm(*words, "--json"))
    assert found["ranking"]["consistency"]["value"] == 0.5
    assert found["ranking"]["error_rate_2"]["value"] == 0.25
    assert found["ranking"]["error_rate_3"]["value"] == 0.25
    assert found["ranking"]["n"] == 4 and found["n_incomplete"] == 0
    assert found["baselines"]["given_order"]["consistency"]["value"] == 0.25
    assert found["baselines"]["longest_first"]["consistency"]["value"] == 0
    table = jlm(*words, "--html", "report.html")
    assert "error rate@2" in table.out and "longest first" in table.out
    assert "rankings equal to those of pairs" in (tmp_path / "report.html").read_text()


def test_rank_needs_all_pairs(tmp_path: Path, jlm: Jlm) -> None:
    rows = [ranked(1, [9.0, 5.0, 3.0]), ranked(2, [9.0, 5.0, 3.0])]
    write_rows(tmp_path / "rank.jsonl", rows)
    pairs = all_pairs(rows[0], [3, 2, 1])
    write_rows(tmp_path / "pairs.jsonl", [*pairs, *all_pairs(rows[1], [3, 2, 1])[:2]])
    words = ["metrics", "rank.jsonl", "--protocol", "rank", "--gold"]
    found = summary(jlm(*words, "pairs.jsonl", "--json"))
    assert (found["ranking"]["n"], found["n_incomplete"]) == (1, 1)
    write_rows(tmp_path / "some.jsonl", pairs[:1])
    done = jlm(*words, "some.jsonl")
    assert done.code == 2 and "no ranking has all its pairs" in done.err


def test_gold_that_names_models_in_another_order(tmp_path: Path, jlm: Jlm) -> None:
    """Is put into the order of the record, whichever protocol reads it."""
    write_rows(tmp_path / "rank.jsonl", [ranked(1, [9.0, 5.0, 1.0])])
    gold = {"id": 1, "gold": [5, 1, 9], "models": ["m1", "m2", "m0"]}
    write_rows(tmp_path / "gold.jsonl", [gold])
    words = ["--protocol", "rank", "--gold", "gold.jsonl", "--json"]
    found = summary(jlm("metrics", "rank.jsonl", *words))
    assert found["ranking"]["consistency"]["value"] == 1
    sample = {"question": "Q", "answers": ["a", "b"], "models": ["x", "y"]}
    row = {"mode": "judge", "aspects": {"fluency": aspect([8, 5], "1")}, "sample": sample}
    write_rows(tmp_path / "aspects.jsonl", [{"id": n, **row} for n in range(3)])
    turned = ["2", [3, 8], {"fluency": "3 8\nbecause"}]
    gold_rows = [{"id": n, "gold": one, "models": ["y", "x"]} for n, one in enumerate(turned)]
    write_rows(tmp_path / "gold.jsonl", gold_rows)
    words[1] = "aspects"
    found = summary(jlm("metrics", "aspects.jsonl", *words))
    assert found["objective"]["agreement"]["value"] == 1


def test_grades_without_ids_or_questions_are_alone(tmp_path: Path, jlm: Jlm) -> None:
    rows = [graded(None, 1 + n % 9, gold=[n % 7 + 1]) for n in range(40)]
    write_rows(tmp_path / "grade.jsonl", rows)
    found = summary(jlm("metrics", "grade.jsonl", "--protocol", "grade", "--json"))
    low, high = found["objective"]["spearman"]["ci95"]
    assert low < found["objective"]["spearman"]["value"] < high
    write_rows(tmp_path / "gold.jsonl", [{"id": 1, "gold": 3}])
    words = ["metrics", "grade.jsonl", "--protocol", "grade", "--gold", "gold.jsonl"]
    assert jlm(*words).code == 2
    write_rows(tmp_path / "grade.jsonl", [graded(1, 5.0, gold=[5], sample=[1])])
    done = jlm("metrics", "grade.jsonl", "--protocol", "grade")
    assert done.code == 2 and "grade.jsonl:1: field sample: not as jlm" in done.err


def test_both_orders_of_a_pair_are_one(tmp_path: Path, jlm: Jlm) -> None:
    """In whichever order they stand; a conflict is a tie, the same order again is refused."""
    write_rows(tmp_path / "rank.jsonl", [ranked(1, [5.0, 5.0]), ranked(2, [9.0, 5.0])])
    pairs = [
        {"id": 1, "pair": [1, 2], "verdict": "1"},
        {"id": 1, "pair": [2, 1], "verdict": "1"},
        {"id": 2, "pair": [1, 2], "verdict": "1"},
        {"id": 2, "pair": [2, 1], "verdict": "2"},
    ]
    words = ["metrics", "rank.jsonl", "--protocol", "rank", "--gold", "pairs.jsonl"]
    for some in (pairs, pairs[::-1]):
        write_rows(tmp_path / "pairs.jsonl", some)
        assert summary(jlm(*words, "--json"))["ranking"]["consistency"]["value"] == 1
    write_rows(tmp_path / "pairs.jsonl", [*pairs, pairs[2]])
    done = jlm(*words)
    assert (done.code, done.err) == (2, "jlm: pairs.jsonl:5: answers 1 and 2 were judged before\n")


def test_rankings_without_pairs_are_named_and_failed_ones_counted(tmp_path: Path, jlm: Jlm) -> None:
    rows = [ranked(n, [9.0, 5.0]) for n in (1, 2)]
    failed = {"id": 3, "mode": "rank", "error": {"code": "too-long", "message": "…"}}
    write_rows(tmp_path / "rank.jsonl", [*rows, failed])
    pairs = [{"id": n, "pair": [1, 2], "verdict": "1"} for n in (1, "1", 7)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    words = ["metrics", "rank.jsonl", "--protocol", "rank", "--gold", "pairs.jsonl", "--json"]
    done = jlm(*words)
    found = json.loads(done.out)
    assert (found["n_judged"], found["n_error"], found["n_incomplete"]) == (2, 1, 1)
    missing = {"only_there": ["1", 7], "only_in_predictions": [2]}
    assert found["joined"]["gold"] == missing
    assert "2 ids of gold are not among the predictions of rank: '1', 7" in done.err
    assert "1 predictions of rank have no row in gold: 2" in done.err


@pytest.mark.parametrize("ranking", [[1, 2], [1, [2, 2]], [1, 2, "3"], 5])
def test_a_ranking_holds_every_answer_once(tmp_path: Path, jlm: Jlm, ranking: Any) -> None:
    row = ranked(1, [9.0, 5.0, 3.0], pairwise={"ranking": ranking})
    write_rows(tmp_path / "rank.jsonl", [row])
    done = jlm("metrics", "rank.jsonl", "--protocol", "rank")
    assert done.code == 2
    assert done.err == (
        "jlm: rank.jsonl:1: field pairwise.ranking: the numbers of all 3 answers are needed, "
        "each once\n"
    )


def test_rank_against_scores_of_gold(tmp_path: Path, jlm: Jlm) -> None:
    rows = [ranked(1, [9.0, 5.0, 3.0, 1.0], gold=[4, 3, 2, 1]), ranked(2, [1.0, 2.0], gold=[9, 3])]
    write_rows(tmp_path / "rank.jsonl", rows)
    found = summary(jlm("metrics", "rank.jsonl", "--protocol", "rank", "--json"))
    assert found["ranking"]["consistency"]["value"] == 0.5
    assert found["ranking"]["error_rate_2"]["value"] == 0.5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=5), st.randoms())
def test_rankings_differ_in_none_or_at_least_two_places(scores: list[int], draw: Any) -> None:
    """So that consistency and the error rates add up to one."""
    other = list(scores)
    draw.shuffle(other)
    assert n_moved(ranking_of(scores), ranking_of(other)) != 1


def test_rank_with_pairs_in_its_records(tmp_path: Path, jlm: Jlm) -> None:
    """What `jlm rank --compare` writes, and sums up itself."""
    answers = [["a" * n, "b", "c" * (9 - n)] for n in range(1, 9)]
    rows = [{"question": f"Question {n}?", "answers": each} for n, each in enumerate(answers)]
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("rank", "in.jsonl", "--compare", "-q").code == 0
    wanted = json.loads((tmp_path / "in.rank.metrics.json").read_text())["compare"]
    found = summary(jlm("metrics", "in.rank.jsonl", "--protocol", "rank", "--json"))
    assert found["ranking"] == wanted and found["against"] == "pairs"
    records = read_rows(tmp_path / "in.rank.jsonl")
    gold: dict[str, Any] = {"gold": [1.0, 2.0, 3.0]}
    rows = [{**one, **gold} for one in records]
    del rows[0]["pairwise"]  # gold and pairs are not mixed
    write_rows(tmp_path / "some.jsonl", rows)
    found = summary(jlm("metrics", "some.jsonl", "--protocol", "rank", "--json"))
    assert found["ranking"]["n"] == 7 and found["against"] == "pairs"
    alone: list[dict[str, Any]] = [{**one, **gold, "pairwise": None} for one in records]
    write_rows(tmp_path / "gold.jsonl", alone)
    done = jlm("metrics", "gold.jsonl", "--protocol", "rank")
    assert "ranking at once against gold" in done.out


@pytest.mark.parametrize("name", ["answers", "models"])
def test_a_ranking_of_other_answers_than_its_sample(tmp_path: Path, jlm: Jlm, name: str) -> None:
    row = ranked(1, [5.0, 7.0], gold=[1.0, 2.0])
    row["sample"][name] = ["a", "b", "c"]
    write_rows(tmp_path / "rank.jsonl", [row])
    done = jlm("metrics", "rank.jsonl", "--protocol", "rank")
    assert done.code == 2 and f"rank.jsonl:1: field sample.{name}: one for each" in done.err


def test_verdicts_of_pairs_named_by_their_models(tmp_path: Path, jlm: Jlm) -> None:
    row = ranked(1, [5.0, 7.0, 9.0])
    write_rows(tmp_path / "rank.jsonl", [row])
    pairs = [("m0", "m1"), ("m0", "m2"), ("m1", "m2")]
    said = [{"id": 1, "verdict": "2", "models": list(models)} for models in pairs]
    write_rows(tmp_path / "pairs.jsonl", said)
    words = ["--gold", "pairs.jsonl", "--protocol", "rank", "--json"]
    found = summary(jlm("metrics", "rank.jsonl", *words))
    assert found["ranking"]["consistency"]["value"] == 1


def graded(row_id: Any, score: float, **more: Any) -> dict[str, Any]:
    """A record of `jlm grade`."""
    record = {"id": row_id, "line": 1, "mode": "grade", "scores": [score], "score": score}
    return {**record, "flags": [], "gold": None, **more}


def test_mmvet(tmp_path: Path, jlm: Jlm) -> None:
    """Table 9: grades as right, half, wrong, against people."""
    scores = {"a": 10.0, "b": 8.0, "c": 7.5, "d": 5.0, "e": 2.5, "f": 2.0, "g": 1.0, "h": 9.0}
    people = {
        "a": 1,
        "b": "half",
        "c": 0.5,
        "d": "half",
        "e": 0,
        "f": 0,
        "g": "wrong",
        "h": "right",
    }
    rows = [graded(name, score) for name, score in scores.items()]
    rows.append({"id": "x", "line": 9, "mode": "grade", "error": {"code": "nan", "message": "…"}})
    rows.append(graded("no gold", 3.0))
    write_rows(tmp_path / "grade.jsonl", rows)
    write_rows(tmp_path / "gold.jsonl", [{"id": name, "gold": one} for name, one in people.items()])
    words = ["metrics", "grade.jsonl", "--gold", "gold.jsonl", "--protocol", "mmvet"]
    done = jlm(*words, "--json")
    found = json.loads(done.out)
    assert done.err == "jlm: 1 predictions of grade have no row in gold: 'no gold'\n"
    said = ["right", "right", "half", "half", "half", "wrong", "wrong", "right"]
    gold = ["right", "half", "half", "half", "wrong", "wrong", "wrong", "right"]
    wanted = precision_recall_fscore_support(gold, said, average="macro")
    one = found["objective"]
    assert one["agreement"]["value"] == 0.75 and (one["n"], found["n_error"]) == (8, 1)
    assert (found["n_judged"], found["gold"]["n"]) == (9, 8)
    values = [one[name]["value"] for name in ("precision", "recall", "f1")]
    assert values == pytest.approx(list(wanted[:3]), abs=1e-6)
    assert one["confusion"]["half"] == {"right": 1, "half": 2, "wrong": 0}
    assert found["baselines"]["majority"]["agreement"]["value"] == 0.375
    assert "accuracy" in jlm(*words, "--html", "report.html").out
    assert "Confusion matrix" in (tmp_path / "report.html").read_text()


def test_mmvet_reads_the_gold_of_records(tmp_path: Path, jlm: Jlm) -> None:
    """Records hold 1, 0.5 and 0 as lists of one score."""
    grades = [(10.0, 1.0), (5.0, 0.5), (1.0, 0.0)]
    rows = [graded(n, score, gold=[gold]) for n, (score, gold) in enumerate(grades)]
    write_rows(tmp_path / "grade.jsonl", rows)
    found = summary(jlm("metrics", "grade.jsonl", "--protocol", "mmvet", "--json"))
    assert found["objective"]["agreement"]["value"] == 1.0
    write_rows(tmp_path / "grade.jsonl", [*rows, graded(9, 9.0, gold=[9.0])])
    done = jlm("metrics", "grade.jsonl", "--protocol", "mmvet")
    assert "grade: gold is taken for scores of 0 to 10" in done.err


def test_a_question_graded_many_times_counts_once(tmp_path: Path, jlm: Jlm) -> None:
    """Intervals of 30 questions stay those of 30, however many answers each has."""
    once = [
        graded(n, 1 + n * 7 % 10, gold=[n % 10 + 0.5], sample={"question": f"Q{n}", "models": None})
        for n in range(30)
    ]
    found = []
    for name, rows in (("once", once), ("often", once * 20)):
        write_rows(tmp_path / f"{name}.jsonl", rows)
        words = ["metrics", f"{name}.jsonl", "--protocol", "grade", "--json"]
        found.append(summary(jlm(*words))["objective"]["spearman"])
    assert found[0]["value"] == found[1]["value"]
    assert found[0]["ci95"] == pytest.approx(found[1]["ci95"], abs=0.06)  # by rows: ± 0.08 in all


def test_one_answer_graded_many_times_passes_once(tmp_path: Path, jlm: Jlm) -> None:
    rows = [
        graded(n, 8.0, sample={"question": f"Q{n % 15}", "models": None}, **{"pass": n % 15 < 10})
        for n in range(600)
    ]
    write_rows(tmp_path / "grade.jsonl", rows)
    done = jlm("metrics", "grade.jsonl", "--protocol", "grade", "--json")
    found = json.loads(done.out)["pass_rate"]
    low, high = found["ci95"]
    assert found["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert low < 0.5 and high > 0.8  # by rows: 0.63 to 0.70


def test_a_bare_number_is_gold(tmp_path: Path, jlm: Jlm) -> None:
    rows = [graded(n, float(n), gold=n + 0.5) for n in range(5)]
    write_rows(tmp_path / "grade.jsonl", rows)
    found = summary(jlm("metrics", "grade.jsonl", "--protocol", "grade", "--json"))
    assert found["objective"]["mean_absolute_error"]["value"] == 0.5
    write_rows(tmp_path / "grade.jsonl", [graded(1, 5.0, gold=[1, 2])])
    done = jlm("metrics", "grade.jsonl", "--protocol", "grade")
    wanted = "jlm: grade.jsonl:1: id 1: field gold: one score is needed\n"
    assert (done.code, done.err) == (2, wanted)


@pytest.mark.parametrize("gold", [[], ["7"], {"a": 1}, True, [1, 2]])
def test_gold_that_is_no_grade(tmp_path: Path, jlm: Jlm, gold: Any) -> None:
    write_rows(tmp_path / "grade.jsonl", [graded(1, 5.0)])
    write_rows(tmp_path / "gold.jsonl", [{"id": 1, "gold": gold}])
    done = jlm("metrics", "grade.jsonl", "--gold", "gold.jsonl", "--protocol", "grade")
    assert (done.code, done.err) == (2, "jlm: gold.jsonl: id 1: field gold: one score is needed\n")


def test_grades_as_jlm_grade_sums_them_up(tmp_path: Path, jlm: Jlm) -> None:
    rows = [
        {"id": n, "question": f"Q{n}?", "answer": "a" * n, "reference": "r", "gold": n % 11}
        for n in range(20)
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("grade", "in.jsonl", "-q").code == 0
    wanted = json.loads((tmp_path / "in.grade.metrics.json").read_text())
    words = ["metrics", "in.grade.jsonl", "--protocol", "grade"]
    found = summary(jlm(*words, "--json"))
    assert found["objective"] == wanted["objective"] and found["scores"] == wanted["scores"]
    other = [{"id": n, "gold": 20 - n} for n in range(20)]
    write_rows(tmp_path / "gold.jsonl", other)
    turned = summary(jlm(*words, "--gold", "gold.jsonl", "--json"))
    assert turned["objective"]["n"] == 20 and turned["objective"] != found["objective"]
    assert "Spearman's ρ" in jlm(*words, "--html", "report.html").out


def aspect(scores: list[float], verdict: str) -> dict[str, Any]:
    p = {"1": 0.2, "2": 0.2, "tie": 0.6}
    return {"scores": scores, "verdict": verdict, "p": p, "expected": scores, "text": "…"}


def test_aspects(tmp_path: Path, jlm: Jlm) -> None:
    """Table 16: one row for each aspect, one for all."""
    golds = ["1", [3, 8], {"fluency": "1", "novelty": "tie"}]
    rows = [
        {
            "id": n,
            "line": n + 1,
            "mode": "judge",
            "aspects": {"fluency": aspect([8, 5], "1"), "novelty": aspect([5, 5], "tie")},
            "gold": gold,
            "flags": [],
            "sample": {"question": f"Q{n}", "answers": ["long answer", "a"], "models": None},
        }
        for n, gold in enumerate(golds)
    ]
    rows.append({"id": 3, "mode": "judge", "error": {"code": "too-long", "message": "…"}})
    write_rows(tmp_path / "aspects.jsonl", rows)
    words = ["metrics", "aspects.jsonl", "--protocol", "aspects"]
    found = summary(jlm(*words, "--json"))
    agreement = {name: one["objective"]["agreement"] for name, one in found["aspects"].items()}
    assert agreement["fluency"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert agreement["novelty"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["objective"]["agreement"]["value"] == 0.5 and found["objective"]["n"] == 6
    assert (found["n_judged"], found["n_error"]) == (3, 1)
    assert set(found["baselines"]) == {"longest_answer", "first_answer", "majority"}
    gold = [{"id": n, "gold": "1"} for n in range(3)]
    write_rows(tmp_path / "gold.jsonl", gold)
    other = summary(jlm(*words, "--gold", "gold.jsonl", "--json"))
    assert other["aspects"]["fluency"]["objective"]["agreement"]["value"] == 1
    assert "aspects: novelty" in jlm(*words, "--html", "report.html").out


def test_pandalm(tmp_path: Path, jlm: Jlm) -> None:
    """Table 2 from official files: two runs, gold by majority, a conflict is a tie."""
    texts = ["8 5\n", "5 8\n", "7 7", "9 1", "oops"]
    turned = ["5 8\n", "5 8\n", "7 7", "1 9", "8 5"]
    votes = [(1, 1, 2), (2, 2, 2), (0, 0, 1), (2, 2, 0), (1, 2, 0)]
    gold = [
        {"idx": n, "instruction": f"Do {n}.", "input": "", "response1": "one", "response2": True}
        | {f"annotator{k}": vote for k, vote in enumerate(three, start=1)}
        for n, three in enumerate(votes)
    ]
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    for name, lines in (("pred", texts), ("turned", turned)):
        rows = [{"question_id": n, "pred_text": text} for n, text in enumerate(lines)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    words = ["metrics", "pred.jsonl", "--gold", "gold.json", "--protocol", "pandalm"]
    done = jlm(*words, "--reversed", "turned.jsonl", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and "1 rows have gold without a verdict: 4" in done.err
    # finals: 1, tie (a conflict), tie, 1
    assert found["combined"]["accuracy"]["value"] == 0.5
    assert found["reliability"]["consistency"]["value"] == 0.75
    assert found["reliability"]["bias_second"]["value"] == 0.25
    assert found["gold"]["split"] == {"1": 0, "2": 0, "tie": 0, "none": 1}
    assert (found["n_judged"], found["n_error"], found["errors"]) == (4, 1, {"unparsable": 1})
    assert found["annotators"]["human_human"]["value"] == pytest.approx(2 / 4, abs=1e-6)
    assert found["n_error_swapped"] == 0 and found["failures_swapped"]["n"] == 0
    failing = [{"question_id": n, "pred_text": "5 8" if n else "hm"} for n in range(5)]
    write_rows(tmp_path / "failing.jsonl", failing)
    done = jlm(*words, "--reversed", "failing.jsonl")
    assert "failed, other order" in done.out and "2 rows without a verdict in both" not in done.err
    assert {
        one["n"]
        for one in json.loads(jlm(*words, "--reversed", "failing.jsonl", "--json").out)[
            "baselines"
        ].values()
    } == {3}
    assert "needs both orders" in jlm(*words).err and jlm(*words).code == 2


def test_rewardbench(tmp_path: Path, jlm: Jlm) -> None:
    said = [("chat", "1", "1"), ("chat", "2", "1"), ("chat", "tie", "1"), ("safety", "2", "2")]
    rows = [
        {"id": n, "verdict": verdict, "gold": gold, "category": subset}
        for n, (subset, verdict, gold) in enumerate(said)
    ]
    write_rows(tmp_path / "pred.jsonl", rows)
    words = ["metrics", "pred.jsonl", "--protocol", "rewardbench"]
    found = summary(jlm(*words, "--json"))["rewardbench"]
    assert found["accuracy"]["value"] == 0.5 and found["ties_half"]["value"] == 0.625
    assert found["subsets"]["chat"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    one = {"accuracy": {"value": 1.0, "ci95": [None, None]}, "n": 1}
    assert found["subsets"]["safety"] == one
    write_rows(tmp_path / "turned.jsonl", rows[::-1])
    turned = summary(jlm("metrics", "turned.jsonl", *words[2:], "--json"))
    assert turned["rewardbench"] == found
    assert found["subset_mean"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    more = [{"id": 9 + n, "verdict": "1", "gold": "tie", "category": "chat"} for n in range(9)]
    write_rows(tmp_path / "pred.jsonl", rows + more)  # which it leaves out, as its baselines do
    done = jlm(*words, "--json")
    first = json.loads(done.out)["baselines"]["first_answer"]
    assert (first["n"], first["agreement"]["value"]) == (4, 0.75)
    assert "pred: 9 rows whose gold is a tie are not measured" in done.err
    bare = [{"id": 20 + n, "verdict": "2", "gold": "1"} for n in range(4)]
    bare += [{"id": 30, "verdict": "1", "gold": "1", "category": 7}]
    write_rows(tmp_path / "pred.jsonl", rows + bare)  # no row is left out for want of a subset
    found = summary(jlm(*words, "--json"))["rewardbench"]
    assert found["n"] == 9 and found["accuracy"]["value"] == pytest.approx(3 / 9, abs=1e-6)
    assert found["subset_mean"]["value"] == pytest.approx((1 / 3 + 1 + 1) / 3, abs=1e-6)
    assert found["subsets"]["(no subset)"]["n"] == 4 and found["subsets"]["7"]["n"] == 1
    assert "mean of subsets" in jlm(*words, "--html", "report.html").out


def test_grades_name_the_ids_that_gold_misses(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "p.jsonl", [{"id": n, "score": n, "expected": n} for n in range(6)])
    words = ["metrics", "p.jsonl", "--protocol", "grade", "--json", "--gold"]
    gold = [
        {"id": 0, "score": 1},
        {"id": 1, "gold": 2},
        {"id": 2, "gold": "bad"},
        {"id": 9, "gold": 3},
    ]
    write_rows(tmp_path / "gold.jsonl", gold)
    done = jlm(*words, "gold.jsonl")
    assert json.loads(done.out)["objective"]["n"] == 2
    assert "1 ids of gold are not among the predictions of p: 9" in done.err
    assert "3 predictions of p have no row in gold: 3, 4, 5" in done.err
    assert "1 rows have gold without a verdict: 2" in done.err
    write_rows(tmp_path / "gold.jsonl", [{"id": str(n), "gold": n} for n in range(6)])
    done = jlm(*words, "gold.jsonl")
    assert done.code == 2 and "p.jsonl: shares no id with gold.jsonl (which has '0'" in done.err
    write_rows(tmp_path / "p.jsonl", [{"id": 1, "score": 3, "expected": 3}] * 2)
    write_rows(tmp_path / "gold.jsonl", [{"id": 1, "gold": 3}])
    done = jlm(*words, "gold.jsonl")
    assert done.code == 2 and "p.jsonl:2: id 1 appears twice" in done.err
    done = jlm("metrics", "p.jsonl", "--protocol", "grade")
    assert "no gold, so no agreement; give --gold" in done.err


@pytest.mark.parametrize("n, named", [(4, 1), (3, 2)])
def test_baselines_are_of_the_rows_they_were_measured_on(
    tmp_path: Path, jlm: Jlm, n: int, named: int
) -> None:
    rows: list[dict[str, Any]] = [
        {"id": k, "verdict": "12"[k % 2], "gold": "12"[k > 2]} for k in range(4)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", rows[:n])
    done = jlm("metrics", "a.jsonl", "b.jsonl")
    assert done.code == 0
    lines = [line for line in done.out.splitlines() if line.startswith("baseline")]
    assert sum("majority" in line for line in lines) == named
    assert any(line.startswith("baseline, b: majority") for line in lines) == (named == 2)


def test_rankings_are_no_verdicts_on_pairs(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    assert jlm("judge", "in.jsonl", "-q").code == 0
    done = jlm("metrics", "in.judge.jsonl", "--protocol", "rank")
    assert done.code == 2 and "in.judge.jsonl:1: a verdict on a pair, not a ranking" in done.err
    done = jlm("metrics", "in.judge.jsonl", "--protocol", "grade")
    assert done.code == 2 and "in.judge.jsonl:1: field score is missing" in done.err


@pytest.mark.parametrize("fewest", [1, 30])
def test_a_mean_of_subsets_needs_some_rows_of_each(tmp_path: Path, jlm: Jlm, fewest: int) -> None:
    rows = [
        {"id": f"{name}{n}", "gold": "1", "verdict": "21"[n % 3 > 0], "category": name}
        for name, size in (("a", fewest), ("b", 100))
        for n in range(size)
    ]
    write_rows(tmp_path / "r.jsonl", rows)
    found = json.loads(jlm("metrics", "r.jsonl", "--protocol", "rewardbench", "--json").out)
    low, high = found["rewardbench"]["subset_mean"]["ci95"]
    assert (low is high is None) if fewest == 1 else low < high


def test_rankings_that_all_failed(tmp_path: Path, jlm: Jlm) -> None:
    failed = {"id": 1, "line": 1, "mode": "rank", "error": {"code": "n-answers", "message": "…"}}
    write_rows(tmp_path / "r.jsonl", [failed, failed])
    done = jlm("metrics", "r.jsonl", "--protocol", "rank")
    assert done.code == 2 and "r.jsonl: holds no ranking, 2 error records alone" in done.err


def test_names_of_subsets_are_told_apart(tmp_path: Path, jlm: Jlm) -> None:
    """However long they are, and whatever they end in."""
    names = ["c", "c\0", "c" * 100_000]
    rows = [{"id": n, "gold": "1", "verdict": "1", "category": names[n % 3]} for n in range(9)]
    write_rows(tmp_path / "r.jsonl", rows)
    found = json.loads(jlm("metrics", "r.jsonl", "--protocol", "rewardbench", "--json").out)
    assert list(found["rewardbench"]["subsets"]) == sorted(names)


def test_rankings_without_pairs_have_a_leaderboard(tmp_path: Path, jlm: Jlm) -> None:
    """That of the run, as tables and files have it too."""
    names = [f"model {n}" for n in range(15)]
    rows = [
        {"question": f"Q{n}?", "answers": [f"{n} {name}" for name in names], "models": names}
        for n in range(4)
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    done = jlm("rank", "in.jsonl", "--method", "pairwise")
    assert done.code == 0 and all(done.err.count(f"{name} ") == 1 for name in names[2:])
    run = json.loads((tmp_path / "in.rank.metrics.json").read_text())
    words = ("metrics", "in.rank.jsonl", "--protocol", "rank")
    found = json.loads(jlm(*words, "--json").out)
    assert found["leaderboard"] == run["leaderboard"] and "ranking" not in found
    done = jlm(*words, "--html", "r.html", "--csv", "r.csv")
    assert done.code == 0 and "no ranking has all its pairs" in done.err
    assert "Bradley-Terry strength" in done.out
    assert (tmp_path / "r.csv").read_text().count("leaderboard,model") == 45
    assert "Bradley-Terry strength" in (tmp_path / "r.html").read_text()


def test_aspects_of_grades_are_grades(tmp_path: Path, jlm: Jlm) -> None:
    row = {"id": 1, "question": "Q?", "answer": "A", "reference": "R"}
    write_rows(tmp_path / "in.jsonl", [row])
    assert jlm("grade", "in.jsonl", "--aspect", "fluency", "-q").code == 0
    done = jlm("metrics", "in.grade.jsonl", "--protocol", "aspects")
    assert (done.code, done.err) == (
        2, "jlm: in.grade.jsonl:1: grades, not verdicts on pairs; use --protocol grade\n"
    )  # fmt: skip
