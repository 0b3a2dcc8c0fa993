"""Of pairs that trained judges have judged in both orders, those on which they agree, with the
judgment that they share: what one judge says in one order, another shall learn to say in both.

python recipes/tiny/teach.py JUDGED.jsonl… > taught.jsonl

Each file is `jlm judge --swap`'s of the same pairs. Each pair comes out twice, as `jlm train` shows
a row in either order by chance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_SURE = 0.1  # a smaller mean of p(1) − p(2) is no judgment


def main() -> None:
    files = [records(name) for name in sys.argv[1:]]
    for number, judged in enumerate(zip(*files, strict=True)):
        if scores := shared_scores(judged):
            sample = judged[0]["sample"]
            row = {"question": sample["question"], "answers": sample["answers"]}
            row["gold"] = f"{scores[0]:g} {scores[1]:g}"
            for copy in "ab":
                print(json.dumps({"id": f"{number}{copy}", **row}, ensure_ascii=False))


def records(name: str) -> Iterator[dict[str, Any]]:
    with Path(name).open() as lines:
        yield from map(json.loads, lines)


def shared_scores(judged: Sequence[dict[str, Any]]) -> list[float] | None:
    """Of all lines written, in either order, the one nearest to their mean expected scores among
    those that are for the mean winner; None without one."""
    if any("error" in record for record in judged):
        return None
    combined = [record["combined"] for record in judged]
    lead = mean([one["p"]["1"] - one["p"]["2"] for one in combined])
    if abs(lead) < _SURE:
        return None
    expected = [mean([one["expected"][side] for one in combined]) for side in (0, 1)]
    lines = [part["scores"] for record in judged for part in (record, record["swapped"])]
    agreeing = [line for line in lines if (line[0] - line[1]) * lead > 0]
    return min(agreeing, key=lambda line: distance(line, expected), default=None)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def distance(line: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(line, other, strict=True))


if __name__ == "__main__":
    main()
