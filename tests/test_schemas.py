"""Every schema on rows of its real layout, and what is said when none fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Jlm, pair, read_rows, write_rows

from jlm_cli.errors import InputError, RowError
from jlm_cli.reading.recognition import recognise
from jlm_cli.reading.schemas import gold_of_votes, parse_row, read_sample
from jlm_cli.reading.side_files import load_gold, load_references
from jlm_cli.reading.source import open_source
from jlm_cli.records import Gold, Sample

JUDGELM = {
    "question_id": 7,
    "question_body": "Why is the sky blue?",
    "answer1_body": "Rayleigh scattering.",
    "answer2_body": "It mirrors the sea.",
    "answer1_model_id": "a-7b",
    "answer2_model_id": "b-7b",
    "answer1_metadata": {"decoding_method": "top_p"},
    "answer2_metadata": {},
    "score": [{"logprobs": -0.3}, {"logprobs": -0.4}],
}
PANDALM = {
    "idx": 3,
    "motivation_app": "Quiz",
    "cmp_key": "bloom-7b_opt-7b",
    "instruction": "Is it so?",
    "input": "Water is wet.",
    "response1": True,
    "response2": "",
    "annotator1": 1,
    "annotator2": 2,
    "annotator3": 1,
}


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def samples(path: Path, schema: str = "auto", pairs: tuple[Any, ...] = ()) -> list[Sample]:
    with open_source(str(path)) as source:
        found = recognise(source, schema, pairs)
        return [read_sample(parse_row(raw), found, source.line(n)) for n, raw in enumerate(source)]


def test_native(tmp_path: Path) -> None:
    row = pair("a", reference="R", gold=[8, 5.5], models=["x", "y"], category="c")
    (sample,) = samples(write_rows(tmp_path / "in.jsonl", [row]))
    assert sample == Sample(
        "a", 1, "Question a?", ("Yes.", "No."), "R", Gold("1", (8.0, 5.5)), ("x", "y"), "c"
    )


def test_judgelm_questions(tmp_path: Path) -> None:
    (sample,) = samples(write_rows(tmp_path / "in.jsonl", [JUDGELM]))
    assert (sample.id, sample.answers) == (7, ("Rayleigh scattering.", "It mirrors the sea."))
    assert (sample.models, sample.gold, sample.reference) == (("a-7b", "b-7b"), None, None)


@pytest.mark.parametrize("as_list", [True, False])
def test_pandalm(tmp_path: Path, as_list: bool) -> None:
    path = tmp_path / "in.json"
    split = {**PANDALM, "idx": 4, "input": "", "annotator1": 0, "annotator2": 1, "annotator3": 2}
    rows = [PANDALM, split]
    path.write_text(json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows)))
    first, second = samples(path)
    assert first.question == "Is it so?\nWater is wet."
    assert first.answers == ("True", "")
    assert (first.gold, first.models, first.category) == (Gold("1"), ("bloom-7b", "opt-7b"), "Quiz")
    assert (second.question, second.gold, second.line) == ("Is it so?", None, 2)


def test_map_names_any_fields(tmp_path: Path) -> None:
    row = {"meta": {"uid": 5}, "prompt": "Q", "a": "A", "b": "B", "label": "2"}
    path = write_rows(tmp_path / "in.jsonl", [row])
    pairs = (
        ("id", "meta.uid"),
        ("question", "prompt"),
        ("answer_2", "b"),
        ("answer_1", "a"),
        ("gold", "label"),
    )
    (sample,) = samples(path, pairs=pairs)
    assert (sample.id, sample.answers, sample.gold) == (5, ("A", "B"), Gold("2"))
    with pytest.raises(RowError, match="field wrong"):
        samples(path, pairs=(("question", "wrong"),))
    with pytest.raises(InputError, match="no such native field"):
        samples(path, pairs=(("qestion", "prompt"),))


def test_map_names_models_and_counts_from_the_end(tmp_path: Path) -> None:
    rows = [
        {"turns": ["a", "b", "Q"], "left": "A", "right": "B", "m1": "x", "m2": "y"},
        {"turns": ["Q"], "left": "A", "right": "B", "m1": "x"},
    ]
    path = write_rows(tmp_path / "in.jsonl", rows)
    pairs = (
        ("question", "turns.-1"),
        *(("answer_1", "left"), ("answer_2", "right")),
        *(("model_2", "m2"), ("model_1", "m1")),
    )
    named, unnamed = samples(path, pairs=pairs)
    assert (named.question, named.models) == ("Q", ("x", "y"))
    assert (unnamed.question, unnamed.models) == ("Q", None)


def test_map_leaves_native_names_as_they_are(tmp_path: Path) -> None:
    row = {**pair(7), "prompt": "P", "a": "A", "gold": "1", "category": "C", "reference": "R"}
    path = write_rows(tmp_path / "in.jsonl", [row])
    named = {"question": "prompt", "answer_1": "a", "answer_2": "a", "reference": ""}
    (sample,) = samples(path, pairs=tuple(named.items()))
    assert (sample.id, sample.gold, sample.category) == (7, Gold("1"), "C")
    assert (sample.question, sample.answers, sample.reference) == ("P", ("A", "A"), None)
    (sample,) = samples(path, pairs=(("answer", "a"),))
    assert (sample.question, sample.answers) == (row["question"], ("A",))


def test_nothing_fits(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"instruction": "I", "response1": "R"}])
    with pytest.raises(InputError) as caught:
        samples(path)
    message = str(caught.value)
    assert f"{path}:1" in message and "instruction, response1" in message
    assert "nearest is pandalm" in message and "needs response2" in message


def test_references_and_gold_join_by_id(tmp_path: Path) -> None:
    references = [
        {"question_id": 1, "reference": {"text": "one"}},
        {"question_id": "1", "reference": "text one"},
    ]
    joined = load_references(write_rows(tmp_path / "r.jsonl", references))
    assert (joined.find(1), joined.find("1"), joined.find(2)) == ("one", "text one", None)
    gold = [{"question_id": 1, "text": "2 8\nbecause"}, {"id": "x", "gold": "tie"}]
    found = load_gold(write_rows(tmp_path / "g.jsonl", gold), 2)
    assert found.find(1) == (Gold("2", (2.0, 8.0)), None, "2 8\nbecause")
    assert found.find("x") == (Gold("tie"), None, "tie")
    twice = write_rows(tmp_path / "twice.jsonl", [gold[0], gold[0]])
    with pytest.raises(InputError, match="id 1 appears twice"):
        load_gold(twice, 2)


def test_a_text_and_a_number_are_two_ids(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    write_rows(tmp_path / "refs.jsonl", [{"id": "1", "reference": "R"}])
    done = jlm("judge", "in.jsonl", "--reference", "refs.jsonl", "-q")
    assert done.code == 3
    (record,) = read_rows(tmp_path / "in.judge.jsonl")
    assert record["error"]["code"] == "missing-reference"
    assert "in.jsonl:1: id 1 is not in refs.jsonl (which has '1'" in record["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": None}, "field question: null"),
        ({"question": 5}, "field question: a number"),
        ({"answers": ["a", True]}, "field answers[1]: a bool"),
        ({"answers": "a"}, "field answers"),
        ({"answers": ["a", ["b"]]}, "field answers[1]: a list"),
        ({"reference": {"text": "R"}}, "field reference: an object"),
        ({"gold": 3}, "field gold: the number 3"),
        ({"gold": [1, 2, 3]}, "field gold"),
        ({"gold": [11, 2]}, "field gold"),
        ({"models": ["one"]}, "field models"),
        ({"id": {"a": 1}}, "field id: an object"),
        ({"id": True}, "field id: a bool"),
        ({"category": 3}, "field category: a number"),
    ],
)
def test_wrong_fields_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError) as caught:
        schema = recognise_native()
        read_sample({**pair(1), **change}, schema, 1)
    assert words in str(caught.value)


def recognise_native() -> Any:
    from jlm_cli.reading.schemas import SCHEMAS

    return SCHEMAS[0]


@pytest.mark.parametrize("text", ["Both are fine.\n8 8", "", " ", "error", "A"])
def test_gold_without_a_score_line_is_no_gold(text: str) -> None:
    assert read_sample({**pair(1), "gold": text}, recognise_native(), 1).gold is None


@pytest.mark.parametrize(
    ("command", "answers", "gold", "read"),
    [
        ("grade", 1, [7.0, [3], "2", "9\ngood"], [[7.0], [3.0], [2.0], [9.0]]),
        ("rank", 3, [[1, 2, 3], "4 5 6\nso", [9, 9, 1]], [[1, 2, 3], [4, 5, 6], [9, 9, 1]]),
        ("rank", 2, ["tie", "2", "8 4"], ["tie", "2", [8.0, 4.0]]),
        ("judge", 2, ["1", [2, 2], "8 4"], ["1", [2.0, 2.0], [8.0, 4.0]]),
    ],
)
def test_gold_is_about_as_many_answers_as_a_row_has(
    jlm: Jlm, tmp_path: Path, command: str, answers: int, gold: list[object], read: list[object]
) -> None:
    texts = [f"answer {n}" for n in range(answers)]
    row = {"question": "Q", "answers": texts, "reference": "R"}
    rows = [{"id": n, **row} for n in range(len(gold))]
    beside = [{"id": n, "gold": value} for n, value in enumerate(gold)]
    within = [{**row, **side} for row, side in zip(rows, beside, strict=True)]
    write_rows(tmp_path / "gold.jsonl", beside)
    for source, words in ((rows, ("--gold", "gold.jsonl")), (within, ())):
        write_rows(tmp_path / "in.jsonl", source)
        done = jlm(command, "in.jsonl", *words, "-o", "-", "-q")
        assert [json.loads(line)["gold"] for line in done.out.splitlines()] == read


def test_unreadable_gold_is_counted(jlm: Jlm, tmp_path: Path) -> None:
    golds = ["A", "B", "", "Both are fine.\n8 8", None]
    write_rows(tmp_path / "in.jsonl", [{**pair(n), "gold": gold} for n, gold in enumerate(golds)])
    done = jlm("judge", "in.jsonl")
    assert done.code == 0 and "; 3 rows with unreadable gold\n" in done.err
    assert "gold that cannot be read, first of id 0: 'A' says nothing about 2 answers" in done.err
    assert json.loads((tmp_path / "in.judge.metrics.json").read_text())["n_unreadable_gold"] == 3


def test_gold_about_other_models_is_no_gold(jlm: Jlm, tmp_path: Path) -> None:
    """Which of them stands first there is not known."""
    write_rows(tmp_path / "in.jsonl", [pair(n, models=["x", "y"]) for n in range(4)])
    gold = [{"id": n, "gold": "1", "models": ["x-7b", "y-7b"]} for n in range(3)]
    write_rows(tmp_path / "gold.jsonl", [*gold, {"id": 3, "gold": "1", "models": ["y", "x"]}])
    done = jlm("judge", "in.jsonl", "--gold", "gold.jsonl")
    assert "3 rows with unreadable gold" in done.err and "without gold" not in done.err
    assert "first of id 0: it is about x-7b and y-7b, the row about x and y" in done.err
    assert [one["gold"] for one in read_rows(tmp_path / "in.judge.jsonl")] == [None] * 3 + ["2"]
    done = jlm("metrics", "in.judge.jsonl", "--gold", "gold.jsonl", "--json")
    found = json.loads(done.out)["gold"]
    assert (found["n"], found["n_unreadable"]) == (1, 3)


def test_scores_of_models_in_another_order(jlm: Jlm, tmp_path: Path) -> None:
    models = ["x", "y", "z"]
    row = {"id": 1, "question": "Q", "answers": ["a", "b", "c"], "models": models}
    write_rows(tmp_path / "in.jsonl", [row])
    gold = {"id": 1, "scores": [1, 2, 3], "models": ["z", "x", "y"]}
    write_rows(tmp_path / "gold.jsonl", [gold])
    assert jlm("rank", "in.jsonl", "--gold", "gold.jsonl").code == 0
    assert read_rows(tmp_path / "in.rank.jsonl")[0]["gold"] == [2.0, 3.0, 1.0]


def test_texts_of_other_models_are_not_a_rows_own(jlm: Jlm, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(n, models=["x", "y"]) for n in range(3)])
    assert jlm("judge", "in.jsonl").code == 0
    write_rows(tmp_path / "others.jsonl", [pair(n, models=["v", "w"]) for n in range(3)])
    gold = [{"id": n, "gold": "1", "models": ["x", "y"]} for n in range(3)]
    write_rows(tmp_path / "gold.jsonl", gold)
    words = ["metrics", "in.judge.jsonl", "--gold", "gold.jsonl", "--json"]
    found = json.loads(jlm(*words, "--input", "others.jsonl").out)
    assert found["gold"]["n"] == 3 and set(found["win_rate"]) == {"x", "y"}


def test_fields_are_mapped_once(jlm: Jlm, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    for names, message in (
        (["question=a", "question=b"], "--map question=…: is given 2 times"),
        (["answer_2=a", "answer_3=b"], "--map answer_N=…: they are numbered from 1 on"),
    ):
        done = jlm("judge", "in.jsonl", *(word for name in names for word in ("--map", name)))
        assert done.code == 2 and message in done.err


def test_ids_that_json_rounds_are_errors(jlm: Jlm, tmp_path: Path) -> None:
    lines = [f'{{"id":{2**64 + n},"question":"Q","answers":["a","b"]}}' for n in range(2)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, lines[0].replace("184467", "1")]))
    assert jlm("judge", "in.jsonl").code == 3
    found: list[Any] = read_rows(tmp_path / "in.judge.jsonl")
    assert [one.get("error", {}).get("code") for one in found] == ["bad-value"] * 2 + [None]


def test_gold_about_too_few_answers_is_the_rows_error(jlm: Jlm, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"id": 1, "question": "Q", "answers": ["a", "b", "c"]}])
    write_rows(tmp_path / "gold.jsonl", [{"id": 1, "gold": [5, 6]}])
    done = jlm("rank", "in.jsonl", "--gold", "gold.jsonl", "-o", "-", "-q")
    error = json.loads(done.out)["error"]
    assert error["code"] == "bad-value" and "about 2 answers, not 3" in error["message"]


def test_gold_of_a_row_without_its_reference(tmp_path: Path, jlm: Jlm) -> None:
    """What is judged without the reference is measured against what was said of just that."""
    judgelm = {**JUDGELM, "reference": {"text": "R"}, "text": "8 2\nx", "text_w_reference": "3 9"}
    native = {**pair(1), "reference": "R", "gold": "1", "gold_without_reference": "2"}
    for row, golds in ((judgelm, ([3.0, 9.0], [8.0, 2.0])), (native, ("1", "2"))):
        write_rows(tmp_path / "in.jsonl", [row])
        for words, gold in zip(((), ("--no-reference",)), golds, strict=True):
            record = json.loads(jlm("judge", "in.jsonl", "-o", "-", "-q", *words).out)
            assert record["gold"] == gold
            assert (record["sample"]["reference"] is None) == bool(words)


@pytest.mark.parametrize(
    "row",
    [
        {key: JUDGELM[key] for key in JUDGELM if key != "question_body"},
        {**JUDGELM, "answer1_body": None},
        {**JUDGELM, "reference": 5},
    ],
)
def test_error_records_keep_their_ids(tmp_path: Path, jlm: Jlm, row: dict[str, Any]) -> None:
    write_rows(tmp_path / "in.jsonl", [JUDGELM, row])
    records = jlm("judge", "in.jsonl", "-o", "-", "-q").out.splitlines()
    assert [json.loads(line)["id"] for line in records] == [7, 7]
    assert "error" in json.loads(records[1])


def test_mapped_fields_may_be_missing_where_native_ones_may(tmp_path: Path, jlm: Jlm) -> None:
    rows = [
        {"q": "Q", "says": [{"text": "a"}, {"text": "b"}], "lab": "1", "meta": {"uid": n}}
        for n in range(3)
    ]
    del rows[0]["lab"], rows[1]["meta"]
    rows.append({"q": "Q", "says": [{"text": "a"}]})
    write_rows(tmp_path / "in.jsonl", rows)
    names = {"question": "q", "answer_1": "says.0.text", "answer_2": "says.1.text"}
    words = [f"--map={native}={name}" for native, name in {**names, "id": "meta.uid"}.items()]
    assert jlm("judge", "in.jsonl", "-q", *words, "--map=gold=lab").code == 3
    judged = read_rows(tmp_path / "in.judge.jsonl")
    assert [(one["id"], one.get("gold")) for one in judged] == [
        (0, None),
        (None, "1"),
        (2, "1"),
        (None, None),
    ]
    assert "field says.1.text (named by --map) is missing" in judged[3]["error"]["message"]
    done = jlm("judge", "in.jsonl", "-q", "--overwrite", *words, "--map=gold=label")
    assert done.code == 2 and "in.jsonl: no row has the field label (named by --map)" in done.err


def test_gold_files_are_read_alike(tmp_path: Path, jlm: Jlm) -> None:
    """A line that says nothing is a row without gold; what cannot be read is counted."""
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(4)])
    gold = [{"id": 0, "gold": "2"}, {"id": 1, "gold": None}, {"id": 2, "text": "A"}]
    write_rows(tmp_path / "gold.jsonl", gold)
    facts = json.loads(jlm("judge", "in.jsonl", "--gold", "gold.jsonl", "--plan", "--json").out)
    assert (facts["rows_without_gold"], facts["rows_with_unreadable_gold"]) == (2, 1)
    assert jlm("judge", "in.jsonl", "--gold", "gold.jsonl").code == 0
    done = jlm("metrics", "in.judge.jsonl", "--gold", "gold.jsonl", "--json")
    assert done.code == 0 and json.loads(done.out)["gold"]["n"] == 1
    write_rows(tmp_path / "other.jsonl", [{"id": "0", "gold": "1"}])
    done = jlm("judge", "in.jsonl", "--gold", "other.jsonl", "--overwrite")
    assert "no row has gold: id 0 is not in other.jsonl (which has '0': a text" in done.err
    write_rows(tmp_path / "none.jsonl", [{"id": n, "gold": None} for n in range(4)])
    done = jlm("judge", "in.jsonl", "--gold", "none.jsonl", "--overwrite")
    assert "no row has gold: there is none in none.jsonl" in done.err
    done = jlm("metrics", "in.judge.jsonl", "--gold", "none.jsonl")
    assert "no gold, so no agreement; that of --gold has none for its rows" in done.err


def test_the_model_of_a_single_answer(tmp_path: Path, jlm: Jlm) -> None:
    rows = [{"id": n, "question": "Q", "answer": f"a{n}", "model": "ab"[n % 2]} for n in range(4)]
    write_rows(tmp_path / "in.jsonl", rows)
    words = ("grade", "in.jsonl", "--no-reference", "--json", "-q", "--overwrite")
    for more in ((), ("--map", "models=model")):
        assert set(json.loads(jlm(*words, *more).out)["mean_score"]) == {"a", "b"}
    rows = [{**rows[0], "models": None}, {**rows[1], "model": {"name": "b"}}]
    write_rows(tmp_path / "in.jsonl", rows)
    found = json.loads(jlm(*words).out)
    assert set(found["mean_score"]) == {"a"} and found["n_judged"] == 2


@pytest.mark.parametrize(
    ("preference", "known", "unreadable"),
    [("2", 1, 0), (1.2, 1, 0), ("tie", 0, 1), (3, 0, 1), (True, 0, 1), (None, 0, 0)],
)
def test_preferences(
    tmp_path: Path, jlm: Jlm, preference: object, known: int, unreadable: int
) -> None:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": preference}
    write_rows(tmp_path / "in.jsonl", [row])
    facts = json.loads(jlm("judge", "in.jsonl", "--plan", "--json", "-q").out)
    assert facts["rows_with_unreadable_gold"] == unreadable
    assert jlm("judge", "in.jsonl", "-q").code == 0
    assert (read_rows(tmp_path / "in.judge.jsonl")[0]["gold"] is not None) == bool(known)


def test_an_empty_input_is_told(tmp_path: Path, jlm: Jlm) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n")
    done = jlm("judge", "in.jsonl")
    assert done.code == 0 and "the input holds no rows" in done.err


@pytest.mark.parametrize(
    ("votes", "gold"),
    [
        ([1, 2.0, 2.0], "2"),
        (["1", "0", "0"], "tie"),
        (["1", "Tie", " tie"], "tie"),
        ([2, None, 2, 1], "2"),
        ([1, 2], None),
        (["1", "A", "1"], "unreadable votes"),
        ([1, 1, 3], "unreadable votes"),
        ([1, 1, True], "unreadable votes"),
    ],
)
def test_votes_are_all_read_or_none(votes: list[Any], gold: str | None) -> None:
    assert gold_of_votes({f"annotator{n}": vote for n, vote in enumerate(votes, start=1)}) == gold
    assert gold_of_votes({"annotators": votes}) == gold


def test_votes_and_the_other_order_in_a_gold_file(tmp_path: Path, jlm: Jlm) -> None:
    """As jlm metrics reads them: votes are gold, and models say which answer it means."""
    write_rows(tmp_path / "in.jsonl", [pair(n, models=["x", "y"]) for n in range(4)])
    gold = [
        {"id": 0, "gold": "1", "models": ["x", "y"]},
        {"id": 1, "gold": "1", "models": ["y", "x"]},
        {"id": 2, "gold": [3, 8], "sample": {"models": ["y", "x"]}},
        {"id": 3, "annotator1": 2, "annotator2": 2, "annotator3": 0},
    ]
    write_rows(tmp_path / "gold.jsonl", gold)
    assert jlm("judge", "in.jsonl", "--gold", "gold.jsonl").code == 0
    records = read_rows(tmp_path / "in.judge.jsonl")
    assert [record["gold"] for record in records] == ["1", "2", [8.0, 3.0], "2"]


def test_rows_without_ids_are_joined_by_their_question(tmp_path: Path, jlm: Jlm) -> None:
    """AlpacaEval's files have none, and their judgments are compared all the same."""
    for model in "ab":
        rows = [
            {"instruction": f"Do {n}.", "output": f"{model} did {n}", "generator": model}
            for n in range(5)
        ]
        write_rows(tmp_path / f"{model}.jsonl", rows)
    for name in ("one", "two"):
        assert jlm("judge", "a.jsonl", "b.jsonl", "-o", f"{name}.jsonl").code == 0
    gold = [
        {"instruction": f"Do {n}.", "output_1": f"a did {n}", "output_2": f"b did {n}"}
        | {"generator_1": "a", "generator_2": "b", "preference": 1}
        for n in range(5)
    ]
    write_rows(tmp_path / "gold.jsonl", gold)
    done = jlm("metrics", "one.jsonl", "two.jsonl", "--gold", "gold.jsonl", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["comparison"]["n"] == 5 and found["judges"]["one"]["gold"]["n"] == 5


@pytest.mark.parametrize("more", [{"sample": "note"}, {"models": 7}, {"sample": [1]}])
def test_odd_fields_of_a_gold_file(tmp_path: Path, jlm: Jlm, more: dict[str, Any]) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1, models=["x", "y"])])
    write_rows(tmp_path / "gold.jsonl", [{"id": 1, "gold": "2", **more}])
    assert jlm("judge", "in.jsonl", "--gold", "gold.jsonl").code == 0
    assert read_rows(tmp_path / "in.judge.jsonl")[0]["gold"] == "2"


