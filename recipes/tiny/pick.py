"""Of rows that `jlm data` made: the first with real answers alone, the first with a spoiled one.

python recipes/tiny/pick.py REAL SPOILED < set/train.jsonl > picked.jsonl
"""

from __future__ import annotations

import json
import sys

from jlm_cli.bad_answers import KINDS


def main() -> None:
    left = {False: int(sys.argv[1]), True: int(sys.argv[2])}
    for line in sys.stdin:
        spoiled = any(model in KINDS for model in json.loads(line)["models"])
        if left[spoiled]:
            left[spoiled] -= 1
            sys.stdout.write(line)


if __name__ == "__main__":
    main()
