"""`jlm metrics` as people and programs use it."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Jlm, pair, read_rows, write_rows
from rich.console import Console

from jlm_cli.measuring import grids, tables
from jlm_cli.records import VERDICTS


@pytest.fixture
def jlm(quick: Jlm) -> Jlm:
    return quick


def judge_lines(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        verdict, p = draw.choice(VERDICTS), round(draw.uniform(0.34, 1), 3)
        shares: dict[str, float] = dict.fromkeys(VERDICTS, (1 - p) / 2)
        shares[verdict] = p
        rows.append({"id": f"row {n}", "verdict": verdict, "p": shares})
    return rows


def golden(count: int) -> list[dict[str, Any]]:
    draw = random.Random(99)
    return [
        pair(f"row {n}", gold=draw.choice(VERDICTS), models=["=cmd", "b|c"], category=f"c{n % 3}")
        for n in range(count)
    ]


def test_metrics_of_a_run_equal_its_summary(tmp_path: Path, jlm: Jlm) -> None:
    """What `jlm judge` sums up is found again in its records, figure by figure."""
    rows = [
        pair(n, gold=random.Random(n).choice(VERDICTS), models=["x", "y"], category=f"c{n % 3}")
        for n in range(60)
    ]
    rows += [{**pair(60 + n), "question": rows[n]["question"]} for n in range(20)]
    rows.append({"id": "bad"})
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("judge", "in.jsonl", "--swap").code == 3
    wanted = json.loads((tmp_path / "in.judge.metrics.json").read_text())
    done = jlm("metrics", "in.judge.jsonl", "--json")
    assert done.code == 0 and ": 1 failed rows hold no gold" in done.err
    found = json.loads(done.out)
    for name in ("n_input", "n_judged", "n_error", "verdicts", "objective", "reliability"):
        assert found[name] == wanted[name], name
    for name in ("combined", "win_rate", "baselines"):
        assert found[name] == wanted[name], name
    assert jlm("metrics", "in.judge.jsonl", "--json").out == done.out
    # compact records and their input give the same
    assert jlm("judge", "in.jsonl", "--swap", "--compact", "-o", "small.jsonl").code == 3
    again = json.loads(jlm("metrics", "small.jsonl", "--input", "in.jsonl", "--json").out)
    for name in ("objective", "win_rate", "baselines", "by", "effects"):
        assert again[name] == found[name], name


def test_from_a_pipe(jlm: Jlm) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in judge_lines(5, 1))
    done = jlm("metrics", "-", "--json", stdin=lines)
    assert done.code == 0 and json.loads(done.out)["n_judged"] == 5
    assert "no gold, so no agreement; give --gold" in done.err


def test_tables_and_exports(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "judge_1%.jsonl", judge_lines(40, 1))
    write_rows(tmp_path / "gold.jsonl", golden(40))
    exports = ["--csv", "t.csv", "--markdown", "t.md", "--latex", "t.tex"]
    words = ["metrics", "judge_1%.jsonl", "--gold", "gold.jsonl", "--abstain", "0.6", *exports]
    done = jlm(*words)
    assert (done.code, done.err) == (0, "")
    for text in ("agreement", "baseline: longest answer", "verdicts by confidence", "leaderboard"):
        assert text in done.out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    found = [row for row in rows if row["row"] == "judge_1%" and row["column"] == "agreement"]
    exact = json.loads(jlm("metrics", "judge_1%.jsonl", "--gold", "gold.jsonl", "--json").out)
    assert float(found[0]["value"]) == exact["objective"]["agreement"]["value"]
    assert float(found[0]["ci_low"]) == exact["objective"]["agreement"]["ci95"][0]
    assert any(row["row"] == "'=cmd" for row in rows)  # no formula
    markdown, latex = (tmp_path / "t.md").read_text(), (tmp_path / "t.tex").read_text()
    assert r"| judge\_1% | " in markdown and r"b\|c" in markdown
    assert r"judge\_1\% & " in latex and latex.count(r"\begin{tabular}") == latex.count("toprule")
    before = {name: (tmp_path / name).read_bytes() for name in ("t.csv", "t.md", "t.tex")}
    assert jlm(*words).out == done.out
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
@pytest.mark.parametrize("field", ["models", "category", "file"])
def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, jlm: Jlm, start: str, field: str) -> None:
    hostile = f"{start}cmd"
    more: dict[str, Any] = {
        "models": {"models": [hostile, "b"]},
        "category": {"category": hostile},
    }
    write_rows(tmp_path / "p.jsonl", judge_lines(40, 1))
    write_rows(tmp_path / "gold.jsonl", [row | more.get(field, {}) for row in golden(40)])
    if field == "file":
        (tmp_path / "p.jsonl").rename(tmp_path / f"{hostile}.jsonl")
    given = f"./{hostile}.jsonl" if field == "file" else "p.jsonl"
    done = jlm("metrics", given, "--gold", "gold.jsonl", "--csv", "t.csv")
    assert done.code == 0, done.err
    with (tmp_path / "t.csv").open(newline="") as table:
        cells = [cell for row in csv.reader(table) for cell in row]
    assert any("cmd" in cell for cell in cells)
    for cell in cells:
        assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
        assert not cell.startswith("-") or float(cell) < 0, cell


def test_two_judges(tmp_path: Path, jlm: Jlm) -> None:
    """The second judge is always right, the first by chance."""
    gold = golden(60)
    right = [{"id": row["id"], "verdict": row["gold"]} for row in gold]
    write_rows(tmp_path / "a.jsonl", judge_lines(60, 1))
    write_rows(tmp_path / "b.jsonl", right[::-1])
    write_rows(tmp_path / "gold.jsonl", gold)
    words = ["metrics", "a.jsonl", "b.jsonl", "--gold", "gold.jsonl", "--disagreements", "d.jsonl"]
    done = jlm(*words, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert list(found["judges"]) == ["a", "b"]
    one = found["comparison"]["against"]["b"]
    wrong = sum(
        row["verdict"] != other["gold"] for row, other in zip(judge_lines(60, 1), gold, strict=True)
    )
    assert one["mcnemar"]["only_other_right"] == wrong and one["mcnemar"]["only_first_right"] == 0
    assert one["mcnemar"]["p"] < 1e-6
    assert one["difference"]["agreement"]["value"] == pytest.approx(wrong / 60, abs=1e-6)
    assert one["difference"]["agreement"]["ci95"][0] > 0
    differ = read_rows(tmp_path / "d.jsonl")
    assert len(differ) == wrong
    assert [row["distance"] for row in differ] == sorted(
        (row["distance"] for row in differ), reverse=True
    )
    assert differ[0]["sample"]["question"].startswith("Question row")
    assert differ[0]["judges"]["b"]["verdict"] == differ[0]["gold"]
    table = jlm(*words).out
    assert "b − a" in table and "McNemar p" in table


def test_missing_ids_are_named(tmp_path: Path, jlm: Jlm) -> None:
    write_rows(tmp_path / "p.jsonl", judge_lines(10, 1))
    write_rows(tmp_path / "g.jsonl", [*golden(10)[3:], pair("other", gold="1")])
    done = jlm("metrics", "p.jsonl", "--gold", "g.jsonl", "--json")
    assert "1 ids of gold are not among the predictions of p: 'other'" in done.err
    assert "3 predictions of p have no row in gold: 'row 0', 'row 1', 'row 2'" in done.err
    joined = json.loads(done.out)["joined"]["gold"]
    assert joined["only_in_predictions"] == ["row 0", "row 1", "row 2"]
    assert joined["only_there"] == ["other"]


BAD = [
    (["p.jsonl", "--protocol", "table1"], "--protocol table1: choose from judgelm, pandalm"),
    (["p.jsonl", "--gold", "none.jsonl"], "none.jsonl: cannot be read"),
    (["none.jsonl"], "none.jsonl: cannot be read"),
    (["."], ".: is a folder"),
    (["text.md"], "text.md:1: not JSON"),
    (["in.jsonl"], "in.jsonl:1: no prediction"),
    (["p.jsonl", "--gold", "other.jsonl"], "other.jsonl: shares no id with p.jsonl"),
    (["p.jsonl", "q.jsonl"], "q.jsonl: shares no id with p.jsonl"),
    (["p.jsonl", "p.jsonl"], "named twice"),
    (["p.jsonl", "--disagreements", "d.jsonl"], "name two files"),
    (["p.jsonl", "q.jsonl", "--reversed", "r.jsonl"], "--reversed belongs to one"),
    (["p.jsonl", "--html", "p.jsonl"], "p.jsonl: is an input"),
    (["p.jsonl", "--csv", "in.jsonl"], "in.jsonl: exists, and looks like a file of rows"),
    (["p.jsonl", "q.jsonl", "--disagreements", "in.jsonl"], "in.jsonl: exists, and looks like"),
    (["p.jsonl", "--csv", "none/t.csv"], "none/t.csv: there is no folder none"),
    (["p.jsonl", "--csv", "-"], "-: name a file; standard output has the tables, or --json"),
    (["p.jsonl", "--csv", "t", "--latex", "t"], "t: is named for two outputs"),
    (["p.jsonl", "--csv", "/dev/null"], "/dev/null: is not an ordinary file; name a file"),
    (["p.jsonl", "--reversed", "p.jsonl"], "p.jsonl: is named for both orders"),
    (["p.jsonl", "--protocol", "grade", "--abstain", "0.6"], "--abstain is of no use for grade"),
    (["p.jsonl", "--protocol", "pandalm"], "protocol pandalm needs both orders"),
    (["p.jsonl", "--protocol", "rewardbench"], "protocol rewardbench needs gold"),
    (["p.jsonl", "--protocol", "rank"], "p.jsonl:1: field scores"),
    (["p.jsonl", "--protocol", "mmvet"], "protocol mmvet needs gold"),
    (["p.jsonl", "--protocol", "aspects"], "p.jsonl:1: field aspects is missing"),
    (["p.jsonl", "--protocol", "rank", "--reversed", "q.jsonl"], "of no use for rank"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_use_is_one_line(tmp_path: Path, jlm: Jlm, words: list[str], message: str) -> None:
    write_rows(tmp_path / "p.jsonl", judge_lines(3, 1))
    write_rows(tmp_path / "q.jsonl", [{"id": "else", "verdict": "1"}])
    write_rows(tmp_path / "other.jsonl", [{"id": "else", "gold": "1"}])
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    (tmp_path / "text.md").write_text("# A text\n")
    done = jlm("metrics", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("jlm: ") and message in done.err
    assert done.err.count("\n") == 1 and "Traceback" not in done.err


def test_metrics_loads_no_model_library(tmp_path: Path, jlm: Jlm) -> None:
    """Reading and counting is quick to start: neither torch, nor plots where none are wanted."""
    write_rows(tmp_path / "p.jsonl", judge_lines(3, 1))
    script = (
        "import sys; sys.argv = ['jlm', 'metrics', 'p.jsonl']\n"
        "from jlm_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=dict(os.environ), capture_output=True
    )
    assert done.stdout.decode().rstrip().endswith("[]")


@pytest.mark.slow
def test_a_million_predictions_in_bounded_memory(tmp_path: Path) -> None:
    """With gold from another file, and intervals: 1.5 GB are enough."""
    draw = random.Random(0)
    with (tmp_path / "p.jsonl").open("w") as pred, (tmp_path / "g.jsonl").open("w") as gold:
        for n in range(1_000_000):
            pred.write(f'{{"id":"row-{n}","verdict":"{draw.choice(VERDICTS)}"}}\n')
            gold.write(f'{{"id":"row-{n}","gold":"{draw.choice(VERDICTS)}"}}\n')
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'jlm_cli', 'metrics', 'p.jsonl', '--gold',"
        " 'g.jsonl'], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "agreement" in done.stdout
    assert int(done.stderr) < 1_500_000  # kilobytes


def test_a_narrow_terminal_cuts_no_number(tmp_path: Path, jlm: Jlm) -> None:
    """Columns that do not fit stand below the others."""
    names = ("first.jsonl", "second.jsonl", "third.jsonl")
    for name in names:
        draw = random.Random(name)
        rows = [
            {"id": n, "verdict": draw.choice(VERDICTS), "gold": draw.choice(VERDICTS)}
            for n in range(60)
        ]
        write_rows(tmp_path / name, rows)
    result = json.loads(jlm("metrics", *names, "--json").out)
    found = tables.grids_of(result)
    figures = re.findall(r"-?\d\.\d+|\[[^\]]*\]", grids.printed(found))
    console = functools.partial(Console, force_terminal=True, width=60, color_system=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "Console", console)
        narrow = grids.printed(found)
    assert max(len(line) for line in narrow.splitlines() if "[" in line) <= 60
    assert Counter(re.findall(r"-?\d\.\d+|\[[^\]]*\]", narrow)) == Counter(figures)


def test_gold_of_some_rows_measures_those_alone(tmp_path: Path, jlm: Jlm) -> None:
    """Of a file that was asked for it, a failed row without gold is as little measured as any."""
    rows: list[dict[str, Any]] = [{"id": n, "verdict": "1"} for n in range(8)]
    failed = {"line": 9, "mode": "judge", "error": {"code": "nan", "message": "no"}}
    write_rows(tmp_path / "p.jsonl", [*rows, {"id": 8, **failed}, {"id": 9, **failed}])
    write_rows(tmp_path / "g.jsonl", [{"id": n, "gold": "1"} for n in (0, 1, 2, 8)])
    done = jlm("metrics", "p.jsonl", "--gold", "g.jsonl", "--json")
    found = json.loads(done.out)["failures"]
    assert (found["n"], found["coverage"]["value"]) == (1, 0.75)
    assert found["wrong"]["accuracy"]["value"] == 0.75 and "hold no gold" not in done.err


FAILED = {"mode": "judge", "error": {"code": "nan", "message": "no"}}


def test_an_input_without_gold_says_nothing_of_failed_rows(tmp_path: Path, jlm: Jlm) -> None:
    """One with gold, also as a teacher's texts, does."""
    rows = [
        {"id": n, "line": n + 1, "verdict": "1", "gold": "1", "mode": "judge"} for n in range(5)
    ]
    write_rows(tmp_path / "o.jsonl", [*rows, {"id": 5, "line": 6, **FAILED}])
    words = ("metrics", "o.jsonl", "--input", "in.jsonl", "--json")
    samples = [{"id": n, "question": f"Q{n}", "answers": ["a", "b"]} for n in range(6)]
    bodies = {"question_body": "Q", "answer1_body": "a", "answer2_body": "b"}
    for given, n_without, covered in (
        (samples, 1, 5 / 6),
        ([{**one, "gold": "2"} for one in samples], 0, 5 / 6),
        ([{**one, "gold": "2"} for one in samples[:5]] + samples[5:], 0, 1),
        ([{"question_id": n, "text": "2 8\nSo.", **bodies} for n in range(6)], 0, 5 / 6),
    ):
        write_rows(tmp_path / "in.jsonl", given)
        found = json.loads(jlm(*words).out)["failures"]
        assert found["n_without_gold"] == n_without
        assert found["coverage"]["value"] == pytest.approx(covered, abs=1e-6)