def test_rows_without_ids_have_no_reference_in_a_file(tmp_path: Path, jlm: Jlm) -> None:
    row = {name: value for name, value in pair(1).items() if name != "id"}
    write_rows(tmp_path / "in.jsonl", [row])
    write_rows(tmp_path / "refs.jsonl", [{"id": 1, "reference": "R"}])
    done = jlm("judge", "in.jsonl", "--reference", "refs.jsonl")
    assert done.code == 3, done.err
    (record,) = read_rows(tmp_path / "in.judge.jsonl")
    assert record["error"]["code"] == "missing-reference"


def test_what_is_no_json_at_all_is_named(tmp_path: Path, jlm: Jlm) -> None:
    (tmp_path / "in.csv").write_text("id,question\n1,Why?\n")
    done = jlm("judge", "in.csv")
    assert done.code == 3 and "no line is a JSON object: is this CSV" in done.err
    (tmp_path / "some.jsonl").write_text("x\n" + json.dumps(pair(1)))
    assert "no line is a JSON" not in jlm("judge", "some.jsonl").err


def test_several_inputs_take_no_schema(tmp_path: Path, jlm: Jlm) -> None:
    done = jlm("judge", "a.jsonl", "b.jsonl", "--schema", "native")
    message = "jlm: --schema is for one input; several are joined by their ids\n"
    assert (done.code, done.err) == (2, message)
    done = jlm("judge", "a.jsonl", "a.jsonl", "b.jsonl")
    assert (done.code, done.err) == (2, "jlm: a.jsonl: the same input is named twice\n")


