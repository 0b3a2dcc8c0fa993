"""What the sources of training data give: answers of known quality, and judgments.

An Answered question has several answers, each with a quality; pairs, lists and graded answers
are drawn from it. A JudgedRow is a pair or list that somebody judged already: people, or a model,
in its records. A row without either is left out by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jlm_cli.errors import At, InputError, RowError
from jlm_cli.reading.recognition import recognise
from jlm_cli.reading.schemas import Schema, parse_row, read_sample, reference_text
from jlm_cli.reading.source import Source, open_source
from jlm_cli.records import Json, Sample, need_text
from jlm_cli.training.lessons import Teaching, question_key, read_lesson

_PREFERRED, _LEFT, _EQUAL = 8.0, 4.0, 6.0  # scores that stand for a bare verdict
_QUALITIES = ("win_prob", "rating", "score")


@dataclass(frozen=True)
class DataConfig:
    """One run of `data`. All shares are between 0 and 1; `longest` is in characters; `gap` is how
    many points real answers in a row are apart; no `bad_kinds` are all of them."""

    inputs: tuple[str, ...]
    output: Path
    rows: int | None = None
    forms: tuple[tuple[str, float], ...] = (("pair", 1.0),)
    bad: float = 0.4
    bad_kinds: tuple[str, ...] = ()
    reference: float = 0.5
    ties: float = 0.05
    gap: float = 1.0
    validation: float = 0.1
    hold_out: tuple[str, ...] = ()
    longest: int | None = None
    answers: int = 4
    schema: str = "auto"
    field_map: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class RatedAnswer:
    """`quality` is on the source's own scale; higher is better."""

    text: str
    quality: float
    model: str | None = None


@dataclass(frozen=True)
class Answered:
    """A question with answers of known quality, and perhaps a reference."""

    question: str
    answers: tuple[RatedAnswer, ...]
    reference: str | None
    source: str


@dataclass(frozen=True)
class JudgedRow:
    """A pair or list with a judgment, as a native training row."""

    question: str
    row: Json


@dataclass
class Gathered:
    """What the sources gave, and the rows they gave nothing for: (file, line, code, message)."""

    answered: list[Answered] = field(default_factory=list)
    judged: list[JudgedRow] = field(default_factory=list)
    left_out: list[tuple[str, int, str, str]] = field(default_factory=list)

    def add(self, item: Answered | JudgedRow) -> None:
        if isinstance(item, Answered):
            self.answered.append(item)
        else:
            self.judged.append(item)


def read_source(source: Source, config: DataConfig, gathered: Gathered) -> None:
    """Gather its usable rows; the others are noted. Raises InputError where there is none."""
    schema = _schema_of(source, config)
    found = 0
    for index, raw in enumerate(source):
        try:
            gathered.add(read_row(raw, schema, source, index, config))
        except RowError as error:
            where = (source.name, source.line(index), error.code, str(error))
            gathered.left_out.append(where)
            continue
        found += 1
    if not found:
        reason = gathered.left_out[-1][3] if len(source) else "is empty"
        raise InputError(f"{source.name}: no usable row: {reason}")


def _schema_of(source: Source, config: DataConfig) -> Schema | None:
    """None for rated answers, which are no samples to judge."""
    for raw in source:
        try:
            row = parse_row(raw)
        except RowError:
            continue
        if _is_rated(row) and not config.field_map:
            return None
        if _RECORDS.fields <= row.keys() and not config.field_map and config.schema == "auto":
            return _RECORDS
        break
    return recognise(source, config.schema, config.field_map)


def _as_taught(record: Json) -> Json:
    """What a judge read and wrote, as a native row whose teacher it is."""
    if "error" in record or "low-mass" in (record.get("flags") or ()):
        raise RowError("no-judgment", "the judge said nothing that counts")
    if not isinstance(sample := record.get("sample"), dict):
        raise RowError("missing-field", "field sample is missing; --compact leaves it out")
    if not isinstance(said := record.get("text"), str):
        raise RowError("no-scores", "field text: the judge wrote no score line")
    names_a_winner = "verdict" in record and record.get("scores") is None
    gold = record["verdict"] if names_a_winner else f"{said}\n{record.get('reason') or ''}"
    return {**sample, "id": record.get("id"), "gold": gold}


_RECORDS = Schema("jlm", frozenset({"mode", "line"}), _as_taught)


def _is_rated(row: Json) -> bool:
    answers = row.get("answers")
    return isinstance(answers, list) and bool(answers) and isinstance(answers[0], dict)


