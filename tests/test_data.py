"""`jlm data`: what comes out is what went in, split by question, by the seed alone."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import Jlm, read_rows, write_rows
from hypothesis import given
from hypothesis import strategies as st

from jlm_cli.errors import InputError
from jlm_cli.reading.schemas import SCHEMAS
from jlm_cli.records import Json
from jlm_cli.training.bad_answers import KINDS, Good, spoil
from jlm_cli.training.data import Scale, _lifted
from jlm_cli.training.gathering import Answered, RatedAnswer, questions_in
from jlm_cli.training.lessons import question_key, read_lesson

WORDS = [
    "a",
    "fitting",
    "answer",
    "with",
    "words",
    "enough",
    "that",
    "it",
    "can",
    "be",
    "cut",
    "and",
    "shuffled",
    "and",
    "said",
    "again",
]


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def rated(n: int, **more: Any) -> Json:
    """A question with six answers, each of which names its question and its quality."""
    answers = [
        {"model": f"m{k}", "text": f"q{n} quality {k}: {' '.join(WORDS)}", "win_prob": k / 6}
        for k in range(6)
    ]
    return {"question": f"Question number {n}?", "answers": answers, **more}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [rated(n, baseline_answer=f"q{n} baseline") for n in range(60)]
    return write_rows(tmp_path / "rated.jsonl", rows)


def made(folder: Path) -> tuple[list[Json], list[Json]]:
    return read_rows(folder / "train.jsonl"), read_rows(folder / "validation.jsonl")


def quality_of(answer: str) -> int | None:
    """Of an answer that nobody spoiled."""
    head, _, words = answer.partition(": ")
    return int(head.split()[-1]) if words == " ".join(WORDS) else None


def test_scores_follow_quality(tmp_path: Path, jlm: Jlm, source: Path) -> None:
    words = ["--rows", "600", "--form", "pair=1", "--form", "list=1", "--form", "grade=1"]
    done = jlm("data", "rated.jsonl", "-o", "set", *words)
    assert done.code == 0, done.err
    train, validation = made(tmp_path / "set")
    assert len(train) == 600 and len(validation) == 60
    assert {len(row["answers"]) for row in train} == {1, 2, 3, 4}
    n_bad = 0
    for row in train + validation:
        lesson = read_lesson(json.dumps(row).encode(), SCHEMAS[0], 1)
        teaching = lesson.with_reference or lesson.plain
        assert teaching is not None and len(teaching.scores) == len(row["answers"])
        number = row["question"].split()[-1].rstrip("?")
        scored = [
            (quality_of(answer), float(score))
            for answer, score in zip(row["answers"], teaching.scores, strict=True)
            if answer.startswith(f"q{number} ")
        ]
        real = sorted((q, score) for q, score in scored if q is not None)
        assert [score for _, score in real] == sorted(score for _, score in real)
        spoiled = [
            float(score)
            for answer, score in zip(row["answers"], teaching.scores, strict=True)
            if quality_of(answer) is None or not answer.startswith(f"q{number} ")
        ]
        n_bad += bool(spoiled)
        if spoiled and real:
            assert min(score for _, score in real) >= max(spoiled) + 3
        assert len(row["answers"]) > 1 or row["reference"] == f"q{number} baseline"
    assert n_bad == pytest.approx(0.4 * 660, rel=0.2)


def test_no_question_is_on_both_sides(tmp_path: Path, jlm: Jlm, source: Path) -> None:
    """Across sources, and however a question is written."""
    review = {
        "question_id": 1,
        "answer1_body": "a",
        "answer2_body": "b",
        "text": "8 5\nAssistant 1 is better.",
    }
    rows = [{**review, "question_body": f"  QUESTION number {n}"} for n in range(60)]
    write_rows(tmp_path / "reviews.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", [{"instruction": "question number 7"}])
    words = ["--hold-out", "test.jsonl", "--validation", "0.3", "-o", "set"]
    assert jlm("data", "rated.jsonl", "reviews.jsonl", *words).code == 0
    train, validation = (
        {question_key(row["question"]) for row in side} for side in made(tmp_path / "set")
    )
    assert train and validation and not train & validation
    assert "questionnumber7" not in train | validation
    texts = [row["gold"] for row in made(tmp_path / "set")[0]]
    assert "8 5\nAssistant 1 is better." in texts
    left = json.loads((tmp_path / "set" / "data.json").read_text())["left_out"]
    assert left == {"held-out": 2}


def test_the_seed_alone_decides(tmp_path: Path, jlm: Jlm, source: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert jlm("data", "rated.jsonl", "-o", name, "--rows", "50", "--seed", seed).code == 0
    a, b, c = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_preferences_and_rows_left_out(tmp_path: Path, jlm: Jlm) -> None:
    rows = [
        {"question": f"q{n}", "answers": ["x", "y"], "gold": gold}
        for n, gold in enumerate(["1", "2", "tie", [9, 3], None, "no line"])
    ]
    write_rows(tmp_path / "p.jsonl", rows)
    done = jlm("data", "p.jsonl", "-o", "set", "--validation", "0")
    assert done.code == 0, done.err
    train, validation = made(tmp_path / "set")
    assert sorted(row["gold"] for row in train) == ["4 8", "6 6", "8 4", "9 3"]
    assert validation == []
    left = read_rows(tmp_path / "set" / "left-out.jsonl")
    assert [(row["line"], row["code"]) for row in left] == [
        (5, "no-judgment"),
        (6, "no-score-line"),
    ]


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["no.jsonl", "-o", "set"], "no.jsonl: cannot be read"),
        (["empty.jsonl", "-o", "set"], "empty.jsonl: no usable row: is empty"),
        (["rated.jsonl", "-o", "no/set"], "there is no folder no"),
        (["rated.jsonl", "-o", "rated.jsonl"], "exists"),
        (["rated.jsonl", "-o", "set", "--form", "trio=1"], "--form trio=1"),
        (
            ["rated.jsonl", "-o", "set", "--bad-kind", "ugly"],
            "--bad-kind ugly: choose from off-topic",
        ),
        (["rated.jsonl", "-o", "set", "--longest", "3"], "no usable row"),
        (["rated.jsonl", "-o", "set", "--form", "pair=0"], "--form pair=0: no form has a share"),
        (["rated.jsonl", "-o", "set", "--validation", "1"], "--validation 1: leaves no question"),
        (["named.jsonl", "-o", "set"], "field answers[0].model"),
    ],
)
def test_bad_options(words: list[str], word: str, tmp_path: Path, jlm: Jlm, source: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    answer = {"text": "So.", "score": 1, "model": {"name": "x"}}
    write_rows(tmp_path / "named.jsonl", [{"question": "Q?", "answers": [answer]}])
    done = jlm("data", *words)
    assert done.code == 2 and word in done.err and done.err.count("\n") == 1, done.err


def test_kinds_of_bad_answers(tmp_path: Path, jlm: Jlm, source: Path) -> None:
    words = ["--bad", "1", "--bad-kind", "off-topic", "--reference", "0", "--rows", "40"]
    assert jlm("data", "rated.jsonl", "-o", "set", *words).code == 0
    for row in made(tmp_path / "set")[0]:
        numbers = {answer.split()[0] for answer in row["answers"]}
        assert len(numbers) == 2 and "reference" not in row
        assert "off-topic" in row["models"] and "answers another question" in row["gold"]


def test_real_answers_are_a_gap_apart(tmp_path: Path, jlm: Jlm, source: Path) -> None:
    words = ["--bad", "0", "--gap", "4", "--ties", "0", "--reference", "0", "--rows", "60"]
    assert jlm("data", "rated.jsonl", "-o", "set", *words).code == 0
    for row in made(tmp_path / "set")[0]:
        first, second = map(float, row["gold"].split("\n")[0].split())
        assert abs(first - second) >= 3  # spoiled where no real answer is so far away


def test_rows_filled_up_with_spoiled_answers_are_counted(tmp_path: Path, jlm: Jlm) -> None:
    """Whatever share was asked for: a question with one real answer makes no real pair."""
    rows = [{"question": f"Q{n}?", "answers": [{"text": f"So {n}.", "score": n}]} for n in range(9)]
    write_rows(tmp_path / "one.jsonl", rows)
    done = jlm("data", "one.jsonl", "-o", "set", "--bad", "0", "--rows", "12", "--validation", "0")
    assert done.code == 0 and "12 rows: 12 pair, 12 with a spoiled answer" in done.err


def test_answers_too_short_for_a_kind_are_told_of(tmp_path: Path, jlm: Jlm) -> None:
    """An answer of two words cannot be cut off: it is left empty, and that is said."""
    rows = [{"question": f"Q{n}?", "answers": [{"text": f"So {n}.", "score": n}]} for n in range(9)]
    write_rows(tmp_path / "one.jsonl", rows)
    words = ["--bad", "1", "--bad-kind", "cut-off", "--rows", "12", "--validation", "0"]
    done = jlm("data", "one.jsonl", "-o", "set", *words)
    assert "12 answers could be spoiled by no --bad-kind given and are empty" in done.err
    found = json.loads((tmp_path / "set" / "data.json").read_text())
    assert found["spoiled"]["train"] == {"empty": 12}


@given(st.text(max_size=300), st.text(max_size=100), st.text(max_size=300), st.integers())
def test_anything_can_be_spoiled(good: str, question: str, other: str, seed: int) -> None:
    for kinds in ((), *((kind,) for kind in KINDS)):
        bad = spoil(Good(good, question, other, random.Random(seed)), kinds)
        assert bad.text != good or not good
        assert 1 <= bad.score <= 4
        assert bad == spoil(Good(good, question, other, random.Random(seed)), kinds)


@given(st.lists(st.floats(0, 1), min_size=1))
def test_the_scale_keeps_the_order(qualities: list[float]) -> None:
    answers = tuple(RatedAnswer("x", quality) for quality in qualities)
    scale = Scale.of([Answered("q", answers, None, "s")])
    scores = [scale.score("s", quality) for quality in sorted(qualities)]
    assert scores == sorted(scores) and scores[0] >= 3 and scores[-1] <= 10


@given(
    st.lists(st.integers(2, 20).map(lambda n: n / 2), min_size=1, max_size=9),
    st.sampled_from([4.0, 6.0, 7.0]),
)
def test_real_answers_above_spoiled_ones_keep_their_order(
    scores: list[float], floor: float
) -> None:
    found = _lifted(scores, floor)
    assert min(found) >= floor and max(found) <= 10
    for (a, x), (b, y) in itertools.combinations(zip(scores, found, strict=True), 2):
        if len(scores) <= 5:
            assert (a > b, a < b) == (x > y, x < y)
        assert (x >= y or a < b) and (x <= y or a > b)


def test_questions_are_held_out_of_every_format(tmp_path: Path) -> None:
    rows = {
        "rewardbench": {"prompt": "Name  a fruit!", "chosen": "a", "rejected": "b"},
        "mtbench": {"question_id": 1, "category": "c", "turns": ["Name a fruit.", "And a nut?"]},
        "pandalm": {"instruction": "Name", "input": "a fruit", "response1": "a", "response2": "b"},
        "judgelm": {"question_id": 1, "question_body": "name a fruit"},
    }
    for name, row in rows.items():
        path = write_rows(tmp_path / f"{name}.jsonl", [row])
        assert question_key("Name a fruit.") in questions_in(str(path)), name
    path = write_rows(tmp_path / "none.jsonl", [{"answer": "Apple."}])
    with pytest.raises(InputError, match="--hold-out: no question in this row"):
        questions_in(str(path))


@pytest.mark.parametrize("command", ["judge", "grade", "rank"])
def test_a_judge_teaches_by_its_records(tmp_path: Path, jlm: Jlm, command: str) -> None:
    """What it wrote is the gold of the rows that it judged; what a person said of them is not."""
    n_answers = {"judge": 2, "grade": 1, "rank": 3}[command]
    rows: list[Json] = [
        {"id": n, "question": f"Q{n}", "answers": [f"A{n}.{k}" for k in range(n_answers)]}
        for n in range(6)
    ]
    rows[0]["reference"], rows[1]["gold"], rows[2]["question"] = "R", [5] * n_answers, ""
    write_rows(tmp_path / "in.jsonl", [*rows, {"id": "bad"}])
    more = ("--no-reference",) if command == "grade" else ()
    assert jlm(command, "in.jsonl", "-o", "said.jsonl", "--reason", "-q", *more).code == 3
    done = jlm("data", "said.jsonl", "-o", "set", "--validation", "0")
    assert done.code == 0, done.err
    said = [record for record in read_rows(tmp_path / "said.jsonl") if "error" not in record]
    train, _ = made(tmp_path / "set")
    train_questions = [row["question"] for row in train]
    assert {row["question"]: row["gold"] for row in train} == {
        record["sample"]["question"]: f"{record['text']}\n{record['reason']}" for record in said
    }
    assert [row.get("reference") for row in train].count("R") == int(command != "grade")
    (left,) = read_rows(tmp_path / "set" / "left-out.jsonl")
    assert left["code"] == "no-judgment"
    write_rows(tmp_path / "test.jsonl", said)  # records keep their questions out, too
    assert len(questions_in(str(tmp_path / "test.jsonl"))) == len(train_questions)
    again = (command, "in.jsonl", "-o", "bare.jsonl", "-q", "--compact", "--limit", "6", *more)
    assert jlm(*again).code == 0
    refused = jlm("data", "bare.jsonl", "-o", "none")
    assert refused.code == 2 and "field sample is missing; --compact leaves it" in refused.err