def test_gold_of_an_official_format_names_its_models(tmp_path: Path, jlm: Jlm) -> None:
    """Of answers in the other order it is turned, as jlm metrics turns it."""
    turned = {**JUDGELM, "answer1_body": JUDGELM["answer2_body"], "answer1_model_id": "b-7b"}
    turned |= {"answer2_body": JUDGELM["answer1_body"], "answer2_model_id": "a-7b"}
    other = {**PANDALM, "cmp_key": "opt-7b_bloom-7b", "response1": "", "response2": True}
    alpaca = {"id": 1, "instruction": "Do.", "output_1": "a", "output_2": "b"}
    alpaca |= {"generator_1": "a-7b", "generator_2": "b-7b"}
    given = {
        "judgelm": (turned, {**JUDGELM, "text": "9 2\nThe first."}, [2.0, 9.0]),
        "pandalm": (other, PANDALM, "2"),
        "alpaca": (pair(1, models=["b-7b", "a-7b"]), {**alpaca, "preference": 1.2}, "2"),
    }
    for name, (row, gold, wanted) in given.items():
        write_rows(tmp_path / "in.jsonl", [row])
        write_rows(tmp_path / "gold.jsonl", [gold])
        done = jlm("judge", "in.jsonl", "--gold", "gold.jsonl", "-o", f"{name}.jsonl")
        assert done.code == 0, done.err
        (record,) = read_rows(tmp_path / f"{name}.jsonl")
        assert record["gold"] == wanted
        judged = {**record, "gold": None}
        write_rows(tmp_path / "judged.jsonl", [judged])
        done = jlm("metrics", "judged.jsonl", "--gold", "gold.jsonl", "--json")
        agrees = json.loads(done.out)["objective"]["agreement"]["value"]
        verdict = wanted if isinstance(wanted, str) else "2"
        assert agrees == float(record["verdict"] == verdict)


