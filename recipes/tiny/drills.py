"""Rows for the built-in judge whose right answer stands in the prompt or follows from it: sums, and
facts made up here, which only a reference can tell: `python recipes/tiny/drills.py > drills.jsonl`.

They are rows as `facts.py` makes them; the questions of samples/ are not among them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from facts import Fact, row

_SUMS = 1700
_MADE_UP = 1000


@dataclass(frozen=True)
class Kind:
    """A question about a made-up name {a}, sentences that state a value {b}, and the least and
    largest number in it."""

    question: str
    sentences: tuple[str, ...]
    value: str
    least: int
    most: int


KINDS = (
    Kind(
        "How high is Mount {a}, in metres?",
        ("{b}", "Mount {a} is {b} high.", "It rises to {b}."),
        "{n} metres",
        300,
        7000,
    ),
    Kind(
        "How long is the river {a}?",
        ("{b}", "The {a} is about {b} long.", "Its length is {b}."),
        "{n} kilometres",
        20,
        3000,
    ),
    Kind(
        "At what temperature does {a} melt, in degrees Celsius?",
        ("{b}", "{a} melts at {b}.", "It melts at about {b}.", "Its melting point is {b}."),
        "{n} degrees Celsius",
        20,
        1900,
    ),
    Kind(
        "In which year was the town of {a} founded?",
        ("{b}", "{a} was founded in {b}.", "In {b}.", "The town dates from the year {b}."),
        "{n}",
        900,
        1990,
    ),
    Kind(
        "How many people live in {a}?",
        ("{b}", "{b} people live in {a}.", "About {b}.", "{a} has a population of {b}."),
        "{n}",
        200,
        90000,
    ),
    Kind(
        "What does a ticket to {a} cost?",
        ("{b}", "A ticket to {a} costs {b}.", "It costs {b}.", "You pay {b} for it."),
        "{n} dollars",
        2,
        400,
    ),
    Kind(
        "How many pages does the novel {a} have?",
        ("{b}", "{a} has {b}.", "The novel is {b} long."),
        "{n} pages",
        80,
        900,
    ),
    Kind(
        "How fast can a {a} run?",
        ("{b}", "A {a} can run at {b}.", "Up to {b}.", "Its top speed is {b}."),
        "{n} km/h",
        5,
        110,
    ),
)

_SYLLABLES = "ka lo ri ven dar mel to sha ner bo qui las pe tor mi gan zel ur and fen"


def kept_out(a: int, b: int) -> bool:
    """One pair of numbers in 29, that of the sum in samples/ too: no judge learns from its sum."""
    return a * b % 29 == 17 * 25 % 29


def sums(draw: random.Random) -> Iterator[Fact]:
    """Most of two numbers below a hundred; wrong results are near ones, or a digit off."""
    for _ in range(_SUMS):
        sign = draw.choices("+-*", (0.7, 0.2, 0.1))[0]
        a, b = sorted(draw.sample(range(2, 13 if sign == "*" else 80), 2), reverse=True)
        if kept_out(a, b):
            continue
        if sign == "+" and draw.random() < 0.5:
            a, b = b, a
        right = a + b if sign == "+" else a - b if sign == "-" else a * b
        off = [right + d for d in (-20, -10, -2, -1, 1, 2, 10, 20) if right + d > 0]
        ask = draw.choice(("What is {}?", "Calculate {}.", "How much is {}?", "{} = ?"))
        text = f"{a} {sign} {b}"
        sentences = ("{b}", f"{text} = {{b}}", f"{text} = {{b}}", "The result is {b}.")
        yield Fact(ask.format(text), sentences, str(right), tuple(map(str, draw.sample(off, 3))))


def made_up(draw: random.Random) -> Iterator[Fact]:
    for _ in range(_MADE_UP):
        kind = draw.choice(KINDS)
        name = "".join(draw.sample(_SYLLABLES.split(), draw.choice((2, 3)))).capitalize()
        right, *wrong = (
            kind.value.format(n=n) for n in draw.sample(range(kind.least, kind.most), 4)
        )
        sentences = tuple(sentence.replace("{a}", name) for sentence in kind.sentences)
        yield Fact(kind.question.format(a=name), sentences, right, tuple(wrong))


def rows(seed: int) -> Iterator[dict[str, object]]:
    draw = random.Random(seed)
    for fact in sums(draw):
        yield row(fact, draw)
    for fact in made_up(draw):
        stated = draw.choice(fact.sentences).replace("{b}", fact.right)
        yield {**row(fact, draw), "reference": stated}


if __name__ == "__main__":
    for n, one in enumerate(rows(seed=1)):
        print(json.dumps({"id": f"drill-{n}", **one}, ensure_ascii=False))
