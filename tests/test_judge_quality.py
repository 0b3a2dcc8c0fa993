"""The benchmark of judging quality: held-out questions, and validation rows in both formats."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, read_rows, write_rows

SCRIPT = ROOT / "benchmarks" / "judge_quality.py"


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    spec = importlib.util.spec_from_file_location("judge_quality", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["judge_quality"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def run(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whole_questions_are_held_out(tmp_path: Path) -> None:
    rows = [{"question_body": f"Q {n % 10}", "text": f"{n % 9 + 1} 5"} for n in range(40)]
    source = write_rows(tmp_path / "reviews.jsonl", rows)
    out = run("hold-out", source, "-o", tmp_path / "held.jsonl", "--questions", "3")
    assert "12 reviews of 3 of 10 questions" in out
    assert len({row["question_body"] for row in read_rows(tmp_path / "held.jsonl")}) == 3


def test_validation_rows_in_both_formats(tmp_path: Path, quality: ModuleType) -> None:
    """Each with the judgment that was made of just that prompt."""
    files = quality.validation_files(ROOT / "samples" / "judgelm_100k.jsonl", tmp_path)
    without, shown = (read_rows(file) for file in files.values())
    assert [row["gold"] for row in without] == [[9, 2], [9, 2]]
    assert [row["gold"] for row in shown] == [[10, 1], [10, 1]]
    assert "reference" not in without[0] and shown[0]["reference"] == "A banana is yellow."


@pytest.mark.slow
def test_ablations(tmp_path: Path, replica: Path) -> None:
    """Tables 4, 5 and 6 in small: every variant trained and judged in both formats."""
    source = ROOT / "samples" / "judgelm_100k.jsonl"
    words: list[str | Path] = [
        "ablations",
        "-m",
        replica,
        "--train",
        source,
        "--validation",
        source,
    ]
    words += ["-o", tmp_path / "out", "--scales", "1"]
    out = run(*words, "--", "--epochs", "1", "--batch", "2", "--max-length", "400")
    assert out.count("\n| 5") == 4 and out.count("\n| 4 |") == 2
    results = json.loads((tmp_path / "out" / "ablations.json").read_text())["results"]
    assert len(results) == 10 and all("reliability" in one for one in results)


@pytest.mark.parametrize("name", ["facts", "phrases"])
def test_rows_that_a_recipe_writes(tmp_path: Path, name: str) -> None:
    """All of them can be learnt from, and none is asked about in the samples."""
    script = ROOT / "recipes" / "tiny" / f"{name}.py"
    written = subprocess.run([sys.executable, script], capture_output=True, check=True)
    source = tmp_path / f"{name}.jsonl"
    source.write_bytes(written.stdout)
    out = tmp_path / "set"
    words = ["data", str(source), "-o", str(out), "--validation", "0", "--hold-out"]
    command = [sys.executable, "-m", "jlm_cli", *words, str(ROOT / "samples" / "pairs.jsonl")]
    subprocess.run(command, check=True)
    rows = read_rows(out / "train.jsonl")
    assert len(rows) == written.stdout.count(b"\n")
    pairs = [row for row in rows if len(row["answers"]) == 2]
    first = [row["gold"].split("\n")[0].split() for row in pairs]
    ahead = sum(float(a) > float(b) for a, b in first) / len(pairs)
    assert 0.4 < ahead < 0.6


def test_picked_rows() -> None:
    """So many of each kind, the first of them: real pairs, spoiled ones, ones the base wrote."""
    second = ("b", "b", "refusal", "base")
    rows = [{"id": n, "models": ["a", second[n % 4]]} for n in range(40)]
    picked = subprocess.run(
        [sys.executable, ROOT / "recipes" / "tiny" / "pick.py", "12", "2", "3"],
        input="".join(json.dumps(row) + "\n" for row in rows).encode(),
        capture_output=True,
        check=True,
    )
    found = [json.loads(line)["id"] for line in picked.stdout.splitlines()]
    real = [n for n in range(40) if n % 4 < 2][:12]
    assert found == sorted([*real, 2, 6, 3, 7, 11])