@pytest.mark.parametrize("reference", ["", " \n", [], ["", " "]])
def test_a_reference_without_words_is_none(
    tmp_path: Path, jlm: Jlm, reference: str | list[str]
) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1, reference=reference)])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 0
    assert read_rows(tmp_path / "out.jsonl")[0]["sample"]["reference"] is None
    write_rows(tmp_path / "one.jsonl", [{"id": 1, "question": "Q?", "answer": "A"}])
    write_rows(tmp_path / "refs.jsonl", [{"id": 1, "reference": reference}])
    for more in (("--reference", "refs.jsonl"), ()):
        assert jlm("grade", "one.jsonl", *more, "-o", f"grade{len(more)}.jsonl").code == 3
        (record,) = read_rows(tmp_path / f"grade{len(more)}.jsonl")
        assert record["error"]["code"] == "missing-reference"
    assert (
        "id 1 has no reference in refs.jsonl"
        in read_rows(tmp_path / "grade2.jsonl")[0]["error"]["message"]
    )
    done = jlm("grade", "one.jsonl", "--reference-text", " ")
    assert done.code == 2 and "--reference-text is empty" in done.err


def test_answers_of_judgelm_are_numbered_without_gaps(tmp_path: Path, jlm: Jlm) -> None:
    gap = {**JUDGELM, "answer4_body": "fourth"}
    far = {**JUDGELM, f"answer{'9' * 4400}_body": "of no number"}
    write_rows(tmp_path / "in.jsonl", [gap, far])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 3
    first, second = read_rows(tmp_path / "out.jsonl")
    assert first["error"]["message"] == "in.jsonl:1: field answer3_body is missing"
    assert len(second["sample"]["answers"]) == 2


