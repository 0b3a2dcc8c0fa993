"""One line of predictions: what it says of a pair of answers, and what it tells of their sample."""

from __future__ import annotations

from typing import Any

from jlm_cli.errors import At, InputError, RowError
from jlm_cli.measuring.columns import (
    PLACE,
    SPLIT,
    UNREADABLE,
    About,
    Judged,
    about_of,
    are_texts,
    judged_of,
)
from jlm_cli.reading.schemas import majority, read_votes, schema_of
from jlm_cli.records import VERDICTS, Json, read_gold, read_score_line, read_verdict, verdict_of

_P_OFF = 0.01  # of a sum of rounded probabilities
_OTHER_RECORDS = {"score": "grade or mmvet", "ranking": "rank", "aspects": "aspects"}


def sample_in(row: Json, where: str) -> Json:
    """The sample that a record holds; empty where it holds none. Raises InputError."""
    sample = {} if row.get("sample") is None else row["sample"]
    sound = isinstance(sample, dict) and isinstance(sample.get("question"), str | None)
    texts = [sample.get(name) or [] for name in ("answers", "models")] if sound else []
    if not sound or not all(map(are_texts, texts)):
        raise InputError(f"{where}: field sample: not as jlm writes it")
    return dict(sample)


def read_judged(row: Json, where: str) -> Judged:
    """What a line predicts. Raises InputError where it is no prediction."""
    try:
        with At(where):
            if "error" in row and "mode" in row:
                return judged_of(row)
            if row.get("mode") == "rank":
                raise RowError("no-verdict", "no verdict on a pair; use --protocol rank")
            if "pred_text" in row:
                return _from_text(row["pred_text"])
            if "verdict" in row or "scores" in row:
                return judged_in(row)
            if "question_id" in row and "text" in row:
                return _from_text(row["text"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: a damaged record: {type(error).__name__} {error}") from error
    for name, protocol in _OTHER_RECORDS.items():
        if name in row:
            raise InputError(f"{where}: no verdict on a pair; use --protocol {protocol}")
    raise InputError(
        f"{where}: no prediction; take a record of jlm, pred_text, or id with verdict or scores"
    )


def _from_text(text: Any) -> Judged:
    """A judge's own words: a verdict where the first line is a score line for two answers."""
    scores = read_score_line(text) if isinstance(text, str) else None
    if scores is None or len(scores) != 2:
        return Judged(error="unparsable")
    return Judged(PLACE[verdict_of(scores)], scores=scores)


def judged_in(row: Json) -> Judged:
    """What fields as jlm's say. Raises RowError."""
    scores: Any = row.get("scores")
    verdict: Any = row.get("verdict")
    if verdict is None and scores is None:
        return Judged(error="unparsable")
    if scores is not None and not (is_numbers(scores) and len(scores) == 2):
        raise RowError("bad-value", "field scores: one number for each of two answers is needed")
    if verdict is None:
        verdict = verdict_of(tuple(scores))
    said = _said({"verdict": verdict, "p": row.get("p")}, "")
    other = row.get("swapped")
    if isinstance(other, dict) and other.get("verdict") is not None:
        other = _said(other, "swapped.")
    return judged_of({**row, **said, "swapped": other})


def _said(given: Json, field: str) -> Json:
    """A verdict, and its probabilities where there are any."""
    verdict, p = read_verdict(given["verdict"]), given.get("p")
    if verdict is None:
        known = ", ".join(f'"{name}"' for name in VERDICTS)
        raise RowError(
            "bad-value", f"field {field}verdict: {given['verdict']!r}; there are {known}"
        )
    return {"verdict": verdict, "p": None if p is None else _read_p(p, f"{field}p")}


def _read_p(given: Any, field: str) -> Json:
    """Probabilities of the verdicts; a judge that never ties may leave that one out."""
    p = {"tie": 0.0, **given} if isinstance(given, dict) else {}
    if set(VERDICTS) <= p.keys() and is_numbers([p[verdict] for verdict in VERDICTS]):
        found: Json = {verdict: p[verdict] for verdict in VERDICTS}
        if min(found.values()) >= 0 and abs(sum(found.values()) - 1) <= _P_OFF:
            return found
    raise RowError("bad-value", f'field {field}: probabilities of "1", "2" and "tie" are needed')


def is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def native_fields(row: Json) -> Json:
    """Question, answers, models, category, reference, gold and votes of any line, as far as it
    has them."""
    if isinstance(row.get("sample"), dict):
        return {**row["sample"], "gold": row.get("gold"), "votes": read_votes(row["sample"])}
    if (schema := schema_of(row)) is None:
        return {} if "pred_text" in row else {**row, "votes": read_votes(row)}
    return {**schema.native(row), "votes": read_votes(row)}


def about_in(row: Json, where: str) -> About:
    """What a line tells of its sample. Its gold is what a record holds, or a teacher's text
    beside `pred_text`."""
    with At(where):
        fields = native_fields(row)
        teacher = "pred_text" not in row and "text" in row and "mode" not in row
        return with_gold(fields, None if teacher else fields.get("gold"))


def with_gold(fields: Json, gold: Any) -> About:
    about = about_of({**fields, "gold": None})
    votes = fields.get("votes", ())
    if votes is None:
        return about._replace(gold=UNREADABLE)
    if votes:
        counts = [votes.count(verdict) for verdict in VERDICTS]
        return about._replace(gold=PLACE.get(majority(votes), SPLIT), votes=counts)
    if gold is None:
        return about
    found = read_gold(gold, 2)
    verdict = None if found is None else found.verdict
    return about._replace(gold=UNREADABLE if verdict is None else PLACE[verdict])
