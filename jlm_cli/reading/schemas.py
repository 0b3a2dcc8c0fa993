"""File formats people have: each schema turns one JSON object into the native fields.

A new schema is one function and one line in SCHEMAS. The first whose fields a row holds is
taken for the whole input.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from jlm_cli.errors import RowError
from jlm_cli.reading.source import LONGEST_LINE, why_no_json
from jlm_cli.records import (
    VERDICTS,
    Json,
    Sample,
    Verdict,
    need_id,
    need_text,
    read_gold,
    read_verdict,
    why_no_gold,
)


@dataclass(frozen=True)
class Schema:
    """`fields` tell the schema by; `native` gives the row in the fields of native input; `id` is
    the field that holds its id, if any does; `answers` are those that hold its answers, where each
    has one of its own."""

    name: str
    fields: frozenset[str]
    native: Callable[[Json], Json]
    id: str | None = "id"
    answers: Callable[[Json], Sequence[str]] | None = None

    def id_in(self, row: Json) -> Any:
        """A row's id, whatever else is wrong with it. Raises RowError without one."""
        return None if self.id is None else need_id(dotted(row, self.id))


def listed(row: Json) -> Json:
    """A single answer as a list of one, and its model."""
    if "answers" in row or "answer" not in row:
        return row
    model = row.get("model")
    models = [model] if row.get("models") is None and isinstance(model, str) else row.get("models")
    return {**row, "answers": [row["answer"]], "models": models}


_ANSWER_BODY = re.compile(r"answer([1-9]\d{0,3})_body")


def _bodies(row: Json) -> list[str]:
    numbers = sorted(int(match[1]) for name in row if (match := _ANSWER_BODY.fullmatch(name)))
    for due, number in enumerate(numbers, start=1):
        if due != number:
            raise RowError("missing-field", f"field answer{due}_body is missing")
    return [f"answer{number}_body" for number in numbers]


def _judgelm(row: Json) -> Json:
    """Official JudgeLM questions, predictions and training rows.

    `score` of questions holds log-probabilities, no verdict; gold is the teacher's `text` of
    training rows, of those with a reference the text written with it. `error` is no text.
    """
    bodies = _bodies(row)
    models = [row.get(f"answer{number}_model_id") for number in range(1, len(bodies) + 1)]
    reference = reference_text(row.get("reference"))
    with_reference = reference is not None and "text_w_reference" in row
    teacher = row.get("text_w_reference" if with_reference else "text")
    return {
        "id": row["question_id"],
        "question": row["question_body"],
        "answers": [row[body] for body in bodies],
        "reference": reference,
        "gold": None if teacher == "error" else teacher,
        "models": _if_texts(models),
        "category": row.get("category"),
    }


def _if_texts(models: list[Any]) -> list[Any] | None:
    return models if all(isinstance(model, str) for model in models) else None


def _pandalm(row: Json) -> Json:
    """PandaLM's test set: JSON bools among the responses stand for the words True and False."""
    instruction = need_text(row["instruction"], "instruction")
    extra = need_text(row.get("input") or "", "input")
    bools = {True: "True", False: "False"}
    answers = [
        bools[body] if isinstance(body, bool) else body
        for body in (row["response1"], row["response2"])
    ]
    models = str(row.get("cmp_key", "")).split("_")
    return {
        "id": row.get("idx"),
        "question": f"{instruction}\n{extra}" if extra else instruction,
        "input": extra or None,
        "answers": answers,
        "gold": gold_of_votes(row),
        "models": models if len(models) == 2 else None,
        "category": row.get("motivation_app"),
    }


def read_votes(row: Json) -> list[Verdict] | None:
    """What each annotator chose: `annotator1`, `annotator2`, … with 1, 2 or 0 = tie (as numbers or
    texts), or a list `annotators` of verdicts; null is no vote. None where one cannot be read."""
    cast = row.get("annotators")
    if not isinstance(cast, list):
        cast = [row[name] for name in row if name[:9] == "annotator" and name[9:].isdecimal()]
    votes = [_vote(one) for one in cast if one is not None]
    return None if None in votes else [vote for vote in votes if vote is not None]


def _vote(given: Any) -> Verdict | None:
    word = given.strip() if isinstance(given, str) else given
    none_better = word in ("0", 0) and not isinstance(word, bool)
    return "tie" if none_better else read_verdict(word)


def gold_of_votes(row: Json) -> str | None:
    """The majority's verdict; None where there is none, and a text that says so where a vote
    cannot be read."""
    votes = read_votes(row)
    return "unreadable votes" if votes is None else majority(votes)


def majority(votes: list[Verdict]) -> Verdict | None:
    """The verdict of more than half of the annotators; None where there is none."""
    for verdict in VERDICTS:
        if 2 * votes.count(verdict) > len(votes):
            return verdict
    return None


def _alpaca(row: Json) -> Json:
    """AlpacaEval annotations: `preference` runs from 1 (first) to 2 (second); 0 is a draw, too."""
    models = [row.get(f"generator_{number}") for number in (1, 2)]
    return {
        "id": row.get("id"),
        "question": row["instruction"],
        "answers": [row["output_1"], row["output_2"]],
        "gold": _preferred(row.get("preference")),
        "models": _if_texts(models),
        "category": row.get("dataset"),
    }


def _preferred(preference: Any) -> str | None:
    """As gold; a text that says so where it cannot be read."""
    if preference is None:
        return None
    try:
        number = math.nan if isinstance(preference, bool) else float(preference)
    except (TypeError, ValueError):
        number = math.nan
    if number in (0, 1.5):
        return "tie"
    if not 1 <= number <= 2:
        return f"unreadable preference {preference!r}"
    return "1" if number < 1.5 else "2"


