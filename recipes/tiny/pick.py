"""Of pairs that `jlm data` made: some with real answers alone, some with a spoiled one, and some
whose one answer stands there twice, with equal scores.

python recipes/tiny/pick.py REAL SPOILED TWINS LONGER < set/train.jsonl > picked.jsonl

Of the real pairs, the longer answer is the better one in a share of LONGER at most: it is more
often so in the source, and length is what a small judge learns first.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from jlm_cli.bad_answers import KINDS


def main() -> None:
    real, spoiled, twins = map(int, sys.argv[1:4])
    most = float(sys.argv[4])
    taken, longer = 0, 0
    for line in sys.stdin:
        row = json.loads(line)
        if any(model in KINDS for model in row["models"]):
            if spoiled:
                spoiled -= 1
                sys.stdout.write(line)
        elif taken < real:
            more = longer_is_better(row)
            if not more or longer < most * (taken + 1):
                taken, longer = taken + 1, longer + more
                sys.stdout.write(line)
        elif twins:
            twins -= 1
            print(json.dumps(twin(row), ensure_ascii=False))


def longer_is_better(row: dict[str, Any]) -> bool:
    first, second = map(len, row["answers"])
    a, b = map(float, row["gold"].split("\n")[0].split())
    return (first - second) * (a - b) > 0


def twin(row: dict[str, Any]) -> dict[str, Any]:
    score = row["gold"].split()[0]
    return {
        "id": f"{row['id']}-twin",
        "question": row["question"],
        "answers": row["answers"][:1] * 2,
        "gold": f"{score} {score}\nBoth answers are the same.",
    }


if __name__ == "__main__":
    main()
