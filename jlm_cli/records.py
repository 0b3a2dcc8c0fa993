"""What goes in and what comes out: a Sample to be judged, and the JSON of samples and records."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from jlm_cli.errors import RowError

Verdict = Literal["1", "2", "tie"]
VERDICTS: tuple[Verdict, ...] = ("1", "2", "tie")
TURNED: dict[Verdict, Verdict] = {"1": "2", "2": "1", "tie": "tie"}  # of the answers' other order
Json = dict[str, Any]

_SCORE_LINE = re.compile(r"\d+(?:\.\d+)?(?:(?:\s*,\s*|\s+)\d+(?:\.\d+)?)*")
_EXACT = 2.0**53  # larger numbers are rounded, whole ones above 2⁶⁴ by JSON's readers
_DIGITS = 6  # decimals kept in records: float32 does not know more


@dataclass(frozen=True)
class Gold:
    """What a row is measured against: a verdict over two answers, or one score (0–10) each."""

    verdict: Verdict | None
    scores: tuple[float, ...] | None = None

    def json(self) -> Any:
        return list(self.scores) if self.scores is not None else self.verdict

    def turned(self) -> Gold:
        """The same, of two answers in the other order."""
        verdict = self.verdict and TURNED[self.verdict]
        return Gold(verdict, self.scores and self.scores[::-1])


@dataclass(frozen=True)
class Sample:
    """One question with the answers to be judged; never changed after it was read."""

    id: str | int | float | None
    line: int
    question: str
    answers: tuple[str, ...]
    reference: str | None = None
    gold: Gold | None = None
    models: tuple[str, ...] | None = None
    category: str | None = None
    input: str | None = None  # the last part of the question, where its source keeps it apart
    no_gold: str | None = None  # why what was given as such says nothing about these answers

    @property
    def instruction(self) -> str:
        """The question without its input."""
        return self.question.removesuffix(f"\n{self.input}") if self.input else self.question

    def json(self) -> Json:
        return {
            "question": self.question,
            "answers": list(self.answers),
            "reference": self.reference,
            "models": None if self.models is None else list(self.models),
            "category": self.category,
            **({} if self.input is None else {"input": self.input}),
        }


_ANSWER = "answer_"


def field_names(sample: Sample) -> list[str]:
    """The fields that come into a prompt, as flags and errors name them; answers from 1."""
    answers = [f"{_ANSWER}{n}" for n in range(1, len(sample.answers) + 1)]
    asked = ["instruction", "input"] if sample.input else ["question"]
    return [*asked, *([] if sample.reference is None else ["reference"]), *answers]


def answer_number(field: str) -> int | None:
    """From 1; None for other fields."""
    return int(field.removeprefix(_ANSWER)) if field.startswith(_ANSWER) else None


def field_of(sample: Sample, field: str) -> str:
    if number := answer_number(field):
        return sample.answers[number - 1]
    return getattr(sample, field) or ""


def with_field(sample: Sample, field: str, text: str) -> Sample:
    if number := answer_number(field):
        answers = list(sample.answers)
        answers[number - 1] = text
        return replace(sample, answers=tuple(answers))
    if field == "instruction":
        return replace(sample, question=f"{text}\n{sample.input}" if sample.input else text)
    if field == "input":
        return replace(sample, question=f"{sample.instruction}\n{text}", input=text)
    return replace(sample, **{field: text})  # type: ignore[arg-type]


def rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, _DIGITS) for value in values]


def probabilities_json(p: tuple[float, float, float]) -> Json:
    return dict(zip(VERDICTS, rounded(p), strict=True))


def verdict_of(scores: tuple[float, ...]) -> Verdict:
    """Higher score wins, equal scores tie (paper, section 3.2)."""
    first, second = scores
    return "1" if first > second else "2" if second > first else "tie"


def digest_of(held: Json | str) -> str:
    """What a sample or a text holds, in short: the first 16 digits of the SHA-256 of its JSON."""
    return hashlib.sha256(dump(held)).hexdigest()[:16]


def error_record(row_id: Any, line: int, mode: str, error: RowError) -> Json:
    return {
        "id": row_id,
        "line": line,
        "mode": mode,
        "error": {"code": error.code, "message": str(error)},
    }


def dump(value: Any) -> bytes:
    """Compact UTF-8 JSON, one line, without the newline."""
    return _packed(value, 0)


def dump_indented(value: Any) -> bytes:
    """UTF-8 JSON for people to read, with a newline at its end."""
    return _packed(value, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _packed(value: Any, option: int) -> bytes:
    try:
        return orjson.dumps(value, option=option)
    except TypeError:  # names of files may hold what is not Unicode
        return orjson.dumps(_unicode_in(value), option=option)


def _unicode_in(value: Any) -> Any:
    match value:
        case dict():
            return {_unicode_in(key): _unicode_in(item) for key, item in value.items()}
        case list() | tuple():
            return [_unicode_in(item) for item in value]
        case str():
            return unicode_of(value)
    return value


def unicode_of(text: str) -> str:
    """A text with what is not Unicode replaced."""
    return text.encode("utf-8", "replace").decode()


def read_score_line(text: str) -> tuple[float, ...] | None:
    """The scores in a teacher's first line: decimals 0–10 between spaces or commas, or None."""
    first = text.lstrip().split("\n", 1)[0].strip()
    if not _SCORE_LINE.fullmatch(first):
        return None
    scores = tuple(float(part) for part in re.split(r"[\s,]+", first))
    return scores if all(score <= 10 for score in scores) else None


