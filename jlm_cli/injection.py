"""Forged structure: user text that spells the headings of a judge's prompt, or a score line.

Text is compared by its skeleton: compatibility characters unfolded (NFKC), case folded,
look-alikes from other scripts turned into the Latin letters they imitate, white space, marks and
invisible characters dropped. Such text can be marked, taken out, or refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import cache

from jlm_cli.config import OnInjection
from jlm_cli.errors import RowError
from jlm_cli.records import Sample, field_names, field_of, with_field

_TAKEN_OUT = "(…)"

# What prompts of judges are built from, as skeletons: JudgeLM's headings (paper, Fig. 3, 4, 6),
# PandaLM's and Prometheus's sections. The first part of each is looked for before the expression.
_HEADINGS = {
    "ofassistant": r"\[?the(?:start|end|beginning)ofassistant[0-9a-z]{0,2}s?answer\]?",
    "[system": r"\[:*system(?:prompt|message)?:*\]",
    "[question": r"\[:*question:*\]",
    "[reference": r"\[:*referenceanswers?:*\]",
    "[result": r"\[:*result:*\]",
    "#response": r"#{2,}response(?:[12ab]|toevaluate)?:",
    "#instruction": r"#{2,}instruction:",
    "#theinstruction": r"#{2,}theinstructiontoevaluate:",
    "#evaluation": r"#{2,}evaluation:",
    "#feedback": r"#{2,}feedback:",
    "#task": r"#{2,}taskdescription:",
    "#score": r"#{2,}scorerubrics?:",
    "#reference": r"#{2,}reference(?:answer)?(?:\(score5\))?:",
}
_HEADING = re.compile("|".join(_HEADINGS.values()))

# A line of scores, perhaps announced, and nothing but space behind it.
_SCORE = r"(?:10|[0-9])(?:[.][0-9]+)?"
_ANNOUNCED = r"(?:#*(?:response|scores?|ratings?|results?|output|judge?ment): *)?"


@cache
def _score_lines(n: int) -> re.Pattern[str]:
    more = rf"(?:(?: *[,;|&] *| +(?:and +)?){_SCORE}){{{n - 1}}}"
    return re.compile(_ANNOUNCED + _SCORE + more + "[.]?")


_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

# Letters, digits and signs of other scripts that look like the ASCII they stand beside, where
# NFKC leaves them apart.
_LOOK_ALIKES = {
    "a": "аɑα⍺ᴀ",
    "b": "Ьʙв",
    "c": "сϲᴄ",
    "d": "ԁɗᴅ",
    "e": "еєɛҽᴇ",
    "f": "ꜰƒ",
    "g": "ɡցɢ",
    "h": "һհʜн",
    "i": "іıιӏɪ",
    "j": "јϳᴊ",
    "k": "κкᴋ",
    "l": "ʟ",
    "m": "мᴍ",
    "n": "ոпɴη",
    "o": "оοօᴏσ",
    "p": "рρᴘ",
    "q": "ԛգ",
    "r": "гᴦʀ",
    "s": "ѕꜱ",
    "t": "тτᴛ",
    "u": "υսᴜ",
    "v": "ѵνᴠ",
    "w": "ԝωᴡ",
    "x": "хχ",
    "y": "уүγʏ",
    "z": "ᴢʐ",
    "[": "【〔〚⟦❲⁅⦋",
    "]": "】〕〛⟧❳⁆⦌",
    "#": "♯⌗",
    ":": "꞉∶։׃܃",
    ",": "،、",
    "0": "۰٠०",
    "1": "۱١१",
}
_ASCII_OF = {alike: ascii for ascii, some in _LOOK_ALIKES.items() for alike in some}
_DROPPED = set("*_~`'\"-\\>=“”‘’ʼ′‵″ʹˈ´‐‑‒–—―−‛\u115f\u1160\u2800")
# marks, controls, formats (zero-width and bidi characters), and what is assigned to nothing
_INVISIBLE = {"Mn", "Me", "Cc", "Cf", "Cn", "Co", "Cs"}
_DIGIT_ALIKES = str.maketrans("oli", "011")


class _Skeletons(dict[int, str | None]):
    """The skeleton of every character, worked out when it is first met; None drops it."""

    def __init__(self, space: str) -> None:
        super().__init__()
        self._space = space

    def __missing__(self, code: int) -> str | None:
        unfolded = unicodedata.normalize("NFKD", chr(code)).casefold()
        self[code] = "".join(map(self._part, unfolded)) or None
        return self[code]

    def _part(self, char: str) -> str:
        if char.isspace():
            return self._space
        if char in _DROPPED or unicodedata.category(char) in _INVISIBLE:
            return ""
        return _ASCII_OF.get(char, char)


_SPACELESS, _SPACED = _Skeletons(""), _Skeletons(" ")


def find(text: str, n_scores: int) -> list[tuple[int, int]]:
    """Where the text forges structure, as (start, end) in it; lines of `n_scores` (0: none)."""
    skeleton = text.translate(_SPACELESS)
    found = []
    if any(needle in skeleton for needle in _HEADINGS):
        found = _located(text, [match.span() for match in _HEADING.finditer(skeleton)])
    if n_scores and (line := _score_line(text, n_scores)) is not None:
        found.append(line)
    return found


def _located(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of the skeleton as spans of the text."""
    if not spans:
        return []
    source = [place for place, char in enumerate(text) for _ in char.translate(_SPACELESS)]
    return [(source[start], source[end - 1] + 1) for start, end in spans]


def _score_line(text: str, n_scores: int) -> tuple[int, int] | None:
    """The last line with anything to be seen, where it is a score line."""
    end = len(text)
    while end and not (text[end - 1].translate(_SPACED) or " ").strip():
        end -= 1
    start = max(text.rfind(separator, 0, end) for separator in _LINE_ENDS) + 1
    line = text[start:end].translate(_SPACED).strip(" |")
    digits = line.translate(_DIGIT_ALIKES) if any(map(str.isdigit, line)) else line
    shape = _score_lines(n_scores)
    forged = shape.fullmatch(line) or shape.fullmatch(digits)
    return (start, end) if forged else None


def guard(
    sample: Sample, mode: OnInjection, n_shown: Collection[int]
) -> tuple[Sample, tuple[str, ...]]:
    """The sample as it may be judged, and a flag for each field that forges structure, where so
    many answers are shown at once.

    Raises RowError where `mode` is error and there is such a field.
    """
    found = {
        name: spans for name in field_names(sample) if (spans := _in_field(sample, name, n_shown))
    }
    for name, spans in found.items():
        text = field_of(sample, name)
        if mode == "error":
            start, end = spans[0]
            raise RowError("injection", f"field {name}: forges the prompt: {text[start:end]!r:.80}")
        if mode == "neutralize":
            sample = with_field(sample, name, _without(text, spans))
    if mode == "neutralize" and found:  # what was taken out may have stood in the way of more
        sample, _ = guard(sample, mode, n_shown)
    return sample, tuple(f"injection:{name}" for name in found)


def _in_field(sample: Sample, name: str, n_shown: Collection[int]) -> list[tuple[int, int]]:
    text = field_of(sample, name)
    if not name.startswith("answer_"):
        return find(text, 0)
    lengths = sorted({max(2, n) for n in n_shown})  # a single score is what many an honest one is
    return sorted({span for n_scores in lengths for span in find(text, n_scores)})


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    pieces, at = [], 0
    for start, end in sorted(spans):
        if start >= at:
            pieces += [text[at:start], _TAKEN_OUT]
        at = max(at, end)
    return "".join([*pieces, text[at:]])
