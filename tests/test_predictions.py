"""Reading anyone's predictions: every form of a line, and joining by id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from jlm_cli.errors import InputError
from jlm_cli.measuring.columns import NONE, SPLIT, TIE, UNREADABLE
from jlm_cli.measuring.comparing import align
from jlm_cli.measuring.lines import read_judged
from jlm_cli.measuring.predictions import Predictions, read_predictions
from jlm_cli.measuring.summary import summary_of

DATA = Path(__file__).parent / "data"

OFFICIAL = {
    "question_id": 3,
    "question_body": "Which?",
    "answer1_body": "This one, surely.",
    "answer2_body": "That.",
    "answer1_model_id": "a",
    "answer2_model_id": "b",
    "score": [-1.5, -0.25],  # log-probabilities of the generators: no verdict
    "pred_id": "x",
    "pred_model_id": "judge",
    "tstamp": 1.0,
}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("7 10", 1),  # no newline behind it
        ("8, 5\nBecause", 0),
        (" 9  9 \n", TIE),
        ("0 0.5", 1),
        ("10 0\n", 0),
        ("nan 5", NONE),
        ("8", NONE),
        ("8 5 3", NONE),
        ("11 2", NONE),
        ("-1 -1", NONE),
        ("", NONE),
        ("error", NONE),
        (None, NONE),
    ],
)
def test_official_predictions(text: str | None, place: int) -> None:
    judged = read_judged({**OFFICIAL, "pred_text": text}, "here")
    assert judged.verdict == place
    assert (judged.error == "unparsable") == (place == NONE)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"id": 1, "verdict": "2"}, 1),
        ({"id": 1, "verdict": "tie"}, TIE),
        ({"id": 1, "verdict": None}, NONE),
        ({"id": 1, "scores": [3, 4.5]}, 1),
        ({"id": 1, "scores": None, "verdict": "1"}, 0),
        ({"question_id": 1, "text": "2 8\nreason"}, 1),
        ({"question_id": 1, "text": "First, the maths."}, NONE),
        ({"id": 1, "line": 1, "mode": "judge", "error": {"code": "nan", "message": "…"}}, NONE),
    ],
)
def test_other_lines(row: dict[str, Any], place: int) -> None:
    assert read_judged(row, "here").verdict == place


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": 1}, "no prediction"),
        ({"id": 1, "verdict": "A"}, 'verdict: \'A\'; there are "1", "2", "tie"'),
        ({"id": 1, "verdict": 3}, "verdict: 3; there are"),
        ({"id": 1, "verdict": []}, "verdict: []; there are"),
        ({"id": 1, "scores": [1, 2, 3]}, "scores: one number for each of two"),
        ({"id": 1, "scores": ["1", "2"]}, "scores: one number for each of two"),
        ({"id": 1, "verdict": "1", "p": {"1": 0.5}}, "field p: probabilities"),
        ({"id": 1, "verdict": "1", "p": {"1": None, "2": 0, "tie": 1}}, "field p: probabilities"),
        ({"id": 1, "verdict": "1", "p": {"1": 5, "2": -4, "tie": 0}}, "field p: probabilities"),
        ({"id": 1, "verdict": "1", "p": 0.9}, "field p: probabilities"),
        ({"id": 1, "verdict": "1", "p": [0.9, 0.1, 0]}, "field p: probabilities"),
        ({"id": 1, "verdict": "1", "swapped": {"verdict": 3}}, "swapped.verdict: 3; there are"),
        ({"id": 1, "verdict": "1", "swapped": {"verdict": "2", "p": {"1": 5}}}, "field swapped.p"),
        ({"id": 1, "mode": "grade", "score": 5}, "use --protocol grade or mmvet"),
        ({"id": 1, "ranking": [1, 2]}, "use --protocol rank"),
        ({"id": 1, "aspects": {}}, "use --protocol aspects"),
        ({"question": "Q", "answers": ["a", "b"]}, "no prediction"),
    ],
)
def test_what_is_no_prediction(row: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        read_judged(row, "pred.jsonl:7")
    assert str(error.value).startswith("pred.jsonl:7: ") and words in str(error.value)
    assert "\n" not in str(error.value)


Read = Callable[..., Predictions]


@pytest.fixture
def read() -> Iterator[Read]:
    """Reads predictions, and closes their files at the end."""
    with ExitStack() as files:
        yield lambda *paths, **more: files.enter_context(read_predictions(*paths, **more))


def minimal(rows: dict[Any, str]) -> list[dict[str, Any]]:
    return [{"id": row_id, "verdict": verdict} for row_id, verdict in rows.items()]


GOLD_LINES = [
    ({"id": 1, "gold": "2"}, 1),
    ({"id": 1, "verdict": "tie"}, TIE),
    ({"id": 1, "gold": [3, 9]}, 1),
    ({"question_id": 1, "text": "10 0\nBecause.", "score": [10, 0]}, 0),
    ({"question_id": 1, "text": "0 0\nBoth are empty."}, TIE),
    ({"question_id": 1, "text": "Let us compute."}, UNREADABLE),
    ({"question_id": 1, "text": "error"}, UNREADABLE),
    ({"id": 1, "gold": "8 9\nreason"}, 1),
    ({"id": 1, "annotators": ["1", "1", "tie"]}, 0),
    ({"id": 1, "annotators": ["1", "2", "tie"]}, SPLIT),
    ({"idx": 1, "annotator1": 0, "annotator2": 2, "annotator3": 0}, TIE),
    ({"idx": 1, "annotator1": 0, "annotator2": 2, "annotator3": 1}, SPLIT),
]


@pytest.mark.parametrize(("line", "place"), GOLD_LINES)
def test_gold_in_all_forms(tmp_path: Path, read: Read, line: dict[str, Any], place: int) -> None:
    pred = write_rows(tmp_path / "pred.jsonl", minimal({1: "1", 2: "2"}))
    gold = write_rows(tmp_path / "gold.jsonl", [{"id": 2, "gold": "1"}, line])
    columns = read(str(pred), gold).columns
    assert columns.gold.tolist() == [place, 0]
    if "annotators" in line:
        assert columns.votes[0].sum() == 3


def test_joins_by_id_and_names_what_is_missing(tmp_path: Path, read: Read) -> None:
    pred = write_rows(tmp_path / "pred.jsonl", minimal({"a": "1", "b": "2", "c": "tie"}))
    lines = [{"id": name, "gold": gold} for name, gold in [("z", "1"), ("c", "2"), ("a", "1")]]
    gold = write_rows(tmp_path / "gold.jsonl", lines)
    found = read(str(pred), gold)
    assert found.columns.gold.tolist() == [0, NONE, 1]
    assert found.missing("gold") == ["b"] and found.sides["gold"].unknown == ["z"]


def test_gold_file_replaces_gold_of_records(tmp_path: Path, read: Read) -> None:
    rows = [{"id": n, "verdict": "1", "gold": "1"} for n in range(2)]
    pred = write_rows(tmp_path / "pred.jsonl", rows)
    gold = write_rows(tmp_path / "gold.jsonl", [{"id": 1, "gold": "2"}])
    assert read(str(pred)).columns.gold.tolist() == [0, 0]
    assert read(str(pred), gold).columns.gold.tolist() == [NONE, 1]


def test_reversed_is_turned_back(tmp_path: Path, read: Read) -> None:
    pred = write_rows(tmp_path / "p.jsonl", [{**OFFICIAL, "pred_text": "8 5\n"}])
    other = write_rows(tmp_path / "r.jsonl", [{**OFFICIAL, "pred_text": "5 8\n"}])
    columns = read(str(pred), reversed_=other).columns
    assert (columns.verdict.tolist(), columns.swapped.tolist()) == ([0], [0])
    assert columns.final.tolist() == [0]
    failed = write_rows(tmp_path / "f.jsonl", [{**OFFICIAL, "pred_text": "oops"}])
    found = read(str(pred), reversed_=failed)
    assert found.columns.swapped.tolist() == [NONE] and found.tally.n_error_swapped == 1


def test_one_question_with_many_pairs_is_joined_by_models(tmp_path: Path, read: Read) -> None:
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    rows = [
        {**OFFICIAL, "answer1_model_id": one, "answer2_model_id": two, "pred_text": f"{n} 2"}
        for n, (one, two) in enumerate(pairs, start=1)
    ]
    pred = write_rows(tmp_path / "p.jsonl", rows)
    gold = [{**row, "text": "9 1" if n else "1 9"} for n, row in enumerate(rows[::-1])]
    gold = [{key: row[key] for key in row if key != "pred_text"} for row in gold]
    found = read(str(pred), write_rows(tmp_path / "g.jsonl", gold))
    assert found.columns.verdict.tolist() == [1, TIE, 0]
    assert found.columns.gold.tolist() == [0, 0, 1]
    assert found.columns.clusters is not None and len(set(found.columns.clusters)) == 1
    assert found.label(1) == "3 (b, c)"


def test_models_may_stand_the_other_way_round(tmp_path: Path, read: Read) -> None:
    """Gold about (b, a) is turned to a prediction about (a, b), and so is another judge's word."""
    ours = [{"id": n, "verdict": "1", "models": ["a", "b"]} for n in range(3)]
    p = {"1": 0.2, "2": 0.7, "tie": 0.1}
    theirs = [{"id": n, "models": ["b", "a"], "verdict": "2", "p": p} for n in range(3)]
    theirs[1] |= {"models": ["a", "b"], "verdict": "1"}
    gold = [{"id": 0, "gold": [2, 8], "models": ["b", "a"]}, {"id": 1, "gold": "tie"}]
    gold += [{"id": 2, "annotators": ["1", "2", "2"], "models": ["b", "a"]}]
    pred, other = (
        write_rows(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate((ours, theirs))
    )
    found = read(str(pred), write_rows(tmp_path / "gold.jsonl", gold))
    assert found.columns.gold.tolist() == [0, TIE, 0]
    assert found.columns.votes.tolist() == [[0, 0, 0], [0, 0, 0], [2, 1, 0]]
    assert found.tally.models_of(0) == ("a", "b")
    aligned = align({"ours": found, "theirs": read(str(other))}, "verdict")
    assert aligned.column("theirs", "verdict").tolist() == [0, 0, 0]
    assert aligned.column("theirs", "final_p")[:2, 0].tolist() == pytest.approx([0.7, 0.2])


def test_texts_of_another_order_are_turned(tmp_path: Path, read: Read) -> None:
    write_rows(tmp_path / "pred.jsonl", [{"id": 1, "verdict": "1", "models": ["x", "y"]}])
    more = {"id": 1, "question": "Q?", "answers": ["of y", "of x"], "models": ["y", "x"]}
    write_rows(tmp_path / "in.jsonl", [more])
    found = read(str(tmp_path / "pred.jsonl"), more=tmp_path / "in.jsonl").record(0)["sample"]
    assert (found["answers"], found["models"]) == (["of x", "of y"], ["x", "y"])
    write_rows(tmp_path / "gold.jsonl", [{"id": 1, "models": ["y", "x"], "verdict": "2"}])
    known = read(str(tmp_path / "pred.jsonl"), gold=tmp_path / "gold.jsonl")
    assert known.record(0)["sample"]["models"] == ["x", "y"]
    assert known.columns.gold.tolist() == [0]


def test_many_annotators(tmp_path: Path, read: Read) -> None:
    row = {"idx": 1, "instruction": "Do.", "input": "", "response1": "one", "response2": "two"}
    votes = {f"annotator{n}": 1 for n in range(1, 301)}
    write_rows(tmp_path / "gold.jsonl", [{**row, **votes}])
    write_rows(tmp_path / "pred.jsonl", [{"id": 1, "verdict": "1"}])
    found = read(str(tmp_path / "pred.jsonl"), gold=tmp_path / "gold.jsonl")
    assert found.columns.votes.tolist() == [[300, 0, 0]]


def test_an_id_is_a_question_where_there_is_no_text(tmp_path: Path, read: Read) -> None:
    rows = [{"id": n % 3, "verdict": "1"} for n in range(9)] + [
        {"id": 0, "question": "Q?", "answers": ["a", "b"], "verdict": "1"}
    ]
    write_rows(tmp_path / "pred.jsonl", rows)
    clusters = read(str(tmp_path / "pred.jsonl")).columns.clusters
    assert clusters is not None and len(set(clusters.tolist())) == 4


def test_a_torn_line_of_the_input_keeps_no_file_from_being_joined(
    tmp_path: Path, read: Read
) -> None:
    torn = {"id": None, "line": 2, "mode": "judge", "error": {"code": "bad-json", "message": "…"}}
    rows = [{"id": 1, "verdict": "1"}, torn, {"id": 3, "verdict": "2"}]
    pred = write_rows(tmp_path / "p.jsonl", rows)
    gold = write_rows(tmp_path / "g.jsonl", [{"id": 3, "gold": "2"}, {"id": 1, "gold": "1"}])
    found = read(str(pred), gold, reversed_=pred)
    assert found.columns.gold.tolist() == [0, NONE, 1] and found.missing("gold") == []
    aligned = align({"one": found, "other": read(str(pred))}, "verdict")
    assert aligned.rows["other"].tolist() == [0, 2]


def test_an_input_with_torn_lines_is_joined_as_it_was_judged(tmp_path: Path, read: Read) -> None:
    torn = {"id": None, "line": 1, "mode": "judge", "error": {"code": "bad-json", "message": "…"}}
    pred = write_rows(tmp_path / "p.jsonl", [torn, *minimal({1: "1"})])
    sample = {"id": 1, "question": "Q", "answers": ["a", "bcd"]}
    given = write_rows(tmp_path / "in.jsonl", [sample])
    given.write_bytes(b"{torn\n" + given.read_bytes() + b"[1, 2]\n")
    assert read(str(pred), more=given).columns.lengths.tolist() == [[-1, -1], [1, 3]]
    with pytest.raises(InputError, match=r"in\.jsonl:1: not JSON"):
        read(str(pred), given)


def test_input_brings_what_compact_records_leave_out(tmp_path: Path, read: Read) -> None:
    pred = write_rows(tmp_path / "p.jsonl", minimal({1: "1", 2: "2"}))
    samples = [
        {"id": 2, "question": "Q", "answers": ["a", "bcd"], "models": ["x", "y"], "category": "c"}
    ]
    found = read(str(pred), more=write_rows(tmp_path / "in.jsonl", samples))
    assert found.columns.lengths.tolist() == [[-1, -1], [1, 3]]
    assert found.columns.category_names.names == ["c"]
    assert found.record(1)["sample"]["answers"] == ["a", "bcd"]


def test_gpt4_reviews(tmp_path: Path, read: Read) -> None:
    """Teacher texts as gold: halves and zeros are read, an explanation before the scores is not."""
    texts = ["8 9\nBoth", "7.5 9.5\n", "0 10\n", "0 0\n", "To solve this…\n8 9", "10 10"]
    rows = [{"question_id": n, "text": text, "score": [5, 5]} for n, text in enumerate(texts)]
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    pred = write_rows(tmp_path / "p.jsonl", minimal(dict.fromkeys(range(6), "1")))
    found = read(str(pred), gold)
    assert found.columns.gold.tolist() == [1, 1, 1, TIE, UNREADABLE, TIE]


@pytest.mark.parametrize(
    ("pred", "gold", "words"),
    [
        ([{"verdict": "1"}], [{"id": 1, "gold": "1"}], "p.jsonl: row 1 has no id"),
        ([{"id": 1, "verdict": "1"}], [{"gold": "1"}], "g.jsonl:1: has no id"),
        ([{"id": 1, "verdict": "1"}], [{"id": 2, "gold": "1"}], "g.jsonl: shares no id with"),
        ([{"id": 1, "verdict": "1"}], [{"id": "1", "gold": "1"}], "a text and a number are two"),
        ([{"id": 1, "verdict": "1"}] * 2, [{"id": 1, "gold": "1"}], "id 1 appears twice"),
        ([{"id": 1, "verdict": "1"}], [{"id": 1, "gold": "1"}] * 2, "g.jsonl:2: id 1 appears"),
        ([{"id": 1, "verdict": "1"}], [{"id": 1, "gold": {}}], "g.jsonl:1: field gold: an object"),
        ([{"id": 1, "verdict": "1"}], [{"id": 1, "question": "?"}], "g.jsonl:1: field gold (or"),
        ([{"id": 1, "verdict": "1"}], [{"id": 1, "gold": [11, 3]}], "g.jsonl:1: field gold"),
        ([], [{"id": 1, "gold": "1"}], "p.jsonl: holds no predictions"),
        ([[1]], [{"id": 1, "gold": "1"}], "p.jsonl:1: the line is not a JSON object"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, pred: list[Any], gold: list[Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("p.jsonl"), pred)
    write_rows(Path("g.jsonl"), gold)
    with pytest.raises(InputError) as error:
        read_predictions("p.jsonl", Path("g.jsonl"))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_not_json(tmp_path: Path) -> None:
    pred = tmp_path / "p.jsonl"
    pred.write_text(json.dumps({"id": 1, "verdict": "1"}) + "\n{\n")
    with pytest.raises(InputError, match=r"p\.jsonl:2: not JSON"):
        read_predictions(str(pred))


def test_gold_of_the_gpt4_reviews(tmp_path: Path, read: Read) -> None:
    """All 1,040 published reviews: 1,001 begin with a score line, 39 explain first."""
    lines = (DATA / "gpt4_first_lines.txt").read_text().splitlines()[1:]
    rows = [{"question_id": n, "text": f"{json.loads(line)}\n…"} for n, line in enumerate(lines)]
    gold = write_rows(tmp_path / "gold.jsonl", rows)
    found = read(str(gold), gold)
    assert len(found.ids) == 1040
    assert sum(found.columns.gold < NONE) == sum(found.columns.verdict < NONE) == 1001
    assert sum(found.columns.gold == UNREADABLE) == 39
    assert (found.columns.scores == 0).sum() == 4


@pytest.mark.parametrize(
    ("tie_within", "accuracy", "f1"), [(3, 0.6216, 0.5714), (0, 0.6106, 0.4852)]
)
def test_longest_answer_of_the_pandalm_test_set(
    tmp_path: Path, read: Read, tie_within: int, accuracy: float, f1: float
) -> None:
    lines = (DATA / "pandalm_lengths.txt").read_text().splitlines()[1:]
    gold = []
    for n, (first, second, votes) in enumerate(line.split() for line in lines):
        row = {"idx": n, "instruction": f"Do {n}.", "response1": "x" * int(first)}
        row["response2"] = "y" * int(second)
        gold.append(row | {f"annotator{k}": int(vote) for k, vote in enumerate(votes, start=1)})
    pred = write_rows(tmp_path / "pred.jsonl", minimal(dict.fromkeys(range(len(gold)), "1")))
    found = read(str(pred), write_rows(tmp_path / "gold.jsonl", gold))
    longest = summary_of(found.columns, False, tie_within)["baselines"]["longest_answer"]
    assert longest["n"] == 999
    assert round(longest["agreement"]["value"], 4) == accuracy
    assert round(longest["f1"]["value"], 4) == f1