def read_gold(value: Any, n_answers: int) -> Gold | None:
    """Gold from a verdict over two answers, a list of scores or a teacher's text.

    A text whose first line is no score line for `n_answers` answers gives None (the caller
    counts it). Raises RowError where the value is of no such kind.
    """
    if isinstance(value, str):
        if n_answers == 2 and (verdict := read_verdict(value)):
            return Gold(verdict)
        return _gold_from_scores(read_score_line(value), n_answers)
    if type(value) in (int, float):
        if n_answers == 2 and (verdict := read_verdict(value)):
            return Gold(verdict)
        value = [value] if n_answers == 1 else value
    numbers = isinstance(value, list) and all(type(item) in (int, float) for item in value)
    if not numbers:
        what = f"the number {value}" if type(value) in (int, float) else _kind(value)
        raise RowError("bad-type", f"field gold: {what}; give {_GOLD_FORMS}")
    if len(value) != n_answers or not all(0 <= item <= 10 for item in value):
        raise RowError("bad-value", f"field gold: {value} is not one score 0-10 per answer")
    return _gold_from_scores(tuple(float(item) for item in value), n_answers)


def read_verdict(value: Any) -> Verdict | None:
    """Of a text or a number: `1`, and `1.0` too, as tables write whole numbers beside gaps."""
    if isinstance(value, str):
        return _PLAIN.get(value.strip().lower())
    numbers: dict[Any, Verdict] = {1: "1", 2: "2"}
    return numbers.get(value) if type(value) in (int, float) else None


def why_no_gold(given: Any, n_answers: int) -> str | None:
    """Of what `read_gold` could not read; None where nothing was given."""
    if given is None or not str(given).strip():
        return None
    return f"{str(given)[:40]!r} says nothing about {n_answers} answers"


# verdicts, as people write them
_PLAIN: dict[str, Verdict] = {
    **dict.fromkeys(("1", "model_a"), "1"),
    **dict.fromkeys(("2", "model_b"), "2"),
    **dict.fromkeys(("tie", "tie (bothbad)"), "tie"),
}
_GOLD_FORMS = '1, 2, "tie", a list of scores, or a teacher\'s text'


def _gold_from_scores(scores: tuple[float, ...] | None, n_answers: int) -> Gold | None:
    if scores is None or len(scores) != n_answers:
        return None
    return Gold(verdict_of(scores) if n_answers == 2 else None, scores)


def _kind(value: Any) -> str:
    """The JSON name of a value's type, as in 'is a number'."""
    names = {bool: "a bool", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a text")


def need_text(value: Any, field: str) -> str:
    """The value as text. Raises RowError for null, numbers, bools, lists and objects."""
    if not isinstance(value, str):
        why = f"field {field}: {_kind(value)} where a text is needed"
        if isinstance(value, list) and value and isinstance(value[-1], dict):
            path = field.replace("[", ".").replace("]", "")
            why += f"; --map takes one out of messages: …={path}.-1.content"
        raise RowError("bad-type", why)
    return value


def need_id(value: Any) -> str | int | float | None:
    if value is not None and type(value) not in (str, int, float):
        raise RowError("bad-type", f"field id: {_kind(value)} where a text or a number is needed")
    if isinstance(value, float) and abs(value) >= _EXACT:
        raise RowError("bad-value", "field id: a number too large to be told from others; quote it")
    return value  # type: ignore[no-any-return]