def test_errors_name_the_fields_of_the_file(tmp_path: Path, jlm: Jlm) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rewards = {"id": 1, "prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Stone."}
    given = {
        "answer2_body": ({**JUDGELM, "answer2_body": None}, ()),
        "response2": ({**PANDALM, "response2": 7}, ()),
        "chosen": ({**rewards, "chosen": None}, ()),
        "rejected": ({**rewards, "rejected": None}, ()),
        "b.text": (
            pair(1, a="a", b={"text": 5}),
            ("--map", "answer_1=a", "--map", "answer_2=b.text"),
        ),
        "answers[1]": ({**pair(1), "answers": ["a", None]}, ()),
    }
    for n, (name, (row, words)) in enumerate(given.items()):
        write_rows(tmp_path / "in.jsonl", [row])
        assert jlm("judge", "in.jsonl", *words, "-o", f"{n}.jsonl").code == 3
        assert f"field {name}: " in read_rows(tmp_path / f"{n}.jsonl")[0]["error"]["message"]
    write_rows(tmp_path / "in.jsonl", [{**rewards, "chosen": messages}])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 3
    message = read_rows(tmp_path / "out.jsonl")[0]["error"]["message"]
    assert message.endswith("--map takes one out of messages: …=chosen.-1.content")
    words = ("question=prompt", "answer_1=chosen.-1.content", "answer_2=rejected")
    done = jlm("judge", "in.jsonl", "-o", "m.jsonl", *(w for one in words for w in ("--map", one)))
    assert done.code == 0 and read_rows(tmp_path / "m.jsonl")[0]["sample"]["answers"][0] == "Hello."


