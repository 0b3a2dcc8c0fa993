"""grade, rank, aspects, explanation first: from the command line, with the fake engine and real."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Jlm, Loaded, pair, read_rows, write_rows

from jlm_cli.config import Config
from jlm_cli.engine import _up_to_line
from jlm_cli.modes import mode_of
from jlm_cli.ranking import kendall_tau, n_moved, places, ranking_of
from jlm_cli.scoreline import SCORES, Grammar

SAMPLES = ROOT / "samples"


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def graded(row_id: Any, **more: Any) -> dict[str, Any]:
    return {"id": row_id, "question": "Q?", "answer": f"A {row_id}", "reference": "R", **more}


def listed(row_id: Any, *answers: str, **more: Any) -> dict[str, Any]:
    return {"id": row_id, "question": "Q?", "answers": list(answers), **more}


def test_grade_record(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [graded(n, gold=n) for n in range(1, 10)])
    words = ("grade", "in.jsonl", "--pass-mark", "6")
    never = jlm(*words, "--template", "prometheus-absolute")
    assert never.code == 2 and "prometheus-absolute gives 5 at most" in never.err
    done = jlm(*words)
    assert done.code == 0, done.err
    records = read_rows(tmp_path / "in.grade.jsonl")
    for record in records:
        assert set(record["p"]) >= set(map(str, range(1, 11))) and set(record["p"]) <= set(SCORES)
        assert sum(record["p"].values()) == pytest.approx(1, abs=1e-4)
        assert record["pass"] == (record["score"] >= 6) and record["mode"] == "grade"
        assert record["expected"] == pytest.approx(
            sum(float(score) * p for score, p in record["p"].items()), abs=1e-3
        )
    summary = json.loads((tmp_path / "in.grade.metrics.json").read_text())
    assert summary["objective"]["n"] == 9 and "spearman" in summary["objective"]
    passed = sum(record["pass"] for record in records) / 9
    assert summary["pass_rate"]["value"] == pytest.approx(passed, abs=1e-6)
    mean = sum(record["expected"] for record in records) / 9
    assert summary["mean"]["value"] == pytest.approx(mean, abs=1e-6) and summary["mean"]["n"] == 9


def test_grade_without_reference_says_what_to_do(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [graded(1), {"id": 2, "question": "Q?", "answer": "A"}])
    assert jlm("grade", "in.jsonl").code == 3
    good, bad = read_rows(tmp_path / "in.grade.jsonl")
    assert good["score"] and bad["error"]["code"] == "missing-reference"
    assert "--no-reference" in bad["error"]["message"] and "in.jsonl:2" in bad["error"]["message"]
    assert jlm("grade", "in.jsonl", "--no-reference", "--overwrite").code == 0
    assert jlm("grade", "in.jsonl", "-R", "The truth.", "--overwrite").code == 0
    assert {r["sample"]["reference"] for r in read_rows(tmp_path / "in.grade.jsonl")} == {
        "The truth."
    }


def test_reference_of_paragraphs(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1, reference=["One.", "Two."])])
    assert jlm("judge", "in.jsonl").code == 0
    assert read_rows(tmp_path / "in.judge.jsonl")[0]["sample"]["reference"] == "One.\n\nTwo."


def test_vqa_labels(tmp_path: Path, jlm: Jlm) -> None:
    files = [str(SAMPLES / name) for name in ("mmvet.json", "mmvet_predictions.json")]
    done = jlm("grade", *files, "--template", "vqa", "-o", "out.jsonl")
    assert done.code == 0, done.err
    records = read_rows(tmp_path / "out.jsonl")
    assert [record["id"] for record in records] == ["v1_0", "v1_1", "v1_2"]
    assert records[0]["sample"]["reference"] == "-1<AND>-5"
    for record in records:
        score = record["score"]
        assert record["label"] == ("right" if score >= 8 else "half" if score >= 2.5 else "wrong")


@pytest.mark.parametrize("method", ["listwise", "pairwise"])
def test_rank_record(tmp_path: Path, jlm: Jlm, method: str) -> None:
    rows = [listed(1, "a", "b", "c", models=["x", "y", "z"]), listed(2, "only", "two")]
    write_rows(tmp_path / "in.jsonl", rows)
    done = jlm("rank", "in.jsonl", "--method", method)
    assert done.code == 0, done.err
    three, two = read_rows(tmp_path / "in.rank.jsonl")
    for record, n in ((three, 3), (two, 2)):
        flat = [
            number
            for entry in record["ranking"]
            for number in (entry if isinstance(entry, list) else [entry])
        ]
        assert sorted(flat) == list(range(1, n + 1))
        assert len(record["scores"]) == len(record["expected"]) == n
        assert record["method"] == method and "stability" not in record
        key = record["scores"] if method == "listwise" else record["expected"]
        assert record["ranking"] == ranking_of(key)
    summary = json.loads((tmp_path / "in.rank.metrics.json").read_text())
    assert set(summary["leaderboard"]) == {"x", "y", "z"}


@pytest.mark.parametrize(
    "options", [("--permute", "4"), ("--permute", "2"), ("--method", "pairwise")]
)
def test_rank_does_not_depend_on_the_order_given(
    tmp_path: Path, jlm: Jlm, options: tuple[str, ...]
) -> None:
    answers = ("first", "second", "third", "second")
    orders = list(permutations(range(4)))[::5]
    rows = [listed(n, *(answers[k] for k in order)) for n, order in enumerate(orders)]
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("rank", "in.jsonl", *options).code == 0
    found = set()
    for order, record in zip(orders, read_rows(tmp_path / "in.rank.jsonl"), strict=True):
        expected = [0.0] * 4
        for place, answer in enumerate(order):
            expected[answer] = record["expected"][place]
        found.add(tuple(expected))
    assert len(found) == 1
    assert found.pop()[1] == expected[3]  # the same text has the same score


def test_auto_takes_pairs_where_a_list_does_not_fit(tmp_path: Path, jlm: Jlm) -> None:
    rows = [listed(1, *(letter * 900 for letter in "abcd")), listed(2, "a", "b", "c")]
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("rank", "in.jsonl", "--max-length", "3600").code == 0
    records = read_rows(tmp_path / "in.rank.jsonl")
    assert [record["method"] for record in records] == ["pairwise", "listwise"]
    assert records[0].keys() == records[1].keys()
    assert not any(record["flags"] for record in records)
    words = ("--method", "listwise", "--on-overflow", "error", "--overwrite")
    assert jlm("rank", "in.jsonl", "--max-length", "3600", *words).code == 3
    assert read_rows(tmp_path / "in.rank.jsonl")[0]["error"]["code"] == "too-long"


def test_compare_gives_table_10(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [listed(n, f"a{n}", f"b{n}", f"c{n}") for n in range(20)])
    assert jlm("rank", "in.jsonl", "--compare").code == 0
    moved = [
        n_moved(record["ranking"], record["pairwise"]["ranking"])
        for record in read_rows(tmp_path / "in.rank.jsonl")
    ]
    found = json.loads((tmp_path / "in.rank.metrics.json").read_text())["compare"]
    for name, count in (("consistency", 0), ("error_rate_2", 2), ("error_rate_3", 3)):
        assert found[name]["value"] == pytest.approx(moved.count(count) / 20)


def test_places_and_moves() -> None:
    assert ranking_of([3, 5, 5, 1]) == [[2, 3], 1, 4]
    assert places([[2, 3], 1, 4]) == {2: 1.5, 3: 1.5, 1: 3, 4: 4}
    assert [n_moved([1, 2, 3], other) for other in ([1, 2, 3], [3, 2, 1], [2, 3, 1])] == [0, 2, 3]
    assert n_moved([1, 2, 3], [[1, 2], 3]) == 2
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert kendall_tau([1, 1, 1], [3, 2, 1]) is None


@pytest.mark.parametrize("command", ["judge", "grade"])
def test_aspects_stand_beside_the_whole(tmp_path: Path, jlm: Jlm, command: str) -> None:
    row = pair(1) if command == "judge" else graded(1)
    write_rows(tmp_path / "in.jsonl", [row])
    words = ("--aspect", "fluency", "--aspect", "tone: how polite it is")
    assert jlm(command, "in.jsonl", *words).code == 0
    (record,) = read_rows(tmp_path / f"in.{command}.jsonl")
    assert list(record["aspects"]) == ["fluency", "tone"]
    assert jlm(command, "in.jsonl", "--overwrite").code == 0
    (plain,) = read_rows(tmp_path / f"in.{command}.jsonl")
    assert {key: value for key, value in record.items() if key != "aspects"} == plain
    assert jlm(command, "in.jsonl", *words, "--aspects-together", "--overwrite").code == 0
    assert list(read_rows(tmp_path / f"in.{command}.jsonl")[0]["aspects"]) == ["fluency, tone"]


def test_aspects_are_summed_up(tmp_path: Path, jlm: Jlm) -> None:
    """Where there is no gold as well."""
    aspect = ("--aspect", "fluency")
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(9)])
    done = jlm("judge", "in.jsonl", "--swap", *aspect)
    found = json.loads((tmp_path / "in.judge.metrics.json").read_text())["aspects"]["fluency"]
    said = [record["aspects"]["fluency"] for record in read_rows(tmp_path / "in.judge.jsonl")]
    assert found["verdicts"]["1"] == sum(one["verdict"] == "1" for one in said)
    assert found["reliability"]["n"] == 9
    assert "aspect fluency, first order" in done.err
    told = jlm("metrics", "in.judge.jsonl", "--protocol", "aspects")
    assert told.code == 0 and "each aspect, first order" in told.out
    assert "no gold, so no agreement" in told.err
    write_rows(tmp_path / "in.jsonl", [{"question": "Q", "answer": f"A{n}"} for n in range(9)])
    done = jlm("grade", "in.jsonl", "--no-reference", *aspect)
    found = json.loads((tmp_path / "in.grade.metrics.json").read_text())["aspects"]["fluency"]
    said = [record["aspects"]["fluency"] for record in read_rows(tmp_path / "in.grade.jsonl")]
    wanted = sum(one["expected"] for one in said) / 9
    assert found["mean"]["value"] == pytest.approx(wanted, abs=1e-5)
    assert "aspect fluency" in done.err and "mean" in done.err
    done = jlm("metrics", "in.grade.jsonl")
    assert done.code == 2 and "use --protocol grade" in done.err


def test_a_ranking_is_told_by_what_it_follows(jlm: Jlm) -> None:
    asked = ("rank", "-Q", "What?", "-A", "4", "-A", "5", "-A", "6")
    assert " (scores " in jlm(*asked).out
    told = jlm(*asked, "--permute", "3", "--compare").out
    assert " (expected scores " in told and "; by pairs " in told


def test_aspects_in_both_orders(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    assert jlm("judge", "in.jsonl", "--aspect", "novelty", "--swap").code == 0
    (record,) = read_rows(tmp_path / "in.judge.jsonl")
    assert set(record["aspects"]["novelty"]) >= {"swapped", "consistent", "combined", "text"}


_FLUENT = ("in.jsonl", "--aspect", "fluency")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("judge", "in.jsonl", "--aspect", "zest"), "choose from factuality, fluency"),
        (
            ("judge", "in.jsonl", "--aspect", "fluency", "--aspect", "fluency: how it flows"),
            "--aspect fluency: is given twice",
        ),
        (("grade", "in.jsonl", "--template", "judgelm"), "compares answers"),
        (("rank", "in.jsonl", "--template", "pandalm"), "it is not for rank"),
        (("judge", "in.jsonl", "--template", "vqa"), "it is not for judge"),
        (("judge", "in.jsonl", "--template", "judgelm-aspects"), "need --aspect"),
        (
            ("judge", *_FLUENT, "--template", "grade-no-reference-aspects"),
            "shows 1 answers; it is not for judge",
        ),
        (
            ("grade", *_FLUENT, "--no-reference", "--template", "judgelm-aspects"),
            "compares answers",
        ),
        (("judge", "in.jsonl", "--reason", "--explain-first"), "exclude each other"),
        (("judge", "-Q", "Why?"), "go together"),
        (
            ("judge", "in.jsonl", "-Q", "Why?", "-A", "a", "-A", "b"),
            "either input files (- is standard input) or",
        ),
        (("rank", "-Q", "Why?", "-A", "a"), "rank takes two or more"),
        (("grade", "-Q", "Why?", "-A", "a"), "--no-reference"),
        (("judge",), "either input files (- is standard input) or"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, jlm: Jlm, words: tuple[str, ...], message: str
) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm(*words)
    assert done.code == 2 and message in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("judge", "-Q", "1 + 1?", "-A", "2", "-A", "3"), "scores"),
        (("grade", "-Q", "1 + 1?", "-A", "2", "-R", "2"), "score "),
        (("rank", "-Q", "1 + 1?", "-A", "2", "-A", "3", "-A", "4"), "ranking "),
    ],
)
def test_one_question_from_the_command_line(
    tmp_path: Path, jlm: Jlm, words: tuple[str, ...], says: str
) -> None:
    done = jlm(*words)
    assert done.code == 0 and says in done.out, done.err
    assert not list(tmp_path.iterdir())
    assert json.loads(jlm(*words, "--json").out)["sample"]["question"] == "1 + 1?"


@pytest.mark.parametrize(
    ("text", "marker", "before"),
    [
        ("Because.\n8 5", "\n", "Because."),
        ("Because.\n8 5\n", "\n", "Because."),
        ("Because.\n8 5\nor so", "\n", "Because."),
        ("Scores:\n9 9\nno:\n8 5", "\n", "Scores:\n9 9\nno:"),
        ("Because", "\n", "Because"),
        ("Because.\n8 5 3", "\n", "Because.\n8 5 3"),
        ("Good. [RESULT] 8 5", "[RESULT]", "Good. "),
    ],
)
def test_line_behind_an_explanation(text: str, marker: str, before: str) -> None:
    assert _up_to_line(text, marker, Grammar()) == before


@pytest.mark.parametrize(
    ("settings", "taught", "template"),
    [
        ({}, "judgelm-brief", "judgelm-brief | judgelm-brief-reference"),
        ({"command": "rank"}, "judgelm-brief", "judgelm-brief | judgelm-brief-reference"),
        ({"command": "rank"}, "pandalm", "judgelm | judgelm-reference"),
        ({"command": "grade"}, "judgelm-brief", "grade"),
        ({"command": "grade"}, "prometheus-absolute", "prometheus-absolute-reference"),
        ({"template": "judgelm"}, "judgelm-brief", "judgelm"),
        ({"explain_first": True}, "judgelm-brief", "judgelm-explain-first"),
    ],
)
def test_a_judge_is_asked_as_it_was_taught(
    settings: dict[str, Any], taught: str, template: str
) -> None:
    """Where that is a template for the command, and no other way was asked for."""
    config = Config(inputs=(), output=None, model="", **settings)
    names = [one.name for one in mode_of(config, taught).templates]
    assert set(template.split(" | ")) <= set(names), names
    assert taught in names or taught not in template


@pytest.mark.parametrize(
    "template", ["pandalm", "prometheus", "chat-pair", "judgelm-explain-first"]
)
def test_other_formats_judge_pairs(tmp_path: Path, jlm: Jlm, template: str) -> None:
    rows = [pair(1), {"instruction": "Add.", "input": "1 1", "response1": "2", "response2": "3"}]
    write_rows(tmp_path / "pair.jsonl", rows[:1])
    write_rows(tmp_path / "panda.jsonl", rows[1:])
    for name in ("pair", "panda"):
        done = jlm("judge", f"{name}.jsonl", "--template", template, "--swap")
        assert done.code == 0, done.err
        (record,) = read_rows(tmp_path / f"{name}.judge.jsonl")
        assert record["verdict"] in ("1", "2", "tie") and sum(record["p"].values())
        if template in ("pandalm", "prometheus"):
            assert record["scores"] is None and record["text"] in ("1", "2", "Tie", "A", "B")
        if template in ("prometheus", "judgelm-explain-first"):
            assert record["reason"]


def test_real_model_in_every_mode(tmp_path: Path, jlm: Jlm, builtin: Loaded) -> None:
    """The built-in base: every record judged, every score within its grammar."""
    base = ("-m", "tiny-base", "--max-new-tokens", "12")
    runs = [
        ("grade", str(SAMPLES / "answers.jsonl"), "--aspect", "factuality"),
        ("rank", str(SAMPLES / "lists.jsonl"), "--permute", "2", "--limit", "2"),
        ("judge", str(SAMPLES / "pairs.jsonl"), "--template", "chat-pair", "--limit", "2"),
        ("judge", str(SAMPLES / "pairs.jsonl"), "--explain-first", "--limit", "2"),
        ("judge", str(SAMPLES / "pandalm.json"), "--template", "pandalm", "--limit", "2"),
        ("grade", str(SAMPLES / "answers.jsonl"), "--template", "prometheus-absolute"),
    ]
    for n, words in enumerate(runs):
        done = jlm(*words, *base, "-o", f"{n}.jsonl")
        assert done.code == 0, done.err
        for record in read_rows(tmp_path / f"{n}.jsonl"):
            scores = record.get("scores") or [record["score"]] if "score" in record else []
            assert all(1 <= score <= 10 for score in scores)
            assert set(record["flags"]) <= {"low-mass", "reason-cut"}
    text = (tmp_path / "0.jsonl").read_text()
    assert '"factuality"' in text


def test_references_are_shown_or_said_not_to_be(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n, **({"reference": "r"} if n else {})) for n in range(3)]
    write_rows(tmp_path / "in.jsonl", rows)
    done = jlm("judge", "in.jsonl", "--template", "judgelm")
    assert done.code == 0 and "2 rows whose reference is not shown" in done.err
    write_rows(tmp_path / "refs.jsonl", [{"id": n, "reference": "r"} for n in range(3)])
    for words in (["-R", "the reference"], ["--reference", "refs.jsonl"]):
        done = jlm("judge", "in.jsonl", "--overwrite", "--template", "pandalm", *words)
        assert done.code == 2
        assert "template pandalm shows no reference; use one that does" in done.err
        assert jlm("judge", "in.jsonl", "--overwrite", *words).code == 0


def test_a_verdict_of_several_words_is_a_line() -> None:
    grammar = Grammar(1, "", ("Answer A", "Answer B"), ("1", "2"))
    text = "A is complete.\nVerdict: Answer A\nand so on"
    assert _up_to_line(text, "Verdict:", grammar) == "A is complete.\n"
    assert _up_to_line("No.\nVerdict: neither", "Verdict:", grammar) == "No.\nVerdict: neither"