def test_failed_rows_of_one_question_are_told_apart_by_their_lines(
    tmp_path: Path, jlm: Jlm
) -> None:
    """Error records hold no models; without the input they hinder no other row."""
    models = [["a", "b"], ["a", "c"], ["b", "c"]]
    rows = [
        {"id": n, "question": f"Q{n}", "answers": ["x", "y"], "models": pair}
        for n in range(4)
        for pair in models
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    write_rows(tmp_path / "g.jsonl", [{**row, "gold": "1"} for row in rows])
    records = [
        {"id": row["id"], "line": line, "mode": "judge", "verdict": "1", "sample": row}
        for line, row in enumerate(rows, start=1)
    ]
    for at in (3, 5):  # both of question 1
        records[at] = {"id": 1, "line": at + 1, **FAILED}
    write_rows(tmp_path / "o.jsonl", records)
    alone = json.loads(jlm("metrics", "o.jsonl", "--gold", "g.jsonl", "--json").out)
    assert alone["failures"]["n_without_gold"] == 2 and alone["objective"]["n"] == 10
    words = ("metrics", "o.jsonl", "--gold", "g.jsonl", "--input", "in.jsonl", "--json")
    found = json.loads(jlm(*words).out)["failures"]
    assert found["n_without_gold"] == 0
    assert found["coverage"]["value"] == pytest.approx(10 / 12, abs=1e-6)
    assert found["wrong"]["accuracy"]["value"] == pytest.approx(10 / 12, abs=1e-6)


def test_gold_of_swapped_models_is_not_known_for_a_row_that_names_none(
    tmp_path: Path, jlm: Jlm
) -> None:
    sample = {"question": None, "answers": None, "models": ["a", "b"]}
    rows = [
        {"id": n, "line": n + 1, "mode": "judge", "verdict": "1", "sample": sample}
        for n in range(3)
    ]
    write_rows(tmp_path / "o.jsonl", [{"id": 3, "line": 4, **FAILED}, *rows])
    for order, n_without in ((["b", "a"], 1), (["a", "b"], 0)):
        gold = "1" if order == ["a", "b"] else "2"
        write_rows(
            tmp_path / "g.jsonl", [{"id": n, "models": order, "gold": gold} for n in range(4)]
        )
        found = json.loads(jlm("metrics", "o.jsonl", "--gold", "g.jsonl", "--json").out)
        assert found["objective"]["agreement"]["value"] == 1
        assert found["failures"]["n_without_gold"] == n_without


def test_abstaining_needs_probabilities(tmp_path: Path, jlm: Jlm) -> None:
    rows = [{"id": n, "verdict": "1", "gold": "1"} for n in range(4)]
    write_rows(tmp_path / "p.jsonl", rows)
    done = jlm("metrics", "p.jsonl", "--abstain", "0.9")
    assert done.code == 0 and "p: --abstain has nothing to go by" in done.err
    rows[0]["p"] = {"1": 0.8, "2": 0.1, "tie": 0.1}
    write_rows(tmp_path / "p.jsonl", rows)
    done = jlm("metrics", "p.jsonl", "--abstain", "0.9")
    assert "below 0.9, 100.0% of the 1 verdicts with p, become" in done.out


@pytest.mark.parametrize("said", [1, "model_a", "MODEL_A", " 1 "])
def test_verdicts_as_people_write_them(tmp_path: Path, jlm: Jlm, said: object) -> None:
    write_rows(tmp_path / "p.jsonl", [{"id": 1, "verdict": said}, {"id": 2, "verdict": "Tie"}])
    found = json.loads(jlm("metrics", "p.jsonl", "--json").out)
    assert found["verdicts"] == {"1": 1, "2": 0, "tie": 1}


def test_compact_records_know_which_ask_the_same(tmp_path: Path, jlm: Jlm) -> None:
    """jlm metrics gives the run's own intervals, without the input."""
    rows = [pair(n, gold="12"[n % 2]) | {"question": f"Q{n % 3}?"} for n in range(12)]
    one = [{**row, "answer": "Yes.", "gold": 5} for row in rows]
    for row in one:
        del row["answers"]
    write_rows(tmp_path / "in.jsonl", rows)
    write_rows(tmp_path / "one.jsonl", one)
    words = ("--compact", "--json", "-o")
    run = json.loads(jlm("judge", "in.jsonl", "--swap", *words, "a.jsonl").out)
    found = json.loads(jlm("metrics", "a.jsonl", "--json").out)
    for section in ("objective", "reliability", "combined"):
        assert found[section] == run[section]
    run = json.loads(jlm("grade", "one.jsonl", "--no-reference", *words, "g.jsonl").out)
    found = json.loads(jlm("metrics", "g.jsonl", "--protocol", "grade", "--json").out)
    assert (found["mean"], found["objective"]) == (run["mean"], run["objective"])


def test_a_file_that_is_not_reversed_is_told_of(tmp_path: Path, jlm: Jlm) -> None:
    rows = [pair(n, verdict="1") for n in range(4)]
    turned = [{**row, "answers": row["answers"][::-1]} for row in rows]
    bare = [{"id": n, "verdict": "2"} for n in range(4)]
    for name, given in (("a", rows), ("same", rows), ("turned", turned), ("bare", bare)):
        write_rows(tmp_path / f"{name}.jsonl", given)
    done = jlm("metrics", "a.jsonl", "--reversed", "same.jsonl")
    told = "same.jsonl says it holds the answers in the same order"
    assert done.code == 0 and told in done.err
    for name, steady in (("turned", 0), ("bare", 1)):
        done = jlm("metrics", "a.jsonl", "--reversed", f"{name}.jsonl", "--json")
        assert json.loads(done.out)["reliability"]["consistency"]["value"] == steady
        assert "same order" not in done.err


def test_judgments_of_rows_without_gold_are_no_gold(tmp_path: Path, jlm: Jlm) -> None:
    """Records as a gold file: what the judge said of a row is not what it is measured by."""
    rows = [{**pair(n), **({"gold": "1"} if n < 2 else {})} for n in range(4)]
    write_rows(tmp_path / "in.jsonl", rows)
    assert jlm("judge", "in.jsonl", "-q").code == 0
    alone = json.loads(jlm("metrics", "in.judge.jsonl", "--json").out)
    shutil.copy(tmp_path / "in.judge.jsonl", tmp_path / "gold.jsonl")
    beside = json.loads(jlm("metrics", "in.judge.jsonl", "--gold", "gold.jsonl", "--json").out)
    assert beside["gold"]["n"] == alone["gold"]["n"] == 2
    assert beside["objective"] == alone["objective"]
    assert jlm("judge", "in.jsonl", "-o", "again.jsonl", "--gold", "gold.jsonl").code == 0
    again = read_rows(tmp_path / "again.jsonl")
    assert [record["gold"] for record in again] == ["1", "1", None, None]
