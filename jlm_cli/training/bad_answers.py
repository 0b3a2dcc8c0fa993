"""Plainly bad answers, made from good ones: what a small judge must tell apart first.

A new kind is one function and one line in KINDS.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Good:
    """An answer to be spoiled, its question, an answer to another one, and what chance decides."""

    text: str
    question: str
    other: str
    draw: random.Random


Spoil = Callable[[Good], str | None]


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


def spoil(good: Good, kinds: Sequence[str] = ()) -> BadAnswer:
    """By one of the kinds (of all, if none is named) that this answer can be spoiled by, each as
    likely as the others; an empty answer where it can be spoiled by none."""
    names = list(kinds or KINDS)
    good.draw.shuffle(names)
    for name in (*names, "empty"):
        kind = KINDS[name]
        text = kind.spoil(good)
        if text is not None and text != good.text:
            return BadAnswer(text, name, kind.score, kind.why)
    return BadAnswer("", "empty", KINDS["empty"].score, KINDS["empty"].why)


def _off_topic(good: Good) -> str | None:
    return good.other or None


def _cut_off(good: Good) -> str | None:
    """A beginning, cut within a sentence."""
    words = list(re.finditer(r"\S+", good.text))
    if len(words) < 16:
        return None
    last = words[good.draw.randrange(3, max(4, len(words) // 5))]
    return good.text[: last.end()].rstrip(".!?:;,")


def _repeated(good: Good) -> str | None:
    words = good.text.split()
    if len(words) < 6:
        return None
    size = good.draw.randint(2, min(9, len(words) // 2))
    start = good.draw.randrange(len(words) - size)
    return " ".join(words[start : start + size] * good.draw.randint(5, 15))


def _shuffled(good: Good) -> str | None:
    words = good.text.split()
    if len(set(words)) < 6:
        return None
    good.draw.shuffle(words)
    return " ".join(words)


def _refusal(good: Good) -> str | None:
    return good.draw.choice(_REFUSALS)


def _empty(good: Good) -> str | None:
    return good.draw.choice(("", "", ".", "...", "N/A", "-"))


def _other_language(good: Good) -> str | None:
    sentences = list(good.draw.choice(_LANGUAGES))
    good.draw.shuffle(sentences)
    return " ".join(sentences[: good.draw.randint(1, len(sentences))])


def _echo(good: Good) -> str | None:
    lead = good.draw.choice(("", "", "The question is: ", "You asked: ", "Instruction: "))
    return lead + " ".join([good.question] * good.draw.choice((1, 1, 2)))


def _half_off_topic(good: Good) -> str | None:
    """Begins well and goes on about something else."""
    mine, theirs = good.text.split(), good.other.split()
    if len(mine) < 20 or len(theirs) < 10:
        return None
    return " ".join(mine[: len(mine) // 3] + theirs[: max(10, len(mine) // 2)])


def _wrong_numbers(good: Good) -> str | None:
    if len(re.findall(r"\d+", good.text)) < 3:
        return None
    draw = good.draw
    return re.sub(r"\d+", lambda found: str(int(found[0][:6]) * 3 + draw.randint(1, 40)), good.text)


def _gibberish(good: Good) -> str | None:
    letters = good.draw.choice((_VOWELS + _CONSONANTS, _CONSONANTS, _VOWELS + _CONSONANTS + _SIGNS))
    sizes = (good.draw.randint(2, 9) for _ in range(good.draw.randint(4, 40)))
    words = ["".join(good.draw.choices(letters, k=size)) for size in sizes]
    return good.draw.choice((" ", " ", " ", "")).join(words)


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
