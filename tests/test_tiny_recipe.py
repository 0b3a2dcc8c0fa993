"""What the built-in judge learns from, as recipes/tiny/ writes it."""

from __future__ import annotations

import gzip
import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, read_rows, write_rows

TINY = ROOT / "recipes" / "tiny"


@pytest.mark.parametrize("name", ["facts", "phrases"])
def test_rows_that_a_recipe_writes(tmp_path: Path, name: str) -> None:
    """All of them can be learnt from, and none is asked about in the samples."""
    script = TINY / f"{name}.py"
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
        [sys.executable, TINY / "pick.py", "12", "2", "3"],
        input="".join(json.dumps(row) + "\n" for row in rows).encode(),
        capture_output=True,
        check=True,
    )
    found = [json.loads(line)["id"] for line in picked.stdout.splitlines()]
    real = [n for n in range(40) if n % 4 < 2][:12]
    assert found == sorted([*real, 2, 6, 3, 7, 11])


def written_by(script: str, *words: str | Path) -> list[dict[str, Any]]:
    command = [sys.executable, str(TINY / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_tricks_change_the_looks_alone(tmp_path: Path) -> None:
    """Scores stay with the answers that deserve them, and pairs too near are left out."""
    rows = [
        {"question": f"Q {n}", "answers": ["good", "poor"], "gold": f"{3 + n % 7} 3\nwhy"}
        for n in range(700)
    ]
    found = written_by("tricks.py", write_rows(tmp_path / "rows.jsonl", rows))
    assert len(found) == 400
    empty = runpy.run_path(str(TINY / "tricks.py"))["EMPTY"]
    changed = 0
    for row in found:
        good, poor = row["answers"]
        asked = int(str(row["question"])[2:])
        assert row["gold"] == f"{3 + asked % 7} 3"
        assert "good" in good and ("poor" in poor or poor in empty)
        changed += (good, poor) != ("good", "poor")
    assert changed == len(found)


def test_tricks_are_others_than_those_of_the_probe() -> None:
    """Or its figures would say how well a judge has learnt them by heart."""
    tricks = runpy.run_path(str(TINY / "tricks.py"))
    ours = {text for name in ("FORGED", "EMPTY", "DRESSES") for text in tricks[name]}
    probe = tomllib.loads((ROOT / "jlm_cli" / "probe.toml").read_text("utf-8"))
    theirs = {text for texts in probe["attacks"].values() for text in texts}
    assert theirs and not ours & theirs


def test_beginnings_of_answers(tmp_path: Path) -> None:
    """Whole sentences of two answers to one question, none kept for validation."""
    sentences = [f"Sentence {n} of it has some words." for n in range(40)]
    scored = tmp_path / "scored.jsonl.gz"
    with gzip.open(scored, "wt") as out:
        for n in range(60):
            texts = [" ".join([f"Model {m} answers {n}.", *sentences]) for m in range(8)]
            answers = [{"model": "m", "text": text, "win_prob": 0.5} for text in texts]
            print(json.dumps({"question": f"Q {n}?", "answers": answers}), file=out)
    found = written_by("beginnings.py", scored)
    asked = {row["question"] for row in found}
    assert 40 < len(asked) < 60 and len(found) == 3 * len(asked)
    for row in found:
        first, second = row["answers"]
        assert first != second and all(text[-1] == "." for text in (first, second))
        assert all(text.startswith("Model ") and len(text) <= 320 for text in (first, second))