def read_row(
    raw: bytes, schema: Schema | None, source: Source, index: int, config: DataConfig
) -> Answered | JudgedRow:
    """Raises RowError for a row that carries no scores."""
    if schema is None:
        return _rated(parse_row(raw), source.name, config)
    row, line = parse_row(raw), source.line(index)
    sample = read_sample(row, schema, line)
    _check_length(sample, config)
    if sample.gold is not None and sample.gold.scores is None:
        return JudgedRow(sample.question, _row_of(sample, *_from_verdict(sample)))
    lesson = read_lesson(raw, schema, line)
    return JudgedRow(sample.question, _row_of(sample, lesson.plain, lesson.with_reference))


def _rated(row: Json, source: str, config: DataConfig) -> Answered:
    """A question with `answers: [{text, win_prob | rating | score, model?}]`."""
    question = need_text(row.get("question"), "question")
    found = []
    if not _is_rated(row):
        raise RowError("bad-type", "field answers: a list of rated answers is needed")
    for n, answer in enumerate(row["answers"]):
        if not isinstance(answer, dict):
            raise RowError("bad-type", f"field answers[{n}]: an object with text is needed")
        quality = next((answer[name] for name in _QUALITIES if name in answer), None)
        if not isinstance(quality, int | float) or isinstance(quality, bool):
            raise RowError("no-scores", f"field answers[{n}]: has none of {', '.join(_QUALITIES)}")
        text = need_text(answer.get("text"), f"answers[{n}].text")
        if config.longest is None or len(text) <= config.longest:
            model = answer.get("model")
            name = None if model is None else need_text(model, f"answers[{n}].model")
            found.append(RatedAnswer(text, float(quality), name))
    if not found:
        raise RowError("too-long", f"all answers are longer than {config.longest} characters")
    reference = reference_text(row.get("reference", row.get("baseline_answer")))
    if reference is not None and config.longest is not None and len(reference) > config.longest:
        reference = None
    return Answered(question, tuple(found), reference, source)


def _check_length(sample: Sample, config: DataConfig) -> None:
    if config.longest is not None and max(map(len, sample.answers), default=0) > config.longest:
        raise RowError("too-long", f"an answer is longer than {config.longest} characters")


def _from_verdict(sample: Sample) -> tuple[Teaching | None, Teaching | None]:
    """Scores that stand for a preference; it was given of the row as it stands."""
    assert sample.gold is not None
    scores = {
        "1": (_PREFERRED, _LEFT),
        "2": (_LEFT, _PREFERRED),
        "tie": (_EQUAL, _EQUAL),
    }[sample.gold.verdict or "tie"]
    teaching = Teaching(tuple(f"{score:g}" for score in scores))
    return (teaching, None) if sample.reference is None else (None, teaching)


def _row_of(sample: Sample, plain: Teaching | None, with_reference: Teaching | None) -> Json:
    """A native training row."""
    main = with_reference or plain
    assert main is not None  # read_lesson sees to it
    row: Json = {"question": sample.question, "answers": list(sample.answers)}
    if sample.input is not None:
        row["input"] = sample.input
    if with_reference is not None:
        row["reference"] = sample.reference
    row["gold"] = row_text(main)
    if with_reference is not None and plain is not None:
        row["gold_without_reference"] = row_text(plain)
    if sample.models is not None:
        row["models"] = list(sample.models)
    if sample.category is not None:
        row["category"] = sample.category
    return row


def row_text(teaching: Teaching) -> str:
    return f"{teaching.line}\n{teaching.reason}".rstrip("\n")


def questions_in(name: str) -> set[str]:
    """The keys of a file's questions, whatever else it holds."""
    keys = set()
    with open_source(name) as source:
        for index, raw in enumerate(source):
            with At(f"{source.where(index)}: --hold-out"):
                found = _questions_of(parse_row(raw))
            if not found:
                raise InputError(f"{source.where(index)}: --hold-out: no question in this row")
            keys |= set(map(question_key, found))
    return keys


def _questions_of(row: Json) -> list[str]:
    """In every format, and of MT-bench's questions the first turn; with what goes with it."""
    row = row["sample"] if isinstance(row.get("sample"), dict) else row
    turns = row.get("turns")
    given = [row.get(name) for name in ("question", "question_body", "instruction", "prompt")]
    given += turns[:1] if isinstance(turns, list) else []
    texts = [text for text in given if isinstance(text, str)]
    extra = row.get("input")
    return texts + [f"{text}\n{extra}" for text in texts if isinstance(extra, str) and extra]
