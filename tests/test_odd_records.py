"""Records that are almost those of jlm: no field, whatever it holds, ends in a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Jlm, read_rows, write_rows

ODD: list[Any] = [None, True, -1.5, 10**9, "x", [], [["a"]], {"x": [1]}]
WAYS = {
    "judgelm": ("judge", "--swap"),
    "pandalm": ("judge", "--swap"),
    "rewardbench": ("judge",),
    "rank": ("rank", "--compare"),
    "grade": ("grade", "--no-reference", "--pass-mark", "5"),
    "mmvet": ("grade", "--no-reference"),
    "aspects": ("judge", "--aspect", "fluency"),
}


def row_of(n: int, command: str) -> dict[str, Any]:
    count = {"judge": 2, "rank": 3, "grade": 1}[command]
    answers = [f"Answer {k} to {n}." for k in range(count)]
    gold = {"judge": "12"[n % 2], "rank": [3, 2, 1], "grade": [n]}[command]
    models = [f"m{k}" for k in range(count)]
    asked = {"question": f"Q{n}?", "answers": answers, "models": models, "category": "c"}
    return {"id": n, **asked, "gold": gold}


def damaged(record: Any) -> Iterator[Any]:
    """The record with each of its values, at any depth, replaced by each odd one or left out."""
    if isinstance(record, dict | list):
        for key in list(record) if isinstance(record, dict) else range(len(record)):
            for odd in [*ODD, *damaged(record[key])]:
                other = copy.copy(record)
                other[key] = odd
                yield other
            less = copy.copy(record)
            del less[key]
            yield less


def check(folder: Path, quick: Jlm, protocol: str, joined: bool, step: int) -> None:
    """Every `step`-th damage of a record, and of one that failed; or of a line of gold."""
    command, *words = WAYS[protocol]
    write_rows(folder / "in.jsonl", [row_of(n, command) for n in range(3)])
    assert quick(command, "in.jsonl", *words, "-q").code == 0
    good = read_rows(folder / f"in.{command}.jsonl")
    gold = {"id": 0, "gold": good[0]["gold"], "annotators": ["1", "2", "2"]}
    failed = {"id": 3, "line": 4, "mode": command, "error": {"code": "nan", "message": "no"}}
    others = [one for record in (gold if joined else good[0], failed) for one in damaged(record)]
    measure = ["metrics", "p.jsonl", "--protocol", protocol, "--json"]
    for other in others[list(WAYS).index(protocol) % step :: step]:
        write_rows(folder / "p.jsonl", good if joined else [other, *good[1:]])
        write_rows(folder / "g.jsonl", [other, {"id": 1, "gold": good[1]["gold"]}])
        done = quick(*measure, *(["--gold", "g.jsonl"] if joined else []))
        said = json.dumps(other)
        assert done.code in (0, 2) and "Traceback" not in done.err, (said, done.err)
        assert done.code == 0 or done.err.count("\n") == 1, (said, done.err)
        assert "NaN" not in done.out, said


@pytest.mark.parametrize("protocol", WAYS)
@pytest.mark.parametrize("joined", [False, True], ids=["by itself", "as gold"])
def test_damage_is_one_line(tmp_path: Path, quick: Jlm, protocol: str, joined: bool) -> None:
    check(tmp_path, quick, protocol, joined, step=9)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", WAYS)
@pytest.mark.parametrize("joined", [False, True], ids=["by itself", "as gold"])
def test_all_damage_is_one_line(tmp_path: Path, quick: Jlm, protocol: str, joined: bool) -> None:
    check(tmp_path, quick, protocol, joined, step=1)
