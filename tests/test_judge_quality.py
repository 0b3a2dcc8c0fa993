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