def test_whole_numbers_of_tables_are_gold(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1, gold=1.0), pair(2), pair(3, gold=1.5)])
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl").code == 3
    records = read_rows(tmp_path / "out.jsonl")
    assert records[0]["gold"] == "1" and "field gold" in records[2]["error"]["message"]
    write_rows(tmp_path / "gold.jsonl", [{"id": 1, "gold": 2.0}])
    assert jlm("judge", "in.jsonl", "--gold", "gold.jsonl", "-o", "two.jsonl").code == 3
    assert read_rows(tmp_path / "two.jsonl")[0]["gold"] == "2"


def test_rows_of_side_files_need_ids(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(None)])
    write_rows(tmp_path / "side.jsonl", [{"id": None, "gold": "1", "reference": "R"}])
    for option in ("--gold", "--reference"):
        done = jlm("judge", "in.jsonl", option, "side.jsonl")
        assert (done.code, done.err) == (
            2, "jlm: side.jsonl:1: field id: null, and rows are joined by id\n"
        )  # fmt: skip
    rows = [{"id": 1, "reference": text} for text in ("R", "R", "S")]
    write_rows(tmp_path / "refs.jsonl", rows)
    with pytest.raises(InputError, match=r"refs\.jsonl:3: id 1 appears twice, with two ref"):
        load_references(tmp_path / "refs.jsonl")
    write_rows(tmp_path / "refs.jsonl", rows[:2])
    assert load_references(tmp_path / "refs.jsonl").find(1) == "R"