def _sides(row: Json) -> tuple[str, str]:
    """The chosen answer goes first or second by its question, so that a judge that always takes the
    first is right half the time, not always."""
    turned = zlib.crc32(need_text(row["prompt"], "prompt").encode()) % 2
    return ("rejected", "chosen") if turned else ("chosen", "rejected")


def _rewardbench(row: Json) -> Json:
    sides = _sides(row)
    models = [row.get(f"{side}_model") for side in sides]
    return {
        "id": row.get("id"),
        "question": row["prompt"],
        "answers": [row[side] for side in sides],
        "gold": str(1 + sides.index("chosen")),
        "models": _if_texts(models),
        "category": row.get("subset"),
    }


_JUDGELM_FIELDS = frozenset({"question_id", "question_body", "answer1_body"})
SCHEMAS = (
    Schema("native", frozenset({"question", "answers"}), listed),
    Schema("native-answer", frozenset({"question", "answer"}), listed),
    Schema("judgelm", _JUDGELM_FIELDS, _judgelm, "question_id", _bodies),
    Schema(
        "pandalm",
        frozenset({"instruction", "response1", "response2"}),
        _pandalm,
        "idx",
        lambda _: ("response1", "response2"),
    ),
    Schema(
        "alpaca",
        frozenset({"instruction", "output_1", "output_2"}),
        _alpaca,
        answers=lambda _: ("output_1", "output_2"),
    ),
    Schema(
        "rewardbench", frozenset({"prompt", "chosen", "rejected"}), _rewardbench, answers=_sides
    ),
)


def schema_of(row: Json) -> Schema | None:
    """The first whose fields a row holds."""
    return next((schema for schema in SCHEMAS if schema.fields <= row.keys()), None)


def dotted(row: Json, path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        number = isinstance(value, list) and part.removeprefix("-").isdecimal()
        place: Any = int(part) if number else part
        try:
            value = value[place]
        except (LookupError, TypeError):
            raise RowError("missing-field", f"field {path} (named by --map) is missing") from None
    return value


def parse_row(raw: bytes) -> Json:
    """One line as a JSON object. Raises RowError `too-long`, `bad-json` or `bad-type`."""
    if len(raw) > LONGEST_LINE:
        raise RowError("too-long", f"the line is longer than {LONGEST_LINE >> 20} MiB")
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RowError("bad-json", why_no_json(raw, error)) from error
    if not isinstance(row, dict):
        raise RowError("bad-type", "the line is not a JSON object")
    return row


def without_reference(row: Json) -> Json:
    """A row as it is judged without its reference, with the gold that was given of just that."""
    gold = row.get("gold_without_reference")
    return {**row, "reference": None, **({} if gold is None else {"gold": gold})}


def read_sample(row: Json, schema: Schema, line: int) -> Sample:
    """The Sample in a row. Raises RowError that names the field."""
    fields = _with_required(row, schema)
    answers = fields["answers"]
    if not isinstance(answers, list):
        raise RowError("bad-type", "field answers: a list of texts is needed")
    names = [f"answers[{n}]" for n in range(len(answers))]
    texts = tuple(map(need_text, answers, schema.answers(row) if schema.answers else names))
    reference, models = fields.get("reference"), fields.get("models")
    given, category = fields.get("gold"), fields.get("category")
    gold = None if given is None else read_gold(given, len(texts))
    return Sample(
        id=need_id(fields.get("id")),
        line=line,
        question=need_text(fields["question"], "question"),
        answers=texts,
        reference=None if reference is None else _paragraphs(reference),
        gold=gold,
        no_gold=None if gold is not None else why_no_gold(given, len(texts)),
        models=None if models is None else _read_models(models, len(texts)),
        category=None if category is None else need_text(category, "category"),
        input=_input_of(fields),
    )


def _input_of(fields: Json) -> str | None:
    """The last part of the question, where the row has it by itself as well."""
    question, given = fields["question"], fields.get("input")
    ends = isinstance(given, str) and given and question.endswith(f"\n{given}")
    return given if ends else None


def _with_required(row: Json, schema: Schema) -> Json:
    if missing := sorted(schema.fields - row.keys()):
        raise RowError("missing-field", f"field {missing[0]} is missing")
    fields = schema.native(row)
    for name in ("question", "answers"):
        if name not in fields:
            raise RowError("missing-field", f"field {name} is missing")
    return fields


def _read_models(models: Any, n_answers: int) -> tuple[str, ...]:
    models = [models] if isinstance(models, str) and n_answers == 1 else models
    if not isinstance(models, list) or len(models) != n_answers:
        raise RowError("bad-value", "field models: a list with one name per answer is needed")
    return tuple(need_text(model, f"models[{n}]") for n, model in enumerate(models))


def reference_text(value: Any) -> str | None:
    """A reference is a text or an object with `text` (official files hold both); one without words
    is none, as tables write it."""
    if isinstance(value, dict):
        value = value.get("text")
    return None if value is None else _paragraphs(value)


def _paragraphs(value: Any) -> str | None:
    """A text, or a list of paragraphs as a retriever gives them (paper, Table 15)."""
    parts = value if isinstance(value, list) else [need_text(value, "reference")]
    text = "\n\n".join(need_text(part, f"reference[{n}]") for n, part in enumerate(parts))
    return text if text.strip() else None
