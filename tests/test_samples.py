"""Every sample file runs as it is, with its format told by its fields."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Jlm, pair, read_rows, write_rows

SAMPLES = ROOT / "samples"
RUNS: dict[str, tuple[tuple[str, ...], list[Any]]] = {
    "native": (("pairs.jsonl",), ["1", "2", "1", "2", "1", "2", "1", "tie"]),
    "judgelm": (("judgelm_questions.jsonl",), [None, None, None]),
    "judgelm training": (("judgelm_100k.jsonl",), [[10, 1], [10, 1], None]),
    "pandalm": (("pandalm.json",), ["1", "1", "1"]),
    "alpaca annotations": (("alpaca_annotations.json",), ["2", "2", "tie"]),
    "alpaca outputs": (("alpaca_model_a.json", "alpaca_model_b.json"), [None] * 3),
    "rewardbench": (("rewardbench.jsonl",), ["1", "1", "2"]),
    "judgelm answers": (("answers_model_a.jsonl", "answers_model_b.jsonl"), [None] * 3),
    "mt-bench": (
        ("mtbench_questions.jsonl", "mtbench_model_a.jsonl", "mtbench_model_b.jsonl"),
        [None, None],
    ),
}
SIDE_FILES = {"judgelm_references.jsonl", "judgelm_gold.jsonl", "rated_answers.jsonl"}
OTHER_COMMANDS = {
    "answers": ("grade", ("answers.jsonl",)),
    "mm-vet": ("grade", ("mmvet.json", "mmvet_predictions.json")),
    "lists": ("rank", ("lists.jsonl",)),
    "one model": ("grade --no-reference", ("alpaca_model_a.json",)),
    "two models": ("rank", ("answers_model_a.jsonl", "answers_model_b.jsonl")),
}


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_sample_runs_with_other_commands(tmp_path: Path, jlm: Jlm, name: str) -> None:
    command, files = OTHER_COMMANDS[name]
    done = jlm(*command.split(), *(str(SAMPLES / file) for file in files), "-o", "out.jsonl")
    assert done.code == 0, done.err
    assert len(read_rows(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize("name", RUNS)
def test_sample_runs(tmp_path: Path, jlm: Jlm, name: str) -> None:
    files, gold = RUNS[name]
    done = jlm("judge", *(str(SAMPLES / file) for file in files), "-o", "out.jsonl")
    assert done.code == 0, done.err
    records = read_rows(tmp_path / "out.jsonl")
    assert [record["gold"] for record in records] == gold
    if name not in ("native", "judgelm"):
        assert all(sorted(r["sample"]["models"]) == ["model-a", "model-b"] for r in records)


def test_rated_answers_make_training_rows(tmp_path: Path, jlm: Jlm) -> None:
    """One answer to each question, spoiled ones beside them."""
    source = str(SAMPLES / "rated_answers.jsonl")
    done = jlm("data", source, "-o", "set", "--bad", "1", "--rows", "64", "--validation", "0")
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "set" / "train.jsonl")
    assert len({row["question"] for row in rows}) == 64


def test_no_sample_is_left_out() -> None:
    runs = [files for files, _ in (*RUNS.values(), *((f, 0) for _, f in OTHER_COMMANDS.values()))]
    used = {file for files in runs for file in files} | SIDE_FILES
    assert {path.name for path in SAMPLES.iterdir()} == used


def test_rewardbench_gold_follows_the_chosen_answer(tmp_path: Path, jlm: Jlm) -> None:
    chosen = [row["chosen"] for row in read_rows(SAMPLES / "rewardbench.jsonl")]
    jlm("judge", str(SAMPLES / "rewardbench.jsonl"), "-o", "out.jsonl")
    for record, text in zip(read_rows(tmp_path / "out.jsonl"), chosen, strict=True):
        assert record["sample"]["answers"][int(record["gold"]) - 1] == text


def test_references_and_gold_of_the_pipeline(tmp_path: Path, jlm: Jlm) -> None:
    references, gold = SAMPLES / "judgelm_references.jsonl", SAMPLES / "judgelm_gold.jsonl"
    words = ("--reference", str(references), "--gold", str(gold))
    done = jlm("judge", str(SAMPLES / "judgelm_questions.jsonl"), "-o", "out.jsonl", *words)
    assert done.code == 0, done.err
    records = read_rows(tmp_path / "out.jsonl")
    assert [record["gold"] for record in records] == [[9, 2], [10, 1], [10, 2]]
    assert records[2]["sample"]["reference"] == "Gracias."


def test_mtbench_turns_stand_in_order(tmp_path: Path, jlm: Jlm) -> None:
    files = RUNS["mt-bench"][0]
    jlm("judge", *(str(SAMPLES / file) for file in files), "-o", "out.jsonl")
    (first, _) = read_rows(tmp_path / "out.jsonl")
    sample = first["sample"]
    assert first["id"] == 80 and sample["category"] == "quiz"
    assert (
        sample["question"] == "[Turn 1]\nName a planet.\n\n[Turn 2]\nIs it larger than the Earth?"
    )
    assert sample["answers"][0] == "[Turn 1]\nJupiter.\n\n[Turn 2]\nYes, far larger."


def answers(model: str, ids: list[int]) -> list[dict[str, Any]]:
    return [
        {"question_id": n, "question_body": f"Q{n}", "text": f"{model}{n}", "model": model}
        for n in ids
    ]


def test_an_answer_without_its_counterpart_is_an_error_record(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "a.jsonl", answers("a", [1, 2]))
    write_rows(tmp_path / "b.jsonl", answers("b", [2, 3]))
    assert jlm("judge", "a.jsonl", "b.jsonl", "-o", "out.jsonl").code == 3
    records = read_rows(tmp_path / "out.jsonl")
    assert [(record["id"], "error" in record) for record in records] == [
        (1, True),
        (2, False),
        (3, True),
    ]


def test_any_two_files_are_joined_by_their_ids(tmp_path: Path, jlm: Jlm) -> None:
    """Fields by their native names or by `--map`, the questions in the files or in one of their
    own; a model that is not named has the name of its file."""
    ids = [3, "x", 1]
    asked = [{"id": n, "question": f"Q{n}", "category": "c", "reference": "r"} for n in ids]
    write_rows(tmp_path / "asked.jsonl", asked[::-1])
    for name in "ab":
        told = [{"id": n, "answer": f"{name}{n}"} for n in ids]
        write_rows(tmp_path / f"{name}.jsonl", told)
        whole = [{**one, **two} for one, two in zip(asked, told, strict=True)]
        write_rows(tmp_path / f"whole-{name}.jsonl", whole)
        other = [
            {"uid": row["id"], "model": f"m-{name}", "meta": {"topic": "c", "ref": "r"}}
            | {"chat": [{"text": row["question"]}, {"text": "?"}, {"text": row["answer"]}]}
            for row in whole
        ]
        write_rows(tmp_path / f"other-{name}.jsonl", other)
    names = ["id=uid", "question=chat.0.text", "answer=chat.-1.text"]
    names += ["category=meta.topic", "reference=meta.ref"]
    mapped = [word for name in names for word in ("--map", name)]
    for files, stem in (
        (["asked.jsonl", "a.jsonl", "b.jsonl"], ""),
        (["whole-a.jsonl", "whole-b.jsonl"], "whole-"),
        (["other-a.jsonl", "other-b.jsonl", *mapped], "m-"),
    ):
        assert jlm("judge", *files, "--overwrite", "-o", "out.jsonl").code == 0
        for n, record in zip(ids, read_rows(tmp_path / "out.jsonl"), strict=True):
            assert (record["id"], record["line"]) == (n, 1 + ids.index(n))
            assert record["sample"] == {
                "question": f"Q{n}",
                "answers": [f"a{n}", f"b{n}"],
                "reference": "r",
                "models": [f"{stem}a", f"{stem}b"],
                "category": "c",
            }
    assert jlm("grade", "a.jsonl", "asked.jsonl", "-o", "grades.jsonl").code == 0
    assert [record["sample"]["answers"] for record in read_rows(tmp_path / "grades.jsonl")] == [
        ["a3"],
        ["ax"],
        ["a1"],
    ]
    done = jlm("judge", "asked.jsonl", "a.jsonl", "b.jsonl", "--map", "category=topic")
    assert done.code == 2 and "no row has the field topic (named by --map)" in done.err


def test_files_of_other_questions_are_not_joined(tmp_path: Path, jlm: Jlm) -> None:
    rows = [{"id": n, "question": f"Q{n}", "answer": "A"} for n in (1, 2)]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", [rows[1], {**rows[0], "question": "Else?"}])
    write_rows(tmp_path / "c.jsonl", [{**row, "id": str(row["id"])} for row in rows])
    write_rows(tmp_path / "pairs.jsonl", [pair(1)])
    write_rows(tmp_path / "none.jsonl", [{"answer": "A"}])
    for name, message in (
        ("c", "a.jsonl and c.jsonl: no id is in both; '1' is not in a.jsonl (which has 1: a text"),
        ("pairs", "pairs.jsonl: does not hold one model's answers"),
        ("none", "none.jsonl:1: has no id and no question to be joined by"),
    ):
        done = jlm("judge", "a.jsonl", f"{name}.jsonl")
        assert done.code == 2 and message in done.err.strip().splitlines()[-1], done.err
    words = ["judge", "a.jsonl", "b.jsonl", "--map"]
    for told, message in (
        ("answer=outt", "a.jsonl, b.jsonl: no row has the field outt (named by --map)"),
        ("answer_1=answer", "--map answer_1=…: of several files each has one: --map answer=FIELD"),
        ("model_2=m", "--map model_2=…: of several files each has one: --map models=FIELD"),
    ):
        done = jlm(*words, told)
        assert (done.code, done.err) == (2, f"jlm: {message}\n")


def test_one_row_does_not_tell_a_file_of_answers(tmp_path: Path, jlm: Jlm) -> None:
    """One whose first answer is missing is none of questions; that row alone is an error."""
    rows = [{"id": n, "question": f"Q{n}", "answer": "A"} for n in (1, 2)]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", rows)
    write_rows(tmp_path / "c.jsonl", [{"id": 1, "question": "Q1"}, rows[1]])
    done = jlm("rank", "a.jsonl", "b.jsonl", "c.jsonl", "-o", "out.jsonl")
    first, second = read_rows(tmp_path / "out.jsonl")
    assert done.code == 3 and len(second["sample"]["answers"]) == 3
    assert "c.jsonl:1: field answer is missing" in first["error"]["message"]


def test_what_is_wrong_with_one_row_costs_that_row(tmp_path: Path, jlm: Jlm) -> None:
    """It is an error that says where; the others are judged."""
    asked = [{"id": n, "question": f"Q{n}"} for n in range(6)]
    write_rows(tmp_path / "q.jsonl", asked)
    write_rows(tmp_path / "a.jsonl", [{"id": n, "answer": f"a{n}"} for n in range(8)])
    told: list[Any] = [{"id": n, "answer": f"b{n}"} for n in (5, 4, 0, 7)]
    told += [{"id": 1, "answer": None}, {"id": 2, "question": "Else?", "answer": "b2"}]
    lines = [*map(json.dumps, told), '{"id": 3, "answ']
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    for command, names in (("judge", "qab"), ("rank", "abq")):
        words = [command, *(f"{name}.jsonl" for name in names)]
        assert jlm(*words, "--overwrite", "-o", "out.jsonl").code == 3
        found: list[Any] = read_rows(tmp_path / "out.jsonl")
        errors = {
            one["id"]: (one["error"]["code"], one["error"]["message"].removeprefix("a.jsonl:"))
            for one in found
            if "error" in one
        }
        torn = "not JSON: unexpected end of data, column 16"
        assert len(found) == 8 and errors == {
            1: ("bad-answer", "2: b.jsonl:5: field answer: null where a text is needed"),
            2: ("other-question", "3: id 2 asks something else in b.jsonl:6 and q.jsonl:3"),
            3: ("missing-answer", f"4: id 3 is not in b.jsonl (its line 7: {torn})"),
            6: ("missing-answer", f"7: id 6 is not in b.jsonl (its line 7: {torn})"),
            7: ("missing-field", "8: id 7 has no question in any of the files"),
        }


def test_no_line_is_lost_unsaid(tmp_path: Path, jlm: Jlm) -> None:
    """Lines that cannot be joined are errors of their own where no id misses them."""
    rows = [{"id": n, "question": f"Q{n}", "answer": "A"} for n in range(3)]
    lines = [json.dumps(row) for row in rows]
    lines[1] = lines[1][:20]
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, '{"answer": "B"}']))
    assert jlm("judge", "a.jsonl", "b.jsonl", "-o", "out.jsonl").code == 3
    found: list[Any] = read_rows(tmp_path / "out.jsonl")
    assert [(one["id"], one["line"], "error" in one) for one in found] == [
        (0, 1, False),
        (2, 3, False),
        *((None, line, True) for line in (2, 4, 2, 4)),
    ]
    assert found[5]["error"]["message"].startswith("b.jsonl:4: has no id and no question")
    answers_of("c", tmp_path, [1, 2], torn=True)
    assert jlm("grade", "c.jsonl", "--no-reference", "-o", "grades.jsonl").code == 3
    found = read_rows(tmp_path / "grades.jsonl")
    assert ["error" in one for one in found] == [False, False, True]


def answers_of(name: str, folder: Path, ids: list[int], torn: bool) -> None:
    lines = [*map(json.dumps, answers(name, ids)), *(['{"question_id": 3, "te'] if torn else [])]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))


def test_no_single_row_tells_which_fields_a_file_has(tmp_path: Path, jlm: Jlm) -> None:
    """Where the first lacks its question or its id, the others have theirs all the same."""
    for name, asks in (("a", "Q"), ("b", "Q"), ("c", "Else ")):
        rows: list[Any] = [
            {"qid": n, "id": n + 7, "prompt": f"{asks}{n}", "out": f"{name}{n}"} for n in range(3)
        ]
        del rows[0]["prompt" if name == "a" else "qid"]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    named = ("id=qid", "question=prompt", "answer=out")
    maps = [word for name in named for word in ("--map", name)]
    for other, codes in (("b", [None, None]), ("c", ["other-question"] * 2)):
        assert jlm("judge", "a.jsonl", f"{other}.jsonl", "-o", f"a{other}.jsonl", *maps).code == 3
        found: list[Any] = read_rows(tmp_path / f"a{other}.jsonl")
        assert [one["id"] for one in found] == [0, 1, 2, None]
        assert [one.get("error", {}).get("code") for one in found[1:3]] == codes


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are Unicode")
def test_files_whose_names_are_no_unicode(tmp_path: Path, jlm: Jlm) -> None:
    rows = [{"id": 1, "question": "Q", "answer": "A"}, {"id": 2, "question": "Q", "answer": None}]
    name = os.fsdecode(b"\xffa.jsonl")
    write_rows(tmp_path / name, rows)
    write_rows(tmp_path / "b.jsonl", rows)
    assert jlm("judge", name, "b.jsonl", "-o", "out.jsonl").code == 3
    assert read_rows(tmp_path / "out.jsonl")[0]["sample"]["models"] == ["?a", "b"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are Unicode")
def test_templates_and_predictions_whose_names_are_no_unicode(tmp_path: Path, jlm: Jlm) -> None:
    pairs, template = os.fsdecode(b"\xff.jsonl"), os.fsdecode(b"\xff.toml")
    shutil.copy(SAMPLES / "pairs.jsonl", tmp_path / pairs)
    shutil.copy(ROOT / "prompts" / "judgelm.toml", tmp_path / template)
    assert jlm("judge", pairs, "--template", template, "-o", "out.jsonl").code == 0
    assert json.loads((tmp_path / "out.metrics.json").read_bytes())["template"] == "?"
    judged = os.fsdecode(b"\xff.judge.jsonl")
    shutil.copy(tmp_path / "out.jsonl", tmp_path / judged)
    done = jlm("metrics", judged, "--json", "--markdown", "m.md", "--html", "m.html")
    assert done.code == 0 and json.loads(done.out)["predictions"] == "?.judge.jsonl"
    assert jlm("data", pairs, "-o", "set").code == 0


def test_ids_by_map_or_by_their_own_name(tmp_path: Path, jlm: Jlm) -> None:
    """A file that lacks the mapped field has the native one; a failed call costs its row."""
    write_rows(tmp_path / "q.jsonl", [{"id": n, "question": f"Q{n}"} for n in range(3)])
    for name in "ab":
        rows: list[Any] = [
            {"custom_id": n, "response": {"choices": [{"message": {"content": f"{name}{n}"}}]}}
            for n in range(3)
        ]
        rows[1] = {"custom_id": 1, "response": None} if name == "b" else rows[1]
        write_rows(tmp_path / f"{name}.jsonl", rows if name == "a" else rows[1:] + rows[:1])
    names = ["id=custom_id", "answer=response.choices.0.message.content"]
    words = ["judge", "q.jsonl", "a.jsonl", "b.jsonl", "--map", names[0], "--map", names[1]]
    assert jlm(*words, "-o", "out.jsonl").code == 3
    found: list[Any] = read_rows(tmp_path / "out.jsonl")
    assert found[0]["sample"]["answers"] == ["a0", "b0"]
    assert "b.jsonl:1: field response.choices.0" in found[1]["error"]["message"]


def test_one_model_twice_is_told_apart_by_its_files(tmp_path: Path, jlm: Jlm) -> None:
    for name in ("old", "new"):
        row = {"id": 1.5, "question": "Q", "answer": name, "model": "gpt"}
        write_rows(tmp_path / f"{name}.jsonl", [row])
    assert jlm("judge", "old.jsonl", "new.jsonl", "-o", "out.jsonl").code == 0
    (found,) = read_rows(tmp_path / "out.jsonl")
    assert (found["id"], found["sample"]["models"]) == (1.5, ["old", "new"])


def test_questions_in_several_files_and_gold_with_them(tmp_path: Path, jlm: Jlm) -> None:
    """Errors name the file that a row's first answer is in."""
    for n in (1, 2):
        write_rows(tmp_path / f"q{n}.jsonl", [{"id": n, "question": f"Q{n}", "gold": str(n)}])
    for name, some in (("a", (1, 2)), ("b", (2, 1, 3))):
        write_rows(tmp_path / f"{name}.jsonl", [{"id": n, "answer": f"{name}{n}"} for n in some])
    names = [f"{name}.jsonl" for name in ("q1", "q2", "a", "b")]
    assert jlm("judge", *names, "-o", "out.jsonl").code == 3
    found: list[Any] = read_rows(tmp_path / "out.jsonl")
    assert [one.get("gold") for one in found] == ["1", "2", None]
    assert found[2]["error"]["message"].startswith("b.jsonl:3: ")
    write_rows(tmp_path / "graded.jsonl", [{"id": 1, "answer": "A", "gold": 7}])
    done = jlm("grade", "q1.jsonl", "graded.jsonl", "--no-reference", "-o", "grades.jsonl")
    assert done.code == 0 and read_rows(tmp_path / "grades.jsonl")[0]["gold"] == [7.0]


