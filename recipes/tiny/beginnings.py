"""Short pairs that nobody has judged, from long answers: of two models' answers to a question, the
first sentences. `teach.py` gives them the judgment that trained judges agree on.

python recipes/tiny/beginnings.py SCORED.jsonl.gz > pairs.jsonl

Most answers to most questions are long; so a judge sees more questions beside short answers.
Questions that `jlm data` keeps for validation have no part in it.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from answers import learnt_from

PAIRS = 3  # of each question
LONGEST_QUESTION = 420
LENGTHS = (60, 100, 150, 200, 260, 320)  # characters that the sentences taken may have
ALIKE = 0.7  # pairs cut to the same length


def beginning(text: str, longest: int) -> str:
    """The first sentences that fit, at least one; a line that announces others goes with them."""
    ends = [match.end() for match in re.finditer(r"(?<!\d)[.!?](?=\s)|[^\s:](?=\n)|\S$", text)]
    fitting = [end for end in ends if end <= longest]
    return text[: fitting[-1] if fitting else ends[0]]


def pairs(question: str, answers: Sequence[str], draw: random.Random) -> Iterator[list[str]]:
    chosen = draw.sample(answers, 2 * PAIRS)
    for first, second in zip(chosen[::2], chosen[1::2], strict=True):
        longest = [draw.choice(LENGTHS), draw.choice(LENGTHS)]
        if draw.random() < ALIKE:
            longest[1] = longest[0]
        cut = [beginning(text, most) for text, most in zip((first, second), longest, strict=True)]
        if cut[0] != cut[1] and all(len(text) < 2 * LENGTHS[-1] for text in cut):
            yield cut


def main() -> None:
    draw = random.Random(1)
    for row in learnt_from(Path(sys.argv[1])):
        question = row["question"]
        texts = [answer["text"].strip() for answer in row["answers"]]
        if len(question) <= LONGEST_QUESTION:
            for cut in pairs(question, [text for text in texts if text], draw):
                print(json.dumps({"question": question, "answers": cut}, ensure_ascii=False))


if __name__ == "__main__":
    main()