def test_a_model_s_name_can_be_mapped(tmp_path: Path, jlm: Jlm) -> None:
    rows = [{"id": n, "prompt": "q", "answer": "a", "model": "m1", "by": "m2"} for n in range(2)]
    write_rows(tmp_path / "in.jsonl", rows)
    for words, wanted in (
        ((), ["m1"]),
        (("model=by",), ["m2"]),
        (("models=by",), ["m2"]),
        (("model=",), None),
    ):
        mapped = [word for one in ("question=prompt", *words) for word in ("--map", one)]
        done = jlm("grade", "in.jsonl", "--no-reference", "--overwrite", "-o", "o.jsonl", *mapped)
        assert done.code == 0, done.err
        assert read_rows(tmp_path / "o.jsonl")[0]["sample"]["models"] == wanted


def test_ids_can_be_left_out(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1), {**pair(2), "answers": 5}])
    assert jlm("judge", "in.jsonl", "--map", "id=").code == 3
    assert [record["id"] for record in read_rows(tmp_path / "in.judge.jsonl")] == [None, None]


def test_a_list_that_is_no_json_is_told_of_as_one(tmp_path: Path, jlm: Jlm) -> None:
    (tmp_path / "in.json").write_text('[\n{"id": 1, "s": 1},\n{"id": 2, "s": NaN}\n]')
    done = jlm("judge", "in.json")
    why = "not JSON: NaN is none of its numbers (write null), line 3, column 16"
    assert (done.code, done.err) == (2, f"jlm: in.json: {why}\n")
    assert not (tmp_path / "in.judge.jsonl").exists()