@pytest.mark.parametrize(
    ("names", "more", "models"),
    [
        (("gpt-4.5.jsonl", "llama-3.1-8b.jsonl.gz"), {}, ["gpt-4.5", "llama-3.1-8b"]),
        (("x/a.jsonl", "y/../y/a.jsonl"), {}, ["x/a.jsonl", "y/a.jsonl"]),
        (("a.jsonl", "b.jsonl"), {"models": ["gpt"]}, ["gpt", "b"]),
        (("a.jsonl", "b.jsonl"), {"models": None, "model": "gpt"}, ["gpt", "b"]),
    ],
)
def test_names_of_models(
    tmp_path: Path, jlm: Jlm, names: tuple[str, str], more: dict[str, Any], models: list[str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for name in names:
        row = {"id": 1, "question": "Q", "answer": "A", **(more if name == names[0] else {})}
        write_rows(tmp_path / name, [row])
    assert jlm("judge", *names, "-o", "out.jsonl").code == 0
    assert read_rows(tmp_path / "out.jsonl")[0]["sample"]["models"] == models


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.jsonl",), "a.jsonl:1: one model's answers; give the files of two models"),
        (("a.jsonl", "twice.jsonl"), "twice.jsonl:2: '1' appears twice"),
        (("a.jsonl", "b.jsonl", "c.jsonl"), "judge takes two models' answers"),
        (("m.jsonl", "n.jsonl"), "m.jsonl, n.jsonl: a file with the questions is needed"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, jlm: Jlm, files: tuple[str, ...], message: str
) -> None:
    for name in "abc":
        write_rows(tmp_path / f"{name}.jsonl", answers(name, [1, 2]))
    write_rows(tmp_path / "twice.jsonl", answers("b", [1, 1]))
    write_rows(tmp_path / "short.jsonl", [*answers("b", [1]), {"question_id": 2}])
    turns = [{"turns": ["t"]}]
    for name in "mn":
        row = {"question_id": 1, "model_id": name, "choices": turns}
        write_rows(tmp_path / f"{name}.jsonl", [row])
    done = jlm("judge", *files, "-o", "out.jsonl")
    assert done.code == 2, done.err
    assert message in done.err.strip().splitlines()[-1]


def test_mmvet_is_told_by_what_it_holds(tmp_path: Path, jlm: Jlm) -> None:
    truth = {f"v{n}": {"question": f"Q{n}?", "answer": "R"} for n in range(4)}
    answers = {"v0": "A", "v1": None, "v3": "A", "v9": "A"}
    (tmp_path / "truth.json.gz").write_bytes(gzip.compress(json.dumps(truth).encode()))
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(answers).encode())
    assert jlm("grade", "truth.json.gz", "a.json", "-o", "out.jsonl").code == 3
    records = read_rows(tmp_path / "out.jsonl")
    assert [record["id"] for record in records] == ["v0", "v1", "v2", "v3", "v9"]
    errors = {r["id"]: r["error"]["message"] for r in records if "error" in r}
    assert errors == {
        "v1": "truth.json.gz:2: field answers[0]: null where a text is needed",
        "v2": "truth.json.gz:3: id 'v2' is not in a.json",
        "v9": "a.json:4: id 'v9' has no question in truth.json.gz",
    }
