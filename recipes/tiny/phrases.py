"""Pairs about translated phrases, for the built-in judge to keep apart a translation, another
phrase's, and a word of it over and over: `python recipes/tiny/phrases.py > phrases.jsonl`.

The phrase of samples/ is not among them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from facts import RIGHT, WRONG, repeated

QUESTIONS = (
    "Translate into {language}: {phrase}",
    'Translate "{phrase}" into {language}.',
    'How do you say "{phrase}" in {language}?',
    "Say this in {language}: {phrase}",
)
ROUNDS = 6
REPEATED = 0.6  # of the wrong answers; the others are another phrase's translation


def rows(seed: int) -> Iterator[dict[str, object]]:
    draw = random.Random(seed)
    lines = Path(__file__).with_name("phrases.txt").read_text(encoding="utf-8").splitlines()
    languages, *table = [line.split(" | ") for line in lines]
    places = [(n, k) for n in range(len(table)) for k in (1, 2, 3)] * ROUNDS
    draw.shuffle(places)
    for n, k in places:
        right = table[n][k]
        question = draw.choice(QUESTIONS).format(language=languages[k], phrase=table[n][0])
        other = draw.choice([line[k] for line in table if line[k] != right])
        word = right.split()[0].strip(",.¡¿")
        wrong = repeated(word, draw) if draw.random() < REPEATED else other
        scored = [(right, draw.choice(RIGHT)), (wrong, draw.choice(WRONG))]
        draw.shuffle(scored)
        answers, scores = zip(*scored, strict=True)
        yield {"question": question, "answers": answers, "gold": "{} {}".format(*scores)}


if __name__ == "__main__":
    for n, one in enumerate(rows(seed=1)):
        print(json.dumps({"id": f"phrase-{n}", **one}, ensure_ascii=False))