def test_gold_without_an_order_of_its_own_needs_models(tmp_path: Path, jlm: Jlm) -> None:
    """RewardBench's chosen answer stands first or second by a checksum, not by the row."""
    chosen = [
        {"id": n, "prompt": f"Q{n}?", "chosen": "Yes.", "rejected": "No no."} for n in range(8)
    ]
    rows = [{"id": n, "question": f"Q{n}?", "answers": ["Yes.", "No no."]} for n in range(8)]
    write_rows(tmp_path / "in.jsonl", rows)
    write_rows(tmp_path / "gold.jsonl", chosen)
    done = jlm("judge", "in.jsonl", "--gold", "gold.jsonl")
    assert done.code == 2 and "gold.jsonl:1: chosen and rejected of no named models" in done.err
    write_rows(tmp_path / "said.jsonl", [{**row, "verdict": "1"} for row in rows])
    found = json.loads(jlm("metrics", "said.jsonl", "--gold", "gold.jsonl", "--json").out)
    assert found["objective"]["agreement"]["value"] == 1
    named = [{**row, "chosen_model": "a", "rejected_model": "b"} for row in chosen]
    write_rows(tmp_path / "gold.jsonl", named)
    write_rows(tmp_path / "in.jsonl", [{**row, "models": ["b", "a"]} for row in rows])
    assert jlm("judge", "in.jsonl", "--gold", "gold.jsonl").code == 0
    assert {record["gold"] for record in read_rows(tmp_path / "in.judge.jsonl")} == {"2"}


def test_judgelm_s_gold_goes_with_the_reference(tmp_path: Path, jlm: Jlm) -> None:
    row = {**JUDGELM, "text": "9 2\nplain", "text_w_reference": "2 9\nwith"}
    for reference, gold in (({"text": ""}, [9.0, 2.0]), ({"text": "R"}, [2.0, 9.0])):
        write_rows(tmp_path / "in.jsonl", [{**row, "reference": reference}])
        assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "--overwrite").code == 0
        assert read_rows(tmp_path / "out.jsonl")[0]["gold"] == gold


def test_gold_that_is_null_is_not_said_to_be_missing(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(0)])
    write_rows(tmp_path / "gold.jsonl", [{"id": 0, "gold": None}, {"id": 99, "gold": "1"}])
    done = jlm("judge", "in.jsonl", "--gold", "gold.jsonl")
    assert done.code == 0 and "no row has gold: id 0 has no gold in gold.jsonl" in done.err
