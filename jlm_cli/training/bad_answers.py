"""Plainly bad answers, made from good ones: what a small judge must tell apart first.

A new kind is one function and one line in KINDS.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# draw, the good answer, its question, an answer to another question
Spoil = Callable[[random.Random, str, str, str], str | None]


@dataclass(frozen=True)
class Corruption:
    """How an answer is spoiled, the score (1-10) it then deserves, and why, as a reason says it."""

    spoil: Spoil
    score: float
    why: str


@dataclass(frozen=True)
class BadAnswer:
    text: str
    kind: str
    score: float
    why: str


def spoil(
    draw: random.Random, good: str, question: str, other: str, kinds: Sequence[str] = ()
) -> BadAnswer:
    """By one of the kinds (of all, if none is named) that this answer can be spoiled by, each as
    likely as the others; an empty answer where it can be spoiled by none."""
    names = list(kinds or KINDS)
    draw.shuffle(names)
    for name in (*names, "empty"):
        kind = KINDS[name]
        text = kind.spoil(draw, good, question, other)
        if text is not None and text != good:
            return BadAnswer(text, name, kind.score, kind.why)
    return BadAnswer("", "empty", KINDS["empty"].score, KINDS["empty"].why)


def _off_topic(draw: random.Random, good: str, question: str, other: str) -> str | None:
    return other or None


def _cut_off(draw: random.Random, good: str, question: str, other: str) -> str | None:
    """A beginning, cut within a sentence."""
    words = list(re.finditer(r"\S+", good))
    if len(words) < 16:
        return None
    last = words[draw.randrange(3, max(4, len(words) // 5))]
    return good[: last.end()].rstrip(".!?:;,")


def _repeated(draw: random.Random, good: str, question: str, other: str) -> str | None:
    words = good.split()
    if len(words) < 6:
        return None
    size = draw.randint(2, min(9, len(words) // 2))
    start = draw.randrange(len(words) - size)
    return " ".join(words[start : start + size] * draw.randint(5, 15))


def _shuffled(draw: random.Random, good: str, question: str, other: str) -> str | None:
    words = good.split()
    if len(set(words)) < 6:
        return None
    draw.shuffle(words)
    return " ".join(words)


def _refusal(draw: random.Random, good: str, question: str, other: str) -> str | None:
    return draw.choice(_REFUSALS)


def _empty(draw: random.Random, good: str, question: str, other: str) -> str | None:
    return draw.choice(("", "", ".", "...", "N/A", "-"))


def _other_language(draw: random.Random, good: str, question: str, other: str) -> str | None:
    sentences = list(draw.choice(_LANGUAGES))
    draw.shuffle(sentences)
    return " ".join(sentences[: draw.randint(1, len(sentences))])


def _echo(draw: random.Random, good: str, question: str, other: str) -> str | None:
    lead = draw.choice(("", "", "The question is: ", "You asked: ", "Instruction: "))
    return lead + " ".join([question] * draw.choice((1, 1, 2)))


def _half_off_topic(draw: random.Random, good: str, question: str, other: str) -> str | None:
    """Begins well and goes on about something else."""
    mine, theirs = good.split(), other.split()
    if len(mine) < 20 or len(theirs) < 10:
        return None
    return " ".join(mine[: len(mine) // 3] + theirs[: max(10, len(mine) // 2)])


def _wrong_numbers(draw: random.Random, good: str, question: str, other: str) -> str | None:
    if len(re.findall(r"\d+", good)) < 3:
        return None
    return re.sub(r"\d+", lambda found: str(int(found[0][:6]) * 3 + draw.randint(1, 40)), good)


def _gibberish(draw: random.Random, good: str, question: str, other: str) -> str | None:
    letters = draw.choice((_VOWELS + _CONSONANTS, _CONSONANTS, _VOWELS + _CONSONANTS + _SIGNS))
    sizes = (draw.randint(2, 9) for _ in range(draw.randint(4, 40)))
    words = ["".join(draw.choices(letters, k=size)) for size in sizes]
    return draw.choice((" ", " ", " ", "")).join(words)


_VOWELS, _CONSONANTS, _SIGNS = "aeiou", "bcdfghjklmnpqrstvwxyz", "0123456789;,.#/"

_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this question.",
    "As a language model I have no opinion about this and cannot help you.",
    "I don't know.",
    "Sorry, this request is outside of what I can do.",
    "I am unable to assist with this. Please ask someone else.",
    "That is something I would rather not talk about.",
    "Please consult an expert.",
    "No answer is available at this time.",
    "I have no information on this topic.",
)

_LANGUAGES = (
    (
        "Das lässt sich nicht in einem Satz sagen.",
        "Es hängt davon ab, wen man fragt.",
        "Am besten schaut man in ein Buch.",
        "Gestern hat es den ganzen Tag geregnet.",
    ),
    (
        "Cela dépend de beaucoup de choses.",
        "Il faut d'abord y réfléchir un moment.",
        "Mon voisin en parle souvent.",
        "Le marché ouvre à huit heures.",
    ),
    (
        "Depende de muchas cosas.",
        "Hay que pensarlo con calma.",
        "Mi hermana vive cerca del mar.",
        "Mañana será otro día.",
    ),
    (
        "Dipende da molte cose.",
        "Bisogna pensarci bene.",
        "Il treno parte alle nove.",
        "La cucina è piccola ma bella.",
    ),
    (
        "To zależy od wielu rzeczy.",
        "Trzeba się nad tym zastanowić.",
        "Pociąg odjeżdża o dziewiątej.",
    ),
    (
        "Это зависит от многих вещей.",
        "Нужно подумать об этом.",
        "Поезд уходит в девять часов.",
    ),
    ("这取决于很多事情。", "我们需要好好想一想。", "火车九点出发。"),
    ("それは多くのことによります。", "よく考える必要があります。", "電車は九時に出ます。"),
)

KINDS: dict[str, Corruption] = {
    "off-topic": Corruption(_off_topic, 1, "answers another question"),
    "cut-off": Corruption(_cut_off, 3, "breaks off before it has answered"),
    "repeated": Corruption(_repeated, 2, "repeats the same words over and over"),
    "shuffled": Corruption(_shuffled, 2, "is a jumble of words without an order"),
    "refusal": Corruption(_refusal, 2, "refuses to answer"),
    "empty": Corruption(_empty, 1, "gives no answer"),
    "other-language": Corruption(_other_language, 1, "speaks another language, about other things"),
    "echo": Corruption(_echo, 1, "only repeats the question"),
    "half-off-topic": Corruption(_half_off_topic, 4, "begins well but strays from the question"),
    "gibberish": Corruption(_gibberish, 1, "is a heap of random letters"),
    "wrong-numbers": Corruption(_wrong_numbers, 4, "gets its numbers wrong"),
}
