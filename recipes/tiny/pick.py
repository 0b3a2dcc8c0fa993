"""Of pairs that `jlm data` made: some with real answers alone, some with a spoiled one, and some
with an answer that the base wrote (`answers.py`).

python recipes/tiny/pick.py REAL SPOILED OWN < set/train.jsonl > picked.jsonl
"""

from __future__ import annotations

import json
import sys

from jlm_cli.training.bad_answers import KINDS

OWN = "base"  # the model of these answers


def main() -> None:
    left = dict(zip(("real", "spoiled", "own"), map(int, sys.argv[1:4]), strict=True))
    for line in sys.stdin:
        models = json.loads(line)["models"]
        kind = "spoiled" if set(KINDS) & set(models) else "own" if OWN in models else "real"
        if left[kind]:
            left[kind] -= 1
            sys.stdout.write(line)


if __name__ == "__main__":
    main()
